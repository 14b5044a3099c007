"""The drawings of report.html: losses over the steps, and how the last ones depend on the learning rate."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from matplotlib.axes import Axes
from matplotlib.ticker import NullFormatter

from rmsprop.comparing.ranking import Ranking, Row
from rmsprop.page import COLOURS, INK, SERIES

DASHES = ["", "7 3", "2 2", "9 3 2 3"]
Style = dict[str, "Mark"]


@dataclass(frozen=True)
class Mark:
    """How the line of an optimizer looks, in drawings and beside its name."""

    stand_in: str
    dashes: str

    @property
    def colour(self) -> str:
        """Of the page."""
        return COLOURS[self.stand_in]

    @property
    def line(self) -> str | tuple[int, list[float]]:
        """For matplotlib, in points, whatever the width of the line."""
        return (0, [float(x) for x in self.dashes.split()]) if self.dashes else "-"


def marks(names: Sequence[str]) -> Style:
    """Colours first, then dashes: 24 that differ."""
    count = len(SERIES)
    return {name: Mark(SERIES[i % count], DASHES[i // count % len(DASHES)]) for i, name in enumerate(names)}


def curves(axes: Axes, ranking: Ranking, style: Style) -> None:
    """Validation losses at the best learning rate: the median over seeds in a band from the lowest to the highest."""
    top = _axis(axes, ranking, [x for row in ranking.rows for seed in _best(row) for x in seed])
    for row in reversed(ranking.rows):
        mark, seeds = style[row.name], [[_drawn(x, top) for x in seed] for seed in _best(row)]
        steps = zip(*seeds, strict=True)
        middle, low, high = zip(*((median(step), min(step), max(step)) for step in steps), strict=True)
        axes.fill_between(row.steps, low, high, color=mark.stand_in, alpha=0.1, lw=0)
        _line(axes, ranking, row, mark, row.steps, middle)
    axes.set(xlabel="step", ylabel="validation loss", xlim=(0, None))


def sensitivity(axes: Axes, ranking: Ranking, style: Style) -> None:
    """The final validation loss, mean over seeds, by learning rate; a line that leaves at the top has diverged."""
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter("{x:g}")
    top = _axis(axes, ranking, [x for row in ranking.rows for x in row.curves.finals()])
    for row in reversed(ranking.rows):
        losses = [_drawn(x, top) for x in row.curves.finals()]
        _line(axes, ranking, row, style[row.name], row.curves.lrs, losses, marker="o")
    axes.set(xlabel="learning rate", ylabel="final validation loss")


def _best(row: Row) -> list[list[float]]:
    return row.curves.valid[row.curves.best()]


def _axis(axes: Axes, ranking: Ranking, losses: list[float]) -> float:
    """Set the axis of the losses and draw the target; the highest loss that the axis shows."""
    shown = [x for x in losses if math.isfinite(x)]
    if not shown:
        axes.text(0.5, 0.5, "nothing to show: every training diverged", transform=axes.transAxes, ha="center")
        return math.nan
    low, high = min(shown), max(shown)
    if ranking.target is not None:
        axes.axhline(ranking.target, color=INK, lw=1, ls=(0, (4, 4)))
    if low > 0:
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter("{x:g}")
        high = min(high, max(1.5 * ranking.start, 3 * low))
        axes.set_ylim(low / 1.15, high * 1.15)
        if high < 5 * low:  # there may be no power of ten in sight
            axes.yaxis.set_minor_formatter("{x:g}")
        else:
            axes.yaxis.set_minor_formatter(NullFormatter())
    elif high > low:
        high = min(high, max(ranking.start, low) + (ranking.start - low))
        axes.set_ylim(low - 0.05 * (high - low), high + 0.05 * (high - low))
    return high


def _drawn(loss: float, top: float) -> float:
    """A loss that is off the drawing is drawn far enough off for its line to leave at the top."""
    far = top + 9 * abs(top) + 1
    return min(loss, far) if math.isfinite(loss) else far


def _line(
    axes: Axes, ranking: Ranking, row: Row, mark: Mark, x: Sequence[float], y: Sequence[float], marker: str = ""
) -> None:
    width = 2.6 if row is ranking.rows[0] else 1.5
    alone = "o" if len(x) == 1 else marker
    axes.plot(x, y, color=mark.stand_in, lw=width, ls=mark.line, marker=alone, ms=3 + 4 * (len(x) == 1))
