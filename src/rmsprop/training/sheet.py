"""A table made ready to learn from: checked, the target set apart, some rows held out."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
import torch

from rmsprop.training.features import Features
from rmsprop.training.loop import Data
from rmsprop.training.settings import Settings
from rmsprop.training.table import fingerprint, frame_of, kind_of, take, values_of
from rmsprop.training.target import Target, describe, split


@dataclass(frozen=True)
class Sheet:
    """Columns by name with their kinds, the target's codes and description, training and held-out row numbers."""

    kinds: dict[str, str]
    columns: dict[str, np.ndarray]
    target: Target
    codes: np.ndarray
    train: np.ndarray
    test: np.ndarray

    def fingerprint(self) -> str:
        """SHA-256 that changes with any name or value of the table."""
        return fingerprint({**self.columns, f"target {self.target.name}": self.codes})

    def data(self, features: Features) -> Data:
        """Tensors for the network, in torch's own memory: its alignment decides the order of some sums."""
        x = features.transform(self.columns)
        parts = (x[self.train], self.codes[self.train], x[self.test], self.codes[self.test])
        return Data(*(torch.tensor(part) for part in parts))


def prepare(columns: Any, target: Any, settings: Settings) -> Sheet:
    """Check a table and split it.

    Args:
        columns: data frame, dict of arrays or 2-D array.
        target: a column's name, or an array with one value a row.

    Raises:
        ValueError: anything that cannot be learned from; names the column, what it holds and what is expected.
    """
    frame, column = apart(frame_of(columns), target)
    take(frame, settings.drop, "drop")
    frame = frame.drop(columns=list(settings.drop))
    if column.name in frame and column.equals(frame[column.name]):
        raise ValueError(f"target: column {column.name!r} is in columns too; expected target={column.name!r}, its name")
    if not frame.shape[1]:
        raise ValueError("columns: none left to learn from; expected at least one beside the target")
    described = describe(column, settings.task)
    kinds = {name: kind_of(frame[name]) for name in frame}
    values = {name: values_of(frame[name], kind) for name, kind in kinds.items()}
    codes = described.codes(column)
    train, test = split(codes, described, settings.test_size, settings.seed)
    if described.classes is None:
        y = values_of(column, "number")[train]
        described = replace(described, mean=float(y.mean()), scale=float(y.std()) or 1.0)
        codes = described.codes(column)
    return Sheet(kinds, values, described, codes, train, test)


def apart(frame: pd.DataFrame, target: Any) -> tuple[pd.DataFrame, pd.Series]:
    """The other columns and the target, which is one of them or an array of its own."""
    if isinstance(target, (str, int, np.integer)):
        take(frame, (str(target),), "target")
        return frame.drop(columns=str(target)), frame[str(target)]
    values = target if isinstance(target, pd.Series) else pd.Series(np.asarray(target).squeeze())
    if len(values) != len(frame):
        raise ValueError(f"target: {len(values)} values; expected {len(frame)}, one for each row of columns")
    return frame, values.rename(str(values.name or "target")).reset_index(drop=True)
