"""Two parameters and ten gradients each, on which every library steps: five times, a checkpoint, five times more."""

import numpy as np

from rmsprop import RMSprop
from rmsprop.checkpoint import restore

SHAPES = {"w": (3, 4), "b": (4,)}
BIG = {"w": (64, 65), "b": (4,)}  # bitsandbytes keeps 8 bits of tensors of at least 4096 entries
LR, HALF = 0.01, 5


def start(shapes=None, dtype="f4"):
    rng = np.random.default_rng(0)
    return {name: rng.normal(size=shape).astype(dtype) for name, shape in (shapes or SHAPES).items()}


def gradient(t, shapes=None, dtype="f4"):
    """Of step t, over four orders of magnitude."""
    rng = np.random.default_rng(100 + t)
    return {
        name: (rng.normal(size=shape) * 10.0 ** rng.integers(-3, 2, size=shape)).astype(dtype)
        for name, shape in (shapes or SHAPES).items()
    }


def go_on(checkpoint, params, steps=range(HALF, 2 * HALF), **options):
    """The parameters after further steps of the NumPy front end from a checkpoint."""
    params = {name: params[name].copy() for name in SHAPES}
    optimizer = RMSprop(params, **options)
    restore(optimizer, checkpoint)
    for t in steps:
        optimizer.step(gradient(t, {name: p.shape for name, p in params.items()}, params["w"].dtype))
    return params
