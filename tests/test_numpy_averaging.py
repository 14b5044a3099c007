"""NumPy: averaged weights."""

import copy
import os
import pickle
import signal

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

import rmsprop
from rmsprop import RMSprop, Rprop
from rmsprop.kernels import cpu
from rmsprop.numpy import averaged
from tests.cases import parameter


@pytest.fixture(params=["native", "blocked"], autouse=True)
def engine(request, monkeypatch):
    if request.param == "native" and cpu.native is None:
        pytest.skip("no kernel here")
    if request.param == "blocked":
        monkeypatch.setattr(cpu, "native", None)


def feed(optimizer, params, steps=10, first=0):
    for t in range(first, first + steps):
        rng = np.random.default_rng(t)
        optimizer.step([rng.normal(size=p.shape).astype(p.dtype) for p in params])


@pytest.mark.parametrize("state_shape", ["full", "row"])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize(("averaging", "gamma"), [(True, 8), (0, 0), (2.5, 2.5)])
def test_the_average_of_the_stored_parameters(averaging, gamma, dtype, state_shape):
    params = [parameter(60, dtype).reshape(5, 12).T, parameter(7, dtype, 1)]
    optimizer, wanted = RMSprop(params, lr=0.1, averaging=averaging, momentum=0.9, state_shape=state_shape), []
    for t in range(1, 13):
        feed(optimizer, params, 1, t)
        now = [p.astype(float) for p in params]
        wanted = [a + (gamma + 1) / (t + gamma) * (p - a) for a, p in zip(wanted, now, strict=True)] if wanted else now
    tolerance = 1e-13 if dtype == np.float64 else 1e-5
    for entry, a in zip(optimizer.state_dict()["state"].values(), wanted, strict=True):
        assert entry["weight_avg"].dtype == np.promote_types(dtype, np.float32)
        assert_allclose(entry["weight_avg"], a, rtol=tolerance, atol=tolerance)
    before, kept = [p.copy() for p in params], [a.astype(dtype) for a in wanted]
    with optimizer.averaged():
        for p, a in zip(params, kept, strict=True):
            assert_allclose(p, a, rtol=2e-3 if dtype == np.float16 else tolerance, atol=tolerance)
    assert all(map(np.array_equal, params, before))
    with pytest.raises(KeyError, match="body"), optimizer.averaged():
        raise KeyError("body")
    assert all(map(np.array_equal, params, before))
    feed(optimizer, params)


def test_steps_are_the_same_with_and_without():
    params = [parameter(1000, np.float32) for _ in range(2)]
    for p, averaging in zip(params, (True, None), strict=True):
        feed(RMSprop([p], averaging=averaging), [p])
    assert_array_equal(*params)


def test_what_has_not_been_stepped_stays():
    params = [np.ones(3), np.ones(3)]
    optimizer = RMSprop(params, averaging=True)
    params[1][...] = 7  # after the optimizer was made
    for g in (1.0, 2.0):
        optimizer.step([np.full(3, g), None])
    with optimizer.averaged():
        assert_array_equal(params[1], 7)
        assert (params[0] != 1).all()


def test_what_cannot_be_within_the_block():
    p = np.ones(3)
    optimizer = RMSprop([p], averaging=True)
    saved = optimizer.state_dict()
    for _ in range(2):
        optimizer.step([p])
    before = p.copy()
    with optimizer.averaged():
        inside = p.copy()
        for what, call in (
            ("step", lambda: optimizer.step([p])),
            ("averaged", lambda: optimizer.averaged().__enter__()),
            ("state_dict", optimizer.state_dict),
            ("load_state_dict", lambda: optimizer.load_state_dict(saved)),
            ("copy", lambda: copy.deepcopy(optimizer)),
            ("copy", lambda: pickle.dumps(optimizer)),
        ):
            with pytest.raises(RuntimeError, match=f"^{what}: the parameters hold their averages"):
                call()
        assert_array_equal(p, inside)
        assert (inside != before).all()
    assert_array_equal(p, before)
    optimizer.step([p])
    with pytest.raises(ValueError, match="averaged: this optimizer does not average; expected averaging=True"):
        RMSprop([p]).averaged().__enter__()


def test_saved_and_restored():
    params = [parameter(9, np.float16) for _ in range(2)]
    first = RMSprop(params[:1], averaging=3)
    feed(first, params[:1])
    saved = copy.deepcopy(first.state_dict())
    assert saved["averaging"] == 3
    params[1][...] = params[0]
    second = RMSprop(params[1:])
    second.load_state_dict(saved)
    for optimizer, p in zip((first, second), params, strict=True):
        feed(optimizer, [p], 5, 10)
    for name, value in first.state_dict()["state"]["params[0]"].items():
        assert_array_equal(second.state_dict()["state"]["params[0]"][name], value)
    assert "averaging" not in RMSprop(params).state_dict()


def test_state_without_an_average_starts_one_at_the_parameter():
    p = parameter(9, np.float32)
    plain, optimizer = RMSprop([p]), RMSprop([p], averaging=True)
    feed(plain, [p], 4)
    optimizer.load_state_dict(plain.state_dict())
    before = p.copy()
    feed(optimizer, [p], 1)
    average = optimizer.state_dict()["state"]["params[0]"]["weight_avg"]
    assert_allclose(average, before + 9 / 13 * (p - before), rtol=1e-6)


def test_loaded_averages_are_checked():
    p = np.array([1.0, -np.inf])  # a mask
    optimizer = RMSprop([p], averaging=True)
    for _ in range(3):
        optimizer.step([np.zeros(2)])
    saved = optimizer.state_dict()
    assert_array_equal(saved["state"]["params[0]"]["weight_avg"], p)
    optimizer.load_state_dict(saved)
    for bad, message in (
        (np.ones(3), r"weight_avg: expected numbers of shape \(2,\)"),
        (np.array([np.inf, -np.inf]), "weight_avg: expected finite numbers where the parameter is finite"),
        (np.array([np.nan, -np.inf]), "weight_avg: expected finite numbers where the parameter is finite"),
    ):
        saved["state"]["params[0]"]["weight_avg"] = bad
        with pytest.raises(ValueError, match=message):
            optimizer.load_state_dict(saved)
    for changed, message in (({"averaging": -1}, "averaging=-1: expected True"), ({"averaging": None}, "weight_avg")):
        with pytest.raises(ValueError, match=message):
            optimizer.load_state_dict({**saved, **changed})


def test_gradients_of_rows_are_refused():
    for sparse in ("exact", "lazy"):
        p = np.ones((4, 2))
        optimizer = RMSprop({"table": p}, averaging=True, sparse=sparse)
        with pytest.raises(
            ValueError, match=r"grads\['table'\]: averaged weights need a gradient of all rows, an array"
        ):
            optimizer.step({"table": ([1], np.ones((1, 2)))})
        assert_array_equal(p, 1)
        assert optimizer.state_dict()["state"]["params['table']"]["step"] == 0


def test_bad_options():
    for bad in (-1, "yes", float("nan")):
        with pytest.raises(ValueError, match=r"averaging=.*expected True, False or a finite number of at least 0"):
            RMSprop([np.ones(2)], averaging=bad)
    with pytest.raises(TypeError, match="averaging"):
        Rprop([np.ones(2)], averaging=True)
    with pytest.raises(ValueError, match=r"averaging=8.0: expected None"):
        Rprop([np.ones(2)]).load_state_dict({**Rprop([np.ones(2)]).state_dict(), "averaging": 8.0})


def test_jax_does_not_drop_an_average():
    jax = pytest.importorskip("rmsprop.jax")
    p = np.ones(3, np.float32)
    optimizer = RMSprop([p], rmsprop.dialect("optax"), averaging=True)
    optimizer.step([p])
    state = jax.rmsprop(0.1).init([p])
    with pytest.raises(ValueError, match="weight_avg"):
        jax.load_state_dict(state, optimizer.state_dict())


@pytest.mark.parametrize("at", [1, 2, 3, 4])
def test_ctrl_c_never_leaves_weights_half_exchanged(at, monkeypatch):
    params = [parameter(60, np.float32), parameter(7, np.float32, 1)]
    optimizer = RMSprop(params, averaging=True)
    feed(optimizer, params)
    before, state = [p.copy() for p in params], optimizer.state_dict()
    take, calls = averaged._take, []

    def interrupted(p, average):
        kept = take(p, average)
        calls.append(p)
        if len(calls) == at:
            os.kill(os.getpid(), signal.SIGINT)
        return kept

    monkeypatch.setattr(averaged, "_take", interrupted)
    with pytest.raises(KeyboardInterrupt), optimizer.averaged():
        pass
    for old, new in zip(before, params, strict=True):
        assert_array_equal(old, new)
    for name, entry in optimizer.state_dict()["state"].items():
        assert_array_equal(entry["weight_avg"], state["state"][name]["weight_avg"])
