"""`rmsprop compare`: which optimizer, dialect and learning rate for a problem."""

import os
import shutil
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from rmsprop.compare import DEFAULTS, Comparison


def compare(
    context: typer.Context,
    problem: Annotated[
        str | None,
        typer.Argument(
            help="A CSV or Parquet file, or a function that returns (model, loss, data). Default: built-in problems.",
            metavar="TABLE|MODULE:FUNCTION",
        ),
    ] = None,
    target: Annotated[str | None, typer.Option(help="The column of TABLE to predict.", metavar="COLUMN")] = None,
    problems: Annotated[
        str | None, typer.Option(help="Which of the built-in problems. Default: all that are here.", metavar="A,B,...")
    ] = None,
    optimizers: Annotated[
        str | None, typer.Option(help="Which optimizers, or all. Default: twelve of them.", metavar="A,B,...")
    ] = None,
    lrs: Annotated[
        str | None,
        typer.Option(
            help="The learning rates of all, as 0.001,0.01 or as LOW:HIGH:COUNT, evenly on a log scale. "
            "Default: eight to each optimizer, two a decade.",
            metavar="GRID",
        ),
    ] = None,
    seeds: Annotated[int | None, typer.Option(help="How many. Default: 5, with --fast 3.", metavar="N")] = None,
    steps: Annotated[
        int | None, typer.Option(help="Of a training. Default: 20 passes, 200 to 1000 steps.", metavar="N")
    ] = None,
    batch_size: Annotated[int | None, typer.Option(help="Rows a step. Default: 64.", metavar="N")] = None,
    decay: Annotated[bool, typer.Option("--decay", help="Let the learning rate fall linearly to 0.")] = False,
    fast: Annotated[bool, typer.Option("--fast", help="Fewer seeds, and only the quick built-in problems.")] = False,
    out: Annotated[
        Path | None, typer.Option(help="A folder for the comparison. Default: compare/NAME-001.", metavar="FOLDER")
    ] = None,
    resume: Annotated[Path | None, typer.Option(help="Go on with this comparison.", metavar="FOLDER")] = None,
    listed: Annotated[bool, typer.Option("--list", help="Name the optimizers and the built-in problems.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing but the folder.")] = False,
) -> None:
    """Try many optimizers and learning rates on a problem, and say which to use.

    All get the same budget, the same seeds and the same rows. A comparison that was stopped or killed goes on with
    --resume. Its folder has report.html, with curves and how each optimizer takes to its learning rate.

    Examples:
      rmsprop compare
      rmsprop compare --fast --optimizers rmsprop-modern,adam,sgd
      rmsprop compare houses.csv --target price
      rmsprop compare mine:problem --steps 500 --decay
      rmsprop compare mine:problem --lrs 1e-4:1e-1:7 --seeds 10
      rmsprop compare --resume compare/problems-001
      rmsprop compare --list
    """
    given = {
        name: value
        for name, value in context.params.items()
        if name in DEFAULTS and value is not None and value is not False
    }
    if listed:
        _alone(given, "--list")
        _list()
        return
    found = (_start if resume is None else _resume)(given, progress=not quiet)
    if quiet:
        print(found.folder)
        return
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
    print(f"{found.text(width)}\n\nsaved in {found.folder} (look at {found.folder}{os.sep}report.html)")


def _start(given: dict[str, Any], *, progress: bool) -> Comparison:
    from rmsprop.comparing.starting import start

    names = ("problems", "optimizers", "lrs", "seeds", "steps", "batch_size", "decay", "fast")
    options = {name: given.get(name, DEFAULTS[name]) for name in names}
    for name in ("problems", "optimizers"):
        if name in given:
            options[name] = [part.strip() for part in given[name].split(",")]
    if "lrs" in given:
        options["lrs"] = _grid(given["lrs"])
    problem, target = given.get("problem"), given.get("target")
    return start(problem, target, options, out=given.get("out"), kept=True, progress=progress)


def _resume(given: dict[str, Any], *, progress: bool) -> Comparison:
    from rmsprop.comparing import starting

    folder: Path = given.pop("resume")
    _alone(given, f"--resume {folder}, which has its own options")
    return starting.resume(folder, progress=progress)


def _alone(given: dict[str, Any], option: str) -> None:
    """Refuse what was given beside this option."""
    for name, value in given.items():
        flag = "a problem" if name == "problem" else f"--{name.replace('_', '-')}"
        raise ValueError(f"{flag} {value}: expected nothing beside {option}")


def _grid(text: str) -> list[float]:
    """The numbers of "0.001,0.01", or of "1e-4:1e-1:7"."""
    from rmsprop.comparing.plan import MOST_LRS

    form = f"LOW:HIGH:COUNT such as 1e-4:1e-1:7, with COUNT from 2 to {MOST_LRS}"
    expected = ValueError(f"--lrs {text}: expected numbers such as 0.001,0.01, or {form}")
    try:
        if ":" not in text:
            return [float(part) for part in text.split(",")]
        low, high, count = text.split(":")
        first, last, points = float(low), float(high), int(count)
    except ValueError:
        raise expected from None
    if not 0 < first < last or not 2 <= points <= MOST_LRS:
        raise expected
    return [float(f"{first * (last / first) ** (i / (points - 1)):.6g}") for i in range(points)]


def _list() -> None:
    """Every optimizer and every built-in problem, one a line."""
    from rmsprop.comparing.builtin import BUILTIN
    from rmsprop.comparing.candidates import CANDIDATES
    from rmsprop.comparing.plan import DEFAULT

    wide = max(map(len, [*CANDIDATES, *BUILTIN]))
    print("optimizers (* is tried without --optimizers)")
    for name, candidate in CANDIDATES.items():
        lacking = "" if candidate.installed else f" (not installed: pip install {candidate.package})"
        print(f"{'*' if name in DEFAULT else ' '} {name:<{wide}}  {candidate.about}{lacking}")
    print("\nbuilt-in problems")
    for name, make in BUILTIN.items():
        print(f"  {name:<{wide}}  {(make.__doc__ or '').strip().splitlines()[0]}")
