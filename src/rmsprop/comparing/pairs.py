"""Comparisons in pairs: what two optimizers did with the same seeds, the same first weights and the same batches."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

from scipy.special import stdtr


@dataclass(frozen=True)
class Paired:
    """Scores of one optimizer less those of another, seed by seed.

    Attributes:
        mean: of the differences.
        higher: with how many seeds the first had the higher score.
        seeds: how many there are.
        p: of Student's t-test on the differences, two-sided.
    """

    mean: float
    higher: int
    seeds: int
    p: float


def paired(scores: Sequence[float], others: Sequence[float]) -> Paired | None:
    """What is known of scores - others, equally long; None with fewer than two pairs."""
    differences = [a - b for a, b in zip(scores, others, strict=True)]
    if len(differences) < 2:
        return None
    seeds, mean = len(differences), fmean(differences)
    error = stdev(differences) / math.sqrt(seeds)
    t = abs(mean) / error if error else math.inf if mean else 0.0
    p = 2 * float(stdtr(seeds - 1, -t))
    return Paired(mean, sum(d > 0 for d in differences), seeds, p)


def holm(p: Sequence[float]) -> list[float]:
    """The p values corrected for their number by Holm's step-down: 0.05 then bounds the chance of any false alarm.

    Source: S. Holm, A simple sequentially rejective multiple test procedure, Scand. J. Statist. 6 (1979).
    """
    corrected, largest = [0.0] * len(p), 0.0
    for done, i in enumerate(sorted(range(len(p)), key=p.__getitem__)):
        largest = max(largest, min(1.0, (len(p) - done) * p[i]))
        corrected[i] = largest
    return corrected
