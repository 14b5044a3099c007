"""Checkpoints that the real libraries wrote (tests/fixtures/record.py): ours go on as they did."""

from pathlib import Path

import numpy as np
import pytest
import torch

from rmsprop.checkpoint import from_bitsandbytes, read
from tests.checkpoint.problem import SHAPES, go_on

FOLDER = Path(__file__).parent.parent / "fixtures"
TF1 = {"learning_rate": 0.01, "momentum": 0.9, "epsilon": 1e-3}
WEIGHTS = {"rho": 0.8, "epsilon": 1e-4, "momentum": 0.9, "weight_decay": 0.1, "centered": False}
#: file, what it does not tell, and what its notes must mention
CASES = [
    ("torch.pt", {}, []),
    ("torch_centered.pt", {}, []),
    ("adam.pt", {}, []),
    ("timm.pt", {}, []),
    ("sb3.pt", {"library": "sb3"}, []),
    ("bitsandbytes.pt", {}, []),
    ("keras.keras", {}, []),
    ("keras_centered.keras", {}, []),
    ("keras_plain.keras", {}, []),
    ("keras.weights.h5", WEIGHTS, []),
    ("keras_plain.weights.h5", {}, ["rho", "epsilon", "weight_decay"]),
    ("keras_centered.weights.h5", {"centered": True, "momentum": 0}, ["rho", "epsilon", "weight_decay"]),
    ("tf1.slots.npz", TF1, ["decay"]),
    ("tf1_centered.slots.npz", TF1, ["decay"]),
    (
        "optax.state.npz",
        {"learning_rate": 0.01, "momentum": 0.9, "eps_in_sqrt": False, "nesterov": True},
        ["decay", "eps"],
    ),
]


def recorded(file, at):
    with np.load(FOLDER / f"{file.split('.')[0]}.npz") as arrays:
        return {name: arrays[f"{at}.{name}"] for name in SHAPES}


def named(checkpoint):
    """With the problem's names, where the file has positions."""
    return checkpoint.renamed(dict(zip("01", SHAPES, strict=True))) if checkpoint.names[0] == "0" else checkpoint


@pytest.mark.parametrize(("file", "options", "mentioned"), CASES, ids=lambda x: x if isinstance(x, str) else "")
def test_goes_on_as_the_library_did(file, options, mentioned):
    checkpoint = named(read(FOLDER / file, **options).checkpoint)
    assert [note.split()[0] for note in checkpoint.notes if not note.startswith("taken from")] == mentioned
    assert {entry["step"] for entry in checkpoint.state.values()} == {5}
    after = recorded(file, "after")
    for name, p in go_on(checkpoint, recorded(file, "at")).items():
        np.testing.assert_allclose(p, after[name], rtol=0, atol=1.2e-7)  # an ulp of the largest


def test_eight_bits_are_decoded_as_bitsandbytes_does():
    checkpoint = read(FOLDER / "bitsandbytes_8bit.pt").checkpoint
    with np.load(FOLDER / "bitsandbytes_8bit.npz") as arrays:
        np.testing.assert_array_equal(checkpoint.state["0"]["square_avg"], arrays["decoded"])
    assert "lossy origin: square_avg of 0 was stored in 8 bits" in checkpoint.notes


def test_bitsandbytes_momentum_is_left_out_and_named():
    state = torch.load(FOLDER / "bitsandbytes.pt")["optimizer"]
    state["param_groups"][0]["betas"] = (0.9, 0.5)
    found = from_bitsandbytes(state)
    assert found.rule.momentum == 0
    assert found.notes == ("momentum=0.5 has no effect in bitsandbytes and is left out",)


@pytest.mark.parametrize("file", ["keras.weights.h5", "keras_centered.weights.h5", "optax.state.npz", "tf1.slots.npz"])
def test_what_a_file_does_not_tell_must_be_given(file):
    with pytest.raises(ValueError, match=r"(momentum|learning_rate).* give"):
        read(FOLDER / file)
