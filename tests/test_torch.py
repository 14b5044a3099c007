"""`rmsprop.torch.RMSprop` against `torch.optim.RMSprop`, against float64 written out, and against the rule."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal

import rmsprop
from rmsprop import DIALECTS
from rmsprop.kernels import cpu, lists
from rmsprop.rule import OPTIONS, update
from rmsprop.torch import RMSprop

#: The configurations of torch's own table (torch/testing/_internal/common_optimizers.py, 2.13), and a few more.
TABLE = [
    {},
    {"lr": 0.001},
    {"weight_decay": 0.1},
    {"maximize": True},
    {"weight_decay": 0.1, "centered": True},
    {"maximize": True, "weight_decay": 0.1},
    {"weight_decay": 0.1, "centered": True, "momentum": 0.1},
    {"weight_decay": 0.1, "centered": True, "momentum": 0.1, "maximize": True},
    {"momentum": 0.9, "alpha": 0.9, "eps": 1e-3},
    {"centered": True, "alpha": 0.5, "eps": 0.1, "lr": torch.tensor(0.003)},
]
DTYPES = {
    torch.float32: (1e-5, 3e-6),
    torch.float64: (1e-12, 1e-12),
    torch.complex64: (1e-5, 3e-6),
    torch.bfloat16: (2**-7, 2**-10),
    torch.float16: (2**-10, 2**-13),
}
STEPS = 21
ARGUMENTS = {"alpha": 0.99, "eps": 1e-8, "weight_decay": 0, "momentum": 0, "centered": False}
SIZES = [(37,), ()]


def problem(dtype, seed=0):
    """Parameters, some of them 0, and gradients from 1e-9 to 1, so that every term of the rule shows somewhere."""
    rng = np.random.default_rng(seed)

    def draw(shape, scale):
        x = rng.normal(size=(*shape, 2)) * scale(rng.uniform(size=(*shape, 2)))
        return (
            torch.view_as_complex(torch.tensor(x)).to(dtype) if dtype.is_complex else torch.tensor(x[..., 0]).to(dtype)
        )

    params = [torch.nn.Parameter(draw(s, lambda x: x > 0.3)) for s in SIZES]
    return params, [[draw(s, lambda x: 10 ** (-9 * x * (x > 0.5))) for s in SIZES] for _ in range(STEPS)]


def run(optimizer, grads, after=lambda: None):
    """A step for each row of gradients, with another lr every time; the first group's learning rates."""
    params = [p for group in optimizer.param_groups for p in group["params"]]
    lrs = []
    for t, row in enumerate(grads):
        for p, g in zip(params, row, strict=True):
            p.grad = g.to(p.dtype)
        for group in optimizer.param_groups:
            group["lr"] = group["lr"] * (1.5 if t % 3 == 0 else 0.8)
        optimizer.step()
        lrs.append(float(optimizer.param_groups[0]["lr"]))
        after()
    return lrs


def array(x):
    x = torch.view_as_real(x.detach()) if x.is_complex() else x.detach()
    return x.to(torch.float64, copy=True).numpy()


def reference(p, grads, options):
    """The formula of torch's documentation in float64; the options are functions of the step."""
    s, m, b = np.zeros_like(p), np.zeros_like(p), np.zeros_like(p)
    for t, gradient in enumerate(grads):
        o = {**ARGUMENTS, **options(t)}
        g = (-gradient if o.get("maximize") else gradient) + o["weight_decay"] * p
        s = o["alpha"] * s + (1 - o["alpha"]) * g * g
        m = o["alpha"] * m + (1 - o["alpha"]) * g if o["centered"] else m
        u = g / (np.sqrt(s - m * m if o["centered"] else s) + o["eps"])
        b = o["momentum"] * b + u if o["momentum"] else b
        p = p - o["lr"] * (b if o["momentum"] else u)
    return p


@pytest.mark.parametrize("options", TABLE, ids=str)
@pytest.mark.parametrize("make", ["native", "foreach"], indirect=True)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_equals_torch_and_the_formula_in_float64(make, dtype, options):
    params, grads = problem(dtype)
    starts = [array(p) for p in params]
    narrow = dtype.itemsize == 2
    peers = [torch.nn.Parameter(p.detach().to(torch.float32 if narrow else dtype, copy=True)) for p in params]
    theirs = torch.optim.RMSprop(peers, **{"lr": 0.01, **options})

    def narrowed():
        for q in peers if narrow else ():
            q.data = q.data.to(dtype).float()

    run(theirs, grads, narrowed)
    ours = make(params, **options)
    lrs = run(ours, grads)
    rtol, atol = DTYPES[dtype]
    for i, (p, q) in enumerate(zip(params, peers, strict=True)):
        assert p.dtype == dtype
        assert_allclose(array(p), array(q), rtol, atol)
        if not narrow:
            expected = reference(starts[i], [array(row[i]) for row in grads], lambda t: {**options, "lr": lrs[t]})
            assert_allclose(array(p), expected, rtol, atol)
        mine, other = ours.state[p], theirs.state[q]
        assert mine["step"] == other["step"] == STEPS
        if not options.get("centered"):
            assert_allclose(array(mine["square_avg"]), array(other["square_avg"]), 1e-2 if narrow else 1e-5, 1e-12)


@pytest.mark.skipif(cpu.native is None, reason="no native kernel on this machine")
@pytest.mark.parametrize("foreach", [None, False, True])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_engine_is_the_one_meant(monkeypatch, dtype, foreach):
    rows = {"native": 0, "lists": 0}
    native, listed = cpu.native.step, lists.step

    def count_native(groups, threads):
        rows["native"] += sum(len(group[2]) for group in groups)
        return native(groups, threads)

    def count_lists(rule, t, params, *rest):
        rows["lists"] += len(params)
        return listed(rule, t, params, *rest)

    monkeypatch.setattr(cpu, "native", SimpleNamespace(step=count_native))
    monkeypatch.setattr(lists, "step", count_lists)
    params, grads = problem(dtype)
    run(RMSprop(params, foreach=foreach), grads[:1])
    assert (rows["native"] >= len(SIZES), rows["lists"]) == ((False, len(SIZES)) if foreach else (True, 0))


@pytest.mark.parametrize("make", ["native", "foreach"], indirect=True)
@pytest.mark.parametrize("name", DIALECTS)
def test_dialect_is_its_rule(make, name):
    rule = DIALECTS[name].rule.replace(weight_decay=0.01)
    params, grads = problem(torch.float64, seed=2)
    expected = [array(p) for p in params]
    states = [[np.full_like(x, s) for s in (rule.initial_square, 0, 0)] for x in expected]
    limits = {"tiny": np.finfo(float).tiny, "largest": np.finfo(float).max, "sqrt": np.sqrt}
    limits |= {"divide": np.divide, "where": np.where}
    optimizer = make(params, dialect=name, weight_decay=0.01)
    with np.errstate(all="ignore"):
        for t, row in enumerate(grads, 1):
            for i, g in enumerate(row):
                keys = rule.scalars(t) | rule.flags() | limits
                expected[i], _, *states[i], _ = update(expected[i], array(g), *states[i], **keys)
            for p, g in zip(params, row, strict=True):
                p.grad = g
            optimizer.step()
    for p, x in zip(params, expected, strict=True):
        assert_allclose(array(p), x, 1e-13, 1e-13)
    group = optimizer.param_groups[0]
    ours = {"alpha": rule.beta, "eps": rule.epsilon, "decoupled_weight_decay": rule.decay_mode == "decoupled"}
    shared = {key: getattr(rule, key) for key in OPTIONS if key not in ("beta", "epsilon", "decay_mode")}
    assert group.items() >= (ours | shared).items()


CHANGES = [
    {"momentum": 0.9},
    {"momentum": 0.0},
    {"centered": True},
    {"centered": False},
    {"alpha": 0.5, "eps": 1e-2, "weight_decay": 0.1, "maximize": True, "lr": 0.03},
]


@pytest.mark.parametrize("start", [{}, {"centered": True, "momentum": 0.5}], ids=str)
@pytest.mark.parametrize("change", CHANGES, ids=str)
def test_options_changed_mid_run(make, start, change):
    params, grads = problem(torch.float64, seed=3)
    starts = [array(p) for p in params]
    optimizer = make(params, lr=0.01, **start)
    phases = [{k: optimizer.defaults[k] for k in ("lr", "maximize", *ARGUMENTS)}]
    phases += [phases[0] | change, phases[0]]
    for t, row in enumerate(grads):
        optimizer.param_groups[0].update(phases[t // 7])
        for p, g in zip(params, row, strict=True):
            p.grad = g
        optimizer.step()
    for i, p in enumerate(params):
        expected = reference(starts[i], [array(row[i]) for row in grads], lambda t: phases[t // 7])
        assert_allclose(array(p), expected, 1e-9, 1e-9)


def test_tensor_lr_and_scheduler(make):
    params, grads = problem(torch.float32)
    peers, _ = problem(torch.float32)
    lr = torch.tensor([0.01])
    ours, theirs = make(params, lr=lr), torch.optim.RMSprop(peers, lr=0.01)
    schedulers = [torch.optim.lr_scheduler.ExponentialLR(o, 0.7) for o in (ours, theirs)]
    for row in grads:
        for o, scheduler in zip((ours, theirs), schedulers, strict=True):
            for p, g in zip(o.param_groups[0]["params"], row, strict=True):
                p.grad = g
            o.step()
            scheduler.step()
    assert ours.param_groups[0]["lr"] is lr
    for p, q in zip(params, peers, strict=True):
        assert_allclose(array(p), array(q), 1e-5, 1e-6)


def test_groups_names_and_late_group(make):
    options = [{"lr": 0.1, "alpha": 0.5, "momentum": 0.9}, {"centered": True, "weight_decay": 0.1, "maximize": True}]
    both = []
    for cls in (make, torch.optim.RMSprop):
        params, grads = problem(torch.float32)
        groups = [{"params": [(f"p{i}", p)], **o} for i, (p, o) in enumerate(zip(params, options, strict=True))]
        optimizer = cls(groups[:1], eps=1e-4)
        optimizer.add_param_group(groups[1])
        run(optimizer, grads)
        both.append((optimizer, params))
    (ours, params), (theirs, peers) = both
    for p, q, a, b in zip(params, peers, ours.param_groups, theirs.param_groups, strict=True):
        assert_allclose(array(p), array(q), 1e-5, 3e-6)
        names = b.keys() - {"params", "foreach"}
        assert {k: a[k] for k in names} == {k: b[k] for k in names}


def test_minimises_and_front_ends_agree():
    x = np.linspace(-1, 1, 64).astype(np.float32)
    p, y = torch.nn.Parameter(torch.tensor(x)), x.copy()
    ours, plain = (cls([z], dialect="keras", momentum=0.5) for cls, z in ((RMSprop, p), (rmsprop.RMSprop, y)))

    def closure():
        ours.zero_grad()
        loss = (p * p).sum()
        loss.backward()
        return loss

    for _ in range(20):
        with torch.no_grad():
            assert ours.step(closure).requires_grad
        plain.step([2 * y])
    if cpu.native is not None:
        assert_array_equal(p.detach().numpy(), y)
    else:  # torch's sqrt does not round as NumPy's does
        assert_allclose(p.detach().numpy(), y, rtol=1e-5)
    assert np.abs(y).sum() < np.abs(x).sum()
