"""Any layout of parameter and gradient gives the contiguous result, and only the parameter's own elements change."""

import copy

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal

from rmsprop.kernels import cpu
from rmsprop.torch import RMSprop
from tests.test_torch import TABLE

SHAPE = (6, 7, 8, 4)  # 1,344 elements: more than two of the kernel's blocks
GUARD = 7.0
OPTIONS = {"lr": 0.02, "momentum": 0.9, "centered": True, "weight_decay": 0.1, "eps": 1e-3}
#: A larger tensor's shape, and the view of it that is the parameter or gradient.
LAYOUTS = {
    "contiguous": (SHAPE, lambda x: x),
    "offset": ((1 + 1344 + 3,), lambda x: x[1:1345].view(SHAPE)),
    "every second": ((12, 7, 8, 4), lambda x: x[::2]),
    "every third of the last axis": ((6, 7, 8, 12), lambda x: x[..., 1::3]),
    "transposed": ((4, 8, 7, 6), lambda x: x.permute(3, 2, 1, 0)),
    "channels last": ((6, 8, 4, 7), lambda x: x.permute(0, 3, 1, 2)),
    "transposed, every second": ((8, 8, 7, 6), lambda x: x[::2].permute(3, 2, 1, 0)),
    "inner rows": ((6, 9, 8, 4), lambda x: x[:, 1:8]),
}
EXPANDED = {
    "one row for all": ((1, 7, 1, 4), lambda x: x.expand(SHAPE)),
    "one number for all": ((), lambda x: x.expand(SHAPE)),
}
SMALL = {
    "0-d": ((5,), lambda x: x[3]),
    "one element of many": ((5, 5), lambda x: x[3:4, 2:3]),
    "empty": ((4, 0, 3), lambda x: x),
    "empty slice": ((4, 3), lambda x: x[2:2, ::2]),
    "one column": ((5, 5), lambda x: x[:, 2]),
}
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.complex64]


def laid_out(layout, dtype, values=None):
    """A tensor full of guards, and the view of it that holds the values."""
    shape, view = layout
    base = torch.full(shape, GUARD, dtype=dtype)
    if values is not None:
        view(base).copy_(values)
    return base, view(base)


def random(shape, dtype, rng):
    x = torch.tensor(rng.normal(size=(2, *shape)))
    return (torch.complex(x[0], x[1]) if dtype.is_complex else x[0]).to(dtype)


def plain(x):
    x = torch.view_as_real(x.detach()) if x.is_complex() else x.detach()
    return x.to(torch.float64, copy=True).contiguous().numpy()


def check(make, p_layout, g_layout, dtype, steps=2):
    rng = np.random.default_rng(0)
    shape = p_layout[1](torch.empty(p_layout[0])).shape
    start = random(shape, dtype, rng)
    base, p = laid_out(p_layout, dtype, start)
    p = torch.nn.Parameter(p)
    q = torch.nn.Parameter(start.clone())
    ours, dense = (make([x], **OPTIONS) for x in (p, q))
    for _ in range(steps):
        memory = random(g_layout[0], dtype, rng)
        p.grad = g_layout[1](memory)
        q.grad = p.grad.clone(memory_format=torch.contiguous_format)
        before, version = memory.clone(), p.grad._version
        ours.step()
        dense.step()
        assert torch.equal(memory, before)
        assert p.grad._version == version
    assert p.numel() == 0 or not torch.equal(p.detach(), start)
    outside = torch.ones(p_layout[0], dtype=torch.bool)
    p_layout[1](outside).fill_(False)
    assert (base[outside] == GUARD).all()
    pairs = [(p, q)] + [(ours.state[p][k], dense.state[q][k]) for k in ("variance", "grad_avg", "momentum_buffer")]
    for x, y in pairs:
        if cpu.native is not None and not ours.defaults["foreach"]:
            assert_array_equal(plain(x), plain(y), strict=True)
        else:  # torch's sqrt rounds differently in vectors and alone
            assert_allclose(plain(x), plain(y), 2e-2 if dtype.itemsize == 2 else 1e-5, 1e-5)
    return p, start


@pytest.mark.parametrize("g_layout", LAYOUTS | EXPANDED)
@pytest.mark.parametrize("p_layout", LAYOUTS)
def test_layouts(p_layout, g_layout):
    check(RMSprop, LAYOUTS[p_layout], (LAYOUTS | EXPANDED)[g_layout], torch.float32)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_dtypes(dtype, layout):
    check(RMSprop, LAYOUTS[layout], LAYOUTS["transposed"], dtype)
    check(RMSprop, LAYOUTS["transposed, every second"], LAYOUTS[layout], dtype)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.complex64, torch.bfloat16], ids=str)
def test_lists(make, dtype, layout):
    check(make, LAYOUTS[layout], EXPANDED["one row for all"], dtype)


@pytest.mark.parametrize("layout", SMALL)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_small(make, dtype, layout):
    check(make, SMALL[layout], SMALL[layout], dtype)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_equals_torch_where_torch_is_contiguous(make, layout):
    p, start = check(make, LAYOUTS[layout], LAYOUTS["contiguous"], torch.float64, steps=5)
    rng = np.random.default_rng(0)
    q = torch.nn.Parameter(random(SHAPE, torch.float64, rng))
    assert torch.equal(q, start)
    theirs = torch.optim.RMSprop([q], **OPTIONS)
    for _ in range(5):
        q.grad = random(SHAPE, torch.float64, rng)
        theirs.step()
    assert_allclose(plain(p), plain(q), 1e-11, 1e-11)


@pytest.mark.parametrize("g_layout", ["contiguous", "transposed", "every second", "one row for all"])
@pytest.mark.parametrize("p_layout", ["contiguous", "every second", "transposed", "offset"])
@pytest.mark.parametrize("options", [*TABLE, {"fused": cpu.native is not None, "momentum": 0.9}], ids=str)
def test_every_configuration_in_every_layout_equals_torch(options, p_layout, g_layout):
    """torch steps a contiguous copy: its own fused kernels write beside strided parameters."""
    rng = np.random.default_rng(2)
    layout, gradients = LAYOUTS[p_layout], (LAYOUTS | EXPANDED)[g_layout]
    base, view = laid_out(layout, torch.float64, random(SHAPE, torch.float64, rng))
    p, q = torch.nn.Parameter(view), torch.nn.Parameter(view.clone(memory_format=torch.contiguous_format))
    ours = RMSprop([p], **copy.deepcopy(options))
    theirs = torch.optim.RMSprop([q], **{k: v for k, v in copy.deepcopy(options).items() if k != "fused"})
    for _ in range(4):
        p.grad = gradients[1](random(gradients[0], torch.float64, rng))
        q.grad = p.grad.contiguous()
        ours.step()
        theirs.step()
    assert_allclose(plain(p), plain(q), 1e-10, 1e-12)
    outside = torch.ones(layout[0], dtype=torch.bool)
    layout[1](outside).fill_(False)
    assert (base[outside] == GUARD).all()


@pytest.mark.parametrize("threads", [2, 5])
def test_threads_do_not_change_a_bit(monkeypatch, threads):
    rng = np.random.default_rng(1)
    x, g = (torch.tensor(rng.normal(size=(1024, 1031)), dtype=torch.float32) for _ in "xg")
    results = []
    for count in (1, threads):
        monkeypatch.setattr(torch, "get_num_threads", lambda count=count: count)
        params = [torch.nn.Parameter(x.clone()), torch.nn.Parameter(torch.empty(1031, 2048).T[::2].copy_(x))]
        optimizer = RMSprop(params, **OPTIONS)
        for p in params:
            p.grad = g
        optimizer.step()
        results += [p.detach().contiguous().numpy() for p in params]
    for y in results[1:]:
        assert_array_equal(y, results[0])


def test_negated_gradient(make):
    """`z.conj().imag` is a tensor whose memory has the other sign."""
    values = torch.tensor([1 + 2j, 3 - 4j]).conj().imag
    assert values.is_neg()
    p, q = (torch.nn.Parameter(x) for x in (torch.zeros(2), torch.zeros(2)))
    p.grad, q.grad = values, values.clone().resolve_neg()
    for x in (p, q):
        make([x]).step()
    assert_array_equal(p.detach(), q.detach())


def test_negated_parameter_is_refused(make):
    p = torch.nn.Parameter(torch.tensor([1 + 2j, 3 - 4j]).conj().imag)
    p.grad = torch.ones(2)
    with pytest.raises((ValueError, RuntimeError)):
        make([p]).step()
    assert p.tolist() == [-2, 4]


def test_conjugated_gradient(make):
    z = torch.tensor([1 + 2j, 3 - 4j])
    p, q = (torch.nn.Parameter(z.clone()) for _ in "pq")
    p.grad, q.grad = z.conj(), z.conj().resolve_conj()
    for x in (p, q):
        make([x]).step()
    assert torch.equal(p, q)
    assert (p.imag - z.imag).sign().tolist() == [1, -1]  # against the gradient, which is -2 and 4 there


def test_gradient_is_the_parameter(make):
    p, q = (torch.nn.Parameter(torch.linspace(-1, 1, 1000)) for _ in "pq")
    p.grad, q.grad = p.detach(), q.detach().clone()
    for x in (p, q):
        make([x]).step()
    assert torch.equal(p, q)


def test_elements_that_share_memory_are_refused(make):
    a, p = torch.nn.Parameter(torch.zeros(2)), torch.nn.Parameter(torch.zeros(1).expand(3))
    optimizer = make([{"params": [a]}, {"params": [p]}])
    a.grad, p.grad = torch.ones(2), torch.ones(3)
    with pytest.raises((ValueError, RuntimeError)):
        optimizer.step()
    assert (a == 0).all()
    assert (p == 0).all()
