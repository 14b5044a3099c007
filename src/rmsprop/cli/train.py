"""`rmsprop train`: a network trained on a table."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rmsprop.fit import DEFAULTS, Model

if TYPE_CHECKING:
    from rmsprop.training.ranks import Ranks


def _option(name: str, text: str, metavar: str) -> Any:
    """An option of `rmsprop.fit`, whose default is shown but left to it."""
    default = DEFAULTS[name]
    shown = ",".join(map(str, default)) if isinstance(default, tuple) else default
    flag = f"--{name.replace('_', '-')}"
    return typer.Option(flag, help=f"{text} Default: {shown}.", metavar=metavar, show_default=False)


def train(
    context: typer.Context,
    table: Annotated[
        Path | None, typer.Argument(help="A CSV or Parquet file; without one: handwritten digits.", metavar="TABLE")
    ] = None,
    target: Annotated[str | None, typer.Option(help="The column to predict.", metavar="COLUMN")] = None,
    lr: Annotated[float | None, _option("lr", "Step size.", "NUMBER")] = None,
    beta: Annotated[float | None, _option("beta", "Decay of the mean square.", "NUMBER")] = None,
    epsilon: Annotated[float | None, _option("epsilon", "Keeps the denominator from zero.", "NUMBER")] = None,
    momentum: Annotated[float | None, _option("momentum", "Decay of the momentum buffer.", "NUMBER")] = None,
    centered: Annotated[bool | None, typer.Option(help="Divide by the standard deviation. Default: no.")] = None,
    dialect: Annotated[str | None, _option("dialect", "Whose RMSprop: torch, keras, optax, ...", "NAME")] = None,
    epochs: Annotated[int | None, _option("epochs", "Passes over the training rows.", "N")] = None,
    cooldown: Annotated[float | None, _option("cooldown", "Last part, over which lr falls to 0.", "NUMBER")] = None,
    batch_size: Annotated[int | None, _option("batch_size", "Rows a step.", "N")] = None,
    hidden: Annotated[str | None, _option("hidden", "Widths of the hidden layers, or none.", "N,N,...")] = None,
    init: Annotated[str | None, _option("init", "kaiming; or see what zeros, huge, tiny do.", "NAME")] = None,
    seed: Annotated[int | None, _option("seed", "Of split, weights and order.", "N")] = None,
    test_size: Annotated[float | None, _option("test_size", "Part of the rows held out.", "NUMBER")] = None,
    task: Annotated[
        str | None, typer.Option(help="classification or regression. Default: by the target.", metavar="TASK")
    ] = None,
    drop: Annotated[list[str] | None, typer.Option(help="A column to leave out; repeatable.", metavar="COLUMN")] = None,
    out: Annotated[
        Path | None, typer.Option(help="A new folder for the run. Default: runs/NAME-001.", metavar="RUN")
    ] = None,
    resume: Annotated[Path | None, typer.Option(help="Go on with this run.", metavar="RUN")] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing but the run folder.")] = False,
) -> None:
    """Train a network with RMSprop on a table, or on handwritten digits.

    Ctrl-C saves; a run that was stopped or killed goes on with --resume, to the same bits.

    Examples:
      rmsprop train
      rmsprop train houses.csv --target price
      rmsprop train houses.csv --target price --lr 0.003 --hidden 64,64 --drop id
      rmsprop train --dialect torch --out runs/torch
      rmsprop train --init zeros
      rmsprop train --resume runs/digits-001
    """
    given = {name: value for name, value in context.params.items() if value not in (None, [], ()) and name in DEFAULTS}
    given = {name: _widths(value) if name == "hidden" else value for name, value in given.items()}
    from rmsprop.training.ranks import joined

    with joined() as ranks:
        if resume is None:
            model = _start(ranks, table, given, progress=not quiet)
        else:
            model = _resume(ranks, resume, table, given, progress=not quiet)
    if ranks.leads and quiet:
        print(model.folder)
    elif ranks.leads:
        from rmsprop.training.result import summary

        print(summary(model))


def _start(ranks: "Ranks", table: Path | None, given: dict[str, Any], *, progress: bool) -> Model:
    from rmsprop.training import job, run
    from rmsprop.training.settings import Settings

    frame, target, name, source = ranks.together(lambda: _source(table, given))
    out = [Path(given["out"])] if "out" in given else run.numbered(name)
    settings = Settings.of(**{**DEFAULTS, **given})
    return job.start(frame, target, settings, out=out, source=source, progress=progress)


def _source(table: Path | None, given: dict[str, Any]) -> tuple[Any, str, str, str]:
    """The table, the target's column, a name for the run, and where the table is found again."""
    from rmsprop.training.table import digits, listed, read

    if table is None:
        if "target" in given:
            raise ValueError(f"--target {given['target']}: expected a TABLE before it; the digits have their own")
        return *digits(), "digits", "digits"
    frame = read(table)
    if "target" not in given:
        raise ValueError(f"--target: expected the column to predict; {table} has {listed(frame.columns)}")
    return frame, given["target"], table.name.split(".")[0], str(table.resolve())


def _resume(ranks: "Ranks", folder: Path, table: Path | None, given: dict[str, Any], *, progress: bool) -> Model:
    from rmsprop.training import job, run
    from rmsprop.training.table import digits, read

    given.pop("resume")
    for name, value in given.items():
        flag = f"--{name.replace('_', '-')}"
        raise ValueError(f"{flag} {value}: expected nothing beside --resume {folder}, which has its own options")
    config, finished = ranks.lead(lambda: (run.read_config(folder), run.finished(folder)))
    source = config["data"]["source"]
    if finished:
        if ranks.leads:
            print(f"{folder} is finished; nothing to do", file=sys.stderr)
        return ranks.lead(lambda: Model.load(folder))
    if source is None and table is None:
        raise ValueError(f"{folder}: its table was in memory; expected rmsprop.fit(columns, target, resume=...)")
    frame = ranks.together(lambda: digits()[0] if source == "digits" and table is None else read(table or source))
    return job.resume(folder, frame, config["target"]["name"], progress=progress)


def _widths(text: str) -> tuple[int, ...]:
    """The numbers in "256,128"; none in "none"."""
    try:
        return () if text == "none" else tuple(int(part) for part in text.split(","))
    except ValueError:
        raise ValueError(f"--hidden {text}: expected whole numbers with commas, such as 256,128, or none") from None
