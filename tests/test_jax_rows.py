"""JAX: gradients of rows give what dense gradients give, compiled or not."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose

import rmsprop.jax
from rmsprop.jax import sparse as rows_module

SHAPE = (30, 3)
RULES = {
    "plain": {},
    "centered, corrected": {"centered": True, "bias_correction": True, "eps": 1e-6},
    "momentum": {"momentum": 0.9},
    "momentum outside, nesterov": {"momentum": 0.9, "momentum_form": "lr_outside", "nesterov": True},
    "decay": {"weight_decay": 0.1},
    "all": {
        "momentum": 0.9,
        "momentum_form": "ema",
        "bias_correction": True,
        "centered": True,
        "weight_decay": 0.1,
        "clip": 2.0,
        "nonfinite": "skip",
    },
}


def schedule(count):
    return 0.01 * (1 + 0.5 * jnp.sin(count / 7.0))


def trained(options, dtype, steps=30, rtol=1e-11, atol=1e-12):
    """(table, state) of rows and of dense gradients; what is read on the way is compared."""
    dense = rmsprop.jax.rmsprop(schedule, **options)
    sparse = rmsprop.jax.rows(dense)
    rng = np.random.default_rng(0)
    p = q = jnp.asarray(rng.normal(size=SHAPE), dtype)
    state, whole = sparse.init(p), dense.init(q)
    step, catch_up, dense_step = jax.jit(sparse.step), jax.jit(sparse.catch_up), jax.jit(dense.step)
    for _ in range(steps):
        indices, values = rng.integers(0, SHAPE[0], size=4), rng.normal(size=(4, SHAPE[1])).astype(dtype)
        p, state = catch_up(p, state, indices)
        assert_allclose(p[indices], q[indices], rtol=rtol, atol=atol)
        p, state = step(p, state, (indices, values))
        g = np.zeros(SHAPE, dtype)
        np.add.at(g, indices, values)
        q, whole = dense_step(q, whole, g)
    assert step._cache_size() == catch_up._cache_size() == 1
    return sparse.flush(p, state), (q, whole)


@pytest.mark.parametrize("options", RULES.values(), ids=RULES)
def test_equal_to_dense_gradients_in_float64(options):
    with jax.enable_x64(True):
        (p, state), (q, whole) = trained(options, np.float64)
        assert_allclose(p, q, rtol=1e-11, atol=1e-12)
        for a, b in zip(jax.tree.leaves(state.inner), jax.tree.leaves(whole), strict=True):
            assert_allclose(a, b, rtol=1e-10, atol=1e-12)


def test_equal_to_dense_gradients_in_float32():
    (p, _), (q, _) = trained(RULES["all"], np.float32, rtol=1e-4, atol=1e-5)
    assert p.dtype == np.float32
    assert_allclose(p, q, rtol=0, atol=1e-5)


def test_histories_end_and_go_on(monkeypatch):
    monkeypatch.setattr(rows_module, "HORIZON", 8)
    with jax.enable_x64(True):
        (p, state), (q, _) = trained(RULES["all"], np.float64)
        assert state.pull.shape == (9,)
        assert_allclose(p, q, rtol=1e-11, atol=1e-12)


def test_lazy_is_tensorflows_rule():
    optimizer = rmsprop.jax.rows(rmsprop.jax.rmsprop(1.0, eps=0.0), sparse="lazy")
    table = jnp.zeros((3, 1))
    state = optimizer.init(table)
    for indices in ([0, 1], [0], [0], [1]):
        table, state = optimizer.step(table, state, (jnp.array(indices), jnp.ones((len(indices), 1))))
    table, state = optimizer.flush(table, state)
    assert_allclose(state.inner.nu[:, 0], [1 - 0.9**3, 1 - 0.9**2, 0], rtol=1e-6)


def test_rows_that_come_several_times_are_summed():
    optimizer = rmsprop.jax.rows(rmsprop.jax.rmsprop(0.1))
    table = jnp.ones((4, 2))
    once, _ = optimizer.step(table, optimizer.init(table), (jnp.array([1]), jnp.full((1, 2), 3.0)))
    twice, _ = optimizer.step(table, optimizer.init(table), (jnp.array([1, 1]), jnp.array([[1.0, 1], [2, 2]])))
    assert_allclose(once, twice)
    assert (once == 1).all(axis=1).tolist() == [True, False, True, True]


@pytest.mark.parametrize("bad", [-1, 4])
def test_rows_outside_the_table(bad):
    """An error where it can be seen, and nothing written where it cannot."""
    optimizer = rmsprop.jax.rows(rmsprop.jax.rmsprop(0.1))
    table = jnp.ones((4, 2))
    state = optimizer.init(table)
    gradient = jnp.array([1, bad]), jnp.ones((2, 2))
    with pytest.raises(IndexError, match=f"row index {bad}: expected 0 to 3"):
        optimizer.step(table, state, gradient)
    new, _ = jax.jit(optimizer.step)(table, state, gradient)
    assert (new == 1).all(axis=1).tolist() == [True, False, True, True]


@pytest.mark.parametrize(
    ("indices", "values", "message"),
    [
        ([0.5], np.ones((1, 2)), "indices have dtype float32"),
        ([[0]], np.ones((1, 2)), r"indices have dtype int32 and shape \(1, 1\)"),
        ([True], np.ones((1, 2)), "indices have dtype bool"),
        ([0], np.ones((2, 2)), r"values have dtype float32 and shape \(2, 2\)"),
        ([0], np.ones((1, 2), int), "values have dtype int32"),
    ],
)
def test_bad_gradients(indices, values, message):
    optimizer = rmsprop.jax.rows(rmsprop.jax.rmsprop(0.1))
    table = jnp.ones((4, 2))
    with pytest.raises(ValueError, match=message):
        optimizer.step(table, optimizer.init(table), (jnp.array(indices), jnp.asarray(values)))


def test_refusals():
    with pytest.raises(ValueError, match="coupled"):
        rmsprop.jax.rows(rmsprop.jax.rmsprop(0.1, weight_decay=0.1, decay_mode="coupled"))
    with pytest.raises(ValueError, match="beta is an array"):
        rmsprop.jax.rows(rmsprop.jax.rmsprop(0.1, decay=jnp.array(0.9)))
    with pytest.raises(ValueError, match="sparse='dense'"):
        rmsprop.jax.rows(rmsprop.jax.rmsprop(0.1), sparse="dense")
    with pytest.raises(TypeError, match=r"what rmsprop\.jax\.rmsprop returns"):
        rmsprop.jax.rows(0.1)
    with pytest.raises(ValueError, match="an array with rows"):
        rmsprop.jax.rows(rmsprop.jax.rmsprop(0.1)).init(jnp.ones(()))


def test_no_rows_at_all_is_a_step_of_zeros():
    optimizer = rmsprop.jax.rows(rmsprop.jax.rmsprop(0.1, initial_scale=1.0))
    table = jnp.ones((4, 2))
    table, state = optimizer.step(table, optimizer.init(table), (jnp.array([], int), jnp.ones((0, 2))))
    table, state = optimizer.flush(table, state)
    assert state.inner.count == 1
    assert_allclose(state.inner.nu, 0.9, rtol=1e-6)
