import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch

import rmsprop
from rmsprop.checkpoint import of
from rmsprop.checkpoint.native import native_bytes
from rmsprop.cli.__main__ import main
from rmsprop.kernels import cpu
from tests.checkpoint.test_recorded import FOLDER


def seen(capsys, *arguments):
    assert main(["inspect", *map(str, arguments)]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    return out


def lines(out, start):
    return [line.removeprefix(start).strip() for line in out.splitlines() if line.startswith(start)]


def test_whose_it_is_why_and_how_its_state_looks(capsys):
    out = seen(capsys, FOLDER / "timm.pt")
    assert lines(out, "of ") == ["timm's RMSpropTF"]
    assert lines(out, "dialect ") == ["timm"]
    assert "lr_in_momentum is an option of timm's RMSpropTF" in lines(out, "because ")
    (rule,) = lines(out, "rule ")
    for part in ("lr 0.01", "epsilon 0.001 inside the root", "starts at 1", "momentum 0.9, lr inside the buffer"):
        assert part in rule
    assert cpu.NAME in lines(out, "kernel ")[0]
    table = out[out.index("\nparameter ") :].strip().splitlines()
    assert len({len(line.rstrip()) for line in table}) == 1  # aligned
    assert table[1].split()[:4] == ["0", "3x4", "float32", "5"]


def test_json_has_the_same(capsys):
    found = json.loads(seen(capsys, FOLDER / "keras.keras", "--json"))
    assert (found["library"], found["kernel"]) == ("Keras 3's RMSprop", cpu.NAME)
    (group,) = found["groups"]
    assert (group["dialects"], group["rule"]["beta"], group["parameters"]) == (["keras"], 0.8, 2)
    first = found["parameters"][0]
    assert (first["shape"], first["step"], first["dead"], len(first["v"])) == ([3, 4], 5, 0, 3)


@pytest.mark.parametrize("name", ["torch.pt", "sb3.pt", "adam.pt", "bitsandbytes_8bit.pt", "keras.weights.h5"])
@pytest.mark.parametrize("json_", [[], ["--json"]])
def test_every_kind_can_be_looked_at_without_options(name, json_, capsys):
    assert "5" in seen(capsys, FOLDER / name, *json_)


@pytest.mark.parametrize("name", ["tf1.slots.npz", "optax.state.npz"])
def test_what_a_file_does_not_tell_is_said(name, capsys):
    out = seen(capsys, FOLDER / name)
    assert any(note.startswith("learning_rate is not in the state") for note in lines(out, "note "))
    out = seen(capsys, FOLDER / name, "--set", "lr=0.5", "--set", "momentum=0.9")
    assert "lr 0.5" in lines(out, "rule ")[0]
    assert "momentum 0.9" in lines(out, "rule ")[0]


def test_stable_baselines_is_guessed_from_the_size_of_v(capsys):
    reasons = lines(seen(capsys, FOLDER / "sb3.pt"), "because ")
    assert any("by the size of v taken as sb3" in reason for reason in reasons)
    assert lines(seen(capsys, FOLDER / "sb3.pt", "--dialect", "torch"), "dialect ")[0].startswith("torch")


def test_damage_is_described(tmp_path, capsys):
    params = {"w": np.ones(4), "b": np.ones(2)}
    optimizer = rmsprop.RMSprop(params)
    optimizer.step(params)
    checkpoint = of(optimizer)
    checkpoint.state["w"]["square_avg"][:2] = [np.nan, -1.0]
    (tmp_path / "x.safetensors").write_bytes(native_bytes(checkpoint))
    out = seen(capsys, tmp_path / "x.safetensors")
    faults = ["w: square_avg has 1 numbers that are not finite", "w: square_avg has 1 negative numbers, the least -1.0"]
    assert lines(out, "fault ") == faults
    (row,) = lines(out, "w ")
    assert row.split()[:3] == ["4", "float64", "1"]
    assert row.split()[-4] == "2"
    json.loads(seen(capsys, tmp_path / "x.safetensors", "--json"), parse_constant=pytest.fail)
    content = bytearray((FOLDER / "native_v1.safetensors").read_bytes())
    content[-1] ^= 1
    (tmp_path / "x.safetensors").write_bytes(content)
    out = seen(capsys, tmp_path / "x.safetensors")
    assert any("damaged: tensor w.variance does not match its checksum" in note for note in lines(out, "note "))


def test_an_infinite_step_size_is_null_in_json(tmp_path, capsys):
    optimizer = rmsprop.RMSprop({"w": np.ones(4)}, epsilon=0.0)
    optimizer.step({"w": np.zeros(4)})
    (tmp_path / "x.safetensors").write_bytes(native_bytes(of(optimizer)))
    (row,) = json.loads(seen(capsys, tmp_path / "x.safetensors", "--json"))["parameters"]
    assert (row["dead"], row["step_size"]) == (4, [None, None, None])
    assert lines(seen(capsys, tmp_path / "x.safetensors"), "w ")[0].endswith("inf  inf")


def test_a_diverged_torch_checkpoint(tmp_path, capsys):
    p = torch.nn.Parameter(torch.ones(3))
    optimizer = torch.optim.RMSprop([p], momentum=0.9)
    p.grad = torch.tensor([1.0, float("inf"), 1.0])
    optimizer.step()
    torch.save(optimizer.state_dict(), tmp_path / "x.pt")
    out = seen(capsys, tmp_path / "x.pt")
    assert lines(out, "fault ")[0] == "0: square_avg has 1 numbers that are not finite"


def test_a_run_folder(tmp_path, capsys):
    x = np.linspace(-1, 1, 50)
    rmsprop.fit({"x": x}, x**2, epochs=2, hidden=(4,), out=tmp_path / "run")
    out = seen(capsys, tmp_path / "run")
    assert "checkpoint of rmsprop train" in lines(out, "file ")[0]
    assert lines(out, "0.weight ")[0].startswith("4x")


def test_nothing_is_cut_in_a_pipe(tmp_path):
    name = "a.very.long.name." * 10
    optimizer = rmsprop.RMSprop({name: np.ones(4)})
    optimizer.step({name: np.ones(4)})
    (tmp_path / "x.safetensors").write_bytes(native_bytes(of(optimizer)))
    command = [sys.executable, "-m", "rmsprop", "inspect", "x.safetensors"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True, env={"COLUMNS": "40"})
    assert f"{name}  4" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["none.pt"], "none.pt: No such file or directory"),
        (["text.txt"], "text.txt: not a checkpoint that is known here"),
        (["."], "checkpoint.safetensors: No such file"),
        (["adam.pt", "--dialect", "keras"], "dialect 'keras': this is a file of adam"),
        (["torch.pt", "--set", "lr"], "--set lr: expected NAME=VALUE"),
        (["torch.pt", "--set", "rho=0.9"], "rho=0.9: torch.optim.RMSprop has no such option"),
        (["torch.pt", "--set", "alpha=2"], "beta=2: expected a number in [0, 1)"),
    ],
)
def test_bad_input_is_one_line(arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.txt").write_text("This is no checkpoint.")
    for name in ("adam.pt", "torch.pt"):
        shutil.copy(FOLDER / name, tmp_path)
    assert main(["inspect", *arguments]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert message in err
