"""The state of the NumPy front end: saved, loaded, copied and pickled; and what it refuses to load."""

import copy
import io
import json
import pickle
from threading import Thread

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from rmsprop import Rule
from rmsprop.numpy import RMSprop
from tests.test_numpy import assert_refuses, assert_same, engine, normal, snapshot  # noqa: F401

RULES = {
    "plain": Rule(lr=0.1),
    "centered": Rule(centered=True, bias_correction=True),
    "momentum": Rule(momentum=0.9, nesterov=True, momentum_form="ema", bias_correction=True),
    "all": Rule(centered=True, momentum=0.5, initial_square=0.1, nonfinite="skip", clip=1.0),
}


def arrays(seed):
    """More than ten, so that names sorted as strings have another order; of every dtype."""
    return [normal(*(2, 3, 1)[: i % 4], seed=seed + i, dtype=f"f{(2, 4, 8)[i % 3]}") for i in range(11)]


def started(rule):
    optimizer = RMSprop(arrays(0), rule)
    for seed in (1, 2):
        optimizer.step([*arrays(seed)[:-1], None])
    return optimizer


def continued(optimizer):
    for seed in (4, 5):
        optimizer.lr /= 2
        optimizer.step(arrays(seed))
    return snapshot(optimizer)


def through_json(state):
    return json.loads(json.dumps(state, default=np.ndarray.tolist, sort_keys=True))


def through_npz(state):
    file = io.BytesIO()
    entries = {f"{name}|{key}": x for name, entry in state["state"].items() for key, x in entry.items()}
    np.savez(file, **entries)
    file.seek(0)
    loaded = {name: {} for name in reversed(state["state"])}
    with np.load(file, allow_pickle=False) as saved:
        for path in saved:
            name, key = path.split("|")
            loaded[name][key] = saved[path]
    return {**state, "state": loaded}


WAYS = {
    "as it is": lambda x: x,
    "pickle": lambda x: pickle.loads(pickle.dumps(x)),
    "json": through_json,
    "npz": through_npz,
}


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_a_loaded_state_continues_to_the_last_bit(rule, way):
    optimizer = started(rule)
    other = RMSprop([p.copy() for p in optimizer._params], momentum=0.1)
    other.load_state_dict(way(optimizer.state_dict()))
    assert_same(snapshot(other), snapshot(optimizer))
    assert_same(continued(other), continued(optimizer))


def test_a_state_dict_is_plain():
    state = RMSprop({"w": np.ones(2, "f2"), "b": np.ones(())}, RULES["all"], lr=np.float32(0.5)).state_dict()
    names = ["step", "variance", "grad_avg", "momentum_buffer"]
    assert {name: list(entry) for name, entry in state["state"].items()} == {"params['w']": names, "params['b']": names}
    assert {type(x) for x in state["rule"].values()} <= {float, bool, str, type(None)}
    assert (state["format"], state["rule"]["lr"], type(state["state"]["params['w']"]["step"])) == (1, 0.5, int)
    assert [state["state"][f"params['{name}']"]["variance"].dtype for name in "wb"] == ["f4", "f8"]
    assert Rule(**state["rule"]) == RULES["all"].replace(lr=0.5)


def test_a_state_dict_is_a_copy():
    optimizer = started(RULES["all"])
    saved = optimizer.state_dict()
    before, kept = snapshot(optimizer), copy.deepcopy(saved)
    optimizer.load_state_dict(saved)
    saved["rule"]["lr"] = 7.0
    for entry in saved["state"].values():
        for key in entry:
            entry[key] += 1
    assert_same(snapshot(optimizer), before)
    saved = optimizer.state_dict()
    continued(optimizer)
    assert_same(saved, kept)


def test_a_state_may_change_precision():
    narrow, wide = RMSprop([normal(3, dtype="f4")]), RMSprop([normal(3)])
    wide.step([normal(3, seed=1)])
    exact = wide.state_dict()["state"]["params[0]"]["square_avg"]
    narrow.load_state_dict(wide.state_dict())
    rounded = narrow.state_dict()["state"]["params[0]"]["square_avg"]
    assert_array_equal(rounded, exact.astype("f4"), strict=True)
    wide.load_state_dict(narrow.state_dict())
    assert_array_equal(wide.state_dict()["state"]["params[0]"]["square_avg"], rounded.astype("f8"), strict=True)


GONE = object()
W, ONES = ("state", "params['w']"), np.ones((3, 1))
V, VARIANCE = (*W, "variance"), r"^state of params\['w'\]: variance: expected"
BAD = {
    "no format": (["format"], GONE, "^state_dict: expected format=1"),
    "new format": (["format"], 2, "^state_dict: expected format=1"),
    "no rule": (["rule"], GONE, r"^state_dict\['rule'\]: expected a dict, got NoneType"),
    "bad option": (["rule", "beta"], 1.5, r"^beta=1.5: expected a number in \[0, 1\)"),
    "unknown option": (["rule", "alpha"], 0.9, "^'alpha' is not an option of Rule"),
    "rule of more": (["rule", "momentum"], 0.9, r"^state of .*: missing \['momentum_buffer'\], unknown \[\]"),
    "rule of less": (["rule", "centered"], False, r"missing \['square_avg'\], unknown \['grad_avg', 'variance'\]"),
    "no state": (["state"], GONE, r"^state_dict\['state'\]: expected a dict, got NoneType"),
    "a list": (["state"], [], r"^state_dict\['state'\]: expected a dict, got list"),
    "no parameter": (W, GONE, r"^state_dict\['state'\]: missing \[\"params\['w'\]\"\], unknown \[\]"),
    "other name": (["state", "x"], {}, r"^state_dict\['state'\]: missing \[\], unknown \['x'\]"),
    "number as name": (["state", 3], {}, r"unknown \[3\]"),
    "no entry": (W, None, r"^state of params\['w'\]: expected a dict, got NoneType"),
    "no variance": (V, GONE, r"^state of params\['w'\]: missing \['variance'\], unknown \[\]"),
    "no step": ((*W, "step"), GONE, r"^state of params\['w'\]: missing \['step'\], unknown \[\]"),
    "shape": (V, np.ones(3), rf"{VARIANCE} numbers of shape \(3, 1\), got float64 of shape \(3,\)"),
    "None": (V, None, rf"{VARIANCE} numbers of shape \(3, 1\), got object of shape \(\)"),
    "complex": (V, ONES + 0j, rf"{VARIANCE} numbers of shape"),
    "bool": (V, ONES > 0, rf"{VARIANCE} numbers of shape"),
    "NaN": (V, ONES * np.nan, rf"{VARIANCE} finite float32 numbers"),
    "too large": (V, ONES * 1e39, rf"{VARIANCE} finite float32 numbers"),
    "infinite": ((*W, "grad_avg"), ONES * np.inf, "grad_avg: expected finite"),
    "negative": (V, [[1], [-1], [1]], rf"{VARIANCE} no negative numbers, got -1.0"),
} | {
    f"step {step!r}": ((*W, "step"), step, r"^state of params\['w'\]: step=.*: expected a whole number")
    for step in (-1, 0.5, np.nan, np.inf, 2**53, 2**70, None, True, "3", [1], 1j)
}


@pytest.mark.parametrize(("path", "value", "match"), BAD.values(), ids=BAD)
def test_a_bad_state_dict_changes_nothing(path, value, match):
    optimizer = RMSprop({"b": normal(2, dtype="f4"), "w": normal(3, 1, dtype="f4")}, centered=True)
    optimizer.step({"b": np.ones(2), "w": ONES})
    state = optimizer.state_dict()
    state["rule"]["lr"], state["state"]["params['b']"]["step"] = 9.0, 99
    inner, (*outer, last) = state, path
    for key in outer:
        inner = inner[key]
    inner[last] = value
    if value is GONE:
        del inner[last]
    assert_refuses(optimizer, lambda: optimizer.load_state_dict(state), (ValueError, TypeError), match)


@pytest.mark.parametrize("state", [None, [], "state", {}, {"state": {}, "param_groups": []}], ids=repr)
def test_no_state_dict_at_all(state):
    optimizer = started(RULES["plain"])
    assert_refuses(optimizer, lambda: optimizer.load_state_dict(state), ValueError, "^state_dict: expected")


def test_the_mean_and_the_buffer_may_be_negative():
    optimizer = RMSprop([normal(2)], centered=True, momentum=0.9)
    state = optimizer.state_dict()
    state["state"]["params[0]"] |= {"grad_avg": np.array([-1.0, 2]), "momentum_buffer": np.array([3, -4.0]), "step": 7}
    optimizer.load_state_dict(state)
    assert_same(optimizer.state_dict(), state)


COPIES = {"deepcopy": copy.deepcopy, "pickle": lambda x: pickle.loads(pickle.dumps(x))}


@pytest.mark.parametrize("duplicate", COPIES.values(), ids=COPIES)
@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_copies_continue_on_their_own(rule, duplicate):
    optimizer = started(rule)
    optimizer.step([*arrays(1)[:-1], np.full((2, 3), np.nan)])
    twin = duplicate(optimizer)
    before = snapshot(optimizer)
    assert_same(snapshot(twin), before)
    after = continued(twin)
    assert_same(snapshot(optimizer), before)
    assert_same(continued(optimizer), after)


@pytest.mark.parametrize("duplicate", COPIES.values(), ids=COPIES)
def test_a_copy_knows_where_its_own_parameters_lie(duplicate):
    params = [np.ones(4), np.full(4, 2.0)]
    copied, optimizer = duplicate((params, RMSprop(params, lr=0.1)))
    RMSprop(params, lr=0.1).step([params[1].copy(), params[0].copy()])
    optimizer.step([copied[1], copied[0]])
    assert_same(copied, params)


def test_repr_shows_the_arrays_and_the_rule():
    optimizer = RMSprop({"w": np.ones((2, 3)), "b": np.ones(())}, lr=0.5)
    assert repr(optimizer) == f"RMSprop(params['w'][2, 3], params['b'][]; {Rule(lr=0.5)!r})"
    assert repr(RMSprop([])) == f"RMSprop(; {Rule()!r})"


def test_threads_take_turns(engine):  # noqa: F811
    p = np.zeros(50_000)
    optimizer = RMSprop([p], momentum=0.9)
    threads = [Thread(target=lambda: [optimizer.step([np.ones(50_000)]) for _ in range(20)]) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert optimizer.state_dict()["state"]["params[0]"]["step"] == 80
    assert np.ptp(p) == 0
