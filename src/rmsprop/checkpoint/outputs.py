"""Checkpoint files for other libraries: what `rmsprop convert` writes."""

import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rmsprop.checkpoint.form import Checkpoint
from rmsprop.checkpoint.keras import keras_bytes
from rmsprop.checkpoint.native import native_bytes
from rmsprop.checkpoint.optax import optax_leaves
from rmsprop.checkpoint.slots import Array
from rmsprop.checkpoint.tf1 import to_tf1
from rmsprop.checkpoint.torch import to_torch


@dataclass(frozen=True, slots=True)
class Output:
    """One row: the ending of its files, how their content is made, and how one is loaded."""

    ending: str
    content: Callable[[Checkpoint], bytes]
    loading: str


def _torch(library: str) -> Callable[[Checkpoint], bytes]:
    def content(checkpoint: Checkpoint) -> bytes:
        import torch

        packed = io.BytesIO()
        torch.save(to_torch(checkpoint, library), packed)
        return packed.getvalue()

    return content


def _npz(arrays: Callable[[Checkpoint], dict[str, Array]]) -> Callable[[Checkpoint], bytes]:
    def content(checkpoint: Checkpoint) -> bytes:
        packed = io.BytesIO()
        named: dict[str, Any] = arrays(checkpoint)
        np.savez(packed, **named)
        return packed.getvalue()

    return content


_LOAD = "optimizer.load_state_dict(torch.load(FILE)), of "
#: What a checkpoint can be converted to.
OUTPUTS = {
    "native": Output(
        ".safetensors", native_bytes, "rmsprop.checkpoint.restore(optimizer, rmsprop.checkpoint.load(FILE))"
    ),
    "torch": Output(".pt", _torch("torch"), _LOAD + "torch.optim.RMSprop"),
    "timm": Output(".pt", _torch("timm"), _LOAD + "timm.optim.RMSpropTF"),
    "sb3": Output(".pt", _torch("sb3"), _LOAD + "stable-baselines3's RMSpropTFLike"),
    "adam": Output(".pt", _torch("adam"), _LOAD + "torch.optim.Adam"),
    "keras": Output(
        ".weights.h5", keras_bytes, "keras.saving.load_weights(model.optimizer, FILE), after optimizer.build(...)"
    ),
    "optax": Output(".npz", _npz(optax_leaves), "jax.tree_util.tree_map_with_path; docs/checkpoints.md has the line"),
    "tf1": Output(".npz", _npz(to_tf1), "variable.load(array, session) for each slot"),
}


def encoded(checkpoint: Checkpoint, to: str, path: str | Path) -> bytes:
    """The content of a file for a library.

    Args:
        checkpoint: the source.
        to: a key of `OUTPUTS`.
        path: where it will be; its ending must be the library's.

    Raises:
        ValueError: another library or ending, or whatever the library cannot have.
    """
    if to not in OUTPUTS:
        raise ValueError(f"to={to!r}: expected one of {tuple(OUTPUTS)}")
    row = OUTPUTS[to]
    if row.ending != ".pt" and not str(path).endswith(row.ending):
        raise ValueError(f"{path}: expected a name that ends in {row.ending}, for {to}")
    return row.content(checkpoint)
