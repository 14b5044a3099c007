"""`watch` and `stats`: every statistic against float64 arithmetic on the tensors before and after a step."""

import math

import pytest
import torch

from rmsprop.kernels import cpu
from rmsprop.torch import RMSprop
from tests.conftest import parameter

INF, NAN = float("inf"), float("nan")
CONFIGURATIONS = {
    "plain": {},
    "momentum": {"momentum": 0.9, "nesterov": True},
    "centered": {"centered": True, "variance_floor": 0.5},
    "corrected": {"bias_correction": True, "centered": True, "alpha": 0.9},
    "decay": {"weight_decay": 0.1, "maximize": True},
    "decoupled": {"weight_decay": 0.1, "decoupled_weight_decay": True, "clip": 0.5},
    "inside": {"epsilon_mode": "inside", "eps": 1e-3},
    "outside": {"epsilon_mode": "outside", "eps": 3e-2},
    "floor": {"epsilon_mode": "floor", "eps": 3e-2},
    "both": {"epsilon_mode": "both", "eps": 1e-3},
    "skip": {"nonfinite": "skip"},
    "skip and decay": {"nonfinite": "skip", "weight_decay": 0.1, "centered": True},
}
DTYPES = [torch.float32, torch.bfloat16, torch.float64, torch.complex64]


def real(x):
    x = x.detach()
    return (torch.view_as_real(x) if x.is_complex() else x).to(torch.float64, copy=True).flatten()


def draw(n, dtype, seed):
    """Numbers over some orders of magnitude, so that epsilon dominates in some places and not in others."""
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 2, generator=g, dtype=torch.float64) * 10 ** (3 * torch.rand(n, 2, generator=g) - 2)
    return (torch.view_as_complex(x) if dtype.is_complex else x[:, 0]).to(dtype)


def rms(x):
    return float(x.square().mean().sqrt()) if len(x) else 0.0


def expected(optimizer, p, before, grad):
    """The statistics of the step that has just been made; `before` and `grad` as real float64 numbers."""
    o, state = optimizer.param_groups[0], optimizer.state[p]
    after, used = real(p), torch.ones_like(grad, dtype=torch.bool)
    if o["nonfinite"] == "skip":
        total = grad + (0 if o["decoupled_weight_decay"] else o["weight_decay"]) * before
        used = total.square() <= torch.finfo(torch.promote_types(p.dtype, torch.float32).to_real()).max
    v = real(state["variance" if o["centered"] else "square_avg"])
    s = v / (1 - o["alpha"] ** int(state["step"])) if o["bias_correction"] else v
    if o["centered"]:
        s = torch.maximum(s, o["variance_floor"] * real(state["grad_avg"]) ** 2)
    eps, mode = o["eps"], o["epsilon_mode"]
    inside, outside = mode in ("inside", "both"), mode in ("outside", "both")
    d = (s + eps * inside).sqrt() + eps * outside
    d = d.clamp_min(eps) if mode == "floor" else d
    dominated = (s.sqrt() < eps) if mode in ("outside", "floor") else s < eps
    sizes = torch.quantile(o["lr"] / d, torch.tensor([0.1, 0.5, 0.9]).double(), interpolation="nearest").tolist()
    return {
        "gradient_rms": rms(grad[used]),
        "update_rms": rms(after - before),
        "weight_rms": rms(after),
        "update_to_weight": rms(after - before) / rms(after),
        "epsilon_share": float(dominated.double().mean()),
        "skipped": int((~used).sum()),
        **{f"step_size_{q}": size for q, size in zip((10, 50, 90), sizes, strict=True)},
    }


@pytest.mark.parametrize("name", CONFIGURATIONS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_statistics_are_those_of_the_tensors(make, dtype, name):
    options = CONFIGURATIONS[name]
    p = torch.nn.Parameter(draw(601, dtype, 0))
    optimizer = make([("weight", p)], lr=0.01, **options)
    optimizer.watch()
    for t in range(3):
        p.grad = draw(601, dtype, t + 1)
        if "skip" in name:
            p.grad[5:12] = torch.tensor([NAN, INF, -INF, NAN, 1e25, 1e30, 0.0]).to(dtype)
        before, grad = real(p), real(p.grad)
        optimizer.step()
        (found,) = optimizer.stats().values()
        assert list(optimizer.stats()) == ["weight"]
        assert found == pytest.approx(expected(optimizer, p, before, grad), rel=1e-5)
        assert type(found["skipped"]) is int
    assert 0 < found["epsilon_share"] < 1 or options.get("eps") is None
    assert found["skipped"] > 0 or "skip" not in name


@pytest.mark.parametrize("decay", [False, True])
def test_entries_that_only_decay_makes_overflow(make, decay):
    p = parameter((1e30, 1.0, 1.0), (3.0, 4.0, 0.0))
    optimizer = make([p], nonfinite="skip", weight_decay=0.1, decoupled_weight_decay=not decay)
    optimizer.watch()
    optimizer.step()
    (found,) = optimizer.stats().values()
    assert found["skipped"] == optimizer.skipped == decay
    assert found["gradient_rms"] == pytest.approx((16 / 2) ** 0.5 if decay else (25 / 3) ** 0.5)


def test_scaled_gradients_are_shown_unscaled(make):
    p, q = parameter(), parameter()
    ours, other = make([p]), make([q])
    q.grad *= 8
    other.grad_scale, other.found_inf = torch.tensor(8.0), torch.tensor(0.0)
    for optimizer in (ours, other):
        optimizer.watch()
        optimizer.step()
    assert ours.stats() == other.stats()
    other.found_inf = torch.tensor(1.0)
    other.step()
    assert ours.stats() == other.stats()


@pytest.mark.skipif(cpu.native is None, reason="no native kernel on this machine")
@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_watched_steps_have_the_same_bits(monkeypatch, dtype, threads):
    """A parameter of many pieces, a transposed one, a strided one, and one that is rounded at random."""
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    options = {"momentum": 0.9, "centered": True, "stochastic_rounding": dtype == torch.bfloat16}
    results, values = [], draw(1 << 20, dtype, 0)
    for watched in (False, True):
        shapes = [values.clone(), values[:5000].clone().view(50, 100).T, values.repeat_interleave(2)[: 1 << 17][::2]]
        params = [torch.nn.Parameter(x) for x in shapes]
        optimizer = RMSprop(params, **options)
        if watched:
            optimizer.watch()
        for t in range(2):
            for p in params:
                p.grad = draw(p.numel(), dtype, t + 1).view(p.shape)
            optimizer.step()
        results.append([*params, *(x for p in params for x in optimizer.state[p].values())])
    for x, y in zip(*results, strict=True):
        assert torch.equal(x, y)
    found = list(optimizer.stats().values())
    assert [round(row["weight_rms"] / rms(real(p)), 9) for row, p in zip(found, params, strict=True)] == [1, 1, 1]


def test_large_parameter_by_evenly_spaced_entries(make):
    p = torch.nn.Parameter(torch.ones(200_001))
    p.grad = torch.linspace(0.1, 1, 200_001)
    optimizer = make([p], lr=0.5)
    optimizer.watch()
    optimizer.step()
    (found,) = optimizer.stats().values()
    sizes = torch.quantile(0.5 / (0.1 * p.grad), torch.tensor([0.1, 0.5, 0.9])).tolist()
    assert [found[f"step_size_{q}"] for q in (10, 50, 90)] == pytest.approx(sizes, rel=1e-3)
    assert found["weight_rms"] == pytest.approx(rms(real(p)), rel=1e-6)


@pytest.mark.parametrize("eps", [0.0, 1e-8])
def test_entries_without_gradient_have_a_step_size_and_no_nan(make, eps):
    p = torch.nn.Parameter(torch.zeros(20))
    p.grad = (torch.arange(20) < 3).float()
    optimizer = make([p], eps=eps)
    optimizer.watch()
    optimizer.step()
    (found,) = optimizer.stats().values()
    assert not any(map(math.isnan, found.values()))
    assert found["step_size_10"] == pytest.approx(0.1)
    assert found["step_size_90"] == pytest.approx(0.01 / eps if eps else INF)
    assert found["epsilon_share"] == (0.85 if eps else 0)
    assert found["update_to_weight"] == pytest.approx(1)


def test_weights_and_updates_of_zero(make):
    p = parameter((0.0, 0.0, 0.0), (0.0, 0.0, 0.0))
    optimizer = make([p])
    optimizer.watch()
    optimizer.step()
    (found,) = optimizer.stats().values()
    assert found["update_to_weight"] == found["update_rms"] == found["weight_rms"] == 0
    p.data[:], p.grad[0] = 0.01 / 0.1, 1.0
    p.data[1:] = 0
    optimizer.param_groups[0]["alpha"] = 0.0
    optimizer.param_groups[0]["lr"] = 0.1
    optimizer.step()
    assert optimizer.stats()["group0.parameter0"]["update_to_weight"] > 1e3
