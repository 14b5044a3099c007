"""Compiled steps in use: a whole training step, checkpoints, refusals, `GradScaler`, and memory."""

import copy

import pytest
import torch
from torch.library import opcheck

from rmsprop.torch import RMSprop
from tests.conftest import parameter
from tests.test_torch_graph import (
    BF16,
    _fresh_compiler,  # noqa: F401
    assert_equal,
    compiled,
    differentiate,
    model,
    params_of,
    pytestmark,  # noqa: F401
    race,
    twins,
)

INF, NAN = float("inf"), float("nan")


def network():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1))


def train_step(net, optimizer, x):
    """Forward, backward, step; gradients are dropped by hand, which a graph can follow."""
    loss = net(x).square().mean()
    loss.backward()
    optimizer.step()
    for p in net.parameters():
        p.grad = None
    return loss.detach()


def test_whole_training_step_compiles_once():
    nets = [network() for _ in "ab"]
    optimizers = [RMSprop(net.parameters(), lr=torch.tensor(0.01), momentum=0.9) for net in nets]
    schedules = [torch.optim.lr_scheduler.StepLR(o, 2, 0.5) for o in optimizers]
    step, counter = compiled(train_step)
    losses = []
    with torch._dynamo.config.patch(trace_autograd_ops=True):
        for t in range(6):
            x = torch.randn(16, 4, generator=torch.Generator().manual_seed(t))
            pair = [f(net, o, x) for f, net, o in zip((step, train_step), nets, optimizers, strict=True)]
            losses.append([float(loss) for loss in pair])
            for schedule in schedules:
                schedule.step()
    assert counter.frame_count == 1
    assert all(a == pytest.approx(b, rel=1e-5) for a, b in losses)
    assert losses[-1][0] < losses[0][0]
    assert_equal(*optimizers, rtol=1e-5, atol=1e-6)
    assert all(p.grad is None for p in nets[0].parameters())


@pytest.mark.parametrize("named", [True, False])
def test_error_writes_nothing_in_any_group(named):
    a, b, c = model()
    names = [("first", a), ("second", b), ("third", c)] if named else [a, b, c]
    optimizer = RMSprop([{"params": names[:2]}, {"params": names[2:], "momentum": 0.9}], nonfinite="error")
    step, _ = compiled(optimizer.step)
    differentiate([a, b, c], 0)
    step()
    before = [p.detach().clone() for p in (a, b, c)]
    state = copy.deepcopy([dict(optimizer.state[p]) for p in (a, b, c)])
    a.grad = None
    b.grad[0, 0] = INF
    with pytest.raises(FloatingPointError, match="second" if named else "parameter 1 of group 0"):
        step()
    for p, old, entry in zip((a, b, c), before, state, strict=True):
        assert torch.equal(p, old)
        assert all(torch.equal(optimizer.state[p][name], value) for name, value in entry.items())


def test_skipped_entries_are_counted():
    ours, other = twins(nonfinite="skip")

    def spoil(optimizer, t):
        params_of(optimizer)[0].grad[: t + 1] = NAN

    assert race(ours, other, 3, spoil) == 1
    assert ours.skipped == other.skipped == 6
    assert_equal(ours, other)


def test_checkpoint_between_compiled_steps():
    ours, other = twins(momentum=0.9, centered=True)
    race(ours, other, 3)
    saved = copy.deepcopy(ours.state_dict())
    values = [p.detach().clone() for p in params_of(ours)]
    step, _ = compiled(ours.step)
    for t in range(3, 5):
        differentiate(params_of(ours), t)
        step()
    ours.load_state_dict(saved)
    with torch.no_grad():
        for p, value in zip(params_of(ours), values, strict=True):
            p.copy_(value)
    for t in range(3, 6):
        for optimizer, call in ((ours, step), (other, other.step)):
            differentiate(params_of(optimizer), t)
            call()
    assert_equal(ours, other)
    ours.load_state_dict(RMSprop(model(), momentum=0.9, centered=True).state_dict())
    assert not ours.state
    step()
    assert {int(entry["step"]) for entry in ours.state.values()} == {1}


@pytest.mark.parametrize("spoilt", [(), (1, 3)])
def test_grad_scaler(spoilt):
    ours, other = twins(fused=True)
    counter_step, counter = compiled(ours.step)
    ours.step = counter_step
    for optimizer in (ours, other):
        scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=2)
        for t in range(5):
            scaler.scale(torch.ones(()))
            params = params_of(optimizer)
            differentiate(params, t)
            for p in params:
                p.grad *= scaler.get_scale()
            if t in spoilt:
                params[1].grad[0] = NAN
            scaler.step(optimizer)
            scaler.update()
    assert_equal(ours, other)
    assert ours.state[params_of(ours)[0]]["step"] == 5 - len(spoilt)
    assert counter.frame_count == 1


@pytest.mark.parametrize("first", [True, False])
def test_watched_step_raises(first):
    ours, _ = twins()
    step, _ = compiled(ours.step)
    params = params_of(ours)
    differentiate(params, 0)
    if not first:
        step()
    ours.watch()
    before = [p.detach().clone() for p in params]
    with pytest.raises(RuntimeError, match="watch: a step in a graph gathers no statistics"):
        step()
    assert all(map(torch.equal, params, before))
    ours.watch(every=0)
    step()
    assert ours.state[params[0]]["step"] == 2 - first


def test_differentiable_step_raises():
    optimizer = RMSprop([parameter().clone()], differentiable=True)
    with pytest.raises(RuntimeError, match="differentiable=True: autograd does not follow a step in a graph"):
        compiled(optimizer.step)[0]()


def test_closure():
    ours, _ = twins()
    differentiate(params_of(ours), 0)
    step, _ = compiled(ours.step)
    assert step(lambda: torch.tensor(3.0)) == 3


@pytest.mark.parametrize("nonfinite", ["skip", "error"])
def test_capturable_counts_nothing_on_the_host(nonfinite):
    with pytest.raises(ValueError, match=f"capturable=True: nonfinite='{nonfinite}'"):
        RMSprop([parameter()], capturable=True, nonfinite=nonfinite)


def test_capturable_on_the_cpu_is_the_plain_step(make):
    p, q = parameter(), parameter()
    ours, other = make([p], capturable=True, lr=torch.tensor(0.1)), make([q], lr=0.1)
    for _ in range(3):
        ours.step()
        other.step()
    torch.testing.assert_close(p, q, rtol=1e-6, atol=1e-6)
    assert ours.state[p]["step"] == 3
    assert ours.state[p]["step"].device == p.device


@pytest.mark.parametrize("options", [{}, {"momentum": 0.9, "nonfinite": "skip"}], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, BF16], ids=str)
def test_operator_keeps_torchs_contract(monkeypatch, dtype, options):
    """opcheck: the schema, autograd registration, fake tensors and functionalisation."""
    calls = []
    optimizer = RMSprop(model(dtype), stochastic_rounding=dtype == BF16, **options)
    differentiate(params_of(optimizer), 0)
    operator = torch.ops.rmsprop.step_.default

    class Recorder(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            if function is operator:
                calls.append(copy.deepcopy(args))
            return function(*args, **(kwargs or {}))

    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    with Recorder():
        optimizer.step()
    monkeypatch.undo()
    assert len(calls) == 1
    opcheck(operator, calls[0])


@pytest.mark.parametrize("options", [{}, {"momentum": 0.9, "centered": True, "nonfinite": "skip"}], ids=str)
def test_inductor_makes_no_copy_of_parameters(options):
    params = [torch.nn.Parameter(torch.ones(1 << 14, 4)) for _ in "abc"]
    for p in params:
        p.grad = torch.ones_like(p)
    optimizer = RMSprop(params, lr=torch.tensor(0.1), **options)
    step, _ = compiled(optimizer.step, "inductor")
    step()
    with torch.profiler.profile(profile_memory=True):
        step()  # the profiler counts as somebody who listens: compiled anew
    with torch.profiler.profile(profile_memory=True) as profile:
        step()
    allocated = sum(max(event.self_cpu_memory_usage, 0) for event in profile.key_averages())
    assert allocated < 1 << 14
    assert optimizer.state[params[0]]["step"] == 3


def test_scaled_gradients_are_not_passed_over_by_the_traced_rule():
    optimizer = RMSprop([parameter()], fused=False)
    optimizer.found_inf = torch.tensor(1.0)
    with pytest.raises(RuntimeError, match="grad_scale, found_inf: in a graph only the kernel honours them"):
        compiled(optimizer.step)[0]()
