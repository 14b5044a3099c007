"""Columns to the network's input: numbers standardised, gaps filled and marked, texts one column a value.

scikit-learn's SimpleImputer, StandardScaler and OneHotEncoder find the numbers on the training rows. They are kept as
plain JSON, so loading a run executes nothing and ties it to no version of scikit-learn; a test holds `Features`
to scikit-learn's own output, bit for bit.
"""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

MOST_TEXTS = 256


@dataclass(frozen=True)
class Features:
    """The fitted preprocessing.

    Attributes:
        kinds: every column's kind, in the order of the table.
        median: what fills the gaps, one for each column of numbers or booleans.
        marked: which of those columns had gaps in training, and so get a column that says "missing".
        mean, scale: of the filled columns followed by the marks.
        texts: for each text column its values; None stands for missing.
    """

    kinds: dict[str, str]
    median: tuple[float, ...]
    marked: tuple[int, ...]
    mean: tuple[float, ...]
    scale: tuple[float, ...]
    texts: dict[str, tuple[str | None, ...]]

    def as_json(self) -> dict[str, Any]:
        """Plain values; `from_json` takes them back."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "Features":
        """The preprocessing that `as_json` wrote."""
        texts = {name: tuple(found) for name, found in values["texts"].items()}
        median, marked, mean, scale = (tuple(values[name]) for name in ("median", "marked", "mean", "scale"))
        return cls(values["kinds"], median, marked, mean, scale, texts)

    @property
    def width(self) -> int:
        """The number of inputs of the network."""
        return len(self.mean) + sum(len(texts) for texts in self.texts.values())

    def transform(self, columns: dict[str, np.ndarray]) -> np.ndarray:
        """Columns as `table.values_of` gives them to float32, shape (rows, width). An unknown text is all zeros."""
        numbers = _numbers(columns, self.kinds)
        missing = np.isnan(numbers)
        filled = np.where(missing, self.median, numbers)
        parts = [(np.hstack([filled, missing[:, list(self.marked)]]) - self.mean) / self.scale]
        parts += [
            np.stack([columns[name] == text for text in texts], axis=1).astype(np.float64)
            for name, texts in self.texts.items()
        ]
        return np.hstack(parts).astype(np.float32)


def fit(columns: dict[str, np.ndarray], kinds: dict[str, str], rows: np.ndarray) -> Features:
    """Find the preprocessing on some rows (the training rows) of the columns.

    Raises:
        ValueError: a text column with too many different values; names it, their number and the limit.
    """
    from sklearn.impute import SimpleImputer
    from sklearn.preprocessing import OneHotEncoder, StandardScaler

    texts = {}
    for name in (name for name, kind in kinds.items() if kind == "text"):
        _check_texts(name, columns[name])
        texts[name] = tuple(OneHotEncoder().fit(columns[name][rows, None]).categories_[0])
    numbers = _numbers(columns, kinds)[rows]
    if not numbers.shape[1]:
        return Features(kinds, (), (), (), (), texts)
    # A column whose few values all lie in the test rows is filled with 0 and stays.
    imputer = SimpleImputer(strategy="median", add_indicator=True, keep_empty_features=True).fit(numbers)
    scaler = StandardScaler().fit(imputer.transform(numbers))
    found = (imputer.statistics_, imputer.indicator_.features_, scaler.mean_, scaler.scale_)
    median, marked, mean, scale = (tuple(x.tolist()) for x in found)
    return Features(kinds, median, marked, mean, scale, texts)


def _numbers(columns: dict[str, np.ndarray], kinds: dict[str, str]) -> np.ndarray:
    """The columns of numbers and booleans side by side, float64, shape (rows, columns)."""
    found = [columns[name] for name, kind in kinds.items() if kind != "text"]
    return np.stack(found, axis=1) if found else np.empty((len(next(iter(columns.values()))), 0))


def _check_texts(name: str, column: np.ndarray) -> None:
    """Refuse names, identifiers and free text: a network with one input for each learns them by heart."""
    distinct = {text for text in column if text is not None}
    limit = min(MOST_TEXTS, max(20, len(column) // 2))
    if len(distinct) > limit:
        raise ValueError(
            f"column {name!r}: {len(distinct)} different texts in {len(column)} rows; expected at most {limit} "
            "(identifiers, free text or misread numbers?); leave it out (option drop)"
        )
