"""`rmsprop.torch.Rprop` against `torch.optim.Rprop`, to the last bit, and against the rule's own text."""

import copy
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from numpy.testing import assert_array_equal
from torch.autograd import gradcheck

from rmsprop.kernels import cpu, lists
from rmsprop.rprop import VARIANTS, RpropRule
from rmsprop.torch import Rprop
from tests.test_rprop import SETTINGS, bowl, drawn, run

#: torch's own table (torch/testing/_internal/common_optimizers.py, 2.13), and more.
TABLE = [
    {},
    {"lr": 2e-4},
    {"etas": (0.5, 1.5)},
    {"step_sizes": (2e-6, 100)},
    {"maximize": True},
    {"lr": torch.tensor(0.001)},
    {"lr": 70.0, "etas": (0.1, 1.01)},
    {"step_sizes": (0.02, 0.05), "maximize": True},
    {"step_sizes": (0, float("inf"))},
]
WAYS = {"native": {}, "foreach": {"foreach": True}, "one by one": {"foreach": False, "fused": False}}


@pytest.fixture(params=[*WAYS, "no kernel"])
def make(request, monkeypatch):
    """Makes optimizers that take each of the ways a step can go on a CPU."""
    if request.param == "native" and cpu.native is None:
        pytest.skip("no native kernel on this machine")
    if request.param == "no kernel":
        monkeypatch.setattr(cpu, "native", None)
    return lambda *args, **options: Rprop(*args, **WAYS.get(request.param, {}) | options)


def tensors(seed, dtype, shapes=((5, 10), (50,), (2, 5, 5))):
    """Parameters and rows of gradients whose signs turn now and then."""
    rng = np.random.default_rng(seed)

    def draw(scale, shape):
        x = rng.normal(size=(*shape, 2)) if dtype.is_complex else rng.normal(size=shape)
        x = torch.tensor(x * scale)
        return (torch.view_as_complex(x) if dtype.is_complex else x).to(dtype)

    params = [torch.nn.Parameter(draw(1, shape)) for shape in shapes]
    rows, signs = [], [draw(1, shape) for shape in shapes]
    for t in range(25):
        rows.append([(s + 0.7 * draw(1, s.shape)) * 10.0 ** (-(t % 5)) for s in signs])
        rows[-1][0][0] = 0
    return params, [[g.to(dtype) for g in row] for row in rows]


def twins(params):
    return [torch.nn.Parameter(p.detach().clone()) for p in params]


def step(optimizer, grads):
    params = [p for group in optimizer.param_groups for p in group["params"]]
    for p, g in zip(params, grads, strict=True):
        p.grad = g.to(p.dtype)
    optimizer.step()


def assert_same_state(ours, theirs, params, peers):
    for p, q in zip(params, peers, strict=True):
        mine, other = ours.state[p], theirs.state[q]
        assert mine.keys() == other.keys()
        for key, value in mine.items():
            assert value.dtype == other[key].dtype
            assert torch.equal(value.nan_to_num(7.0), other[key].nan_to_num(7.0)), key


@pytest.mark.parametrize("options", TABLE, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.complex64], ids=str)
def test_equals_torch_bit_for_bit(make, dtype, options):
    params, rows = tensors(0, dtype)
    peers = twins(params)
    ours, theirs = make(params, **options), torch.optim.Rprop(peers, **options)
    for row in rows:
        step(ours, row)
        step(theirs, row)
        for p, q in zip(params, peers, strict=True):
            assert torch.equal(p, q)
    assert_same_state(ours, theirs, params, peers)


@pytest.mark.parametrize("dtype", ["f4", "f8"])
@pytest.mark.parametrize("seed", range(15))
def test_equals_torch_at_random_settings(make, seed, dtype):
    """With zeros, infinities and NaN among the gradients, and products that overflow and vanish."""
    values, grads, options = drawn(seed, dtype)
    options["maximize"] = seed % 2 == 0
    p = torch.nn.Parameter(torch.tensor(values))
    q = torch.nn.Parameter(p.detach().clone())
    ours, theirs = make([p], **options), torch.optim.Rprop([q], **options, foreach=seed % 4 < 2)
    for g in grads:
        step(ours, [torch.tensor(g)])
        step(theirs, [torch.tensor(g)])
        assert torch.equal(p, q)
    assert_same_state(ours, theirs, [p], [q])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_narrow_parameters_have_float32_state(make, dtype):
    """torch in float32, its parameter rounded after every step; products below float16's reach among the gradients."""
    params, rows = tensors(3, dtype)
    rows = [[g * 1e-3 for g in row] for row in rows]
    peers = [torch.nn.Parameter(p.detach().float()) for p in params]
    ours, theirs = make(params), torch.optim.Rprop(peers)
    for row in rows:
        step(ours, row)
        step(theirs, row)
        for p, q in zip(params, peers, strict=True):
            q.data = q.data.to(dtype).float()
            assert torch.equal(p.float(), q)
    assert_same_state(ours, theirs, params, peers)


@pytest.mark.parametrize("options", SETTINGS, ids=str)
@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant_is_the_rule(make, variant, options):
    values, grads, losses = bowl()
    path, last = run(RpropRule(variant=variant, **options), values, grads, losses)
    p = torch.nn.Parameter(torch.tensor(values))
    optimizer = make([p], variant=variant, **options)
    for g, loss in zip(grads, losses, strict=True):
        p.grad = torch.tensor(g)
        told = torch.tensor(loss, requires_grad=True)
        assert optimizer.step(lambda: told) is told  # noqa: B023
    assert_array_equal(p.detach(), path[-1])
    assert_array_equal(optimizer.state[p]["step_size"], last["s"])
    assert_array_equal(optimizer.state[p]["prev"], last["q"])


def test_the_dialect_of_optax(make):
    values, grads, options = drawn(4, "f4")
    path, _ = run(RpropRule(dialect="optax", **options), values, grads)
    p = torch.nn.Parameter(torch.tensor(values))
    optimizer = make([p], dialect="optax", **options)
    for g in grads:
        step(optimizer, [torch.tensor(g)])
    assert_array_equal(p.detach(), path[-1])


@pytest.mark.skipif(cpu.native is None, reason="no native kernel on this machine")
@pytest.mark.parametrize(("way", "expected"), [({}, (3, 0)), ({"foreach": True}, (0, 3)), ({"fused": False}, (0, 3))])
def test_engine_is_the_one_meant(monkeypatch, way, expected):
    calls, rows = {"native": 0, "lists": 0}, {"native": 0, "lists": 0}
    native, listed = cpu.native.step, lists.step

    def count_native(groups, threads):
        calls["native"] += 1
        rows["native"] += sum(len(group[2]) for group in groups)
        return native(groups, threads)

    def count_lists(call, params, *rest):
        rows["lists"] += len(params)
        return listed(call, params, *rest)

    monkeypatch.setattr(cpu, "native", SimpleNamespace(step=count_native))
    monkeypatch.setattr(lists, "step", count_lists)
    params, grads = tensors(0, torch.float32)
    step(Rprop(params, **way), grads[0])
    assert (rows["native"], rows["lists"]) == expected
    assert calls["native"] <= 1


def test_strided_parameters_and_gradients(make):
    base = torch.randn(12, 10, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    memory = base.clone()
    views = [memory[::2].t(), memory[1::2, 1::3], memory[1::2, ::3].flip(0).t().contiguous().t()]
    params = [torch.nn.Parameter(v) for v in views]
    peers = [torch.nn.Parameter(v.detach().contiguous()) for v in views]
    ours, theirs = make(params), torch.optim.Rprop(peers)
    rng = torch.Generator().manual_seed(1)
    for _ in range(10):
        row = [torch.randn(p.shape[::-1], generator=rng, dtype=torch.float64).t() for p in params]
        for p, q, g in zip(params, peers, row, strict=True):
            p.grad, q.grad = g, g.contiguous()
        ours.step()
        theirs.step()
    for p, q in zip(params, peers, strict=True):
        assert torch.equal(p, q)
    assert torch.equal(memory[1::2, 2::3], base[1::2, 2::3])


@pytest.mark.parametrize("options", TABLE, ids=str)
def test_state_goes_to_torch_and_back(make, options):
    params, rows = tensors(1, torch.float32)
    optimizers = [make, torch.optim.Rprop]
    peers = twins(params)
    straight = torch.optim.Rprop(peers, **copy.deepcopy(options))
    current = make(params, **copy.deepcopy(options))
    for t, row in enumerate(rows):
        if t % 4 == 3:
            other = optimizers[(t // 4) % 2](params)
            other.load_state_dict(copy.deepcopy(current.state_dict()))
            current = other
        step(current, row)
        step(straight, row)
    for p, q in zip(params, peers, strict=True):
        assert torch.equal(p, q)
    assert_same_state(current, straight, params, peers)


def test_state_of_irprop_plus_remembers_the_loss(make):
    values, grads, losses = bowl()
    path, _ = run(RpropRule(variant="irprop+"), values, grads, losses)
    p = torch.nn.Parameter(torch.tensor(values))
    optimizer = make([p], variant="irprop+")
    for g, loss in zip(grads, losses, strict=True):
        p.grad = torch.tensor(g)
        optimizer.step(lambda: loss)  # noqa: B023
        saved, optimizer = optimizer.state_dict(), make([p])
        optimizer.load_state_dict(saved)
    assert_array_equal(p.detach(), path[-1])


def test_lr_is_read_when_state_is_made(make):
    """As torch does: a schedule changes nothing later."""
    params, rows = tensors(2, torch.float32)
    peers = twins(params)
    ours, theirs = make(params, lr=0.5), torch.optim.Rprop(peers, lr=0.5)
    for row in rows:
        for optimizer in (ours, theirs):
            optimizer.param_groups[0]["lr"] *= 0.1
            step(optimizer, row)
    for p, q in zip(params, peers, strict=True):
        assert torch.equal(p, q)


def test_groups_have_options_of_their_own(make):
    params, rows = tensors(2, torch.float64)
    peers = twins(params)
    groups = [
        [{"params": x[:1], "etas": (0.3, 1.3)}, {"params": x[1:], "lr": 0.1, "maximize": True}] for x in (params, peers)
    ]
    ours, theirs = make(groups[0]), torch.optim.Rprop(groups[1])
    for row in rows:
        step(ours, row)
        step(theirs, row)
    for p, q in zip(params, peers, strict=True):
        assert torch.equal(p, q)


def test_autograd_follows_a_step():
    def one(p, grad, prev, size):
        p = p.clone()
        p.grad = grad
        optimizer = Rprop([p], differentiable=True, lr=0.9)
        optimizer.state[p].update(step=torch.tensor(0.0), prev=prev.clone(), step_size=size.clone())
        optimizer.step()
        return (p, *(x for x in optimizer.state[p].values() if x.requires_grad))

    rng = torch.Generator().manual_seed(0)
    inputs = [torch.randn(10, generator=rng, dtype=torch.float64) for _ in range(3)]
    inputs.append(torch.rand(10, generator=rng, dtype=torch.float64) + 0.1)
    assert gradcheck(one, [x.requires_grad_() for x in inputs])


def test_sparse_gradients_give_the_dense_result(make):
    """Also after torch's state, which says nothing of them, has been taken over."""
    found = []
    for is_sparse in (False, True):
        rng = torch.Generator().manual_seed(0)
        p = torch.nn.Parameter(torch.randn(12, 3, generator=rng, dtype=torch.float64))
        optimizer = make([p])
        optimizer.load_state_dict(torch.optim.Rprop([p]).state_dict())
        for _ in range(10):
            g = torch.randn(12, 3, generator=rng, dtype=torch.float64) * (torch.rand(12, 1, generator=rng) < 0.6)
            p.grad = g.to_sparse(1) if is_sparse else g
            optimizer.step()
        found.append(p.detach())
    assert torch.equal(*found)


@pytest.mark.parametrize("state_dtype", [torch.float64, torch.bfloat16], ids=str)
def test_state_of_another_dtype(state_dtype):
    """float64 is more than float32; bfloat16 is rounded at random, equally in the kernel and over lists."""
    ends = []
    for way in ({}, {"foreach": True}):
        params, rows = tensors(5, torch.float32)
        optimizer = Rprop(params, state_dtype=state_dtype, seed=3, **way)
        for row in rows:
            step(optimizer, row)
        assert {optimizer.state[p][key].dtype for p in params for key in ("prev", "step_size")} == {state_dtype}
        ends.append(params)
    for p, q in zip(*ends, strict=True):
        assert torch.equal(p, q)
    params, rows = tensors(5, torch.float32)
    plain = Rprop(params)
    for row in rows:
        step(plain, row)
    for p, q in zip(ends[0], params, strict=True):
        assert not torch.equal(p, q)
        assert float((p - q).detach().abs().mean()) < 0.05  # steps have grown to 0.8


@pytest.mark.parametrize("way", [{}, {"foreach": True}], ids=str)
def test_steps_below_bfloat16s_precision_count_on_average(way):
    p = torch.nn.Parameter(torch.ones(4096, dtype=torch.bfloat16))
    optimizer = Rprop([p], lr=1e-4, etas=(0.5, 1 + 1e-9), stochastic_rounding=True, **way)
    for _ in range(20):
        step(optimizer, [torch.ones(4096)])
    assert float(p.detach().float().mean()) == pytest.approx(1 - 20e-4, abs=2e-4)
