"""`rmsprop.jax.rprop` against optax, to the last bit, and against the NumPy front end."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from numpy.testing import assert_array_equal

from rmsprop import Rprop
from rmsprop.jax import rprop, scale_by_rprop
from rmsprop.rprop import VARIANTS
from tests.test_rprop import bowl, drawn

NAMES = ("eta_minus", "eta_plus", "min_step_size", "max_step_size")


@pytest.fixture(params=["float32", "float64"])
def dtype(request):
    with jax.enable_x64(request.param == "float64"):
        yield request.param


def run(optimizer, p, grads, losses=None, jit=True):
    """Parameters after every step, and the state."""
    state, path = optimizer.init(p), []

    def step(p, state, g, loss):
        updates, state = optimizer.update(g, state, p, value=loss)
        return optax.apply_updates(p, updates), state

    step = jax.jit(step) if jit else step
    for g, loss in zip(grads, losses or [0.0] * len(grads), strict=True):
        p, state = step(p, state, g, loss)
        path.append(p)
    return path, state


def arguments(options):
    return (options["lr"], *options["etas"], *options["step_sizes"])


@pytest.mark.parametrize("seed", range(8))
def test_equals_optax_bit_for_bit(seed, dtype):
    jit = seed > 1
    p, grads, options = drawn(seed, dtype)
    p, grads = jnp.asarray(p), [jnp.asarray(g) for g in grads]
    theirs, state = run(optax.with_extra_args_support(optax.rprop(*arguments(options))), p, grads, jit=jit)
    ours, mine = run(rprop(*arguments(options)), p, grads, jit=jit)
    assert_array_equal(ours, theirs, strict=True)
    assert len(mine) == len(state)
    assert_array_equal(mine[0].step_sizes, state[0].step_sizes, strict=True)
    assert_array_equal(mine[0].prev_updates, state[0].prev_updates, strict=True)


def test_goes_on_from_optaxs_state(dtype):
    p, grads, options = drawn(2, dtype)
    p, grads = jnp.asarray(p), [jnp.asarray(g) for g in grads]
    theirs = optax.with_extra_args_support(optax.rprop(*arguments(options)))
    q, state = run(theirs, p, grads[:5])
    ends = []
    for optimizer in (theirs, rprop(*arguments(options))):
        p, mine = q[-1], state
        for g in grads[5:]:
            updates, mine = jax.jit(optimizer.update)(g, mine, p)
            p = optax.apply_updates(p, updates)
        ends.append((p, mine))
    jax.tree.map(lambda x, y: assert_array_equal(x, y, strict=True), *ends)  # the structure too
    updates, after = rprop(0.1, variant="irprop+").update(grads[0], state, p, value=1.0)
    assert after[0].loss == 1.0
    assert updates.shape == p.shape


@pytest.mark.parametrize("maximize", [False, True])
@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant_is_the_numpy_front_ends(variant, maximize, dtype):
    p, grads, losses = bowl()
    p, grads = p.astype(dtype), grads.astype(dtype)
    ours, _ = run(rprop(0.1, variant=variant, dialect="torch", maximize=maximize), jnp.asarray(p), grads, losses)
    theirs = Rprop([p], lr=0.1, variant=variant, maximize=maximize)
    for g, loss, q in zip(grads, losses, ours, strict=True):
        theirs.step([g], loss if variant == "irprop+" else None)
        assert_array_equal(p, q, strict=True)


def test_signature_is_optaxs():
    ours, theirs = (inspect.signature(f).parameters for f in (rprop, optax.rprop))
    assert list(ours)[: len(theirs)] == list(theirs)
    assert all(ours[name].default == p.default for name, p in theirs.items())
    assert list(inspect.signature(scale_by_rprop).parameters) == list(ours)


def test_narrow_gradients_have_float32_state():
    p = jnp.ones(3, jnp.bfloat16)
    optimizer = rprop(0.01, dialect="torch")
    state = optimizer.init(p)
    for _ in range(3):
        updates, state = optimizer.update(jnp.full(3, 1e-30, jnp.bfloat16), state)
        assert updates.dtype == jnp.bfloat16
    assert state[0].step_sizes.dtype == state[0].prev_updates.dtype == jnp.float32


def test_complex_numbers_are_two_real_ones():
    rng = np.random.default_rng(0)
    start, grads = rng.normal(size=(4, 2)), rng.normal(size=(20, 4, 2))
    whole = lambda x: x[..., 0] + 1j * x[..., 1]  # noqa: E731
    with jax.enable_x64():
        ours, _ = run(rprop(0.1, dialect="torch"), jnp.asarray(whole(start)), [jnp.asarray(whole(g)) for g in grads])
    p = torch.nn.Parameter(torch.tensor(whole(start)))
    theirs = torch.optim.Rprop([p], lr=0.1)
    for g, q in zip(grads, ours, strict=True):
        p.grad = torch.tensor(whole(g))
        theirs.step()
        assert_array_equal(p.detach().numpy(), q)


def test_trees_none_and_no_leaves():
    params = {"a": jnp.ones(2), "b": (jnp.ones(()), jnp.ones((2, 3)))}
    optimizer = rprop(0.5, dialect="torch")
    state = optimizer.init(params)
    updates, state = optimizer.update({"a": None, "b": (jnp.ones(()), -jnp.ones((2, 3)))}, state)
    assert updates["a"] is None
    assert updates["b"][0] == -0.5
    assert_array_equal(state[0].prev_updates["a"], 0)
    assert optimizer.update({}, optimizer.init({}))[0] == {}


@pytest.mark.parametrize("options", [{}, {"variant": "irprop+"}], ids=str)
def test_scan_keeps_the_structure_and_gives_the_same(options):
    p, grads, losses = bowl()
    p, grads = jnp.asarray(p), jnp.asarray(grads)
    optimizer = rprop(0.1, **options)

    def body(carry, now):
        p, state = carry
        updates, state = optimizer.update(now[0], state, p, value=now[1])
        return (optax.apply_updates(p, updates), state), None

    (scanned, _), _ = jax.lax.scan(body, (p, optimizer.init(p)), (grads, jnp.asarray(losses)))
    assert_array_equal(scanned, run(optimizer, p, grads, losses)[0][-1])


def test_injected_numbers_may_change_while_it_runs():
    p, grads, _ = bowl()
    p = jnp.asarray(p)
    optimizer = optax.inject_hyperparams(rprop)(0.1, dialect="torch")
    state, step = optimizer.init(p), jax.jit(optimizer.update)
    for g in grads[:10]:
        updates, state = step(g, state)
        p = optax.apply_updates(p, updates)
    state.hyperparams["max_step_size"] = jnp.asarray(1e-3)
    updates, state = step(jnp.asarray(grads[10]), state)
    assert 0 < float(abs(updates).max()) < 1.001e-3


@pytest.mark.parametrize(
    "wrap", [lambda o: optax.MultiSteps(o, 2), lambda o: optax.apply_if_finite(o, 5)], ids=["multi", "finite"]
)
def test_inside_optaxs_wrappers(wrap):
    p, grads, _ = bowl()
    ends = []
    for inner in (rprop(0.1), optax.rprop(0.1)):
        optimizer, q = wrap(inner), jnp.asarray(p)
        state = optimizer.init(q)
        for g in grads:
            updates, state = optimizer.update(jnp.asarray(g), state, q)
            q = optax.apply_updates(q, updates)
        ends.append(q)
    assert_array_equal(*ends)


REFUSED = [
    ({"learning_rate": -1.0}, "learning_rate=-1.0: expected a finite number of at least 0"),
    ({"eta_minus": 1.5}, r"\(eta_minus, eta_plus\)=\(1.5, 1.2\): expected"),
    ({"min_step_size": 100.0}, r"\(min_step_size, max_step_size\)="),
    ({"variant": "plus"}, "variant='plus': expected one of"),
    ({"variant": "rprop+", "dialect": "optax"}, r"variant='rprop\+': expected 'irprop-'"),
    ({"dialect": "keras"}, "dialect='keras'"),
]


@pytest.mark.parametrize(("options", "words"), REFUSED, ids=str)
def test_options_outside_their_range(options, words):
    with pytest.raises(ValueError, match=f"^{words}"):
        rprop(**{"learning_rate": 0.1} | options)


def test_irprop_plus_wants_the_loss():
    optimizer = rprop(0.1, variant="irprop+")
    with pytest.raises(ValueError, match="value=loss"):
        optimizer.update(jnp.ones(2), optimizer.init(jnp.ones(2)))
