"""Parameters and gradients of any layout: equal to their contiguous twins, and nothing beside them is written."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.lib.stride_tricks import as_strided
from numpy.testing import assert_array_equal

from rmsprop import Rule
from rmsprop.kernels import cpu
from rmsprop.numpy import RMSprop
from tests.cases import RULES
from tests.test_numpy import assert_refuses, engine, normal  # noqa: F401

EVERYTHING = RULES["everything"]


def assert_equals_twin(p, g, memory, rule=EVERYTHING):
    """Two steps of p, which lies in `memory`, equal those of a contiguous copy; no byte beside p changes."""
    start, before = p.copy(), np.frombuffer(memory.tobytes(), "u1")
    twin, plain = np.array(p, order="C", subok=False), np.array(g, order="C")
    optimizer, other = RMSprop([p], rule), RMSprop([twin], rule)
    for _ in range(2):
        optimizer.step([g])
        other.step([plain])
    assert_array_equal(p, twin)
    assert not p.size or not np.array_equal(p, start)
    p[...] = start
    assert_array_equal(np.frombuffer(memory.tobytes(), "u1"), before)


@st.composite
def axes(draw, shape):
    """How an array of this shape lies in memory: per axis what is before, after and between; order; first byte."""
    steps = st.tuples(st.integers(0, 2), st.integers(0, 2), st.sampled_from([1, 1, -1, 2, -3]))
    return [draw(steps) for _ in shape], draw(st.permutations(range(len(shape)))), draw(st.sampled_from([0, 0, 1, 6]))


def laid(values, layout):
    """The values as a view in a larger memory, and that memory."""
    gaps, order, first = layout
    lengths = [before + n * abs(step) + after for (before, after, step), n in zip(gaps, values.shape, strict=True)]
    memory = np.full(first + int(np.prod(lengths)) * values.itemsize, 0x5A, "u1")
    view = memory[first:].view(values.dtype).reshape([lengths[k] for k in order]).transpose(np.argsort(order))
    for k, (before, _, step) in enumerate(gaps):
        view = np.moveaxis(np.moveaxis(view, k, 0)[before:][:: abs(step)][: values.shape[k]][:: np.sign(step)], 0, k)
    view[...] = values
    return view, memory


SHAPES = st.lists(st.sampled_from([0, 1, 2, 3, 7, 40]), max_size=3)
DRAWN = SHAPES.flatmap(lambda shape: st.tuples(st.just(shape), axes(shape), axes(shape)))


@settings(derandomize=True, max_examples=100, deadline=None)
@given(DRAWN, st.sets(st.integers(0, 2)), st.sampled_from(["f2", "f4", "f8"]), st.sampled_from([Rule(), EVERYTHING]))
def test_any_layout(drawn, repeated, dtype, rule):
    shape, of_p, of_g = drawn
    p, memory = laid(normal(*shape, dtype=dtype), of_p)
    g, _ = laid(normal(*shape, seed=1, dtype=dtype), of_g)
    first = tuple(slice(0, 1) if k in repeated else slice(None) for k in range(g.ndim))
    assert_equals_twin(p, np.broadcast_to(g[first], g.shape) if g.size else g, memory, rule)


def owned(memory, view=lambda a: a):
    return view(memory), memory


def in_bytes():
    memory = np.frombuffer(bytearray(8 * 600 + 5), "u1")
    p = memory[3:-2].view("f8")
    p[...] = normal(600)
    return p, memory


MIXED = np.dtype([("flag", "?"), ("w", "f8"), ("n", "f4")])
LAYOUTS = {
    "0-d": lambda: owned(normal()),
    "0-d view": lambda: owned(normal(9), lambda a: a[4:5].reshape(())),
    "Fortran": lambda: owned(np.asfortranarray(normal(30, 40))),
    "swapped axes": lambda: owned(normal(20, 30, 4), lambda a: a.transpose(1, 2, 0)),
    "diagonal": lambda: owned(normal(30, 30), lambda a: np.einsum("ii->i", a)),
    "odd bytes": in_bytes,
    "field": lambda: owned(np.ones(600, MIXED), lambda a: a["w"]),
    "real part": lambda: owned(normal(600) + 2j, lambda a: a.real),
    "imaginary part": lambda: owned(3j * normal(5, 600), lambda a: a.imag[::-2, ::3]),
    "strange strides of short axes": lambda: owned(normal(6), lambda a: as_strided(a, (1, 6, 1), (3, 8, 0))),
    "many axes": lambda: owned(normal(*[2] * 12), lambda a: a.T[..., ::-1]),
    "long rows": lambda: owned(normal(7, 3000), lambda a: a[1::2, 100:-1]),
    "matrix": lambda: owned(normal(4, 5), lambda a: a.view(np.matrix)),
}


@pytest.mark.filterwarnings("ignore:the matrix subclass")
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_layouts(layout):
    p, memory = layout()
    assert_equals_twin(p, normal(*p.shape, seed=1), memory)
    assert_equals_twin(p, layout()[0], memory)  # its own layout, other memory
    assert_equals_twin(p, np.broadcast_to(0.5, p.shape), memory)


@pytest.mark.parametrize("mode", ["r+", "c", "r"])
def test_memory_maps(tmp_path, mode):
    path = tmp_path / "weights.npy"
    np.save(path, normal(3, 5, dtype="f4"))
    mapped, twin = np.load(path, mmap_mode=mode), np.load(path)
    if mode == "r":
        with pytest.raises(ValueError, match=r"params\['w'\] is read-only"):
            RMSprop({"w": mapped})
        return
    for p in (mapped, twin):
        RMSprop([p]).step([np.ones((3, 5), "f4")])
    assert_array_equal(mapped, twin)
    mapped.flush()
    assert_array_equal(np.load(path), twin if mode == "r+" else normal(3, 5, dtype="f4"))


APART = {
    "even and odd": lambda a: [a[::2], a[1::2]],
    "columns": lambda a: list(a.reshape(5, 8).T),
    "blocks": lambda a: [a.reshape(5, 8)[1:3, 2:4], a.reshape(5, 8)[1:3, 4:7], a.reshape(5, 8)[3:]],
    "complex": lambda a: [a.view("c16").real, a.view("c16").imag],
    "empty in between": lambda a: [a, a[3:3], a[7:7]],
}


@pytest.mark.parametrize("split", APART.values(), ids=APART)
def test_views_of_one_array_that_share_no_element(split):
    memory, gradient = normal(40), normal(40, seed=1)
    views, twins = split(memory), [view.copy() for view in split(memory)]
    for params in (views, twins):
        optimizer = RMSprop(params, EVERYTHING)
        optimizer.step(split(gradient))
        optimizer.step(split(gradient))
    for view, twin in zip(views, twins, strict=True):
        assert_array_equal(view, twin)


N = 200  # squared it is more than the engines take at a time
ALIASES = {
    "itself": lambda a: ([a], [a]),
    "memoryview": lambda a: ([a], [memoryview(a)]),
    "reversed": lambda a: ([a], [a[::-1, ::-1]]),
    "transposed": lambda a: ([a], [a.T]),
    "its last row": lambda a: ([a], [np.broadcast_to(a[-1], a.shape)]),
    "its first column": lambda a: ([a], [np.broadcast_to(a[:, :1], a.shape)]),
    "reversed both": lambda a: ([a[::-1]], [a]),
    "a row down": lambda a: ([a[1:]], [a[:-1]]),
    "a row up": lambda a: ([a[:-1]], [a[1:]]),
    "an element on": lambda a: ([a.ravel()[1:]], [a.ravel()[:-1]]),
    "each other": lambda a: ([a[:100], a[100:]], [a[100:], a[:100]]),
    "the same": lambda a: ([a[:100], a[100:]], [a[:100], a[:100]]),
    "across": lambda a: ([a[:50], a[50:100], a[150:]], [a[100:150], a[25:75], a[40:90]]),
    "one before": lambda a: ([a[:50], a[50:100], a[150:]], [a[100:150], a[100:150], a[50:100]]),
    "a longer one before": lambda a: ([a[:, 0], a[3:5, 1]], [a[:, 2], a[100:102, 0]]),
    "the gaps": lambda a: ([a[:, ::2]], [a[:, 1::2]]),
}


@pytest.mark.parametrize("alias", ALIASES.values(), ids=ALIASES)
def test_gradients_that_alias_parameters(alias):
    params, grads = alias(normal(N, N))
    twins, apart = [p.copy() for p in params], [np.array(g) for g in grads]
    RMSprop(params, momentum=0.5).step(grads)
    RMSprop(twins, momentum=0.5).step(apart)
    for p, twin in zip(params, twins, strict=True):
        assert_array_equal(p, twin)


def on_threads(threads, rule, monkeypatch):
    """Parameters and state after a step, and one with two infinities far apart; past what threads pay for."""
    monkeypatch.setattr(cpu, "threads", lambda: threads)
    params = [normal(1020, 1030, dtype="f4"), normal(140_002, dtype="f4")[::-2]]
    calm = [normal(1030, 1020, seed=1, dtype="f4").T, normal(70_001, seed=2, dtype="f4")]
    wild = [calm[0], np.where(np.arange(70_001) % 70_000, calm[1], np.float32(np.inf))]
    optimizer = RMSprop(params, rule)
    optimizer.step(calm)
    if rule.nonfinite == "error":
        assert_refuses(optimizer, lambda: optimizer.step(wild), FloatingPointError, r"params\[1\]: its gradient")
    else:
        optimizer.step(wild)
        assert optimizer.skipped == 2
    return [*params, *(x for state in optimizer._states for x in state.values())]


@pytest.mark.parametrize("rule", [EVERYTHING, Rule(nonfinite="error")], ids=["everything", "error"])
def test_threads_change_nothing(monkeypatch, rule):
    for one, many in zip(*(on_threads(n, rule, monkeypatch) for n in (1, 4)), strict=True):
        assert_array_equal(one, many, strict=True)
