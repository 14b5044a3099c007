"""The optimizers of a problem, ranked: each at the learning rate that validation chose, scored on the test rows."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean, median, median_high, stdev

import torch

from rmsprop.comparing.candidates import CANDIDATES, Candidate
from rmsprop.comparing.curves import Curves
from rmsprop.comparing.pairs import Paired, holm, paired
from rmsprop.comparing.sweep import Result
from rmsprop.comparing.window import Range, lr_range, target, way_from
from rmsprop.torch import RMSprop


@dataclass(frozen=True)
class Row:
    """One optimizer on one problem.

    Attributes:
        name, about: as in tables; the name ends with "+decay" where the learning rate fell to 0.
        curves: all that was recorded.
        steps: of the evaluations, in mini-batch steps that see as many rows: an optimizer that sees all rows in
            every step makes fewer of them.
        lr: with the lowest final validation loss, which is `valid`.
        tests: its test losses, one a seed; infinite where the training diverged.
        error: the second score, mean over seeds; None where there is none.
        spike: the largest early loss over the first one, median over seeds.
        seconds: that one training spends in the optimizer.
        steps_to_target: until the validation loss was at or under the target, median over seeds; None: never.
        lr_range: around `lr`, the learning rates whose final validation loss is at or under the target.
        state: numbers that the optimizer keeps for each weight; None where it is not installed.
        behind: how much higher its test loss is than the best one, as a part of that or, where that is not positive,
            of the way to it from the start, which `of_way` says; None after divergence, or where there is no such way.
        versus: its test losses less the best row's, of their logarithms where all are positive, and p corrected for the
            number of rows; None for the best row, for fewer than two seeds and after divergence.
    """

    name: str
    about: str
    curves: Curves
    steps: list[float]
    lr: float
    valid: float
    tests: list[float]
    error: float | None
    spike: float
    seconds: float
    steps_to_target: int | None = None
    lr_range: Range | None = None
    state: float | None = None
    behind: float | None = None
    of_way: bool = False
    versus: Paired | None = None

    @property
    def edge(self) -> int:
        """-1 where `lr` is the smallest that was tried, 1 where it is the largest, else 0."""
        return self.curves.at_edge() if len(self.curves.lrs) > 1 else 0

    @property
    def test(self) -> float:
        """The mean test loss; infinite where any seed diverged."""
        return fmean(self.tests)

    @property
    def diverged(self) -> int:
        """With how many seeds the training diverged."""
        return sum(math.isinf(x) for x in self.tests)

    @property
    def spread(self) -> float | None:
        """The standard deviation of the test loss over seeds; None of one seed and after divergence."""
        return None if self.diverged or len(self.tests) < 2 else stdev(self.tests)


@dataclass(frozen=True)
class Ranking:
    """The rows of a problem, the lowest test loss first.

    `target` is the validation loss to reach, and `note` says why this one; None where every training diverged.
    `start` is the loss that trainings began near.
    """

    problem: str
    seeds: list[int]
    rows: list[Row]
    start: float
    target: float | None
    note: str


def rank(results: Sequence[Result], candidates: Mapping[str, Candidate] = CANDIDATES) -> list[Ranking]:
    """The ranking of every problem, in the order in which the results name them.

    Args:
        results: of any problems and candidates.
        candidates: by name, all that the results are of.

    Raises:
        ValueError: a result is of none of the candidates.
    """
    strange = dict.fromkeys(r.candidate for r in results if r.candidate not in candidates)
    if strange:
        raise ValueError(f"results: of {', '.join(map(repr, strange))}; candidates has {', '.join(candidates)}")
    grouped: dict[str, list[Result]] = {}
    for result in results:
        grouped.setdefault(result.problem, []).append(result)
    states = {name: numbers_kept(candidates[name]) for name in dict.fromkeys(r.candidate for r in results)}
    return [_ranking(name, found, candidates, states) for name, found in grouped.items()]


def numbers_kept(candidate: Candidate) -> float | None:
    """How many numbers an optimizer keeps for each weight: its state after a step, and the averaged weights."""
    if not candidate.installed:
        return None
    weights = torch.ones(32, 32)
    weights.grad = torch.ones(32, 32)
    optimizer = candidate.optimizer([weights], 1e-3)
    optimizer.step()
    state = sum(x.numel() for x in optimizer.state[weights].values() if isinstance(x, torch.Tensor))
    return round(state / weights.numel(), 1) + (candidate.averaging and not isinstance(optimizer, RMSprop))


def _ranking(
    problem: str,
    results: list[Result],
    candidates: Mapping[str, Candidate],
    states: Mapping[str, float | None],
) -> Ranking:
    budget = max(result.curves.steps[-1] for result in results)
    start = _start([result.curves for result in results])
    pairs = [(result, _row(result, candidates[result.candidate], budget)) for result in results]
    goal, note = target(min(row.valid for _, row in pairs), start)
    rows = [
        replace(
            row,
            steps_to_target=_steps_to(row, goal),
            lr_range=lr_range(row.curves, goal),
            state=states[result.candidate],
        )
        for result, row in pairs
    ]
    rows.sort(key=lambda row: (row.test, row.valid))
    return Ranking(problem, results[0].curves.seeds, _against_best(rows, start), start, goal, note)


def _row(result: Result, candidate: Candidate, budget: int) -> Row:
    curves, decay = result.curves, result.decay and not candidate.full_batch
    best = curves.best()
    return Row(
        name=result.candidate + "+decay" * decay,
        about=candidate.about + "; lr falls to 0" * decay,
        curves=curves,
        steps=[step * budget / curves.steps[-1] for step in curves.steps],
        lr=curves.lrs[best],
        valid=curves.finals()[best],
        tests=scores(curves, best),
        error=None if curves.error is None else fmean(curves.error[best]),
        spike=median(x if math.isfinite(x) else math.inf for x in curves.spike[best]),
        seconds=result.optimizer_seconds,
    )


def scores(curves: Curves, lr: int) -> list[float]:
    """The test losses of a learning rate, infinite for a seed that diverged on these rows or those of validation."""
    ends = [[*seed[-2:], test] for seed, test in zip(curves.valid[lr], curves.test[lr], strict=True)]
    return [end[-1] if all(map(math.isfinite, end)) else math.inf for end in ends]


def _start(curves: Sequence[Curves]) -> float:
    """What a loss is before much was learned: of the first evaluations, with the smallest learning rates."""
    first = [seed[0] for c in curves for seed in c.valid[0] if math.isfinite(seed[0])]
    return median(first) if first else math.inf


def _steps_to(row: Row, target: float | None) -> int | None:
    if target is None:
        return None
    curves = row.curves.valid[row.curves.best()]
    first = [next((s for s, x in zip(row.steps, seed, strict=True) if x <= target), math.inf) for seed in curves]
    found = median_high(first)  # one that was evaluated, and never if half of the seeds never do
    return None if math.isinf(found) else round(found)


def _against_best(rows: list[Row], start: float) -> list[Row]:
    best, *rest = rows
    if best.diverged:
        return rows
    finite = [row for row in rows if not row.diverged]
    scale = math.log if min(min(row.tests) for row in finite) > 0 else float
    compared = [None if row.diverged else _pair(row, best, scale) for row in rest]
    corrected = iter(holm([c.p for c in compared if c]))
    versus = [c and replace(c, p=next(corrected)) for c in compared]
    of_way = best.test <= 0
    whole = way_from(start, best.test) if of_way else best.test
    behind = [(row.test - best.test) / whole if whole > 0 and not row.diverged else None for row in rest]
    others = [replace(row, versus=v, behind=b, of_way=of_way) for row, v, b in zip(rest, versus, behind, strict=True)]
    return [replace(best, behind=0.0, of_way=of_way), *others]


def _pair(row: Row, best: Row, scale: Callable[[float], float]) -> Paired | None:
    """By seed; those that only one of them has are left out."""
    known = dict(zip(best.curves.seeds, best.tests, strict=True))
    both = [(x, known[seed]) for seed, x in zip(row.curves.seeds, row.tests, strict=True) if seed in known]
    return paired([scale(x) for x, _ in both], [scale(x) for _, x in both])
