"""The table of a comparison as text, for a terminal of any width."""

from collections.abc import Sequence
from textwrap import fill

from rmsprop.comparing import figures
from rmsprop.comparing.overall import Overall, Summary, summarize
from rmsprop.comparing.ranking import Ranking, Row
from rmsprop.comparing.window import WITHIN, Range

NAME, NONE = "optimizer", "–"
GAP = "  "
LEGEND = (
    "The learning rate of each optimizer is the one with the lowest final validation loss; losses are on test rows, "
    "means over seeds; ± is their standard deviation over seeds. Behind and p: against the first row; behind is "
    "a part of its loss or, where that is not positive, of the way to it from the first evaluations; p is of "
    "Student's t in pairs over seeds, of logarithms where losses are positive, Holm-corrected for the number of rows; "
    "the first row was picked by the same losses: take it as a guide. lr range: the learning rates whose final "
    f"validation loss is within {WITHIN:.0%} of the lowest of all, which is the target, interpolated; ≤ and ≥ where "
    "the smallest or largest one tried is among them. Steps: to the target, median over seeds, in mini-batches; a step "
    "on all rows counts as many. Spike: the largest loss in the first 20 steps over the first. State: numbers kept "
    "for each weight."
)


def numbers(row: Row) -> dict[str, str]:
    """{heading: text} of a row."""
    ends = {-1: " smallest", 0: "", 1: " largest"}
    return {
        NAME: row.name,
        "lr": figures.lr(row.lr) + ends[row.edge],
        "test loss": f"diverged {row.diverged}/{len(row.tests)}" if row.diverged else figures.loss(row.test),
        "±": figures.spread(row.spread),
        "behind": _behind(row),
        "p": figures.chance(row.versus.p).removeprefix("p ").removeprefix("= ") if row.versus else NONE,
        "steps": "never" if row.steps_to_target is None else f"{row.steps_to_target}",
        "lr range": _range(row.lr_range),
        "decades": f"{row.lr_range.decades:.2f}" if row.lr_range else NONE,
        "spike": figures.times(row.spike),
        "error": figures.loss(row.error),
        "state": NONE if row.state is None else f"{row.state:g}",
        "optimizer s": f"{row.seconds:.2g}",
    }


def overall_numbers(row: Overall) -> dict[str, str]:
    """{heading: text} of a row of the summary."""
    return {
        NAME: row.name,
        "ratio": figures.times(row.ratio),
        "worst": figures.times(row.worst),
        "on": row.worst_on,
        "p": figures.chance(row.versus.p).removeprefix("p ").removeprefix("= ") if row.versus else NONE,
        "one lr": NONE if row.lr is None else figures.lr(row.lr),
        "its ratio": figures.times(row.lr_ratio),
        "its worst": figures.times(row.lr_worst),
        "state": NONE if row.state is None else f"{row.state:g}",
        "problems": f"{row.problems}",
    }


def ratio_note(summary: Summary) -> str:
    """What the summary's ratios are."""
    reference = f"of {summary.reference}" if summary.reference else "that is lowest on the problem"
    return (
        f"Ratio: the test loss over the one {reference}, each with its own learning rate; geometric mean over "
        f"{len(summary.problems)} problems. p: as on one problem, of the logarithms. One lr: the learning rate, of "
        "those tried on every problem, whose validation losses are lowest over all of them: chosen after the fact."
    )


def columns(rows: Sequence[dict[str, str]]) -> list[str]:
    """The headings under which any row has something."""
    return [heading for heading in rows[0] if any(row[heading] != NONE for row in rows)]


def text(rankings: Sequence[Ranking], width: int | None = None) -> str:
    """A table for each problem, one over all where there are several, and what the columns are.

    Args:
        rankings: of the problems.
        width: of the terminal; a table that is wider goes on below, column by column. None: as wide as it gets.
    """
    parts = []
    for ranking in rankings:
        seeds = f"{len(ranking.seeds)} seed{'s' * (len(ranking.seeds) != 1)}"
        tables = _tables([numbers(row) for row in ranking.rows], width)
        parts += [f"{ranking.problem}, {seeds}", tables, _filled(ranking.note, width)]
    summary = summarize(rankings)
    if len(summary.problems) > 1:
        parts += ["all problems", _tables([overall_numbers(row) for row in summary.rows], width)]
        parts += [_filled(ratio_note(summary), width)]
    return "\n\n".join([*parts, _filled(LEGEND, width)])


def _tables(rows: Sequence[dict[str, str]], width: int | None) -> str:
    """As many tables, each beginning with the names, as it takes to stay in the width."""
    headings = columns(rows)
    widths = {heading: max(len(heading), *(len(row[heading]) for row in rows)) for heading in headings}
    groups: list[list[str]] = [[NAME]]
    for heading in headings[1:]:
        used = sum(widths[other] + len(GAP) for other in groups[-1]) + widths[heading]
        if width is not None and used > width and len(groups[-1]) > 1:
            groups.append([NAME])
        groups[-1].append(heading)
    lines = [dict(zip(headings, headings, strict=True)), *rows]
    return "\n\n".join("\n".join(_line(row, group, widths) for row in lines) for group in groups)


def _line(row: dict[str, str], group: list[str], widths: dict[str, int]) -> str:
    return GAP.join([row[NAME].ljust(widths[NAME]), *(row[h].rjust(widths[h]) for h in group[1:])]).rstrip()


def _filled(line: str, width: int | None) -> str:
    return line if width is None else fill(line, max(width, 20), break_long_words=False, break_on_hyphens=False)


def _behind(row: Row) -> str:
    if row.behind is None or not row.versus:
        return NONE
    return f"{row.behind:.2g} of the way" if row.of_way else figures.percent(row.behind)


def _range(found: Range | None) -> str:
    if found is None:
        return NONE
    return f"{'≤ ' * found.open_low}{figures.lr(found.low)} to {'≥ ' * found.open_high}{figures.lr(found.high)}"
