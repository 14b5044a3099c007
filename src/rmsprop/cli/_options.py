"""Options that several commands have, and how their values are read."""

import json
from typing import Any

import typer

DIALECT = typer.Option(
    "--dialect", help="Whose state it is, where the file leaves it open: torch, sb3, tf1, ...", metavar="NAME"
)
SET = typer.Option(
    "--set",
    help="An option of the optimizer that the file does not tell, or tells otherwise; repeatable.",
    metavar="NAME=VALUE",
)


def parsed(options: list[str] | None) -> dict[str, Any]:
    """{"lr": 0.1} of ["lr=0.1"]: numbers, true, false and null as in JSON, else text."""
    result: dict[str, Any] = {}
    for text in options or ():
        name, equals, value = text.partition("=")
        if not (name and equals):
            raise ValueError(f"--set {text}: expected NAME=VALUE")
        try:
            result[name] = json.loads({"True": "true", "False": "false", "None": "null"}.get(value, value))
        except ValueError:
            result[name] = value
    return result
