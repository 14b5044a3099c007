"""The JAX front end as a transformation: dtypes, structure, tracing, and company."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from numpy.testing import assert_allclose, assert_array_equal

import rmsprop.jax

EVERYTHING = {
    "centered": True,
    "variance_floor": 0.1,
    "momentum": 0.9,
    "nesterov": True,
    "bias_correction": True,
    "weight_decay": 0.1,
    "clip": 1.0,
    "clip_weights": 5.0,
    "nonfinite": "skip",
}
OPTIONS = {"plain": {}, "everything": EVERYTHING}
FLOATS = ["float16", "bfloat16", "float32", "float64", "complex64", "complex128"]


@pytest.fixture(params=OPTIONS)
def optimizer(request):
    return rmsprop.jax.rmsprop(0.1, **OPTIONS[request.param])


def problem(dtype=jnp.float32):
    params = {"w": jnp.arange(6, dtype=dtype).reshape(2, 3), "b": [jnp.ones((), dtype)]}
    return params, jax.tree.map(lambda p: 0.1 * p + jnp.asarray(1, p.dtype), params)


def types(tree):
    return jax.tree.map(lambda x: (x.shape, x.dtype, x.weak_type), tree)


def close(one, two, **tolerance):
    jax.tree.map(lambda a, b: assert_allclose(a, b, **{"rtol": 1e-6, "atol": 1e-7} | tolerance), one, two)


def test_the_signature_is_optax_and_ours_by_keyword():
    theirs = list(inspect.signature(optax.rmsprop).parameters.values())
    ours = list(inspect.signature(rmsprop.jax.rmsprop).parameters.values())
    assert [p.name for p in ours[: len(theirs)]] == [p.name for p in theirs]
    assert [p.default for p in ours[: len(theirs)]] == [p.default for p in theirs]
    assert all(p.kind == p.KEYWORD_ONLY for p in ours[len(theirs) :])


@pytest.mark.parametrize("grads_dtype", [None, "float16", "float32"])
@pytest.mark.parametrize("dtype", FLOATS)
def test_dtypes_are_stable(optimizer, dtype, grads_dtype):
    with jax.enable_x64(dtype in ("float64", "complex128")):
        params, grads = problem(jnp.dtype(dtype))
        if grads_dtype and not dtype.startswith("complex"):
            grads = jax.tree.map(lambda g: g.astype(grads_dtype), grads)
        state = optimizer.init(params)
        updates, after = optimizer.update(grads, state, params)
        jitted_updates, jitted = jax.jit(optimizer.update)(grads, state, params)
        assert types(jitted) == types(after) == types(state) == types(jax.jit(optimizer.init)(params))
        assert types(jitted_updates) == types(updates) == types(grads)
        wide = {"float64": "float64", "complex128": "float64"}.get(dtype, "float32")
        second = state.nu if state.variance is None else state.variance
        assert second["w"].dtype == wide

        def step(carry, _):
            return (carry[0], optimizer.update(grads, carry[1], carry[0])[1]), None

        (_, scanned), _ = jax.lax.scan(step, (params, state), length=3)
        assert int(scanned.count) == 3
        jax.lax.cond(True, lambda: state, lambda: after)


def test_state_dtype_is_what_is_asked_for():
    params, grads = problem(jnp.bfloat16)
    with jax.enable_x64(True):
        optimizer = rmsprop.jax.rmsprop(0.1, momentum=0.9, state_dtype=jnp.float64)
        _, state = optimizer.update(grads, optimizer.init(params), params)
        assert {x.dtype for x in jax.tree.leaves((state.nu, state.trace))} == {np.dtype("float64")}
        narrow = rmsprop.jax.rmsprop(0.1, state_dtype="float32")
        params, grads = problem(jnp.float64)
        updates, state = narrow.update(grads, narrow.init(params))
        assert state.nu["w"].dtype == jnp.float32
        assert updates["w"].dtype == jnp.float64


def test_one_compilation_serves_all_steps(optimizer):
    params, grads = problem()
    traces = []

    @jax.jit
    def step(params, state):
        traces.append(1)
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    state = optimizer.init(params)
    for _ in range(3):
        params, state = step(params, state)
    assert len(traces) == 1


def test_init_needs_no_numbers(optimizer):
    params, _ = problem()
    shapes = jax.tree.map(lambda p: jax.ShapeDtypeStruct(p.shape, p.dtype), params)
    assert types(optimizer.init(shapes)) == types(optimizer.init(params))


def test_donated_buffers_are_used_again(optimizer):
    params, grads = problem()
    state = optimizer.init(params)

    def step(params, state):
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    expected = jax.jit(step)(params, state)
    old = jax.tree.leaves((params, state))
    close(jax.jit(step, donate_argnums=(0, 1))(params, state), expected, rtol=0)
    assert all(x.is_deleted() for x in old)


def test_nothing_else_is_written(optimizer):
    params, grads = problem()
    state = optimizer.init(params)
    kept = jax.tree.map(np.array, (params, grads, state))
    optimizer.update(grads, state, params)
    jax.tree.map(assert_array_equal, (params, grads, state), kept)


def test_vmap_steps_each_alone(optimizer):
    params = jnp.arange(12.0).reshape(4, 3)
    grads = jnp.sin(params)
    state = jax.vmap(optimizer.init)(params)
    updates, after = jax.vmap(optimizer.update)(grads, state, params)
    for i in range(4):
        alone = optimizer.update(grads[i], optimizer.init(params[i]), params[i])
        close(jax.tree.map(lambda x, i=i: x[i], (updates, after)), alone)


def test_derivatives_pass_through_a_step():
    """Meta-learning: also where the gradient is 0, and nothing moves."""
    optimizer = rmsprop.jax.rmsprop(0.1, momentum=0.9)

    def after(g):
        return optimizer.update(g, optimizer.init(g))[0].sum()

    assert np.isfinite(jax.grad(after)(jnp.array([0.0, 1.0, -2.0]))).all()


class TestSchedules:
    @pytest.mark.parametrize("options", [{}, {"momentum": 0.9}, {"weight_decay": 0.1}], ids=str)
    def test_the_first_step_has_the_schedule_at_0(self, options):
        lrs = jnp.array([0.5, 0.25, 0.125])
        params, grads = problem()
        scheduled = rmsprop.jax.rmsprop(lambda count: lrs[count], **options)
        state = scheduled.init(params)
        by_hand = None
        for lr in lrs:
            updates, state = jax.jit(scheduled.update)(grads, state, params)
            fixed = rmsprop.jax.rmsprop(float(lr), **options)
            expected, by_hand = fixed.update(grads, by_hand or fixed.init(params), params)
            close(updates, expected)

    def test_a_learning_rate_may_be_traced(self):
        params, grads = problem()

        @jax.jit
        def step(lr, momentum):
            optimizer = rmsprop.jax.rmsprop(lr, momentum=momentum)
            return optimizer.update(grads, optimizer.init(params), params)

        for lr in (0.1, 0.2):
            fixed = rmsprop.jax.rmsprop(lr, momentum=0.9)
            close(step(lr, 0.9), fixed.update(grads, fixed.init(params), params))


NUMBERS = {
    "learning_rate": 0.1,
    "decay": 0.8,
    "eps": 1e-3,
    "initial_scale": 0.5,
    "momentum": 0.7,
    "weight_decay": 0.1,
    "clip": 0.9,
    "clip_weights": 3.0,
    "variance_floor": 0.2,
}


class TestInjectHyperparams:
    @pytest.mark.parametrize("jit", [True, False])
    @pytest.mark.parametrize("form", ["lr_inside", "lr_outside", "ema"])
    def test_every_number_may_be_injected(self, form, jit):
        flags = {"centered": True, "momentum_form": form, "bias_correction": True, "nesterov": True}
        params, grads = problem()
        injected = optax.inject_hyperparams(rmsprop.jax.rmsprop)(**NUMBERS, **flags)
        plain = rmsprop.jax.rmsprop(**NUMBERS, **flags)
        update = jax.jit(injected.update) if jit else injected.update
        one, two = injected.init(params), plain.init(params)
        assert one.hyperparams.keys() == NUMBERS.keys()
        for _ in range(3):
            updates, one = update(grads, one, params)
            expected, two = plain.update(grads, two, params)
            close(updates, expected, rtol=1e-5)
        close(one.inner_state, two, rtol=1e-5)

    def test_they_may_change_between_steps(self):
        params, grads = problem()
        injected = optax.inject_hyperparams(rmsprop.jax.rmsprop)(0.1, decay=0.8)
        state = injected.init(params)
        update = jax.jit(injected.update)
        _, state = update(grads, state, params)
        first = state.inner_state.nu["w"]
        state.hyperparams["decay"] = jnp.float32(0.0)
        _, state = update(grads, state, params)
        assert_allclose(first, 0.2 * grads["w"] ** 2, 1e-6)
        assert_allclose(state.inner_state.nu["w"], grads["w"] ** 2, 1e-6)

    def test_a_momentum_of_0_has_a_buffer_from_the_start(self):
        params, grads = problem()
        injected = optax.inject_hyperparams(rmsprop.jax.rmsprop)(0.1, momentum=0.0)
        state = injected.init(params)
        assert types(jax.jit(injected.update)(grads, state, params)[1]) == types(state)

    def test_numbers_of_16_bits_keep_their_digits(self):
        """A first step with bias correction has length lr, whatever the decay."""
        optimizer = rmsprop.jax.rmsprop(1.0, decay=jnp.bfloat16(0.99), eps=0.0, bias_correction=True)
        updates, _ = optimizer.update(jnp.ones(1), optimizer.init(jnp.ones(1)))
        assert_allclose(updates, -1, 1e-4)

    def test_what_is_out_of_range_raises_where_it_is_known(self):
        with pytest.raises(ValueError, match=r"decay=.*1\.5.*: expected a number in \[0, 1\)"):
            rmsprop.jax.rmsprop(0.1, decay=jnp.float32(1.5))
        with pytest.raises(ValueError, match=r"decay has shape \(2,\)"):
            rmsprop.jax.rmsprop(0.1, decay=jnp.ones(2))


class TestCompany:
    """With optax's wrappers."""

    def test_multi_transform(self):
        params, grads = problem()
        labels = {"w": "ours", "b": "frozen"}
        wrapped = optax.multi_transform({"ours": rmsprop.jax.rmsprop(0.1), "frozen": optax.set_to_zero()}, labels)
        updates, _ = jax.jit(wrapped.update)(grads, wrapped.init(params), params)
        alone = rmsprop.jax.rmsprop(0.1)
        expected, _ = alone.update(grads, alone.init(params), params)
        assert_array_equal(updates["w"], expected["w"])
        assert updates["b"][0] == 0

    def test_masked(self, optimizer):
        params, grads = problem()
        wrapped = optax.masked(optimizer, {"w": False, "b": True})
        updates, _ = jax.jit(wrapped.update)(grads, wrapped.init(params), params)
        assert_array_equal(updates["w"], grads["w"])
        assert updates["b"][0] < 0

    def test_multi_steps(self, optimizer):
        params, grads = problem()
        wrapped = optax.MultiSteps(optimizer, 2)
        state = wrapped.init(params)
        update = jax.jit(wrapped.update)
        updates, state = update(grads, state, params)
        assert not any(x.any() for x in jax.tree.leaves(updates))
        updates, state = update(grads, state, params)
        close(updates, optimizer.update(grads, optimizer.init(params), params)[0])

    def test_apply_if_finite(self, optimizer):
        params, grads = problem()
        wrapped = optax.apply_if_finite(optimizer, 5)
        state = wrapped.init(params)
        bad = jax.tree.map(lambda g: g * jnp.nan, grads)
        updates, state = jax.jit(wrapped.update)(bad, state, params)
        assert not any(x.any() for x in jax.tree.leaves(updates))
        updates, _ = jax.jit(wrapped.update)(grads, state, params)
        close(updates, optimizer.update(grads, optimizer.init(params), params)[0])

    def test_tree_tools(self, optimizer):
        params, _ = problem()
        state = optimizer.init(params)
        doubled = optax.tree.map_params(optimizer, lambda x: x + 1, state)
        assert int(doubled.count) == 0
        second = "nu" if state.variance is None else "variance"
        assert_array_equal(optax.tree.get(doubled, second)["w"], optax.tree.get(state, second)["w"] + 1)

    def test_extra_arguments_are_let_pass(self, optimizer):
        params, grads = problem()
        chain = optax.chain(optimizer, optax.contrib.reduce_on_plateau())
        chain.update(grads, chain.init(params), params, value=1.0)


class TestNone:
    def test_a_parameter_that_is_none(self, optimizer):
        params, grads = {"w": jnp.ones(2), "f": None}, {"w": jnp.ones(2), "f": None}
        updates, state = jax.jit(optimizer.update)(grads, optimizer.init(params), params)
        assert updates["f"] is None
        assert jax.tree.structure(state) == jax.tree.structure(optimizer.init(params))

    def test_a_gradient_that_is_none_leaves_the_state_alone(self, optimizer):
        params = {"w": jnp.ones(2), "f": jnp.ones(3)}
        state = optimizer.init(params)
        updates, after = optimizer.update({"w": jnp.ones(2), "f": None}, state, params)
        assert updates["f"] is None
        kept = state.nu if state.variance is None else state.variance
        now = after.nu if after.variance is None else after.variance
        assert_array_equal(now["f"], kept["f"])
        assert (now["w"] != kept["w"]).all()


REFUSED = {
    "decay=1.0: expected a number": {"decay": 1.0},
    "eps=-1.0: expected": {"eps": -1.0},
    "learning_rate=-1.0: expected": {"learning_rate": -1.0},
    "initial_scale=nan: expected": {"initial_scale": float("nan")},
    "nesterov=True: expected False without momentum": {"nesterov": True},
    "eps_in_sqrt=True and epsilon_mode='floor'": {"eps_in_sqrt": True, "epsilon_mode": "floor"},
    "eps_in_sqrt=1: expected True or False": {"eps_in_sqrt": 1},
    "centered=1: expected": {"centered": 1},
    "variance_floor=0.1: expected 0": {"variance_floor": 0.1},
    "nonfinite='error': a compiled step cannot raise": {"nonfinite": "error"},
    "complex_as='real': expected one of": {"complex_as": "real"},
    "state_dtype='bfloat16'": {"state_dtype": "bfloat16"},
    "dialect='kears': expected one of .*did you mean 'keras'": {"dialect": "kears"},
    "dialect=3": {"dialect": 3},
}


@pytest.mark.parametrize("message", REFUSED)
def test_options_are_refused_by_name(message):
    with pytest.raises(ValueError, match=message):
        rmsprop.jax.rmsprop(**{"learning_rate": 0.1} | REFUSED[message])


def test_the_direction_alone_knows_no_learning_rate():
    with pytest.raises(ValueError, match="momentum_form='lr_inside'"):
        rmsprop.jax.scale_by_rmsprop(momentum=0.9)
    with pytest.raises(ValueError, match="clip_weights"):
        rmsprop.jax.scale_by_rmsprop(dialect=rmsprop.Rule(clip_weights=1.0))


class TestLeavesAreChecked:
    STATE = rmsprop.jax.rmsprop(0.1).init({"w": jnp.ones(2)})

    @pytest.mark.parametrize("option", [{"weight_decay": 0.1}, {"clip_weights": 1.0}], ids=str)
    def test_parameters_that_are_missing(self, option):
        optimizer = rmsprop.jax.rmsprop(0.1, **option)
        (name,) = option
        with pytest.raises(ValueError, match=rf"{name}=.* needs the parameters"):
            optimizer.update({"w": jnp.ones(2)}, optimizer.init({"w": jnp.ones(2)}))

    @pytest.mark.parametrize(
        ("grads", "message"),
        [
            ({"w": jnp.ones(1)}, r"updates\['w'\] has shape \(1,\): expected its state's, \(2,\)"),
            ({"w": jnp.ones(2, jnp.int32)}, r"updates\['w'\] has dtype int32: expected one like float32"),
            ({"w": jnp.ones(2, jnp.complex64)}, r"updates\['w'\] has dtype complex64"),
            ({"v": jnp.ones(2)}, "key"),
        ],
        ids=str,
    )
    def test_gradients_that_do_not_fit(self, grads, message):
        with pytest.raises(ValueError, match=message):
            rmsprop.jax.rmsprop(0.1).update(grads, self.STATE, {"w": jnp.ones(2)})

    def test_parameters_of_another_shape(self):
        with pytest.raises(ValueError, match=r"updates\['w'\] .* state's, \(2,\), and its parameter's, \(3,\)"):
            rmsprop.jax.rmsprop(0.1).update({"w": jnp.ones(2)}, self.STATE, {"w": jnp.ones(3)})

    def test_parameters_that_are_no_floats(self):
        with pytest.raises(ValueError, match=r"params\['n'\] has dtype int32: expected floats"):
            rmsprop.jax.rmsprop(0.1).init({"n": jnp.ones(2, jnp.int32)})

    def test_a_start_that_overflows(self):
        with pytest.raises(ValueError, match=r"initial_scale=1e\+300: expected a number that float32 can hold"):
            rmsprop.jax.rmsprop(0.1, initial_scale=1e300).init(jnp.ones(2))
