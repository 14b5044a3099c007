"""Averages inside the step: every engine against the definition on whole arrays, bit for bit."""

import numpy as np
import pytest

from rmsprop import Rule
from rmsprop.averaging import SLOT, rate, update
from rmsprop.kernels import cpu
from rmsprop.kernels.rows import Rows
from tests.cases import COMBINATIONS, DTYPES, LENGTHS, RULES, gradients, parameter, special
from tests.kernels.test_cpu import ENGINES, engine, layouts, needs_native, state_of, whole_array_step


def averaged_state(rule, p):
    return state_of(rule, p) | {SLOT: p.astype(np.promote_types(p.dtype, np.float32))}


def group(rule, params, grads, states, gamma=8.0, **options):
    return (*cpu.coefficients(rule, gamma=gamma, **options), list(params), list(grads), list(states), None)


def whole(rule, t, p, g, state, gamma=8.0):
    """(parameter, state, number of entries skipped): the rule and the definition of the average on whole arrays."""
    p, new, skipped = whole_array_step(rule, t, p, g, state)
    dtype = state[SLOT].dtype
    with np.errstate(all="ignore"):
        average = update(state[SLOT], p.astype(dtype), rate(t, gamma), float(np.finfo(dtype).tiny), np.where)
    return p, {**new, SLOT: average}, skipped


@engine
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rule", (RULES | COMBINATIONS).values(), ids=RULES | COMBINATIONS)
def test_equals_the_definition_bit_for_bit_and_leaves_the_step_alone(step, rule, dtype):
    params = [parameter(n, dtype) for n in LENGTHS]
    alone = [p.copy() for p in params]
    states, plain = [averaged_state(rule, p) for p in params], [state_of(rule, p) for p in params]
    expected = [(p.copy(), {k: x.copy() for k, x in s.items()}) for p, s in zip(params, states, strict=True)]
    for t, grads in enumerate(zip(*(gradients(n, dtype) for n in LENGTHS), strict=True), 1):
        skipped = step([group(rule, params, grads, states)], 2)
        step([group(rule, alone, grads, plain, None)], 2)
        steps = [whole(rule, t, p, g, s) for (p, s), g in zip(expected, grads, strict=True)]
        expected = [(p, s) for p, s, _ in steps]
        assert skipped == sum(count for *_, count in steps)
    for p, state, (q, wanted) in zip(params, states, expected, strict=True):
        np.testing.assert_array_equal(p, q, strict=True)
        for name, value in wanted.items():
            np.testing.assert_array_equal(state[name], value, strict=True)
    for p, q, state, other in zip(params, alone, states, plain, strict=True):
        np.testing.assert_array_equal(p, q, strict=True)
        for name, value in other.items():
            np.testing.assert_array_equal(state[name], value, strict=True)


@engine
@pytest.mark.parametrize("dtype", DTYPES)
def test_special_numbers(step, dtype):
    awkward = special(dtype)
    p, a = (x.ravel().copy() for x in np.meshgrid(awkward, awkward))
    for t in (1, 5):
        state = averaged_state(Rule(), p)
        with np.errstate(all="ignore"):
            state[SLOT][...], state["step"][...] = a, t - 1
        q, g = p.copy(), np.zeros_like(p)
        wanted_p, wanted, _ = whole(Rule(), t, p, g, state)
        step([group(Rule(), [q], [g], [state])], 1)
        np.testing.assert_array_equal(q, wanted_p)
        np.testing.assert_array_equal(state[SLOT], wanted[SLOT])


@engine
@pytest.mark.parametrize("layout", layouts(np.float32))
@pytest.mark.parametrize("dtype", DTYPES)
def test_any_layout(step, layout, dtype):
    value, g = parameter(210, dtype).reshape(6, 35), parameter(210, dtype, 5).reshape(6, 35)
    _, p = layouts(dtype)[layout]
    p[...] = value
    state = averaged_state(RULES["everything"], value)
    state[SLOT] = np.asfortranarray(state[SLOT])
    wanted_p, wanted, _ = whole(RULES["everything"], 1, value, g, state)
    step([group(RULES["everything"], [p], [g], [state])], 1)
    np.testing.assert_array_equal(p, wanted_p)
    np.testing.assert_array_equal(state[SLOT], wanted[SLOT])


@engine
@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_any_number_of_threads(step, dtype):
    n = (1 << 20) + 4321
    start, g = parameter(n, dtype), parameter(n, dtype, 9)
    state = averaged_state(Rule(), start)
    state["step"][...] = 3
    _, wanted, _ = whole(Rule(), 4, start, g, state)
    for threads in (1, 3):
        own = {name: x.copy() for name, x in state.items()}
        step([group(Rule(), [start.copy()], [g], [own])], threads)
        np.testing.assert_array_equal(own[SLOT], wanted[SLOT])


@engine
def test_each_parameter_has_the_rate_of_its_own_step(step):
    params, g = [np.ones(3) for _ in range(3)], np.ones(3)
    states = [averaged_state(Rule(), p) for p in params]
    for state, t in zip(states, (0, 6, 0), strict=True):
        state["step"][...] = t
        state[SLOT][...] = 2
    wanted = [whole(Rule(), int(s["step"]) + 1, p, g, s, 2.0)[1][SLOT] for p, s in zip(params, states, strict=True)]
    step([group(Rule(), params, [g, g, None], states, 2.0)], 1)
    for state, average in zip(states, [*wanted[:2], np.full(3, 2.0)], strict=True):
        np.testing.assert_array_equal(state[SLOT], average)


@needs_native
def test_a_rate_that_is_1_in_float32_alone_is_no_first_step():
    """Both sides look at the double: gamma of 1e9 has a second step of rate 1 - 1e-9."""
    for step in ENGINES.values():
        p, state = np.full(5, 3, np.float32), averaged_state(Rule(), np.full(5, 1e-9, np.float32))
        state["step"][...] = 1
        _, wanted, _ = whole(Rule(), 2, p, p, state, 1e9)
        step([group(Rule(), [p], [p.copy()], [state], 1e9)], 1)
        np.testing.assert_array_equal(state[SLOT], wanted[SLOT])


@engine
def test_row_wise_state(step):
    rule = RULES["momentum"]
    p, g = parameter(600, np.float32).reshape(6, 100), parameter(600, np.float32, 3).reshape(6, 100)
    results = []
    for gamma in (8.0, None):
        q, state = p.copy(), {**averaged_state(rule, p), "square_avg": np.zeros((6, 1), np.float32)}
        state["step"][...] = 4
        step([group(rule, [q], [g], [state], gamma, rowwise=True)], 1)
        results.append((q, state[SLOT]))
    np.testing.assert_array_equal(results[0][0], results[1][0])
    wanted = update(p, results[1][0], rate(5, 8.0), float(np.finfo(np.float32).tiny), np.where)
    np.testing.assert_array_equal(results[0][1], wanted)


@needs_native
def test_a_watched_step_averages_too():
    for dtype in DTYPES:
        p, g = parameter(2000, dtype), gradients(2000, dtype)[0]
        state = averaged_state(Rule(nonfinite="skip"), p)
        state["step"][...] = 7
        _, wanted, skipped = whole(Rule(nonfinite="skip"), 8, p, g, state)
        ((*_, found, entries),) = cpu.native.step([group(Rule(nonfinite="skip"), [p], [g], [state])], 2, True)
        np.testing.assert_array_equal(state[SLOT], wanted[SLOT])
        assert (found, entries) == (skipped, 2000)


@needs_native
def test_what_does_not_fit_is_refused_untouched():
    ones = np.ones((4, 2), np.float32)
    good = averaged_state(Rule(), ones)
    touched = Rows(np.array([1]), np.ones((1, 2), np.float32))
    for change, g, message in (
        ({SLOT: np.ones((4, 2))}, ones, "all state must have one dtype"),
        ({SLOT: np.ones((2, 4), np.float32)}, ones, "must have the parameter's shape"),
        ({}, touched, "averaged weights need a dense gradient"),
    ):
        p, state = ones.copy(), {**good, **change}
        with pytest.raises((TypeError, ValueError), match=message):
            cpu.step([group(Rule(), [p], [g], [state])], 1)
        np.testing.assert_array_equal(p, 1)
    with pytest.raises(ValueError, match="its state is incomplete"):
        cpu.step([group(Rule(), [ones.copy()], [ones], [state_of(Rule(), ones)])], 1)
    packed, flags = cpu.coefficients(Rule())
    with pytest.raises(ValueError, match="and a rate"):
        cpu.step([(packed, flags | 2048, [ones.copy()], [ones], [good], None)], 1)
