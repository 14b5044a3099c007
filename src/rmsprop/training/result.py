"""What came out of a run: the numbers kept in model.safetensors, and the closing table."""

from typing import Any

import numpy as np
import torch

from rmsprop.fit import Model
from rmsprop.training.loop import Data, State, outputs, score_of
from rmsprop.training.network import LESSONS
from rmsprop.training.target import Target

MOST_POINTS = 1_000  # of the plot of predicted against true values
LARGEST_TABLE = 30  # classes of the confusion table


def result_of(state: State, data: Data, target: Target) -> dict[str, Any]:
    """Scores, times and, for the report, what was confused with what (or true and predicted values)."""
    output = outputs(state.network, data.test_x)
    result: dict[str, Any] = {
        "train_score": score_of(outputs(state.network, data.x), data.y),
        "test_score": score_of(output, data.test_y),
        "train_rows": len(data.x),
        "test_rows": len(data.test_x),
        "parameters": sum(p.numel() for p in state.network.parameters()),
        "seconds": sum(row["seconds"] for row in state.history),
        "optimizer_seconds": sum(row["optimizer_seconds"] for row in state.history),
        "baseline": 0.0,
        "race": None,
    }
    if target.classes is None:
        points = (
            torch.stack([data.test_y, output.squeeze(1)], dim=1)[:MOST_POINTS].double() * target.scale + target.mean
        )
        return {**result, "points": points.tolist()}
    true, predicted = data.test_y, output.argmax(1)
    result["baseline"] = (true == data.y.bincount().argmax()).double().mean().item()
    confusion = np.zeros((len(target.classes),) * 2, dtype=int)
    np.add.at(confusion, (true.numpy(), predicted.numpy()), 1)
    right, rows = confusion.diagonal(), confusion.sum(1)
    result["classes"] = [
        {"name": str(name), "rows": int(n), "right": int(k), "missed": int(n - k), "predicted": int(p)}
        for name, n, k, p in zip(target.classes, rows, right, confusion.sum(0), strict=True)
    ]
    result["confusion"] = confusion.tolist() if len(target.classes) <= LARGEST_TABLE else None
    return result


def summary(model: Model) -> str:
    """The closing table: score, seconds, time in the optimizer, where the run was saved; plain text."""
    target, result, folder = model.target, model.result, model.folder
    rows = [
        (f"test {target.score_name}", _score(target, result)),
        ("trained for", f"{result['seconds']:.1f} s, {len(model.history)} epochs"),
        ("in the optimizer", _optimizer(result)),
    ]
    if folder is not None:
        rows.append(("saved in", f"{folder} (look at {folder / 'report.html'})"))
    text = "\n".join(f"{name:<18}{value}" for name, value in rows)
    init = model.config["settings"]["init"]
    return text + (f"\ninit={init}: {LESSONS[init]}." if init in LESSONS else "")


def _score(target: Target, result: dict[str, Any]) -> str:
    if target.classes is None:
        return (
            f"{result['test_score']:.4f} on {result['test_rows']} held-out rows "
            f"({result['train_score']:.4f} on {result['train_rows']} training rows)"
        )
    return (
        f"{result['test_score']:.2%} of {result['test_rows']} held-out rows "
        f"({result['train_score']:.2%} of {result['train_rows']} training rows; "
        f"always the most frequent class: {result['baseline']:.2%})"
    )


def _optimizer(result: dict[str, Any]) -> str:
    text = f"{result['optimizer_seconds']:.2f} s"
    if result["race"]:
        ours, theirs = result["race"]["rmsprop"], result["race"]["torch.optim.RMSprop"]
        text += f"; a step takes {ours:.0f} us, torch.optim.RMSprop's {theirs:.0f} us on the same model"
    return text
