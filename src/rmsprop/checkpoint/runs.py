"""The checkpoint.safetensors in a run folder of `rmsprop train`, whose rule is in the config.json beside it."""

import hashlib
import json
from pathlib import Path
from typing import Any

from rmsprop.checkpoint.form import Checkpoint, Group
from rmsprop.checkpoint.slots import Array, Entry, of_rule
from rmsprop.checkpoint.torch import whole
from rmsprop.rule import Rule


def is_run(tensors: dict[str, Array], metadata: dict[str, str]) -> bool:
    """Whether a safetensors file is one."""
    return '"facts"' in metadata.get("rmsprop", "") and any(name.startswith("optimizer.") for name in tensors)


def from_run(
    path: Path, tensors: dict[str, Array], metadata: dict[str, str], *, strict: bool = True, **options: Any
) -> Checkpoint:
    """Read it.

    Args:
        path: the file, for its neighbour.
        tensors, metadata: its content.
        strict: refuse a changed file and state that no step could have left.
        **options: of the rule; the lr of the next step is not in the file.

    Raises:
        ValueError: damaged, or without its config.json.
    """
    config = path.with_name("config.json")
    if not config.exists():
        raise ValueError("a checkpoint of rmsprop train: expected config.json, which has its rule, beside it")
    rule = Rule(**json.loads(config.read_bytes())["settings"]["rule"])
    stated = json.loads(metadata["rmsprop"])["tensors"]
    wrong = [
        f"damaged: tensor {name} does not match its checksum"
        for name, x in tensors.items()
        if _digest(x) != stated.get(name)
    ]
    if wrong and strict:
        raise ValueError(wrong[0])
    entries: dict[int, Entry] = {}
    for key, x in tensors.items():
        if key.startswith("optimizer."):
            index, slot = key.removeprefix("optimizer.").split(".", 1)
            entries.setdefault(int(index), {})[slot] = whole(x) if slot == "step" else x
    # The network is a Sequential of linear layers, whose parameters come weight first.
    weights = [name.removeprefix("model.") for name in tensors if name.startswith("model.")]
    names = sorted(weights, key=lambda name: (int(name.partition(".")[0]), name.endswith("bias")))
    state = {names[i]: of_rule(entry, rule) for i, entry in sorted(entries.items())}
    notes = [] if "lr" in options else [f"lr={rule.lr:g} is what the run began with; its schedule is not in the file"]
    checkpoint = Checkpoint((Group(rule, tuple(names)),), state, (*notes, *wrong)).replace(**options)
    return checkpoint.check() if strict else checkpoint


def _digest(x: Array) -> str:
    """As `rmsprop.training.files` makes them, with torch's names of dtypes."""
    return hashlib.sha256(f"torch.{x.dtype.name} {x.shape} ".encode() + x.tobytes()).hexdigest()
