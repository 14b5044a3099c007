"""The NumPy front end: what a step computes, what it refuses, and what it leaves alone when it refuses."""

import copy

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from rmsprop import Rule
from rmsprop.kernels import cpu
from rmsprop.numpy import RMSprop
from tests.cases import RULES


@pytest.fixture(autouse=True, scope="module", params=["native", "blocked"])
def engine(request):
    """Everything here holds for the native kernel and for blocked NumPy."""
    if request.param == "native" and cpu.native is None:
        pytest.skip(cpu.NAME)
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "blocked":
            patch.setattr(cpu, "native", None)
        yield


def normal(*shape, seed=0, dtype="f8"):
    return np.asarray(np.random.default_rng(seed).normal(size=shape), dtype)


def snapshot(optimizer):
    return {"params": [p.copy() for p in optimizer._params], "skipped": optimizer.skipped, **optimizer.state_dict()}


def assert_same(one, two):
    """Equal to the last bit, all the way down."""
    assert type(one) is type(two)
    if isinstance(one, dict):
        assert one.keys() == two.keys()
        for key in one:
            assert_same(one[key], two[key])
    elif isinstance(one, list):
        for a, b in zip(one, two, strict=True):
            assert_same(a, b)
    elif isinstance(one, np.ndarray):
        assert_array_equal(one, two, strict=True)
    else:
        assert one == two


def assert_refuses(optimizer, action, error, match):
    before = snapshot(optimizer)
    with pytest.raises(error, match=match):
        action()
    assert_same(snapshot(optimizer), before)


def textbook(r, p, grads, lrs):
    """Parameter and mean square (centered: variance), by the formulas as papers have them, in plain NumPy."""
    square, mean, buffer = np.full_like(p, r.initial_square), np.zeros_like(p), np.zeros_like(p)
    for t, (grad, lr) in enumerate(zip(grads, lrs, strict=True), 1):
        g = (-grad if r.maximize else grad) + (r.weight_decay * p if r.decay_mode == "coupled" else 0)
        square = r.beta * square + (1 - r.beta) * g**2
        mean = r.beta * mean + (1 - r.beta) * g
        v = square - mean**2 if r.centered else square
        if r.bias_correction:
            v = v / (1 - r.beta**t)
        if r.centered:
            v = np.maximum(v, r.variance_floor * mean**2)
        inside, outside, e = np.sqrt(v + r.epsilon), np.sqrt(v), r.epsilon
        modes = {"inside": inside, "outside": outside + e, "floor": np.maximum(outside, e), "both": inside + e}
        u = g / modes[r.epsilon_mode]
        u = u if r.clip is None else np.clip(u, -r.clip, r.clip)
        new = {"lr_outside": u, "lr_inside": lr * u, "ema": (1 - r.momentum) * u}[r.momentum_form]
        buffer = r.momentum * buffer + new
        move = r.momentum * buffer + new if r.nesterov else buffer
        if r.momentum_form != "lr_inside":
            move = lr * move
        if r.momentum_form == "ema" and r.bias_correction:
            move = move / (1 - r.momentum ** (t + r.nesterov))
        p = p - (lr * r.weight_decay * p if r.decay_mode == "decoupled" else 0) - (move if r.momentum else lr * u)
        p = p if r.clip_weights is None else np.clip(p, -r.clip_weights, r.clip_weights)
    return p, square - mean**2 if r.centered else square


BINDING = {  # floors that every entry meets
    "variance floor binds": Rule(centered=True, variance_floor=20.0, bias_correction=True),
    "epsilon floor binds": Rule(epsilon_mode="floor", epsilon=3.0),
}


@pytest.mark.parametrize(("dtype", "rtol", "atol"), [("f8", 1e-9, 1e-13), ("f4", 1e-3, 2e-6)])
@pytest.mark.parametrize("rule", (RULES | BINDING).values(), ids=RULES | BINDING)
def test_follows_the_formulas(rule, dtype, rtol, atol):
    params = {"w": normal(3, 4, dtype=dtype), "b": normal(seed=9, dtype=dtype)}
    starts = {name: p.astype("f8") for name, p in params.items()}
    lrs = [rule.lr, rule.lr, rule.lr / 2, rule.lr / 2, rule.lr]
    path = [{name: normal(*p.shape, seed=t, dtype=dtype) for name, p in params.items()} for t in range(5)]
    optimizer = RMSprop(params, rule)
    for lr, grads in zip(lrs, path, strict=True):
        kept = copy.deepcopy(grads)
        optimizer.lr = lr
        optimizer.step(grads)
        assert_same(grads, kept)
    for name, p in params.items():
        expected, second = textbook(rule, starts[name], [g[name].astype("f8") for g in path], lrs)
        state = optimizer.state_dict()["state"][f"params[{name!r}]"]
        assert_allclose(p - starts[name], expected - starts[name], rtol, atol)
        assert_allclose(state["variance" if rule.centered else "square_avg"], second, rtol, atol)
        assert state["step"] == 5


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_float16_is_float32_arithmetic(rule):
    half, single = normal(7, dtype="f2"), np.zeros(7, "f4")
    narrow, wide = RMSprop([half], rule), RMSprop([single], rule)
    for t in range(5):
        single[...] = half
        g = normal(7, seed=t, dtype="f2") * 1000  # its square is beyond float16
        narrow.step([g])
        wide.step([g.astype("f4")])
        assert_array_equal(half, single.astype("f2"), strict=True)
        assert_same(narrow.state_dict(), wide.state_dict())


def test_float16_trains_where_its_squares_vanish():
    p = np.ones(3, "f2")
    RMSprop([p], epsilon=0.0, lr=0.5, beta=0.0).step([np.array([6e-8, -1e-5, 0], "f2")])
    assert_array_equal(p, np.array([0.5, 1.5, 1], "f2"))


GIVEN = {
    "list": (np.ndarray.tolist, "f4"),
    "float64": (lambda g: g, "f4"),
    "float16": (lambda g: g.astype("f2"), "f8"),
    "big-endian": (lambda g: g.astype(">f4"), "f4"),
    "long double": (lambda g: g.astype("g"), "f8"),
    "read-only": (lambda g: np.frombuffer(g.tobytes()).reshape(g.shape), "f8"),
    "memoryview": (memoryview, "f8"),
    "may warn on write": (lambda g: np.broadcast_arrays(g, 0.0)[0], "f8"),
}


@pytest.mark.parametrize(("form", "dtype"), GIVEN.values(), ids=GIVEN)
def test_gradients_of_any_float_kind(form, dtype):
    given = form(normal(2, 3, seed=1))
    p, twin = normal(2, 3, dtype=dtype), normal(2, 3, dtype=dtype)
    for q, g in ((p, given), (twin, np.array(np.asarray(given), dtype))):
        RMSprop([q]).step([g])
    assert_array_equal(p, twin, strict=True)
    assert not np.array_equal(p, normal(2, 3, dtype=dtype))


COLLECTIONS = {"list": list, "tuple": tuple, "generator": iter, "dict": lambda x: dict(zip("ab", x, strict=True))}


@pytest.mark.parametrize("form", COLLECTIONS.values(), ids=COLLECTIONS)
def test_collections(form):
    params, twins = ([normal(2), normal(3)] for _ in range(2))
    optimizer, twin = RMSprop(form(params)), RMSprop(twins)
    for _ in range(2):
        optimizer.step(form([np.ones(2), np.ones(3)]))
        twin.step([np.ones(2), np.ones(3)])
    assert_same(params, twins)


@pytest.mark.parametrize("empty", [[], {}, (), [np.zeros((0, 3))], [np.zeros(0)] * 2], ids=repr)
def test_nothing_to_update(empty):
    optimizer = RMSprop(empty)
    optimizer.step(copy.deepcopy(empty))
    optimizer.load_state_dict(optimizer.state_dict())
    assert {entry["step"] for entry in optimizer.state_dict()["state"].values()} <= {1}


def test_none_waits_on_its_own_clock():
    waited, twin = normal(3), normal(3)
    optimizer = RMSprop([normal(2), waited], bias_correction=True, momentum=0.9, weight_decay=0.1)
    optimizer.step([np.ones(2), None])
    assert_array_equal(waited, normal(3))
    optimizer.step([None, np.ones(3)])
    fresh = RMSprop([twin], bias_correction=True, momentum=0.9, weight_decay=0.1)
    fresh.step([np.ones(3)])
    assert_array_equal(waited, twin)
    assert_same(optimizer.state_dict()["state"]["params[1]"], fresh.state_dict()["state"]["params[0]"])


def test_numpys_error_state_does_not_matter():
    p, twin = (np.array([0, 1, 1e-38, 3e38], "f4") for _ in range(2))
    g = np.array([np.nan, 1e-60, 1e300, -1e-30])
    RMSprop([p], momentum=0.9).step([g])
    with np.errstate(all="raise"):
        RMSprop([twin], momentum=0.9).step([g])
    assert_array_equal(p, twin)


def test_options_win_over_rule_and_dialect():
    assert RMSprop([]).rule == Rule()
    assert RMSprop([], Rule(beta=0.5, lr=1.0), lr=0.1).rule == Rule(beta=0.5, lr=0.1)
    assert RMSprop([], dialect="torch", lr=0.1).rule == Rule(lr=0.1, beta=0.99, epsilon=1e-8, epsilon_mode="outside")


@pytest.mark.parametrize("lr", [0, 2, np.float32(0.25), np.array(0.125)], ids=repr)
def test_the_learning_rate_may_change(lr):
    p = np.zeros(2)
    optimizer = RMSprop([p], lr=9, beta=0.0, epsilon=0.0)
    optimizer.lr = lr
    optimizer.step([np.array([3.0, -3.0])])
    assert_array_equal(p, [-lr, lr])
    assert type(optimizer.lr) is float


SPIKES = {"f2": [np.inf, -np.inf, np.nan], "f4": [np.inf, np.nan, 2e19], "f8": [-np.inf, np.nan, -1.4e154]}


def stepped(grads, **options):
    """A parameter, its state and the number of entries skipped, after these gradients."""
    p = normal(*grads[0].shape, dtype=grads[0].dtype)
    optimizer = RMSprop([p, normal(2)], momentum=0.9, centered=True, **options)
    for g in grads:
        optimizer.step([g, np.array([1, np.nan])])
    state = optimizer.state_dict()["state"]["params[0]"]
    step = state.pop("step")
    return np.stack([p, *state.values()]), step, optimizer.skipped  # rows: p, v, m, b


@pytest.mark.parametrize("dtype", SPIKES)
def test_nonfinite_entries(dtype):
    bad, calm = np.arange(9) % 3 == 0, normal(9, seed=1, dtype=dtype)
    wild = calm.copy()
    wild[bad] = SPIKES[dtype]
    untroubled, once_less = stepped([calm] * 3)[0], stepped([calm] * 2)[0]
    spread, step, skipped = stepped([calm, wild, calm], nonfinite="propagate")
    assert (step, skipped) == (3, 0)
    assert_array_equal(spread[:, ~bad], untroubled[:, ~bad])
    assert not np.isfinite(spread[1, bad][:2]).any()

    spared, step, skipped = stepped([calm, wild, calm], nonfinite="skip")
    assert (step, skipped) == (3, 3 + 3)  # three of the wild ones, and one a step of the other parameter
    assert_array_equal(spared[:, ~bad], untroubled[:, ~bad])
    assert_array_equal(spared[:, bad], once_less[:, bad])


@pytest.mark.parametrize(("decay", "fits"), [(1e-20, True), (1e-19, False)])
def test_nonfinite_is_judged_after_coupled_decay(decay, fits):
    optimizer = RMSprop([np.array([3e38, 1], "f4")], nonfinite="error", weight_decay=decay)
    if fits:
        optimizer.step([np.zeros(2)])
    else:
        assert_refuses(optimizer, lambda: optimizer.step([np.zeros(2)]), FloatingPointError, r"^params\[0\]: its grad")
