"""How optimizers walk on a surface: this package's own, and torch's SGD and Adam beside them."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

import rmsprop
from rmsprop.notebooks.surfaces import Array, Surface

Step = Callable[[Array], None]
TOO_FAR = 1e6  # a walk that has come this far has diverged, and ends


class Settings(NamedTuple):
    """What the sliders say: options of `rmsprop.Rule`, and SGD's own step size.

    Adam takes `lr`, SGD `sgd_lr` and `momentum`, Rprop `lr` as its first step size; all else is as it is by default.
    """

    lr: float = 0.05
    beta: float = 0.9
    epsilon: float = 1e-7
    momentum: float = 0.0
    centered: bool = False
    bias_correction: bool = False
    sgd_lr: float = 0.02


def _ours(dialect: str) -> Callable[[Array, Settings], Step]:
    """RMSprop in a dialect's form, with the sliders' numbers."""

    def start(point: Array, settings: Settings) -> Step:
        options = settings._asdict()
        del options["sgd_lr"]
        for flag in ("centered", "bias_correction"):
            if not options[flag]:
                del options[flag]  # as the dialect has it
        optimizer = rmsprop.RMSprop([point], dialect=dialect, **options)
        return lambda gradient: optimizer.step([gradient])

    return start


def _rprop(point: Array, settings: Settings) -> Step:
    optimizer = rmsprop.Rprop([point], lr=settings.lr)
    return lambda gradient: optimizer.step([gradient])


def _torch(name: str, options: Callable[[Settings], dict[str, Any]]) -> Callable[[Array, Settings], Step]:
    """An optimizer of torch, on the very memory of the point."""

    def start(point: Array, settings: Settings) -> Step:
        import torch

        weights = torch.from_numpy(point)
        optimizer = getattr(torch.optim, name)([weights], **options(settings))

        def step(gradient: Array) -> None:
            weights.grad = torch.from_numpy(gradient)
            optimizer.step()

        return step

    return start


#: Every optimizer of the playground: what starts it at a point, and moves the point at every step.
WALKERS: dict[str, Callable[[Array, Settings], Step]] = {
    "SGD": _torch("SGD", lambda settings: {"lr": settings.sgd_lr, "momentum": settings.momentum}),
    "Rprop": _rprop,
    "RMSprop, tutorial": _ours("tutorial"),
    "RMSprop, torch": _ours("torch"),
    "RMSprop, tf1": _ours("tf1"),
    "RMSprop, graves": _ours("graves"),
    "Adam": _torch("Adam", lambda settings: {"lr": settings.lr}),
}


def walk(surface: Surface, walker: str, settings: Settings, steps: int, seed: int = 0) -> Array:
    """The places a walker visits, from the start on.

    Args:
        surface: to walk on.
        walker: a key of `WALKERS`.
        settings: what the sliders say.
        steps: at most so many; a walk that diverges ends early.
        seed: of the noise, which is the same for every walker.

    Returns:
        An array [places, 2].

    Example:
        >>> from rmsprop.notebooks.paths import Settings, walk
        >>> from rmsprop.notebooks.surfaces import SURFACES
        >>> walk(SURFACES["quadratic valley"], "Rprop", Settings(), 100).shape
        (101, 2)
    """
    noise = surface.noise * np.random.default_rng(seed).normal(size=(steps, 2))
    point = np.array(surface.start)
    step, places = WALKERS[walker](point, settings), [point.copy()]
    for extra in noise:
        step(surface.gradient(point) + extra)
        places.append(point.copy())
        if not np.abs(point).max() < TOO_FAR:
            break
    return np.array(places)
