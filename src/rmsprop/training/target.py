"""What is to be predicted: classification or regression, its classes or its scale, and the rows held out."""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pandas as pd
from pandas.api.types import infer_dtype

from rmsprop.training.table import kind_of, values_of

FEW = 20  # whole numbers with at most this many different values are classes
MOST_CLASSES = 1_000
FEWEST_ROWS = 10


@dataclass(frozen=True)
class Target:
    """The target's description; kept in config.json.

    Attributes:
        name: its column.
        task: "classification" or "regression", and `why` it was chosen, in words.
        kind: "text", "boolean", "integer" or "number": what a prediction looks like.
        classes: the classes in order, or None.
        mean, scale: regression trains on (y - mean) / scale, both taken from the training rows.
    """

    name: str
    task: str
    why: str
    kind: str
    classes: tuple[Any, ...] | None = None
    mean: float = 0.0
    scale: float = 1.0

    def as_json(self) -> dict[str, Any]:
        """Plain values; `from_json` takes them back."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "Target":
        """The target that `as_json` wrote."""
        classes = values["classes"]
        return cls(**{**values, "classes": classes and tuple(classes)})

    @property
    def score_name(self) -> str:
        """How good it is, in a word: the share of right answers, or the share of variance explained."""
        return "accuracy" if self.classes else "R²"

    @property
    def outputs(self) -> int:
        """How many numbers the network puts out: one a class, or the prediction."""
        return len(self.classes) if self.classes else 1

    def codes(self, column: pd.Series) -> np.ndarray:
        """The column as the loss wants it: int64 class numbers (-1: no known class), or float32 standardised."""
        values = values_of(column, self.kind if self.kind in ("text", "boolean") else "number")
        if self.classes is None:
            return ((values - self.mean) / self.scale).astype(np.float32)
        known = pd.Index(np.array(self.classes, dtype=object if self.kind == "text" else np.float64))
        codes: np.ndarray = known.get_indexer(values).astype(np.int64)
        return codes


def describe(column: pd.Series, task: str | None) -> Target:
    """Look at a target column and choose the task, unless it is given.

    Raises:
        ValueError: missing values, one class, too many classes, or a task that the values do not allow.
    """
    name = str(column.name)
    missing = np.flatnonzero(column.isna())
    if len(missing):
        raise ValueError(
            f"target {name!r}: {len(missing)} of {len(column)} values are missing (first: row {missing[0] + 1})"
        )
    kind = kind_of(column)
    if kind == "number" and infer_dtype(column) == "integer":
        kind = "integer"
    values = values_of(column, "text" if kind == "text" else "number")
    distinct = np.unique(values)
    if len(distinct) < 2:
        raise ValueError(
            f"target {name!r}: the only value is {column.iloc[0]!s:.40}; expected at least two different ones"
        )
    chosen, why = _task(kind, len(distinct))
    if task is not None:
        chosen, why = task, "as asked"
    if chosen == "regression":
        if kind == "text":
            raise ValueError(f"task='regression': target {name!r} holds text; expected numbers")
        return Target(name, chosen, why, "number")
    if len(distinct) > MOST_CLASSES:
        raise ValueError(f"target {name!r}: {len(distinct)} different values; expected at most {MOST_CLASSES} classes")
    cast = {"text": str, "boolean": bool, "integer": int, "number": float}[kind]
    return Target(name, chosen, why, kind, tuple(cast(x) for x in distinct))


def _task(kind: str, distinct: int) -> tuple[str, str]:
    if kind in ("text", "boolean"):
        return "classification", f"the target holds {kind}s"
    if kind == "integer" and distinct <= FEW:
        return "classification", f"the target holds {distinct} different whole numbers"
    return "regression", "the target holds numbers" + f" with more than {FEW} values" * (kind == "integer")


def split(codes: np.ndarray, target: Target, test_size: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Row numbers (training, test), both shuffled; every class in the same proportion on both sides.

    Raises:
        ValueError: too few rows, in all or of one class, to hold any out.
    """
    from sklearn.model_selection import train_test_split

    rows = len(codes)
    held_out = int(np.ceil(test_size * rows))
    if rows < FEWEST_ROWS:
        raise ValueError(f"columns: {rows} rows; expected at least {FEWEST_ROWS}")
    stratify = None
    fewest = 2
    if target.classes is not None:
        counts = np.bincount(codes, minlength=len(target.classes))
        if counts.min() < 2:
            raise ValueError(
                f"target {target.name!r}: only one row has {target.classes[int(counts.argmin())]!r}; "
                "expected two or more rows a class, to train on and to test on"
            )
        stratify, fewest = codes, len(counts)
    if min(held_out, rows - held_out) < fewest:
        raise ValueError(
            f"test_size={test_size}: {held_out} of {rows} rows to test on; expected {fewest} to {rows - fewest}"
        )
    train, test = train_test_split(np.arange(rows), test_size=held_out, random_state=seed, stratify=stratify)
    return train, test
