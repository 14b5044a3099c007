"""`minimize` against stepping by hand, against SciPy's conventions, and where it must refuse or stop."""

import pickle
import subprocess
import sys
from functools import partial
from inspect import signature
from typing import NamedTuple

import numpy as np
import pytest
import scipy.optimize
from numpy.testing import assert_allclose, assert_array_equal
from scipy.optimize import rosen, rosen_der

from rmsprop import RMSprop, Rule, minimize
from rmsprop.minimize import Result
from tests.cases import RULES

SCALE = np.array([1.0, 10.0])


def bowl(x):
    return float(SCALE @ (x * x))


def bowl_der(x):
    return 2 * SCALE * x


def bowl_both(x):
    return bowl(x), bowl_der(x)


OPTIONS = {name: {"rule": rule} for name, rule in RULES.items()} | {
    "explicit": {"lr": 0.1, "beta": 0.5, "epsilon": 1e-3},
    "explicit beside a dialect": {"dialect": "graves", "lr": 0.01},
    "explicit beside a rule": {"rule": Rule(centered=True), "weight_decay": 0.1},
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_is_rmsprop_stepped_by_hand(options, dtype):
    x0 = np.array([0.25, -0.5], dtype)
    x, values = x0.copy(), []
    optimizer = RMSprop([x], **options)
    for _ in range(30):
        values.append(bowl(x))
        optimizer.step([bowl_der(x)])
    result = minimize(bowl, x0, jac=bowl_der, epochs=30, **options)
    assert_array_equal(result.x_last, x, strict=True)
    assert_array_equal(result.history["fun"], [*values, bowl(x)])
    assert_array_equal(result.history["lr"], [optimizer.lr] * 30)
    assert_array_equal(x0, np.array([0.25, -0.5], dtype), strict=True)


def test_numbers_in_the_signature_yield_to_a_dialect():
    defaults = {name: p.default for name, p in signature(minimize).parameters.items()}
    assert [str(defaults[name]) for name in ("lr", "beta", "epochs", "epsilon")] == ["0.001", "0.9", "100", "1e-07"]
    assert minimize(bowl, [1, 1], jac=bowl_der, dialect="torch").history["lr"][0] == 0.01
    assert minimize(bowl, [1, 1], jac=bowl_der, dialect="torch", lr=0.001).history["lr"][0] == 0.001


def test_returns_the_best_point_and_the_last():
    result = minimize(bowl, [1.0, 1.0], jac=bowl_der, lr=0.3, epochs=50)
    assert result.fun == bowl(result.x) == min(result.history["fun"]) < result.fun_last
    assert result.fun_last == bowl(result.x_last) == result.history["fun"][-1]
    assert_array_equal(result.jac, bowl_der(result.x))
    assert_array_equal(result.history["grad_norm"][[0, -1]], [20, np.abs(bowl_der(result.x_last)).max()])
    assert (result.nit, result.nfev, result.njev, result.success, result.status) == (50, 51, 51, True, 0)


def test_of_equal_values_the_smaller_gradient_is_best():
    slopes = iter([3.0, 1.0, 2.0])
    result = minimize(lambda x: 7, 0.0, jac=lambda x: next(slopes), epochs=2)
    assert result.jac == 1


def test_maximize_returns_the_largest():
    result = minimize(lambda x: -bowl(x), [1.0, 1.0], jac=lambda x: -bowl_der(x), maximize=True, lr=0.1)
    assert result.fun == max(result.history["fun"]) > -0.5


def test_through_scipy():
    options = {"lr": 0.01, "epochs": 2000, "momentum": 0.9, "momentum_form": "ema"}
    result = scipy.optimize.minimize(rosen, [-1.2, 1], method=minimize, jac=rosen_der, options=options)
    assert isinstance(result, scipy.optimize.OptimizeResult)
    assert result.fun < 1e-3
    assert_array_equal(result.x, minimize(rosen, [-1.2, 1], jac=rosen_der, **options).x)


def test_through_scipy_jac_true_args_and_maxiter():
    def both(x, shift):
        return bowl_both(x - shift)

    for args in [(1.0,), 1.0]:
        direct = minimize(both, [0.0, 0.0], args, jac=True, epochs=20)
        result = scipy.optimize.minimize(both, [0, 0], args, minimize, jac=True, options={"maxiter": 20})
        assert_array_equal(result.x, direct.x)
        assert (direct.nit, direct.nfev, direct.njev) == (result.nit, result.nfev, result.njev) == (20, 21, 21)


def test_fits_a_dict_of_weights_and_biases():
    rng = np.random.default_rng(0)
    inputs, targets = rng.normal(size=(50, 3)), rng.normal(size=(50, 2))

    def loss(p):
        error = inputs @ p["weights"] + p["biases"] - targets
        return np.sum(error**2), {"biases": 2 * error.sum(0), "weights": 2 * inputs.T @ error}

    start = {"weights": np.zeros((3, 2)), "biases": np.zeros(2)}
    result = minimize(loss, start, jac=True, lr=lambda epoch: 0.1 * (1 - epoch / 400), epochs=400)
    exact = np.linalg.lstsq(np.column_stack([inputs, np.ones(50)]), targets)[0]
    assert_allclose(result.x["weights"], exact[:3], atol=1e-3)
    assert_allclose(result.x["biases"], exact[3], atol=1e-3)
    assert list(result.x) == list(result.jac) == list(result.x_last) == ["weights", "biases"]
    assert not start["weights"].any()


class Pair(NamedTuple):
    w: np.ndarray
    b: np.ndarray


@pytest.mark.parametrize("kind", [list, tuple, Pair._make])
@pytest.mark.parametrize("jac", ["exact", None, "3-point"])
def test_sequences_of_arrays(kind, jac):
    def loss(x):
        assert type(x) is type(start)
        return np.sum(x[0] ** 2) + 3 * np.sum(x[1] ** 2)

    start = kind([np.array([[1.0, 2.0]]), np.array(3.0)])
    result = minimize(loss, start, jac=(lambda x: (2 * x[0], 6 * x[1])) if jac == "exact" else jac, lr=0.1)
    assert type(result.x) is type(result.jac) is type(start)
    assert [x.shape for x in result.x] == [(1, 2), ()]
    assert result.fun < 0.1


def test_numbers_make_one_array():
    for x0, shape in [(3, ()), ([3, 4], (2,)), (((1, 2), (3, 4)), (2, 2)), ([np.float32(3)], (1,))]:
        result = minimize(np.sum, x0, jac=np.ones_like, epochs=1)
        assert (result.x.shape, result.jac.shape) == (shape, shape)


def test_dtypes_stay_and_integers_become_float64():
    start = {"a": np.ones(2, np.float32), "b": np.ones(2, np.float16), "c": np.array([1, 2])}
    seen = []

    def loss(p):
        seen.append({name: x.dtype.name for name, x in p.items()})
        return sum(np.sum(x * x) for x in p.values()), {name: 2 * x for name, x in p.items()}

    result = minimize(loss, start, jac=True, epochs=3)
    expected = {"a": "float32", "b": "float16", "c": "float64"}
    assert seen == [expected] * 4
    for tree in (result.x, result.jac, result.x_last):
        assert {name: x.dtype.name for name, x in tree.items()} == expected
    assert result.fun == loss(result.x)[0]


def test_functions_may_keep_and_write_to_what_they_get():
    kept, gradient = [], np.empty(2)

    def loss(x):
        value, gradient[:] = bowl_both(x)  # one buffer for all gradients
        kept.append(x)
        return value, gradient

    def spoil(x):
        x[:] = np.nan

    def spoilt(x):
        value = bowl_both(x)
        spoil(x)
        return value

    clean = minimize(bowl, [1.0, 2.0], jac=bowl_der, lr=0.3)
    for result in [
        minimize(loss, [1.0, 2.0], jac=True, lr=0.3),
        minimize(spoilt, [1.0, 2.0], jac=True, lr=0.3, callback=spoil),
    ]:
        assert_array_equal(result.x, clean.x)
        assert_array_equal(result.x_last, clean.x_last)
        assert_array_equal(result.jac, clean.jac)
    assert_array_equal([bowl(x) for x in kept], clean.history["fun"])


@pytest.mark.parametrize(("jac", "calls", "tolerance"), [(None, 3, 1e-6), (False, 3, 1e-6), ("3-point", 5, 1e-9)])
def test_finite_differences(jac, calls, tolerance):
    result = minimize(rosen, [-1.2, 1.0], jac=jac, epochs=1)
    assert_allclose(result.jac, rosen_der(result.x), rtol=tolerance)
    assert (result.nfev, result.njev) == (2 * calls, 2)
    far = minimize(lambda x: x * x, 1e7, jac=jac, epochs=1)
    assert_allclose(far.jac, 2 * far.x, rtol=tolerance)


@pytest.mark.parametrize(("jac", "tolerance"), [("2-point", 2e-3), ("3-point", 2e-4)])
def test_finite_differences_in_float32(jac, tolerance):
    x0 = np.array([-1.2, 1.0], np.float32)
    result = minimize(rosen, x0, jac=jac, epochs=1)
    assert_allclose(result.jac, rosen_der(result.x.astype(float)), rtol=tolerance)
    double = minimize(bowl, x0, jac=jac, epochs=1)  # computes in double, from x in single
    assert_allclose(double.jac, bowl_der(double.x), rtol=tolerance)
    coarse = minimize(lambda x: np.float32(bowl(x)), [1.0, 1.0], jac=jac, epochs=1)
    assert_allclose(coarse.jac, bowl_der(coarse.x), rtol=tolerance)


def test_both_kinds_of_callback():
    points, results = [], []

    def whole(intermediate_result):
        results.append(intermediate_result)

    minimize(bowl, [1.0, 1.0], jac=bowl_der, epochs=5, callback=points.append)
    scipy.optimize.minimize(bowl, [1, 1], method=minimize, jac=bowl_der, callback=whole, options={"epochs": 5})
    assert [r.nit for r in results] == [1, 2, 3, 4, 5]
    assert_array_equal(points, [r.x for r in results])
    assert [r.fun for r in results] == [bowl(x) for x in points]
    assert_array_equal([r.jac for r in results], [bowl_der(x) for x in points])


def stop_by_exception(x):
    raise StopIteration


@pytest.mark.parametrize("callback", [stop_by_exception, lambda x: True, lambda x: x[0] < 1])
def test_callback_stops(callback):
    result = minimize(bowl, [1.0, 1.0], jac=bowl_der, callback=callback)
    assert (result.nit, result.success, result.status) == (1, False, 99)
    assert result.message == "epoch 1: stopped by the callback"
    assert len(result.history["fun"]) == 2


def test_callback_may_return_a_number():
    assert minimize(bowl, [1.0, 1.0], jac=bowl_der, callback=bowl).nit == 100


def test_tol():
    options = {"lr": lambda epoch: 0.3 * 0.97**epoch}
    result = minimize(bowl, [1.0, 1.0], jac=bowl_der, epochs=1000, tol=1e-2, **options)
    assert result.success
    assert result.nit < 1000
    assert np.abs(result.jac).max() <= 1e-2 < result.history["grad_norm"][:-1].min()
    assert "tol=0.01" in result.message
    assert minimize(bowl, [0.0, 0.0], jac=bowl_der, tol=0).nit == 0
    missed = scipy.optimize.minimize(bowl, [1, 1], method=minimize, jac=bowl_der, tol=1e-9)
    assert (missed.success, missed.status, missed.nit) == (False, 1, 100)
    assert missed.message == "tol=1e-09 not met in 100 epochs"


def test_schedule():
    result = minimize(bowl, [1.0, 1.0], jac=bowl_der, epochs=3, lr=lambda epoch: [0.3, 0.2, 0.1][epoch])
    assert_array_equal(result.history["lr"], [0.3, 0.2, 0.1])
    x = np.ones(2)
    optimizer = RMSprop([x])
    for optimizer.lr in [0.3, 0.2, 0.1]:
        optimizer.step([bowl_der(x)])
    assert_array_equal(result.x_last, x)


def test_second_derivatives_are_ignored():
    plain = minimize(bowl, [1.0, 1.0], jac=bowl_der)
    result = scipy.optimize.minimize(bowl, [1, 1], method=minimize, jac=bowl_der, hess=len, hessp=len)
    assert_array_equal(result.x, plain.x)


@pytest.mark.parametrize("call", [minimize, partial(scipy.optimize.minimize, method=minimize)])
@pytest.mark.parametrize(
    "given",
    [
        {"bounds": [(0, 1), (0, 1)]},
        {"bounds": scipy.optimize.Bounds(0, 1)},
        {"constraints": {"type": "eq", "fun": bowl}},
        {"constraints": scipy.optimize.LinearConstraint(np.eye(2))},
    ],
)
def test_bounds_and_constraints_are_refused(given, call):
    (name,) = given
    with pytest.raises(ValueError, match=f"^{name}=.*: expected None"):
        call(bowl, [1, 1], jac=bowl_der, **given)


def nan_below(limit, x):
    return np.where(x["w"] < limit, np.nan, 1.0)


@pytest.mark.parametrize(
    ("value", "gradient", "message"),
    [
        (lambda x: np.sum(x["w"] * nan_below(0.9, x)), lambda x: 1, "the value is nan"),
        (lambda x: np.sum(x["w"] / (x["w"] > 0.9)), lambda x: 1, "the value is inf"),
        (lambda x: np.sum(x["w"]), lambda x: nan_below(0.9, x), "gradient['w'] not finite"),
    ],
)
@pytest.mark.filterwarnings("ignore:divide by zero")
def test_stops_where_something_is_not_finite(value, gradient, message):
    def jac(x):
        return {"w": np.broadcast_to(gradient(x), 2), "b": np.ones(1)}

    start = {"w": np.ones(2), "b": np.ones(1)}
    result = minimize(value, start, jac=jac, lr=0.01, epochs=100)
    assert (result.success, result.status) == (False, 2)
    assert 1 < result.nit < 10
    assert result.message == f"epoch {result.nit}: {message}"
    assert result.fun == value(result.x) == result.history["fun"][-2]
    assert np.isfinite(result.jac["w"]).all()
    assert (result.x["w"] >= 0.9).all()
    assert (result.x_last["w"] < 0.9).all()
    assert len(result.history["fun"]) == len(result.history["grad_norm"]) == result.nit + 1


def test_stops_where_x_is_not_finite():
    options = {"weight_decay": 1e200, "decay_mode": "decoupled", "lr": 1e200}
    result = minimize(lambda x: 0, [1.0, 2.0], jac=np.ones_like, **options)
    assert (result.nit, result.status, result.message) == (1, 2, "epoch 1: x not finite")
    assert_array_equal(result.x, [1, 2])


def test_stops_at_the_start_and_asks_for_no_gradient():
    result = minimize(lambda x: np.nan, [1.0], jac=None)
    assert (result.nit, result.nfev, result.njev, result.status) == (0, 1, 0, 2)
    assert result.message == "epoch 0: the value is nan"
    assert_array_equal(result.x, [1])
    assert_array_equal(result.jac, [np.nan])


def test_skipped_gradients_do_not_stop():
    result = minimize(bowl, [1.0, 1.0], jac=lambda x: bowl_der(x) * [1, np.nan], nonfinite="skip")
    assert result.nit == 100
    assert result.x[0] < 1
    assert result.x[1] == 1


REFUSED = [
    ({"fun": 3}, TypeError, "fun=3: expected a function"),
    ({"x0": []}, ValueError, "x0=[]: expected at least one number"),
    ({"x0": {}}, ValueError, "x0={}: expected at least one number"),
    ({"x0": [1, np.inf]}, ValueError, "x0 not finite"),
    ({"x0": {"a": np.ones(1), "b": np.nan}}, ValueError, "x0['b'] not finite"),
    ({"x0": {"a": 1j}}, ValueError, "x0['a'] is complex128"),
    ({"x0": "ab"}, ValueError, "x0 is <U2"),
    ({"x0": np.ones(2, np.longdouble)}, ValueError, "x0'] has dtype"),
    ({"jac": "cs"}, ValueError, "jac='cs': expected a function, True, False, None or one of ('2-point', '3-point')"),
    ({"jac": lambda x: 1.0}, ValueError, "gradient is float64 of shape (): expected real numbers of shape (2,)"),
    ({"jac": lambda x: x * 1j}, ValueError, "gradient is complex128"),
    ({"jac": True}, ValueError, "fun returned 11.0: expected (value, gradient)"),
    ({"fun": bowl_both}, ValueError, "expected one number; (value, gradient) goes with jac=True"),
    ({"fun": lambda x: x}, ValueError, "value of fun is float64 of shape (2,)"),
    ({"fun": lambda x: None}, ValueError, "value of fun is object"),
    ({"fun": lambda x: 1j}, ValueError, "value of fun is complex128"),
    ({"epochs": 0}, ValueError, "epochs=0: expected a whole number of at least 1"),
    ({"epochs": True}, ValueError, "epochs=True"),
    ({"epochs": 2.0}, ValueError, "epochs=2.0"),
    ({"maxiter": -1}, ValueError, "maxiter=-1"),
    ({"maxiter": 5, "epochs": 6}, ValueError, "maxiter=5, epochs=6: expected one of them"),
    ({"tol": -1}, ValueError, "tol=-1"),
    ({"tol": np.nan}, ValueError, "tol=nan"),
    ({"tol": "1"}, ValueError, "tol='1'"),
    ({"callback": 3}, TypeError, "callback=3"),
    ({"lr": -1}, ValueError, "lr=-1"),
    ({"lr": lambda epoch: -1}, ValueError, "lr=-1"),
    ({"momentun": 0.9}, TypeError, "momentun"),
    ({"dialect": "troch"}, ValueError, "dialect='troch'"),
]


@pytest.mark.parametrize(("given", "error", "message"), REFUSED, ids=[row[2] for row in REFUSED])
def test_refuses_by_name(given, error, message):
    with pytest.raises(error) as caught:
        minimize(**{"fun": bowl, "x0": [1.0, 1.0], "jac": bowl_der} | given)
    assert message in str(caught.value)


@pytest.mark.parametrize("gradient", [{"a": np.ones(2)}, {"a": np.ones(2), "b": 1, "c": 2}, np.ones(3), None])
def test_refuses_a_gradient_with_other_parts(gradient):
    with pytest.raises(ValueError, match=r"^gradient is a .*: expected a dict with parts \('a', 'b'\)"):
        minimize(lambda x: 0, {"a": np.ones(2), "b": 0}, jac=lambda x: gradient)


def test_empty_bounds_and_numpy_counts_are_fine():
    assert minimize(bowl, [1, 1], jac=bowl_der, epochs=np.int64(2), bounds=(), constraints=[]).nit == 2


def test_disp(capsys):
    minimize(bowl, [0.0, 0.0], jac=bowl_der, epochs=2, disp=True)
    assert capsys.readouterr().out == "all 2 epochs done: fun=0, nit=2, nfev=3, njev=3\n"


def test_result_without_scipy_has_scipys_manners():
    result = Result(x=np.arange(2), fun=1.0)
    assert result.fun == result["fun"] == 1
    result.fun = 2.0
    assert result["fun"] == 2
    assert not hasattr(result, "nit")
    assert repr(result) == "       x: array([0, 1])\n     fun: 2.0"
    assert pickle.loads(pickle.dumps(result)).fun == 2


WITHOUT_SCIPY = """
import sys
sys.modules["scipy"] = None
import numpy as np
import rmsprop
result = rmsprop.minimize(lambda x: (x @ x, 2 * x), np.ones(2), jac=True, lr=0.1)
print(type(result).__name__, result.success, result.fun < 0.1)
try:
    rmsprop.minimize(lambda x: x @ x, np.ones(2))
except ImportError as error:
    print(error)
"""
IMPORTS = "import sys, rmsprop.minimize; print(sorted({'scipy', 'torch', 'jax'} & set(sys.modules)))"


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        (
            WITHOUT_SCIPY,
            "Result True True\njac=None: finite differences need SciPy; install it, or give the gradient\n",
        ),
        (IMPORTS, "[]\n"),
    ],
)
def test_scipy_is_optional(code, expected):
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (run.stdout, run.stderr) == (expected, "")
