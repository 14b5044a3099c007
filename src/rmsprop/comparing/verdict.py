"""What to use, in one sentence, and how sure that is.

Every optimizer is compared with the one of the lowest mean loss, in pairs over seeds. How far it is behind is a part of
that loss or, where it is not positive, of the way to it from the start. One is as good as the best if it cannot be told
from it: the difference may be chance and is at most `WITHIN`; or if the difference, however sure, is at most `NOTHING`
and so does not matter. Of those that are as good, the one that keeps the fewest numbers for each weight is to be used.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

from rmsprop.comparing import figures
from rmsprop.comparing.overall import Overall, Summary, summarize
from rmsprop.comparing.pairs import Paired
from rmsprop.comparing.ranking import Ranking, Row
from rmsprop.comparing.window import WITHIN

CHANCE = 0.05  # a p value at or under it counts
NOTHING = 0.02  # as a part of the loss: a learning rate between those of the grid can change as much
FEWEST_SEEDS = 3
RIVAL = "adam"


class Entry(Protocol):
    """What a verdict needs of a row."""

    @property
    def name(self) -> str: ...  # noqa: D102
    @property
    def state(self) -> float | None: ...  # noqa: D102
    @property
    def behind(self) -> float | None: ...  # noqa: D102
    @property
    def versus(self) -> Paired | None: ...  # noqa: D102
    @property
    def diverged(self) -> int: ...  # noqa: D102


Kind = TypeVar("Kind", bound=Entry)


@dataclass(frozen=True)
class Verdict:
    """`use` and its learning rate, None where nothing can be said; the sentence, and what else must be known."""

    use: str | None
    lr: float | None
    sentence: str
    notes: list[str]


def standing(row: Entry) -> str:
    """Against the best row, which has no `versus` and so "".

    "level" cannot be told from it, "near" is behind by next to nothing, "worse" by more, and "open" by chance perhaps.
    """
    if row.versus is None:
        return ""
    behind = math.inf if row.behind is None else row.behind
    if row.versus.p <= CHANCE and row.versus.mean > 0:
        return "near" if behind <= NOTHING else "worse"
    return "level" if behind <= WITHIN else "open"


def as_good(row: Entry) -> bool:
    """Whether a row is as good as the best, which it is not itself."""
    return standing(row) in ("level", "near")


def verdict(rankings: Sequence[Ranking]) -> Verdict:
    """The verdict on one problem, or on several together."""
    if len(rankings) == 1:
        return _of_problem(rankings[0])
    summary = summarize(rankings)
    if len(summary.problems) < 2:
        return Verdict(None, None, _no_summary(rankings, summary), [])
    return _of_all(summary)


def _of_problem(ranking: Ranking) -> Verdict:
    rows, on = ranking.rows, f"on {ranking.problem}"
    best, notes = rows[0], [*_edges(rows), *_diverged(rows)]
    if best.diverged:
        text = f"No optimizer can be recommended {on}: none has a learning rate with which it trained with every seed."
        return Verdict(None, None, text, notes)
    lowest = f"test loss of {figures.loss(best.test)} with lr {figures.lr(best.lr)}"
    if len(rows) == 1:
        return Verdict(None, None, f"{best.name} has a {lowest} {on}; there is nothing to compare it with.", notes)
    if len(ranking.seeds) < FEWEST_SEEDS:
        text = f"{best.name} has the lowest {lowest}, {on}, {_too_few(len(ranking.seeds))}."
        return Verdict(None, None, text, notes)
    use = _simplest(rows)
    loss = f"its test loss of {figures.loss(use.test)}"
    text = f"Use {use.name} with lr {figures.lr(use.lr)} {on}: {loss} {_why(rows, use, best.of_way)}."
    return Verdict(use.name, use.lr, text, [*_open(rows), *notes])


def _of_all(summary: Summary) -> Verdict:
    rows = [row for row in summary.rows if row.problems == len(summary.problems)]
    on = f"over these {len(summary.problems)} problems"
    fewer = [row.name for row in summary.rows if row not in rows]
    notes = [f"Not tried on every problem, and left out: {figures.names(fewer)}."] if fewer else []
    if summary.left_out:
        notes += [f"Left out, since its losses have no ratio: {figures.names(summary.left_out)}."]
    notes += [f"{row.name} diverged on {row.worst_on}." for row in rows if row.diverged]
    if not rows or rows[0].diverged:
        return Verdict(None, None, f"No optimizer can be recommended {on}: none trained on all of them.", notes)
    best = rows[0]
    if len(rows) == 1:
        return Verdict(None, None, f"{best.name}: there is nothing to compare it with {on}.", notes)
    if len(summary.seeds) < FEWEST_SEEDS:
        text = f"{best.name} has the lowest test losses {on}, {_too_few(len(summary.seeds))}."
        return Verdict(None, None, text, notes)
    use = _simplest(rows)
    text = f"Use {use.name} {on}: in the geometric mean its test loss {_why(rows, use)}{_ratios(summary, use)}."
    return Verdict(use.name, use.lr, text, [*_open(rows), *notes])


def _simplest(rows: Sequence[Kind]) -> Kind:
    """Of the best and those as good the one with the least state, the better one of two."""
    return min((rows[0], *filter(as_good, rows)), key=lambda row: float("inf") if row.state is None else row.state)


def _those(rows: Sequence[Kind], what: str) -> list[Kind]:
    return [row for row in rows[1:] if standing(row) == what]


def _why(rows: Sequence[Entry], use: Entry, of_way: bool = False) -> str:
    """What follows "its test loss"."""
    best, worse = rows[0], _those(rows, "worse")
    if use is not best:
        others = [row.name for row in rows if as_good(row) and row is not use]
        these = f"these and {figures.names(others)}, as good too," if others else "these"
        fewest = f"it keeps the fewest numbers for each weight ({use.state:g}, {best.name} {_kept(best)})"
        told = "cannot be told from" if standing(use) == "level" else f"is within {NOTHING:.0%} of"
        return f"{told} that of {best.name} ({best.name}'s was lower {_chance(use)}), and of {these} {fewest}"
    parts = []
    if worse:
        rival = next((row for row in worse if row.name == RIVAL), worse[0])
        parts += [f"is {_below(rival, of_way)} (lower {_chance(rival)})"]
    if same := _same(rows):
        parts += [f"{'is the lowest, but ' * (not worse)}{same}"]
    return "; ".join(parts) or "is the lowest, but the differences may be chance"


def _same(rows: Sequence[Entry]) -> str:
    """Which are as good as the best, and how."""
    level, near = ([row.name for row in _those(rows, what)] for what in ("level", "near"))
    parts = [f"{figures.names(level)} cannot be told from it"] if level else []
    if near:
        parts += [f"{figures.names(near)} {'are' if len(near) > 1 else 'is'} within {NOTHING:.0%} of it"]
    return ", and ".join(parts)


def _kept(row: Entry) -> str:
    return "an unknown number" if row.state is None else f"{row.state:g}"


def _below(rival: Entry, of_way: bool) -> str:
    """How far the best is below another row."""
    if rival.behind is None:
        return f"below that of {rival.name}"
    if of_way:
        return f"below that of {rival.name} by {rival.behind:.2g} of the way from the start"
    if rival.behind >= 9:
        return f"less than a tenth of that of {rival.name}"
    return f"{figures.percent(rival.behind / (1 + rival.behind))} below that of {rival.name}"


def _chance(row: Entry) -> str:
    found = row.versus
    assert found is not None
    return f"with {found.higher} of {found.seeds} seeds, {figures.chance(found.p)}"


def _ratios(summary: Summary, use: Overall) -> str:
    reference = f"{summary.reference}'s" if summary.reference else "the lowest on each problem"
    text = f"; it is {use.ratio:.3g} times {reference}, {use.worst:.3g} at worst (on {use.worst_on})"
    if use.lr is None or use.lr_ratio is None or use.lr_worst is None:
        return text
    if math.isinf(use.lr_ratio):
        return f"{text}, and it diverged with one learning rate for all, {figures.lr(use.lr)}"
    ratios = f"{figures.times(use.lr_ratio)} and at worst {figures.times(use.lr_worst)}"
    return f"{text}, and {ratios} with one learning rate for all, {figures.lr(use.lr)}"


def _too_few(seeds: int) -> str:
    count = "one seed" if seeds == 1 else f"{seeds} seeds"
    return f"but with {count} nothing can be said about how sure that is: try at least {FEWEST_SEEDS}, better 5 or more"


def _open(rows: Sequence[Entry]) -> list[str]:
    found = [row.name for row in _those(rows, "open")]
    why = f"neither clearly worse than the best nor within {WITHIN:.0%} of it: more seeds would tell"
    return [f"Not decided: {figures.names(found)}, {why}."] if found else []


def _edges(rows: Sequence[Row]) -> list[str]:
    """Whose best learning rate is an end of its grid."""
    ends = {-1: "smallest", 1: "largest"}
    return [
        f"{row.name} is best with the {ends[row.edge]} learning rate tried, {figures.lr(row.lr)}: "
        f"{'smaller' if row.edge < 0 else 'larger'} ones may be better."
        for row in rows
        if row.edge and not row.diverged
    ]


def _diverged(rows: Sequence[Row]) -> list[str]:
    return [
        f"{row.name} diverged with {row.diverged} of {len(row.tests)} seeds at its best learning rate, "
        f"{figures.lr(row.lr)}."
        for row in rows
        if row.diverged
    ]


def _no_summary(rankings: Sequence[Ranking], summary: Summary) -> str:
    if not rankings:
        return "Nothing was compared."
    return (
        f"Nothing can be said over all problems: there is no ratio of the losses of {figures.names(summary.left_out)}."
    )
