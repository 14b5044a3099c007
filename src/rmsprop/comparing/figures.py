"""How numbers and lists of names are written, in tables, sentences and the report alike."""

import math
from collections.abc import Sequence

MOST_NAMES = 4


def loss(x: float | None) -> str:
    """Four digits; "diverged" of infinity, "–" of nothing."""
    if x is None:
        return "–"
    return "diverged" if math.isinf(x) else f"{x:#.4g}".rstrip(".")


def spread(x: float | None) -> str:
    """Two digits; "–" of nothing."""
    return "–" if x is None else f"{x:#.2g}".rstrip(".")


def times(x: float | None) -> str:
    """Three digits of a ratio; "diverged" of infinity, "–" of nothing."""
    if x is None:
        return "–"
    return "diverged" if math.isinf(x) else f"{x:#.3g}".rstrip(".") if x < 1000 else f"{x:.1e}"


def lr(x: float) -> str:
    """Three digits."""
    return f"{x:.3g}"


def percent(part: float) -> str:
    """Two digits: "3.1%" of 0.0312, "26%" of 0.261; times instead where it is tenfold or more."""
    if part >= 9:
        return f"{part + 1:.3g} times"
    return f"{100 * part:.0f}%" if abs(part) >= 0.0995 else f"{100 * part:.1f}%"


def chance(p: float) -> str:
    """A p value with its sign: "p = 0.032"."""
    return "p < 0.001" if p < 0.001 else f"p = {p:.2g}"


def names(found: Sequence[str]) -> str:
    """The names in a row of words: "a, b and c". Of many the first ones and how many others there are."""
    shown = list(found)
    if len(shown) > MOST_NAMES:
        shown = [*shown[: MOST_NAMES - 1], f"{len(shown) - MOST_NAMES + 1} others"]
    return " and ".join(filter(None, [", ".join(shown[:-1]), *shown[-1:]]))
