"""The drawings of report.html, in the colours of the page."""

from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator, PercentFormatter

from rmsprop.fit import Model
from rmsprop.page import INK, LINE, SERIES, TEST, TRAIN
from rmsprop.training.layers import Record

RULE_OF_THUMB = 1e-3  # of the update-to-weight ratio


def losses(axes: Axes, model: Model) -> None:
    """Of the training rows and the held-out ones."""
    _lines(axes, model, {"train_loss": ("training rows", TRAIN), "test_loss": ("held-out rows", TEST)})
    axes.set_yscale("log" if all(row["train_loss"] > 0 < row["test_loss"] for row in model.history) else "linear")
    axes.legend(frameon=False)


def scores(axes: Axes, model: Model) -> None:
    """On the held-out rows."""
    _lines(axes, model, {"test_score": ("held-out rows", TEST)})
    if model.classes:
        axes.yaxis.set_major_formatter(PercentFormatter(1))


def points(axes: Axes, model: Model) -> None:
    """Predicted against true values."""
    true, predicted = zip(*model.result["points"], strict=True)
    ends = min(true), max(true)
    axes.plot(ends, ends, color=LINE, lw=1.5)
    axes.scatter(true, predicted, s=12, color=TEST, alpha=0.5, lw=0)
    axes.set(xlabel="true", ylabel="predicted")


def step_sizes(axes: Axes, layers: dict[str, list[Record]]) -> None:
    """The effective step size of each layer: its median weight, in a band from 10 to 90%."""
    for colour, found in _coloured(layers):
        epochs, low, high = (_column(found, name) for name in ("epoch", "step_size_10", "step_size_90"))
        axes.fill_between(epochs, low, high, color=colour, alpha=0.15, lw=0)
    _curves(axes, layers, "step_size_50")


def ratios(axes: Axes, layers: dict[str, list[Record]]) -> None:
    """The update-to-weight ratio of each layer, and the rule of thumb."""
    axes.axhline(RULE_OF_THUMB, color=INK, lw=1, ls=(0, (4, 4)))
    _curves(axes, layers, "update_to_weight")


def shown(layers: dict[str, list[Record]]) -> dict[str, list[Record]]:
    """At most as many layers as there are colours, evenly spread from the first to the last."""
    names, most = list(layers), len(SERIES)
    if len(names) > most:
        names = [names[round(i * (len(names) - 1) / (most - 1))] for i in range(most)]
    return {name: layers[name] for name in names}


def _coloured(layers: dict[str, list[Record]]) -> list[tuple[str, list[Record]]]:
    """The layers' records, each with its colour; few layers get colours far from each other."""
    apart = (len(SERIES) - 1) / max(1, len(layers) - 1)
    return [(SERIES[round(i * apart)], found) for i, found in enumerate(layers.values())]


def _column(found: list[Record], name: str) -> list[float]:
    """NaN, which is not drawn, where there is no value that has a logarithm."""
    return [row[name] if row[name] else float("nan") for row in found]


def _curves(axes: Axes, layers: dict[str, list[Record]], name: str) -> None:
    axes.set_yscale("log")
    width = 1.4 + 0.5 * len(layers)  # the first is the widest, so that curves on top of each other are seen
    for (colour, found), label in zip(_coloured(layers), layers, strict=True):
        marker = "o" if len(found) == 1 else ""
        axes.plot(_column(found, "epoch"), _column(found, name), color=colour, label=label, lw=width, marker=marker)
        width -= 0.5
    if not any(row[name] for found in layers.values() for row in found):
        axes.text(0.5, 0.7, "nothing to show: no weight has moved", transform=axes.transAxes, ha="center")
        axes.set_xlim(0, next(reversed(layers.values()))[-1]["epoch"])
    axes.legend(frameon=False)
    _epochs(axes)


def _lines(axes: Axes, model: Model, names: dict[str, tuple[str, str]]) -> None:
    epochs = [row["epoch"] for row in model.history]
    for name, (label, colour) in names.items():
        values = [row[name] for row in model.history]
        axes.plot(epochs, values, color=colour, label=label, lw=1.8, marker="o" if len(epochs) == 1 else "")
    _epochs(axes)


def _epochs(axes: Axes) -> None:
    axes.set_xlabel("epoch")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
