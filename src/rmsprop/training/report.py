"""report.html: one page that needs nothing else, light or dark, wide or narrow."""

import re
from typing import Any

from markupsafe import Markup

from rmsprop.fit import Model
from rmsprop.page import chart
from rmsprop.page import render as page
from rmsprop.rule import Rule
from rmsprop.training.charts import losses, points, ratios, scores, shown, step_sizes
from rmsprop.training.layers import about_ratios, about_step_sizes, by_layer
from rmsprop.training.network import LESSONS
from rmsprop.training.settings import Settings

DENOMINATORS = {"inside": "√(v + ε)", "outside": "(√v + ε)", "floor": "max(√v, ε)", "both": "(√(v + ε) + ε)"}


def render(model: Model) -> str:
    """The page for a trained model. Everything that came from the user is escaped."""
    charts = [("Loss", chart("loss", lambda axes: losses(axes, model)))]
    charts += [(_score_title(model), chart("score", lambda axes: scores(axes, model)))]
    if "points" in model.result:
        charts += [("Predicted and true values", chart("points", lambda axes: points(axes, model)))]
    settings = Settings.from_json(model.config["settings"])
    values = {
        "model": model,
        "result": model.result,
        "target": model.target,
        "charts": charts,
        "steps": _steps(model, settings),
        "formula": formula(settings.rule),
        "facts": _facts(model, settings),
        "lesson": LESSONS.get(settings.init),
        "settings": settings,
    }
    return page("training/report.html.jinja", values)


def _steps(model: Model, settings: Settings) -> list[tuple[str, Markup, list[str]]]:
    """How the optimizer was doing: (title, chart, what it shows). Empty where a run has no record of it."""
    layers = by_layer(model)
    if not layers:
        return []
    drawn = shown(layers)
    sizes = chart("step sizes", lambda axes: step_sizes(axes, drawn))
    moves = chart("ratios", lambda axes: ratios(axes, drawn))
    return [
        ("Effective step size", sizes, about_step_sizes(layers, settings)),
        ("Update-to-weight ratio", moves, about_ratios(settings)),
    ]


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
            "training": f"{result['seconds']:.1f} s on {_workers(config)}",
            "in the optimizer": f"{result['optimizer_seconds']:.2f} s",
            **{f"a step of {name}": f"{us:.0f} µs" for name, us in race.items()},
            "versions": ", ".join(f"{name} {number}" for name, number in config["versions"].items()),
        },
    }


def _workers(config: dict[str, Any]) -> str:
    """The threads of a run, and its processes where they were several."""
    threads, processes = config["threads"], config.get("processes", 1)
    text = f"{threads} thread{'s' * (threads > 1)}"
    return f"{processes} processes, {text} each" if processes > 1 else text


def _score_title(model: Model) -> str:
    return f"{model.target.score_name.capitalize()} on the held-out rows"
