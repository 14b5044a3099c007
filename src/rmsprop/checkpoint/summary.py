"""What a checkpoint shows: a row of numbers a parameter, and whose RMSprop its rule could be."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from rmsprop.checkpoint import slots
from rmsprop.checkpoint.form import Checkpoint
from rmsprop.checkpoint.libraries import LIBRARIES, Library
from rmsprop.checkpoint.slots import Array, Entry
from rmsprop.dialects import DIALECTS
from rmsprop.rule import Rule, denominator, mean_square

QUANTILES = (10, 50, 90)
#: What a rule's rows in `DIALECTS` are told apart by, before their numbers.
_STRUCTURE = (
    "epsilon_mode",
    "initial_square",
    "bias_correction",
    "centered",
    "momentum_form",
    "decay_mode",
    "nesterov",
)
_NUMBERS = ("epsilon", "beta", "lr", "momentum")


def rows(checkpoint: Checkpoint) -> list[dict[str, Any]]:
    """A dict for each parameter: name, shape, dtype, step, and of its mean square v (centered: variance).

    v: quantiles (10, 50, 90 %) of the finite entries; dead: how many are 0; not_finite, negative: how many entries
    no step could have left, in any array; step_size: quantiles of lr / denominator, what a gradient is multiplied by.
    """
    return [_row(name, checkpoint.state.get(name), rule) for name, rule in checkpoint.rules.items()]


def _row(name: str, entry: Entry | None, rule: Rule) -> dict[str, Any]:
    arrays = {slot: slots.real(entry[slot]) for slot in slots.SLOTS if entry and slot in entry}
    first = next(iter(arrays.values()), np.zeros(0, np.float32))
    row: dict[str, Any] = {"name": name, "shape": [], "dtype": "", "step": entry["step"] if entry else 0}
    if not entry or not arrays:
        return {**row, "v": None, "dead": 0, "not_finite": 0, "negative": 0, "step_size": None}
    shaped = next(entry[slot] for slot in slots.SLOTS if slot in entry)
    row |= {"shape": list(shaped.shape), "dtype": shaped.dtype.name}
    with np.errstate(all="ignore"):
        v, m = _mean_square(entry, arrays, first)
        finite = np.isfinite(v) & (v >= 0)
        sizes = _step_sizes(v[finite], m[finite], rule, entry["step"])
    return {
        **row,
        "v": _quantiles(v[finite]),
        "dead": int(np.count_nonzero(v == 0)),
        "not_finite": sum(int(x.size - np.count_nonzero(np.isfinite(x))) for x in arrays.values()),
        "negative": sum(int(np.count_nonzero(arrays[s] < 0)) for s in ("square_avg", "variance") if s in arrays),
        "step_size": _quantiles(sizes),
    }


def _mean_square(entry: Entry, arrays: dict[str, Array], first: Array) -> tuple[Array, Array]:
    """(v or variance, m), or what there is of them where they do not fit together."""
    m = arrays.get("grad_avg", np.zeros_like(first))
    if "grad_avg" in arrays and m.shape == first.shape:
        return slots.real(slots.variance(entry)), m
    return first, np.zeros_like(first)


def _step_sizes(v: Array, m: Array, rule: Rule, step: Any) -> Array:
    s = rule.scalars(max(step, 1) if isinstance(step, int) else 1)
    under = mean_square(v.astype(float), m.astype(float), s["correction"], s["variance_floor"], rule.centered, np.where)
    sizes: Array = rule.lr / denominator(under, s["e_in"], s["e_out"], s["floor"], np.sqrt, np.where)
    return sizes


def _quantiles(x: Array) -> list[float] | None:
    if not x.size:
        return None
    return [float(q) for q in np.percentile(x, QUANTILES, method="nearest")]


def dialects(rule: Rule, library: Library) -> list[str]:
    """The dialects a rule could be of: the library's, else those of its structure, most of its numbers first."""
    if library.title != LIBRARIES["rmsprop"].title:
        return [name for name, row in DIALECTS.items() if row.rule == library.home]
    fits = [name for name, row in DIALECTS.items() if all(_same(rule, row.rule, option) for option in _STRUCTURE)]
    return sorted(fits, key=lambda name: -sum(getattr(rule, n) == getattr(DIALECTS[name].rule, n) for n in _NUMBERS))


def _same(rule: Rule, home: Rule, option: str) -> bool:
    if option == "momentum_form" and not rule.momentum:
        return True
    if option == "decay_mode" and not rule.weight_decay:
        return True
    return bool(getattr(rule, option) == getattr(home, option)) or option in ("centered", "nesterov")


def reasons(rule: Rule) -> Iterator[str]:
    """What a rule does, in the words in which dialects differ."""
    where = {
        "inside": "inside the root",
        "outside": "outside the root",
        "floor": "as a floor under the root",
        "both": "inside and outside the root",
    }[rule.epsilon_mode]
    yield f"epsilon {rule.epsilon:g} {where}"
    yield f"the mean square starts at {rule.initial_square:g}" + " and is bias-corrected" * rule.bias_correction
    if rule.momentum:
        form = {"lr_inside": "lr inside the buffer", "lr_outside": "lr outside the buffer", "ema": "as an average"}
        yield f"momentum {rule.momentum:g}, {form[rule.momentum_form]}"
    if rule.centered:
        yield "centered"
    if rule.weight_decay:
        yield f"{rule.decay_mode} weight decay {rule.weight_decay:g}"


def evidence(checkpoint: Checkpoint) -> Iterator[str]:
    """What the state says about where it started: entries that have seen no gradient."""
    zero, started, rules = 0, 0, checkpoint.rules
    for name, entry in checkpoint.state.items():
        beta, v = rules[name].beta, entry.get("square_avg")
        if v is None or not isinstance(entry["step"], int) or v.dtype.kind != "f":
            continue
        zero += int(np.count_nonzero(v == 0))
        untouched = beta ** entry["step"]
        if entry["step"] and untouched > 1e-30:
            started += int(np.count_nonzero(np.isclose(v, untouched, rtol=1e-4, atol=0)))
    if zero:
        yield f"{zero} entries of v are 0: they started at 0 and have seen no gradient"
    if started:
        yield f"{started} entries of v are beta^step: they started at 1 and have seen next to no gradient"
