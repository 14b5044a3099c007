"""Steps of bfloat16 parameters have the bits of the rule on float32, rounded. NumPy has no such numbers, torch has."""

import numpy as np
import pytest
import torch

from rmsprop import Rule
from rmsprop.averaging import SLOT, rate
from rmsprop.averaging import update as average
from rmsprop.kernels import cpu
from tests.cases import COMBINATIONS, LENGTHS, RULES
from tests.kernels.test_cpu import ENGINES, whole_array_step

NATIVE = {name: step for name, step in ENGINES.items() if name != "blocked"}
engine = pytest.mark.parametrize("step", NATIVE.values(), ids=NATIVE)
EVERY = torch.arange(1 << 16).to(torch.uint16).view(torch.bfloat16)
CASES = RULES | COMBINATIONS | {"huge steps": Rule(lr=1e30)}
GAMMA = 8.0


def shuffled(x, seed):
    return x[torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))]


def state_of(rule, v, p=None):
    others = {name: torch.zeros_like(v) for slot, name in rule.slots().items() if slot != "v"}
    averages = {} if p is None else {SLOT: p.float()}
    return {"step": torch.zeros(()), rule.slots()["v"]: v.clone(), **others, **averages}


def group(rule, params, grads, states, gamma=None):
    return (*cpu.coefficients(rule, gamma=gamma), params, grads, states, None)


def expected(rule, t, p, g, state):
    """(parameter, state, number of entries skipped)"""
    arrays = {name: x.numpy() for name, x in state.items()}
    p1, new, skipped = whole_array_step(rule, t, p.float().numpy(), g.float().numpy(), arrays)
    p1 = torch.from_numpy(p1).bfloat16()
    if SLOT in state:
        tiny = float(np.finfo(np.float32).tiny)
        with np.errstate(all="ignore"):
            new[SLOT] = average(arrays[SLOT], p1.float().numpy(), rate(t, GAMMA), tiny, np.where)
    return p1, {name: torch.from_numpy(np.asarray(x)) for name, x in new.items()}, skipped


def assert_same(a, b):
    torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True)
    number = ~a.isnan()
    assert torch.equal(a.signbit() & number, b.signbit() & number)


def assert_same_state(state, wanted):
    for name, x in wanted.items():
        if name != "step":
            assert_same(state[name], x)


@engine
@pytest.mark.parametrize("rule", [Rule(), Rule(momentum=0.9), Rule(clip=1.0)], ids=str)
def test_a_step_of_zero_leaves_every_number(step, rule):
    p, quiet = EVERY.clone(), 0x40 * EVERY.isnan().to(torch.int32)
    step([group(rule, [p], [torch.zeros_like(p)], [state_of(rule, torch.zeros(len(p)))])], 1)
    assert torch.equal(p.view(torch.uint16).int(), EVERY.view(torch.uint16).int() | quiet)


@engine
@pytest.mark.parametrize("averaging", [False, True])
@pytest.mark.parametrize("rule", CASES.values(), ids=CASES)
def test_every_number_meets_every_kind_of_gradient(step, rule, averaging):
    v = (10.0 ** torch.linspace(-45, 38, len(EVERY))).nan_to_num()
    v[::7] = 0
    v[3::97] = torch.tensor(0x7FFFFFFF, dtype=torch.int32).view(torch.float32)  # a NaN that adding to would make a zero
    p, g = EVERY.clone(), shuffled(EVERY, 1)
    state = state_of(rule, shuffled(v, 2), p if averaging else None)
    wanted = {name: x.clone() for name, x in state.items()}
    for t in range(1, 4):
        wanted_p, wanted, count = expected(rule, t, p, g, wanted)
        assert step([group(rule, [p], [g], [state], GAMMA if averaging else None)], 2) == count
        assert_same(p, wanted_p)
        assert_same_state(state, wanted)
        g = shuffled(g, 10 + t)


@engine
@pytest.mark.parametrize("rule", [Rule(lr=0.1), RULES["everything"]], ids=["plain", "everything"])
@pytest.mark.parametrize("n", [*LENGTHS, 15, 16, 31, 32, 33, 48, 1 << 20 | 5])
def test_any_length_touches_nothing_else(step, n, rule):
    p, g, *slots = (torch.from_numpy(np.random.default_rng(i).random(n + 2, np.float32)) for i in range(6))
    p, g = p.bfloat16(), g.bfloat16()
    whole = dict(zip((*rule.slots().values(), SLOT), slots, strict=False))
    inside = {"step": torch.tensor(3.0), **{name: x[1:-1] for name, x in whole.items()}}
    wanted_p, wanted, _ = expected(rule, 4, p[1:-1], g[1:-1], {name: x.clone() for name, x in inside.items()})
    ends = [(x, x[0].item(), x[-1].item()) for x in (p, *whole.values())]
    gradient = g.clone()
    step([group(rule, [p[1:-1]], [g[1:-1]], [inside], GAMMA)], 2)
    assert_same(p[1:-1], wanted_p)
    assert_same_state(inside, wanted)
    assert torch.equal(g, gradient)
    assert all((x[0], x[-1]) == (first, last) for x, first, last in ends)


@engine
@pytest.mark.parametrize("rule", [Rule(lr=0.1), RULES["everything"]], ids=["plain", "everything"])
def test_the_gradient_may_be_the_parameter(step, rule):
    p = shuffled(EVERY, 3)[:999].clone()
    state = state_of(rule, torch.zeros(len(p)))
    wanted_p, wanted, _ = expected(rule, 1, p, p, {name: x.clone() for name, x in state.items()})
    step([group(rule, [p], [p], [state])], 1)
    assert_same(p, wanted_p)
    assert_same_state(state, wanted)


@engine
@pytest.mark.parametrize("rule", [Rule(), RULES["everything"]], ids=["plain", "everything"])
def test_strided_numbers_get_the_same_bits(step, rule):
    """Those pass through blocks."""
    p, g = EVERY.clone(), shuffled(EVERY, 4)
    strided = torch.stack([p, p], 1)[:, 0]
    state, other = (state_of(rule, torch.zeros(len(p)), p) for _ in range(2))
    for _ in range(3):
        step([group(rule, [p, strided], [g, g], [state, other], GAMMA)], 1)
    assert_same(p, strided)
    assert_same_state(other, state)
