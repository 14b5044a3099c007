"""Columns in, wherever they came from: each becomes numbers (NaN where missing) or texts (None where missing).

A column's *kind* is "number", "boolean" or "text". It is found when training and demanded when predicting, so
text in a column of numbers is an error that names the column and never a silent guess.
"""

import gzip
import hashlib
from collections.abc import Iterable
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from pandas.api.types import infer_dtype

from rmsprop.training.settings import hint

#: What pandas calls the values of a column, and the kind we treat them as; everything else is refused.
KINDS = {
    **dict.fromkeys(("integer", "floating", "mixed-integer-float", "decimal"), "number"),
    **dict.fromkeys(("string", "categorical"), "text"),
    "boolean": "boolean",
}
DATES = ("datetime64", "datetime", "date", "timedelta64", "timedelta", "time", "period")
SEPARATORS = {".csv": ",;\t", ".tsv": "\t", ".txt": "\t,;"}
PARQUET = (".parquet", ".pq")
LARGEST = 1e30  # a float32 network squares what it is given


def read(path: str | Path) -> pd.DataFrame:
    """The table in a CSV (also .tsv, .txt, gzipped) or Parquet file.

    Raises:
        ValueError: no such file, an unknown ending, or content that is no such table; names the file.
    """
    path = Path(path)
    endings = [ending.lower() for ending in path.suffixes if ending.lower() != ".gz"]
    ending = endings[-1] if endings else ""
    if not path.is_file():
        raise ValueError(f"{path}: {'is a folder, expected a table' if path.is_dir() else 'no such file'}")
    if ending not in (*SEPARATORS, *PARQUET):
        raise ValueError(f"{path}: expected a file ending in {', '.join((*SEPARATORS, *PARQUET))}")
    try:
        if ending in PARQUET:
            return pd.read_parquet(path)
        return pd.read_csv(path, sep=_separator(path, SEPARATORS[ending]), low_memory=False)
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror or error}") from error
    except ValueError as error:  # pandas' and pyarrow's own are all ValueErrors
        raise ValueError(f"{path}: not a readable {ending[1:]} table: {error}") from error


def _separator(path: Path, candidates: str) -> str:
    """The candidate that the header line holds most of; the first one where it holds none."""
    opened = gzip.open if path.suffix.lower() == ".gz" else open
    with opened(path, "rt", encoding="utf-8-sig") as file:
        header = file.readline()
    return max(candidates, key=header.count)


def digits() -> tuple[pd.DataFrame, str]:
    """The handwritten digits that scikit-learn ships, 1797 x 64 pixels of 0 to 16, and the target's name."""
    from sklearn.datasets import load_digits

    data = load_digits(as_frame=True)
    return data.frame.rename(columns={"target": "digit"}), "digit"


def frame_of(columns: Any) -> pd.DataFrame:
    """A data frame with text labels, from a data frame, a dict of arrays or a 2-D array (labels "0", "1", ...).

    Raises:
        ValueError: no rows, a label twice, or something that is no table.
    """
    if isinstance(columns, pd.DataFrame):
        frame = columns.copy(deep=False)
    elif isinstance(columns, dict):
        frame = pd.DataFrame(
            {name: np.asarray(x) if isinstance(x, (list, tuple)) else x for name, x in columns.items()}
        )
    else:
        array = np.asarray(columns)
        if array.ndim != 2:
            raise ValueError(f"columns={type(columns).__name__} of shape {array.shape}: expected a 2-D table")
        frame = pd.DataFrame(array)
    frame.columns = frame.columns.map(str)
    frame = frame.reset_index(drop=True)
    twice = frame.columns[frame.columns.duplicated()]
    if len(twice):
        raise ValueError(f"columns: {twice[0]!r} is there twice; expected different names")
    if not len(frame):
        raise ValueError("columns: the table is empty; expected rows")
    return frame


def take(frame: pd.DataFrame, names: tuple[str, ...], argument: str) -> None:
    """Check that every name is a column; the error names the argument and the closest column."""
    for name in names:
        if name not in frame.columns:
            near = hint(name, tuple(frame.columns))
            raise ValueError(f"{argument}={name!r}: no such column{near}; the table has {listed(frame.columns)}")


def listed(names: Iterable[str]) -> str:
    """The names with commas; only the first ten."""
    first = list(islice(names, 11))
    return ", ".join(first[:10]) + (", ..." if len(first) > 10 else "")


def kind_of(column: pd.Series) -> str:
    """Either "number", "boolean" or "text".

    Raises:
        ValueError: all missing, dates, or values we cannot learn from; names the column.
    """
    found = infer_dtype(column, skipna=True)
    if column.isna().all():
        raise ValueError(f"column {column.name!r}: every value is missing; leave it out (option drop)")
    if found in DATES:
        raise ValueError(
            f"column {column.name!r} holds dates or times: make numbers of them or leave it out (option drop)"
        )
    if found not in KINDS:
        raise ValueError(f"column {column.name!r} holds {found} values: expected numbers, booleans or texts")
    return KINDS[found]


def values_of(column: pd.Series, kind: str) -> np.ndarray:
    """The column as float64 with NaN, or for "text" as objects: str or None; shape (rows,).

    Raises:
        ValueError: a value that is not of this kind, or not finite; names column, row (from 1) and value.
    """
    if kind == "text":
        codes, distinct = pd.factorize(column)
        texts: np.ndarray = np.array([*map(_text, distinct), None], dtype=object)[codes]
        return texts
    try:
        values = column.to_numpy(dtype=np.float64, na_value=np.nan)
    except (TypeError, ValueError):
        numbers = pd.to_numeric(column.astype(object), errors="coerce")
        _refuse(column, numbers.isna() & column.notna(), f"expected a {kind}")
    _refuse(column, np.abs(values) > LARGEST, f"expected numbers of size up to {LARGEST:g}")
    if kind == "boolean":
        _refuse(column, ~np.isin(values, (0, 1)) & ~np.isnan(values), "expected True or False")
    return np.array(values)  # our own copy, whatever pandas handed out


def _text(value: object) -> str:
    """A category's name; whole numbers read the same whether a gap made them floats or not."""
    return str(int(value)) if isinstance(value, (float, np.floating)) and value.is_integer() else str(value)


def _refuse(column: pd.Series, bad: Any, expected: str) -> None:
    rows = np.flatnonzero(bad)
    if len(rows):
        raise ValueError(f"column {column.name!r}: row {rows[0] + 1} holds {column.iloc[rows[0]]!s:.40}: {expected}")


def fingerprint(columns: dict[str, np.ndarray]) -> str:
    """SHA-256 over names, order and values, so that a resumed run can tell that it has the same table."""
    digest = hashlib.sha256()
    for name, values in columns.items():
        texts = values.dtype == object
        content = "\x1f".join("\x00" if x is None else x for x in values).encode() if texts else values.tobytes()
        digest.update(f"{name}\x1e{len(values)}\x1e".encode() + content)
    return digest.hexdigest()
