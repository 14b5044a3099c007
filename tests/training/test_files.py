import json

import numpy as np
import pytest
import torch

from rmsprop.training.files import DamagedError, json_bytes, read_json, read_tensors, write, write_tensors

TENSORS = {
    "w": torch.arange(6.0).reshape(2, 3),
    "step": torch.tensor(3.0),
    "half": torch.ones(3, dtype=torch.bfloat16),
    "empty": torch.zeros(0, 2),
}
FACTS = {"history": [{"loss": 0.1 + 0.2}], "name": "Größe"}


def test_tensors_and_facts_come_back_exactly(tmp_path):
    write_tensors(tmp_path / "x.safetensors", TENSORS, FACTS)
    tensors, facts = read_tensors(tmp_path / "x.safetensors")
    assert facts == FACTS
    assert tensors.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        assert tensors[name].dtype == tensor.dtype
        np.testing.assert_array_equal(tensors[name].float(), tensor.float())


def test_every_flipped_bit_and_every_cut_is_noticed(tmp_path):
    path = tmp_path / "x.safetensors"
    write_tensors(path, TENSORS, FACTS)
    whole = path.read_bytes()
    rng = np.random.default_rng(0)
    places = {*range(16), *range(len(whole) - 60, len(whole)), *rng.integers(0, len(whole), 300).tolist()}
    damaged = [whole[:i] + bytes([whole[i] ^ (1 << rng.integers(8))]) + whole[i + 1 :] for i in sorted(places)]
    damaged += [whole[:cut] for cut in (0, 7, 8, 100, len(whole) - 1)] + [whole + b"\0"]
    for content in damaged:
        path.write_bytes(content)
        with pytest.raises(DamagedError, match=r"x\.safetensors: damaged"):
            read_tensors(path)


def test_a_file_of_others_is_refused(tmp_path):
    from safetensors.torch import save_file

    save_file({"w": torch.ones(2)}, tmp_path / "other.safetensors")
    with pytest.raises(DamagedError, match="not written by rmsprop"):
        read_tensors(tmp_path / "other.safetensors")


def test_json_comes_back_and_an_edit_is_noticed(tmp_path):
    path = tmp_path / "config.json"
    write(path, json_bytes({"lr": 0.001, "name": "Größe", "none": None}))
    values = read_json(path)
    assert (values["lr"], values["name"], values["none"]) == (0.001, "Größe", None)
    path.write_text(path.read_text(encoding="utf-8").replace("0.001", "0.002"), encoding="utf-8")
    with pytest.raises(DamagedError, match="damaged or edited"):
        read_json(path)
    for content in ("", "{", "[]", '{"lr": 1}', json.dumps("x")):
        path.write_text(content)
        with pytest.raises(DamagedError, match=r"config\.json"):
            read_json(path)


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "file"
    write(path, b"old")

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space"):
        write(path, b"new")
    assert [(p.name, p.read_bytes()) for p in tmp_path.iterdir()] == [("file", b"old")]
