"""The native format: what it holds, what it refuses, and what a kill leaves."""

import json
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load as unpack
from safetensors.numpy import save as pack

import rmsprop.torch
from rmsprop import RMSprop
from rmsprop.checkpoint import Checkpoint, Group, load, of, restore, save
from rmsprop.checkpoint.native import native_bytes, read_safetensors
from tests.checkpoint.problem import HALF, LR, gradient, start
from tests.checkpoint.test_recorded import FOLDER


def recipe(name):
    """What is in the fixture of this name: files of format 1 must load for ever."""
    params = start()
    if name == "native_v1":
        optimizer = RMSprop(params, lr=LR, momentum=0.9, centered=True, clip=2.0)
        for t in range(HALF):
            optimizer.step(gradient(t))
        return of(optimizer)
    tensors = {key: torch.nn.Parameter(torch.from_numpy(p)) for key, p in params.items()}
    groups = [{"params": [("w", tensors["w"])], "lr": 0.1}, {"params": [("b", tensors["b"])], "momentum": 0.5}]
    optimizer = rmsprop.torch.RMSprop(groups, dialect="tf1")
    for t in range(HALF):
        tensors["w"].grad = torch.from_numpy(gradient(t)["w"])  # b never has a gradient
        optimizer.step()
    return replace(of(optimizer), notes=("a note",))


@pytest.mark.parametrize("name", ["native_v1", "native_v1_groups"])
def test_files_of_version_1_load_for_ever(name):
    found, expected = load(FOLDER / f"{name}.safetensors"), recipe(name)
    assert (found.groups, found.notes, found.state.keys()) == (expected.groups, expected.notes, expected.state.keys())
    for key, entry in expected.state.items():
        assert found.state[key].keys() == entry.keys()
        for slot, x in entry.items():
            np.testing.assert_allclose(found.state[key][slot], x, rtol=1e-6)


@pytest.mark.parametrize("dtype", ["f4", "f8", "c8", "c16", "f2"])
def test_every_dtype_comes_back_bit_for_bit(dtype, tmp_path):
    x = np.array([[1.5, 2.0], [0.1, 0.0]]).astype(dtype)
    state = {"a.b c/é": {"step": 3, "square_avg": x, "momentum_buffer": -x}, "s": {"step": 0, "square_avg": x[0, 0]}}
    state["s"]["square_avg"] = np.array(x[0, 0])
    rules = (rmsprop.Rule(momentum=0.5), rmsprop.Rule(lr=1 / 3))
    checkpoint = Checkpoint((Group(rules[0], ("a.b c/é",)), Group(rules[1], ("s", "fresh"))), state)
    save(tmp_path / "x.safetensors", checkpoint)
    found = load(tmp_path / "x.safetensors")
    assert found.groups == checkpoint.groups
    for name, entry in state.items():
        for slot, value in entry.items():
            np.testing.assert_array_equal(found.state[name][slot], value, strict=slot != "step")


def test_a_resumed_run_has_the_same_bits(tmp_path):
    for centered in (False, True):
        p = torch.nn.Parameter(torch.tensor([1.0, -2.0, 3.0]).bfloat16())
        q = torch.nn.Parameter(p.detach().clone())
        options = {"lr": LR, "momentum": 0.9, "centered": centered, "stochastic_rounding": True, "seed": 3}
        first = rmsprop.torch.RMSprop([("p", p)], **options)
        for t in range(2 * HALF):
            if t == HALF:
                save(tmp_path / "x.safetensors", first)
                second = rmsprop.torch.RMSprop([("p", q)], stochastic_rounding=True, seed=3)
                restore(second, load(tmp_path / "x.safetensors"))
                q.data.copy_(p.data)
            p.grad = q.grad = torch.full_like(p, 0.1 * t)
            first.step()
            if t >= HALF:
                second.step()
        assert torch.equal(p, q)
        for key, x in first.state[p].items():
            assert torch.equal(second.state[q][key], x), key


@pytest.fixture
def path(tmp_path):
    shutil.copy(FOLDER / "native_v1.safetensors", tmp_path / "x.safetensors")
    return tmp_path / "x.safetensors"


def test_no_byte_changes_unnoticed(path):
    content = path.read_bytes()
    for position in range(len(content)):
        changed = bytearray(content)
        changed[position] ^= 1 << position % 8
        path.write_bytes(changed)
        with pytest.raises(ValueError, match=r"x\.safetensors: "):
            load(path)


def test_a_torn_file_is_refused(path):
    content = path.read_bytes()
    for length in (0, 5, 8, 100, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:length])
        with pytest.raises(ValueError, match=r"x.safetensors: damaged, or of another kind"):
            load(path)


def repacked(path, change):
    """The file with other tensors under the old metadata."""
    _, metadata = read_safetensors(path)
    tensors = unpack(path.read_bytes())
    change(tensors)
    path.write_bytes(pack(tensors, metadata))


def swap(tensors):
    tensors["w.variance"], tensors["w.grad_avg"] = tensors["w.grad_avg"], tensors["w.variance"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (swap, r"tensor w.grad_avg does not match its checksum \(and 1 more\)"),
        (lambda t: t.update({"w.variance": t["w.variance"].reshape(4, 3)}), "tensor w.variance does not match"),
        (lambda t: t.update({"w.variance": t["w.variance"].view("i4")}), "tensor w.variance does not match"),
        (lambda t: t.pop("b.grad_avg"), "tensor b.grad_avg is missing"),
        (lambda t: t.update({"c.variance": t["b.variance"]}), "tensor c.variance does not match"),
    ],
)
def test_exchanged_tensors_are_named(path, change, message):
    repacked(path, change)
    with pytest.raises(ValueError, match=f"x.safetensors: damaged: {message}"):
        load(path)
    assert "damaged" in " ".join(load(path, strict=False).notes)


@pytest.mark.parametrize(
    ("value", "message"),
    [(-1.0, "w: variance has 12 negative numbers"), (np.inf, "w: variance has 12 numbers that are not finite")],
)
def test_state_that_cannot_be_true_is_neither_written_nor_read(path, value, message):
    checkpoint = load(path)
    checkpoint.state["w"]["variance"][...] = value
    before = path.read_bytes()
    with pytest.raises(ValueError, match=message):
        save(path, checkpoint)
    assert path.read_bytes() == before
    path.write_bytes(native_bytes(checkpoint))  # as a broken program might, with the right checksums
    with pytest.raises(ValueError, match=f"x.safetensors: {message}"):
        load(path)
    assert load(path, strict=False).state["w"]["step"] == HALF


def test_other_files_and_versions_are_refused(path):
    path.write_bytes(pack({"x": np.ones(2)}))
    with pytest.raises(ValueError, match=r"not written by rmsprop.checkpoint.save"):
        load(path)
    facts = json.dumps({"kind": "rmsprop.checkpoint", "format": 2})
    path.write_bytes(pack({"x": np.ones(2)}, {"rmsprop": facts, "sha256": ""}))
    with pytest.raises(ValueError, match="format=2: expected 1; another version of rmsprop wrote it"):
        load(path)


LOOP = """
import sys, numpy as np
from rmsprop.checkpoint import of, save
from rmsprop import RMSprop
w = np.ones(200_000)
optimizer = RMSprop({"w": w})
print("ready", flush=True)
while True:
    optimizer.step({"w": w})
    save(sys.argv[1], optimizer)
"""


def test_a_kill_at_any_moment_leaves_a_whole_file(tmp_path):
    path = tmp_path / "x.safetensors"
    last = 0
    for delay in (0.05, 0.11, 0.23, 0.31):
        process = subprocess.Popen([sys.executable, "-c", LOOP, str(path)], stdout=subprocess.PIPE)
        assert process.stdout.readline() == b"ready\n"
        while not path.exists():
            time.sleep(0.01)
        time.sleep(delay)
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
        checkpoint = load(path)
        assert checkpoint.step >= 1
        last = max(last, checkpoint.step)
    assert last > 1  # it did save again and again
    assert {p.name for p in tmp_path.iterdir()} <= {"x.safetensors", ".x.safetensors.tmp"}


def test_the_folder_must_exist_and_nothing_is_left_behind(tmp_path):
    with pytest.raises(OSError, match="No such file"):
        save(tmp_path / "no" / "x.safetensors", RMSprop({"w": np.ones(2)}))
    with pytest.raises(ValueError, match="optimizer=list"):
        save(tmp_path / "x.safetensors", [])
    assert list(tmp_path.iterdir()) == []


def test_numpy_alone_suffices():
    script = """
import sys, numpy as np, rmsprop
from rmsprop import checkpoint
optimizer = rmsprop.RMSprop({"w": np.ones(2)})
checkpoint.restore(optimizer, checkpoint.of(optimizer))
print(*sorted({n.split('.')[0] for n in sys.modules} & {"torch", "jax", "h5py", "safetensors", "keras", "optax"}))
"""
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == ""


def test_the_fixtures_are_there():
    assert {p.name for p in Path(FOLDER).glob("native_v1*")} == {
        "native_v1.safetensors",
        "native_v1_groups.safetensors",
    }
