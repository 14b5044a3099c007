import numpy as np
import pytest

from rmsprop import RMSprop
from rmsprop.checkpoint import from_tf1, of, to_tf1
from tests.checkpoint.problem import start
from tests.checkpoint.test_recorded import FOLDER, TF1


def recording(name):
    with np.load(FOLDER / f"{name}.slots.npz") as file:
        return dict(file)


@pytest.mark.parametrize("name", ["tf1", "tf1_centered"])
def test_a_round_trip_has_the_same_bits_and_names(name):
    there = recording(name)
    back = to_tf1(from_tf1(there, **TF1))
    assert back.keys() == there.keys() - {"w", "b"}
    for key, x in back.items():
        assert x.dtype == there[key].dtype
        np.testing.assert_array_equal(x, there[key])


def test_names_with_scopes_and_other_optimizers():
    slots = {"net/w/train/RMS": np.ones(2, "f4"), "net/w/train/RMS_1": np.zeros(2, "f4"), "net/w": np.ones(2, "f4")}
    found = from_tf1(slots, name="train/RMS", learning_rate=0.1, decay=0.9, epsilon=1e-10)
    assert found.names == ("net/w",)
    assert found.notes == ("there is no global_step: step is 0",)
    assert to_tf1(found, name="train/RMS").keys() == {"net/w/train/RMS", "net/w/train/RMS_1", "global_step"}
    assert from_tf1(slots, name="train/RMS", learning_rate=0.1, step=7).step == 7


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "momentum is not in the checkpoint, which has momentum slots"),
        ({"momentum": 0.9}, "learning_rate is not in the state: give learning_rate=..."),
        ({**TF1, "centered": True}, "centered=True: there are 2 slots for each variable"),
        ({**TF1, "rho": 0.9}, "rho=0.9: TensorFlow 1's RMSPropOptimizer has no such option"),
        ({**TF1, "name": "Adam"}, "Adam: expected 2 slots of this name for each variable"),
    ],
)
def test_what_is_missing_is_named(options, message):
    with pytest.raises(ValueError, match=message):
        from_tf1(recording("tf1"), **options)


def test_a_variable_that_lacks_a_slot():
    slots = recording("tf1")
    del slots["w/RMSProp_1"]
    with pytest.raises(ValueError, match="expected 2 slots"):
        from_tf1(slots, **TF1)


def test_one_count_for_all():
    ours = RMSprop(start(), lr=0.1)
    ours.step(start())
    ours.step({"w": start()["w"], "b": None})
    with pytest.warns(UserWarning, match=r"parameters are at steps 1 to 2: TensorFlow 1's .* counts 2 for all"):
        assert to_tf1(of(ours))["global_step"] == 2


def test_without_momentum_the_slot_is_there_and_0():
    ours = RMSprop(start(), lr=0.1)
    ours.step(start())
    np.testing.assert_array_equal(to_tf1(of(ours))["w/RMSProp_1"], np.zeros((3, 4)))
    with pytest.raises(ValueError, match="cannot have epsilon_mode='outside'"):
        to_tf1(of(RMSprop(start(), epsilon_mode="outside")))
