"""Checkpoints between the live libraries, both ways: five steps in one, five in the other, are ten of the rule."""

import os

import numpy as np
import pytest
import torch

from rmsprop import RMSprop
from rmsprop.checkpoint import arguments, from_bitsandbytes, from_keras, of, restore, to_keras, to_torch
from rmsprop.checkpoint.keras import keras_bytes
from tests.checkpoint.problem import BIG, HALF, LR, SHAPES, go_on, gradient, start
from tests.checkpoint.test_torch import close, steps, tensors

os.environ.setdefault("KERAS_BACKEND", "torch")
os.environ.setdefault("KERAS_TORCH_DEVICE", "cpu")

# Keras 3.15's own way of making arrays of its variables, seen by NumPy 2.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")


def class_of(library):
    if library == "timm":
        return pytest.importorskip("timm.optim").RMSpropTF
    return pytest.importorskip("stable_baselines3.common.sb2_compat.rmsprop_tf_like").RMSpropTFLike


CASES = [
    ("timm", {}, {"dialect": "timm"}),
    (
        "timm",
        {"momentum": 0.9, "weight_decay": 0.1, "decoupled_decay": True, "eps": 1e-3},
        {"dialect": "timm", "momentum": 0.9, "weight_decay": 0.1, "decay_mode": "decoupled", "epsilon": 1e-3},
    ),
    (
        "timm",
        {"momentum": 0.9, "lr_in_momentum": False, "centered": True, "alpha": 0.99, "eps": 1e-3},
        {
            "dialect": "timm",
            "momentum": 0.9,
            "momentum_form": "lr_outside",
            "centered": True,
            "beta": 0.99,
            "epsilon": 1e-3,
        },
    ),
    ("sb3", {"momentum": 0.5, "eps": 1e-5}, {"dialect": "sb3", "momentum": 0.5, "epsilon": 1e-5}),
    ("sb3", {"centered": True, "eps": 1e-3}, {"dialect": "sb3", "centered": True, "epsilon": 1e-3}),
]


@pytest.mark.parametrize(("library", "theirs", "options"), CASES, ids=str)
def test_timm_and_stable_baselines3(library, theirs, options):
    params = tensors(start())
    optimizer = class_of(library)(list(params.values()), lr=LR, **theirs)
    at = {name: p.copy() for name, p in steps(optimizer, params, range(HALF)).items()}
    checkpoint = of(optimizer, names=list(SHAPES))
    after = steps(optimizer, params, range(HALF, 2 * HALF))
    close(go_on(checkpoint, at), after)
    ours = {name: p.copy() for name, p in start().items()}
    first = RMSprop(ours, lr=LR, **options)
    assert first.rule == checkpoint.rule
    for t in range(HALF):
        first.step(gradient(t))
    moved = tensors(ours)
    second = class_of(library)(list(moved.values()), lr=1.0)
    restore(second, of(first), names=list(SHAPES))
    close(steps(second, moved, range(HALF, 2 * HALF)), after)


def test_bitsandbytes_on_to_torch():
    bitsandbytes = pytest.importorskip("bitsandbytes")
    params = tensors(start())
    optimizer = bitsandbytes.optim.RMSprop32bit(params.values(), lr=LR, weight_decay=0.1)
    at = {name: p.copy() for name, p in steps(optimizer, params, range(HALF)).items()}
    checkpoint = of(optimizer, names=list(SHAPES))
    after = steps(optimizer, params, range(HALF, 2 * HALF))
    moved = tensors(at)
    second = torch.optim.RMSprop(moved.items())
    restore(second, checkpoint)
    close(steps(second, moved, range(HALF, 2 * HALF)), after)
    with pytest.raises(ValueError, match="its state is read, not written"):
        restore(optimizer, checkpoint, names=list(SHAPES))


def test_bitsandbytes_8_bit_is_decoded():
    bitsandbytes = pytest.importorskip("bitsandbytes")
    params = {name: torch.nn.Parameter(torch.from_numpy(p)) for name, p in start(BIG).items()}
    optimizer = bitsandbytes.optim.RMSprop8bit(params.values(), lr=LR, momentum=0.9)
    for t in range(HALF):
        for name, g in gradient(t, BIG).items():
            params[name].grad = torch.from_numpy(g)
        optimizer.step()
    found = from_bitsandbytes(optimizer.state_dict(), names=list(BIG))
    state = optimizer.state[params["w"]]
    decoded = bitsandbytes.functional.dequantize_blockwise(
        state["state1"], absmax=state["absmax1"], code=state["qmap1"], blocksize=256
    )
    np.testing.assert_array_equal(found.state["w"]["square_avg"], decoded.numpy())
    assert found.notes == (
        "momentum=0.9 has no effect in bitsandbytes and is left out",
        "lossy origin: square_avg of w was stored in 8 bits",
    )


def model(keras, options):
    network = keras.Sequential([keras.Input((3,)), keras.layers.Dense(4)])
    network.compile(optimizer=keras.optimizers.RMSprop(LR, **options))
    network.set_weights(list(start().values()))
    network.optimizer.build(network.trainable_variables)
    return network


def keras_steps(keras, network, which):
    for t in which:
        gradients = [keras.ops.convert_to_tensor(g) for g in gradient(t).values()]
        network.optimizer.apply(gradients, network.trainable_variables)
    return dict(zip(SHAPES, network.get_weights(), strict=True))


KERAS = [
    {},
    {"momentum": 0.9, "rho": 0.8, "weight_decay": 0.1},
    {"centered": True, "epsilon": 1e-3},
    {"momentum": 0.5, "centered": True, "epsilon": 1e-3},
]


@pytest.mark.parametrize("options", KERAS, ids=str)
def test_keras_live_and_in_files(options, tmp_path):
    keras = pytest.importorskip("keras")
    first = model(keras, options)
    at = {name: p.copy() for name, p in keras_steps(keras, first, range(HALF)).items()}
    names = [v.path for v in first.trainable_variables]
    live = of(first.optimizer)
    assert live.names == tuple(names)
    first.save(tmp_path / "m.keras")
    first.save_weights(tmp_path / "m.weights.h5")
    told = {"momentum": 0.0, "centered": False, **options}
    for path, given in (("m.keras", {}), ("m.weights.h5", told)):
        found = from_keras(tmp_path / path, names=names, **given)
        assert found.rule == live.rule
        for name, entry in live.state.items():
            for slot, x in entry.items():
                np.testing.assert_array_equal(found.state[name][slot], x)
    after = {name: p.copy() for name, p in keras_steps(keras, first, range(HALF, 2 * HALF)).items()}
    close(go_on(live.renamed(dict(zip(names, SHAPES, strict=True))), at), after)


@pytest.mark.parametrize("how", ["file", "store", "restore"])
@pytest.mark.parametrize("options", KERAS, ids=str)
def test_keras_goes_on_from_ours(options, how, tmp_path):
    keras = pytest.importorskip("keras")
    params = start()
    ours = {{"rho": "beta"}.get(key, key): x for key, x in options.items()}
    optimizer = RMSprop(params, dialect="keras", lr=LR, **ours)
    for t in range(HALF):
        optimizer.step(gradient(t))
    checkpoint = of(optimizer)
    given = arguments(checkpoint.rule, "keras")
    network = model(keras, {key: x for key, x in given.items() if key != "learning_rate"})
    network.set_weights([p.copy() for p in params.values()])  # JAX may share an array's memory
    if how == "file":
        (tmp_path / "o.weights.h5").write_bytes(keras_bytes(checkpoint))
        keras.saving.load_weights(network.optimizer, tmp_path / "o.weights.h5")
    elif how == "store":
        network.optimizer.load_own_variables(to_keras(checkpoint))
    else:
        restore(network.optimizer, checkpoint, names=list(SHAPES))
    assert int(network.optimizer.iterations) == HALF
    for t in range(HALF, 2 * HALF):
        optimizer.step(gradient(t))
    close(keras_steps(keras, network, range(HALF, 2 * HALF)), params)


def test_keras_to_torch_and_back():
    """lr inside the buffer and out, at a constant lr: the same steps."""
    keras = pytest.importorskip("keras")
    first = model(keras, {"momentum": 0.9, "epsilon": 0.0})
    at = {name: p.copy() for name, p in keras_steps(keras, first, range(HALF)).items()}
    checkpoint = of(first.optimizer, names=list(SHAPES))
    moved = tensors(at)
    second = torch.optim.RMSprop(moved.items())
    with pytest.warns(UserWarning, match="momentum_buffer: divided by lr"):
        restore(second, checkpoint)
    close(steps(second, moved, range(HALF, 2 * HALF)), keras_steps(keras, first, range(HALF, 2 * HALF)))
    with pytest.warns(UserWarning, match="momentum_buffer: multiplied by lr"):
        restore(first.optimizer, of(second), names=list(SHAPES))
    moved_on = steps(second, moved, range(2 * HALF, 3 * HALF))
    close(moved_on, keras_steps(keras, first, range(2 * HALF, 3 * HALF)))


def test_keras_with_a_schedule_and_bfloat16(tmp_path):
    keras = pytest.importorskip("keras")
    network = keras.Sequential([keras.Input((3,)), keras.layers.Dense(4, dtype="bfloat16")])
    schedule = keras.optimizers.schedules.ExponentialDecay(LR, 1, 0.9)
    network.compile(optimizer=keras.optimizers.RMSprop(schedule, momentum=0.5))
    network.optimizer.build(network.trainable_variables)
    keras_steps(keras, network, range(HALF))
    network.save(tmp_path / "m.keras")
    live = from_keras(network.optimizer, learning_rate=0.1)
    found = from_keras(tmp_path / "m.keras", learning_rate=0.1, names=live.names)
    for name, entry in live.state.items():
        for slot, x in entry.items():
            np.testing.assert_array_equal(found.state[name][slot], x, strict=slot != "step")
    with pytest.raises(ValueError, match="learning_rate is not in the state: give learning_rate="):
        from_keras(tmp_path / "m.keras")
    before = to_keras(live)
    keras_steps(keras, network, range(HALF, 2 * HALF))
    restore(network.optimizer, found)
    again = to_keras(from_keras(network.optimizer, learning_rate=0.1))
    for key, x in before.items():
        np.testing.assert_array_equal(again[key], x)


def test_an_optimizer_of_keras_that_does_not_fit():
    keras = pytest.importorskip("keras")
    checkpoint = of(RMSprop(start(), dialect="keras", momentum=0.9)).replace(lr=LR)
    with pytest.raises(ValueError, match=r"it has momentum=0.0: expected 0.9, as the checkpoint"):
        restore(model(keras, {}).optimizer, checkpoint, names=list(SHAPES))
    with pytest.raises(ValueError, match=r"not built; expected optimizer.build\(model.trainable_variables\) first"):
        restore(keras.optimizers.RMSprop(), checkpoint)
    with pytest.raises(ValueError, match=r"b: square_avg has shape \(4,\): expected \(3, 4\)"):
        restore(model(keras, {"momentum": 0.9}).optimizer, checkpoint, names=["b", "w"])
    assert to_torch(checkpoint.replace(epsilon=0.0, momentum=0.0))
