"""NumPy: gradients of rows, in the words of a user."""

import copy
import pickle

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from rmsprop import RMSprop
from rmsprop.kernels import cpu

RULES = {
    "plain": {},
    "centered, corrected": {"centered": True, "bias_correction": True},
    "momentum": {"momentum": 0.9},
    "momentum inside, nesterov": {"momentum": 0.9, "momentum_form": "lr_inside", "nesterov": True},
    "decay": {"weight_decay": 0.1, "decay_mode": "decoupled"},
    "all": {"momentum": 0.9, "momentum_form": "ema", "centered": True, "weight_decay": 0.1, "decay_mode": "decoupled"},
}
rules = pytest.mark.parametrize("options", RULES.values(), ids=RULES)


@pytest.fixture(params=["native", "blocked"], autouse=True)
def engine(request, monkeypatch):
    if request.param == "native" and cpu.native is None:
        pytest.skip("no kernel here")
    if request.param == "blocked":
        monkeypatch.setattr(cpu, "native", None)


def pair(shape=(30, 4), dtype=np.float64, **options):
    """The same table under two optimizers, the second for dense gradients."""
    start = np.random.default_rng(0).normal(size=shape).astype(dtype)
    tables = [start.copy(), start.copy()]
    return tables, [RMSprop({"table": table}, **options) for table in tables]


def batch(rng, shape=(30, 4), dtype=np.float64, n=5):
    rows = rng.integers(0, shape[0], size=n)
    values = rng.normal(size=(n, *shape[1:])).astype(dtype)
    dense = np.zeros(shape, dtype)
    np.add.at(dense, rows, values)
    return rows, values, dense


@rules
@pytest.mark.parametrize("shape", [(30, 4), (30,), (30, 2, 3), (30, 700)], ids=str)
def test_rows_are_read_and_end_as_with_dense_gradients(shape, options):
    (rows_of, dense_of), (sparse, dense) = pair(shape, **options)
    rng = np.random.default_rng(1)
    for t in range(40):
        sparse.lr = dense.lr = 0.01 * (1 + np.sin(t))
        rows, values, g = batch(rng, shape)
        sparse.catch_up("table", rows)
        assert_allclose(rows_of[rows], dense_of[rows], rtol=1e-11, atol=1e-13)  # what a model would read
        sparse.step({"table": (rows, values)})
        dense.step({"table": g})
    sparse.flush()
    assert_allclose(rows_of, dense_of, rtol=1e-11, atol=1e-13)
    for name, value in dense.state_dict()["state"]["params['table']"].items():
        assert_allclose(sparse.state_dict()["state"]["params['table']"][name], value, rtol=1e-11, atol=1e-14)


@pytest.mark.parametrize("kind", [list, np.int32, np.uint8, np.int64], ids=str)
def test_indices_of_any_integer_kind(kind):
    table = np.ones((4, 2))
    indices = [3, 1] if kind is list else np.array([3, 1], kind)
    RMSprop([table]).step([(indices, np.ones((2, 2)))])
    assert ((table != 1).all(1) == [False, True, False, True]).all()


def test_no_rows_at_all_is_a_step_of_zeros():
    (_, _), (sparse, dense) = pair(initial_square=1.0)
    for _ in range(3):
        sparse.step({"table": ([], np.empty((0, 4)))})
        dense.step({"table": np.zeros((30, 4))})
    results = [o.state_dict()["state"]["params['table']"] for o in (sparse, dense)]
    assert results[0]["step"] == 3
    assert_allclose(results[0]["square_avg"], results[1]["square_avg"], rtol=1e-14)


def test_gradients_are_only_read():
    rows, values = np.array([1, 1, 2]), np.ones((3, 2))
    before = rows.copy(), values.copy()
    RMSprop([np.ones((4, 2))]).step([(rows, values)])
    assert_array_equal(rows, before[0])
    assert_array_equal(values, before[1])


@pytest.mark.parametrize(
    ("indices", "values", "message"),
    [
        ([-1], np.ones((1, 2)), r"params\[0\]: row index -1: expected 0 to 3"),
        ([4], np.ones((1, 2)), r"params\[0\]: row index 4: expected 0 to 3"),
        ([0.0], np.ones((1, 2)), r"grads\[0\]: indices has dtype float64"),
        ([True], np.ones((1, 2)), r"grads\[0\]: indices has dtype bool"),
        ([[0]], np.ones((1, 2)), r"grads\[0\]: indices has dtype int64 and shape \(1, 1\)"),
        ([0], np.ones((2, 2)), r"grads\[0\]: values has shape \(2, 2\)"),
        ([0], np.ones((1, 3)), r"grads\[0\]: values has shape \(1, 3\)"),
        ([0], np.ones((1, 2), int), r"grads\[0\]: values has dtype int64"),
    ],
)
def test_bad_rows_are_named_and_nothing_is_written(indices, values, message):
    table, other = np.ones((4, 2)), np.ones(3)
    optimizer = RMSprop([table, other])
    before = optimizer.state_dict()
    with pytest.raises((ValueError, IndexError), match=message):
        optimizer.step([(indices, values), np.ones(3)])
    assert (table == 1).all()
    assert (other == 1).all()
    np.testing.assert_equal(optimizer.state_dict(), before)


def test_a_tuple_is_a_pair_and_a_table_is_contiguous():
    with pytest.raises(ValueError, match=r"grads\[0\]: a tuple is \(row indices, values\)"):
        RMSprop([np.ones((4, 2))]).step([(np.ones(2), np.ones(2), np.ones(2))])
    with pytest.raises(ValueError, match="contiguous"):
        RMSprop([np.ones((2, 4)).T]).step([([0], np.ones((1, 2)))])


def test_rows_read_as_they_were_some_steps_ago_are_refused():
    table = np.ones((4, 2))
    optimizer = RMSprop([table], momentum=0.9)
    optimizer.step([([0, 1], np.ones((2, 2)))])
    optimizer.step([([0], np.ones((1, 2)))])
    before = table.copy()
    with pytest.raises(ValueError, match=r"row 1 moves while it is not touched, .* step 1 of 2: .*catch_up"):
        optimizer.step([([0, 1], np.ones((2, 2)))])
    assert_array_equal(table, before)
    optimizer.catch_up(0, [1])
    optimizer.step([([0, 1], np.ones((2, 2)))])


def test_coupled_decay_is_refused_and_what_to_use_is_named():
    optimizer = RMSprop([np.ones((4, 2))], weight_decay=0.1)
    with pytest.raises(ValueError, match=r"coupled.*decoupled.*lazy"):
        optimizer.step([([0], np.ones((1, 2)))])
    optimizer.step([np.ones((4, 2))])


def test_catch_up_of_what_is_no_parameter_or_row():
    optimizer = RMSprop({"a": np.ones((4, 2))}, momentum=0.9)
    optimizer.step({"a": ([0], np.ones((1, 2)))})
    with pytest.raises(ValueError, match="key='b'"):
        optimizer.catch_up("b", [0])
    with pytest.raises(IndexError, match="row index 4"):
        optimizer.catch_up("a", [4])
    with pytest.raises(ValueError, match="rows has dtype float64"):
        optimizer.catch_up("a", [0.5])


def test_lazy_is_tensorflows_rule():
    """Rows that are not touched wait: v decays once for each time a row is touched."""
    table = np.zeros((3, 1))
    optimizer = RMSprop([table], lr=1.0, beta=0.9, epsilon=0.0, sparse="lazy")
    for rows in ([0, 1], [0], [0], [1]):
        optimizer.step([(rows, np.ones((len(rows), 1)))])
    v = optimizer.state_dict()["state"]["params[0]"]["square_avg"][:, 0]
    assert_allclose(v, [1 - 0.9**3, 1 - 0.9**2, 0], rtol=1e-14)
    assert optimizer.state_dict()["state"]["params[0]"]["step"] == 4


def test_lazy_lets_momentum_and_coupled_decay_wait_too():
    table = np.ones((2, 1))
    optimizer = RMSprop([table], momentum=0.9, weight_decay=0.1, sparse="lazy")
    optimizer.step([([0], np.ones((1, 1)))])
    moved = table.copy()
    optimizer.step([([1], np.ones((1, 1)))])
    assert table[0] == moved[0]
    assert table[1] == moved[0]


@pytest.mark.parametrize("change", [{"beta": 0.5}, {"momentum": 0.5}, {"momentum": 0.0}], ids=str)
def test_a_loaded_rule_goes_on_from_the_whole_state(change):
    tables, optimizers = pair(momentum=0.9)
    rng = np.random.default_rng(1)
    for k in range(2):
        for _ in range(10):
            rows, values, g = batch(rng)
            optimizers[0].catch_up("table", rows)
            optimizers[0].step({"table": (rows, values)})
            optimizers[1].step({"table": g})
        if k == 0:
            for i, table in enumerate(tables):
                state = optimizers[i].state_dict()
                state["rule"] |= change
                if change.get("momentum") == 0:
                    del state["state"]["params['table']"]["momentum_buffer"]
                optimizers[i] = RMSprop({"table": table})
                optimizers[i].load_state_dict(state)
    optimizers[0].flush()
    assert_allclose(tables[0], tables[1], rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda o: pickle.loads(pickle.dumps(o))], ids=["deepcopy", "pickle"])
def test_copies_are_up_to_date(copied):
    tables, (sparse, dense) = pair(momentum=0.9)
    rng = np.random.default_rng(1)
    for _ in range(5):
        rows, values, g = batch(rng)
        sparse.catch_up("table", rows)
        sparse.step({"table": (rows, values)})
        dense.step({"table": g})
    table, other = copied((tables[0], sparse))
    other.flush()
    if copied is copy.deepcopy:
        assert other._params[0] is table
    assert_allclose(other._params[0], tables[1], rtol=1e-12)
    other.step({"table": ([0], np.ones((1, 4)))})


def test_dense_and_sparse_gradients_take_turns():
    tables, (sparse, dense) = pair(momentum=0.9, centered=True)
    rng = np.random.default_rng(1)
    for t in range(20):
        rows, values, g = batch(rng)
        if t % 3:
            sparse.catch_up("table", rows)
        sparse.step({"table": (rows, values) if t % 3 else g})
        dense.step({"table": g})
    sparse.flush()
    assert_allclose(tables[0], tables[1], rtol=1e-11, atol=1e-13)


def test_skipped_entries_keep_what_they_had():
    tables, (sparse, dense) = pair(nonfinite="skip")
    rng = np.random.default_rng(1)
    for _ in range(10):
        rows, values, g = batch(rng)
        g[rows[0], 0] = values[0, 0] = np.inf
        sparse.step({"table": (rows, values)})
        dense.step({"table": g})
    assert sparse.skipped == dense.skipped == 10
    assert_allclose(tables[0], tables[1], rtol=1e-12)
    assert np.isfinite(tables[0]).all()


def test_an_error_for_what_is_not_finite_writes_nothing():
    table = np.ones((4, 2))
    optimizer = RMSprop([table], nonfinite="error")
    with pytest.raises(FloatingPointError, match=r"params\[0\]"):
        optimizer.step([([1, 2], np.array([[1, 1], [1, np.inf]]))])
    assert (table == 1).all()


def test_unknown_mode():
    with pytest.raises(ValueError, match="sparse='dense': expected one of"):
        RMSprop([np.ones(3)], sparse="dense")


def test_float16_tables_sum_in_float32():
    table = np.zeros((2, 1), np.float16)
    optimizer = RMSprop([table], lr=1.0, beta=0.0, epsilon=0.0)
    optimizer.step([([0] * 3, np.full((3, 1), 3e4, np.float16))])
    assert table[0] == -1  # the sum, 9e4, is no float16


def test_an_interrupted_step_has_been_made(monkeypatch):
    tables, (sparse, dense) = pair(momentum=0.9)
    rng, kernel = np.random.default_rng(1), cpu.step

    def interrupted(groups, threads):
        kernel(groups, threads)
        raise KeyboardInterrupt

    for t in range(6):
        rows, values, g = batch(rng)
        sparse.catch_up("table", rows)
        if t == 3:
            monkeypatch.setattr(cpu, "step", interrupted)
            with pytest.raises(KeyboardInterrupt):
                sparse.step({"table": (rows, values)})
            monkeypatch.setattr(cpu, "step", kernel)
        else:
            sparse.step({"table": (rows, values)})
        dense.step({"table": g})
    sparse.flush()
    assert_allclose(tables[0], tables[1], rtol=1e-11, atol=1e-13)
