"""`rmsprop train` in two processes, which torchrun starts, ends, and reports on."""

import csv
import re
import signal
import subprocess

import numpy as np
import pytest

import rmsprop
from rmsprop.cli.__main__ import main
from tests.training.test_ranks import TORCHRUN, torchrun

TRAIN = ["-m", "rmsprop", "train"]
EPOCHS = 60
#: The last batch of an epoch has a single row, so the second rank's share of it is empty.
OPTIONS = ["--epochs", str(EPOCHS), "--batch-size", "359", "--lr", "0.002"]


@pytest.fixture(scope="module")
def single(tmp_path_factory):
    folder = tmp_path_factory.mktemp("single") / "run"
    assert main(["train", *OPTIONS, "--out", str(folder), "-q"]) == 0
    return rmsprop.Model.load(folder)


def assert_same_to_rounding(folder, model):
    """Weights and curves."""
    other = rmsprop.Model.load(folder)
    for a, b in zip(other.network.parameters(), model.network.parameters(), strict=True):
        np.testing.assert_allclose(a.detach(), b.detach(), rtol=0, atol=1e-5)
    for name in ("epoch", "train_loss", "test_loss", "test_score"):
        curves = [[row[name] for row in run.history] for run in (other, model)]
        np.testing.assert_allclose(*curves, rtol=1e-4, atol=1e-6, err_msg=name)
    assert [row["layer"] for row in other.layers] == [row["layer"] for row in model.layers]
    sizes = [[row["step_size_50"] for row in run.layers] for run in (other, model)]
    np.testing.assert_allclose(*sizes, rtol=1e-2)


def exit_codes(err):
    """What torchrun says of each rank that failed: {rank: exit code}."""
    return {int(rank): int(code) for rank, code in re.findall(r"rank +: (\d).*\n +exitcode +: (-?\d+)", err)}


def test_two_processes_train_as_one(tmp_path, single):
    code, out, err = torchrun(*TRAIN, *OPTIONS, "--out", "run", cwd=tmp_path)
    assert code == 0, err
    assert_same_to_rounding(tmp_path / "run", single)
    assert out.count("test accuracy") == out.count("saved in") == 1
    assert err.count("; 2 processes\n") == err.count(f"epoch {EPOCHS}/{EPOCHS}") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
    with (tmp_path / "run" / "metrics.csv").open() as file:
        assert len(list(csv.DictReader(file))) == EPOCHS
    assert rmsprop.Model.load(tmp_path / "run").config["processes"] == 2


def test_ctrl_c_stops_both_at_one_batch_and_one_process_goes_on(tmp_path, single, monkeypatch):
    command = [*TORCHRUN, *TRAIN, *OPTIONS, "--out", "run"]
    with subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True) as process:
        for line in process.stderr:
            if line.startswith(f"epoch {EPOCHS // 10}/"):
                process.send_signal(signal.SIGINT)
                break
        rest = process.stderr.read()
    assert rest.count("rmsprop: ") == 1
    assert re.search(
        rf"rmsprop: stopped after \d+ of {EPOCHS} epochs, saved; go on with: rmsprop train --resume run", rest
    )
    assert not (tmp_path / "run" / "model.safetensors").exists()
    monkeypatch.chdir(tmp_path)
    assert main(["train", "--resume", "run", "-q"]) == 0
    assert_same_to_rounding(tmp_path / "run", single)


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ("--nonsense", 2, "No such option: --nonsense"),
        ("--out run", 2, "out='run': exists already"),
        ("--out new -q --lr 1e38", 1, "the training loss became"),
    ],
)
def test_what_one_process_refuses_two_refuse_in_one_line(tmp_path, arguments, code, message):
    (tmp_path / "run").mkdir()
    _, out, err = torchrun(*TRAIN, *arguments.split(), cwd=tmp_path)
    assert out == ""
    assert err.count("rmsprop: ") == err.count(f"rmsprop: {message}") == 1
    assert exit_codes(err)[0] == code
    assert list((tmp_path / "run").iterdir()) == []


ODD_ONE_OUT = """
import os
from rmsprop.cli.__main__ import main
raise SystemExit(main(["train", "here.csv" if os.environ["RANK"] == "0" else "gone.csv", "--target", "y"]))
"""


def test_an_error_of_the_other_rank_is_said_by_rank_0(tmp_path):
    (tmp_path / "odd.py").write_text(ODD_ONE_OUT)
    (tmp_path / "here.csv").write_text("a,y\n" + "1,2\n3,4\n" * 10)
    _, _, err = torchrun("odd.py", cwd=tmp_path)
    assert err.count("rmsprop: ") == err.count("rmsprop: rank 1: gone.csv: no such file") == 1
    assert exit_codes(err)[0] == 2
    assert not (tmp_path / "runs").exists()
