"""Times an optimizer step in JAX against optax's, side by side in one process.

    python benchmarks/jax_speed.py
    python benchmarks/jax_speed.py --rounds 5

All are compiled, with parameters and state donated, and new parameters are part of the step: optax's `update` and
`apply_updates`, the same with our transformation, and our `step`. Contenders take turns, as in speed.py, from which the
shapes are; each figure is a median. Quote ratios from a quiet machine only.
"""

import argparse
import platform
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax
from speed import CASES, Shapes, interleaved

import rmsprop.jax
from rmsprop.jax import fused

TARGETS = dict(zip(CASES, (1.4, 2.0, 1.3, 0.95), strict=True))  # of our `step`
OPTIONS: dict[str, dict] = {"plain": {}, "momentum, centered": {"momentum": 0.9, "centered": True}}


def runner(transformation: optax.GradientTransformation, shapes: Shapes, *, whole: bool) -> Callable[[], object]:
    """One compiled step as a function without arguments; `whole` uses `step`."""
    rng = np.random.default_rng(0)
    params, grads = ([jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in shapes] for _ in range(2))

    def by_update(params: list, state: object, grads: list) -> tuple:
        updates, state = transformation.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    step = jax.jit(transformation.step if whole else by_update, donate_argnums=(0, 1))
    carry = params, transformation.init(params)

    def run() -> None:
        nonlocal carry
        carry = jax.block_until_ready(step(*carry, grads))

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15, help="turns of each contender")
    arguments = parser.parse_args()
    native = fused.missing() or "native step"
    print(f"\n## JAX: jax {jax.__version__}, optax {optax.__version__}, {native}, {platform.machine()}\n")
    print("| tensors | options | optax | rmsprop, update | rmsprop, step | ratio of update | of step | target |")
    print("|---|---|---|---|---|---|---|---|")
    for options, flags in OPTIONS.items():
        for case, (shapes, _) in CASES.items():
            theirs, mine = optax.rmsprop(1e-3, **flags), rmsprop.jax.rmsprop(1e-3, **flags)
            steps = {
                "optax": runner(theirs, shapes, whole=False),
                "update": runner(mine, shapes, whole=False),
                "step": runner(mine, shapes, whole=True),
            }
            elements = sum(int(np.prod(shape)) for shape in shapes)
            took = interleaved(steps, arguments.rounds, turn=3 if elements > 1e6 else 20)
            shown = " | ".join(f"{seconds * 1e6:,.0f} µs" for seconds in took.values())
            ratios = " | ".join(f"{took['optax'] / took[name]:.2f}" for name in ("update", "step"))
            print(f"| {case} | {options} | {shown} | {ratios} | {TARGETS[case]} |", flush=True)


if __name__ == "__main__":
    main()
