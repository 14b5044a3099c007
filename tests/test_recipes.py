import pickle
from dataclasses import FrozenInstanceError, fields
from math import floor, sqrt

import numpy as np
import pytest
import torch

import rmsprop
import rmsprop.jax
import rmsprop.torch
from rmsprop import DIALECTS, Rule, dialect, recipes
from rmsprop.recipes import RECIPES, Recipe, Schedule
from rmsprop.rule import OPTIONS
from rmsprop.torch.options import VALUES, known

rng = np.random.default_rng(0)
START = rng.normal(size=20)
GRADS = [10.0 ** rng.integers(-4, 3) * rng.normal(size=20) for _ in range(30)]
#: A schedule, for what the position of lr does.
FACTORS = [1.0] * 10 + [0.3] * 20


def weight():
    return torch.nn.Parameter(torch.tensor(START))


def ours(recipe):
    """Where the recipe takes START in the NumPy front end."""
    p = START.copy()
    optimizer = rmsprop.RMSprop([p], **recipe)
    for g, factor in zip(GRADS, FACTORS, strict=True):
        optimizer.lr = recipe.rule.lr * factor
        optimizer.step([g])
    return p


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_is_options_of_every_front_end(name):
    recipe = getattr(recipes, name)
    assert rmsprop.RMSprop([START.copy()], **recipe).rule == recipe.rule
    group = rmsprop.torch.RMSprop([weight()], **recipe).param_groups[0]
    assert known(VALUES(group)).rule == recipe.rule
    assert dialect(recipe) == dialect(recipe["dialect"]) == recipe.rule


@pytest.mark.parametrize("name", RECIPES)
def test_and_of_jax(name):
    start, grad = START.astype(np.float32), GRADS[0].astype(np.float32)
    transformation = rmsprop.jax.rmsprop(None, **RECIPES[name])
    update, _ = transformation.update(grad, transformation.init(start), start)
    p = start.copy()
    rmsprop.RMSprop([p], **RECIPES[name]).step([grad])
    np.testing.assert_allclose(start + update, p, rtol=1e-6, atol=1e-6)


def test_what_is_given_beside_a_recipe_wins():
    for optimizer in (
        rmsprop.RMSprop([START.copy()], lr=3e-4, **recipes.dqn),
        rmsprop.RMSprop([START.copy()], **recipes.dqn, lr=3e-4),
    ):
        assert optimizer.rule == recipes.dqn.rule.replace(lr=3e-4)
    group = rmsprop.torch.RMSprop([weight()], lr=0.01, eps=0.02, centered=False, **recipes.dqn).param_groups[0]
    assert known(VALUES(group)).rule == Rule(0.01, 0.95, 0.02)


def test_minimize_takes_recipes():
    result = rmsprop.minimize(lambda x: (x @ x, 2 * x), np.ones(3), jac=True, maxiter=50, **recipes.graves_rnn)
    assert result.fun < 3


@pytest.mark.parametrize(
    "name", ["inception_v3", "mobilenet_v2", "mobilenet_v3", "mnasnet", "efficientnet", "a2c", "impala"]
)
def test_tensorflow_1(name):
    """tf.train.RMSPropOptimizer(lr, decay, momentum, epsilon) and, where they have it, L2 in the loss."""
    lr, decay, momentum, epsilon, l2 = {
        "inception_v3": (0.045, 0.9, 0.9, 1.0, 4e-5),
        "mobilenet_v2": (0.045, 0.9, 0.9, 1.0, 4e-5),
        "mobilenet_v3": (0.1, 0.9, 0.9, 1e-10, 1e-5),
        "mnasnet": (0.016 * 1024 / 256, 0.9, 0.9, 0.001, 1e-5),
        "efficientnet": (0.016 * 4096 / 256, 0.9, 0.9, 0.001, 1e-5),
        "a2c": (7e-4, 0.99, 0.0, 1e-5, 0.0),
        "impala": (0.00048, 0.99, 0.0, 0.1, 0.0),
    }[name]
    p, ms, mom = START.copy(), np.ones(20), np.zeros(20)
    for grad, factor in zip(GRADS, FACTORS, strict=True):
        g = grad + l2 * p
        ms += (g * g - ms) * (1 - decay)
        mom = mom * momentum + g * (lr * factor) / np.sqrt(ms + epsilon)
        p = p - mom
    np.testing.assert_allclose(ours(RECIPES[name]), p, rtol=1e-11)


@pytest.mark.parametrize(("name", "ms", "epsilon"), [("dqn", 0.0, 0.01), ("dqn_dopamine", 1.0, 1e-5)])
def test_dqn(name, ms, epsilon):
    """NeuralQLearner.lua (its dw climbs), and TensorFlow's centered form, which starts elsewhere."""
    w, g, g2 = START.copy(), np.zeros(20), np.full(20, ms)
    for grad, factor in zip(GRADS, FACTORS, strict=True):
        dw = -grad
        g, g2 = 0.95 * g + 0.05 * dw, 0.95 * g2 + 0.05 * dw * dw
        w = w + 0.00025 * factor * dw / np.sqrt(g2 - g * g + epsilon)
    np.testing.assert_allclose(ours(RECIPES[name]), w, rtol=1e-8)


def test_a3c():
    """The paper's equations: g = a g + (1 - a) d^2, step lr d / sqrt(g + e)."""
    p, g = START.copy(), np.zeros(20)
    for d, factor in zip(GRADS, FACTORS, strict=True):
        g = 0.99 * g + 0.01 * d * d
        p = p - 7e-4 * factor * d / np.sqrt(g + 0.1)
    np.testing.assert_allclose(ours(recipes.a3c), p, rtol=1e-11)


def test_graves():
    """Equations 38 to 45, one weight at a time."""
    p = START.copy()
    for i in range(20):
        n = m = step = 0.0
        for grad, factor in zip(GRADS, FACTORS, strict=True):
            n, m = 0.95 * n + 0.05 * grad[i] ** 2, 0.95 * m + 0.05 * grad[i]
            step = 0.9 * step - 1e-4 * factor * grad[i] / sqrt(n - m * m + 1e-4)
            p[i] += step
    np.testing.assert_allclose(ours(recipes.graves_rnn), p, rtol=1e-9)


@pytest.mark.parametrize(
    ("name", "call"),
    [
        (
            "mobilenet_v3_torchvision",
            {"lr": 0.064, "momentum": 0.9, "weight_decay": 0.00001, "eps": 0.0316, "alpha": 0.9},
        ),
        ("torchbeast", {"lr": 0.00048, "momentum": 0, "eps": 0.01, "alpha": 0.99}),
        ("qmix", {"lr": 0.0005, "alpha": 0.99, "eps": 0.00001}),
        ("wgan", {"lr": 0.00005}),
    ],
)
def test_torch(name, call):
    """torch's optimizer, called as the source calls it; WGAN's clamp comes after the step, as in the paper."""
    w = weight()
    theirs = torch.optim.RMSprop([w], **call)
    for g, factor in zip(GRADS, FACTORS, strict=True):
        theirs.param_groups[0]["lr"] = call["lr"] * factor
        w.grad = torch.tensor(g)
        theirs.step()
        if name == "wgan":
            w.data.clamp_(-0.01, 0.01)
    np.testing.assert_allclose(ours(RECIPES[name]), w.detach().numpy(), rtol=1e-10)


def efficientnet_lr(step, steps_per_epoch):
    """build_learning_rate in efficientnet/utils.py: a staircase, and a warm-up in its place."""
    decayed = 0.256 * 0.97 ** floor(step / (steps_per_epoch * 2.4))
    warmup_steps = int(5 * steps_per_epoch)
    return 0.256 * step / warmup_steps if step < warmup_steps else decayed


@pytest.mark.parametrize("steps_per_epoch", [10, 313])
def test_the_schedule_of_efficientnet(steps_per_epoch):
    recipe = recipes.efficientnet
    for step in range(0, 20 * steps_per_epoch, 7):
        expected = efficientnet_lr(step, steps_per_epoch)
        np.testing.assert_allclose(recipe.rule.lr * recipe.schedule(step / steps_per_epoch), expected, rtol=1e-12)


def test_schedules_are_torchs_and_linear_ones_end_at_0():
    optimizer = torch.optim.SGD([weight()], lr=0.064)
    step_lr = torch.optim.lr_scheduler.StepLR(optimizer, step_size=2, gamma=0.973)
    for epoch in range(11):
        recipe = recipes.mobilenet_v3_torchvision
        np.testing.assert_allclose(recipe.rule.lr * recipe.schedule(epoch), optimizer.param_groups[0]["lr"], rtol=1e-12)
        optimizer.step()
        step_lr.step()
    for name in ("a3c", "a2c", "impala", "torchbeast"):
        schedule = RECIPES[name].schedule
        assert schedule.unit == "run"
        assert [schedule(part) for part in (0, 0.25, 1, 1.5)] == [1.0, 0.75, 0.0, 0.0]
    assert Schedule()(1e9) == 1.0


def test_a_wrong_name_is_told_the_right_one():
    with pytest.raises(
        AttributeError, match=r"no recipe 'dqm': expected one of \('inception_v3'.*did you mean 'dqn'\?"
    ):
        _ = recipes.dqm
    with pytest.raises(KeyError, match="lr"):
        _ = recipes.dqn["lr"]


def test_recipes_are_all_there_and_documented():
    assert {"mobilenet_v2", "mobilenet_v3", "mnasnet", "efficientnet", "inception_v3", "dqn", "a3c", "a2c"} <= set(
        RECIPES
    )
    assert {"impala", "torchbeast", "wgan", "graves_rnn"} <= set(RECIPES)
    known_names = {*OPTIONS, *(field.name for field in fields(Recipe))}
    for name, recipe in RECIPES.items():
        assert recipe is getattr(recipes, name)
        assert recipe.source
        assert known_names.issuperset(recipe.unverified), name
        assert recipe.note or not recipe.unverified


def test_a_recipe_is_frozen_and_travels():
    with pytest.raises(FrozenInstanceError):
        recipes.dqn.rule = Rule()
    assert pickle.loads(pickle.dumps(recipes.dqn)) == recipes.dqn


def test_dialect_takes_names_rules_and_what_has_one():
    rule = Rule(lr=0.5)
    assert dialect(rule) is not None
    assert dialect(rule) == rule
    assert dialect(rule, beta=0.5) == Rule(0.5, 0.5)
    assert dialect(DIALECTS["keras"]) == dialect("keras")
    for wrong in (None, 3, ["torch"], recipes):
        with pytest.raises(ValueError, match=r"dialect=.*: expected one of .*, or a Rule"):
            dialect(wrong)
    for front_end in (
        lambda: rmsprop.RMSprop([START.copy()], dialect=rule),
        lambda: rmsprop.RMSprop([START.copy()], rule),
    ):
        assert front_end().rule == rule
    group = rmsprop.torch.RMSprop([weight()], dialect=rule, momentum=0.9).param_groups[0]
    assert known(VALUES(group)).rule == Rule(lr=0.5, momentum=0.9)
    with pytest.raises(ValueError, match="rule and dialect="):
        rmsprop.RMSprop([START.copy()], rule, **recipes.dqn)
