import datetime
import gzip

import numpy as np
import pandas as pd
import pytest

from rmsprop.training.table import digits, fingerprint, frame_of, kind_of, read, values_of

nan = np.nan

KINDS = [
    ([1, 2], "number"),
    ([1.0, None], "number"),
    (pd.array([1, None], dtype="Int64"), "number"),
    (pd.Series([1, 2.5, None], dtype=object), "number"),
    ([True, False], "boolean"),
    (pd.Series([True, None], dtype=object), "boolean"),
    (pd.array([True, None], dtype="boolean"), "boolean"),
    (["a", None], "text"),
    (pd.Series(["a", None], dtype=object), "text"),
    (pd.array(["a", None], dtype="string"), "text"),
    (pd.Categorical(["a", "b"]), "text"),
    (pd.Categorical([1, 2]), "text"),
]


@pytest.mark.parametrize(("values", "kind"), KINDS)
def test_kinds(values, kind):
    assert kind_of(pd.Series(values, name="c")) == kind


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([None, None], "every value is missing"),
        (pd.to_datetime(["2020-01-01"]), "dates or times"),
        ([datetime.date(2020, 1, 1)], "dates or times"),
        (pd.to_timedelta([1]), "dates or times"),
        ([[1], [2]], "mixed"),
        (pd.Series([1, "a"], dtype=object), "mixed-integer"),
        ([b"a"], "bytes"),
        ([1j], "complex"),
    ],
)
def test_what_cannot_be_learned_from_is_named(values, message):
    with pytest.raises(ValueError, match=f"column 'c'.*{message}"):
        kind_of(pd.Series(values, name="c"))


def test_values():
    numbers = values_of(pd.Series(pd.array([1, None], dtype="Int64")), "number")
    np.testing.assert_array_equal(numbers, [1, nan])
    flags = values_of(pd.Series([True, None, False], dtype=object), "boolean")
    np.testing.assert_array_equal(flags, [1, nan, 0])
    texts = values_of(pd.Series(["b", None, "a", "b"]), "text")
    assert texts.tolist() == ["b", None, "a", "b"]
    # A category that reads as a number is the same text with and without a gap beside it.
    assert values_of(pd.Series([1.0, nan, 2.0]), "text").tolist() == ["1", None, "2"]
    assert values_of(pd.Series([1, 2]), "text").tolist() == ["1", "2"]


@pytest.mark.parametrize(
    ("values", "kind", "message"),
    [
        ([1.0, np.inf], "number", "column 'c': row 2 holds inf: expected numbers of size up to"),
        ([1.0, -1e200], "number", "row 2 holds -1e.200"),
        (["1", "2", "abc"], "number", "row 3 holds abc: expected a number"),
        ([0, 1, 2], "boolean", "row 3 holds 2: expected True or False"),
    ],
)
def test_a_value_of_another_kind_is_named(values, kind, message):
    with pytest.raises(ValueError, match=message):
        values_of(pd.Series(values, name="c"), kind)


def test_frames():
    assert list(frame_of(np.zeros((2, 3))).columns) == ["0", "1", "2"]
    assert list(frame_of({"a": [1, 2], 7: np.ones(2)}).columns) == ["a", "7"]
    theirs = pd.DataFrame({1: [1, 2]}, index=[5, 5])
    ours = frame_of(theirs)
    assert ours.index.tolist() == [0, 1]
    assert (theirs.columns.tolist(), theirs.index.tolist()) == ([1], [5, 5])
    for columns, message in [
        (np.zeros(3), "2-D"),
        ({"a": []}, "empty"),
        (pd.DataFrame([[1, 2]], columns=["a"] * 2), "twice"),
    ]:
        with pytest.raises(ValueError, match=message):
            frame_of(columns)


def test_files(tmp_path):
    frame = pd.DataFrame({"a": [1.5, nan], "b": ["x", "y; z"]})
    frame.to_csv(tmp_path / "t.csv", index=False)
    frame.to_csv(tmp_path / "semicolon.csv", index=False, sep=";")
    frame.to_csv(tmp_path / "t.tsv", index=False, sep="\t")
    frame.to_parquet(tmp_path / "t.parquet")
    (tmp_path / "t.csv.gz").write_bytes(gzip.compress((tmp_path / "t.csv").read_bytes()))
    for name in ("t.csv", "semicolon.csv", "t.tsv", "t.parquet", "t.csv.gz"):
        read_back = read(tmp_path / name)
        np.testing.assert_array_equal(read_back["a"], frame["a"])
        assert read_back["b"].tolist() == frame["b"].tolist(), name
    for name, content, message in [
        ("none.csv", None, "no such file"),
        ("t.xlsx", b"", "expected a file ending in"),
        ("empty.csv", b"", "not a readable csv"),
        ("binary.csv", bytes(range(128, 256)), "not a readable csv"),
        ("ragged.csv", b"a,b\n1,2\n1,2,3\n", "not a readable csv"),
        ("text.parquet", b"hello", "not a readable parquet"),
    ]:
        if content is not None:
            (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=rf"{name}.*{message}"):
            read(tmp_path / name)
    with pytest.raises(ValueError, match="is a folder"):
        read(tmp_path)


def test_fingerprint_sees_names_values_gaps_and_order():
    base = {"a": np.array([1.0, 2.0]), "t": np.array(["x", None], dtype=object)}
    others = [
        {"b": base["a"], "t": base["t"]},
        {**base, "a": np.array([1.0, 2.5])},
        {**base, "a": np.array([2.0, 1.0])},
        {**base, "t": np.array(["x", ""], dtype=object)},
        {**base, "t": np.array(["x", "None"], dtype=object)},
        {"t": base["t"], "a": base["a"]},
    ]
    assert len({fingerprint(columns) for columns in [base, *others]}) == 7
    assert fingerprint({name: values.copy() for name, values in base.items()}) == fingerprint(base)


def test_the_digits_are_there():
    frame, target = digits()
    assert frame.shape == (1797, 65)
    assert sorted(frame[target].unique()) == list(range(10))
