"""Pages that need nothing else, light or dark, wide or narrow: how training and comparing tell what they did."""

import io
import re
from collections.abc import Callable, Mapping
from importlib.resources import files
from typing import Any, cast

import jinja2
import matplotlib as mpl
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure

#: Stand-ins that matplotlib can draw with; each becomes a colour of the page.
COLOURS = {"#010101": "var(--ink)", "#020202": "var(--line)", "#030303": "var(--train)", "#040404": "var(--test)"}
INK, LINE, TRAIN, TEST = COLOURS
#: Of lines that belong together, in their order.
SERIES = [f"#05050{n}" for n in range(1, 7)]
COLOURS |= {stand_in: f"var(--series-{n})" for n, stand_in in enumerate(SERIES, 1)}
STYLE: dict[str, Any] = {
    "svg.fonttype": "none",  # text stays text, in the page's font
    "font.size": 11,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": LINE,
    "xtick.color": INK,
    "ytick.color": INK,
    "grid.color": LINE,
    "axes.grid": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
}


def render(template: str, values: Mapping[str, Any]) -> str:
    """A page of this package's template, such as "training/report.html.jinja". All values are escaped."""
    loader = jinja2.FunctionLoader(lambda name: files("rmsprop").joinpath(*name.split("/")).read_text(encoding="utf-8"))
    environment = jinja2.Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True)
    return environment.get_template(template).render(values)


def chart(name: str, draw: Callable[[Axes], None]) -> Markup:
    """An SVG drawing to stand in the page; `name` sets its ids apart from those of the page's other drawings."""
    with mpl.rc_context(cast(Any, STYLE | {"svg.hashsalt": name})):
        figure = Figure(figsize=(6, 3.4), layout="constrained")
        axes = figure.add_subplot()
        draw(axes)
        text = io.StringIO()
        figure.savefig(text, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    svg = text.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(
        r'(<svg [^>]*?) width="[^"]*"', r"\1", re.sub(r'(<svg [^>]*?) height="[^"]*"', r"\1", svg, count=1), count=1
    )
    for stand_in, colour in COLOURS.items():
        svg = svg.replace(stand_in, colour)
    return Markup(svg)  # our own drawing: no text of the user's is in it
