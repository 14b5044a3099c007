"""Orbax checkpoints of the JAX front end's state, sharded too, and Flax's optimizer."""

import os
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

import rmsprop.jax

RESUME = """
import jax, jax.numpy as jnp, numpy as np, optax, orbax.checkpoint as ocp, rmsprop.jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P

mesh = Mesh(np.array(jax.devices()), ("x",))
params = {"w": jax.device_put(jnp.linspace(-1, 1, 64).reshape(16, 4), NamedSharding(mesh, P("x")))}
tx = rmsprop.jax.rmsprop(0.1, centered=True, momentum=0.9, bias_correction=True, nonfinite="skip")


@jax.jit
def step(params, state):
    updates, state = tx.update(jax.tree.map(jnp.cos, params), state, params)
    return optax.apply_updates(params, updates), state


def steps(carry, n=3):
    for _ in range(n):
        carry = step(*carry)
    return carry


carry = steps((params, tx.init(params)))
with ocp.StandardCheckpointer() as checkpointer:
    checkpointer.save(FOLDER, carry)
    checkpointer.wait_until_finished()
    blank = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), carry)
    restored = checkpointer.restore(FOLDER, blank)
assert type(restored[1]) is rmsprop.jax.RMSpropState
assert jax.tree.structure(restored) == jax.tree.structure(carry)
for one, two in zip(*map(jax.tree.leaves, (restored, carry)), strict=True):
    assert one.dtype == two.dtype and one.sharding == two.sharding
    np.testing.assert_array_equal(one, two)
for one, two in zip(*map(jax.tree.leaves, (steps(restored), steps(carry))), strict=True):
    np.testing.assert_array_equal(one, two)
assert len(carry[1].trace["w"].sharding.device_set) == 8
print("equal bit for bit")
"""


def test_a_sharded_state_resumes_from_orbax_bit_for_bit(tmp_path):
    script = f"FOLDER = {str(tmp_path / 'saved')!r}\n{RESUME}"
    environment = {**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=8"}
    command = [sys.executable, "-c", script]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert "equal bit for bit" in result.stdout, result.stderr


def test_flax_trains_with_it():
    class Network(nnx.Module):
        def __init__(self, rngs):
            self.first, self.last = nnx.Linear(4, 16, rngs=rngs), nnx.Linear(16, 1, rngs=rngs)

        def __call__(self, x):
            return self.last(jnp.tanh(self.first(x)))

    x = jnp.sin(jnp.arange(48.0 * 4).reshape(48, 4))
    y = jnp.sin(x.sum(1, keepdims=True))

    def loss(model):
        return jnp.mean((model(x) - y) ** 2)

    def train(tx):
        model = Network(nnx.Rngs(0))
        optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)

        @nnx.jit
        def step(model, optimizer):
            value, grads = nnx.value_and_grad(loss)(model)
            optimizer.update(model, grads)
            return value

        return np.array([step(model, optimizer) for _ in range(100)])

    ours, theirs = train(rmsprop.jax.rmsprop(0.01)), train(optax.rmsprop(0.01))
    np.testing.assert_allclose(ours, theirs, 1e-3, 1e-5)
    assert ours[-1] < 0.1 * ours[0]
