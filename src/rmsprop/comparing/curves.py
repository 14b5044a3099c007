"""What the trainings of one optimizer on one problem left behind, and which learning rate they speak for."""

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Any


@dataclass
class Curves:
    """What the replicas of one candidate did; nested lists over learning rates, seeds and, for curves, evaluations.

    Attributes:
        lrs, seeds: of the replicas.
        steps: at which `train` (the mean loss of the batches since the one before) and `valid` were taken.
        test: the loss on the test rows, and `error` the second score, if any: means of the last two evaluations.
            Infinite where the training has diverged.
        spike: the largest loss of a batch in the first 20 steps, over that of the first one.
    """

    lrs: list[float]
    seeds: list[int]
    steps: list[int]
    train: list[list[list[float]]]
    valid: list[list[list[float]]]
    test: list[list[float]]
    spike: list[list[float]]
    error: list[list[float]] | None = None

    def finals(self) -> list[float]:
        """For each learning rate the final loss on the validation rows: of the last two evaluations and all seeds."""
        return [fmean(_finite(x) for seed in lr for x in seed[-2:]) for lr in self.valid]

    def best(self) -> int:
        """Which learning rate validation chooses: the number of the one with the lowest final loss."""
        finals = self.finals()
        return finals.index(min(finals))

    def at_edge(self) -> int:
        """-1 where the best learning rate is the smallest, 1 where it is the largest, else 0."""
        best = self.best()
        return -1 if best == 0 else 1 if best == len(self.lrs) - 1 else 0

    def joined(self, other: "Curves") -> "Curves":
        """These and others, of other learning rates, in the order of the learning rates."""
        lrs = self.lrs + other.lrs
        order = sorted(range(len(lrs)), key=lrs.__getitem__)
        mine, theirs = asdict(self), asdict(other)

        def both(name: str) -> Any:
            if mine[name] is None:
                return None
            rows = mine[name] + theirs[name]
            return [rows[i] for i in order]

        names = ("lrs", "train", "valid", "test", "error", "spike")
        return Curves(**{**mine, **{name: both(name) for name in names}})

    def to_json(self) -> dict[str, Any]:
        """Plain values; a number that is not finite is None, which JSON knows."""
        given = {name: x for name, x in asdict(self).items() if x is not None}
        return {name: _each(x, lambda n: n if math.isfinite(n) else None) for name, x in given.items()}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "Curves":
        """What `to_json` gave."""
        return cls(**{name: _each(x, lambda n: math.inf if n is None else n) for name, x in values.items()})


def _finite(x: float) -> float:
    """NaN, which has no order, as infinity."""
    return x if math.isfinite(x) else math.inf


def _each(value: Any, change: Callable[[Any], Any]) -> Any:
    return [_each(x, change) for x in value] if isinstance(value, list) else change(value)
