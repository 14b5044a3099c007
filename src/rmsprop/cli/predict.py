"""`rmsprop predict`: a trained run's predictions for a table."""

import sys
from pathlib import Path
from typing import Annotated

import typer


def predict(
    run: Annotated[Path, typer.Argument(help="A run folder of rmsprop train.", metavar="RUN")],
    table: Annotated[Path, typer.Argument(help="A CSV or Parquet file with the run's columns.", metavar="TABLE")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The CSV to write; - is standard output.")] = Path("-"),
    force: Annotated[bool, typer.Option("--force", help="Overwrite the output.")] = False,
) -> None:
    """Write a run's predictions for a table, one line a row, as CSV.

    The column "prediction" is in the target's own units; a classification also has "probability", how sure the
    network is of it. Where the table has the target too, the score is printed.

    Examples:
      rmsprop predict runs/houses-001 new.csv -o prices.csv
      rmsprop predict runs/houses-001 new.parquet | head
    """
    from rmsprop.checkpoint.disk import write
    from rmsprop.fit import Model
    from rmsprop.training.table import read

    if str(output) != "-" and output.exists() and not force:
        raise ValueError(f"{output}: exists already; expected a new file, or --force")
    model = Model.load(run)
    frame = read(table)
    predictions = {"prediction": model.predict(frame)}
    if model.classes is not None:
        predictions["probability"] = model.predict_proba(frame).max(axis=1)
    text = type(frame)(predictions).to_csv(index=False)
    if str(output) == "-":
        sys.stdout.write(text)
    else:
        write(output, text.encode())
        print(f"{len(frame)} predictions in {output}", file=sys.stderr)
    if model.target.name in frame and frame[model.target.name].notna().all():
        score = model.score(frame, model.target.name)
        print(f"{model.target.score_name} {score:.4f} on these rows, whose target is known", file=sys.stderr)
