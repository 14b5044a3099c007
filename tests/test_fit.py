import re
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import torch

import rmsprop
from rmsprop.training.files import read_tensors

n = 240
rng = np.random.default_rng(0)
X = rng.normal(size=(n, 3))
FRAME = pd.DataFrame(
    {
        "a": np.where(rng.random(n) < 0.1, np.nan, X[:, 0]),
        "b": X[:, 1],
        "city": rng.choice(["Ulm", "Bonn"], n),
        "garden": rng.random(n) < 0.5,
    }
)
SIGN = np.where(X[:, 1] > 0, "plus", "minus")
PRICE = 1000 * X[:, 1] + 50 * FRAME["garden"] + 1e6
QUICK = {"epochs": 12, "hidden": (16,), "batch_size": 8}


def same_weights(one, other):
    for a, b in zip(one.network.parameters(), other.network.parameters(), strict=True):
        np.testing.assert_array_equal(a.detach(), b.detach())


def test_classification_from_a_frame():
    model = rmsprop.fit(FRAME.assign(sign=SIGN), "sign", **QUICK)
    assert (model.task, model.classes) == ("classification", ("minus", "plus"))
    predicted = model.predict(FRAME)
    assert model.score(FRAME, SIGN) == np.mean(predicted == SIGN) > 0.9
    probabilities = model.predict_proba(FRAME)
    assert probabilities.shape == (n, 2)
    np.testing.assert_allclose(probabilities.sum(1), 1, rtol=1e-12)
    np.testing.assert_array_equal(np.array(model.classes)[probabilities.argmax(1)], predicted)
    assert repr(model).startswith("<rmsprop.Model: classification of 'sign', test accuracy 0.9")


def test_regression_predicts_in_the_targets_own_units():
    model = rmsprop.fit(FRAME, PRICE, epochs=60)
    predicted = model.predict(FRAME)
    assert predicted.dtype == np.float64
    assert np.abs(predicted - PRICE).mean() < 250
    expected = 1 - np.sum((PRICE - predicted) ** 2) / np.sum((PRICE - PRICE.mean()) ** 2)
    assert model.score(FRAME, PRICE) == pytest.approx(expected, abs=1e-4)
    assert expected > 0.9
    with pytest.raises(ValueError, match="regression; expected a classification"):
        model.predict_proba(FRAME)


@pytest.mark.parametrize("labels", [[3, 7], [True, False], ["x", "y"]])
def test_predictions_are_of_the_targets_type(labels):
    target = np.where(X[:, 1] > 0, *labels)
    model = rmsprop.fit({"b": X[:, 1]}, target, **QUICK)
    assert model.predict({"b": X[:, 1]}).dtype.kind == target.dtype.kind
    assert model.score({"b": X[:, 1]}, target) > 0.9


def test_dict_array_and_frame_are_the_same_table():
    models = [
        rmsprop.fit(X, SIGN, **QUICK),
        rmsprop.fit({str(i): X[:, i] for i in range(3)}, SIGN, **QUICK),
        rmsprop.fit(pd.DataFrame(X), pd.Series(SIGN), **QUICK),
        rmsprop.fit(pd.DataFrame(X).assign(sign=SIGN), "sign", **QUICK),
        rmsprop.fit(np.column_stack([X, SIGN == "plus"]), 3, task="classification", **QUICK),
    ]
    for model in models[1:]:
        same_weights(models[0], model)


def test_the_seed_decides_and_nothing_else_does():
    torch.manual_seed(1)
    np.random.seed(1)
    before = torch.get_rng_state(), np.random.get_state()[1].copy()
    first = rmsprop.fit(X, SIGN, **QUICK)
    assert torch.equal(torch.get_rng_state(), before[0])
    np.testing.assert_array_equal(np.random.get_state()[1], before[1])
    torch.rand(3)
    same_weights(first, rmsprop.fit(X, SIGN, **QUICK))
    other = rmsprop.fit(X, SIGN, seed=1, **QUICK)
    assert not torch.equal(first.network[0].weight, other.network[0].weight)


def test_torch_runs_on_the_runs_threads_and_gets_its_own_back(monkeypatch):
    from rmsprop.training import job

    seen, train, own = [], job.train, torch.get_num_threads()
    monkeypatch.setattr(job, "threads_for", lambda network, rows: 3)
    monkeypatch.setattr(job, "train", lambda *given: seen.append(torch.get_num_threads()) or train(*given))
    try:
        torch.set_num_threads(2)
        model = rmsprop.fit(X, SIGN, **QUICK)
        assert (seen, model.config["threads"], torch.get_num_threads()) == ([3], 3, 2)
    finally:
        torch.set_num_threads(own)


def test_held_out_rows_are_never_trained_on():
    """Nonsense in the held-out rows leaves the weights as they are."""
    from rmsprop.fit import DEFAULTS
    from rmsprop.training.settings import Settings
    from rmsprop.training.sheet import prepare

    test = prepare(X, PRICE, Settings.of(**DEFAULTS)).test
    assert len(test) == n / 5
    spoiled, price = X.copy(), PRICE.copy()
    spoiled[test] *= -100
    price[test] += 5e6
    same_weights(rmsprop.fit(X, PRICE, **QUICK), rmsprop.fit(spoiled, price, **QUICK))


@pytest.mark.parametrize(
    "options",
    [
        {"lr": 0.01},
        {"beta": 0.5},
        {"epsilon": 1e-3},
        {"momentum": 0.5},
        {"centered": True},
        {"dialect": "tf1"},
        {"batch_size": 7},
        {"cooldown": 1.0},
        {"init": "huge"},
        {"seed": 5},
        {"test_size": 0.5},
        {"drop": "b"},
        {"task": "regression"},
    ],
    ids=str,
)
def test_every_option_matters(options):
    frame = FRAME[["a", "b"]]
    target = (X[:, 1] > 0).astype(int)
    base = rmsprop.fit(frame, target, epochs=2, hidden=(8,))
    model = rmsprop.fit(frame, target, epochs=2, hidden=(8,), **options)
    ours, theirs = base.network[2].weight, model.network[2].weight
    assert ours.shape != theirs.shape or not torch.equal(ours, theirs)


def test_epochs_and_hidden():
    model = rmsprop.fit(X, SIGN, epochs=3, hidden=(5, 4))
    assert [row["epoch"] for row in model.history] == [1, 2, 3]
    assert [p.shape[0] for p in model.network.parameters()] == [5, 5, 4, 4, 2, 2]


def test_save_and_load(tmp_path):
    model = rmsprop.fit(FRAME, SIGN, **QUICK)
    folder = model.save(tmp_path / "model")
    names = ["config.json", "layers.csv", "metrics.csv", "model.safetensors", "preprocessing.json", "report.html"]
    assert sorted(p.name for p in folder.iterdir()) == names
    loaded = rmsprop.Model.load(folder)
    same_weights(model, loaded)
    for name in ("history", "layers", "classes", "result"):
        assert getattr(loaded, name) == getattr(model, name)
    np.testing.assert_array_equal(loaded.predict_proba(FRAME), model.predict_proba(FRAME))
    before = {p.name: p.read_bytes() for p in folder.iterdir()}
    with pytest.raises(ValueError, match="exists already"):
        model.save(folder)
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == before
    same_weights(model, rmsprop.Model.load(loaded.save(tmp_path / "again")))


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "preprocessing.json"])
def test_a_damaged_file_is_named(tmp_path, name):
    path = rmsprop.fit(X, SIGN, epochs=1, hidden=(4,)).save(tmp_path / "model") / name
    content = path.read_bytes()
    for damaged in (content[:-20], content[:-9] + bytes([content[-9] ^ 1]) + content[-8:], b""):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=re.escape(name)):
            rmsprop.Model.load(tmp_path / "model")


def test_columns_are_matched_by_name_when_predicting():
    model = rmsprop.fit(FRAME, SIGN, **QUICK)
    expected = model.predict(FRAME)
    np.testing.assert_array_equal(model.predict(FRAME[["garden", "city", "b", "a"]].assign(more="x")), expected)
    np.testing.assert_array_equal(model.predict(FRAME.assign(garden=FRAME["garden"].astype(int))), expected)
    for columns, message in [
        (FRAME.drop(columns="city"), "'city' is missing"),
        (FRAME.rename(columns={"garden": "gardn"}), "'garden' is missing .did you mean 'gardn'"),
        (FRAME.assign(b="many"), "column 'b': row 1 holds many: expected a number"),
        (FRAME.assign(garden=2), "column 'garden': row 1 holds 2: expected True or False"),
        (FRAME.assign(b=np.inf), "column 'b': row 1 holds inf"),
    ]:
        with pytest.raises(ValueError, match=message):
            model.predict(columns)


@pytest.mark.parametrize(
    ("columns", "target", "message"),
    [
        (FRAME, "c1ty", "target='c1ty': no such column .did you mean 'city'"),
        (FRAME, FRAME["b"], "target: column 'b' is in columns too; expected target='b'"),
        (FRAME, SIGN[:-1], "target: 239 values; expected 240"),
        (FRAME.assign(y=np.nan), "y", "target 'y': 240 of 240 values are missing"),
        (FRAME.assign(late=pd.Timestamp("2020")), SIGN, "column 'late' holds dates"),
        (FRAME.assign(gone=None), SIGN, "column 'gone': every value is missing"),
        (FRAME[["a"]], "a", "none left to learn from"),
        ({}, "y", "empty"),
    ],
)
def test_tables_that_cannot_be_learned_from(columns, target, message):
    with pytest.raises(ValueError, match=message):
        rmsprop.fit(columns, target)


def test_interrupted_and_resumed_in_memory(tmp_path, monkeypatch):
    from rmsprop.training.job import Job

    whole = rmsprop.fit(X, SIGN, **QUICK)
    tick, calls = Job._tick, iter(range(1000))

    def interrupted(job, state, show):
        job.stop = next(calls) == 17
        tick(job, state, show)

    monkeypatch.setattr(Job, "_tick", interrupted)
    with pytest.raises(KeyboardInterrupt, match=r"saved; go on with: rmsprop\.fit"):
        rmsprop.fit(X, SIGN, out=tmp_path / "run", **QUICK)
    monkeypatch.setattr(Job, "_tick", tick)
    with pytest.raises(ValueError, match="not finished"):
        rmsprop.Model.load(tmp_path / "run")
    with pytest.raises(ValueError, match="not the table"):
        rmsprop.fit(X + 1, SIGN, resume=tmp_path / "run")
    with pytest.raises(ValueError, match=r"lr=0\.5: expected nothing beside resume"):
        rmsprop.fit(X, SIGN, lr=0.5, resume=tmp_path / "run")
    same_weights(rmsprop.fit(X, SIGN, resume=tmp_path / "run"), whole)
    _, facts = read_tensors(tmp_path / "run" / "model.safetensors")
    assert [row["train_loss"] for row in facts["history"]] == [row["train_loss"] for row in whole.history]
    again = {p.name: p.read_bytes() for p in (tmp_path / "run").iterdir()}
    same_weights(rmsprop.fit(X, SIGN, resume=tmp_path / "run"), whole)
    assert {p.name: p.read_bytes() for p in (tmp_path / "run").iterdir()} == again


def test_divergence_keeps_the_history(tmp_path):
    with pytest.raises(FloatingPointError, match=r"epoch 1, batch \d+; try a smaller lr .it was 1e.38"):
        rmsprop.fit(X, SIGN, lr=1e38, out=tmp_path / "run")
    assert (tmp_path / "run" / "metrics.csv").read_text().startswith("epoch,train_loss,test_loss,test_score")


def test_zeros_learn_nothing_and_the_tutorials_start_does():
    """The tutorial's lesson: with all weights equal the classes' shares are all that can be learned."""
    scores = {
        init: rmsprop.fit(X, SIGN, init=init, epochs=20, hidden=(16, 16), batch_size=8) for init in ("zeros", "kaiming")
    }
    zeros = scores["zeros"]
    assert zeros.result["test_score"] <= max(0.65, zeros.result["baseline"])
    assert float(zeros.network[0].weight.detach().abs().max()) == 0
    assert scores["kaiming"].result["test_score"] > 0.9


def test_progress_is_shown_only_when_asked_for(capsys):
    rmsprop.fit(X, SIGN, **QUICK)
    assert capsys.readouterr() == ("", "")
    rmsprop.fit(X, SIGN, progress=True, **QUICK)
    out, err = capsys.readouterr()
    assert out == ""
    assert "classification of 'target' in 2 classes (the target holds texts)" in err
    assert "epoch 12/12" in err


def test_without_torch_it_says_what_to_install():
    script = "import sys, rmsprop; sys.modules['torch'] = None; rmsprop.fit([[1]], [1])"
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    last = result.stderr.splitlines()[-1]
    assert last == 'ModuleNotFoundError: rmsprop.fit needs torch: pip install "rmsprop[train]"'
