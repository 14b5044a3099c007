"""Gains against their formula in NumPy, on top of RMSprop's own formula."""

import numpy as np
import pytest
import torch

from rmsprop.comparing.gains import Gains


def by_formula(w, grads, lr, low, high):
    v, gain, last = np.zeros_like(w), np.ones_like(w), np.zeros_like(w)
    for g in grads:
        v = 0.99 * v + 0.01 * g**2
        gain = np.where(g * last > 0, np.minimum(gain + 0.05, high), gain)
        gain = np.where(g * last < 0, np.maximum(gain * 0.95, low), gain)
        w, last = w - gain * lr * g / (np.sqrt(v) + 1e-8), g
    return w, gain


@pytest.mark.parametrize("limits", [(0.1, 10.0), (0.9, 1.2)])
def test_moves_are_multiplied_by_gains_that_follow_the_signs(limits):
    rng = np.random.default_rng(0)
    grads = rng.normal(size=(60, 50)) + np.linspace(-2, 2, 50)
    grads[::7, ::3] = 0
    w = torch.nn.Parameter(torch.from_numpy(rng.normal(size=50)))
    expected, gain = by_formula(w.detach().numpy().copy(), grads, 0.01, *limits)
    optimizer = Gains([w], lr=0.01, limits=limits)
    for g in grads:
        w.grad = torch.from_numpy(g)
        optimizer.step()
    np.testing.assert_allclose(w.detach(), expected, rtol=1e-12)
    np.testing.assert_allclose(optimizer.gains[0], gain, rtol=1e-12)
    assert limits[0] <= gain.min() < gain.max() <= limits[1]


def test_a_parameter_without_a_gradient_keeps_its_gains():
    a, b = (torch.nn.Parameter(torch.ones(3)) for _ in range(2))
    optimizer = Gains([a, b], lr=0.01)
    for _ in range(3):
        a.grad = torch.ones(3)
        optimizer.step()
    assert torch.equal(b, torch.ones(3))
    assert torch.equal(optimizer.gains[1], torch.ones(3))
    assert (optimizer.gains[0] > 1).all()


@pytest.mark.parametrize("in_group", [False, True])
@pytest.mark.parametrize("option", [{"weight_decay": 0.1}, {"averaging": True}, {"clip_weights": 1.0}])
def test_what_gains_cannot_be_combined_with_is_refused(option, in_group):
    w = torch.nn.Parameter(torch.ones(1))
    with pytest.raises(ValueError, match=f"gains cannot be combined with {next(iter(option))}"):
        Gains([{"params": [w], **option}], lr=0.1) if in_group else Gains([w], lr=0.1, **option)


def test_a_sparse_gradient_is_refused_before_anything_moves():
    a, b = (torch.nn.Parameter(torch.ones(3, 2)) for _ in range(2))
    optimizer = Gains([a, b], lr=0.1)
    a.grad, b.grad = torch.ones(3, 2), torch.ones(3, 2).to_sparse(1)
    with pytest.raises(ValueError, match="gains cannot be combined with sparse gradients"):
        optimizer.step()
    assert torch.equal(a, torch.ones(3, 2))
    assert not optimizer.state


@pytest.mark.parametrize("limits", [(0.0, 2.0), (0.5, 0.9), (1.1, 2.0)])
def test_limits_must_hold_1(limits):
    with pytest.raises(ValueError, match="limits must be"):
        Gains([torch.nn.Parameter(torch.ones(1))], lr=0.1, limits=limits)
