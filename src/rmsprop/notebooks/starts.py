"""Initial weights on a real network, 64-32-32-10, on the handwritten digits that scikit-learn ships."""

from functools import cache
from typing import NamedTuple

import numpy as np
import torch

from rmsprop.notebooks.surfaces import Array
from rmsprop.torch import RMSprop
from rmsprop.training.network import build, running_on, stream

#: How the weights may start: those of `rmsprop train --init`, and all the same, 0.1.
STARTS = ("kaiming", "zeros", "same", "huge", "tiny")
HIDDEN, BATCH, HELD_OUT = (32, 32), 64, 360


class Training(NamedTuple):
    """How a training went.

    Attributes:
        losses: cross entropy of every mini-batch.
        accuracy: in the end, on 360 digits that it has not seen.
        different: how many different units the first hidden layer, of 32, has in the end.
    """

    losses: Array
    accuracy: float
    different: int


def train(start: str, lr: float = 3e-3, epsilon: float = 1e-7, epochs: int = 10) -> Training:
    """Trains the network on the digits by RMSprop.

    Args:
        start: one of `STARTS`.
        lr, epsilon: of the rule, epsilon inside the root.
        epochs: passes over the other 1,437 digits, 64 a step.
    """
    images, digits = _digits()
    network = build(images.shape[1], HIDDEN, 10, "zeros" if start == "same" else start, seed=0)
    if start == "same":
        for layer in network.modules():
            if isinstance(layer, torch.nn.Linear):
                torch.nn.init.constant_(layer.weight, 0.1)
    optimizer, order = RMSprop(network.parameters(), lr, dialect="tutorial", eps=epsilon), stream(0, "order")
    losses = []
    with running_on(1):
        for _ in range(epochs):
            mixed = HELD_OUT + torch.randperm(len(images) - HELD_OUT, generator=order)
            for rows in torch.split(mixed, BATCH):
                loss = torch.nn.functional.cross_entropy(network(images[rows]), digits[rows])
                optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                losses.append(loss.item())
        with torch.no_grad():
            right = network(images[:HELD_OUT]).argmax(1) == digits[:HELD_OUT]
    first = next(network.parameters()).detach()
    return Training(np.array(losses), right.float().mean().item(), len(np.unique(first.numpy(), axis=0)))


@cache
def _digits() -> tuple[torch.Tensor, torch.Tensor]:
    """1,797 images of 8 x 8, mixed, with numbers from 0 to 1, and the digits they show."""
    from sklearn.datasets import load_digits

    data = load_digits()
    order = np.random.default_rng(0).permutation(len(data.target))
    return torch.tensor(data.data[order] / 16, dtype=torch.float32), torch.tensor(data.target[order])
