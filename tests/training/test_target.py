import numpy as np
import pandas as pd
import pytest

from rmsprop.training.target import Target, describe, split

n = 40


@pytest.mark.parametrize(
    ("values", "task", "kind", "classes"),
    [
        (["no", "yes"] * 20, "classification", "text", ("no", "yes")),
        ([True, False] * 20, "classification", "boolean", (False, True)),
        ([3, 1] * 20, "classification", "integer", (1, 3)),
        (pd.Categorical([2, 10] * 20), "classification", "text", ("10", "2")),
        (np.arange(n), "regression", "number", None),
        ([0.0, 1.0] * 20, "regression", "number", None),
    ],
)
def test_the_task_follows_the_target(values, task, kind, classes):
    target = describe(pd.Series(values, name="y"), None)
    assert (target.task, target.kind, target.classes) == (task, kind, classes)
    assert Target.from_json(target.as_json()) == target


def test_a_given_task_wins():
    assert describe(pd.Series([0.5, 1.5] * 20), "classification").classes == (0.5, 1.5)
    assert describe(pd.Series([1, 2] * 20), "regression").classes is None
    assert describe(pd.Series([True, False] * 20), "regression").codes(pd.Series([True])).tolist() == [1.0]


@pytest.mark.parametrize(
    ("values", "task", "message"),
    [
        ([1.0, None, None], None, "2 of 3 values are missing .first: row 2"),
        (["a"] * n, None, "the only value is a"),
        ([2.5] * n, None, "the only value is 2.5"),
        ([f"c{i}" for i in range(1001)], None, "1001 different values; expected at most 1000"),
        (["a", "b"] * 20, "regression", "task='regression': target 'y' holds text"),
        (pd.to_datetime(["2020", "2021"]), None, "dates"),
    ],
)
def test_bad_targets_are_named(values, task, message):
    with pytest.raises(ValueError, match=message):
        describe(pd.Series(values, name="y"), task)


def test_codes():
    text = describe(pd.Series(["b", "a"] * 20), None)
    assert text.codes(pd.Series(["a", "b", "never seen"])).tolist() == [0, 1, -1]
    whole = describe(pd.Series([7, 3] * 20), None)
    assert whole.codes(pd.Series([3.0, 7.0, 5.0])).tolist() == [0, 1, -1]
    number = Target("y", "regression", "", "number", None, 10.0, 2.0)
    np.testing.assert_array_equal(number.codes(pd.Series([10.0, 14.0])), np.float32([0, 2]))


def test_the_split_is_stratified_disjoint_and_seeded():
    codes = np.array([0] * 80 + [1] * 20)
    target = Target("y", "classification", "", "integer", (0, 1))
    train, test = split(codes, target, 0.2, 3)
    assert sorted([*train, *test]) == list(range(100))
    assert np.bincount(codes[test]).tolist() == [16, 4]
    np.testing.assert_array_equal(split(codes, target, 0.2, 3)[1], test)
    assert split(codes, target, 0.2, 4)[1].tolist() != test.tolist()


@pytest.mark.parametrize(
    ("codes", "classes", "test_size", "message"),
    [
        ([0, 1] * 4, 2, 0.5, "8 rows; expected at least 10"),
        ([0] * 19 + [1], 2, 0.2, "only one row has 'c1'"),
        (list(range(10)) * 2, 10, 0.2, "test_size=0.2: 4 of 20 rows to test on; expected 10 to 10"),
    ],
)
def test_a_split_that_cannot_be_is_refused(codes, classes, test_size, message):
    target = Target("y", "classification", "", "text", tuple(f"c{i}" for i in range(classes)))
    with pytest.raises(ValueError, match=message):
        split(np.array(codes), target, test_size, 0)
