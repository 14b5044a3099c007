"""The loss to reach on a problem, and the window of learning rates that do."""

import math
from dataclasses import dataclass

from rmsprop.comparing.curves import Curves

WITHIN = 0.1  # of the best loss: as good as it
LEAST = 0.001  # of the way from the start to the best: no less is asked for where the best is next to nothing


@dataclass(frozen=True)
class Range:
    """Learning rates that reach the target; `open_low` and `open_high` where the smallest and largest tried do."""

    low: float
    high: float
    open_low: bool
    open_high: bool

    @property
    def decades(self) -> float:
        """The width, in powers of ten."""
        return math.log10(self.high / self.low)


def way_from(start: float, best: float) -> float:
    """How far the best loss is below the start, 0 where it is not or the start is unknown: infinite."""
    return max(start - best, 0.0) if math.isfinite(start) else 0.0


def target(best: float, start: float) -> tuple[float | None, str]:
    """The loss that counts as good, and how it comes about."""
    if math.isinf(best):
        return None, "There is no target: every training diverged."
    way = way_from(start, best)
    if best < 0:  # zero is nothing special to such a loss, so a part of it is not either
        allowed, text = WITHIN * way, f"{WITHIN:.0%} of the way back to the {start:.4g} of the first evaluations"
    elif WITHIN * best >= LEAST * way:
        allowed, text = WITHIN * best, f"{WITHIN:.0%}"
    else:
        allowed, text = LEAST * way, f"{LEAST:.1%} of the way back to the {start:.4g} of the first evaluations"
    loss = best + allowed
    return loss, f"The target is {loss:.4g}: the lowest final validation loss of all, {best:.4g}, plus {text}."


def lr_range(curves: Curves, target: float | None) -> Range | None:
    """The learning rates around the best whose final loss is at or under the target."""
    lrs, finals, best = curves.lrs, curves.finals(), curves.best()
    if target is None or finals[best] > target:
        return None
    low = high = best
    while low > 0 and finals[low - 1] <= target:
        low -= 1
    while high < len(lrs) - 1 and finals[high + 1] <= target:
        high += 1
    below = lrs[low] if low == 0 else _crossing(lrs, finals, low, low - 1, target)
    above = lrs[high] if high == len(lrs) - 1 else _crossing(lrs, finals, high, high + 1, target)
    return Range(below, above, low == 0, high == len(lrs) - 1)


def _crossing(lrs: list[float], losses: list[float], inside: int, outside: int, target: float) -> float:
    """Where the straight line between two points of the sensitivity plot, its axes logarithmic, meets the target.

    One to an infinite loss does so at once.
    """
    a, b = losses[inside], losses[outside]
    part = math.log(target / a) / math.log(b / a) if a > 0 else (target - a) / (b - a)
    return float(lrs[inside] * (lrs[outside] / lrs[inside]) ** part)
