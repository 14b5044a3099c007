"""The tutorial's figures, as pictures that need no network."""

from base64 import b64encode
from collections.abc import Mapping, Sequence
from html import escape
from io import BytesIO
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure

from rmsprop.notebooks.surfaces import Array, Surface

COLOURS = ("#3b6fb6", "#d1495b", "#2a9d6f", "#8a5fb5", "#c98a1b", "#4a4a4a", "#17a2b8")


def panels(*titles: str, height: float = 3.2) -> tuple[Figure, Sequence[Axes]]:
    """A figure with a panel for each title, side by side, and its panels."""
    figure = Figure(figsize=(9, height), layout="constrained")
    axes = figure.subplots(1, len(titles), squeeze=False)[0]
    for panel, title in zip(axes, titles, strict=True):
        panel.set_title(title, fontsize=10)
        panel.grid(alpha=0.25)
    return figure, axes


def draw(panel: Axes, curves: Mapping[str, Array], x: Any = None, colours: Mapping[str, str] | None = None) -> None:
    """Curves by name, against x or the number of the step; those that coincide stay visible."""
    for i, (name, values) in enumerate(curves.items()):
        colour = (colours or {}).get(name, COLOURS[i % len(COLOURS)])
        dashes = ("-", (0, (5, 3)), (0, (2, 2)))[i % 3]
        steps = np.arange(len(values)) if x is None else x
        panel.plot(steps, values, label=name, color=colour, linestyle=dashes, linewidth=1.6)
    panel.legend(fontsize=8)


def picture(figure: Figure) -> str:
    """The figure as an image inside HTML; the titles of its panels are what a screen reader says."""
    file = BytesIO()
    figure.savefig(file, format="png", dpi=120)
    said = escape("; ".join(panel.get_title() for panel in figure.axes))
    return f'<img alt="{said}" src="data:image/png;base64,{b64encode(file.getvalue()).decode()}">'


def descent(places: Array) -> Figure:
    """Steps on x², and how far from 0 they are."""
    figure, (bowl, far) = panels("x², and the steps on it", "distance from the minimum")
    reach = max(4.5, float(np.abs(places).max()))
    x = np.linspace(-reach, reach, 200)
    bowl.plot(x, x**2, color="0.7")
    bowl.plot(places, places**2, "o-", color=COLOURS[1], markersize=4, linewidth=1)
    bowl.set_xlabel("x")
    far.semilogy(np.maximum(np.abs(places), 1e-16), "o-", color=COLOURS[1], markersize=4, linewidth=1)
    far.set_xlabel("step")
    return figure


def walks(surface: Surface, paths: Mapping[str, Array], colours: Mapping[str, str]) -> Figure:
    """Walks on the map of a surface, and how high above its lowest place they are."""
    figure, (chart, height) = panels("the walks", "loss above the lowest", height=4.4)
    left, right, bottom, top = surface.view
    x, y = np.meshgrid(np.linspace(left, right, 120), np.linspace(bottom, top, 120))
    floor = min(surface.loss(*place) for place in surface.lowest)
    levels = surface.loss(x, y) - floor + 1e-3
    norm: Normalize = LogNorm(levels.min(), levels.max())
    chart.contourf(x, y, levels, np.geomspace(levels.min(), levels.max(), 18), norm=norm, cmap="Greys", alpha=0.35)
    chart.plot(*surface.start, "o", color="black", markersize=5)
    for place in surface.lowest:
        chart.plot(*place, "*", color="black", markersize=11)
    for name, path in paths.items():
        chart.plot(*path.T, ".-", color=colours[name], markersize=2.5, linewidth=1, label=name)
    chart.set_xlim(left, right)
    chart.set_ylim(bottom, top)
    with np.errstate(over="ignore", invalid="ignore"):
        above = {name: np.maximum(surface.loss(*path.T) - floor, 1e-16) for name, path in paths.items()}
    draw(height, above, colours=colours)
    height.set_yscale("log")
    height.set_ylim(1e-9, 1e4)
    height.set_xlabel("step")
    return figure
