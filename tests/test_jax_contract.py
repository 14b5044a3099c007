"""optax's own tests of its rmsprop, run with ours in its place; and eight devices. Both need a process of their own."""

import os
import subprocess
import sys
from pathlib import Path

import optax
import pytest

SOURCES = Path(optax.__file__).parent / "_src"
#: The version is compared as text there, and "0.10" comes before "0.7": what tests shardings would be skipped.
START = """
import jax, optax, rmsprop.jax
from optax._src import alias
jax.__version__ = "9"
alias.rmsprop = optax.rmsprop = rmsprop.jax.rmsprop
"""
ONLY = """
_OPTIMIZERS_UNDER_TEST = tuple(x for x in _OPTIMIZERS_UNDER_TEST if x["opt_name"] == "rmsprop")
assert len(_OPTIMIZERS_UNDER_TEST) == 2 and alias.rmsprop.__module__.startswith("rmsprop.")
"""
BEFORE = "\ndef _get_opt("

EIGHT = """
import jax, jax.numpy as jnp, numpy as np, optax, rmsprop.jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P

assert len(jax.devices()) == 8
mesh = Mesh(np.array(jax.devices()).reshape(4, 2), ("x", "y"))
spread = {"w": NamedSharding(mesh, P("x", "y")), "b": NamedSharding(mesh, P())}
rng = np.random.default_rng(0)
host = {"w": rng.normal(size=(256, 128)).astype("f4"), "b": rng.normal(size=128).astype("f4")}
options = {"momentum": 0.9, "centered": True, "weight_decay": 0.1, "nonfinite": "skip", "bias_correction": True}
tx = rmsprop.jax.rmsprop(0.1, **options)


def trained(params):
    state = tx.init(params)
    def step(params, state):
        grads = jax.tree.map(jnp.sin, params)
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state
    step = jax.jit(step, donate_argnums=(0, 1))
    for _ in range(4):
        params, state = step(params, state)
        for tree in (params, state.variance, state.mu, state.trace):
            for key, like in spread.items():
                if len(params["w"].sharding.device_set) == 8:
                    assert tree[key].sharding.is_equivalent_to(like, tree[key].ndim), (key, tree[key].sharding)
    return params, state


one, two = trained(jax.device_put(host, spread)), trained(jax.tree.map(jnp.asarray, host))
assert one[1].variance["w"].sharding.device_set == set(jax.devices())
jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, 1e-5, 1e-6), one, two)
print("equal on 1 and 8 devices")
"""


def run(*command, folder):
    environment = {**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=8"}
    result = subprocess.run(
        [sys.executable, *command], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


@pytest.mark.parametrize(("file", "tests", "passed"), [("alias", "AliasTest", 80), ("sharding", "rmsprop", 3)])
def test_what_optax_promises_of_its_rmsprop(file, tests, passed, tmp_path):
    text = (SOURCES / f"{file}_test.py").read_text()
    if file == "alias":
        assert BEFORE in text
        text = text.replace(BEFORE, ONLY + BEFORE)
    (tmp_path / f"test_{file}.py").write_text(START + text)
    options = ("-q", "-p", "no:cacheprovider", "--rootdir", str(tmp_path), "-k", tests)
    assert f"{passed} passed" in run("-m", "pytest", *options, folder=tmp_path)


def test_eight_devices(tmp_path):
    """State is sharded like its parameter, before and after steps, and the numbers are those of one device."""
    assert "equal on 1 and 8 devices" in run("-c", EIGHT, folder=tmp_path)
