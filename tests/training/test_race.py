import numpy as np
import pytest
import torch

import rmsprop.torch
from rmsprop.training.race import optimizer_for, race
from tests.training.test_loop import DATA, bits, fresh


def test_the_run_is_left_alone():
    state, settings = fresh()
    before = bits(state)
    times = race(state.network, DATA, settings, seconds=0.01)
    for a, b in zip(bits(state), before, strict=True):
        np.testing.assert_array_equal(a, b)
    assert all(p.grad is None for p in state.network.parameters())
    assert times.keys() == {"rmsprop", "torch.optim.RMSprop"}
    assert all(0 < us < 1e6 for us in times.values())


@pytest.mark.parametrize("options", [{}, {"dialect": "graves"}, {"dialect": "torch", "lr": 0.5, "momentum": 0.3}])
def test_the_optimizer_has_the_runs_rule(options):
    state, settings = fresh(**options)
    optimizer = optimizer_for(state.network, settings)
    group, rule = optimizer.param_groups[0], settings.rule
    assert isinstance(optimizer, rmsprop.torch.RMSprop)
    assert isinstance(optimizer, torch.optim.Optimizer)
    for theirs, ours in {"lr": "lr", "alpha": "beta", "eps": "epsilon"}.items():
        assert group[theirs] == getattr(rule, ours)
    for name in ("momentum", "centered", "epsilon_mode", "momentum_form", "initial_square", "clip", "bias_correction"):
        assert group[name] == getattr(rule, name), name
