"""Data in whatever form a user has them, as rows of inputs and targets."""

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset, default_collate

from rmsprop.comparing.problem import Split

PARTS = ("train", "valid", "test")
EXPECTED = "expected a Dataset, a DataLoader or a pair (inputs, targets) of tensors or arrays"


def parts(data: Any, dtype: torch.dtype) -> dict[str, Split]:
    """The parts that are there, of "train", "valid" and "test".

    Args:
        data: one part (training rows), a tuple or list of two or three, or a dict of them.
        dtype: of the model; NumPy's floats become it.

    Raises:
        ValueError: something else; says what and where.
    """
    if isinstance(data, dict):
        if "train" not in data or not set(data) <= set(PARTS):
            keys = ", ".join(map(repr, data))
            raise ValueError(f"the data have the keys {keys}; expected 'train', and perhaps 'valid' and 'test'")
        named = {name: data[name] for name in PARTS if name in data}
    elif isinstance(data, (tuple, list)) and not _pair(data):
        if not 1 <= len(data) <= len(PARTS):
            raise ValueError(f"the data are a {type(data).__name__} of {len(data)}; expected two or three parts")
        named = dict(zip(PARTS, data, strict=False))
    else:
        named = {"train": data}
    return {name: _split(part, name, dtype) for name, part in named.items()}


def _pair(part: Any) -> bool:
    """Whether these are inputs and targets."""
    if not isinstance(part, (tuple, list)) or len(part) != 2:
        return False
    return all(isinstance(x, Tensor) or hasattr(x, "__array__") for x in part)


def _split(part: Any, name: str, dtype: torch.dtype) -> Split:
    columns = part if _pair(part) else _columns(part, name)
    inputs, targets = (_tensor(x, name, dtype) for x in columns)
    if not inputs.ndim or not targets.ndim or len(inputs) != len(targets) or not len(inputs):
        shapes = f"{tuple(inputs.shape)} and {tuple(targets.shape)}"
        raise ValueError(f"the {name} data are of shapes {shapes}; expected as many targets as inputs, one or more")
    return Split(inputs, targets)


def _columns(part: Any, name: str) -> tuple[Any, Any]:
    """The inputs and targets of a data set."""
    collate = default_collate
    if isinstance(part, DataLoader):
        part, collate = part.dataset, part.collate_fn
    if isinstance(part, TensorDataset):
        rows: Any = part.tensors
    elif isinstance(part, IterableDataset) or not (isinstance(part, Dataset) or hasattr(part, "__getitem__")):
        raise ValueError(f"the {name} data are a {type(part).__name__}; {EXPECTED}")
    elif not hasattr(part, "__len__"):
        raise ValueError(f"the {name} data are a {type(part).__name__} without a length; {EXPECTED}")
    else:
        rows = collate([part[i] for i in range(len(part))]) if len(part) else ()
    if not isinstance(rows, (tuple, list)) or len(rows) != 2 or not all(isinstance(x, Tensor) for x in rows):
        raise ValueError(f"the {name} data, a {type(part).__name__}, do not have rows (input, target); {EXPECTED}")
    return rows[0], rows[1]


def _tensor(values: Any, name: str, dtype: torch.dtype) -> Tensor:
    """A tensor as it is; an array with floats as the model's and whole numbers as the losses of torch want them."""
    if isinstance(values, Tensor):
        return values.detach()
    array = np.asarray(values)
    if array.dtype.kind not in "biuf":
        raise ValueError(f"the {name} data hold {array.dtype} values; expected numbers")
    kinds = {"f": dtype, "i": torch.int64, "u": torch.int64, "b": torch.bool}
    return torch.tensor(array, dtype=kinds[array.dtype.kind])
