"""How the steps of each layer went: what the optimizer says of the last step of an epoch, kept beside the history."""

import math
from typing import Any

from rmsprop.fit import Model
from rmsprop.rule import Rule
from rmsprop.torch import RMSprop
from rmsprop.training.settings import Settings

STATISTICS = (
    *("gradient_rms", "update_rms", "weight_rms", "update_to_weight", "epsilon_share", "skipped"),
    *("step_size_10", "step_size_50", "step_size_90"),
)
COLUMNS = ("epoch", "layer", *STATISTICS)
MOST = 300  # epochs on record: a checkpoint writes them all, and no curve shows more

Record = dict[str, Any]


def due(epoch: int, epochs: int) -> bool:
    """Whether an epoch is on record: each of a short training, some hundred of a long one."""
    return epoch in (1, epochs) or epoch % -(-epochs // MOST) == 0


def records(optimizer: RMSprop, epoch: int) -> list[Record]:
    """One record a parameter, of the step that was watched. What has no size, such as 0 / 0, is None."""
    return [
        {"epoch": epoch, "layer": name} | {key: _number(found[key]) for key in STATISTICS}
        for name, found in optimizer.stats().items()
    ]


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None


def by_layer(model: Model) -> dict[str, list[Record]]:
    """The records of each weight matrix, under a name to read, in the network's order; biases are left out."""
    matrices = {name: p.shape for name, p in model.network.named_parameters() if p.ndim == 2}
    found = {
        f"layer {i}: {shape[1]} → {shape[0]}": [row for row in model.layers if row["layer"] == name]
        for i, (name, shape) in enumerate(matrices.items(), 1)
    }
    return {name: rows for name, rows in found.items() if rows}


def about_step_sizes(layers: dict[str, list[Record]], settings: Settings) -> list[str]:
    """What the chart of the effective step sizes shows, in paragraphs."""
    texts = [
        "RMSprop gives every weight a step size of its own: lr divided by the running size of that weight's gradient. "
        "The line is the median weight of a layer; the band leaves out the smallest and the largest tenth.",
        "The curves rise while the gradients shrink, for that is what RMSprop does: it keeps the steps going. A band "
        "one or two powers of ten wide is usual. A much wider one says that some weights get far smaller gradients "
        f"than others, such as those of inputs that are nearly always 0.{_cooldown(settings)}",
    ]
    return texts + _about_epsilon({name.partition(":")[0]: found for name, found in layers.items()}, settings.rule)


def _about_epsilon(layers: dict[str, list[Record]], rule: Rule) -> list[str]:
    """Which layers get no gradient at all, and in which it is too small for epsilon; a paragraph for each case."""
    still = [name for name, found in layers.items() if not any(row["gradient_rms"] for row in found)]
    since = {name: _epsilon_rules_since(found) for name, found in layers.items() if name not in still}
    first = [name for name, epoch in since.items() if epoch == 1]
    later = [f"{name} (from epoch {epoch} on)" for name, epoch in since.items() if epoch > 1]
    small = (
        f"most gradients are so small that epsilon ({rule.epsilon:g}), not their own size, decides the step: RMSprop "
        f"is then plain gradient descent with a step size of at most {ceiling(rule):.3g}."
    )
    texts = [f"{', '.join(still)}: no gradient at all. The weights stay as they began, whatever the step size."]
    texts += [
        f"{', '.join(first)}, from the first epoch on: {small} If the loss has not come down, this is why, and a "
        "smaller epsilon lets the layer learn.",
        f"{', '.join(later)}: {small} That is usual once the loss has come down, for there is little left to learn.",
    ]
    return [text[:1].upper() + text[1:] for text, names in zip(texts, (still, first, later), strict=True) if names]


def _epsilon_rules_since(found: list[Record]) -> int:
    """The epoch from which on, to the end, epsilon decides the step of most entries; 0 where it does not."""
    since = 0
    for row in found:
        rules = (row["epsilon_share"] or 0) > 0.5
        since = (since or row["epoch"]) if rules else 0
    return since


def ceiling(rule: Rule) -> float:
    """The largest effective step size there can be: lr / d where v is 0."""
    root = math.sqrt(rule.epsilon)
    least = {"inside": root, "outside": rule.epsilon, "floor": rule.epsilon, "both": root + rule.epsilon}
    return rule.lr / least[rule.epsilon_mode] if rule.epsilon else math.inf


def about_ratios(settings: Settings) -> list[str]:
    """What the chart of the update-to-weight ratios shows, in paragraphs."""
    return [
        "How far one step moves a layer, measured by the layer: the root mean square of the step over that of the "
        "weights, at the last step of an epoch. About 0.001 a step (dashed) is usual: a rule of thumb, no more.",
        "Far above it, say 0.1, a step undoes what earlier ones have learned, and the loss jumps: try a smaller lr. "
        "Far below it, say 0.00001, the layer hardly moves: try a larger lr, or see whether any gradient reaches it. "
        f"It falls when there is little left to learn, too.{_cooldown(settings)}",
    ]


def _cooldown(settings: Settings) -> str:
    """Why every curve falls in the end."""
    return f" Over the last {settings.cooldown:.0%} lr falls to 0 (cooldown)." * bool(settings.cooldown)
