"""The text of Rprop against the papers, one weight at a time, and against optax; torch has files of its own."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal

from rmsprop.rprop import DIALECTS, OPTIONS, VARIANTS, RpropRule, update
from rmsprop.rule import OptionError
from tests.cases import special


def run(rule, p, grads, losses=None, xp=np):
    """Parameters after every step of the rule's own text, and the last step sizes and previous gradients."""
    s, q, path, previous = xp.zeros_like(p) + rule.lr, xp.zeros_like(p), [], None
    with np.errstate(all="ignore"):
        for g, loss in zip(grads, losses or [0.0] * len(grads), strict=True):
            now, previous = rule.after(loss, previous), loss
            p, move, s, q = update(p, g, s, q, **now.scalars(), **now.flags(), where=xp.where)
            path.append(p)
    return path, {"s": s, "q": q, "move": move}


def paper(rule, w, grads, losses):
    """Igel and Hüsken 2003, one weight in Python floats: their notation, a branch for every case of every algorithm."""
    (eta_minus, eta_plus), (delta_min, delta_max) = rule.etas, rule.step_sizes
    delta, before, dw, path = rule.lr, 0.0, 0.0, []
    sign = lambda x: math.copysign(1.0, x) if x else 0.0  # noqa: E731
    for t, gradient in enumerate(grads):
        g = -gradient if rule.maximize else gradient
        rose = t > 0 and (losses[t] > losses[t - 1]) != (rule.maximize and losses[t] != losses[t - 1])
        product = before * g
        if product > 0:
            delta = min(delta * eta_plus, delta_max)
            dw = -sign(g) * delta
        elif product < 0:
            delta = max(delta * eta_minus, delta_min)
            if rule.variant == "rprop-":
                dw = -sign(g) * delta
            elif rule.variant == "irprop-":
                g = 0.0
                dw = 0.0
            elif rule.variant == "rprop+" or rose:
                dw = -dw
                g = 0.0
            else:
                dw = 0.0
                g = 0.0
        else:
            dw = -sign(g) * delta
        w += dw
        before = g
        path.append(w)
    return path


def bowl(n=30, steps=60, seed=0):
    """Gradients of a noisy bowl along a path: signs that stay, signs that change, zeros; and losses up and down."""
    rng = np.random.default_rng(seed)
    grads = rng.normal(size=(steps, n)) + np.sin(np.arange(steps))[:, None] * rng.uniform(0, 3, size=n)
    grads[rng.random(grads.shape) < 0.1] = 0
    return rng.normal(size=n), grads, rng.normal(size=steps).round(1).tolist()


SETTINGS = [
    {},
    {"lr": 0.1, "etas": (0.3, 1.9)},
    {"etas": (0.7, 1.5), "step_sizes": (0.004, 0.03)},
    {"maximize": True},
]


@pytest.mark.parametrize("options", SETTINGS, ids=str)
@pytest.mark.parametrize("variant", VARIANTS)
def test_follows_the_paper(variant, options):
    rule = RpropRule(variant=variant, **options)
    p, grads, losses = bowl()
    path, _ = run(rule, p, grads, losses)
    expected = [paper(rule, w, column, losses) for w, column in zip(p.tolist(), grads.T.tolist(), strict=True)]
    assert_allclose(path, np.transpose(expected), rtol=1e-12, atol=1e-13)


def test_variants_differ():
    p, grads, losses = bowl()
    ends = {variant: run(RpropRule(variant=variant), p, grads, losses)[0][-1] for variant in VARIANTS}
    assert len({end.tobytes() for end in ends.values()}) == len(VARIANTS)


def test_a_step_taken_back_is_the_last_one():
    """Not this step's size, which has shrunk."""
    rule = RpropRule(lr=1.0, variant="rprop+")
    path, last = run(rule, np.zeros(1), np.array([[-1.0], [-1.0], [1.0], [1.0]]))
    assert_allclose(np.ravel(path), [1.0, 2.2, 1.0, 0.4])
    assert_allclose(last["s"], 0.6)


@pytest.mark.parametrize("xp", [np, torch, jnp], ids=["numpy", "torch", "jax"])
@pytest.mark.parametrize("options", [*({"variant": v} for v in VARIANTS), {"dialect": "optax"}], ids=str)
def test_one_text_for_every_library(options, xp):
    rule = RpropRule(**options)
    p, grads, losses = bowl()
    p, grads = p.astype("f4"), grads.astype("f4")
    expected, state = run(rule, p, grads, losses)
    path, other = run(rule, xp.asarray(p), [xp.asarray(g) for g in grads], losses, xp)
    assert_array_equal(np.asarray(path[-1]), expected[-1], strict=True)
    for letter, value in state.items():
        assert_array_equal(np.asarray(other[letter]), value, strict=True)


def optax_run(p, grads, **options):
    solver = optax.rprop(**options)
    state, path = solver.init(p), []
    for g in grads:
        updates, state = solver.update(g, state, p)
        p = optax.apply_updates(p, updates)
        path.append(p)
    return path, state[0]


def drawn(seed, dtype, steps=40, n=50):
    """Gradients of random sizes and signs that often stay, with zeros and sometimes what is not finite."""
    rng = np.random.default_rng(seed)
    signs = np.cumprod(rng.choice([1, 1, 1, -1], size=(steps, n)), axis=0)
    grads = (signs * 10.0 ** rng.uniform(-12, 12, size=(steps, n))).astype(dtype)
    grads[rng.random(grads.shape) < 0.05] = 0
    if seed % 3 == 0:
        awkward = special(dtype)[-3:]
        places = rng.random(grads.shape) < 0.01
        grads[places] = rng.choice(awkward, size=places.sum())
    p = rng.normal(size=n).astype(dtype)
    options = {"lr": 10 ** rng.uniform(-8, 3), "etas": (rng.uniform(0.1, 0.95), rng.uniform(1.02, 2.0))}
    least = 10 ** rng.uniform(-7, -2)
    return p, grads, {**options, "step_sizes": (least, least * 10 ** rng.uniform(0, 6))}


@pytest.mark.parametrize("dtype", ["f4", "f8"])
@pytest.mark.parametrize("seed", range(30))
def test_equals_optax_bit_for_bit(seed, dtype):
    p, grads, options = drawn(seed, dtype)
    names = ("eta_minus", "eta_plus", "min_step_size", "max_step_size")
    theirs = dict(zip(names, (*options["etas"], *options["step_sizes"]), strict=True))
    with jax.enable_x64(dtype == "f8"):
        path, state = optax_run(jnp.asarray(p), jnp.asarray(grads), learning_rate=options["lr"], **theirs)
    ours, last = run(RpropRule(dialect="optax", **options), p, grads)
    assert_array_equal(ours, np.stack(path), strict=True)
    assert_array_equal(last["s"], np.asarray(state.step_sizes), strict=True)
    assert_array_equal(last["q"], np.asarray(state.prev_updates), strict=True)


def test_tiny_gradients_vanish_from_torchs_product_only():
    """1e-30 squared is 0 in float32, but 1e-30 times a step size is not."""
    grads = np.full((3, 1), 1e-30, "f4")
    ends = {dialect: run(RpropRule(dialect=dialect), np.zeros(1, "f4"), grads)[1]["s"] for dialect in DIALECTS}
    assert_allclose(ends["torch"], 0.01)
    assert_allclose(ends["optax"], 0.01 * 1.2**2, 1e-6)


def test_nan_is_a_gradient_of_zero_for_torch_and_reaches_the_parameter_for_optax():
    grads = np.array([[1.0], [np.nan], [1.0]])
    path, _ = run(RpropRule(), np.zeros(1), grads)
    assert_allclose(np.ravel(path), [-0.01, -0.01, -0.02])
    path, _ = run(RpropRule(dialect="optax"), np.zeros(1), grads)
    assert np.isnan(np.ravel(path)).tolist() == [False, False, True]


def test_optax_is_one_step_late():
    grads = np.array([[1.0], [1.0], [1.0], [-1.0], [1.0]])
    path, _ = run(RpropRule(0.1, dialect="optax"), np.zeros(1), grads)
    assert_allclose(-np.diff(np.ravel(path), prepend=0.0), [0, 0.1, 0.12, 0, 0])
    path, _ = run(RpropRule(0.1), np.zeros(1), grads)
    assert_allclose(-np.diff(np.ravel(path), prepend=0.0), [0.1, 0.12, 0.144, 0, 0.072])


def test_irprop_plus_becomes_another_at_a_given_loss():
    rule = RpropRule(variant="irprop+", lr=0.5)
    assert [rule.after(*losses).variant for losses in ((1, None), (2, 1), (1, 1), (0, 1))] == [
        "irprop-",
        "rprop+",
        "irprop-",
        "irprop-",
    ]
    up = rule.replace(maximize=True)
    assert [up.after(*losses).variant for losses in ((2, 1), (0, 1))] == ["irprop-", "rprop+"]
    assert rule.after(2, 1).lr == 0.5
    assert RpropRule().after(2, 1) == RpropRule()
    with pytest.raises(OptionError, match=r"variant='irprop\+'"):
        rule.flags()


REFUSED = [
    ("lr", -1.0, "a finite number of at least 0"),
    ("lr", math.nan, "a finite number"),
    ("lr", True, "a finite number"),
    ("etas", (0.5, 1.0), "0 < shrink < 1 < grow"),
    ("etas", (0.0, 1.2), "0 < shrink < 1 < grow"),
    ("etas", (0.5, math.inf), "0 < shrink < 1 < grow"),
    ("etas", (0.5, math.nan), "0 < shrink < 1 < grow"),
    ("etas", 0.5, "two numbers"),
    ("etas", (0.5, 1.2, 2.0), "two numbers"),
    ("step_sizes", (1.0, 0.5), "0 <= least <= most"),
    ("step_sizes", (-1.0, 0.5), "0 <= least <= most"),
    ("step_sizes", (math.inf, math.inf), "0 <= least <= most"),
    ("step_sizes", (None, 1.0), "0 <= least <= most"),
    ("variant", "Rprop", "one of"),
    ("dialect", "keras", "one of"),
    ("maximize", 1, "True or False"),
]


@pytest.mark.parametrize(("name", "value", "allowed"), REFUSED, ids=str)
def test_options_outside_their_range(name, value, allowed):
    with pytest.raises(OptionError) as error:
        RpropRule(**{name: value})
    assert str(error.value).startswith(f"{name}={value!r}: expected ")
    assert allowed in str(error.value)


def test_optax_has_one_variant():
    with pytest.raises(OptionError, match=r"^variant='rprop\+': expected 'irprop-' with dialect='optax'"):
        RpropRule(variant="rprop+", dialect="optax")


def test_options_are_plain_numbers():
    rule = RpropRule(np.float32(0.5), [np.float64(0.5), 2], (0, math.inf), maximize=np.True_)
    assert rule == RpropRule(0.5, (0.5, 2.0), (0.0, math.inf), maximize=True)
    assert {type(x) for x in (rule.lr, *rule.etas, *rule.step_sizes)} == {float}
    assert OPTIONS == ("lr", "etas", "step_sizes", "variant", "dialect", "maximize")
    assert rule.replace(lr=2).lr == 2.0
