import csv
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import rmsprop
from rmsprop.cli.__main__ import main
from rmsprop.training.files import read_tensors

n = 120
rng = np.random.default_rng(0)
TABLE = pd.DataFrame({"a": rng.normal(size=n), "b": rng.normal(size=n), "city": rng.choice(["Ulm", "Bonn"], n)})
TABLE["price"] = 100 * TABLE["a"] + 30 * (TABLE["city"] == "Ulm")
TABLE["sign"] = np.where(TABLE["a"] > 0, "plus", "minus")
EPOCHS = 300
OPTIONS = ["--target", "price", "--drop", "sign", "--hidden", "16", "--batch-size", "32", "--momentum", "0.5"]
LONG = [*OPTIONS, "--epochs", str(EPOCHS)]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    TABLE.to_csv("table.csv", index=False)
    return tmp_path


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("uninterrupted")
    TABLE.to_csv(folder / "table.csv", index=False)
    assert main(["train", str(folder / "table.csv"), *LONG, "--out", str(folder / "run"), "-q"]) == 0
    return folder / "run"


def assert_same_run(one, other):
    """The same weights, optimizer state and curves, to the last bit."""
    for name in ("model.safetensors", "checkpoint.safetensors"):
        ours, theirs = read_tensors(one / name), read_tensors(other / name)
        assert ours[0].keys() == theirs[0].keys()
        for key, tensor in ours[0].items():
            np.testing.assert_array_equal(tensor, theirs[0][key], err_msg=f"{name} {key}")
    curves = [[row[:4] for row in csv.reader((run / "metrics.csv").read_text().splitlines())] for run in (one, other)]
    assert curves[0] == curves[1]
    assert (one / "layers.csv").read_bytes() == (other / "layers.csv").read_bytes()


def test_with_no_arguments_digits_at_97_percent(folder, capsys):
    start = time.perf_counter()
    assert main(["train"]) == 0
    assert time.perf_counter() - start < 60
    out, err = capsys.readouterr()
    model = rmsprop.Model.load("runs/digits-001")
    assert model.result["test_score"] >= 0.97
    assert model.result["test_rows"] == 360
    assert f"{model.result['test_score']:.2%} of 360 held-out rows" in out
    assert "torch.optim.RMSprop's" in out
    assert "runs/digits-001" in out
    assert "classification of 'digit' in 10 classes" in err
    assert "epoch 100/100" in err
    names = ["checkpoint.safetensors", "config.json", "layers.csv", "metrics.csv", "model.safetensors"]
    assert sorted(os.listdir("runs/digits-001")) == [*names, "preprocessing.json", "report.html"]
    with Path("runs/digits-001/metrics.csv").open() as file:
        assert [int(row["epoch"]) for row in csv.DictReader(file)] == list(range(1, 101))


def test_each_run_gets_a_fresh_folder_and_quiet_prints_only_it(folder, capsys):
    for number in ("001", "002"):
        assert main(["train", "table.csv", *OPTIONS, "--epochs", "2", "--quiet"]) == 0
        assert capsys.readouterr() == (f"runs/table-{number}\n", "")


def test_the_options_reach_the_run(folder):
    options = "--lr 0.01 --beta 0.8 --epsilon 1e-4 --momentum 0.3 --centered --dialect keras --epochs 2 --cooldown 0.5"
    options += " --batch-size 9 --hidden 7,5 --init tiny --seed 4 --test-size 0.3 --task classification"
    options += " --drop city --drop b"
    assert main(["train", "table.csv", "--target", "sign", *options.split(), "--out", "deep/er/run", "-q"]) == 0
    settings = rmsprop.Model.load("deep/er/run").config["settings"]
    rule = {"lr": 0.01, "beta": 0.8, "epsilon": 1e-4, "momentum": 0.3, "centered": True}
    assert settings.pop("rule") == _plain(rmsprop.dialect("keras", **rule))
    expected = {"dialect": "keras", "epochs": 2, "batch_size": 9, "hidden": [7, 5], "init": "tiny", "seed": 4}
    expected |= {"test_size": 0.3, "task": "classification", "drop": ["city", "b"], "cooldown": 0.5}
    assert settings == expected


def _plain(rule):
    return {name: getattr(rule, name) for name in rmsprop.Rule.__dataclass_fields__}


def test_without_options_the_rule_is_the_tutorials_and_none_is_linear(folder):
    assert (
        main(["train", "table.csv", "--target", "price", "--epochs", "1", "--hidden", "none", "--out", "run", "-q"])
        == 0
    )
    model = rmsprop.Model.load("run")
    assert model.config["settings"]["rule"] == _plain(rmsprop.Rule())
    assert len(model.network) == 1


@pytest.mark.parametrize("init", ["zeros", "huge", "tiny"])
def test_a_bad_start_is_explained(folder, capsys, init):
    assert main(["train", "table.csv", *OPTIONS, "--epochs", "2", "--init", init, "--out", "run"]) == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith(f"init={init}: ")
    assert f"init={init}" in Path("run/report.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("none.csv --target price", "none.csv: no such file"),
        ("table.csv", "--target: expected the column to predict; table.csv has a, b, city, price, sign"),
        ("--target price", "--target price: expected a TABLE"),
        ("table.csv --target prise", "target='prise': no such column (did you mean 'price'?)"),
        ("table.csv --target sign --drop nothing", "drop='nothing': no such column"),
        ("table.csv --target price --hidden 8,x", "--hidden 8,x: expected whole numbers"),
        ("table.csv --target price --lr -1", "lr=-1.0: expected"),
        ("table.csv --target price --epochs 0", "epochs=0: expected"),
        ("table.csv --target price --init warm", "init='warm': expected one of kaiming, zeros, huge, tiny"),
        ("table.csv --target price --task classification", "target 'price': 120 different values"),
        ("table.csv --target price --out table.csv", "out='table.csv': exists already"),
        ("words.csv --target y", "column 'word': 400 different texts in 400 rows; expected at most 200"),
        ("empty.csv --target y", "empty.csv: not a readable csv table"),
        ("header.csv --target y", "the table is empty"),
        ("one.csv --target y", "target 'y': the only value is 1"),
        ("gaps.csv --target y", "target 'y': 2 of 20 values are missing (first: row 2)"),
        ("missing.csv --target y", "column 'a': every value is missing"),
        ("--resume nowhere", "nowhere: no such run folder"),
        ("--resume . --lr 1", "--lr 1.0: expected nothing beside --resume"),
        ("--resume .", "not a run folder"),
    ],
)
def test_bad_input_is_one_line_exit_2_and_writes_nothing(folder, capsys, arguments, message):
    y = [0, 1] * 10
    pd.DataFrame({"word": [f"w{i}" for i in range(400)], "y": y * 20}).to_csv("words.csv", index=False)
    Path("empty.csv").touch()
    Path("header.csv").write_text("a,y\n")
    pd.DataFrame({"a": y, "y": 1}).to_csv("one.csv", index=False)
    pd.DataFrame({"a": y, "y": [0, None, None, *[1] * 17]}).to_csv("gaps.csv", index=False)
    pd.DataFrame({"a": None, "y": y}).to_csv("missing.csv", index=False)
    before = {path: path.read_bytes() for path in folder.iterdir()}
    if "classification" in arguments:
        message = "only one row has"
    assert main(["train", *arguments.split()]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert err.startswith("rmsprop: ")
    assert message in err
    assert {path: path.read_bytes() for path in folder.iterdir()} == before


def test_divergence_is_exit_1_with_the_history(folder, capsys):
    assert main(["train", "table.csv", *OPTIONS, "--lr", "1e38", "--out", "run", "-q"]) == 1
    err = capsys.readouterr().err
    assert "try a smaller lr (it was 1e+38)" in err
    assert err.count("\n") == 1
    assert Path("run/metrics.csv").read_text().startswith("epoch,")
    assert main(["predict", "run", "table.csv"]) == 2
    assert "not finished" in capsys.readouterr().err


def test_a_finished_run_stays_as_it_is(uninterrupted, capsys):
    before = {path: path.read_bytes() for path in uninterrupted.iterdir()}
    assert main(["train", "--resume", str(uninterrupted)]) == 0
    out, err = capsys.readouterr()
    assert "is finished; nothing to do" in err
    assert "held-out rows" in out
    assert {path: path.read_bytes() for path in uninterrupted.iterdir()} == before


def test_resume_wants_the_same_table_and_whole_files(folder, capsys):
    assert main(["train", "table.csv", *OPTIONS, "--lr", "1e38", "--out", "run", "-q"]) == 1
    TABLE.assign(a=TABLE["a"] + 1).to_csv("table.csv", index=False)
    assert main(["train", "--resume", "run"]) == 2
    assert "table.csv: not the table that run was started with" in capsys.readouterr().err
    TABLE.to_csv("table.csv", index=False)
    Path("run/checkpoint.safetensors").write_bytes(b"torn")
    assert main(["train", "--resume", "run"]) == 2
    assert "checkpoint.safetensors: damaged" in capsys.readouterr().err
    Path("table.csv").rename("moved.csv")
    assert main(["train", "--resume", "run"]) == 2
    assert "table.csv: no such file" in capsys.readouterr().err
    Path("run/checkpoint.safetensors").unlink()
    assert main(["train", "moved.csv", "--resume", "run"]) == 1  # goes on, and diverges again


KILLER = """
import os, random, signal, sys, time
from rmsprop.cli.__main__ import main
from rmsprop.training import job
job.CHECKPOINT_EVERY = 0  # a checkpoint after every batch: most kills fall into the writing of one
main(["train", *sys.argv[1:], "-q", "--epochs", "1", "--out", "warm"])  # the imports, or every child makes them
random.seed(5)
kills = 0
for attempt in range(60):
    begun = os.path.exists("run")
    child = os.fork()
    if not child:
        os._exit(main(["train", "--resume", "run", "-q"] if begun else ["train", *sys.argv[1:], "-q", "--out", "run"]))
    time.sleep(random.uniform(0.05, 0.8))
    os.kill(child, signal.SIGKILL)
    kills += os.WIFSIGNALED(os.waitpid(child, 0)[1]) and os.path.exists("run")
    if kills == 12:
        break
print("kills", kills, os.path.exists("run/model.safetensors"))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_killed_at_twelve_random_moments(folder, uninterrupted):
    script = [sys.executable, "-c", KILLER, "table.csv", *LONG]
    result = subprocess.run(script, capture_output=True, text=True, check=False, timeout=300)
    assert result.stdout.endswith("kills 12 False\n"), result.stderr
    assert main(["train", "--resume", "run", "-q"]) == 0
    assert_same_run(Path("run"), uninterrupted)


def test_ctrl_c_saves_and_says_how_to_go_on(folder, uninterrupted):
    command = [sys.executable, "-m", "rmsprop", "train", "table.csv", *LONG, "--out", "my run"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        for line in process.stderr:
            if line.startswith(f"epoch {EPOCHS // 10}/"):
                process.send_signal(signal.SIGINT)
                break
        rest = process.stderr.read()
    assert process.returncode == 130
    assert rest.endswith(f" of {EPOCHS} epochs, saved; go on with: rmsprop train --resume 'my run'\n")
    assert not Path("my run/model.safetensors").exists()
    assert main(["train", "--resume", "my run", "-q"]) == 0
    assert_same_run(Path("my run"), uninterrupted)
