"""What a step costs: ours and torch.optim.RMSprop's, side by side on copies of one model with the same gradients."""

import copy
from statistics import median
from time import perf_counter
from typing import Any

import torch

from rmsprop.rule import Rule
from rmsprop.torch import RMSprop
from rmsprop.training.loop import Data, loss_of
from rmsprop.training.settings import Settings


def optimizer_for(network: torch.nn.Module, settings: Settings) -> RMSprop:
    """Our optimizer with the run's dialect and numbers."""
    return RMSprop(network.named_parameters(), **_named(settings.rule), dialect=settings.dialect)


def _named(rule: Rule) -> dict[str, Any]:
    """What can be set by hand, under torch's names."""
    return {
        "lr": rule.lr,
        "alpha": rule.beta,
        "eps": rule.epsilon,
        "momentum": rule.momentum,
        "centered": rule.centered,
    }


def race(network: torch.nn.Module, data: Data, settings: Settings, seconds: float = 0.5) -> dict[str, float]:
    """Microseconds a step, {"rmsprop": .., "torch.optim.RMSprop": ..}: medians, taking turns for `seconds`.

    Only copies of the network are stepped. Both start with a few steps that are not counted.
    """
    model = copy.deepcopy(network)
    rows = settings.batch_size
    loss_of(model(data.x[:rows]), data.y[:rows]).backward()  # type: ignore[no-untyped-call]
    rival = copy.deepcopy(model)
    for ours, theirs in zip(model.parameters(), rival.parameters(), strict=True):
        theirs.grad = None if ours.grad is None else ours.grad.clone()
    steps = {
        "rmsprop": optimizer_for(model, settings).step,
        "torch.optim.RMSprop": torch.optim.RMSprop(rival.parameters(), **_named(settings.rule)).step,
    }
    times: dict[str, list[float]] = {name: [] for name in steps}
    end = perf_counter() + seconds
    while perf_counter() < end or len(times["rmsprop"]) < 8:
        for name, step in steps.items():
            start = perf_counter()
            step()
            times[name].append(perf_counter() - start)
    return {name: 1e6 * median(taken[3:]) for name, taken in times.items()}
