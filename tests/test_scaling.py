from functools import cache

import numpy as np
import pytest

from rmsprop import DIALECTS, Rule, dialect, recipes, scaled_for_batch
from rmsprop.numpy import RMSprop
from rmsprop.rule import OptionError

K, STEPS, RUNS = 4, 1600, 6000
#: Rules to scale. Epsilon is of the size of the noise, so that where it goes can be seen.
BASE = Rule(lr=0.01, beta=0.998, epsilon=0.5, epsilon_mode="outside", initial_square=1.0)
RULES = {
    "outside": BASE,
    "inside": BASE.replace(epsilon_mode="inside"),
    "floor": BASE.replace(epsilon_mode="floor", epsilon=1.5),
    "warming up": BASE.replace(epsilon=0.1, initial_square=9.0),
    "corrected": BASE.replace(initial_square=0.0, bias_correction=True),
    "centered": BASE.replace(centered=True),
    "a floor under the variance": BASE.replace(centered=True, epsilon=0.0, variance_floor=1000.0),
    "clip": BASE.replace(epsilon=0.0, clip=1.0),
    "clip weights": BASE.replace(clip_weights=0.7),
    "coupled decay": BASE.replace(weight_decay=0.05),
    "decoupled decay": BASE.replace(weight_decay=0.08, decay_mode="decoupled"),
    "momentum": BASE.replace(lr=5e-4, momentum=0.95),
    "momentum inside": BASE.replace(lr=5e-4, momentum=0.95, momentum_form="lr_inside"),
    "momentum ema": BASE.replace(momentum=0.99, momentum_form="ema"),
    "nesterov": BASE.replace(lr=5e-4, momentum=0.95, nesterov=True),
    "momentum, decoupled decay": BASE.replace(lr=5e-4, momentum=0.95, weight_decay=1.6, decay_mode="decoupled"),
}


@cache
def trained(rule, batch, steps=STEPS, seed=0):
    """Mean and standard deviation, half way and at the end, of weights in a bowl whose gradients are mostly noise."""
    rng = np.random.default_rng(seed)
    p = np.ones(RUNS)
    optimizer, seen = RMSprop([p], rule), []
    for t in range(1, steps + 1):
        optimizer.step([0.08 * p + rng.normal(size=RUNS) / np.sqrt(batch)])
        if t in (steps // 2, steps):
            seen += [p.mean(), p.std()]
    return np.array(seen)


def apart(rule, scaled):
    """How far training with K times the batch ends from the first, in units of what chance allows (see the test)."""
    first, second = trained(rule, 1), trained(scaled, K, STEPS // K, seed=1)
    chance = np.sqrt(2 / RUNS) * first[[1, 1, 3, 3]]
    return np.abs(first - second).max() / (4 * chance.max() + 0.004)


@pytest.mark.parametrize("name", RULES)
def test_a_scaled_rule_trains_alike_in_fewer_steps(name):
    """Within four standard errors, and 0.004 for what a longer step rounds off."""
    assert apart(RULES[name], scaled_for_batch(RULES[name], K)) < 1


@pytest.mark.parametrize("name", RULES)
def test_an_unscaled_rule_does_not(name):
    assert apart(RULES[name], RULES[name]) > 10
    if name != "floor":  # under a floor RMSprop is SGD, whose rule is the linear one
        assert apart(RULES[name], RULES[name].replace(lr=K * RULES[name].lr)) > 1.2


@pytest.mark.parametrize(
    ("name", "option", "factor"),
    [
        ("outside", "lr", K**0.5),
        ("outside", "epsilon", K**0.5),
        ("outside", "epsilon", K**-0.5),
        ("inside", "epsilon", K),
        ("inside", "epsilon", K**0.5),
        ("floor", "epsilon", K**0.5),
        ("warming up", "initial_square", K),
        ("a floor under the variance", "variance_floor", K),
        ("decoupled decay", "weight_decay", K**-0.5),
        ("momentum", "lr", 1 / K),
        ("momentum, decoupled decay", "weight_decay", K**0.5),
    ],
)
def test_every_factor_is_needed(name, option, factor):
    scaled = scaled_for_batch(RULES[name], K)
    assert apart(RULES[name], scaled.replace(**{option: getattr(scaled, option) * factor})) > 1.2


def test_the_averages_remember_as_many_examples():
    warm = scaled_for_batch(RULES["warming up"], K)
    assert apart(RULES["warming up"], warm.replace(beta=0.998)) > 1.2
    heavy = scaled_for_batch(RULES["momentum ema"], K)
    assert apart(RULES["momentum ema"], heavy.replace(momentum=0.99)) > 1.2


def test_the_numbers():
    rule = Rule(lr=0.1, beta=0.99, epsilon=1e-4, initial_square=1.0, momentum=0.9, weight_decay=0.1, clip=2.0)
    scaled = scaled_for_batch(rule, 4)
    assert scaled.replace(beta=0.96, momentum=0.6) == rule.replace(
        lr=0.8, beta=0.96, epsilon=2.5e-5, initial_square=0.25, momentum=0.6
    )
    np.testing.assert_allclose([scaled.beta, scaled.momentum], [0.96, 0.6], rtol=1e-14)
    for mode in ("outside", "floor"):
        assert scaled_for_batch(rule.replace(epsilon_mode=mode), 4).epsilon == 5e-5
    assert scaled_for_batch(Rule(epsilon=0.0, epsilon_mode="both"), 4).lr == 0.002


@pytest.mark.parametrize("name", sorted(DIALECTS.keys() - {"neon"}))
def test_there_and_back_again(name):
    rule = dialect(name, weight_decay=0.1)
    there = scaled_for_batch(rule, 0.25)
    back = scaled_for_batch(there, 4)
    assert there.lr < rule.lr
    for option in ("lr", "beta", "epsilon", "initial_square", "momentum", "weight_decay"):
        np.testing.assert_allclose(getattr(back, option), getattr(rule, option), rtol=1e-12, err_msg=option)


def test_the_forms_of_momentum_stay_the_same_rule():
    outside = Rule(lr=0.01, momentum=0.9)
    ema = Rule(lr=0.1, momentum=0.9, momentum_form="ema")
    scaled, same = scaled_for_batch(outside, 5), scaled_for_batch(ema, 5)
    np.testing.assert_allclose(scaled.lr / (1 - scaled.momentum), same.lr, rtol=1e-12)
    assert scaled.momentum == same.momentum


def test_names_and_recipes_are_rules_too():
    assert scaled_for_batch("torch", 4) == scaled_for_batch(dialect("torch"), 4)
    assert scaled_for_batch(recipes.efficientnet, 1 / 16).initial_square == 16


@pytest.mark.parametrize("k", [0, -1, float("nan"), float("inf"), True, "4", None, [4]])
def test_k_is_a_number_above_0(k):
    with pytest.raises(OptionError, match=r"k=.*: expected a finite number above 0"):
        scaled_for_batch(Rule(), k)


def test_what_cannot_be_scaled_is_refused_by_name():
    with pytest.raises(OptionError, match=r"k=11\.0: expected at most 10, for beta=0\.9"):
        scaled_for_batch(Rule(), 11)
    with pytest.raises(OptionError, match=r"k=30\.0: expected at most 20, for momentum=0\.95"):
        scaled_for_batch(Rule(beta=0.99, momentum=0.95), 30)
    with pytest.raises(OptionError, match=r"epsilon_mode='both'.*two places"):
        scaled_for_batch("neon", 2)
    with pytest.raises(ValueError, match="did you mean 'keras'"):
        scaled_for_batch("kers", 2)


@pytest.mark.parametrize("beta", [0.9, 0.95, 0.99, 0.999])
def test_the_largest_k_allowed_is_allowed(beta):
    assert scaled_for_batch(Rule(beta=beta), 1 / (1 - beta)).beta < 1e-12
    assert scaled_for_batch(Rule(beta=beta), round(1 / (1 - beta))).beta < 1e-12
