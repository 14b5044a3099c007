"""Epochs and batches. After any batch the whole state is in `State`, so training can stop there and go on."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any

import torch
from torch.nn.functional import cross_entropy, mse_loss

from rmsprop.torch import RMSprop
from rmsprop.training.layers import Record, due, records
from rmsprop.training.network import stream
from rmsprop.training.ranks import ALONE, Ranks
from rmsprop.training.settings import Settings

CHUNK = 16_384  # rows evaluated at once


class DivergedError(FloatingPointError):
    """The loss is no longer a finite number."""


@dataclass
class Data:
    """Input (rows, width) float32 and target (rows,): int64 classes or float32, for training and held out."""

    x: torch.Tensor
    y: torch.Tensor
    test_x: torch.Tensor
    test_y: torch.Tensor


@dataclass
class State:
    """Where the training is.

    `history` has one row a finished epoch, `layers` one a parameter for each of those that are on record; `batch`,
    `loss` (a sum over rows) and the two times belong to the epoch that is under way. The order of an epoch's rows
    follows from the seed and its number and is no state.
    """

    network: torch.nn.Sequential
    optimizer: RMSprop
    history: list[dict[str, float]] = field(default_factory=list)
    layers: list[Record] = field(default_factory=list)
    batch: int = 0
    loss: float = 0.0
    seconds: float = 0.0
    optimizer_seconds: float = 0.0

    def progress(self) -> dict[str, Any]:
        """Everything but the tensors, as plain values."""
        names = ("history", "layers", "batch", "loss", "seconds", "optimizer_seconds")
        return {name: getattr(self, name) for name in names}


def train(state: State, data: Data, settings: Settings, tick: Callable[[State], None], ranks: Ranks = ALONE) -> None:
    """Bring `state` to the last epoch; `tick` is called after every batch and may raise to stop there.

    Several ranks share each batch, and take the step of the whole of it.

    Raises:
        DivergedError: the loss is NaN or infinite; `state.history` has the epochs before.
    """
    model = ranks.parallel(state.network)
    while len(state.history) < settings.epochs:
        epoch = len(state.history) + 1
        order = torch.randperm(len(data.x), generator=stream(settings.seed, f"epoch {epoch}"))
        batches = torch.split(order, settings.batch_size)
        for rows in batches[state.batch :]:
            _cool(state.optimizer, settings, (epoch - 1 + state.batch / len(batches)) / settings.epochs)
            if state.batch + 1 == len(batches) and due(epoch, settings.epochs):
                state.optimizer.watch()
            _step(state, model, data, rows, ranks, f"epoch {epoch}, batch {state.batch + 1}")
            if state.batch < len(batches):
                tick(state)
        _close_epoch(state, data, epoch)
        if due(epoch, settings.epochs):
            state.layers += records(state.optimizer, epoch)
            state.optimizer.watch(every=0)
        tick(state)


def _cool(optimizer: torch.optim.Optimizer, settings: Settings, done: float) -> None:
    """Let the step size fall to 0 over the last part; `done` is the part of the training that is over."""
    if done > 1 - settings.cooldown:
        for group in optimizer.param_groups:
            group["lr"] = settings.rule.lr * (1 - done) / settings.cooldown


def _step(state: State, model: torch.nn.Module, data: Data, rows: torch.Tensor, ranks: Ranks, where: str) -> None:
    start = perf_counter()
    state.optimizer.zero_grad()
    mine = ranks.share(rows)
    output = model(data.x[mine])
    loss = loss_of(output, data.y[mine]) if len(mine) else output.sum()  # nothing has no mean
    value = ranks.sum(loss.item() * len(mine)) / len(rows)
    _finite(value, f"the training loss became {{}} in {where}")
    # The ranks' gradients are averaged as if their shares were equal, so each counts by its rows here.
    loss.backward(loss.new_tensor(ranks.size * len(mine) / len(rows)))
    before = perf_counter()
    state.optimizer.step()
    end = perf_counter()
    state.loss += value * len(rows)
    state.batch += 1
    state.seconds += end - start
    state.optimizer_seconds += end - before


def _close_epoch(state: State, data: Data, epoch: int) -> None:
    start = perf_counter()
    test_loss, score = evaluate(state.network, data.test_x, data.test_y)
    _finite(test_loss, f"the test loss became {{}} after epoch {epoch}")
    row = {
        "epoch": epoch,
        "train_loss": state.loss / len(data.x),
        "test_loss": test_loss,
        "test_score": score,
        "seconds": state.seconds + perf_counter() - start,
        "optimizer_seconds": state.optimizer_seconds,
    }
    state.history.append(row)
    state.batch, state.loss, state.seconds, state.optimizer_seconds = 0, 0.0, 0.0, 0.0


def _finite(value: float, message: str) -> None:
    if not math.isfinite(value):
        raise DivergedError(message.format(value))


def loss_of(output: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Cross-entropy of the logits where `y` holds classes, else the mean squared error; a mean over the rows."""
    if y.is_floating_point():
        return mse_loss(output.squeeze(1), y)
    return cross_entropy(output, y)


def score_of(output: torch.Tensor, y: torch.Tensor) -> float:
    """Accuracy where `y` holds classes, else R²: 1 - (squared error) / (squared deviation from the mean of y)."""
    if not y.is_floating_point():
        return (output.argmax(1) == y).double().mean().item()
    y = y.double()
    residual = (output.squeeze(1).double() - y).square().sum().item()
    spread = (y - y.mean()).square().sum().item()
    return 1 - residual / spread if spread else float(residual == 0)


def evaluate(network: torch.nn.Module, x: torch.Tensor, y: torch.Tensor) -> tuple[float, float]:
    """(loss, score) without training."""
    output = outputs(network, x)
    return loss_of(output, y).item(), score_of(output, y)


@torch.no_grad()
def outputs(network: torch.nn.Module, x: torch.Tensor) -> torch.Tensor:
    """The network's output, a chunk of rows at a time; shape (rows, classes or 1)."""
    return torch.cat([network(part) for part in torch.split(x, CHUNK)])
