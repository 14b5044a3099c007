import json

import numpy as np
import pytest
from sklearn.compose import ColumnTransformer
from sklearn.impute import SimpleImputer
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

from rmsprop.training.features import Features, fit

n = 60
rng = np.random.default_rng(0)
KINDS = {"a": "number", "colour": "text", "b": "number", "flag": "boolean", "size": "text"}
COLUMNS = {
    "a": np.where(rng.random(n) < 0.2, np.nan, rng.normal(5, 3, n)),
    "colour": rng.choice(np.array(["red", "green", None], dtype=object), n),
    "b": rng.exponential(1e6, n),
    "flag": rng.choice([0.0, 1.0, np.nan], n),
    "size": rng.choice(np.array(["s", "m", "l"], dtype=object), n),
}
TRAIN = np.arange(45)


def sklearns():
    numbers = make_pipeline(SimpleImputer(strategy="median", add_indicator=True), StandardScaler())
    texts = OneHotEncoder(handle_unknown="ignore", sparse_output=False)
    parts = ColumnTransformer([("numbers", numbers, [0, 2, 3]), ("texts", texts, [1, 4])])
    table = np.stack([values.astype(object) for values in COLUMNS.values()], axis=1)
    return parts.fit(table[TRAIN]).transform(table).astype(np.float32)


def test_equal_to_sklearn_bit_for_bit_and_through_json():
    features = fit(COLUMNS, KINDS, TRAIN)
    np.testing.assert_array_equal(features.transform(COLUMNS), sklearns())
    assert features.width == sklearns().shape[1]
    again = Features.from_json(json.loads(json.dumps(features.as_json())))
    assert again == features


def test_an_unknown_text_is_all_zeros_and_a_new_gap_is_filled():
    features = fit(COLUMNS, KINDS, TRAIN)
    row = {"a": [np.nan], "colour": ["blue"], "b": [np.nan], "flag": [1.0], "size": [None]}
    row = {name: np.array(x, dtype=object if KINDS[name] == "text" else float) for name, x in row.items()}
    out = features.transform(row)[0]
    np.testing.assert_array_equal(out[-6:], np.zeros(6, np.float32))
    assert np.isfinite(out).all()


def test_only_texts_only_numbers_and_a_column_that_is_missing_in_training():
    texts = fit({"t": COLUMNS["size"]}, {"t": "text"}, TRAIN)
    assert texts.transform({"t": COLUMNS["size"]}).sum(1).tolist() == [1.0] * n
    late = {"late": np.array([np.nan] * 50 + [3.0] * 10)}
    features = fit(late, {"late": "number"}, TRAIN)
    assert np.isfinite(features.transform(late)).all()


@pytest.mark.parametrize(("rows", "distinct", "limit"), [(100_000, 100_000, 256), (60, 60, 30), (30, 25, 20)])
def test_too_many_texts_are_refused(rows, distinct, limit):
    column = np.array([f"name {i % distinct}" for i in range(rows)], dtype=object)
    with pytest.raises(
        ValueError, match=f"column 'who': {distinct} different texts in {rows} rows; expected at most {limit}"
    ):
        fit({"who": column}, {"who": "text"}, np.arange(rows))
