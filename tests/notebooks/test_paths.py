import numpy as np
import pytest
import torch

from rmsprop.notebooks.paths import WALKERS, Settings, walk
from rmsprop.notebooks.surfaces import SURFACES
from rmsprop.rule import Rule

VALLEY, NOISY = SURFACES["quadratic valley"], SURFACES["noisy bowl"]
OURS = [name for name in WALKERS if name.startswith("RMSprop")]


@pytest.mark.parametrize("name", WALKERS)
def test_every_walker_comes_down(name):
    path = walk(VALLEY, name, Settings(), 200)
    assert path.shape == (201, 2)
    np.testing.assert_array_equal(path[0], VALLEY.start)
    assert VALLEY.loss(*path[-1]) < 0.05


@pytest.mark.parametrize("name", OURS)
@pytest.mark.parametrize(
    "change", [{"lr": 0.01}, {"beta": 0.5}, {"epsilon": 1.0}, {"momentum": 0.5}, {"bias_correction": True}]
)
def test_every_slider_changes_a_walk_of_rmsprop(name, change):
    assert np.abs(walk(VALLEY, name, Settings(**change), 50) - walk(VALLEY, name, Settings(), 50)).max() > 1e-4


def test_centered_changes_the_dialects_that_are_not():
    for name in OURS:
        same = np.array_equal(
            walk(VALLEY, name, Settings(centered=True), 50), walk(VALLEY, name, Settings(momentum=0.0), 50)
        )
        assert same == (name == "RMSprop, graves")


def test_the_others_take_what_the_page_says_they_take():
    takes = {"SGD": {"sgd_lr", "momentum"}, "Rprop": {"lr"}, "Adam": {"lr"}}
    changes = {"lr": 0.01, "sgd_lr": 0.01, "momentum": 0.5, "beta": 0.5, "epsilon": 1.0}
    for name, options in takes.items():
        before = walk(VALLEY, name, Settings(), 50)
        for option, value in changes.items():
            moved = not np.array_equal(walk(VALLEY, name, Settings(**{option: value}), 50), before)
            assert moved == (option in options), (name, option)


@pytest.mark.parametrize(
    ("name", "peer", "options"),
    [
        ("RMSprop, torch", torch.optim.RMSprop, {"lr": 0.05, "alpha": 0.9, "eps": 1e-7, "momentum": 0.5}),
        ("SGD", torch.optim.SGD, {"lr": 0.02, "momentum": 0.5}),
        ("Adam", torch.optim.Adam, {"lr": 0.05}),
        ("Rprop", torch.optim.Rprop, {"lr": 0.05}),
    ],
)
def test_walks_are_those_of_torch(name, peer, options):
    point = torch.tensor(VALLEY.start, dtype=torch.float64, requires_grad=True)
    optimizer, places = peer([point], **options), [VALLEY.start]
    for _ in range(30):
        optimizer.zero_grad()
        VALLEY.loss(*point).backward()
        optimizer.step()
        places.append(point.detach().numpy().copy())
    np.testing.assert_allclose(walk(VALLEY, name, Settings(momentum=0.5), 30), places, rtol=1e-12, atol=1e-12)


def test_settings_begin_as_the_rule_does():
    rule = Rule()
    assert Settings()._replace(lr=rule.lr)[:6] == tuple(getattr(rule, name) for name in Settings._fields[:6])


def test_noise_is_the_seeds_and_the_same_for_all():
    np.testing.assert_array_equal(walk(NOISY, "SGD", Settings(), 20), walk(NOISY, "SGD", Settings(), 20))
    assert not np.array_equal(walk(NOISY, "SGD", Settings(), 20, seed=1), walk(NOISY, "SGD", Settings(), 20))
    first = walk(NOISY, "SGD", Settings(sgd_lr=1.0), 1)
    noise = NOISY.noise * np.random.default_rng(0).normal(size=2)
    np.testing.assert_allclose(first[0] - first[1], NOISY.gradient(first[0]) + noise)


def test_a_walk_that_diverges_ends_early():
    path = walk(VALLEY, "SGD", Settings(sgd_lr=0.1), 500)
    assert 2 < len(path) < 30
    assert np.isfinite(path).all()
