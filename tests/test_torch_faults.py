"""Where `rmsprop.torch.RMSprop` must refuse a step, and then leaves everything as it was."""

import copy

import pytest
import torch
from numpy.testing import assert_array_equal

from tests.conftest import parameter

INF, NAN = float("inf"), float("nan")


def wrong_shape(optimizer, p):
    p.data = torch.zeros(4)


def double(optimizer, p):
    p.data, p.grad = p.data.double(), None
    p.grad = torch.ones(3, dtype=torch.float64)


def state_of_another_shape(optimizer, p):
    optimizer.state[p]["square_avg"] = torch.zeros(4)


def state_on_another_device(optimizer, p):
    optimizer.state[p]["square_avg"] = torch.zeros(3, device="meta")


def option(name, value):
    return lambda optimizer, p: optimizer.param_groups[1].update({name: value})


def spoilt(optimizer, p):
    p.grad[1] = 2e19
    optimizer.param_groups[1]["nonfinite"] = "error"


BREAKS = {
    "wrong shape": (wrong_shape, ValueError, "shape"),
    "double after float": (double, ValueError, "float32|dtype"),
    "state of another shape": (state_of_another_shape, ValueError, "shape"),
    "state on another device": (state_on_another_device, ValueError, "square_avg"),
    "negative lr": (option("lr", -1), ValueError, "learning rate"),
    "lr of two elements": (option("lr", torch.ones(2)), ValueError, "element"),
    "bad alpha": (option("alpha", 2.0), ValueError, "alpha"),
    "not finite": (spoilt, FloatingPointError, "finite"),
}


def snapshot(optimizer):
    groups = optimizer.param_groups
    params = [p for group in groups for p in group["params"]]
    values = [(p.detach().clone(), p._version, copy.deepcopy(dict(optimizer.state.get(p, {})))) for p in params]
    return values, optimizer.skipped


def assert_same(x, y):
    for (p, version, state), (q, version2, state2) in zip(x[0], y[0], strict=True):
        assert_array_equal(p, q)
        assert version == version2
        assert state.keys() == state2.keys()
        for key in state:
            if not state[key].is_meta:
                assert_array_equal(state[key], state2[key])
    assert x[1] == y[1]


@pytest.mark.parametrize("steps", [0, 2])
@pytest.mark.parametrize("name", BREAKS)
def test_failed_step_changes_nothing(make, name, steps):
    spoil, error, message = BREAKS[name]
    a, b, c, d = (parameter() for _ in "abcd")
    z = parameter((1 + 1j, 2.0, 3j), (1.0, 1j, 2.0), torch.complex64)
    optimizer = make([{"params": [a, z], "nonfinite": "skip"}, {"params": [b, c]}, {"params": [d]}])
    for _ in range(steps):
        optimizer.step()
    if "state" in name or (name.startswith("double") and not steps):
        optimizer.step()
    a.grad[0] = INF  # would be counted in `skipped`
    spoil(optimizer, c)
    before = snapshot(optimizer)
    with pytest.raises(error, match=message):
        optimizer.step()
    assert_same(snapshot(optimizer), before)


def test_named_parameter_is_named(make):
    p = parameter()
    optimizer = make([("layer.weight", p)])
    p.data = torch.zeros(4)
    with pytest.raises(ValueError, match=r"layer\.weight"):
        optimizer.step()


def test_named_in_a_step_of_mixed_kinds(make):
    """Complex parameters and those without gradients must not shift what an error names."""
    a, b, z = parameter(), parameter(grad=(1.0, INF, 1.0)), parameter(dtype=torch.complex64)
    a.grad = None
    optimizer = make([("first", a), ("second", b), ("third", z)], nonfinite="error")
    with pytest.raises(FloatingPointError, match="second"):
        optimizer.step()


def test_parameters_that_change_groups_keep_the_step_whole(make):
    x, a, b = (parameter() for _ in "xab")
    optimizer = make([{"params": [x]}, {"params": [a], "centered": True}, {"params": [b]}])
    optimizer.step()
    groups = optimizer.param_groups
    groups[1]["params"], groups[2]["params"] = [b], [a]
    before = snapshot(optimizer)
    with pytest.raises(ValueError, match="incomplete"):
        optimizer.step()
    assert_same(snapshot(optimizer), before)
