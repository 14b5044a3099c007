"""`rmsprop convert`: a checkpoint for another library."""

import sys
import warnings
from pathlib import Path
from typing import Annotated

import typer

from rmsprop.cli._options import DIALECT, SET, parsed


def convert(
    file: Annotated[Path, typer.Argument(help="A checkpoint file, or a run folder of rmsprop train.", metavar="FILE")],
    to: Annotated[str, typer.Option(help="native, torch, timm, sb3, adam, keras, optax or tf1.", metavar="NAME")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The file to write.", metavar="OUT")],
    dialect: Annotated[str | None, DIALECT] = None,
    option: Annotated[list[str] | None, SET] = None,
    rename: Annotated[
        list[str] | None, typer.Option(help="Another name for a parameter; repeatable.", metavar="OLD=NEW")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite the output.")] = False,
) -> None:
    """Write the optimizer state in a checkpoint for another library.

    What the other library cannot have is refused by name; what does not come through unchanged is told on standard
    error. An option that you --set wins over the file's: that is how to go on with another epsilon, if you must.

    Examples:
      rmsprop convert last.pt --to native -o last.safetensors
      rmsprop convert model.keras --to timm -o state.pt
      rmsprop convert last.pt --to optax -o state.npz --rename 0=dense.kernel
      rmsprop convert slots.npz --to timm -o state.pt --set lr=0.01
    """
    from rmsprop.checkpoint import files, outputs
    from rmsprop.checkpoint.disk import write
    from rmsprop.checkpoint.libraries import LIBRARIES, arguments

    if output.exists() and not force:
        raise ValueError(f"{output}: exists already; expected a new file, or --force")
    if to not in outputs.OUTPUTS:
        raise ValueError(f"--to {to}: expected one of {', '.join(outputs.OUTPUTS)}")
    checkpoint = files.read(file, library=dialect, **parsed(option)).checkpoint.renamed(_names(rename))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        content = outputs.encoded(checkpoint, to, output)
    write(output, content)
    for note in dict.fromkeys([*checkpoint.notes, *(str(warning.message) for warning in caught)]):
        print(f"note: {note}", file=sys.stderr)
    count = len(checkpoint.names)
    print(f"{count} parameter{'s' * (count != 1)} in {output}; {outputs.OUTPUTS[to].loading}", file=sys.stderr)
    if to in ("keras", "optax", "tf1"):
        options = arguments(checkpoint.adapted(to).rule, to)
        given = ", ".join(f"{name}={value!r}" for name, value in options.items())
        print(f"options: {LIBRARIES[to].title}({given})", file=sys.stderr)


def _names(pairs: list[str] | None) -> dict[str, str]:
    names = {}
    for pair in pairs or ():
        old, equals, new = pair.partition("=")
        if not (old and equals and new):
            raise ValueError(f"--rename {pair}: expected OLD=NEW")
        names[old] = new
    return names
