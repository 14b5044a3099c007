r"""Row-wise state: one mean square for each row of a parameter, in the place of one for each entry.

    v_r <- beta v_r + (1 - beta) mean_j g_rj^2

j running over the entries of row r that take part in the step; with none, v_r stays. All else is as in `rmsprop.rule`,
with v_r for every entry of its row. Parameters of one dimension or none are as ever: an entry is its own row.
"""

from collections.abc import Sequence
from typing import Any

from rmsprop.rule import update as whole_update

#: What a mean square may belong to: an entry, or a row.
STATE_SHAPES = ("full", "row")


def shape_of(shape: Sequence[int], state_shape: str) -> tuple[int, ...]:
    """The shape of the mean squares of a parameter; it can be broadcast to the parameter's."""
    whole = state_shape == "full" or 0 in shape
    return tuple(shape) if whole else (*shape[:1], *(1,) * len(shape[1:]))


def square(p, g, v, sign, coupled, beta, rest, tiny, largest, skip, decay, where, mean):  # type: ignore[no-untyped-def]
    """The mean squares after a step.

    Args:
        p .. where: as for `rmsprop.rule.update`, but for the shape of v.
        mean: from (squares, used) to their mean over each row, in the shape of v: that of the entries used (None: all),
            summed in double; NaN where there are none.
    """
    g = sign * g
    if decay:
        g = g + coupled * p
    g = g * g
    average = mean(g, g <= largest if skip else None)
    v1 = beta * v + rest * average
    v1 = where(v1 < tiny, 0.0, v1)
    return where(average == average, v1, v) if skip else v1  # noqa: PLR0124


def update(mean, p, g, v, m, b, **given):  # type: ignore[no-untyped-def]
    """`rmsprop.rule.update` with row-wise state; `mean` as for `square`."""
    names = ("sign", "coupled", "beta", "rest", "tiny", "largest", "skip", "decay", "where")
    v1 = square(p, g, v, **{name: given[name] for name in names}, mean=mean)
    held: dict[str, Any] = {**given, "beta": 1.0, "rest": 0.0}  # v1 is what it is to be
    new = whole_update(p, g, v1, m, b, **held)
    return *new[:2], v1, *new[3:]
