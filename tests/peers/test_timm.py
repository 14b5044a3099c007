"""timm: what its own tests/test_optim.py promises of an optimizer, and the numbers of its RMSpropTF."""

import copy
from itertools import pairwise

import pytest
import torch
from timm.optim import RMSpropTF, create_optimizer_v2
from timm.optim._optim_factory import OptimInfo, default_registry
from timm.scheduler import CosineLRScheduler
from torch.testing import assert_close

from rmsprop.torch import RMSprop
from tests.peers.conftest import loader, network, numbers

#: timm's flags, and ours of the same meaning.
FLAGS = [
    ({}, {}),
    ({"momentum": 0.9}, {"momentum": 0.9}),
    ({"centered": True}, {"centered": True}),
    ({"weight_decay": 0.1}, {"weight_decay": 0.1}),
    ({"weight_decay": 0.1, "decoupled_decay": True}, {"weight_decay": 0.1, "decoupled_weight_decay": True}),
    ({"momentum": 0.9, "lr_in_momentum": False}, {"momentum": 0.9, "momentum_form": "lr_outside"}),
    ({"alpha": 0.5, "eps": 1e-2, "lr": 0.003}, {"alpha": 0.5, "eps": 1e-2, "lr": 0.003}),
    (
        {"momentum": 0.5, "centered": True, "weight_decay": 0.1, "decoupled_decay": True},
        {"momentum": 0.5, "centered": True, "weight_decay": 0.1, "decoupled_weight_decay": True},
    ),
]
NAMES = {"ours": {}, "ourstf": {"dialect": "timm"}}


@pytest.fixture
def registered(monkeypatch):
    """Ours under two names in timm's factory, as a user adds an optimizer."""
    monkeypatch.setattr(default_registry, "_optimizers", dict(default_registry._optimizers))
    for name, options in NAMES.items():
        defaults = {"alpha": 0.9, **options}
        default_registry.register(OptimInfo(name, RMSprop, "ours", has_momentum=True, defaults=defaults))


def descend(optimizer, weight, bias, x, steps):
    def closure():
        optimizer.zero_grad()
        loss = (weight.mv(x) + bias).square().sum()
        loss.backward()
        return loss

    return [optimizer.step(closure).item() for _ in range(steps)]


def same(a, b):
    states = [[torch.cat([v.flatten() for v in entry.values()]) for entry in d["state"].values()] for d in (a, b)]
    return a["param_groups"] == b["param_groups"] and all(map(torch.equal, *states))


def affine(strided):
    if strided:
        weight, bias = torch.randn(10, 5, 2)[..., 0], torch.randn(10, 2)[..., 0]
    else:
        weight, bias = torch.randn(10, 5), torch.randn(10)
    return torch.nn.Parameter(weight), torch.nn.Parameter(bias), torch.randn(5)


def groups(kind, weight, bias):
    if kind == "list":
        return [weight, bias]
    late = {"params": [bias], "lr": 3e-3}
    return [{"params": [weight]}, late] if kind == "groups" else [late]


@pytest.mark.parametrize("strided", [False, True])
@pytest.mark.parametrize("kind", ["list", "groups", "one group"])
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.usefixtures("registered")
def test_two_hundred_steps_go_down(name, kind, strided):
    weight, bias, x = affine(strided)
    optimizer = create_optimizer_v2(groups(kind, weight, bias), name, lr=1e-3)
    assert "RMSprop" in repr(optimizer)
    losses = descend(optimizer, weight, bias, x, 200)
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.usefixtures("registered")
def test_state_dict_makes_an_equal_optimizer(name):
    weight, bias, x = affine(False)
    optimizer = create_optimizer_v2([weight, bias], name, lr=1e-3, weight_decay=0.1)
    descend(optimizer, weight, bias, x, 20)
    weights = [torch.nn.Parameter(p.detach().clone()) for p in (weight, bias)]
    other = create_optimizer_v2(weights, name, lr=1e-3, weight_decay=0.1)
    saved = copy.deepcopy(optimizer.state_dict())
    other.load_state_dict(saved)
    assert same(saved, optimizer.state_dict())
    assert descend(other, *weights, x, 20) == descend(optimizer, weight, bias, x, 20)
    assert same(other.state_dict(), optimizer.state_dict())
    assert not same(saved, optimizer.state_dict())


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.usefixtures("registered")
def test_rosenbrock_one_coordinate_at_a_time(name):
    p, solution = torch.nn.Parameter(torch.tensor([1.5, 1.5])), torch.ones(2)
    optimizer = create_optimizer_v2([p], name, lr=1e-3)
    for t in range(2000):
        optimizer.zero_grad()
        loss = (1 - p[0]).square() + 100 * (p[1] - p[0].square()).square()
        loss.backward()
        p.grad[1 - t % 2] = 0
        optimizer.step()
    assert p.detach().dist(solution) < torch.tensor([1.5, 1.5]).dist(solution)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.usefixtures("registered")
def test_loss_of_a_model_falls_at_every_step(name):
    model = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.Sigmoid(), torch.nn.Linear(3, 1), torch.nn.Sigmoid())
    optimizer, x, losses = create_optimizer_v2(model, name, lr=1e-3), torch.rand(3, 2), []
    for _ in range(20):
        optimizer.zero_grad()
        losses.append(model(x).sum())
        losses[-1].backward()
        optimizer.step()
    assert all(b < a for a, b in pairwise(losses))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize(("theirs", "ours"), FLAGS, ids=str)
def test_dialect_timm_is_their_rmsproptf(theirs, ours, dtype):
    models = [network().to(dtype) for _ in range(2)]
    optimizers = [RMSpropTF(models[0].parameters(), **theirs), RMSprop(models[1].parameters(), dialect="timm", **ours)]
    schedules = [CosineLRScheduler(o, t_initial=8, warmup_t=2, warmup_lr_init=1e-4) for o in optimizers]
    for epoch in range(5):
        for model, optimizer, schedule in zip(models, optimizers, schedules, strict=True):
            schedule.step(epoch)
            for x, y in loader():
                optimizer.zero_grad()
                torch.nn.functional.mse_loss(model(x.to(dtype)), y.to(dtype)).backward()
                optimizer.step()
    tolerance = 1e-6 if dtype == torch.float32 else 1e-12
    assert_close(numbers(models[1]), numbers(models[0]), rtol=tolerance, atol=tolerance)
