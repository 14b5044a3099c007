r"""Steps that rows of a table have missed: what zero gradients would have done to them, made up for at once.

A dense step with g = 0 leaves u = 0, so that with F = beta^k after k such steps

    v <- F v                                        centered:  v <- F (v + (1 - F) m^2),   m <- F m
    b <- mu^k b
    p <- R p - T b        R = prod (1 - decoupled_j),   T = sum_j c2_j mu^(j-s) prod_{i>j} (1 - decoupled_i)

for a row that step s was the last to bring up to date, j and i running over the steps it has missed (the scalars are
those of `Rule.scalars`). Only R and T depend on what lr has been in the meantime, and `Missed` keeps them for every s:
with P_n the product of all 1 - decoupled_j up to n, R = P_n / P_s and T = P_n U_s, where U_s grows by
c2_n mu^(n-s) / P_n at step n, which is nothing once mu^(n-s) is.
"""

from math import ceil, log

import numpy as np
from numpy.typing import NDArray

from rmsprop.rule import Rule

#: Below this, what a row's momentum still adds cannot be seen in float64, whatever lr does meanwhile.
_NOTHING = 2.0**-80
#: A history is ended, by bringing every row up to date, after so many steps or so much decay.
_STEPS, _LEAST = 1 << 16, 1e-150


def moves(rule: Rule) -> bool:
    """Whether rows move while they are not touched."""
    return rule.momentum > 0 or rule.weight_decay > 0


def refusal(rule: Rule) -> str:
    """Why missed steps of a rule cannot be made up for, or nothing."""
    if rule.weight_decay > 0 and rule.decay_mode == "coupled":
        return (
            f"weight_decay={rule.weight_decay} is coupled, and changes rows that no gradient touches in a way that has "
            "no closed form; expected decoupled decay, a dense gradient, or sparse='lazy' (only touched rows decay)"
        )
    if rule.weight_decay * rule.lr >= 1:
        return f"lr * weight_decay = {rule.lr * rule.weight_decay:g}: expected less than 1, or a dense gradient"
    if rule.clip_weights is not None:
        return f"clip_weights={rule.clip_weights} may limit rows that no gradient touches; expected a dense gradient"
    return ""


class Missed:
    """The steps since all rows of a table were up to date.

    Args:
        rule: the rule of these steps, of which lr may change from step to step.
        start: the number of the last step that all rows have taken.

    Attributes:
        start: as given.
        length: how many steps there have been since.
        retained, pull: P and U of the steps from `start` on, float64; None where rows move only if they are touched.
    """

    def __init__(self, rule: Rule, start: int) -> None:
        self.rule, self.start, self.length = rule, start, 0
        self.retained: NDArray[np.float64] | None = np.ones(64) if moves(rule) else None
        self.pull: NDArray[np.float64] | None = np.zeros(64) if moves(rule) else None
        window = min(ceil(log(_NOTHING) / log(rule.momentum)), _STEPS) if rule.momentum > 0 else 0
        self._weights = rule.momentum ** np.arange(window, 0, -1.0)

    def fits(self, rule: Rule) -> bool:
        """Whether the next step may have this rule; otherwise all rows must be brought up to date first."""
        if self.retained is not None and (self.length >= _STEPS or self.retained[self.length] < _LEAST):
            return False
        same = all(getattr(self.rule, name) == getattr(rule, name) for name in ("beta", "momentum", "centered"))
        return same and (self.rule.weight_decay > 0) == (rule.weight_decay > 0)

    def add(self, scalars: dict[str, float]) -> None:
        """One step more, with these scalars."""
        self.length = n = self.length + 1
        if self.retained is None or self.pull is None:
            return
        if n == len(self.retained):
            self.retained = np.concatenate([self.retained, np.ones(n)])
            self.pull = np.concatenate([self.pull, np.zeros(n)])
        self.retained[n] = self.retained[n - 1] * (1 - scalars["decoupled"])
        window = min(n, len(self._weights))
        self.pull[n - window : n] += scalars["c2"] / self.retained[n] * self._weights[len(self._weights) - window :]

    def check(self, name: object, rows: NDArray[np.integer], last: NDArray[np.integer]) -> None:
        """Raises a ValueError unless these rows of the table of that name are up to date."""
        now = self.start + self.length
        for row, step in zip(rows, last, strict=True):
            if step < now:
                raise ValueError(
                    f"{name}: row {row} moves while it is not touched, and was last brought up to date at step {step} "
                    f"of {now}: attach() the embedding, or call catch_up() for rows before they are read"
                )

    def factors(self, last: NDArray[np.integer]) -> dict[str, NDArray[np.floating]]:
        """What `catch_up` takes, for rows that these steps were the last to bring up to date; in double."""
        s, n = np.asarray(last, np.int64) - self.start, self.length
        fade, none = np.power(self.rule.beta, n - s), np.zeros(s.shape)
        return {
            "fade": fade,
            "rest": 1 - fade,
            "kept": np.power(self.rule.momentum, n - s),
            "lost": none if self.retained is None else 1 - self.retained[n] / self.retained[s],
            "moved": none if self.retained is None or self.pull is None else self.retained[n] * self.pull[s],
        }


def catch_up(p, v, m, b, fade, rest, kept, lost, moved, tiny, centered, momentum, decay, where):  # type: ignore[no-untyped-def]
    """The steps that rows have missed, out of place; arrays of any library.

    Args:
        p, v, m, b: as for `rmsprop.rule.update`.
        fade .. moved: `Missed.factors`, as keywords, shaped to be broadcast over the rows.
        tiny, centered, momentum, decay, where: as for `rmsprop.rule.update`.

    Returns:
        (p, v, m, b)
    """
    if centered:
        v = fade * (v + rest * m * m)  # as `update` has it: after one step the bits are the same
        m = m - rest * m
        m = where((m < tiny) & (m > -tiny), 0.0, m)
    else:
        v = fade * v
    v = where(v < tiny, 0.0, v)
    if decay:
        p = p - lost * p
    if momentum:
        p = p - moved * b
        b = kept * b
        b = where((b < tiny) & (b > -tiny), 0.0, b)
    return p, v, m, b
