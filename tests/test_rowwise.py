"""Row-wise state: one mean square for each row, against a transcription of the definition."""

import copy
import pickle

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from rmsprop import RMSprop, Rule
from rmsprop.kernels import cpu
from rmsprop.missed import moves, refusal
from rmsprop.rowwise import shape_of
from tests.cases import RULES

ROWWISE = {name: rule for name, rule in RULES.items() if not rule.centered}
EXACT = {name: rule for name, rule in ROWWISE.items() if not refusal(rule)}
SHAPES = [(5, 7), (6, 1), (4, 2, 3), (3, 1300), (700, 3), (0, 3), (4, 0), (9,), ()]


@pytest.fixture(params=["native", "blocked"], autouse=True)
def engine(request, monkeypatch):
    if request.param == "native" and cpu.native is None:
        pytest.skip("no kernel here")
    if request.param == "blocked":
        monkeypatch.setattr(cpu, "native", None)


def definition(rule, p, grads):
    """(p, v, b) after these gradients; the rule in words of its options, in float64."""
    p, axes = p.astype(float), tuple(range(1, p.ndim))
    v, b = np.full(shape_of(p.shape, "row"), rule.initial_square), np.zeros(p.shape)
    for t, grad in enumerate(grads, 1):
        g = -grad if rule.maximize else grad.astype(float)
        if rule.decay_mode == "coupled":
            g = g + rule.weight_decay * p
        square = g * g
        used = np.isfinite(square) if rule.nonfinite == "skip" else np.full(p.shape, True)
        count = used.sum(axes, keepdims=True)
        mean = np.where(used, square, 0).sum(axes, keepdims=True) / np.maximum(count, 1)
        v = np.where(count > 0, rule.beta * v + (1 - rule.beta) * mean, v)
        s = v / (1 - rule.beta**t) if rule.bias_correction else v
        e = rule.epsilon
        modes = {"inside": np.sqrt(s + e), "outside": np.sqrt(s) + e, "both": np.sqrt(s + e) + e}
        d = modes.get(rule.epsilon_mode, np.maximum(np.sqrt(s), e))
        u = np.where(g == 0, 0, g / np.where(g == 0, 1, d))
        u = u if rule.clip is None else np.clip(u, -rule.clip, rule.clip)
        mu, form = rule.momentum, rule.momentum_form
        fade = 1 - mu ** (t + rule.nesterov) if form == "ema" and rule.bias_correction else 1
        into = {"lr_outside": 1, "lr_inside": rule.lr, "ema": 1 - mu}[form] if mu else 1
        out = {"lr_outside": rule.lr, "lr_inside": 1, "ema": rule.lr / fade}[form] if mu else rule.lr
        new = mu * b + into * u
        shrink = rule.lr * rule.weight_decay * p if rule.decay_mode == "decoupled" else 0
        moved = p - shrink - out * (mu * new + into * u if rule.nesterov else new)
        moved = moved if rule.clip_weights is None else np.clip(moved, -rule.clip_weights, rule.clip_weights)
        p, b = np.where(used, moved, p), np.where(used, new, b)
    return p, v, b


def problem(shape, dtype=np.float64, steps=6, seed=0):
    rng = np.random.default_rng(seed)
    grads = [(rng.normal(size=shape) * 10.0 ** rng.integers(-3, 3, size=shape)).astype(dtype) for _ in range(steps)]
    return rng.normal(size=shape).astype(dtype), [np.where(rng.random(shape) < 0.1, 0, g).astype(dtype) for g in grads]


def entry(optimizer):
    return optimizer.state_dict()["state"]["params[0]"]


def assert_definition(rule, p, optimizer, start, grads, tolerance=1e-12):
    expected, v, b = definition(rule, start, grads)
    assert_allclose(p, expected, rtol=tolerance, atol=tolerance)
    assert_allclose(entry(optimizer)["square_avg"], v, rtol=tolerance, atol=0)
    if rule.momentum:
        assert_allclose(entry(optimizer)["momentum_buffer"], b, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("rule", ROWWISE.values(), ids=ROWWISE)
def test_every_rule_follows_the_definition(rule, shape):
    start, grads = problem(shape)
    p = start.copy()
    optimizer = RMSprop([p], rule, state_shape="row")
    for g in grads:
        optimizer.step([g])
    assert_definition(rule, p, optimizer, start, grads)


@pytest.mark.parametrize("rule", EXACT.values(), ids=EXACT)
@pytest.mark.parametrize("shape", [(30, 4), (30, 2, 3), (30, 700)], ids=str)
def test_gradients_of_rows_end_where_the_definition_does(rule, shape):
    rng = np.random.default_rng(1)
    start, grads = rng.normal(size=shape), []
    p = start.copy()
    optimizer = RMSprop([p], rule, state_shape="row")
    for t in range(60):
        rows = rng.integers(0, shape[0] - 1, size=5)  # some come twice, the last one never
        values = rng.normal(size=(5, *shape[1:]))
        grads.append(np.zeros(shape))
        np.add.at(grads[-1], rows, values)
        if t % 20 == 19:
            optimizer.step([grads[-1]])
            continue
        if moves(rule):
            optimizer.catch_up(0, rows)
        optimizer.step([(rows, values)])
    optimizer.flush()
    assert_definition(rule, p, optimizer, start, grads, 1e-11)


@pytest.mark.parametrize("options", [{}, {"momentum": 0.9, "weight_decay": 0.1, "decay_mode": "decoupled"}], ids=str)
def test_one_missed_step_has_the_bits_of_a_gradient_of_zeros(options):
    start, grads = problem((6, 40), np.float32)
    results = []
    for is_sparse in (True, False):
        p = start.copy()
        optimizer = RMSprop([p], state_shape="row", **options)
        optimizer.step([grads[0]])
        rows = np.array([1, 4])
        g = np.zeros_like(p)
        g[rows] = grads[1][rows]
        optimizer.step([(rows, grads[1][rows]) if is_sparse else g])
        optimizer.flush()
        results.append((p, entry(optimizer)["square_avg"]))
    for sparse, dense in zip(*results, strict=True):
        assert_array_equal(sparse[[1, 4]], dense[[1, 4]])
    assert_array_equal(results[0][1], results[1][1])


def test_lazy_rows_wait():
    table = np.zeros((3, 2))
    optimizer = RMSprop([table], lr=1.0, beta=0.9, epsilon=0.0, sparse="lazy", state_shape="row")
    for rows in ([0, 1], [0], [0], [1]):
        optimizer.step([(rows, np.array([[1.0, 3.0]] * len(rows)))])
    v = entry(optimizer)["square_avg"]
    assert_allclose(v, [[5 * (1 - 0.9**3)], [5 * (1 - 0.9**2)], [0]], rtol=1e-14)


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
@pytest.mark.parametrize("rule", ROWWISE.values(), ids=ROWWISE)
def test_narrow_parameters(rule, dtype):
    start, grads = problem((5, 33), dtype)
    p = start.copy()
    optimizer = RMSprop([p], rule, state_shape="row")
    for g in grads:
        optimizer.step([g])
    tolerance = 1e-5 if dtype == np.float32 else 2e-2
    expected, v, _ = definition(rule, start, grads)
    assert_allclose(p, expected, rtol=tolerance, atol=tolerance)
    assert entry(optimizer)["square_avg"].dtype == np.float32
    if dtype == np.float32:
        assert_allclose(entry(optimizer)["square_avg"], v, rtol=1e-5)


LAYOUTS = {
    "transposed": lambda x: np.ascontiguousarray(x.T).T,
    "strided": lambda x: np.repeat(x, 2, -1)[..., ::2],
    "reversed": lambda x: np.ascontiguousarray(x[::-1])[::-1],
}


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_any_strides_give_the_same_bits(layout, dtype):
    start, grads = problem((5, 700), dtype)
    results = []
    for lay in (np.array, layout):
        p = lay(start)
        optimizer = RMSprop([p], momentum=0.9, weight_decay=0.1, state_shape="row")
        for g in grads:
            optimizer.step([lay(g)])
        results.append((p, entry(optimizer)["square_avg"]))
    for a, b in zip(*results, strict=True):
        assert_array_equal(a, b)


@pytest.mark.parametrize("shape", [(3000, 400), (2, 900_000), (70_000, 3)], ids=str)
def test_threads_and_pieces_do_not_show(shape, monkeypatch):
    start, grads = problem(shape, np.float32, steps=2)
    results = []
    for threads in (1, 3):
        monkeypatch.setattr(cpu, "threads", lambda threads=threads: threads)
        p = start.copy()
        optimizer = RMSprop([p], state_shape="row", momentum=0.9)
        for g in grads:
            optimizer.step([g])
        results.append((p, entry(optimizer)["square_avg"]))
    assert_array_equal(*(p for p, _ in results))
    assert_array_equal(*(v for _, v in results))
    assert_allclose(results[0][1], definition(Rule(), start, grads)[1], rtol=1e-6)


@pytest.mark.parametrize("nonfinite", ["propagate", "skip"])
@pytest.mark.parametrize("is_sparse", [False, True])
def test_squares_that_are_not_finite(nonfinite, is_sparse):
    p = np.ones((5, 3))
    g = np.array([[1e200, 1, 0], [np.inf, 1, 0], [np.nan, 1, 0], [np.inf, np.nan, -np.inf], [1, 2, 3]])
    optimizer = RMSprop([p], lr=0.1, state_shape="row", nonfinite=nonfinite, momentum=0.9)
    optimizer.step([(np.arange(5), g) if is_sparse else g])
    v = entry(optimizer)["square_avg"][:, 0]
    if nonfinite == "skip":
        assert_allclose(v, 0.1 * np.array([1 / 2, 1 / 2, 1 / 2, 0, 14 / 3]), rtol=1e-14)
        assert_array_equal((p == 1), [[1, 0, 1], [1, 0, 1], [1, 0, 1], [1, 1, 1], [0, 0, 0]])
        assert optimizer.skipped == 6
        return
    assert_array_equal(v[:4], [np.inf, np.inf, np.nan, np.nan])
    # g / inf is 0, inf / inf is not, and 0 moves nothing whatever v is.
    expected = [[1, 1, 1], [np.nan, 1, 1], [np.nan, np.nan, 1], [np.nan, np.nan, np.nan]]
    assert_array_equal(p[:4], expected)
    assert np.isfinite(p[4]).all()


def test_an_error_for_what_is_not_finite_writes_nothing():
    p = np.ones((4, 2))
    optimizer = RMSprop([p], nonfinite="error", state_shape="row")
    g = np.ones((4, 2))
    g[2, 1] = 1e200
    for given in (g, (np.arange(4), g)):
        with pytest.raises(FloatingPointError, match=r"params\[0\]"):
            optimizer.step([given])
        assert (p == 1).all()
        assert (entry(optimizer)["square_avg"] == 0).all()
        assert entry(optimizer)["step"] == 0


def test_a_gradient_that_is_its_own_parameter():
    start, _ = problem((4, 1200))
    p, q = start.copy(), start.copy()
    RMSprop([p], state_shape="row").step([p])
    RMSprop([q], state_shape="row").step([start])
    assert_array_equal(p, q)


def test_four_bytes_a_row():
    optimizer = RMSprop([np.ones((1000, 32), np.float32)], state_shape="row")
    arrays = [value for value in entry(optimizer).values() if isinstance(value, np.ndarray)]
    assert sum(a.nbytes for a in arrays) == 4 * 1000
    assert [a.shape for a in arrays] == [(1000, 1)]


@pytest.mark.parametrize("copied", ["state_dict", "deepcopy", "pickle"])
def test_it_goes_on_exactly(copied):
    start, grads = problem((6, 5))
    p, q = start.copy(), start.copy()
    optimizer, other = (RMSprop([x], momentum=0.9, state_shape="row") for x in (p, q))
    for t, g in enumerate(grads):
        if t == 3:
            if copied == "state_dict":
                state = other.state_dict()
                other = RMSprop([q], state_shape="row")
                other.load_state_dict(state)
            elif copied == "deepcopy":
                q, other = copy.deepcopy((q, other))
            else:
                q, other = pickle.loads(pickle.dumps((q, other)))
                q = other._params[0]
        optimizer.step([g])
        other.step([g])
    assert_array_equal(p, q)


def test_state_of_the_other_shape_is_refused_and_nothing_changes():
    for own, theirs in (("row", "full"), ("full", "row")):
        optimizer, other = (RMSprop([np.ones((4, 3))], state_shape=kind) for kind in (own, theirs))
        other.step([np.ones((4, 3))])
        before = optimizer.state_dict()
        expected = {"row": r"\(4, 1\)", "full": r"\(4, 3\)"}
        message = rf"params\[0\]: square_avg: expected numbers of shape {expected[own]}, .*{expected[theirs]}"
        with pytest.raises(ValueError, match=message):
            optimizer.load_state_dict(other.state_dict())
        np.testing.assert_equal(optimizer.state_dict(), before)


def test_what_cannot_be():
    with pytest.raises(ValueError, match=r"state_shape='col': expected one of \('full', 'row'\)"):
        RMSprop([np.ones((2, 2))], state_shape="col")
    with pytest.raises(ValueError, match=r"state_shape='row': expected 'full' with centered=True"):
        RMSprop([np.ones((2, 2))], state_shape="row", centered=True)
    optimizer = RMSprop([np.ones((2, 2))], state_shape="row")
    other = RMSprop([np.ones((2, 2))], centered=True).state_dict()
    with pytest.raises(ValueError, match=r"state_shape='row': expected 'full' with centered=True"):
        optimizer.load_state_dict(other)
    assert not optimizer.rule.centered


def test_the_kernel_refuses_state_of_another_shape():
    if cpu.native is None:
        pytest.skip("no kernel here")
    for rowwise, shape in ((True, (4, 3)), (True, (4,)), (True, (1, 3)), (False, (4, 1))):
        p, state = np.ones((4, 3)), {"step": np.zeros(()), "square_avg": np.zeros(shape)}
        coefficients = cpu.coefficients(Rule(), rowwise=rowwise)
        with pytest.raises(ValueError, match=r"parameter 0 of group 0: (.*shape|.*one number for each row)"):
            cpu.step([cpu.Group(*coefficients, [p], [np.ones((4, 3))], [state])], 1)
        assert (p == 1).all()
