"""Plain bfloat16 steps have the bits of the rule on float32, rounded. NumPy has no such numbers, torch has."""

import numpy as np
import pytest
import torch

from rmsprop import Rule
from rmsprop.rule import update
from tests.cases import LENGTHS
from tests.kernels.test_cpu import ENGINES, group

NATIVE = {name: step for name, step in ENGINES.items() if name != "blocked"}
engine = pytest.mark.parametrize("step", NATIVE.values(), ids=NATIVE)
EVERY = torch.arange(1 << 16).to(torch.uint16).view(torch.bfloat16)


OPTIONS = [{}, {"epsilon": 0.0}, {"lr": 1e30}, {"lr": 0.02, "beta": 0.9, "epsilon_mode": "both"}]


def shuffled(x, seed):
    return x[torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))]


def state_of(v):
    return {"step": torch.zeros(()), "square_avg": v}


def expected(rule, t, p, g, v):
    scalars = {name: np.float32(x) for name, x in rule.scalars(t).items()}
    limits = {"tiny": np.finfo(np.float32).tiny, "largest": np.finfo(np.float32).max}
    with np.errstate(all="ignore"):
        p1, _, v1, *_ = update(
            p.float().numpy(), g.float().numpy(), v.numpy(), 0.0, 0.0, **scalars, **limits, **rule.flags(),
            sqrt=np.sqrt, where=np.where,
        )  # fmt: skip
    return torch.from_numpy(p1).bfloat16(), torch.from_numpy(v1)


def assert_same(a, b):
    torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True)
    number = ~a.isnan()
    assert torch.equal(a.signbit() & number, b.signbit() & number)


@engine
def test_a_step_of_zero_leaves_every_number(step):
    p, quiet = EVERY.clone(), 0x40 * EVERY.isnan().to(torch.int32)
    step([group(Rule(), [p], [torch.zeros_like(p)], [state_of(torch.zeros(len(p)))])], 1)
    assert torch.equal(p.view(torch.uint16).int(), EVERY.view(torch.uint16).int() | quiet)


@engine
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_every_number_meets_every_kind_of_gradient(step, options):
    rule = Rule(**options)
    v = (10.0 ** torch.linspace(-45, 38, len(EVERY))).nan_to_num()
    v[::7] = 0
    v[3::97] = torch.tensor(0x7FFFFFFF, dtype=torch.int32).view(torch.float32)  # a NaN that adding to would make a zero
    p, g, v = EVERY.clone(), shuffled(EVERY, 1), shuffled(v, 2)
    state = state_of(v.clone())
    for t in range(1, 4):
        wanted, v = expected(rule, t, p, g, v)
        step([group(rule, [p], [g], [state])], 2)
        assert_same(p, wanted)
        assert_same(state["square_avg"], v)
        g = shuffled(g, 10 + t)


@engine
@pytest.mark.parametrize("n", [*LENGTHS, 15, 16, 31, 32, 33, 48, 1 << 20 | 5])
def test_any_length_touches_nothing_else(step, n):
    rule = Rule(lr=0.1)
    p, g, v = (torch.from_numpy(np.random.default_rng(i).random(n + 2, np.float32)) for i in range(3))
    p, g = p.bfloat16(), g.bfloat16()
    wanted, wanted_v = expected(rule, 1, p[1:-1], g[1:-1], v[1:-1])
    ends = [(x, x[0].item(), x[-1].item()) for x in (p, v)]
    step([group(rule, [p[1:-1]], [g[1:-1]], [state_of(v[1:-1])])], 2)
    assert_same(p[1:-1], wanted)
    assert_same(v[1:-1], wanted_v)
    assert all((x[0], x[-1]) == (first, last) for x, first, last in ends)


@engine
def test_the_gradient_may_be_the_parameter(step):
    rule, p = Rule(lr=0.1), shuffled(EVERY, 3)[:999].clone()
    wanted, v = expected(rule, 1, p, p, torch.zeros(len(p)))
    state = state_of(torch.zeros(len(p)))
    step([group(rule, [p], [p], [state])], 1)
    assert_same(p, wanted)
    assert_same(state["square_avg"], v)


@engine
def test_strided_numbers_get_the_same_bits(step):
    """Those pass through blocks. NaNs keep their payload, too."""
    p, g = EVERY.clone(), shuffled(EVERY, 4)
    strided = torch.stack([p, p], 1)[:, 0]
    step([group(Rule(), [p, strided], [g, g], [state_of(torch.zeros(len(p))) for _ in range(2)])], 1)
    assert torch.equal(p.view(torch.int16), strided.view(torch.int16))
