"""`rmsprop inspect`: what is in a checkpoint."""

import json as jsonlib
from pathlib import Path
from typing import Annotated, Any

import typer

from rmsprop.cli._options import DIALECT, SET, parsed


def inspect(
    file: Annotated[Path, typer.Argument(help="A checkpoint file, or a run folder of rmsprop train.", metavar="FILE")],
    dialect: Annotated[str | None, DIALECT] = None,
    option: Annotated[list[str] | None, SET] = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show what is in a checkpoint: whose RMSprop, with reasons, and how its state looks, parameter by parameter.

    Reads .safetensors (ours, and rmsprop train's), files of torch.save, .keras and .weights.h5, and .npz of
    TensorFlow 1 slots or optax leaves. Nothing in them is executed. Damaged state is described, not refused.

    v is the mean square of the gradients (centered: their variance); dead entries have v = 0; the step size is lr
    divided by the root of v, what a gradient is multiplied by.

    Examples:
      rmsprop inspect runs/digits-001
      rmsprop inspect last.pt
      rmsprop inspect model.weights.h5 --set momentum=0.9
      rmsprop inspect last.pt --json | jq .parameters
    """
    found = _found(file, dialect, parsed(option))
    print(jsonlib.dumps(_plain(found), indent=2, allow_nan=False) if json else _text(found))


def _found(file: Path, library: str | None, options: dict[str, Any]) -> dict[str, Any]:
    from rmsprop.checkpoint import files, summary
    from rmsprop.checkpoint.libraries import LIBRARIES
    from rmsprop.kernels import cpu
    from rmsprop.rule import OPTIONS

    source = files.read(file, library=library, strict=False, **options)
    checkpoint = source.checkpoint
    groups = [
        {
            "rule": {name: getattr(group.rule, name) for name in OPTIONS},
            "parameters": len(group.names),
            "dialects": summary.dialects(group.rule, LIBRARIES[source.library]),
            "reasons": list(summary.reasons(group.rule)),
        }
        for group in checkpoint.groups
    ]
    return {
        "file": str(file),
        "kind": source.kind,
        "library": LIBRARIES[source.library].title,
        "reasons": [*source.reasons, *summary.evidence(checkpoint)],
        "groups": groups,
        "notes": list(checkpoint.notes),
        "faults": checkpoint.faults(),
        "parameters": summary.rows(checkpoint),
        "kernel": cpu.NAME,
    }


def _plain(value: Any) -> Any:
    """What JSON can hold: an infinite number as null."""
    if isinstance(value, dict):
        return {key: _plain(x) for key, x in value.items()}
    if isinstance(value, list):
        return [_plain(x) for x in value]
    return None if isinstance(value, float) and abs(value) == float("inf") else value


def _text(found: dict[str, Any]) -> str:
    lines = [("file", f"{found['file']}, {found['kind']}"), ("of", found["library"])]
    lines += [("because", reason) for reason in found["reasons"]]
    for group in found["groups"]:
        one, *also = group["dialects"] or ["none that is known here"]
        rule = group["rule"]
        numbers = f"lr {rule['lr']:g}, beta {rule['beta']:g}; {group['parameters']} parameters"
        lines += [("dialect", one + f" (as well {', '.join(also)})" * bool(also))]
        lines += [("rule", "; ".join([numbers, *group["reasons"]]))]
    lines += [("note", note) for note in found["notes"]] + [("fault", fault) for fault in found["faults"]]
    lines += [("kernel", f"{found['kernel']} (of this machine)")]
    return "\n".join(f"{name:<9}{value}" for name, value in lines) + "\n\n" + _table(found["parameters"])


def _table(rows: list[dict[str, Any]]) -> str:
    """Aligned columns, a line a parameter: whole in a file or a pipe, however long the names."""
    table = [
        ("parameter", "shape", "dtype", "step", "v 10%", "50%", "90%", "dead", "faulty", "step size 10%", "50%", "90%")
    ]
    for row in rows:
        shape = "x".join(map(str, row["shape"])) or "-"
        faulty = str(row["not_finite"] + row["negative"])
        cells = (
            row["name"],
            shape,
            row["dtype"] or "no state",
            str(row["step"]),
            *_numbers(row["v"]),
            str(row["dead"]),
        )
        table.append((*cells, faulty, *_numbers(row["step_size"])))
    widths = [max(len(line[i]) for line in table) for i in range(len(table[0]))]
    return "\n".join(
        "  ".join(
            cell.ljust(w) if i < 3 else cell.rjust(w) for i, (cell, w) in enumerate(zip(line, widths, strict=True))
        )
        for line in table
    )


def _numbers(quantiles: list[float] | None) -> list[str]:
    return [f"{x:.3g}" for x in quantiles] if quantiles else ["-"] * 3
