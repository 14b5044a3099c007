import os
import shutil
import struct
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from rmsprop import Rule
from rmsprop.kernels import cpu
from rmsprop.rule import update
from tests.cases import COMBINATIONS, DTYPES, LENGTHS, RULES, gradients, parameter, special

needs_native = pytest.mark.skipif(cpu.native is None, reason="no native kernel on this machine")


def engines():
    """Every way to make a step: each native build that runs here, and blocked NumPy."""
    found = {"blocked": lambda groups, threads: cpu._blocked(groups)}
    if cpu.native is not None:
        from rmsprop.kernels import _cpu

        found["baseline"] = _cpu.step
        if _cpu.supports_v3():
            from rmsprop.kernels import _cpu_v3

            found["v3"] = _cpu_v3.step
    return found


ENGINES = engines()
engine = pytest.mark.parametrize("step", ENGINES.values(), ids=ENGINES)


def state_of(rule, p, order="K"):
    dtype = np.promote_types(p.dtype, np.float32)
    slots = {name: np.zeros_like(p, dtype, order) for name in rule.slots().values()}
    slots[rule.slots()["v"]][...] = rule.initial_square
    return {"step": np.zeros(()), **slots}


def group(rule, params, grads, states, names=None):
    return (*cpu.coefficients(rule), list(params), list(grads), list(states), names)


def whole_array_step(rule, t, p, g, state):
    """The NumPy rule itself, on whole arrays; new values, and the number of entries skipped."""
    dtype = np.promote_types(p.dtype, np.float32)
    finfo = np.finfo(dtype)
    slots = rule.slots()
    limits = {"tiny": float(finfo.tiny), "largest": float(finfo.max)}
    values = [state[slots[s]] if s in slots else 0.0 for s in "vmb"]
    with np.errstate(all="ignore"):
        new = update(
            p.astype(dtype), g.astype(dtype), *values, **rule.scalars(t), **limits, **rule.flags(),
            sqrt=np.sqrt, divide=np.divide, where=np.where,
        )  # fmt: skip
        p = new[0].astype(p.dtype)
    new_state = {
        "step": np.array(float(t)),
        **{slots[s]: x for s, x in zip("vmb", new[2:5], strict=True) if s in slots},
    }
    return p, new_state, int(np.sum(~new[5])) if rule.nonfinite == "skip" else 0


@engine
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rule", (RULES | COMBINATIONS).values(), ids=RULES | COMBINATIONS)
def test_equals_the_numpy_rule_bit_for_bit(step, rule, dtype):
    params = [parameter(n, dtype) for n in LENGTHS]
    states = [state_of(rule, p) for p in params]
    expected = [(p.copy(), {k: x.copy() for k, x in s.items()}) for p, s in zip(params, states, strict=True)]
    for t, grads in enumerate(zip(*(gradients(n, dtype) for n in LENGTHS), strict=True), 1):
        skipped = step([group(rule, params, grads, states)], 2)
        steps = [whole_array_step(rule, t, p, g, s) for (p, s), g in zip(expected, grads, strict=True)]
        expected = [(p, s) for p, s, _ in steps]
        assert skipped == sum(count for *_, count in steps)
    for p, state, (q, wanted) in zip(params, states, expected, strict=True):
        np.testing.assert_array_equal(p, q, strict=True)
        for name, value in wanted.items():
            np.testing.assert_array_equal(state[name], value, strict=True)


@engine
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_special_numbers(step, rule, dtype):
    """NaN, infinities, signed zeros, subnormal and huge numbers, in every position."""
    awkward = special(dtype)
    p, g = (x.ravel().copy() for x in np.meshgrid(awkward, awkward))
    state = state_of(rule, p)
    with np.errstate(all="ignore"):
        state[rule.slots()["v"]][...] = abs(np.roll(p, 7))
    wanted_p, wanted, count = whole_array_step(rule, 1, p, g, state)
    assert step([group(rule, [p], [g], [state])], 1) == count
    np.testing.assert_array_equal(p, wanted_p)
    for name, value in wanted.items():
        np.testing.assert_array_equal(state[name], value)


def layouts(dtype):
    """Arrays of shape (6, 35) that lie in memory in every way NumPy offers, each with the base it looks at."""
    base = np.zeros(8 * 40 * 4 + 8, dtype)
    raw = np.zeros(base.nbytes + 1, np.uint8)
    table = base[: 8 * 160].reshape(8, 160)
    return {
        "contiguous": (base, base[:210].reshape(6, 35)),
        "offset": (base, base[3:213].reshape(6, 35)),
        "fortran": (base, base[:210].reshape(35, 6).T),
        "strided": (base, table[1:7, 2:142:4]),
        "reversed": (base, table[6:0:-1, 140:0:-4]),
        "unaligned": (raw, raw[1 : 1 + 210 * base.itemsize].view(dtype).reshape(6, 35)),
    }


@engine
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("p_layout", layouts(np.float32))
@pytest.mark.parametrize("g_layout", [*layouts(np.float32), "broadcast"])
def test_any_layout(step, dtype, p_layout, g_layout):
    """Strides, offsets and alignment change nothing, and the memory between strided elements is not touched."""
    rule = RULES["everything"]
    value, grad = parameter(210, dtype).reshape(6, 35), parameter(210, dtype, 5).reshape(6, 35)
    if g_layout == "broadcast":
        grad = g = np.broadcast_to(grad[:1], grad.shape)
    else:
        _, g = layouts(dtype)[g_layout]
        g[...] = grad
    base, p = layouts(dtype)[p_layout]
    base.view(np.uint8)[...] = 77
    p[...] = value
    probe_base, probe = layouts(dtype)[p_layout]
    probe.view()[...] = np.frombuffer(b"\xff" * probe.itemsize, probe.dtype)[0]
    outside = probe_base.view(np.uint8) == 0
    state, grad_before = state_of(rule, value), grad.copy()
    wanted, *_ = whole_array_step(rule, 1, value, grad, state)
    step([group(rule, [p], [g], [state])], 1)
    np.testing.assert_array_equal(p, wanted)
    np.testing.assert_array_equal(base.view(np.uint8)[outside], 77)
    np.testing.assert_array_equal(g, grad_before)


@engine
def test_strided_state_and_nd_order(step):
    rule = RULES["everything"]
    p = parameter(2 * 3 * 4 * 5, np.float32).reshape(2, 3, 4, 5)
    g = parameter(2 * 3 * 4 * 5, np.float32, 3).reshape(5, 4, 3, 2).T
    state = {k: np.asfortranarray(x) if x.ndim else x for k, x in state_of(rule, p).items()}
    wanted, wanted_state, _ = whole_array_step(rule, 1, p, g, state)
    q = p.transpose(0, 2, 3, 1).copy().transpose(0, 3, 1, 2)  # channels last
    step([group(rule, [q], [g], [state])], 1)
    np.testing.assert_array_equal(q, wanted)
    for name, value in wanted_state.items():
        np.testing.assert_array_equal(state[name], value)


@engine
def test_float16_conversion(step):
    """Every float16 survives the way through float32, and sums round to it as NumPy rounds them."""
    every = np.arange(1 << 16, dtype=np.uint16).view(np.float16)
    p, zero = every.copy(), np.zeros_like(every)
    step([group(Rule(), [p], [zero], [state_of(Rule(), p)])], 1)
    np.testing.assert_array_equal(p, every)
    for number, unit in ((65504.0, 1.0), (1.0, 2.0**-14), (6.1e-5, 2.0**-27), (0.0, 2.0**-28)):
        lrs = unit * np.arange(0, 40, 0.5)
        start = np.float16(number)
        rules = [Rule(lr=lr, beta=0.0, epsilon=0.0) for lr in lrs]  # moves by lr exactly
        params = [np.array([start]) for _ in lrs]
        g = np.array([-1], np.float16)
        step([group(rule, [x], [g], [state_of(rule, x)]) for rule, x in zip(rules, params, strict=True)], 1)
        with np.errstate(over="ignore"):
            wanted = (np.float32(start) + lrs.astype(np.float32)).astype(np.float16)
        np.testing.assert_array_equal(np.concatenate(params), wanted)


@engine
@pytest.mark.parametrize("threads", [1, 2, 3, 8])
def test_any_number_of_threads_and_any_split(step, threads):
    n = (1 << 20) + 4321
    rule = RULES["everything"]
    whole, g = parameter(n, np.float32), parameter(n, np.float32, 9)
    wanted, *_ = whole_array_step(rule, 1, whole, g, state_of(rule, whole))
    pieces = np.split(whole.copy(), [1, 70_000, 70_017, n - 5])
    states = [state_of(rule, p) for p in pieces]
    step([group(rule, pieces, np.split(g, [1, 70_000, 70_017, n - 5]), states)], threads)
    np.testing.assert_array_equal(np.concatenate(pieces), wanted)
    state = state_of(rule, whole)
    step([group(rule, [whole], [g], [state])], threads)
    np.testing.assert_array_equal(whole, wanted)


@engine
def test_groups_and_parameters_may_be_at_different_steps(step):
    rules = [RULES["corrected"], RULES["nesterov ema"]]
    params = [[parameter(9, np.float64, i + 10 * j) for i in range(4)] for j in range(2)]
    states = [[state_of(rule, p) for p in column] for rule, column in zip(rules, params, strict=True)]
    for j in range(2):
        for i, state in enumerate(states[j]):
            state["step"][...] = [0, 7, 0, 100][i]
    g = np.ones(9)
    wanted = [
        [whole_array_step(rule, int(s["step"]) + 1, p, g, s)[0] for p, s in zip(*columns, strict=True)]
        for rule, *columns in zip(rules, params, states, strict=True)
    ]
    step([group(*row) for row in zip(rules, params, [[g] * 4] * 2, states, strict=True)], 1)
    np.testing.assert_array_equal(params, wanted)
    assert [[int(s["step"]) for s in column] for column in states] == [[1, 8, 1, 101]] * 2


@engine
def test_none_leaves_parameter_and_state_alone(step):
    rule = Rule()
    params, g = [np.ones(3), np.ones(3)], np.ones(3)
    states = [state_of(rule, p) for p in params]
    step([group(rule, params, [None, g], states)], 1)
    np.testing.assert_array_equal(params[0], 1.0)
    assert [int(s["step"]) for s in states] == [0, 1]
    assert params[1][0] < 1


@engine
def test_the_gradient_may_be_the_parameter_itself(step):
    rule = Rule(lr=0.1)
    p = parameter(1000, np.float32)
    wanted, *_ = whole_array_step(rule, 1, p, p.copy(), state_of(rule, p))
    step([group(rule, [p], [p], [state_of(rule, p)])], 1)
    np.testing.assert_array_equal(p, wanted)


@engine
def test_error_refuses_before_anything_is_written(step):
    rule = Rule(nonfinite="error", weight_decay=0.1)
    params = [np.ones(5, np.float32), np.ones(5, np.float32)]
    states = [state_of(rule, p) for p in params]
    bad = np.array([0, 1, 2e19, 1, 1], np.float32)  # finite, but its square is not
    with pytest.raises(FloatingPointError, match="second: its gradient, squared, is not finite"):
        step([group(rule, params, [np.ones(5, np.float32), bad], states, ["first", "second"])], 1)
    np.testing.assert_array_equal(params, 1.0)
    assert all(not x.any() for s in states for x in s.values())


READ_ONLY = np.ones(4, np.float32)
READ_ONLY.flags.writeable = False
ONES = np.ones(4, np.float32)
REFUSED = {
    "shape": (ONES, np.ones(5, np.float32), {}, ValueError, "shape"),
    "rank": (ONES, np.ones((4, 1), np.float32), {}, ValueError, "shape"),
    "gradient dtype": (ONES, np.ones(4), {}, TypeError, "dtype"),
    "integers": (np.ones(4, int), np.ones(4, int), {}, TypeError, "float16"),
    "complex": (np.ones(4, np.complex64), np.ones(4, np.complex64), {}, TypeError, "float16"),
    "byte order": (np.ones(4, ">f4"), np.ones(4, ">f4"), {}, TypeError, "float16"),
    "read-only": (READ_ONLY, ONES, {}, ValueError, "read-only"),
    "shared memory": (np.lib.stride_tricks.as_strided(np.ones(4), (4,), (0,)), np.ones(4), {}, ValueError, "share"),
    "windows": (np.lib.stride_tricks.as_strided(np.ones(9), (4, 4), (8, 8)), np.ones((4, 4)), {}, ValueError, "share"),
    "no array": ([1.0] * 4, ONES, {}, TypeError, "bytes-like"),
    "state dtype": (ONES, ONES, {"square_avg": np.zeros(4)}, TypeError, "state must be float32"),
    "state shape": (ONES, ONES, {"square_avg": np.zeros(3, np.float32)}, ValueError, "shape"),
    "state missing": (ONES, ONES, {"square_avg": None}, TypeError, "bytes-like"),
    "step": (ONES, ONES, {"step": np.zeros(2)}, ValueError, "step"),
    "negative step": (ONES, ONES, {"step": np.array(-2.0)}, ValueError, "at least 0"),
    "step not a number": (ONES, ONES, {"step": np.array(np.nan)}, ValueError, "at least 0"),
}


@needs_native
@pytest.mark.parametrize(("p", "g", "changes", "kind", "words"), REFUSED.values(), ids=REFUSED)
def test_what_does_not_fit_is_refused_untouched(p, g, changes, kind, words):
    rule = Rule()
    first, state = np.ones(4, np.float32), state_of(rule, ONES)
    own = {**state_of(rule, p if isinstance(p, np.ndarray) and p.dtype.kind == "f" else ONES), **changes}
    before = np.copy(p)
    with np.errstate(all="ignore"), pytest.raises(kind, match=words):
        cpu.step([group(rule, [first, p], [ONES, g], [state, own])], 1)
    np.testing.assert_array_equal(first, 1.0)
    np.testing.assert_array_equal(p, before)
    assert not state["square_avg"].any()
    assert state["step"] == 0


@needs_native
def test_malformed_groups_are_refused():
    good = group(Rule(), [ONES.copy()], [ONES], [state_of(Rule(), ONES)])
    for bad in (good[:-1], (good[0], good[1], good[2], [], good[4], None), (b"short", *good[1:]), (3, *good[1:])):
        with pytest.raises((TypeError, ValueError)):
            cpu.step([bad], 1)
    np.testing.assert_array_equal(good[2][0], 1.0)


@needs_native
def test_scalars_have_the_same_order_on_both_sides():
    assert tuple(cpu.native.SCALARS.split()) == tuple(Rule().scalars(1))


def test_the_kernel_is_there_where_it_can_be_built():
    compiler = any(map(shutil.which, ("c++", "g++", "clang++")))
    assert (cpu.native is not None) == compiler, cpu.NAME


def test_python_names_the_kernel():
    result = subprocess.run([sys.executable, "-m", "rmsprop.kernels"], capture_output=True, text=True, check=True)
    assert result.stdout == f"CPU kernel: {cpu.NAME}\n"


@needs_native
@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_child_steps_after_a_fork():
    """A process that has made a step on several threads forks; the child makes the same step."""
    script = """
import os, numpy as np
from rmsprop.numpy import RMSprop
p, g = np.zeros(1 << 21, np.float32), np.ones(1 << 21, np.float32)
optimizer = RMSprop([p])
optimizer.step([g])
child = os.fork()
optimizer.step([g])
assert np.ptp(p) == 0
if child:
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
print(float(p[0]))
"""
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False)
    assert result.returncode == 0, result.stderr
    first, second = result.stdout.split()
    assert first == second


@needs_native
def test_the_gil_is_released():
    """Another thread runs Python while a long step is under way."""
    n = 1 << 24
    p, g = np.zeros(n, np.float32), np.ones(n, np.float32)
    work = [group(Rule(), [p], [g], [state_of(Rule(), p)])]
    ticks, stop = [], threading.Event()

    def tick():
        while not stop.is_set():
            ticks.append(time.perf_counter())
            time.sleep(0.0005)

    thread = threading.Thread(target=tick)
    thread.start()
    start = time.perf_counter()
    for _ in range(5):
        cpu.step(work, 1)
    end = time.perf_counter()
    stop.set()
    thread.join()
    assert sum(start < t < end for t in ticks) > 20  # with the GIL held: about one between two steps


@needs_native
def test_scalars_are_asked_for_once_a_step_number():
    asked = []
    source, flags = cpu.coefficients(RULES["corrected"])
    params = [np.ones(2) for _ in range(50)]
    states = [state_of(RULES["corrected"], p) for p in params]

    def counting(t):
        asked.append(t)
        return source(t)

    for _ in range(2):
        cpu.step([(counting, flags, params, [np.ones(2)] * 50, states, None)], 1)
    assert asked == [1, 2]
    assert len(source(1)) == struct.calcsize(f"{len(Rule().scalars(1))}d")
