"""`rmsprop.Rprop`: what it computes, refuses, saves and loads. What it shares with `RMSprop` is tested there too."""

import json
import pickle

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal

import rmsprop
from rmsprop import Rprop
from rmsprop.rprop import VARIANTS, RpropRule
from tests.test_numpy import assert_same, engine, normal  # noqa: F401
from tests.test_numpy_layouts import APART, LAYOUTS
from tests.test_rprop import SETTINGS, bowl, drawn, run


def snapshot(optimizer):
    return {"params": [p.copy() for p in optimizer._params], **optimizer.state_dict()}


def assert_refuses(optimizer, action, error, match):
    before = snapshot(optimizer)
    with pytest.raises(error, match=match):
        action()
    assert_same(snapshot(optimizer), before)


def stepped(optimizer, grads, losses):
    for g, loss in zip(grads, losses, strict=True):
        optimizer.step([g], **{"loss": loss} if optimizer.rule.variant == "irprop+" else {})


@pytest.mark.parametrize("dtype", ["f4", "f8"])
@pytest.mark.parametrize("options", SETTINGS, ids=str)
@pytest.mark.parametrize("variant", VARIANTS)
def test_is_the_rule_in_place(variant, options, dtype):
    p, grads, losses = bowl()
    p, grads = p.astype(dtype), grads.astype(dtype)
    rule = RpropRule(variant=variant, **options)
    path, last = run(rule, p.copy(), grads, losses)
    kept, optimizer = grads.copy(), Rprop([p], rule)
    stepped(optimizer, grads, losses)
    assert_array_equal(p, path[-1], strict=True)
    assert_array_equal(grads, kept)
    state = optimizer.state_dict()["state"]["params[0]"]
    assert_array_equal(state["step_size"], last["s"], strict=True)
    assert_array_equal(state["prev"], last["q"], strict=True)
    assert state["step"] == len(grads)


@pytest.mark.parametrize("dtype", ["f4", "f8"])
@pytest.mark.parametrize("seed", range(12))
def test_equals_torch_bit_for_bit(seed, dtype):
    p, grads, options = drawn(seed, dtype)
    peer = torch.nn.Parameter(torch.tensor(p))
    theirs, ours = torch.optim.Rprop([peer], **options, maximize=seed % 2 == 1, foreach=False), None
    ours = Rprop({"w": p}, **options, maximize=seed % 2 == 1)
    for g in grads:
        peer.grad = torch.tensor(g)
        theirs.step()
        ours.step({"w": g})
        assert_array_equal(p, peer.detach().numpy())
    state = ours.state_dict()["state"]["params['w']"]
    for key in ("step_size", "prev"):
        assert_array_equal(state[key], theirs.state[peer][key].numpy(), strict=True)


def test_float16_is_float32_arithmetic():
    half, single = normal(7, dtype="f2"), np.zeros(7, "f4")
    narrow, wide = Rprop([half]), Rprop([single])
    for t in range(8):
        single[...] = half
        g = (normal(7, seed=t % 3) * 1e-5).astype("f2")  # whose products are 0 in float16
        narrow.step([g])
        wide.step([g.astype("f4")])
        assert_array_equal(half, single.astype("f2"))
    assert_same(narrow.state_dict()["state"], wide.state_dict()["state"])
    assert narrow.state_dict()["state"]["params[0]"]["step_size"].max() > 0.011


def test_converges_where_curvature_differs_a_millionfold():
    for variant in VARIANTS:
        w, h = np.ones(20), 10 ** np.linspace(0, 6, 20)
        optimizer = Rprop([w], variant=variant)
        for _ in range(200):
            stepped(optimizer, [h * w], [(h * w * w).sum()])
        assert_allclose(w, 0, atol=2e-6, err_msg=variant)


def test_the_improved_variants_win_on_rosenbrocks_valley():
    """As Igel and Hüsken found."""
    ends = {}
    for variant in VARIANTS:
        w = np.array([-1.2, 1.0])
        optimizer = Rprop([w], variant=variant)
        for _ in range(3000):
            x, y = w
            loss, g = (1 - x) ** 2 + 100 * (y - x * x) ** 2, [-2 * (1 - x) - 400 * x * (y - x * x), 200 * (y - x * x)]
            stepped(optimizer, [np.array(g)], [loss])
        ends[variant] = loss
    assert 100 * max(ends["irprop-"], ends["irprop+"]) < min(ends["rprop-"], ends["rprop+"])


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.filterwarnings("ignore:the matrix subclass")
def test_layouts(layout):
    p, memory = layout()
    twin, g = np.array(p, order="C", subok=False), normal(*p.shape, seed=1)
    start, before = p.copy(), memory.tobytes()
    for params in (p, twin):
        optimizer = Rprop([params], variant="rprop+", lr=0.1)
        for sign in (1, 1, -1, -1):
            optimizer.step([sign * g])
    assert_array_equal(p, twin)
    p[...] = start
    assert memory.tobytes() == before


def test_views_of_one_array_that_share_no_element():
    memory, views = normal(40), APART["columns"]
    twins = [view.copy() for view in views(memory)]
    for params in (views(memory), twins):
        Rprop(params).step(views(normal(40, seed=1)))
    for view, twin in zip(views(memory), twins, strict=True):
        assert_array_equal(view, twin)


def test_gradient_that_is_the_parameter_and_none():
    p, q, idle = np.array([1.0, -2.0]), np.array([1.0, -2.0]), np.ones(2)
    optimizer = Rprop([p, idle])
    for _ in range(3):
        optimizer.step([p, None])
    other = Rprop([q])
    for _ in range(3):
        other.step([q.copy()])
    assert_array_equal(p, q)
    assert_array_equal(idle, 1.0)
    assert optimizer.state_dict()["state"]["params[1]"]["step"] == 0


REFUSED = [
    ({"params": np.ones(2)}, TypeError, "params: expected a list or dict of arrays"),
    ({"params": [np.ones(2, int)]}, ValueError, r"params\[0\] has dtype int64"),
    ({"rule": rmsprop.Rule()}, TypeError, "expected an RpropRule"),
    ({"alpha": 0.9}, TypeError, "alpha"),
    ({"variant": "plus"}, ValueError, "variant='plus': expected one of"),
    ({"lr": 1e39, "params": [np.ones(2, "f4")]}, ValueError, r"lr=1e\+39: expected a number that float32 can hold"),
]


@pytest.mark.parametrize(("arguments", "error", "match"), REFUSED, ids=str)
def test_refuses_at_construction(arguments, error, match):
    with pytest.raises(error, match=match):
        Rprop(**{"params": [np.ones(2)]} | arguments)


def test_a_refused_step_changes_nothing():
    optimizer = Rprop([normal(3), normal(2, seed=1)], variant="irprop+")
    optimizer.step([np.ones(3), np.ones(2)], loss=1.0)
    for grads, loss, match in (
        ([np.ones(3)], 2.0, r"grads: missing \['grads\[1\]'\]"),
        ([np.ones(3), np.ones(3)], 2.0, r"grads\[1\] has shape \(3,\)"),
        ([np.ones(3), ([0], [1.0])], 2.0, r"grads\[1\]: a tuple is a gradient of rows, which Rprop does not take"),
        ([np.ones(3), np.ones(2)], None, "^loss=None: expected a number"),
        ([np.ones(3), np.ones(2)], float("nan"), "^loss=nan: expected a number"),
        ([np.ones(3), np.ones(2)], "low", "^loss='low': expected a number"),
        ([np.ones(3), np.ones(2)], np.ones(2), "^loss=.*: expected a number"),
    ):
        assert_refuses(optimizer, lambda: optimizer.step(grads, loss), ValueError, match)  # noqa: B023
    other = Rprop([normal(3)])
    assert_refuses(other, lambda: other.step([np.ones(3)], 1.0), ValueError, "^loss=1.0: expected None with 'irprop-'")


def test_the_loss_may_be_any_number_of_one():
    for loss in (1, np.float32(1), np.array(1.0), torch.tensor(1.0)):
        optimizer = Rprop([np.ones(1)], variant="irprop+")
        optimizer.step([np.ones(1)], loss=loss)
        assert optimizer.state_dict()["loss"] == 1.0


WAYS = {
    "as it is": lambda x: x,
    "pickle": lambda x: pickle.loads(pickle.dumps(x)),
    "json": lambda x: json.loads(json.dumps(x, default=np.ndarray.tolist)),
}


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_loaded_state_continues_to_the_last_bit(variant, way):
    p, grads, losses = bowl()
    rule = RpropRule(0.1, (0.4, 1.5), (1e-4, 2.0), variant=variant)
    for at in (7, 8, 9):
        whole, first = p.copy(), p.copy()
        one = Rprop([first], rule)
        stepped(one, grads[:at], losses[:at])
        two = Rprop([first.copy()])
        two.load_state_dict(way(one.state_dict()))
        copied = pickle.loads(pickle.dumps(one))
        for optimizer in (two, copied):
            stepped(optimizer, grads[at:], losses[at:])
        straight = Rprop([whole], rule)
        stepped(straight, grads, losses)
        assert_same(snapshot(two), snapshot(straight))
        assert_same(snapshot(copied), snapshot(straight))


W = ("state", "params['w']")
BAD = {
    "step size negative": ([*W, "step_size"], -np.ones(2), "step_size: expected no negative numbers"),
    "step size not finite": ([*W, "step_size"], np.array([1, np.inf]), "step_size: expected finite"),
    "shape": ([*W, "prev"], np.ones(3), r"prev: expected numbers of shape \(2,\)"),
    "missing": ([*W], {"step": 1, "prev": np.ones(2)}, r"missing \['step_size'\]"),
    "foreign": ([*W], {"step": 1, "square_avg": np.ones(2)}, "missing"),
    "option": (["rule", "etas"], (2, 3), "etas"),
    "loss": (["loss"], "high", "loss='high'"),
    "format": (["format"], 7, r"from Rprop\.state_dict"),
}


@pytest.mark.parametrize(("path", "value", "match"), BAD.values(), ids=BAD)
def test_damaged_state_is_refused(path, value, match):
    optimizer = Rprop({"w": np.ones(2)}, variant="irprop+")
    optimizer.step({"w": np.ones(2)}, loss=3.0)
    damaged = json.loads(json.dumps(optimizer.state_dict(), default=np.ndarray.tolist))
    place = damaged
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    assert_refuses(optimizer, lambda: optimizer.load_state_dict(damaged), ValueError, match)


def test_what_is_not_finite_in_a_gradient_may_be_saved():
    one, two = Rprop([np.ones(3)]), Rprop([np.ones(3)])
    one.step([np.array([np.nan, np.inf, -np.inf])])
    two.load_state_dict(one.state_dict())
    assert_array_equal(two.state_dict()["state"]["params[0]"]["prev"], [np.nan, np.inf, -np.inf])


def test_repr_says_what_it_is():
    assert repr(Rprop({"w": np.ones((2, 3))})) == f"Rprop(params['w'][2, 3]; {RpropRule()!r})"
