"""The small computations of the tutorial. The notebook shows some of them as they stand here."""

from collections.abc import Callable, Iterable
from time import perf_counter
from typing import Any

import numpy as np

import rmsprop
from rmsprop.notebooks.surfaces import Array

#: Hinton's ten mini-batches: what each says of one weight's gradient. They add up to nothing.
MINI_BATCHES = [0.1] * 9 + [-0.9]
#: What the two lines of `two_lines` should come to: both weights, both biases.
WANTED = np.array([[2.0, -3.0], [1.0, 0.5]])


def descend(lr: float, start: float = -4.0, steps: int = 20) -> Array:
    """Gradient descent on x², whose slope is 2x: the places it visits."""
    places = [start]
    for _ in range(steps):
        gradient = 2 * places[-1]
        places.append(places[-1] - lr * gradient)
    return np.array(places)


def two_lines(start: Callable[[list[Array]], Any], unit: float, steps: int = 300) -> Array:
    """Fits two lines, y = weight · x + bias each; how far off the two weights and two biases are at every step.

    Args:
        start: makes an optimizer of [weights, biases].
        unit: what the second line's x is multiplied by.
        steps: how many.

    Returns:
        An array [steps + 1, 4]: first weight, second weight, first bias, second bias.
    """
    x = _inputs(unit)
    y = WANTED[0] * x + WANTED[1]
    weights, biases = np.zeros(2), np.zeros(2)
    optimizer, off = start([weights, biases]), []
    for _ in range(steps + 1):
        off.append(np.abs(np.array([weights, biases]) - WANTED).ravel())
        error = weights * x + biases - y
        optimizer.step([(error * x).mean(axis=0), error.mean(axis=0)])
    return np.array(off)


def steepest(unit: float) -> float:
    """The largest curvature of `two_lines`: plain gradient descent diverges where lr is more than 2 divided by it."""
    tables = [np.vander(x, 2) for x in _inputs(unit).T]  # columns x and 1
    return max(float(np.linalg.eigvalsh(table.T @ table / len(table)).max()) for table in tables)


def _inputs(unit: float) -> Array:
    return np.random.default_rng(0).normal(size=(100, 2)) * [1.0, unit]


class Descent:
    """p ← p − lr g, for arrays, with the interface of `rmsprop.RMSprop`."""

    def __init__(self, params: list[Array], lr: float) -> None:
        self.params, self.lr = params, lr

    def step(self, grads: Iterable[Array]) -> None:
        """One step."""
        for p, g in zip(self.params, grads, strict=True):
            p[...] = p - self.lr * g


def mean_squares(gradients: Array, beta: float) -> Array:
    """RMSprop's v after each of the gradients of one weight."""
    optimizer = rmsprop.RMSprop([np.zeros(1)], beta=beta)
    found = []
    for gradient in gradients:
        optimizer.step([np.array([gradient])])
        found.append(optimizer.state_dict()["state"]["params[0]"]["square_avg"][0])
    return np.array(found)


def noisy_gradients(seed: int = 0) -> Array:
    """120 gradients of one weight, ten times as large from the 60th to the 89th."""
    size = np.ones(120)
    size[60:90] = 10
    return np.asarray(size * np.random.default_rng(seed).normal(size=120))


def slip(g: float, beta: float = 0.9, epsilon: float = 1e-7, steps: int = 200) -> float:
    """How far the slip moves a weight, in units of lr, when the gradient has been g for a while."""
    v = 0.0
    for _ in range(steps):
        v = beta * v + (1 - beta) * g  # the slip: it should be g**2
    with np.errstate(invalid="ignore"):
        return float(g / np.sqrt(v + epsilon))


def drift(start: Callable[[list[Array]], Any], rounds: int = 20) -> Array:
    """Where a weight goes, from 0, that sees Hinton's ten mini-batches round after round."""
    weight = np.zeros(1)
    optimizer, places = start([weight]), [0.0]
    for gradient in MINI_BATCHES * rounds:
        optimizer.step([np.array([gradient])])
        places.append(float(weight[0]))
    return np.array(places)


def first_step(gradients: Array, **options: Any) -> Array:
    """One step of RMSprop with lr = 1 and beta = 0, so that v = g²: what is left of each gradient's size."""
    weights = np.zeros_like(gradients)
    rmsprop.RMSprop([weights], lr=1.0, beta=0.0, **options).step([gradients])
    return -weights


def half_step(gradients: Array, taken: Array) -> float:
    """The size of gradient at which a weight moves by half of lr, read off the curve `taken` between its points."""
    return float(10 ** np.interp(0.5, taken, np.log10(gradients)))


def moves(gradients: Array, **options: Any) -> Array:
    """The moves of one weight, in units of lr, under these gradients."""
    weight, found = np.zeros(1), []
    optimizer = rmsprop.RMSprop([weight], lr=1.0, **options)
    for gradient in gradients:
        before = weight.copy()
        optimizer.step([np.array([gradient])])
        found.append((before - weight)[0])
    return np.array(found)


def rare_row(momentum: float, sparse: str, steps: int = 300) -> tuple[Array, Array]:
    """A table of 50 rows, of which every step sees four, some much more often than others.

    Args:
        momentum: RMSprop's.
        sparse: "dense" gives whole gradients, nearly all zeros; "exact" and "lazy" give rows alone.
        steps: how many.

    Returns:
        The second rarest row's number at every step, and the whole table in the end.
    """
    random = np.random.default_rng(0)
    often = 1 / np.arange(1, 51)
    table, goal = np.zeros((50, 1)), random.normal(size=(50, 1))
    mode = "exact" if sparse == "dense" else sparse
    optimizer = rmsprop.RMSprop([table], lr=0.02, momentum=momentum, momentum_form="ema", sparse=mode)
    seen = []
    for _ in range(steps):
        rows = random.choice(50, 4, replace=False, p=often / often.sum())
        optimizer.catch_up(0, [*rows, 48])
        seen.append(table[48, 0])
        values = table[rows] - goal[rows]
        whole = np.zeros_like(table)
        whole[rows] = values
        optimizer.step([whole if sparse == "dense" else (rows, values)])
    optimizer.flush()
    return np.array(seen), table


def seconds_a_step(sparse: bool, rows: int = 20_000, touched: int = 20) -> float:
    """The fastest of some steps for a large table, of which each touches a few rows."""
    table, values = np.zeros((rows, 16)), np.ones((touched, 16))
    optimizer, random, times = rmsprop.RMSprop([table]), np.random.default_rng(0), []
    for _ in range(10):
        chosen = random.choice(rows, touched, replace=False)
        whole = np.zeros_like(table)
        whole[chosen] = values
        began = perf_counter()
        optimizer.step([(chosen, values) if sparse else whole])
        times.append(perf_counter() - began)
    return min(times)


def wrong_way(beta: float, steps: int = 3000, large: float = 3.0) -> Array:
    """Slopes of large, −1, −1 by turns on x in [−1, 1]: the sum is positive, so x = −1 is best. Where x goes, from 0.

    Source: S. Reddi, S. Kale, S. Kumar, On the convergence of Adam and beyond, ICLR 2018 (arXiv:1904.09237), theorem 1.
    """
    x, places = np.zeros(1), [0.0]
    optimizer = rmsprop.RMSprop([x], beta=beta, epsilon=0.0, bias_correction=True, clip_weights=1.0)
    for t in range(1, steps + 1):
        optimizer.lr = 0.1 / t**0.5
        optimizer.step([np.array([large if t % 3 == 1 else -1.0])])
        places.append(float(x[0]))
    return np.array(places)
