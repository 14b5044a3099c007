"""Keras's files without Keras; the live library is in tests/peers/test_checkpoints.py."""

import io
import json
import shutil
import zipfile

import h5py
import numpy as np
import pytest

from rmsprop import RMSprop
from rmsprop.checkpoint import from_keras, of, to_keras
from rmsprop.checkpoint.keras import keras_bytes
from tests.checkpoint.problem import LR, start
from tests.checkpoint.test_recorded import FOLDER


def test_bfloat16_is_read():
    with np.load(FOLDER / "keras_bfloat16.npz") as file:
        expected = file["at.velocity"]
    found = from_keras(FOLDER / "keras_bfloat16.keras").state["0"]
    np.testing.assert_array_equal(found["square_avg"], expected, strict=True)
    assert found["momentum_buffer"].any()


def variables(path):
    with zipfile.ZipFile(path) as archive, h5py.File(io.BytesIO(archive.read("model.weights.h5"))) as file:
        return {key: x[()] for key, x in file["optimizer/vars"].items()}


@pytest.mark.parametrize("name", ["keras", "keras_centered", "keras_plain"])
def test_a_round_trip_has_the_same_bits(name):
    path = FOLDER / f"{name}.keras"
    back, there = to_keras(from_keras(path)), variables(path)
    assert back.keys() == there.keys()
    for key, x in there.items():
        assert back[key].dtype == x.dtype
        np.testing.assert_array_equal(back[key], x)


def test_a_written_file_is_read_again(tmp_path):
    first = from_keras(FOLDER / "keras.keras", names=["kernel", "bias"])
    (tmp_path / "o.weights.h5").write_bytes(keras_bytes(first))
    options = {"rho": 0.8, "epsilon": 1e-4, "momentum": 0.9, "weight_decay": 0.1, "centered": False}
    second = from_keras(tmp_path / "o.weights.h5", names=["kernel", "bias"], **options)
    assert second.rule == first.rule
    with pytest.raises(ValueError, match=r"momentum, centered: 4 arrays .* or not these alone"):
        from_keras(tmp_path / "o.weights.h5")  # could be four parameters, or two with momentum
    for name, entry in first.state.items():
        for slot, x in entry.items():
            np.testing.assert_array_equal(second.state[name][slot], x)


def test_what_keras_cannot_have_is_refused_and_buffers_are_converted():
    ours = RMSprop(start(), lr=LR, momentum=0.9, epsilon_mode="outside")
    with pytest.raises(ValueError, match="Keras 3's RMSprop cannot have epsilon_mode='outside': expected 'inside'"):
        to_keras(of(ours))
    ours = RMSprop(start(), lr=LR, momentum=0.9)
    ours.step(start())
    with pytest.warns(UserWarning, match="momentum_buffer: multiplied by lr=0.01"):
        store = to_keras(of(ours))
    buffer = of(ours).state["w"]["momentum_buffer"]
    np.testing.assert_array_equal(store["4"], (buffer.astype(float) * LR).astype(np.float32))
    with pytest.raises(ValueError, match=r"lr=0.0: the momentum buffer cannot be converted"):
        to_keras(of(ours).replace(lr=0.0))


def edited(path, folder, change):
    """A copy of a .keras file with its config changed."""
    target = folder / "edited.keras"
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(target, "w") as new:
        for name in old.namelist():
            content = old.read(name)
            if name == "config.json":
                config = json.loads(content)
                change(config)
                content = json.dumps(config)
            new.writestr(name, content)
    return target


def optimizer(config):
    return config["compile_config"]["optimizer"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: optimizer(c).update(class_name="Adam"), "its optimizer is Adam: expected RMSprop"),
        (lambda c: c.update(compile_config=None), "saved without its optimizer"),
        (lambda c: optimizer(c)["config"].update(gradient_accumulation_steps=4), "gradient_accumulation_steps=4"),
        (lambda c: optimizer(c)["config"].update(momentum=0.0), "4 arrays after the counters do not fit 1"),
        (
            lambda c: optimizer(c)["config"].update(learning_rate={"class_name": "X"}),
            "1 arrays|learning_rate is not|fit",
        ),
        (lambda c: optimizer(c)["config"].update(rho=1.5), "beta=1.5"),
    ],
)
def test_other_configurations_are_refused(change, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        from_keras(edited(FOLDER / "keras.keras", tmp_path, change))


def test_options_beside_the_rule_are_noted(tmp_path):
    path = edited(FOLDER / "keras.keras", tmp_path, lambda c: optimizer(c)["config"].update(clipnorm=1.0))
    assert from_keras(path).notes == ("clipnorm=1.0 of Keras 3's RMSprop is no part of the rule and is not carried",)


def test_files_without_an_optimizer(tmp_path):
    path = tmp_path / "model.weights.h5"
    shutil.copy(FOLDER / "keras.weights.h5", path)
    with h5py.File(path, "a") as file:
        del file["optimizer"]
    with pytest.raises(ValueError, match="no optimizer variables: was the model saved before its first training step"):
        from_keras(path)
    with h5py.File(path, "a") as file:
        file["optimizer/vars/0"] = np.float32(1)
    with pytest.raises(ValueError, match="expected an iteration count"):
        from_keras(path)


def test_weights_alone_leave_no_doubt_about_the_arrays():
    path = FOLDER / "keras.weights.h5"
    with pytest.raises(ValueError, match="4 arrays after the counters do not fit 1 for each parameter"):
        from_keras(path)
    with pytest.raises(ValueError, match="4 arrays after the counters do not fit 3"):
        from_keras(path, momentum=0.9, centered=True)
    with pytest.raises(ValueError, match=r"names=..."):
        from_keras(path, momentum=0.9, names=["kernel"])
    assert from_keras(path, momentum=0.9).rule.momentum == 0.9
    loose = from_keras(path, strict=False)
    assert "the first are taken as the mean squares" in loose.notes[-1]
    np.testing.assert_array_equal(
        loose.state["0"]["square_avg"], from_keras(path, momentum=0.9).state["0"]["square_avg"]
    )
