"""What optimizers are compared on: a model, a loss, data in three parts, and a budget of steps."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from rmsprop.comparing.seeding import seeded


class Split(NamedTuple):
    """Rows of data: `inputs` as the model takes them, `targets` as the loss takes them, equally long."""

    inputs: Tensor
    targets: Tensor

    def __len__(self) -> int:
        """The number of rows."""
        return self.inputs.shape[0]


@dataclass(frozen=True)
class Problem:
    """One training problem.

    Attributes:
        name: as in tables and file names.
        about: one line for people: the model, its size, the data and where they come from.
        model: makes a new model; its weights are drawn from the global generators.
        loss: (outputs, targets) -> the mean loss of a batch.
        train, valid, test: to learn from, to choose the learning rate by, to be scored on.
        steps: how many, of `batch_size` rows each.
        error: (outputs, targets) -> a second score of a batch, such as the share of wrong answers; or None.
    """

    name: str
    about: str
    model: Callable[[], nn.Module]
    loss: Callable[[Any, Tensor], Tensor]
    train: Split
    valid: Split
    test: Split
    steps: int
    batch_size: int = 64
    error: Callable[[Any, Tensor], Tensor] | None = None

    @property
    def passes(self) -> float:
        """How often each training row is seen."""
        return self.steps * self.batch_size / len(self.train)

    def start(self, seed: int) -> nn.Module:
        """A new model with the first weights of this seed; the caller's random numbers are left alone."""
        with seeded(seed):
            return self.model()

    def order(self, seed: int) -> Tensor:
        """The rows of every step, shape (steps, batch_size): pass after pass, each in an order of its own."""
        generator = torch.Generator().manual_seed(seed)
        rows, need = len(self.train), self.steps * self.batch_size
        passes = [torch.randperm(rows, generator=generator) for _ in range(-(-need // rows))]
        return torch.cat(passes)[:need].view(self.steps, self.batch_size)
