"""What the NumPy front end refuses, by which words, and that it changes nothing when it does."""

import copy
import math

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from rmsprop import Rule
from rmsprop.numpy import RMSprop
from tests.test_numpy import assert_refuses, engine, normal  # noqa: F401


class Alike:
    def __repr__(self):
        return "alike"


A = normal(6, 6)
LOCKED = normal(3)
LOCKED.flags.writeable = False
WINDOWS = np.lib.stride_tricks.sliding_window_view(A[0], 3, writeable=True)
BAD_PARAMS = {
    "an array": (A, TypeError, "params: expected a list or dict of arrays, got ndarray; put it in a list"),
    "a number": (1.0, TypeError, "params: expected a list or dict of arrays, got float"),
    "None": (None, TypeError, "params: expected a list or dict of arrays, got NoneType"),
    "a list": ([A, [1.0]], ValueError, r"params\[1\]: expected a NumPy array, got list"),
    "a scalar": ({"w": np.float64(1)}, ValueError, r"params\['w'\]: expected a NumPy array, got float64"),
    "masked": ([np.ma.masked_array([1.0])], ValueError, r"params\[0\]: expected a NumPy array, got MaskedArray"),
    "read-only": ({"w": A[0], "b": LOCKED}, ValueError, r"params\['b'\] is read-only"),
    "broadcast": ([np.broadcast_to(A[0], (2, 6))], ValueError, r"params\[0\] is read-only"),
    "windows": ([LOCKED.copy(), WINDOWS], ValueError, r"params\[1\]: several of its elements share memory \(strides"),
    "stride 0": ([np.ndarray((2, 2), buffer=A, strides=(0, 8))], ValueError, r"params\[0\]: several of its elements"),
    "twice": ([A, LOCKED.copy(), A], ValueError, r"params\[2\] overlaps params\[0\]"),
    "twice, in a dict": ({"w": A, "tied": A}, ValueError, r"params\['tied'\] overlaps params\['w'\]"),
    "transposed": ([A, A.T], ValueError, r"params\[1\] overlaps params\[0\]"),
    "one element": ([A[5:, 5:], A], ValueError, r"params\[1\] overlaps params\[0\]"),
    "shifted": ([A[0, 1:], A[0, :-1]], ValueError, r"params\[1\] overlaps params\[0\]"),
    "other dtype": ([A, A.view("f4")], ValueError, r"params\[1\] overlaps params\[0\]"),
    "keys": ({Alike(): A, Alike(): LOCKED.copy()}, ValueError, r"params: some keys look the same: \[alike, alike\]"),
    "behind another": ([A[:, 0], A[0, 1:2], A[4:, :1]], ValueError, r"params\[2\] overlaps params\[0\]"),
} | {
    name: ({"w": np.zeros(3, name)}, ValueError, r"params\['w'\] has dtype .*: expected float16,")
    for name in ("i4", "u1", "?", "c8", ">f4", ">f8", "g", "O", "U3", "M8[s]", "f4,f4", "V4")
}


@pytest.mark.parametrize(("params", "error", "match"), BAD_PARAMS.values(), ids=BAD_PARAMS)
def test_bad_parameters(params, error, match):
    with pytest.raises(error, match=match):
        RMSprop(params)


class BreaksOff:
    def __iter__(self):
        yield GOOD
        raise OSError("no more gradients")


GOOD, SHAPED = np.ones((2, 3), "f4"), r"grads\[1\] has shape .*: expected its parameter's, \(3,\)"
BAD_GRADS = {
    "shape": ([GOOD, np.ones(2)], ValueError, SHAPED),
    "column": ([GOOD, np.ones((3, 1))], ValueError, SHAPED),
    "scalar": ([GOOD, 1.0], ValueError, SHAPED),
    "ragged": ([GOOD, [[1.0], [1.0, 2.0]]], ValueError, "inhomogeneous"),
    "masked": ([GOOD, np.ma.masked_array(np.ones(3))], ValueError, r"grads\[1\]: expected an array without a mask"),
    "missing": ([GOOD], ValueError, r"grads: missing \['grads\[1\]'\], unknown \[\]"),
    "extra": ([GOOD, np.ones(3), None], ValueError, r"grads: missing \[\], unknown \['grads\[2\]'\]"),
    "dict": ({"w": GOOD, "b": np.ones(3)}, ValueError, r"unknown \[\"grads\['b'\]\", \"grads\['w'\]\"\]"),
    "array": (np.ones((2, 3)), TypeError, "grads: expected a list or dict of arrays, got ndarray"),
    "None": (None, TypeError, "grads: expected a list or dict of arrays, got NoneType"),
    "breaks off": (BreaksOff(), OSError, "no more"),
    "not finite": ([GOOD, [0.0, 1.0, math.inf]], FloatingPointError, r"params\[1\]: its gradient, squared, is not"),
    "NaN": ([GOOD, [math.nan, 1.0, 0.0]], FloatingPointError, r"params\[1\]: its gradient"),
    "square": ([GOOD, [0.0, -1.9e19, 0.0]], FloatingPointError, r"params\[1\]: its gradient"),
} | {
    name: ([GOOD, np.zeros(3, name)], ValueError, r"grads\[1\] has dtype .*: expected a float dtype")
    for name in ("i4", "u1", "?", "c8", "O", "U3", "M8[s]", "f4,f4")
}


@pytest.mark.parametrize(("grads", "error", "match"), BAD_GRADS.values(), ids=BAD_GRADS)
def test_a_refused_step_changes_nothing(grads, error, match):
    rule = Rule(centered=True, momentum=0.9, bias_correction=True, nonfinite="error")
    optimizer = RMSprop([normal(2, 3, dtype="f4"), normal(3, dtype="f4")], rule)
    optimizer.step([GOOD, np.ones(3)])
    assert_refuses(optimizer, lambda: optimizer.step(grads), error, match)
    optimizer.step([GOOD, np.ones(3)])


@pytest.mark.parametrize("grads", [{"a": GOOD}, {"a": GOOD, "b": GOOD, "c": GOOD}, [GOOD, GOOD]], ids=len)
def test_other_keys(grads):
    optimizer = RMSprop({"a": GOOD.copy(), "b": GOOD.copy()})
    assert_refuses(optimizer, lambda: optimizer.step(grads), ValueError, r"^grads: missing \[.*\], unknown \[.*grads|b")


def test_a_dict_of_gradients_may_have_another_order():
    a, b = np.zeros(2), np.zeros(2)
    RMSprop({"a": a, "b": b}, lr=0.1, beta=0.0, epsilon=0.0).step({"b": -np.ones(2), "a": np.ones(2)})
    assert_array_equal([a, b], [[-0.1, -0.1], [0.1, 0.1]])


CHANGES = {
    "read-only": (lambda p: p.setflags(write=False), r"params\['b'\] is read-only"),
    "other shape": (lambda p: p.resize((3, 2), refcheck=False), r"params\['b'\] has shape \(3, 2\): expected \(2, 3\)"),
}


@pytest.mark.parametrize(("change", "match"), CHANGES.values(), ids=CHANGES)
def test_parameters_changed_between_steps(change, match):
    params = {"a": normal(2, 3), "b": normal(2, 3)}
    optimizer = RMSprop(params)
    optimizer.step(params)
    change(params["b"])
    assert_refuses(optimizer, lambda: optimizer.step(copy.deepcopy(params)), ValueError, match)


BAD_OPTIONS = [
    ({"momentun": 0.9}, TypeError, "'momentun' is not an option of Rule; .*did you mean 'momentum'"),
    ({"eps": 1e-8}, TypeError, "did you mean 'epsilon'"),
    ({"rule": "torch"}, TypeError, "rule='torch': expected a Rule; a dialect's name goes to dialect="),
    ({"rule": Rule(), "dialect": "torch"}, ValueError, "rule and dialect='torch': expected one of them"),
    ({"dialect": "pytorch"}, ValueError, "dialect='pytorch': expected one of .*did you mean 'torch'"),
    ({"lr": -1}, ValueError, "lr=-1: expected a finite number of at least 0"),
    ({"beta": 1}, ValueError, r"beta=1: expected a number in \[0, 1\)"),
    ({"clip": 0}, ValueError, "clip=0: expected a finite number above 0, or None"),
    ({"nonfinite": "ignore"}, ValueError, "nonfinite='ignore': expected one of"),
    ({"nesterov": True}, ValueError, "nesterov=True: expected False without momentum"),
]


@pytest.mark.parametrize(("options", "error", "match"), BAD_OPTIONS)
def test_bad_options(options, error, match):
    with pytest.raises(error, match=match):
        RMSprop([normal(2)], **options)


@pytest.mark.parametrize("lr", [-1, math.nan, math.inf, "0.1", None, True, [0.1], np.array([0.1])], ids=repr)
def test_bad_learning_rates(lr):
    optimizer = RMSprop([normal(2)], lr=0.5)
    assert_refuses(optimizer, lambda: setattr(optimizer, "lr", lr), ValueError, "^lr=.*: expected a finite number of")
    assert optimizer.lr == 0.5
