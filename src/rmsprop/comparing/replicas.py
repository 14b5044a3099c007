"""Many trainings of one model at once: every learning rate and every seed is a replica, a row of one matrix of weights.

The optimizers are the real ones. Those that treat every weight on its own get one tensor for all seeds of a learning
rate; the others get one for each replica. Replicas of one seed share first weights and order of rows, whatever the
optimizer, so that optimizers can be compared in pairs.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from rmsprop.comparing.candidates import Candidate
from rmsprop.comparing.curves import Curves
from rmsprop.comparing.problem import Problem, Split

EVALUATIONS = 20
EARLY = 20  # the first steps, in which the loss may shoot up
Scores = tuple[Tensor, Tensor | None]  # losses and errors


class Replicas:
    """The weights of all replicas, shape (replicas, weights), and what the model makes of them."""

    def __init__(self, problem: Problem, starts: list[nn.Module]) -> None:
        self.problem, self.model = problem, starts[0]
        named = {name: p for name, p in self.model.named_parameters() if p.requires_grad}
        self.names, self.shapes = list(named), [p.shape for p in named.values()]
        self.sizes = [p.numel() for p in named.values()]
        rows = [torch.cat([p.detach().reshape(-1) for p in trained(start)]) for start in starts]
        self.weights = torch.stack(rows).requires_grad_()
        self.buffers = [_rest(start) for start in starts]
        self.vectorised = not self.buffers[0]

    def scores(self, inputs: Tensor, targets: Tensor, shared: bool) -> Scores:
        """(losses, errors) of every replica, on rows of its own or on `shared` ones.

        A model that cannot be vectorised (it keeps running statistics, or looks at values) is run replica by replica.
        """
        if self.vectorised:
            dims = (0, None, None) if shared else (0, 0, 0)
            try:
                found = vmap(self._one, dims, randomness="different")(self.weights, inputs, targets)
                return found[0], found[1] if len(found) > 1 else None
            except Exception:  # whatever the model does, on its own it says it better
                self.vectorised = False
        each = []
        for i, (weights, buffers) in enumerate(zip(self.weights, self.buffers, strict=True)):
            x, y = (inputs, targets) if shared else (inputs[i], targets[i])
            each.append(self._one(weights, x, y, buffers))
        losses, *errors = (torch.stack(column) for column in zip(*each, strict=True))
        return losses, errors[0] if errors else None

    def _one(
        self, weights: Tensor, x: Tensor, y: Tensor, buffers: dict[str, Tensor] | None = None
    ) -> tuple[Tensor, ...]:
        """The loss and, where the problem has a second score, the error."""
        parts = torch.split(weights, self.sizes)
        values = {name: part.view(shape) for name, part, shape in zip(self.names, parts, self.shapes, strict=True)}
        named = {**values, **(buffers or {})}
        outputs = functional_call(self.model, named, (x,))
        for name in buffers or {}:  # one that the model assigns anew is in `named` now
            buffers[name] = named[name].detach()  # type: ignore[index]
        loss, error = self.problem.loss(outputs, y), self.problem.error
        return (loss,) if error is None else (loss, error(outputs.detach(), y))

    @torch.no_grad()
    def evaluate(self, split: Split) -> Scores:
        """(losses, errors) over all rows of a split."""
        modes = [(module, module.training) for module in self.model.modules()]  # some may be in evaluation for good
        self.model.eval()
        found = [(*self.scores(x, y, shared=True), len(y)) for x, y in chunks(split, self.problem.batch_size)]
        for module, training in modes:
            module.training = training
        losses = _mean([(loss, n) for loss, _, n in found])
        errors = [(error, n) for _, error, n in found if error is not None]
        return losses, _mean(errors) if errors else None


def trained(model: nn.Module) -> list[nn.Parameter]:
    """The parameters that learn."""
    return [p for p in model.parameters() if p.requires_grad]


def _rest(model: nn.Module) -> dict[str, Tensor]:
    """A replica's own copy of what does not learn: buffers, and parameters that are frozen."""
    frozen = {name: p.detach().clone() for name, p in model.named_parameters() if not p.requires_grad}
    return frozen | {name: buffer.detach().clone() for name, buffer in model.named_buffers()}


def _mean(values: list[tuple[Tensor, int]]) -> Tensor:
    """Of values of so many rows each."""
    return torch.stack([value * n for value, n in values]).sum(0) / sum(n for _, n in values)


def chunks(split: Split, rows: int) -> Iterator[Split]:
    """All rows in even parts of so many or more: of a single row left over, models such as batch norm make nothing."""
    parts = max(len(split) // rows, 1)
    for x, y in zip(split.inputs.tensor_split(parts), split.targets.tensor_split(parts), strict=True):
        yield Split(x, y)


def train(
    problem: Problem,
    candidate: Candidate,
    lrs: list[float],
    seeds: list[int],
    decay: bool = False,
    tell: Callable[[float], None] = lambda done: None,
) -> Curves:
    """Train every replica for the problem's steps.

    Args:
        problem: what is learned.
        candidate: by which optimizer.
        lrs, seeds: of the replicas, all combinations.
        decay: let the learning rate fall linearly to 0, but for full-batch candidates: to Rprop it is a first step.
        tell: called now and then with the part that is done.
    """
    count, steps = len(seeds), candidate.steps(problem)
    replicas = Replicas(problem, [problem.start(seed) for seed in seeds] * len(lrs))
    optimizers = _optimizers(candidate, replicas.weights, lrs, count)
    orders = [problem.order(seed) for seed in seeds]
    at = sorted({round(steps * (k + 1) / EVALUATIONS) for k in range(EVALUATIONS)} - {0})
    record = _Record(len(lrs), count)
    for step in range(1, steps + 1):
        if decay and not candidate.full_batch:
            for lr, optimizer in optimizers:
                for group in optimizer.param_groups:
                    group["lr"] = lr * (1 - (step - 1) / steps)
        replicas.weights.grad = None
        record.batch(_backward(replicas, candidate, orders, step - 1, len(lrs)))
        gradients = replicas.weights.grad
        for _, optimizer in optimizers:
            for p in optimizer.param_groups[0]["params"]:
                p.grad = gradients[p.rows] if gradients is not None else None
            optimizer.step()
        if step in at:
            with ExitStack() as stack:
                for _, optimizer in optimizers:
                    stack.enter_context(candidate.evaluating(optimizer))
                record.evaluation(step, replicas, last=step in at[-2:])
            tell(step / steps)
    return record.curves(lrs, seeds)


def _backward(replicas: Replicas, candidate: Candidate, orders: list[Tensor], step: int, lrs: int) -> Tensor:
    """Leave the gradients of one step in the weights; the losses."""
    data = replicas.problem.train
    if not candidate.full_batch:
        rows = torch.stack([order[step] for order in orders]).repeat(lrs, 1)
        losses, _ = replicas.scores(data.inputs[rows], data.targets[rows], shared=False)
        losses.sum().backward()  # type: ignore[no-untyped-call]
        return losses.detach()
    total = torch.zeros(len(replicas.weights), dtype=replicas.weights.dtype)
    for x, y in chunks(data, replicas.problem.batch_size):
        losses, _ = replicas.scores(x, y, shared=True)
        part = losses * (len(y) / len(data))
        part.sum().backward()  # type: ignore[no-untyped-call]
        total += part.detach()
    return total


def _optimizers(candidate: Candidate, weights: Tensor, lrs: list[float], seeds: int) -> list[tuple[float, Any]]:
    """(learning rate, optimizer) over views of the weights; each view knows its rows."""
    made = []
    for i, lr in enumerate(lrs):
        rows = range(i * seeds, (i + 1) * seeds)
        for part in [[r] for r in rows] if candidate.alone else [rows]:
            p = weights.detach()[part[0] : part[-1] + 1]
            p.rows = slice(part[0], part[-1] + 1)  # type: ignore[attr-defined]
            made.append((lr, candidate.optimizer([p], lr)))
    return made


class _Record:
    """Collects what becomes `Curves`."""

    def __init__(self, lrs: int, seeds: int) -> None:
        self.shape = (lrs, seeds)
        self.steps: list[int] = []
        self.train: list[Tensor] = []
        self.valid: list[Tensor] = []
        self.final: list[tuple[Tensor, Tensor | None]] = []
        self.since: list[Tensor] = []
        self.early: list[Tensor] = []

    def batch(self, losses: Tensor) -> None:
        self.since.append(losses)
        if len(self.early) < EARLY:
            self.early.append(losses)

    def evaluation(self, step: int, replicas: Replicas, last: bool) -> None:
        self.steps.append(step)
        self.train.append(torch.stack(self.since).mean(0))
        self.since.clear()
        self.valid.append(replicas.evaluate(replicas.problem.valid)[0])
        if last:
            self.final.append(replicas.evaluate(replicas.problem.test))

    def curves(self, lrs: list[float], seeds: list[int]) -> Curves:
        losses = torch.stack([loss for loss, _ in self.final]).mean(0)
        errors = [error for _, error in self.final if error is not None]
        spike = torch.stack(self.early).amax(0) / self.early[0]
        return Curves(
            lrs,
            seeds,
            self.steps,
            self._nested(torch.stack(self.train, -1)),
            self._nested(torch.stack(self.valid, -1)),
            self._nested(losses),
            self._nested(spike),
            self._nested(torch.stack(errors).mean(0)) if errors else None,
        )

    def _nested(self, numbers: Tensor) -> Any:
        numbers = numbers.where(numbers.isfinite(), math.inf)
        return numbers.view(*self.shape, *numbers.shape[1:]).tolist()
