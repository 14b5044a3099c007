from math import sqrt

import numpy as np
import pytest

from rmsprop import DIALECTS, Rule, dialect, dialects
from rmsprop.numpy import RMSprop

#: Where one weight stands that starts at 1 and meets the gradients 2 and -1, with the dialect's own defaults.
#: Worked out by hand from each source; e.g. torch: v = .01*4 = .04, p = 1 - .01*2/.2 = .9,
#: v = .99*.04 + .01 = .0496, p = .9 + .01/sqrt(.0496) = .9449013.
TWO_STEPS = {
    "tutorial": 0.9983121421364023,
    "hinton": 0.9983121419013805,
    "graves": 0.9993333972622892,
    "torch": 0.9449013284905645,
    "tf1": 0.9991332404708346,
    "tf2": 0.9983121421839892,
    "tf2_momentum": 0.9954660925980069,
    "keras": 0.9983121421364023,
    "optax": 0.9983121419248827,
    "timm": 0.9913324047083458,
    "sb3": 0.9901481425252535,
    "mxnet": 0.9983121419296415,
    "mxnet_centered": 0.9951514514155543,
    "paddle": 0.9975691124250446,
    "mindspore": 0.9133240470834586,
    "mlx": 0.9944901328490565,
    "sonnet": 0.9983121419016157,
    "chainer": 0.9449013284905645,
    "burn": 0.9854908808993208,
    "lasagne": -0.6878557484070895,
    "blocks": -0.6878580986194085,
    "neon": 0.9951382365166629,
    "heavyball": 0.99908352786015,
    "modern": 0.9896083008943992,
}


def walk(rule, *grads, lrs=None):
    p = np.ones(1)
    optimizer = RMSprop([p], rule)
    for i, g in enumerate(grads):
        if lrs:
            optimizer.lr = lrs[i]
        optimizer.step([np.array([g])])
    return p[0]


@pytest.mark.parametrize("name", DIALECTS)
def test_two_steps_by_hand(name):
    np.testing.assert_allclose(walk(dialect(name), 2.0, -1.0), TWO_STEPS[name], rtol=1e-13)


# With momentum .5 and lr .1 then .01, gradients 2 and -1; r is the root the dialect divides by.
OUTSIDE, INSIDE = (
    ("torch", "sb3", "chainer", "burn"),
    ("tf1", "tf2", "tf2_momentum", "keras", "optax", "timm", "paddle", "sonnet"),
)


@pytest.mark.parametrize("name", OUTSIDE + INSIDE)
def test_the_learning_rate_sits_where_the_source_has_it(name):
    rule = dialect(name, momentum=0.5)
    a, e, v = rule.beta, rule.epsilon, rule.initial_square
    root = (lambda v: sqrt(v) + e) if rule.epsilon_mode == "outside" else (lambda v: sqrt(v + e))
    v1 = a * v + (1 - a) * 4
    v2 = a * v1 + (1 - a) * 1
    u1, u2 = 2 / root(v1), -1 / root(v2)
    carried = 0.01 if name in OUTSIDE else 0.1  # b = mu b + u; p -= lr b, or b = mu b + lr u; p -= b
    expected = 1 - 0.1 * u1 - (carried * 0.5 * u1 + 0.01 * u2)
    np.testing.assert_allclose(walk(rule, 2.0, -1.0, lrs=(0.1, 0.01)), expected, rtol=1e-12)


@pytest.mark.parametrize("name", ["torch", "timm", "sb3", "keras", "heavyball"])
def test_weight_decay_is_the_sources(name):
    rule = dialect(name, lr=0.1, weight_decay=0.5)
    unchanged = rule.replace(weight_decay=0.0)
    if name in ("keras", "heavyball"):  # p -= p wd lr, the gradient untouched
        assert rule.decay_mode == "decoupled"
        np.testing.assert_allclose(walk(rule, 2.0), walk(unchanged, 2.0) - 0.1 * 0.5, rtol=1e-12)
    else:  # g += wd p
        np.testing.assert_allclose(walk(rule, 2.0), walk(unchanged, 2.5), rtol=1e-12)


def test_overrides_win_and_are_checked():
    assert dialect("torch", lr=0.5, momentum=0.9) == Rule(0.5, 0.99, 1e-8, "outside", momentum=0.9)
    assert dialect("torch") == dialects.TORCH == DIALECTS["torch"].rule
    with pytest.raises(ValueError, match="lr=-1"):
        dialect("torch", lr=-1)
    with pytest.raises(TypeError, match=r"'alpha' is not an option of Rule; it has lr, beta"):
        dialect("torch", alpha=0.9)
    with pytest.raises(TypeError, match="did you mean 'momentum'"):
        dialect("torch", momentun=0.9)
    with pytest.raises(ValueError, match=r"dialect='kers': expected one of \('tutorial'.*did you mean 'keras'"):
        dialect("kers")


def test_every_row_names_its_source():
    assert all(row.source for row in DIALECTS.values())
    assert {
        "hinton",
        "graves",
        "torch",
        "tf1",
        "tf2",
        "keras",
        "optax",
        "timm",
        "sb3",
        "mxnet",
        "paddle",
        "mlx",
    } <= set(DIALECTS)
