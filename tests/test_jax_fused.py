"""The native step of the JAX front end: NumPy's bits, in place, and XLA's own where it does not apply."""

import os
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from numpy.testing import assert_allclose, assert_array_equal

import rmsprop.jax
from rmsprop.jax import fused
from rmsprop.kernels import cpu
from rmsprop.numpy import RMSprop
from tests.cases import LENGTHS, RULES, gradients, parameter, special

native = pytest.mark.skipif(bool(fused.missing()), reason=fused.missing())
TARGET = 'custom_call_target="rmsprop_step"'


def hlo(step, *args, **options):
    return jax.jit(step, **options).lower(*args).compile().as_text()


def close(one, two, exact=1e-6):
    jax.tree.map(lambda a, b: assert_allclose(a.astype(b.dtype), b, exact, exact), one, two)


def problem(n=4096, dtype=jnp.float32):
    params = {"w": jnp.linspace(-1, 1, n, dtype=dtype), "b": jnp.ones((), dtype)}
    return params, jax.tree.map(jnp.sin, params)


def test_it_is_there_where_there_is_a_compiler():
    assert (fused.missing() == "") == (cpu.native is not None)


@native
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_bits_are_those_of_the_numpy_front_end(rule, dtype):
    """With a correction the scalars depend on the step, and XLA rounds them otherwise."""
    with jax.enable_x64(dtype == np.float64):
        theirs = [*(parameter(n, dtype) for n in LENGTHS), special(dtype)]
        grads = [[*gs, special(dtype)[::-1]] for gs in zip(*(gradients(n, dtype) for n in LENGTHS), strict=True)]
        optimizer = rmsprop.jax.rmsprop(None, dialect=rule, fused=True)
        params = [jnp.asarray(p.copy()) for p in theirs]
        state, step = optimizer.init(params), jax.jit(optimizer.step)
        reference = RMSprop(theirs, rule)
        for gs in grads:
            reference.step(gs)
            params, state = step(params, state, gs)
        saved, expected = rmsprop.jax.state_dict(state, rule), reference.state_dict()
        assert int(state.skipped or 0) == reference.skipped
        for i, p in enumerate(theirs):
            name = f"params[{i}]"
            for ours, number in [
                (params[i], p),
                *((saved["state"][name][k], x) for k, x in expected["state"][name].items()),
            ]:
                if rule.bias_correction:
                    exact = 1e-5 if dtype == np.float32 else 1e-12
                    assert_allclose(ours, number, exact, 4 * exact)
                else:
                    assert_array_equal(np.asarray(ours), number)


@native
@pytest.mark.parametrize("n", [(1 << 20) + 12345, 1 << 21])
def test_threads_change_nothing(n):
    rule = rmsprop.Rule(momentum=0.9, nonfinite="skip")
    p, g = parameter(n, np.float32), gradients(n, np.float32, 1)[0]
    optimizer = rmsprop.jax.rmsprop(None, dialect=rule, fused=True)
    start = [jnp.asarray(p.copy())]  # a NumPy array may be read while the other optimizer writes to it
    params, state = jax.jit(optimizer.step)(start, optimizer.init(start), [g])
    reference = RMSprop([p], rule)
    reference.step([g])
    assert_array_equal(params[0], p)
    assert_array_equal(state.trace[0], reference.state_dict()["state"]["params[0]"]["momentum_buffer"])
    assert int(state.skipped) == reference.skipped


OPTIONS = {
    "plain": {},
    "momentum": {"momentum": 0.9, "nesterov": True},
    "centered": {"centered": True, "eps": 1e-3, "bias_correction": True},
    "decay": {"weight_decay": 0.1},
    "masked": {"weight_decay": 0.1, "mask": {"w": True, "b": False}},
    "clips": {"clip": 0.5, "clip_weights": 0.9, "nonfinite": "skip"},
}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "complex64"])
@pytest.mark.parametrize("wanted", [None, False])
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_step_is_update_and_apply(options, wanted, dtype):
    params, grads = problem(dtype=jnp.dtype(dtype))
    optimizer = rmsprop.jax.rmsprop(optax.linear_schedule(0.1, 0.0, 9), fused=wanted, **options)
    one = two = (params, optimizer.init(params))
    for _ in range(3):
        one = jax.jit(optimizer.step)(*one, grads)
        updates, state = jax.jit(optimizer.update)(grads, two[1], two[0])
        two = optax.apply_updates(two[0], updates), state
    exact = 1e-2 if dtype == "bfloat16" else 1e-5
    close(one, two, exact)
    assert jax.tree.map(lambda x: (x.dtype, x.shape), one) == jax.tree.map(lambda x: (x.dtype, x.shape), two)


@native
class TestInPlace:
    def test_donated_memory_is_written_to(self):
        optimizer = rmsprop.jax.rmsprop(0.1, momentum=0.9)
        params, grads = problem()
        state = optimizer.init(params)
        trees = (params["w"], state.nu["w"], state.trace["w"])
        before = [x.unsafe_buffer_pointer() for x in trees]
        params, state = jax.jit(optimizer.step, donate_argnums=(0, 1))(params, state, grads)
        assert [x.unsafe_buffer_pointer() for x in (params["w"], state.nu["w"], state.trace["w"])] == before
        assert all(x.is_deleted() for x in trees)

    def test_no_memory_is_taken(self):
        optimizer = rmsprop.jax.rmsprop(0.1, momentum=0.9, fused=True)
        params, grads = problem(1 << 16)
        step = jax.jit(optimizer.step, donate_argnums=(0, 1))
        compiled = step.lower(params, optimizer.init(params), grads).compile()
        assert compiled.memory_analysis().temp_size_in_bytes < 1 << 12

    def test_what_is_not_donated_stays(self):
        optimizer = rmsprop.jax.rmsprop(0.1, momentum=0.9, fused=True)
        params, grads = problem()
        state = optimizer.init(params)
        kept = jax.tree.map(np.array, (params, state, grads))
        for step in (optimizer.step, jax.jit(optimizer.step)):
            new, _ = step(params, state, grads)
            jax.tree.map(assert_array_equal, (params, state, grads), kept)
            assert (new["w"] != params["w"]).any()


@native
class TestWhatTakesTheCall:
    def text(self, params, **options):
        optimizer = rmsprop.jax.rmsprop(0.1, **options)
        return hlo(optimizer.step, params, optimizer.init(params), params)

    def test_one_call_for_all_parameters(self):
        assert self.text(problem()[0]).count(TARGET) == 1

    def test_not_where_it_is_not_wanted(self):
        assert TARGET not in self.text(problem()[0], fused=False)

    def test_many_parameters_are_several_calls(self):
        params = [jnp.full(3, float(i)) for i in range(2 * fused.MOST + 1)]
        assert self.text(params).count(TARGET) == 3
        optimizer = rmsprop.jax.rmsprop(0.1, nonfinite="skip")
        new, state = optimizer.step(params, optimizer.init(params), [p * jnp.array([1, jnp.nan, 0]) for p in params])
        assert int(state.skipped) == len(params)
        for i, p in enumerate(new[1:], 1):
            assert_allclose(p, [i - 0.1 / np.sqrt(0.1), i, i], 1e-6)

    def test_not_for_other_dtypes(self):
        params, _ = problem(dtype=jnp.bfloat16)
        assert TARGET not in self.text(params)
        with pytest.raises(
            ValueError, match=r"fused=True: updates\['b'\] needs gradient, parameter and state of one dtype"
        ):
            self.text(params, fused=True)

    def test_update_is_xla_alone(self):
        params, grads = problem()
        optimizer = rmsprop.jax.rmsprop(0.1, fused=True)
        assert "rmsprop_step" not in hlo(optimizer.update, grads, optimizer.init(params), params)

    def test_mixed_trees_are_divided(self):
        params = {"f": jnp.ones(4096), "h": jnp.ones(4096, jnp.bfloat16), "n": None}
        optimizer = rmsprop.jax.rmsprop(0.1)
        grads = jax.tree.map(lambda p: 0.5 * p, params)
        new, _ = optimizer.step(params, optimizer.init(params), grads)
        assert new["n"] is None
        assert_allclose(new["f"], 1 - 0.1 / np.sqrt(0.1), 1e-6)
        assert_allclose(new["h"].astype("f4"), 1 - 0.1 / np.sqrt(0.1), 1e-2)
        assert self.text(params).count(TARGET) == 1

    def test_a_gradient_that_is_none_leaves_its_parameter_alone(self):
        params = {"w": jnp.ones(4096), "f": jnp.ones(3)}
        optimizer = rmsprop.jax.rmsprop(0.1, fused=True)
        new, state = optimizer.step(params, optimizer.init(params), {"w": jnp.ones(4096), "f": None})
        assert_array_equal(new["f"], params["f"])
        assert_array_equal(state.nu["f"], np.zeros(3))
        assert (new["w"] < 1).all()


class TestTransformations:
    """vmap, derivatives and the like find XLA's own operations."""

    @pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
    def test_vmap(self, options):
        if "mask" in options:
            options = {**options, "mask": None}
        optimizer = rmsprop.jax.rmsprop(0.1, **options)
        params = jnp.linspace(-1, 1, 4 * 4096).reshape(4, 4096)
        grads = jnp.sin(params)
        state = jax.vmap(optimizer.init)(params)
        new, after = jax.jit(jax.vmap(optimizer.step))(params, state, grads)
        for i in range(4):
            one, alone = optimizer.step(params[i], optimizer.init(params[i]), grads[i])
            assert_allclose(new[i], one, 1e-5, 1e-7)
            jax.tree.map(lambda a, b, i=i: assert_allclose(a[i], b, 1e-5, 1e-7), after, alone)

    def test_vmap_over_parameters_alone(self):
        optimizer = rmsprop.jax.rmsprop(0.1)
        state, g = optimizer.init(jnp.ones(4096)), jnp.ones(4096)
        params = jnp.arange(3.0)[:, None] * jnp.ones(4096)
        new, _ = jax.vmap(optimizer.step, (0, None, None))(params, state, g)
        assert_allclose(new, params - 0.1 / np.sqrt(0.1), 1e-6)

    @pytest.mark.parametrize("mode", ["reverse", "forward"])
    def test_derivatives(self, mode):
        optimizer = rmsprop.jax.rmsprop(0.1, momentum=0.9)
        params = jnp.linspace(-1, 1, 4096)

        def through_step(g):
            return optimizer.step(params, optimizer.init(params), g)[0].sum()

        def through_update(g):
            return (params + optimizer.update(g, optimizer.init(params), params)[0]).sum()

        g = jnp.cos(params)
        if mode == "forward":
            derivatives = [jax.jvp(f, (g,), (g,))[1] for f in (through_step, through_update)]
        else:
            derivatives = [jax.grad(f)(g) for f in (through_step, through_update)]
        assert_allclose(*derivatives, 1e-4, 1e-8)

    def test_loops(self):
        optimizer = rmsprop.jax.rmsprop(optax.constant_schedule(0.1), momentum=0.9)
        params, grads = problem()
        start = (params, optimizer.init(params))

        @jax.jit
        def loop(carry):
            return jax.lax.fori_loop(0, 4, lambda _, c: optimizer.step(*c, grads), carry)

        expected = start
        for _ in range(4):
            expected = optimizer.step(*expected, grads)
        close(loop(start), expected)

    def test_eager_steps_compile_once(self):
        optimizer = rmsprop.jax.rmsprop(optax.linear_schedule(0.1, 0.0, 9), bias_correction=True)
        params, grads = problem()
        state = optimizer.init(params)
        params, state = optimizer.step(params, state, grads)
        before = fused._compiled.cache_info()
        for _ in range(3):
            params, state = optimizer.step(params, state, grads)
        assert fused._compiled.cache_info().misses == before.misses

    def test_export(self):
        optimizer = rmsprop.jax.rmsprop(0.1, fused=False)
        params, grads = problem()
        state = optimizer.init(params)
        step = jax.jit(optimizer.step)
        exported = jax.export.export(step)(params, state, grads)
        close(exported.call(params, state, grads), step(params, state, grads))

    def test_other_platforms_are_lowered_without_it(self):
        optimizer = rmsprop.jax.rmsprop(0.1)
        params, grads = problem()
        lowered = (
            jax.jit(optimizer.step).trace(params, optimizer.init(params), grads).lower(lowering_platforms=("cuda",))
        )
        assert "rmsprop_step" not in lowered.as_text()


@pytest.mark.parametrize(
    ("wanted", "message"), [(1, "fused=1: expected True, False or None"), ("no", "fused='no': expected")]
)
def test_fused_is_checked(wanted, message):
    with pytest.raises(ValueError, match=message):
        rmsprop.jax.rmsprop(0.1, fused=wanted)


def test_step_needs_the_parameters():
    optimizer = rmsprop.jax.rmsprop(0.1)
    with pytest.raises(ValueError, match="params: expected the parameters, got None"):
        optimizer.step(None, optimizer.init(jnp.ones(2)), jnp.ones(2))


WITHOUT = """
import sys
BEFORE
import jax, jax.numpy as jnp, numpy as np, rmsprop.jax
from rmsprop.jax import fused
print(fused.missing())
for wanted in (None, True):
    optimizer = rmsprop.jax.rmsprop(0.1, fused=wanted)
    params = jnp.ones(4096)
    try:
        new, _ = jax.jit(optimizer.step)(params, optimizer.init(params), params)
        np.testing.assert_allclose(new, 1 - 0.1 / np.sqrt(0.1), 1e-6)
        print("stepped")
    except ValueError as error:
        print(error)
"""


@pytest.mark.parametrize(
    ("before", "flags", "why"),
    [
        (
            "sys.modules['rmsprop.kernels._cpu_ffi'] = sys.modules['rmsprop.kernels._cpu_ffi_v3'] = None",
            "",
            "without it",
        ),
        ("sys.modules['rmsprop.kernels._cpu'] = None", "", "without a C.. compiler"),
        ("", "--xla_force_host_platform_device_count=2", "there are 2 CPU devices"),
    ],
    ids=["no binary", "no kernel", "two devices"],
)
def test_xla_steps_in_without_it(before, flags, why):
    environment = {**os.environ, "XLA_FLAGS": flags}
    command = [sys.executable, "-c", WITHOUT.replace("BEFORE", before)]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert re.fullmatch(rf".*{why}.*\nstepped\nfused=True: .*{why}.*\n", result.stdout), result.stdout + result.stderr
