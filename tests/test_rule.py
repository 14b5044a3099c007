import math
from operator import truediv

import jax.numpy as jnp
import numpy as np
import pytest
import torch

from rmsprop import Rule, dialect
from rmsprop.rule import OPTIONS, OptionError, update
from tests.cases import RULES, gradients, parameter


def run(rule, p, grads, xp=np, start=None):
    """The trajectory of the rule's own text over whole arrays: parameters after every step, and the last state."""
    limits = {"tiny": float(np.finfo(str(p.dtype)[-7:].strip(".")).tiny)}
    limits["largest"] = float(np.finfo(str(p.dtype)[-7:].strip(".")).max)
    v = xp.zeros_like(p) + rule.initial_square if start is None else start
    m, b, path = xp.zeros_like(p), xp.zeros_like(p), []
    with np.errstate(all="ignore"):
        for t, g in enumerate(grads, 1):
            flags = rule.flags()
            p, move, v, m, b, used = update(
                p, g, v, m, b, **rule.scalars(t), **limits, **flags, sqrt=xp.sqrt, divide=truediv, where=xp.where
            )
            path.append(p)
    return path, {"v": v, "m": m, "b": b, "move": move, "used": used}


def denominator(mode, v, e):
    if mode == "inside":
        return math.sqrt(v + e)
    if mode == "outside":
        return math.sqrt(v) + e
    return max(math.sqrt(v), e) if mode == "floor" else math.sqrt(v + e) + e


def twin(r, p, grads):
    """A slow twin in Python floats that follows the papers' notation, one weight at a time."""
    v, m, second, b = r.initial_square, 0.0, r.initial_square, 0.0
    for t, grad in enumerate(grads, 1):
        g = -grad if r.maximize else grad
        if r.decay_mode == "coupled":
            g += r.weight_decay * p
        second = r.beta * second + (1 - r.beta) * g**2
        m = r.beta * m + (1 - r.beta) * g if r.centered else 0.0
        v = max(second - m**2, r.variance_floor * m**2 * (1 - r.beta**t if r.bias_correction else 1))
        if r.bias_correction:
            v /= 1 - r.beta**t
        d = denominator(r.epsilon_mode, v, r.epsilon)
        u = g / d if g else 0.0
        if r.clip:
            u = min(max(u, -r.clip), r.clip)
        mu, ahead = r.momentum, r.nesterov
        if not mu:
            move = r.lr * u
        elif r.momentum_form == "lr_outside":
            b = mu * b + u
            move = r.lr * (mu * b + u if ahead else b)
        elif r.momentum_form == "lr_inside":
            b = mu * b + r.lr * u
            move = mu * b + r.lr * u if ahead else b
        else:
            b = mu * b + (1 - mu) * u
            move = r.lr * (mu * b + (1 - mu) * u if ahead else b)
            if r.bias_correction:
                move /= 1 - mu ** (t + 1 if ahead else t)
        if r.decay_mode == "decoupled":
            p -= r.lr * r.weight_decay * p
        p -= move
        if r.clip_weights:
            p = min(max(p, -r.clip_weights), r.clip_weights)
    return p


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_update_follows_the_formulas(rule):
    rng = np.random.default_rng(0)
    p, grads = rng.normal(size=20), rng.normal(size=(60, 20)) * 10.0 ** rng.integers(-3, 3, size=20)
    grads[3, :5] = 0
    grads[:, 10] = 0.5  # steady: the variance goes to 0
    path, _ = run(rule, p, grads)
    expected = [twin(rule, x, column) for x, column in zip(p.tolist(), np.transpose(grads).tolist(), strict=True)]
    np.testing.assert_allclose(path[-1], expected, rtol=1e-9, atol=1e-13)


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
@pytest.mark.parametrize("library", ["torch", "jax"])
def test_one_text_serves_every_library(rule, library):
    p, grads = parameter(50, np.float32), gradients(50, np.float32)
    for g in grads:  # XLA rounds subnormal intermediate results to 0
        g[abs(g) < 1e-17] = 0
    path, state = run(rule, p, grads)
    xp, array = (torch, torch.from_numpy) if library == "torch" else (jnp, jnp.asarray)
    other, there = run(rule, array(p), [array(g) for g in grads], xp)
    # Overflowing squares aside, libraries differ by the rounding of fused operations only.
    for mine, theirs in zip([*path, *map(state.get, "vmb")], [*other, *map(there.get, "vmb")], strict=True):
        assert str(theirs.dtype).endswith("float32")
        np.testing.assert_allclose(np.asarray(theirs), mine, rtol=2e-5, atol=1e-6)


def test_defaults_are_the_tutorials():
    rule = Rule()
    assert (rule.lr, rule.beta, rule.epsilon, rule.epsilon_mode) == (0.001, 0.9, 1e-7, "inside")
    assert rule == Rule(0.001, 0.9, 1e-7)


NUMBERS = ("lr", "beta", "epsilon", "initial_square", "variance_floor", "momentum", "weight_decay")
BAD = [
    *[(name, bad) for name in (*NUMBERS, "clip", "clip_weights") for bad in (-1.0, math.nan, math.inf, True, "1", [1])],
    *[(name, None) for name in NUMBERS],
    *[(name, bad) for name in ("beta", "momentum") for bad in (1.0, 1.5)],
    *[(name, 0.0) for name in ("clip", "clip_weights")],
    *[(name, bad) for name in ("epsilon_mode", "momentum_form", "decay_mode", "nonfinite") for bad in ("x", None, 1)],
    *[(name, 1) for name in ("centered", "bias_correction", "nesterov", "maximize")],
    ("lr", np.array([0.1, 0.2])),
    ("lr", np.True_),
    ("lr", np.complex128(1 + 2j)),
    ("lr", 10**400),
    ("lr", np.array("0.1")),
    ("lr", np.ma.masked),
    ("nesterov", True),
    ("variance_floor", 0.1),
]


@pytest.mark.parametrize(("name", "value"), BAD, ids=lambda x: str(x)[:20])
def test_a_bad_value_is_named(name, value):
    with pytest.raises(OptionError) as caught:
        Rule(**{name: value})
    error = caught.value
    assert isinstance(error, ValueError)
    assert str(error).startswith(f"{name}=")
    assert repr(value) in str(error)
    assert f"expected {error.allowed}" in str(error)


def test_good_values_of_other_types_become_plain():
    rule = Rule(lr=np.float32(0.5), beta=np.array(0.25), momentum=0, centered=np.True_, clip=2)
    assert [type(x) for x in (rule.lr, rule.beta, rule.momentum, rule.centered, rule.clip)] == [
        *[float] * 3,
        bool,
        float,
    ]
    assert (rule.lr, rule.beta, rule.centered) == (0.5, 0.25, True)


def test_a_rule_cannot_change_but_can_be_replaced():
    rule = Rule()
    with pytest.raises(AttributeError):
        rule.lr = 1.0
    assert rule.replace(lr=1.0).lr == 1.0
    with pytest.raises(OptionError, match="beta=2"):
        rule.replace(beta=2)


def test_slots_follow_the_options():
    assert list(Rule().slots().items()) == [("v", "square_avg")]
    assert list(Rule(centered=True, momentum=0.5).slots().values()) == ["variance", "grad_avg", "momentum_buffer"]
    assert set(OPTIONS) == set(Rule.__dataclass_fields__)


@pytest.mark.parametrize("magnitude", [1e-4, 1.0, 1e4])
def test_centered_never_turns_negative_or_nan(magnitude):
    """v - m^2 in float32 is negative within some 1,200 steps of a nearly constant gradient."""
    rng = np.random.default_rng(0)
    g = (magnitude * rng.uniform(0.5, 2, size=512)).astype(np.float32)
    rule = dialect("torch", centered=True)
    path, state = run(rule, np.zeros_like(g), [g] * 3000)
    assert np.isfinite(path[-1]).all()
    assert (state["v"] >= 0).all()
    v = m = np.zeros_like(g)
    lowest = 0.0
    for _ in range(3000):
        v, m = np.float32(0.99) * v + np.float32(0.01) * g * g, np.float32(0.99) * m + np.float32(0.01) * g
        lowest = min(lowest, (v - m * m).min())
    assert lowest < 0  # the usual form, on the same gradients


def test_variance_floor_bounds_the_step():
    g = np.full(3, 5.0)
    rule = Rule(centered=True, epsilon=0.0, variance_floor=0.01, lr=1.0)
    path, _ = run(rule, np.zeros(3), [g] * 400)
    np.testing.assert_allclose(path[-2] - path[-1], 10.0)  # 1 / sqrt(0.01)


def test_zero_gradient_gives_zero_whatever_epsilon():
    path, state = run(Rule(epsilon=0.0, lr=1.0), np.ones(2), [np.array([0.0, 1e-200])])
    np.testing.assert_array_equal(path[0], 1.0)  # 1e-200 squared is 0: no number can normalise it
    np.testing.assert_array_equal(state["v"], 0.0)


def test_a_zero_gradient_leaves_a_weight_whose_state_is_nan():
    path, _ = run(Rule(), np.ones(1), [np.zeros(1)], start=np.array([np.nan]))
    assert path[0][0] == 1.0


def test_an_infinite_weight_with_a_zero_gradient_stays():
    path, state = run(Rule(momentum=0.9), np.array([-np.inf, 1.0]), [np.array([0.0, 1.0])] * 2)
    assert path[-1][0] == -np.inf
    assert state["v"][0] == 0
    assert path[-1][1] < 1


@pytest.mark.parametrize(("g", "v"), [(np.nan, 0.0), (1.0, np.nan), (np.nan, np.nan)])
def test_nan_passes_clip_and_floor(g, v):
    rule = Rule(clip=1.0, clip_weights=1.0, epsilon_mode="floor", epsilon=0.1)
    path, state = run(rule, np.ones(1), [np.array([g])], start=np.array([v]))
    assert np.isnan(path[0]).all()
    assert np.isnan(state["v"]).all()


def test_the_variance_is_accurate_where_it_is_small():
    """Relative to float64, with gradients that vary by 1e-4 of their size; v - m^2 in float32 has no digit right."""
    rng = np.random.default_rng(0)
    grads = list(1 + 1e-4 * rng.normal(size=(200, 64)))
    rule = Rule(centered=True, beta=0.9)
    _, exact = run(rule, np.zeros(64), grads)
    _, state = run(rule, np.zeros(64, np.float32), [g.astype(np.float32) for g in grads])
    assert np.median(abs(state["v"] / exact["v"] - 1)) < 1e-3


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_subnormal_state_becomes_zero(dtype):
    tiny = np.finfo(dtype).tiny
    rule = Rule(centered=True, momentum=0.5)
    start = np.array([tiny, 4 * tiny], dtype)
    _, state = run(rule, np.zeros(2, dtype), [np.zeros(2, dtype)], start=start)
    assert state["v"][0] == 0
    assert state["v"][1] == start[1] * dtype(0.9)


def test_skip_leaves_parameter_and_state_alone():
    rule = Rule(centered=True, momentum=0.9, weight_decay=0.5, decay_mode="decoupled", nonfinite="skip")
    good, bad = np.ones(4), np.array([np.nan, np.inf, 1e200, 1.0])
    before, state = run(rule, np.ones(4), [good])
    after, later = run(rule, np.ones(4), [good, bad])
    np.testing.assert_array_equal(later["used"], [False, False, False, True])
    np.testing.assert_array_equal(after[-1][:3], before[-1][:3])
    np.testing.assert_array_equal(later["move"][:3], 0.0)
    for slot in "vmb":
        np.testing.assert_array_equal(later[slot][:3], state[slot][:3])
        assert later[slot][3] != state[slot][3]


def test_the_first_step_has_length_lr_with_bias_correction():
    for rule in (Rule(1.0, 0.99, 0.0), Rule(1.0, 0.99, 0.0, bias_correction=True)):
        path, _ = run(rule, np.zeros(1), [np.ones(1)])
        np.testing.assert_allclose(-path[0], 1.0 if rule.bias_correction else 10.0)


def test_centered_and_corrected_starts_moderately():
    """Correcting v and m first and centering after divides by zero: optax's first step is 1,900 lr."""
    rule = dialect("optax", centered=True, bias_correction=True, lr=1.0)
    path, _ = run(rule, np.zeros(1), [np.ones(1)])
    np.testing.assert_allclose(-path[0], 1 / math.sqrt(0.9), rtol=1e-6)


def test_move_is_what_came_off_the_parameter():
    rule = RULES["decay decoupled"]
    p, g = parameter(30, np.float64), parameter(30, np.float64, 3)
    path, state = run(rule, p, [g])
    np.testing.assert_allclose(p - state["move"], path[0], rtol=1e-15)
