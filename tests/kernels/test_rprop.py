"""Rprop in every engine: the native builds and blocked NumPy equal the rule's own text to the last bit."""

import numpy as np
import pytest

from rmsprop import Rule
from rmsprop.kernels import cpu
from rmsprop.kernels.rows import Rows
from rmsprop.rprop import RpropRule, update
from tests.cases import DTYPES, LENGTHS, gradients, parameter, special
from tests.kernels import test_cpu
from tests.kernels.test_cpu import engine, layouts, needs_native

OPTIONS: dict[str, dict] = {
    "rprop-": {"variant": "rprop-"},
    "rprop+": {"variant": "rprop+"},
    "irprop-": {},
    "optax": {"dialect": "optax"},
    "optax, limits": {"dialect": "optax", "lr": 3.0, "step_sizes": (0.01, 0.1)},
    "limits": {"step_sizes": (0.004, 0.05), "variant": "rprop+", "etas": (0.3, 1.7)},
    "no limits": {"step_sizes": (0.0, float("inf")), "etas": (0.3, 9.0)},
    "maximize": {"maximize": True, "variant": "rprop-"},
}
RULES = {name: RpropRule(**options) for name, options in OPTIONS.items()}
rules = pytest.mark.parametrize("rule", RULES.values(), ids=RULES)


def state_of(rule, p):
    dtype = np.promote_types(p.dtype, np.float32)
    return {
        "step": np.zeros(()),
        "step_size": np.full_like(p, rule.lr, dtype),
        "prev": np.zeros_like(p, dtype),
    }


def group(rule, params, grads, states, names=None):
    return (*cpu.coefficients(rule), list(params), list(grads), list(states), names)


def whole_array_step(rule, p, g, state):
    dtype = np.promote_types(p.dtype, np.float32)
    with np.errstate(all="ignore"):
        new, _, s, q = update(
            p.astype(dtype), g.astype(dtype), state["step_size"], state["prev"], **rule.scalars(), **rule.flags(),
            where=np.where,
        )  # fmt: skip
        return new.astype(p.dtype), {"step": state["step"] + 1, "step_size": s, "prev": q}


def turning(n, dtype, steps=12):
    """Gradients of every size whose signs mostly stay, so that all step sizes grow and shrink."""
    rng = np.random.default_rng(3)
    signs = np.cumprod(rng.choice([1, 1, -1], size=(steps, n)), axis=0)
    return [
        (sign * abs(g.astype("f8"))).astype(dtype) for sign, g in zip(signs, gradients(n, dtype, steps), strict=True)
    ]


@engine
@pytest.mark.parametrize("dtype", DTYPES)
@rules
def test_equals_the_numpy_rule_bit_for_bit(step, rule, dtype):
    params = [parameter(n, dtype) for n in LENGTHS]
    states = [state_of(rule, p) for p in params]
    expected = [(p.copy(), {k: x.copy() for k, x in s.items()}) for p, s in zip(params, states, strict=True)]
    for grads in zip(*(turning(n, dtype) for n in LENGTHS), strict=True):
        assert step([group(rule, params, grads, states)], 2) == 0
        expected = [whole_array_step(rule, p, g, s) for (p, s), g in zip(expected, grads, strict=True)]
    for p, state, (q, wanted) in zip(params, states, expected, strict=True):
        np.testing.assert_array_equal(p, q, strict=True)
        for name, value in wanted.items():
            np.testing.assert_array_equal(state[name], value)


@engine
@pytest.mark.parametrize("dtype", DTYPES)
@rules
def test_special_numbers(step, rule, dtype):
    """NaN, infinities, signed zeros, subnormal and huge numbers as gradient, previous gradient and parameter."""
    awkward = special(dtype)
    p, g, q = (x.ravel().copy() for x in np.meshgrid(awkward, awkward, awkward))
    state = state_of(rule, p)
    state["prev"][...] = q
    wanted_p, wanted = whole_array_step(rule, p, g, state)
    step([group(rule, [p], [g], [state])], 1)
    np.testing.assert_array_equal(p, wanted_p)
    for name, value in wanted.items():
        np.testing.assert_array_equal(state[name], value)


@engine
@pytest.mark.parametrize("p_layout", layouts(np.float32))
@pytest.mark.parametrize("g_layout", layouts(np.float32))
def test_any_layout(step, p_layout, g_layout):
    rule = RULES["limits"]
    value = parameter(210, np.float32).reshape(6, 35)
    _, p = layouts(np.float32)[p_layout]
    p[...] = value
    state, expected, wanted = state_of(rule, value), value.copy(), state_of(rule, value)
    state["step_size"] = np.asfortranarray(state["step_size"])
    for grad in turning(210, np.float32):
        _, g = layouts(np.float32)[g_layout]
        g[...] = grad.reshape(6, 35)
        step([group(rule, [p], [g], [state])], 1)
        expected, wanted = whole_array_step(rule, expected, grad.reshape(6, 35), wanted)
    np.testing.assert_array_equal(p, expected)
    for name, numbers in wanted.items():
        np.testing.assert_array_equal(state[name], numbers)


@engine
def test_both_rules_in_one_call(step):
    """And a step on threads, whatever the split."""
    n = (1 << 20) + 4321
    rule, plain = RULES["rprop+"], Rule()
    p, q, g = parameter(n, np.float32), parameter(9, np.float64), parameter(n, np.float32, 9)
    state, other = state_of(rule, p), test_cpu.state_of(plain, q)
    state["prev"][...] = parameter(n, np.float32, 4)
    wanted, wanted_state = whole_array_step(rule, p, g, state)
    wanted_q, *_ = test_cpu.whole_array_step(plain, 1, q, np.ones(9), other)
    step([group(rule, [p], [g], [state]), test_cpu.group(plain, [q], [np.ones(9)], [other])], 3)
    np.testing.assert_array_equal(p, wanted)
    np.testing.assert_array_equal(q, wanted_q)
    np.testing.assert_array_equal(state["step_size"], wanted_state["step_size"])


@needs_native
def test_what_does_not_fit_is_refused_untouched():
    rule, ones = RpropRule(), np.ones(4, np.float32)
    for changes, words in (
        ({"prev": np.zeros(4)}, "one dtype"),
        ({"step_size": np.zeros(3, np.float32)}, "shape"),
        ({"prev": np.broadcast_to(np.float32(0), 4)}, "read-only"),
    ):
        first, second = ones.copy(), ones.copy()
        states = [state_of(rule, ones), {**state_of(rule, ones), **changes}]
        with pytest.raises((ValueError, TypeError), match=words):
            cpu.step([group(rule, [first, second], [ones, ones], states)], 1)
        np.testing.assert_array_equal([first, second], 1.0)
        assert states[0]["step"] == 0
    some_rows = Rows(np.zeros(1, np.int64), np.ones((1, 2), np.float32))
    table = np.ones((2, 2), np.float32)
    with pytest.raises(ValueError, match="Rprop takes no gradient of rows"):
        cpu.step([group(rule, [table], [some_rows], [state_of(rule, table)])], 1)
    incomplete = {"step": np.zeros(()), "square_avg": np.zeros(4, np.float32)}
    with pytest.raises(ValueError, match="its state is incomplete"):
        cpu.step([group(rule, [ones.copy()], [ones], [incomplete])], 1)


@needs_native
def test_scalars_have_the_same_order_on_both_sides():
    assert tuple(cpu.native.RPROP_SCALARS.split()) == tuple(RpropRule().scalars())
    foreign, flags = cpu.coefficients(Rule())[0], cpu.coefficients(RpropRule())[1]
    with pytest.raises(ValueError, match="RPROP_SCALARS"):
        cpu.step([(foreign, flags, [np.ones(2)], [np.ones(2)], [state_of(RpropRule(), np.ones(2))], None)], 1)
