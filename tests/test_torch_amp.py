"""Mixed precision: `GradScaler` inside the step and outside, autocast, and what a step of 16 bits may not do."""

import pytest
import torch

from rmsprop.kernels import cpu
from rmsprop.torch import RMSprop
from tests.conftest import parameter

INF, NAN = float("inf"), float("nan")
NATIVE = cpu.native is not None
LOW = [torch.bfloat16, torch.float16]
EVERY = [*LOW, torch.float32, torch.float64, torch.complex64]


def scaler_of(**options):
    return torch.amp.GradScaler("cpu", **{"init_scale": 1024.0, "growth_interval": 3} | options)


def problem(dtype=torch.float32):
    g = torch.Generator().manual_seed(0)
    params = [torch.nn.Parameter(torch.randn(n, generator=g).to(dtype)) for n in (37, 5)]
    return params, [[torch.randn(n, generator=g).to(dtype) for n in (37, 5)] for _ in range(8)]


def scaled_run(scaler, optimizer, params, grads, spoilt=(), between=lambda optimizer: None):
    """The steps of a training loop whose gradients are given; those of some steps overflow."""
    scales = []
    for t, row in enumerate(grads):
        scaler.scale(torch.ones(()))
        scales.append(scaler.get_scale())
        for p, g in zip(params, row, strict=True):
            p.grad = g * torch.tensor(scales[-1], dtype=g.dtype)
        if t in spoilt:
            params[1].grad[0] = INF
        between(optimizer)
        scaler.step(optimizer)
        scaler.update()
    return scales


def plain_run(optimizer, params, grads, spoilt=(), between=lambda optimizer: None):
    for t, row in enumerate(grads):
        for p, g in zip(params, row, strict=True):
            p.grad = g.clone()
        between(optimizer)
        if t not in spoilt:
            optimizer.step()


def assert_equal(optimizer, params, other, peers):
    for p, q in zip(params, peers, strict=True):
        assert torch.equal(p, q)
        for name, value in other.state[q].items():
            assert torch.equal(optimizer.state[p][name], value), name


@pytest.mark.parametrize("dtype", EVERY, ids=str)
@pytest.mark.parametrize("options", [{}, {"centered": True, "momentum": 0.9}], ids=str)
def test_state_of_16_bits_is_float32(make, dtype, options):
    p = parameter(dtype=dtype)
    optimizer = make([p], **options)
    optimizer.step()
    kept = torch.float32 if dtype in LOW else dtype
    assert {x.dtype for key, x in optimizer.state[p].items() if key != "step"} == {kept}


@pytest.mark.parametrize("mode", ["outside", "inside", "floor", "both"])
@pytest.mark.parametrize("dtype", EVERY, ids=str)
@pytest.mark.parametrize("centered", [False, True])
def test_zero_gradient_never_moves(make, dtype, mode, centered):
    for eps in (0.0, 1e-30, 1e-8, 1.0):
        p = parameter(grad=(0.0, 0.0, 0.5), dtype=dtype)
        optimizer = make([p], eps=eps, epsilon_mode=mode, centered=centered, momentum=0.5)
        for _ in range(3):
            optimizer.step()
        p.grad.zero_()
        optimizer.step()
        assert p[:2].tolist() == [1, -2]
        assert torch.isfinite(p).all()
        assert all(torch.isfinite(x).all() for x in optimizer.state[p].values())


WAYS = [{}, {"foreach": True}, {"foreach": False}, {"fused": False}, *[{"fused": True}] * NATIVE]


@pytest.mark.parametrize("ways", WAYS, ids=str)
@pytest.mark.parametrize("options", [{}, {"centered": True, "momentum": 0.9, "weight_decay": 0.1}], ids=str)
def test_scaling_by_powers_of_two_changes_no_bit(ways, options):
    (params, grads), (peers, _) = problem(), problem()
    ours, other = (RMSprop(x, **ways, **options) for x in (params, peers))
    assert ours._step_supports_amp_scaling == bool(ways.get("fused"))
    scaler = scaler_of()
    scales = scaled_run(scaler, ours, params, grads, spoilt=(2, 5))
    plain_run(other, peers, grads, spoilt=(2, 5))
    assert_equal(ours, params, other, peers)
    assert ours.state[params[0]]["step"] == 6
    assert scales == [1024.0] * 3 + [512.0] * 3 + [256.0] * 2
    assert not hasattr(ours, "grad_scale")
    assert not hasattr(ours, "found_inf")


def test_scale_grows_and_shrinks(make):
    params, grads = problem()
    scales = scaled_run(scaler_of(growth_interval=2), make(params), params, grads, spoilt=(0, 5))
    assert scales == [1024, 512, 512, 1024, 1024, 2048, 1024, 1024]


@pytest.mark.parametrize("scale", [3.0, 1000.0, 65536.0 / 7])
def test_scale_that_is_no_power_of_two(make, scale):
    (params, grads), (peers, _) = problem(), problem()
    scaled_run(scaler_of(init_scale=scale), make(params), params, grads)
    plain_run(make(peers), peers, grads)
    for p, q in zip(params, peers, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-6)


def test_unscale_and_clip_before_the_step(make):
    (params, grads), (peers, _) = problem(), problem()
    ours, other, scaler = make(params), make(peers), scaler_of()
    norms = []

    def clip(optimizer):
        if optimizer is ours:
            scaler.unscale_(ours)
        group = optimizer.param_groups[0]["params"]
        norms.append(torch.nn.utils.clip_grad_norm_(group, 0.5))

    scaled_run(scaler, ours, params, grads, between=clip)
    plain_run(other, peers, grads, between=clip)
    assert_equal(ours, params, other, peers)
    assert norms[:8] == norms[8:]
    assert min(norms) > 0.5


@pytest.mark.skipif(not NATIVE, reason="no native kernel on this machine")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_kernel_divides_and_writes_no_gradient(dtype):
    """torch's scaler cannot unscale float16 gradients, so only a step that divides can train float16 parameters."""
    (params, grads), (peers, _) = problem(dtype), problem(dtype)
    ours, other = (RMSprop(x, momentum=0.9, fused=True) for x in (params, peers))
    scaled_run(scaler_of(init_scale=16.0), ours, params, grads[:3])
    plain_run(other, peers, grads[:3])
    assert_equal(ours, params, other, peers)
    for p, g in zip(params, grads[2], strict=True):
        assert torch.equal(p.grad, g * 16)
    ours.grad_scale, ours.found_inf = torch.tensor(16.0), torch.tensor(0.0)
    versions = [(p.grad._version, p._version) for p in params]
    ours.step()
    assert [(p.grad._version, p._version) for p in params] == [(g, v + 1) for g, v in versions]
    ours.found_inf = torch.tensor(1.0)
    before = [p.detach().clone() for p in params]
    ours.step()
    assert all(map(torch.equal, before, params))
    assert ours.state[params[0]]["step"] == 4


@pytest.mark.parametrize("options", [{}, {"maximize": True, "weight_decay": 0.1}, {"nonfinite": "skip"}], ids=str)
def test_complex_gradients_are_divided_too(make, options):
    p, q, r = (parameter((1 + 1j, -2.0, 3j), (0.5, 1j, NAN), torch.complex64) for _ in "pqr")
    q.grad *= 8
    ours = [make([x], **options) for x in (p, q, r)]
    ours[1].grad_scale, ours[1].found_inf = torch.tensor(8.0), torch.tensor(0.0)
    ours[2].found_inf = torch.tensor(1.0)
    for optimizer in ours:
        optimizer.step()
    torch.testing.assert_close(p, q, equal_nan=True, rtol=0, atol=0)
    assert r.tolist() == [1 + 1j, -2, 3j]
    assert not ours[2].state


@pytest.mark.skipif(not NATIVE, reason="no native kernel on this machine")
def test_one_group_without_the_kernel_leaves_the_scaling_to_the_scaler():
    a, b = parameter(), parameter()
    assert RMSprop([a, b], fused=True)._step_supports_amp_scaling
    assert not RMSprop([{"params": [a], "fused": True}, {"params": [b], "foreach": True}])._step_supports_amp_scaling


@pytest.mark.parametrize("options", [{}, {"stochastic_rounding": True, "state_dtype": torch.bfloat16}], ids=str)
@pytest.mark.parametrize("weights", [torch.float32, torch.bfloat16], ids=str)
def test_training_under_autocast(make, weights, options):
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.Tanh(), torch.nn.Linear(16, 1)).to(weights)
    x = torch.randn(64, 8)
    y = x[:, :1] - x[:, 1:2]
    optimizer, scaler = make(model.parameters(), lr=3e-3, alpha=0.9, **options), scaler_of()
    losses = []
    for _ in range(150):
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            loss = torch.nn.functional.mse_loss(model(x.to(weights)).float(), y)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        losses.append(loss.item())
    assert losses[-1] < 0.1 * losses[0]
    assert {p.dtype for p in model.parameters()} == {weights}
