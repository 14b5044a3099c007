"""The JAX front end: its numbers, against the NumPy front end and optax."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from numpy.testing import assert_allclose, assert_array_equal

import rmsprop.jax
from rmsprop import Rule
from rmsprop.numpy import RMSprop
from tests.cases import DTYPES, LENGTHS, RULES, gradients, parameter

#: Flags of optax.rmsprop, all of which mean the same here. (Centered with a correction is another rule: see below.)
FLAGS = [
    {},
    {"decay": 0.99, "eps": 1e-3},
    {"eps_in_sqrt": False},
    {"initial_scale": 1.0},
    {"momentum": 0.9},
    {"momentum": 0.9, "nesterov": True},
    {"centered": True, "eps": 1e-2},
    {"centered": True, "eps": 1e-2, "momentum": 0.5, "eps_in_sqrt": False},
    {"bias_correction": True, "decay": 0.999},
]


@pytest.fixture(params=["float32", "float64"])
def dtype(request):
    with jax.enable_x64(request.param == "float64"):
        yield np.dtype(request.param)


def run(optimizer, params, grads, jit=True):
    """Parameters and state after some steps."""
    state = optimizer.init(params)

    def step(params, state, g):
        updates, state = optimizer.update(g, state, params)
        return optax.apply_updates(params, updates), state

    step = jax.jit(step) if jit else step
    for g in grads:
        params, state = step(params, state, g)
    return params, state


def tolerance(numbers, dtype):
    """4 units in the last place of the largest number; in float64 1e-12 of it."""
    largest = np.abs(numbers[np.isfinite(numbers)]).max(initial=1e-30)
    return 4 * np.spacing(largest) if dtype == np.float32 else 1e-12 * largest


def without_subnormal_squares(grads):
    """Where no epsilon covers it, a square that is subnormal matters; XLA takes such numbers for 0."""
    least = np.sqrt(np.finfo(grads[0][0].dtype).tiny) * 1e3
    return [[np.where(np.abs(g) < least, 0, g) for g in gs] for gs in grads]


def follows_numpy(rule, dtype, lengths, jit=True):
    params = [parameter(n, dtype.type) for n in lengths]
    grads = [list(gs) for gs in zip(*(gradients(n, dtype.type) for n in lengths), strict=True)]
    if rule.epsilon == 0:
        grads = without_subnormal_squares(grads)
    theirs = [p.copy() for p in params]
    reference = RMSprop(theirs, rule)
    for gs in grads:
        reference.step(gs)
    ours, state = run(rmsprop.jax.rmsprop(None, dialect=rule), params, grads, jit)
    saved, expected = rmsprop.jax.state_dict(state, rule), reference.state_dict()
    assert saved["rule"] == expected["rule"]
    assert saved["state"].keys() == expected["state"].keys()
    assert int(state.skipped or 0) == reference.skipped
    for i, p in enumerate(theirs):
        assert_allclose(ours[i], p, rtol=0, atol=tolerance(p, dtype))
        for name, x in expected["state"][f"params[{i}]"].items():
            exact, tiny = (1e-4, 1e-36) if dtype == np.float32 else (1e-11, 1e-306)
            assert_allclose(saved["state"][f"params[{i}]"][name], x, exact, tiny)


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_numbers_are_those_of_the_numpy_front_end(rule, dtype):
    follows_numpy(rule, dtype, (513,))


@pytest.mark.parametrize("rule", ["plain", "everything"])
def test_numbers_are_the_same_for_any_length_and_without_jit(rule, dtype):
    follows_numpy(RULES[rule], dtype, LENGTHS, jit=False)


@pytest.mark.parametrize("scheduled", [False, True])
@pytest.mark.parametrize("flags", FLAGS, ids=str)
def test_a_drop_in_for_optax(flags, scheduled, dtype):
    lr = optax.cosine_decay_schedule(0.1, 8) if scheduled else 0.1
    rng = np.random.default_rng(0)
    params = {"w": rng.normal(size=(4, 5)).astype(dtype), "b": np.asarray(rng.normal(), dtype)}
    grads = [jax.tree.map(lambda p: np.asarray(rng.normal(size=p.shape), dtype), params) for _ in range(8)]
    theirs, _ = run(optax.rmsprop(lr, **flags), params, grads)
    ours, _ = run(rmsprop.jax.rmsprop(lr, **flags), params, grads)
    exact = 1e-6 if dtype == np.float32 else 1e-12
    exact = 2e-5 if flags.get("decay") == 0.999 and dtype == np.float32 else exact  # theirs is 1 - 0.999**t in float32
    for key, p in theirs.items():
        assert_allclose(ours[key], p, exact, exact)


def test_positional_arguments_are_optax_ones():
    args = (0.1, 0.8, 1e-2, 0.5, False, True, 0.7, True)
    params, grads = jnp.arange(3.0), [jnp.array([1.0, -2.0, 3.0]), jnp.array([2.0, 1.0, -1.0])]
    assert_allclose(
        run(rmsprop.jax.rmsprop(*args), params, grads)[0], run(optax.rmsprop(*args), params, grads)[0], 1e-5
    )


@pytest.mark.parametrize("flags", [{}, {"centered": True}, {"momentum": 0.9, "nesterov": True}], ids=str)
def test_scale_by_rmsprop_in_a_chain(flags):
    params, grads = parameter(9, np.float32), gradients(9, np.float32)
    whole = rmsprop.jax.rmsprop(0.1, momentum_form="lr_outside", weight_decay=0.01, clip=1.0, **flags)
    part = rmsprop.jax.scale_by_rmsprop(momentum_form="lr_outside", weight_decay=0.01, clip=1.0, **flags)
    chain = optax.chain(part, optax.scale_by_learning_rate(0.1))
    assert_allclose(run(chain, params, grads)[0], run(whole, params, grads)[0], 1e-6, 1e-6)


def test_scale_by_rmsprop_is_optax_scale_by_rms():
    params, grads = jnp.ones(3), [jnp.array([1.0, -2.0, 0.5])] * 3
    args = (0.8, 1e-3, 1.0, False, True)
    theirs, ours = optax.scale_by_rms(*args), rmsprop.jax.scale_by_rmsprop(*args)
    assert_allclose(run(ours, params, grads)[0], run(theirs, params, grads)[0], 1e-6)


@pytest.mark.parametrize(("steps", "decay"), [(1, 0.999), (2, 0.9999), (50, 0.999)])
def test_bias_correction_keeps_its_digits(steps, decay):
    """1 - 0.9999 has three digits left when it is computed in float32."""
    grads = [np.float32([0.3, -2.0])] * steps
    p = np.zeros(2, np.float32)
    reference = RMSprop([p], lr=1.0, beta=decay, bias_correction=True, epsilon=0.0)
    for g in grads:
        reference.step([g])
    optimizer = rmsprop.jax.rmsprop(1.0, decay=decay, eps=0.0, bias_correction=True)
    assert_allclose(run(optimizer, np.zeros(2, np.float32), grads)[0], p, 1e-6)


class TestFaultsOfOptax:
    """Each is shown in optax too, so that the test knows its peer."""

    @pytest.mark.parametrize("flags", [{}, {"eps_in_sqrt": False}, {"centered": True}], ids=str)
    def test_a_float16_zero_gradient_is_no_step(self, flags):
        """optax issue 1784: eps is 0 in float16, and 0/0 is NaN."""
        params, grads = jnp.ones(2, jnp.float16), [jnp.array([0.0, 1.0], jnp.float16)]
        assert np.isnan(run(optax.rmsprop(0.1, **flags), params, grads)[0][0])
        ours, _ = run(rmsprop.jax.rmsprop(0.1, **flags), params, grads)
        assert ours[0] == 1
        assert 0 < ours[1] < 1

    def test_a_float16_square_does_not_overflow(self):
        params, grads = jnp.zeros(1, jnp.float16), [jnp.full(1, 300.0, jnp.float16)]
        assert run(optax.rmsprop(0.1), params, grads)[0][0] == 0
        assert_allclose(run(rmsprop.jax.rmsprop(0.1), params, grads)[0], -0.1 / np.sqrt(0.1), 1e-3)

    def test_centered_cannot_turn_negative(self):
        """A steady gradient; without an epsilon inside the root optax's variance is negative by rounding."""
        params, g = jnp.zeros(4096), jnp.asarray(np.random.default_rng(0).normal(size=4096), jnp.float32)
        options = {"learning_rate": 1e-3, "centered": True, "eps_in_sqrt": False}
        theirs, _ = run(optax.rmsprop(**options), params, [g] * 400)
        assert np.isnan(theirs).any()
        ours, state = run(rmsprop.jax.rmsprop(**options), params, [g] * 400)
        assert np.isfinite(ours).all()
        assert (state.variance >= 0).all()

    def test_the_state_keeps_its_dtype(self):
        """optax's takes the gradient's dtype after one step, which a loop does not allow."""
        params, g = jnp.ones(2, jnp.bfloat16), jnp.ones(2, jnp.float32)

        def loop(optimizer):
            return jax.lax.fori_loop(0, 3, lambda _, s: optimizer.update(g, s)[1], optimizer.init(params))

        with pytest.raises(TypeError, match="carry"):
            loop(optax.rmsprop(0.1))
        assert loop(rmsprop.jax.rmsprop(0.1, momentum=0.9)).nu.dtype == jnp.float32

    def test_the_first_centered_step_with_correction_is_not_huge(self):
        """optax corrects square and mean, and centers then: the difference is rounding."""
        params, grads = jnp.zeros(1), [jnp.full(1, 0.3)]
        options = {"learning_rate": 1.0, "centered": True, "bias_correction": True}
        assert abs(run(optax.rmsprop(**options), params, grads)[0][0]) > 100
        assert_allclose(run(rmsprop.jax.rmsprop(**options), params, grads)[0], -1 / np.sqrt(0.9), 1e-5)


def test_one_infinite_gradient_is_skipped_and_counted():
    grads = [jnp.array([1.0, jnp.inf, jnp.nan, 1e30, 2.0])] * 2
    params, state = run(rmsprop.jax.rmsprop(0.1, nonfinite="skip", momentum=0.9), jnp.zeros(5), grads)
    assert int(state.skipped) == 6
    assert_array_equal(params[1:4], 0)
    assert_array_equal(state.nu[1:4], 0)
    assert params[0] < 0
    assert params[4] < 0


COMPLEX = np.array([1 + 2j, -0.5j, 3, 0], np.complex64)
COMPLEX_GRADS = [np.array([0.3 - 1j, 2, 1j, 0], np.complex64), np.array([1 + 1j, -1, 2j, 1e-3], np.complex64)]


class TestComplex:
    @pytest.mark.parametrize("flags", FLAGS, ids=str)
    def test_modulus_is_optax(self, flags):
        theirs, _ = run(optax.rmsprop(0.1, **flags), COMPLEX[:3], [g[:3] for g in COMPLEX_GRADS])
        ours, _ = run(rmsprop.jax.rmsprop(0.1, **flags), COMPLEX[:3], [g[:3] for g in COMPLEX_GRADS])
        assert_allclose(ours, theirs, 2e-5)

    def test_a_zero_gradient_is_no_step(self):
        ours, state = run(rmsprop.jax.rmsprop(0.1, eps=0.0), COMPLEX, COMPLEX_GRADS[:1])
        assert ours[3] == 0
        assert state.nu.dtype == jnp.float32
        assert_allclose(state.nu, 0.1 * np.abs(COMPLEX_GRADS[0]) ** 2, 1e-6)

    @pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
    def test_parts_are_two_real_numbers(self, rule):
        """As torch counts them, so that the NumPy front end has the numbers."""
        real = COMPLEX.view(np.float32).copy()
        reference = RMSprop([real], rule)
        for g in COMPLEX_GRADS:
            reference.step([g.view(np.float32)])
        ours, state = run(rmsprop.jax.rmsprop(None, dialect=rule, complex_as="parts"), COMPLEX, COMPLEX_GRADS)
        assert_allclose(np.asarray(ours).view(np.float32), real, 1e-6, 1e-6)
        assert all(x.dtype == jnp.complex64 for x in (state.nu, state.variance, state.mu, state.trace) if x is not None)

    def test_skipping_leaves_the_whole_number_alone(self):
        grads = [np.array([complex(np.inf, 1), 1, 1, 1], np.complex64)]
        ours, state = run(rmsprop.jax.rmsprop(0.1, nonfinite="skip"), COMPLEX, grads)
        assert ours[0] == COMPLEX[0]
        assert int(state.skipped) == 1


def test_options_that_only_we_have():
    """Decay, clips and maximize against a step written out."""
    p, g = np.float32([1.0, -4.0, 0.5]), np.float32([0.5, -1.0, 100.0])
    options = {"weight_decay": 0.1, "clip": 0.9, "clip_weights": 2.0, "maximize": True, "epsilon_mode": "floor"}
    ours, _ = run(rmsprop.jax.rmsprop(0.1, eps=2.0, **options), p, [g])
    u = np.clip(-g / np.maximum(np.sqrt(0.1 * g * g), 2.0), -0.9, 0.9)
    assert_allclose(ours, np.clip(p - 0.1 * 0.1 * p - 0.1 * u, -2, 2), 1e-6)


@pytest.mark.parametrize(
    "mask", [{"w": True, "b": False}, lambda params: {"w": True, "b": False}], ids=["tree", "call"]
)
@pytest.mark.parametrize("decay_mode", ["coupled", "decoupled"])
def test_decay_where_the_mask_says(mask, decay_mode):
    params, g = {"w": [jnp.ones(2), jnp.ones(1)], "b": jnp.ones(2)}, {"w": [jnp.ones(2), jnp.ones(1)], "b": jnp.ones(2)}
    options = {"weight_decay": 0.5, "decay_mode": decay_mode}
    ours, _ = run(rmsprop.jax.rmsprop(0.1, mask=mask, **options), params, [g])
    with_decay, _ = run(rmsprop.jax.rmsprop(0.1, **options), params, [g, g][:1])
    without, _ = run(rmsprop.jax.rmsprop(0.1), params, [g])
    assert_array_equal(ours["w"][0], with_decay["w"][0])
    assert_array_equal(ours["w"][1], with_decay["w"][1])
    assert_array_equal(ours["b"], without["b"])
    if decay_mode == "decoupled":
        assert (with_decay["b"] != without["b"]).all()


class TestDialects:
    @pytest.mark.parametrize("dialect", ["torch", "keras", "graves", "tf1"])
    def test_a_dialect_brings_its_defaults(self, dialect):
        rule = rmsprop.dialect(dialect)
        params, grads = parameter(5, np.float32), gradients(5, np.float32)
        by_name, _ = run(rmsprop.jax.rmsprop(rule.lr, dialect=dialect), params, grads)
        by_rule, _ = run(rmsprop.jax.rmsprop(None, dialect=rule), params, grads)
        assert_array_equal(by_name, by_rule)

    def test_what_is_given_wins_even_where_it_is_a_default(self):
        given = {"decay": 0.9, "eps": 1e-8, "initial_scale": 0.0, "eps_in_sqrt": True, "centered": False}
        options = {**given, "momentum": 0.0, "momentum_form": "lr_inside", "decay_mode": "decoupled"}
        params, grads = parameter(5, np.float32), gradients(5, np.float32)
        for dialect in ("torch", "graves", "tf1", Rule(0.5, 0.99, 1.0, "outside", 1.0, momentum=0.9)):
            ours, _ = run(rmsprop.jax.rmsprop(0.1, dialect=dialect, **options), params, grads)
            assert_array_equal(ours, run(rmsprop.jax.rmsprop(0.1), params, grads)[0])

    def test_injected_hyperparameters_do_not_undo_a_dialect(self):
        injected = optax.inject_hyperparams(rmsprop.jax.rmsprop)(learning_rate=0.1, dialect="torch")
        plain = rmsprop.jax.rmsprop(0.1, dialect="torch")
        params, grads = parameter(5, np.float32), gradients(5, np.float32)
        assert_allclose(run(injected, params, grads)[0], run(plain, params, grads)[0], 1e-6)
        assert rmsprop.dialect("torch").beta != 0.9


@pytest.mark.parametrize("dtype", DTYPES[:1])
def test_float16_gradients_are_float32_arithmetic(dtype):
    params, grads = parameter(513, dtype), gradients(513, dtype)
    half, state = run(rmsprop.jax.rmsprop(0.1), params, grads[:1])
    wide, _ = run(rmsprop.jax.rmsprop(0.1), params.astype("f4"), [grads[0].astype("f4")])
    assert half.dtype == np.float16
    assert state.nu.dtype == np.float32
    assert_allclose(half, wide.astype("f2"), 2e-3, 1e-3)
