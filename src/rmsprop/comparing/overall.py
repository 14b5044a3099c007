"""The optimizers over several problems: how far from a reference on average, at worst, and with one learning rate."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import fmean

from rmsprop.comparing.pairs import Paired, holm, paired
from rmsprop.comparing.ranking import Ranking, Row, scores

REFERENCE = "adam"


@dataclass(frozen=True)
class Overall:
    """One optimizer over the problems.

    Attributes:
        name, state: as in the rankings.
        ratios: of its test loss to the reference's, on each problem it was tried on; infinite where it diverged.
        logs: for each seed the mean over problems of the logarithm of its test loss; empty if it diverged on any.
        lr: the one learning rate of those tried everywhere with the lowest validation losses; None if there is none.
        lr_ratio, lr_worst: `ratio` and `worst` with that one.
        behind: how much higher its ratio is than the best one, as a part of that; None after divergence.
        versus: its `logs` less the best row's, p corrected for the number of rows; None as in `ranking.Row`.
    """

    name: str
    state: float | None
    ratios: dict[str, float]
    logs: list[float]
    lr: float | None = None
    lr_ratio: float | None = None
    lr_worst: float | None = None
    behind: float | None = None
    versus: Paired | None = None

    @property
    def problems(self) -> int:
        """On how many it was tried."""
        return len(self.ratios)

    @property
    def ratio(self) -> float:
        """The geometric mean of the ratios; infinite where it diverged on any problem."""
        return _geometric(list(self.ratios.values()))

    @property
    def worst_on(self) -> str:
        """The problem with the largest ratio."""
        return max(self.ratios, key=self.ratios.__getitem__)

    @property
    def worst(self) -> float:
        """The largest ratio."""
        return self.ratios[self.worst_on]

    @property
    def diverged(self) -> bool:
        """Whether it has no finite score on some problem."""
        return math.isinf(self.ratio)


@dataclass(frozen=True)
class Summary:
    """The rows, the best first: those tried on all problems, then those on fewer.

    `reference` is the row whose losses the ratios are to, None: the best of each problem. `left_out` are problems with
    losses that have no ratio: negative, zero, or all diverged.
    """

    problems: list[str]
    left_out: list[str]
    reference: str | None
    seeds: list[int]
    rows: list[Overall]


def summarize(rankings: Sequence[Ranking]) -> Summary:
    """What the rankings of several problems say together; no rows where there are no problems with ratios."""
    used = [ranking for ranking in rankings if _has_ratios(ranking)]
    problems = [ranking.problem for ranking in used]
    left_out = [ranking.problem for ranking in rankings if ranking.problem not in problems]
    if not used:
        return Summary([], left_out, None, [], [])
    adams = [
        next((row for row in ranking.rows if row.name == REFERENCE and not row.diverged), None) for ranking in used
    ]
    references = [adam or ranking.rows[0] for adam, ranking in zip(adams, used, strict=True)]
    if not all(adams):
        references = [ranking.rows[0] for ranking in used]
    seeds = [seed for seed in used[0].seeds if all(seed in ranking.seeds for ranking in used)]
    names = dict.fromkeys(row.name for ranking in used for row in ranking.rows)
    rows = [_overall(name, used, references, seeds) for name in names]
    rows.sort(key=lambda row: (-row.problems, row.ratio))
    return Summary(problems, left_out, REFERENCE if all(adams) else None, seeds, _against_best(rows))


def _has_ratios(ranking: Ranking) -> bool:
    losses = (x for row in ranking.rows for x in [*row.curves.finals(), *(t for lr in row.curves.test for t in lr)])
    return not ranking.rows[0].diverged and not any(x <= 0 for x in losses)


def _overall(name: str, rankings: list[Ranking], references: list[Row], seeds: list[int]) -> Overall:
    found = [
        (ranking.problem, row, reference)
        for ranking, reference in zip(rankings, references, strict=True)
        for row in ranking.rows
        if row.name == name
    ]
    ratios = {problem: row.test / reference.test for problem, row, reference in found}
    rows = [row for _, row, _ in found]
    logs = [] if any(row.diverged for row in rows) else [_log(rows, seed) for seed in seeds]
    whole = Overall(name, rows[0].state, ratios, logs)
    return _with_one_lr(whole, [(row, reference) for _, row, reference in found])


def _with_one_lr(whole: Overall, pairs: list[tuple[Row, Row]]) -> Overall:
    shared = set.intersection(*({*row.curves.lrs} for row, _ in pairs))
    if not shared:
        return whole

    def valid(lr: float) -> float:
        return _geometric([row.curves.finals()[row.curves.lrs.index(lr)] / ref.valid for row, ref in pairs])

    lr = min(sorted(shared), key=valid)
    ratios = [fmean(scores(row.curves, row.curves.lrs.index(lr))) / ref.test for row, ref in pairs]
    return replace(whole, lr=lr, lr_ratio=_geometric(ratios), lr_worst=max(ratios))


def _against_best(rows: list[Overall]) -> list[Overall]:
    best = rows[0]
    compared = [
        paired(row.logs, best.logs) if row.logs and row is not best and row.problems == best.problems else None
        for row in rows
    ]
    corrected = iter(holm([c.p for c in compared if c]))
    return [
        replace(
            row,
            behind=None if row.diverged or row.problems != best.problems else row.ratio / best.ratio - 1,
            versus=c and replace(c, p=next(corrected)),
        )
        for row, c in zip(rows, compared, strict=True)
    ]


def _log(rows: list[Row], seed: int) -> float:
    return fmean(math.log(row.tests[row.curves.seeds.index(seed)]) for row in rows)


def _geometric(ratios: list[float]) -> float:
    return math.exp(fmean(math.log(x) for x in ratios))
