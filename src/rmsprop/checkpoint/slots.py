"""The arrays of one parameter's state: their two centered forms, the buffer's two forms, and what cannot be true."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rmsprop.averaging import SLOT
from rmsprop.rule import Rule

Array = NDArray[Any]
Entry = dict[str, Any]
#: Everything an entry may have beside "step".
SLOTS = ("square_avg", "variance", "grad_avg", "momentum_buffer", SLOT)
_NEVER_NEGATIVE = ("square_avg", "variance")


def real(x: Array) -> Array:
    """A complex array as two real numbers an entry, sharing its memory; any other as it is."""
    return x[..., None].view(x.real.dtype) if x.dtype.kind == "c" else x


def square_avg(entry: Mapping[str, Any]) -> Array:
    """The mean square: as the source has it, or from our variance and mean."""
    if "square_avg" in entry:
        return np.asarray(entry["square_avg"])
    result: Array = np.empty_like(entry["variance"])
    m = real(entry["grad_avg"])
    real(result)[...] = real(entry["variance"]) + m * m
    return result


def variance(entry: Mapping[str, Any]) -> Array:
    """The variance of a centered entry: our own where it belongs to the mean square, else max(v - m^2, 0).

    The choice is that of `rmsprop.torch.RMSprop.load_state_dict`: another library may have moved `square_avg` on.
    """
    if "square_avg" not in entry:
        return np.asarray(entry["variance"])
    square, m = real(entry["square_avg"]), real(entry["grad_avg"])
    values = np.maximum(square - m * m, 0)
    if "variance" in entry:
        own = real(entry["variance"])
        values = np.where(own + m * m == square, own, values)
    result: Array = np.empty_like(entry["square_avg"])
    real(result)[...] = values
    return result


def kept(entry: Mapping[str, Any], rule: Rule) -> Entry:
    """The state of `entry` under the names that our own front ends keep for the rule."""
    make = {"v": variance if rule.centered else square_avg}
    arrays = {name: make[slot](entry) if slot in make else entry[name] for slot, name in rule.slots().items()}
    return {"step": entry["step"], **arrays, **averages(entry)}


def averages(entry: Mapping[str, Any]) -> Entry:
    """The average of the weights, where there is one."""
    return {SLOT: entry[SLOT]} if SLOT in entry else {}


def rescaled(buffer: Array, factor: float) -> Array:
    """The buffer times a factor, rounded once."""
    wide = np.result_type(buffer.dtype, np.float64)
    return (buffer.astype(wide) * factor).astype(buffer.dtype)


def needed(rule: Rule) -> tuple[tuple[str, ...], ...]:
    """What an entry must have: one of each of these."""
    first = (_NEVER_NEGATIVE, ("grad_avg",)) if rule.centered else (("square_avg",),)
    return (*first, ("momentum_buffer",)) if rule.momentum else first


def of_rule(entry: Mapping[str, Any], rule: Rule, averaging: float | None = None) -> Entry:
    """The entry without arrays that its group has no use for, such as the buffer of a momentum that is 0 now."""
    useful = {slot for names in needed(rule) for slot in names} | ({SLOT} if averaging is not None else set())
    return {slot: x for slot, x in entry.items() if slot == "step" or slot in useful}


def faults(name: str, entry: Mapping[str, Any], rule: Rule) -> Iterator[str]:
    """What no step could have left, in words."""
    step = entry["step"]
    if not (isinstance(step, int) and 0 <= step < 2**53):
        yield f"{name}: step={step!r}: expected a whole number of at least 0"
    for names in needed(rule):
        if not any(slot in entry for slot in names):
            yield f"{name}: no {' or '.join(names)}, which its rule needs"
    shapes = {slot: entry[slot].shape for slot in SLOTS if slot in entry}
    if len(set(shapes.values())) > 1:
        yield f"{name}: its arrays have different shapes: " + ", ".join(f"{slot} {s}" for slot, s in shapes.items())
    for slot in shapes:
        numbers = real(entry[slot])
        if numbers.dtype.kind != "f":
            yield f"{name}: {slot} has dtype {numbers.dtype}: expected floats"
            continue
        fine = ~np.isnan(numbers) if slot == SLOT else np.isfinite(numbers)  # that of an infinite weight is infinite
        if bad := numbers.size - np.count_nonzero(fine):
            yield f"{name}: {slot} has {bad} numbers that are not finite"
        if slot in _NEVER_NEGATIVE and (negative := np.count_nonzero(numbers < 0)):
            yield f"{name}: {slot} has {negative} negative numbers, the least {np.nanmin(numbers)}"
