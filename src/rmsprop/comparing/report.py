"""report.html of a comparison: the verdict, then every problem with its table, curves and learning rates."""

from collections.abc import Mapping, Sequence
from typing import Any

from rmsprop.comparing import figures, table
from rmsprop.comparing.charts import Style, curves, marks, sensitivity
from rmsprop.comparing.overall import Summary, summarize
from rmsprop.comparing.ranking import Ranking
from rmsprop.comparing.verdict import as_good, verdict
from rmsprop.page import chart
from rmsprop.page import render as page


def render(
    rankings: Sequence[Ranking], abouts: Mapping[str, str], how: Mapping[str, Mapping[str, Any]] | None = None
) -> str:
    """The page for the rankings of one or more problems. Everything that came from the user is escaped.

    Args:
        rankings: of the problems, in the order of the page.
        abouts: one line on each problem.
        how: what it was done with, as tables {heading: {name: value}}; empty values are left out.
    """
    optimizers = {row.name: row.about for ranking in rankings for row in ranking.rows}
    style, summary = marks(list(optimizers)), summarize(rankings)
    values = {
        "verdict": verdict(rankings),
        "counts": _counts(rankings, len(optimizers)),
        "marks": style,
        "summary": _summary(summary) if len(summary.problems) > 1 else None,
        "problems": [_problem(n, ranking, abouts, style, len(rankings)) for n, ranking in enumerate(rankings)],
        "how": {"Optimizers": optimizers, **(how or {})},
        "legend": table.LEGEND,
        "tried": _tried(rankings),
    }
    return page("comparing/report.html.jinja", values)


def _counts(rankings: Sequence[Ranking], optimizers: int) -> str:
    seeds = sorted({len(ranking.seeds) for ranking in rankings})
    counts = [(len(rankings), "problem"), (optimizers, "optimizer"), *((n, "seed") for n in seeds[-1:])]
    return ", ".join(f"{n} {thing}{'s' * (n != 1)}" for n, thing in counts)


def _tried(rankings: Sequence[Ranking]) -> str:
    """With how many learning rates each optimizer was."""
    counts = sorted({len(row.curves.lrs) for ranking in rankings for row in ranking.rows})
    ends = " to ".join(str(n) for n in dict.fromkeys([counts[0], counts[-1]]))
    return f"{ends} learning rate{'s' * (counts[-1] != 1)}"


def _problem(n: int, ranking: Ranking, abouts: Mapping[str, str], style: Style, of: int) -> dict[str, Any]:
    rows = [table.numbers(row) for row in ranking.rows]
    return {
        "name": ranking.problem,
        "about": abouts.get(ranking.problem, ""),
        "verdict": verdict([ranking]) if of > 1 else None,
        "columns": table.columns(rows),
        "rows": list(zip(rows, (row is ranking.rows[0] or as_good(row) for row in ranking.rows), strict=True)),
        "names": [row.name for row in ranking.rows],
        "note": ranking.note,
        "curves": chart(f"curves {n}", lambda axes: curves(axes, ranking, style)),
        "sensitivity": chart(f"sensitivity {n}", lambda axes: sensitivity(axes, ranking, style)),
    }


def _summary(summary: Summary) -> dict[str, Any]:
    rows = [table.overall_numbers(row) for row in summary.rows]
    return {
        "columns": table.columns(rows),
        "rows": list(zip(rows, (row is summary.rows[0] or as_good(row) for row in summary.rows), strict=True)),
        "note": table.ratio_note(summary),
        "problems": summary.problems,
        "ratios": [(row.name, [figures.times(row.ratios.get(p)) for p in summary.problems]) for row in summary.rows],
    }
