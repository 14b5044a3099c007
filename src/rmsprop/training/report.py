"""report.html: one page that needs nothing else, light or dark, wide or narrow."""

import io
import re
from collections.abc import Callable
from importlib.resources import files
from typing import Any, cast

import jinja2
import matplotlib as mpl
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from rmsprop.fit import Model
from rmsprop.rule import Rule
from rmsprop.training.network import LESSONS
from rmsprop.training.settings import Settings

#: Stand-ins that matplotlib can draw with; each becomes a colour of the page, which knows light from dark.
COLOURS = {"#010101": "var(--ink)", "#020202": "var(--line)", "#030303": "var(--train)", "#040404": "var(--test)"}
INK, LINE, TRAIN, TEST = COLOURS
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
DENOMINATORS = {"inside": "√(v + ε)", "outside": "(√v + ε)", "floor": "max(√v, ε)", "both": "(√(v + ε) + ε)"}


def render(model: Model) -> str:
    """The page for a trained model. Everything that came from the user is escaped."""
    charts = [("Loss", _chart("loss", lambda axes: _losses(axes, model)))]
    charts += [(_score_title(model), _chart("score", lambda axes: _scores(axes, model)))]
    if "points" in model.result:
        charts += [("Predicted and true values", _chart("points", lambda axes: _points(axes, model)))]
    source = files("rmsprop.training").joinpath("report.html.jinja").read_text(encoding="utf-8")
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    settings = Settings.from_json(model.config["settings"])
    return environment.from_string(source).render(
        model=model,
        result=model.result,
        target=model.target,
        charts=charts,
        formula=formula(settings.rule),
        facts=_facts(model, settings),
        lesson=LESSONS.get(settings.init),
        settings=settings,
    )


def formula(rule: Rule) -> list[str]:
    """The rule of a run, line by line, as one writes it."""
    g = "g + weight_decay·w" if rule.weight_decay and rule.decay_mode == "coupled" else "g"
    lines = [f"g ← {g}"] * (g != "g")
    if rule.centered:
        lines += ["m ← β m + (1 − β) g", "v ← the mean of g² less m², kept as a variance"]
    else:
        lines += ["v ← β v + (1 − β) g²"]
    lines += ["v̂ = v / (1 − βᵗ)"] * rule.bias_correction
    lines += [f"u = g / {DENOMINATORS[rule.epsilon_mode].replace('v', 'v̂' if rule.bias_correction else 'v')}"]
    lines += [f"u ← u limited to ±{rule.clip}"] * (rule.clip is not None)
    if rule.momentum:
        pull = {"lr_outside": "u", "lr_inside": "lr u", "ema": "(1 − μ) u"}[rule.momentum_form]
        move = "b" if rule.momentum_form == "lr_inside" else "lr b"
        lines += [f"b ← μ b + {pull}", f"w ← w − {move}" + " (Nesterov: looking one step ahead)" * rule.nesterov]
    else:
        lines += ["w ← w − lr u"]
    return lines


def _facts(model: Model, settings: Settings) -> dict[str, dict[str, Any]]:
    """The tables of what the run was: {heading: {name: value}}."""
    config, result, rule = model.config, model.result, settings.rule
    kinds = list(model.features.kinds.values())
    numbers = {"lr": rule.lr, "β (beta)": rule.beta, "ε (epsilon)": rule.epsilon, "μ (momentum)": rule.momentum}
    widths = [model.features.width, *settings.hidden, model.target.outputs]
    source = config["data"]["source"]
    race = result["race"] or {}
    return {
        "Data": {
            "table": re.split(r"[/\\]", source)[-1] if source else "from memory",
            "rows": f"{config['data']['rows']}: {result['train_rows']} to train on, {result['test_rows']} held out",
            "columns": ", ".join(f"{kinds.count(kind)} of {kind}s" for kind in dict.fromkeys(kinds)),
            "left out": ", ".join(settings.drop),
            "target": f"{model.target.name}: {model.target.task} ({model.target.why})",
            "held out": f"{settings.test_size:.0%} of the rows"
            + (", each class in proportion" if model.classes else "")
            + "; never trained on, and nothing was chosen by them",
        },
        "Network": {
            "layers": " → ".join(map(str, widths)) + ", ReLU between them",
            "weights": f"{result['parameters']:,}",
            "start": settings.init,
        },
        "RMSprop": {
            "dialect": settings.dialect,
            **{name: f"{value:g}" for name, value in numbers.items()},
            "v starts at": f"{rule.initial_square:g}" if rule.initial_square else "",
            "epochs": len(model.history),
            "cooldown": f"lr falls to 0 over the last {settings.cooldown:.0%}" if settings.cooldown else "none",
            "rows a step": settings.batch_size,
            "seed": settings.seed,
        },
        "Time": {
            "started": config["started"].replace("T", " ").replace("+00:00", " UTC"),
            "training": f"{result['seconds']:.1f} s on {config['threads']} thread{'s' * (config['threads'] > 1)}",
            "in the optimizer": f"{result['optimizer_seconds']:.2f} s",
            **{f"a step of {name}": f"{us:.0f} µs" for name, us in race.items()},
            "versions": ", ".join(f"{name} {number}" for name, number in config["versions"].items()),
        },
    }


def _chart(name: str, draw: Callable[[Axes], None]) -> Markup:
    """An SVG drawing to stand in the page, in the page's colours."""
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


def _lines(axes: Axes, model: Model, names: dict[str, tuple[str, str]]) -> None:
    epochs = [row["epoch"] for row in model.history]
    for name, (label, colour) in names.items():
        values = [row[name] for row in model.history]
        axes.plot(epochs, values, color=colour, label=label, lw=1.8, marker="o" if len(epochs) == 1 else "")
    axes.set_xlabel("epoch")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def _losses(axes: Axes, model: Model) -> None:
    _lines(axes, model, {"train_loss": ("training rows", TRAIN), "test_loss": ("held-out rows", TEST)})
    axes.set_yscale("log" if all(row["train_loss"] > 0 < row["test_loss"] for row in model.history) else "linear")
    axes.legend(frameon=False)


def _scores(axes: Axes, model: Model) -> None:
    _lines(axes, model, {"test_score": ("held-out rows", TEST)})
    if model.classes:
        axes.yaxis.set_major_formatter(PercentFormatter(1))


def _points(axes: Axes, model: Model) -> None:
    true, predicted = zip(*model.result["points"], strict=True)
    ends = min(true), max(true)
    axes.plot(ends, ends, color=LINE, lw=1.5)
    axes.scatter(true, predicted, s=12, color=TEST, alpha=0.5, lw=0)
    axes.set(xlabel="true", ylabel="predicted")


def _score_title(model: Model) -> str:
    return f"{model.target.score_name.capitalize()} on the held-out rows"
