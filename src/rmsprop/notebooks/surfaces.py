"""Losses of two weights, with their gradients, to walk down on."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.floating[Any]]


class Surface(NamedTuple):
    """A loss of two weights.

    Attributes:
        loss: of weights x and y, which may be arrays of one shape.
        slopes: its two partial derivatives there.
        start: where walks begin.
        lowest: the minima.
        view: (left, right, bottom, top) of the map.
        noise: standard deviation of what a mini-batch adds to each partial derivative.
        about: one sentence for the reader.
    """

    loss: Callable[[Any, Any], Any]
    slopes: Callable[[Any, Any], tuple[Any, Any]]
    start: tuple[float, float]
    lowest: tuple[tuple[float, float], ...]
    view: tuple[float, float, float, float]
    noise: float
    about: str

    def gradient(self, point: Array) -> Array:
        """The gradient at a point of two numbers, without noise."""
        return np.array(self.slopes(*point))


#: Every surface by name.
SURFACES = {
    "quadratic valley": Surface(
        loss=lambda x, y: (x**2 + 50 * y**2) / 2,
        slopes=lambda x, y: (x, 50 * y),
        start=(-4.0, 1.0),
        lowest=((0.0, 0.0),),
        view=(-5.0, 5.0, -1.8, 1.8),
        noise=0.0,
        about="(x² + 50 y²) / 2, 50 times as steep across as along",
    ),
    "Rosenbrock": Surface(
        loss=lambda x, y: (1 - x) ** 2 + 100 * (y - x**2) ** 2,
        slopes=lambda x, y: (-2 * (1 - x) - 400 * x * (y - x**2), 200 * (y - x**2)),
        start=(-1.2, 1.0),
        lowest=((1.0, 1.0),),
        view=(-1.8, 1.8, -0.8, 2.2),
        noise=0.0,
        about="(1 − x)² + 100 (y − x²)², a steep gorge with a nearly flat, bent floor",
    ),
    "saddle": Surface(
        loss=lambda x, y: x**2 / 2 - y**2 / 2 + y**4 / 4,
        slopes=lambda x, y: (x, y**3 - y),
        start=(-2.0, 1e-3),
        lowest=((0.0, -1.0), (0.0, 1.0)),
        view=(-2.5, 1.5, -1.6, 1.6),
        noise=0.0,
        about="x²/2 − y²/2 + y⁴/4, downhill in y from the flat place at 0, where the gradient is tiny",
    ),
    "noisy bowl": Surface(
        loss=lambda x, y: (x**2 + 10 * y**2) / 2,
        slopes=lambda x, y: (x, 10 * y),
        start=(-4.0, 1.5),
        lowest=((0.0, 0.0),),
        view=(-5.0, 3.0, -2.2, 2.2),
        noise=3.0,
        about="(x² + 10 y²) / 2, seen through mini-batches: every gradient has random noise of size 3 in it",
    ),
}
