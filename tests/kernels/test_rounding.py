"""Rounding at random: fair bits, no drift, and the same bits whatever way the work is split."""

import numpy as np
import pytest
import torch

from rmsprop import Rule
from rmsprop.kernels import cpu, rounding
from rmsprop.torch import RMSprop

needs_native = pytest.mark.skipif(cpu.native is None, reason="no native kernel on this machine")
INF, NAN = float("inf"), float("nan")
MANY = torch.arange(1 << 16)
SR = {"stochastic_rounding": True, "state_dtype": torch.bfloat16, "momentum": 0.9, "centered": True, "seed": 11}


def chi_square(counts):
    """How many standard deviations the statistic lies from its mean."""
    expected = counts.sum() / counts.numel()
    statistic = float(((counts - expected) ** 2 / expected).sum())
    freedom = counts.numel() - 1
    return (statistic - freedom) / (2 * freedom) ** 0.5


@pytest.mark.parametrize(("seed", "t", "start"), [(0, 1, 0), (2**63 - 1, 10**6, 2**40 + 5), (7, 2, 2**32 - (1 << 15))])
def test_bits_are_uniform_and_slots_independent(seed, t, start):
    slots = rounding.bits(seed, t, MANY + start)
    for random in slots:
        assert (int(random.min()) >= 0) & (int(random.max()) < 1 << 16)
        for shift in (0, 4, 8):
            assert abs(chi_square(torch.bincount(random >> shift & 0xFF, minlength=256))) < 5
    for i, a in enumerate(slots):
        for b in slots[i + 1 :]:
            assert abs(chi_square(torch.bincount((a >> 12) * 16 + (b >> 12), minlength=256))) < 5
        assert abs(chi_square(torch.bincount((a[1:] >> 12) * 16 + (a[:-1] >> 12), minlength=256))) < 5


def test_bits_depend_on_seed_step_and_both_halves_of_the_index():
    first = rounding.bits(1, 1, MANY)
    others = [rounding.bits(2, 1, MANY), rounding.bits(1, 2, MANY), rounding.bits(1, 1, MANY + 2**32)]
    others.append(rounding.bits(2**62 + 1, 1, MANY))
    for other in others:
        for a, b in zip(first, other, strict=True):
            together = torch.bincount((a >> 12) * 16 + (b >> 12), minlength=256)
            assert abs(chi_square(together)) < 5
    assert all(map(torch.equal, rounding.bits(1, torch.tensor(2.0), MANY), rounding.bits(1, 2, MANY)))


TINY = torch.finfo(torch.float32).tiny
NUMBERS = [100.001, -100.001, 1 / 3, -1 / 3, 1.999, -1.999, 0.999, 255.9, 1e-30, -1e-30, 1.3 * TINY, TINY / 3, 3e38]


@pytest.mark.parametrize("x", NUMBERS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_mean_is_the_number(x, dtype):
    random = rounding.bits(3, 1, MANY)[0]
    given = torch.full((len(MANY),), x, dtype=dtype)
    rounded = rounding.dithered(given, random).double()
    x = float(given[0].float())
    assert len(rounded.unique()) == 2
    lower, upper = float(rounded.min()), float(rounded.max())
    assert lower < x < upper
    error = (upper - lower) / 2 / len(MANY) ** 0.5
    assert abs(float(rounded.mean()) - x) < 4 * error


def test_representable_and_special_numbers_stay():
    whole = torch.arange(1 << 16).to(torch.int32).to(torch.int16).view(torch.bfloat16)
    for random in (torch.full((1 << 16,), 0xFFFF), torch.zeros(1 << 16, dtype=torch.int64)):
        for dtype in (torch.float32, torch.float64):
            rounded = rounding.dithered(whole.to(dtype), random)
            same = rounded.view(torch.int16) == whole.view(torch.int16)
            assert (same | (rounded.isnan() & whole.isnan())).all()
    special = torch.tensor([NAN, -NAN, INF, -INF, 0.0, -0.0])
    rounded = rounding.dithered(special, torch.full((6,), 0xFFFF))
    assert rounded[:2].isnan().all()
    assert rounded[2:].tolist() == [INF, -INF, 0, 0]
    assert rounded.signbit().tolist()[2:] == [False, True, False, True]


def fresh(shape=(3, 64), seed=0):
    g = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=g).to(torch.bfloat16)


def stepped(params, steps=3, **options):
    """Parameters and state after some steps, all as row-major numbers one after the other."""
    params = [torch.nn.Parameter(p) for p in params]
    optimizer = RMSprop(params, **{"lr": 0.01, **SR, **options})
    for t in range(steps):
        whole = fresh((sum(p.numel() for p in params),), t + 1)
        for p, g in zip(params, whole.split([p.numel() for p in params]), strict=True):
            p.grad = g.view(p.shape)
        optimizer.step()
    names = [k for k in optimizer.state[params[0]] if k != "step"]
    columns = [[p.detach() for p in params], *([optimizer.state[p][k] for p in params] for k in names)]
    return [torch.cat([x.contiguous().view(-1) for x in column]) for column in columns]


def same(a, b):
    return all(x.dtype == y.dtype and torch.equal(x, y) for x, y in zip(a, b, strict=True))


@needs_native
@pytest.mark.parametrize("foreach", [True, False, None])
@pytest.mark.parametrize("state_dtype", [torch.bfloat16, torch.float32], ids=str)
def test_kernel_and_torch_round_alike(state_dtype, foreach):
    """lr, alpha and gradients are such that all arithmetic before the rounding is exact, torch's root too."""
    exact = {"lr": 2.0**-9, "alpha": 0.0, "eps": 0.0, "stochastic_rounding": True, "state_dtype": state_dtype}
    results = []
    for fused in (None, False):
        params = [torch.nn.Parameter(fresh(s)) for s in ((1000,), (8, 33))]
        optimizer = RMSprop(params, **exact, seed=5, fused=fused, foreach=foreach if fused is False else None)
        for t in range(4):
            for i, p in enumerate(params):
                powers = 2.0 ** (torch.arange(p.numel()).view(p.shape) % 7)
                p.grad = fresh(p.shape, 9 * t + i).sign() * powers.to(torch.bfloat16)
            optimizer.step()
        results.append([*params, *(optimizer.state[p]["square_avg"] for p in params)])
    assert same(*results)
    assert not torch.equal(results[0][0], fresh((1000,)))


@needs_native
@pytest.mark.parametrize("foreach", [True, False])
@pytest.mark.parametrize("centered", [False, True])
def test_kernel_and_torch_round_all_state_alike(centered, foreach):
    """A floor under the root keeps it out: what is left is additions and products, which IEEE rounds in one way."""
    exact = {"alpha": 0.75, "momentum": 0.5, "lr": 0.5, "eps": 2.0**10, "epsilon_mode": "floor", "centered": centered}
    results = []
    for options in ({}, {"fused": False, "foreach": foreach}):
        results.append(stepped([fresh((700,)), fresh((8, 33))], steps=6, **exact, **options))
    assert same(*results)
    assert len(results[0]) == 3 + centered


@pytest.mark.parametrize("fused", [None, False])
def test_one_tensor_or_several(fused):
    whole = fresh((40_000,))
    parts = whole.clone().split([1, 20_000, 9_999, 10_000])
    one = stepped([whole.clone()], fused=fused, foreach=False if fused is False else None)
    assert same(one, stepped([p.clone() for p in parts], fused=fused, foreach=False if fused is False else None))
    assert not same(one, stepped([whole.clone()], fused=fused, seed=12))


LAYOUTS = {
    "transposed": ((11, 7, 9), (2, 1, 0)),
    "channels last": ((9, 11, 7), (0, 2, 1)),
}


@pytest.mark.parametrize("fused", [None, False])
@pytest.mark.parametrize("layout", [*LAYOUTS, "strided"])
def test_layout_does_not_matter(layout, fused):
    values = fresh((9, 7, 11))
    if layout == "strided":
        p = torch.zeros(9, 7, 33, dtype=torch.bfloat16)[..., 1::3]
    else:
        shape, order = LAYOUTS[layout]
        p = torch.zeros(shape, dtype=torch.bfloat16).permute(order)
    p.copy_(values)
    assert not p.is_contiguous()
    alone = {"fused": fused, "foreach": False if fused is False else None}
    assert same(stepped([values.clone()], **alone), stepped([p], **alone))


@needs_native
def test_threads_do_not_matter():
    values = fresh((1025, 1031))
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(stepped([values.clone(), values.T.clone().T], steps=2))
    finally:
        torch.set_num_threads(before)
    assert same(results[0], results[1])
    assert same(results[0], results[2])


def direct(offset, n, start=0, momentum=0.9, p=None):
    """A step of n elements from an index on, by `native.step` itself; values depend on the index after `start`."""
    index = torch.arange(start, start + n)
    p = torch.empty(n, dtype=torch.bfloat16) if p is None else p
    p.copy_(100 + (index % 50).to(torch.bfloat16))
    rule = Rule(lr=2.0**-6, beta=0.0, epsilon=0.0, momentum=momentum)
    names = rule.slots().values()
    state = {"step": torch.zeros(()), **{name: torch.zeros(p.shape, dtype=torch.bfloat16) for name in names}}
    g = torch.ones_like(p) if momentum else torch.ones(n, dtype=torch.bfloat16)
    scalars, flags = cpu.coefficients(rule, stochastic=True)
    cpu.step([cpu.Group(scalars, flags, [p], [g], [state], None, 5, [offset])], 1)
    return [p, *(state[name] for name in names)]


@needs_native
@pytest.mark.parametrize("layout", ["contiguous", "strided"])
@pytest.mark.parametrize("before", [1, 100, 512, 70_000])
@pytest.mark.parametrize("boundary", [2**32, 2**33])
def test_index_beyond_the_lower_32_bits(boundary, before, layout):
    n = before + 70_000
    p = None if layout == "contiguous" else torch.empty(n, 2, dtype=torch.bfloat16)[:, 0]
    whole = direct(boundary - before, n, p=p)
    parts = direct(boundary - before, before), direct(boundary, n - before, start=before)
    assert same(whole, [torch.cat(pair) for pair in zip(*parts, strict=True)])


@needs_native
@pytest.mark.parametrize("offset", [0, 2**32 - 300, 2**32, 2**40 + 1])
def test_kernel_has_the_bits_of_the_text(offset):
    p = direct(offset, 1000, momentum=0.0)[0]
    start = 100 + (torch.arange(1000) % 50)
    value = start.to(torch.bfloat16).float() - 2.0**-6
    random = rounding.bits(5, 1, torch.arange(offset, offset + 1000))[0]
    expected = rounding.dithered(value, random)
    np.testing.assert_array_equal(p.float(), expected.float())
