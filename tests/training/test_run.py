import csv
import json
import shutil
from pathlib import Path

import pytest

from rmsprop.training import run
from rmsprop.training.features import Features
from rmsprop.training.files import DamagedError, read_json
from rmsprop.training.loop import train
from tests.training.test_loop import DATA, fresh

FEATURES = Features({"a": "number"}, (0.0,), (), (0.0,), (1.0,), {})


def test_a_folder_appears_whole_and_the_first_free_place_is_taken(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    first = run.create(run.numbered("digits"), {"x": 1}, FEATURES)
    second = run.create(run.numbered("digits"), {"x": 2}, FEATURES)
    assert [str(first), str(second)] == ["runs/digits-001", "runs/digits-002"]
    assert sorted(p.name for p in Path("runs").iterdir()) == ["digits-001", "digits-002"]
    assert sorted(p.name for p in first.iterdir()) == ["config.json", "preprocessing.json"]
    config = run.read_config(first)
    assert config["x"] == 1
    assert run.read_features(first, config) == FEATURES


def test_nothing_that_exists_is_overwritten(tmp_path):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for name in ("file", "empty", "link"):
        with pytest.raises(ValueError, match=rf"out='.*{name}': exists already"):
            run.create([tmp_path / name], {}, FEATURES)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["empty", "file", "link"]
    assert (tmp_path / "file").read_text() == "mine"


def test_a_failure_leaves_no_folder(tmp_path, monkeypatch):
    def full(path, content):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(run, "write", full)
    with pytest.raises(OSError, match="No space"):
        run.create([tmp_path / "new"], {}, FEATURES)
    assert list(tmp_path.iterdir()) == []


def test_what_is_no_run_is_named(tmp_path):
    with pytest.raises(ValueError, match="no such run folder"):
        run.read_config(tmp_path / "none")
    with pytest.raises(ValueError, match="not a run folder"):
        run.read_config(tmp_path)
    folder = run.create([tmp_path / "run"], {}, FEATURES)
    with pytest.raises(ValueError, match="not finished"):
        run.load_model(folder, "x")


def test_files_of_another_run_are_noticed(tmp_path):
    one = run.create([tmp_path / "one"], {"x": 1}, FEATURES)
    two = run.create([tmp_path / "two"], {"x": 2}, Features({"b": "number"}, (0.0,), (), (0.0,), (1.0,), {}))
    state, _ = fresh()
    run.save_checkpoint(one, state, read_json(one / run.CONFIG)["sha256"])
    shutil.copy(one / run.CHECKPOINT, two / run.CHECKPOINT)
    with pytest.raises(DamagedError, match=r"checkpoint\.safetensors: belongs to another run"):
        run.load_checkpoint(two, state, read_json(two / run.CONFIG)["sha256"])
    shutil.copy(one / run.FEATURES, two / run.FEATURES)
    with pytest.raises(DamagedError, match=r"preprocessing\.json: belongs to another run"):
        run.read_features(two, run.read_config(two))


def test_the_layers_of_a_run_are_a_table(tmp_path):
    state, settings = fresh(epochs=2)
    train(state, DATA, settings, lambda _: None)
    state.layers[0]["update_to_weight"] = None
    run.save_checkpoint(tmp_path, state, "this run")
    with (tmp_path / run.LAYERS).open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["epoch"], row["layer"]) for row in rows[3:5]] == [("1", "2.bias"), ("2", "0.weight")]
    assert rows[0]["update_to_weight"] == ""
    assert float(rows[3]["step_size_50"]) == state.layers[3]["step_size_50"]


def test_a_checkpoint_of_an_older_version_has_no_layers(tmp_path, monkeypatch):
    state, _ = fresh()
    state.batch = 2
    progress = state.progress()
    del progress["layers"]
    monkeypatch.setattr(type(state), "progress", lambda state: progress)
    run.save_checkpoint(tmp_path, state, "this run")
    monkeypatch.undo()
    state, _ = fresh()
    run.load_checkpoint(tmp_path, state, "this run")
    assert (state.batch, state.layers) == (2, [])


def test_a_format_from_the_future_is_refused(tmp_path):
    folder = run.create([tmp_path / "run"], {}, FEATURES)
    text = (folder / run.CONFIG).read_text()
    assert json.loads(text)["format"] == run.FORMAT
    run.write(folder / run.CONFIG, run.json_bytes({**json.loads(text), "format": 99}))
    with pytest.raises(ValueError, match="format=99: expected 1"):
        run.read_config(folder)


def test_a_second_training_of_the_same_run_is_kept_out(tmp_path):
    folder = run.create([tmp_path / "run"], {}, FEATURES)
    with run.locked(folder), pytest.raises(ValueError, match="another process is training"), run.locked(folder):
        pass
    with run.locked(folder), run.locked(None):
        pass
