r"""The definition of Rprop, RMSprop's ancestor, in the form of `rule.py`: its options, its scalars, its arithmetic.

Letters: `p` parameter and `g` gradient as there; `s` the step size of each weight, `q` its previous gradient. Kernels
and front ends keep `s` and `q` in the places where RMSprop has `v` and `m`.
"""

from dataclasses import dataclass, fields, replace
from math import isfinite
from typing import Any, ClassVar

from rmsprop.rule import OptionError, as_float, expect

VARIANTS = ("rprop-", "rprop+", "irprop-", "irprop+")
DIALECTS = ("torch", "optax")


@dataclass(frozen=True, slots=True)
class RpropRule:
    r"""Every choice that makes one Rprop differ from another, checked when it is made.

    Rprop looks at the sign of a gradient only. Each weight has a step size s of its own, which grows while the sign
    stays and shrinks when it changes (`g` is this step's gradient, `q` the one before, from 0 on):

        s <- min(grow s, most)     if g q > 0
        s <- max(shrink s, least)  if g q < 0
        p <- p - sign(g) s
        q <- g

    What happens where g q < 0, for then the last step went past a minimum, is the variant:

        rprop-    as above: step into the new direction, with the smaller step size
        rprop+    take the last step back: p <- p + sign(q) (s before it shrank); q <- 0
        irprop-   stay: p <- p; q <- 0
        irprop+   as rprop+ if the loss has risen since the last step, as irprop- if not

    With q = 0 the step after that neither grows nor shrinks s.

    Args:
        lr: the first step size of every weight, at least 0.
        etas: (shrink, grow), with 0 < shrink < 1 < grow.
        step_sizes: (least, most) step size, with 0 <= least <= most; the largest may be infinite.
        variant: "rprop-", "rprop+", "irprop-" (torch's and optax's) or "irprop+".
        dialect: "torch" is the above; s is limited at every step, and a NaN gradient counts as 0. "optax" is optax
            0.2.8 to the last bit, for variant "irprop-" alone: it keeps q = sign(g) s and takes that off p at the
            *next* step, unless the sign has changed by then (its pull request 1725 calls this a fault); s is limited
            only where it has just grown or shrunk; and a NaN gradient reaches its parameter.
        maximize: climb instead of descend.

    Raises:
        OptionError: (a ValueError) an argument outside its range.

    Example:
        >>> from rmsprop.rprop import RpropRule
        >>> RpropRule(variant="rprop+").flags()
        {'forget': True, 'back': True, 'optax': False}
        >>> RpropRule(etas=(1.2, 0.5))
        Traceback (most recent call last):
        rmsprop.rule.OptionError: etas=(1.2, 0.5): expected two numbers, 0 < shrink < 1 < grow

    Source: M. Riedmiller and H. Braun, A direct adaptive method for faster backpropagation learning: the RPROP
    algorithm, ICNN 1993 (rprop+); C. Igel and M. Hüsken, Empirical evaluation of the improved Rprop learning
    algorithms, Neurocomputing 50, 2003 (all four); pytorch 2.13, torch/optim/rprop.py; optax 0.2.8,
    optax/_src/transform.py.
    """

    lr: float = 0.01
    etas: tuple[float, float] = (0.5, 1.2)
    step_sizes: tuple[float, float] = (1e-6, 50.0)
    variant: str = "irprop-"
    dialect: str = "torch"
    maximize: bool = False

    #: What engines ask of a `Rule`: here no entry of a gradient is counted or refused, and no state is a variance.
    nonfinite: ClassVar[str] = "propagate"
    centered: ClassVar[bool] = False

    def __post_init__(self) -> None:
        lr = as_float(self.lr)
        expect("lr", self.lr, lr >= 0 and isfinite(lr), "a finite number of at least 0")
        shrink, grow = _pair("etas", self.etas, "0 < shrink < 1 < grow")
        expect("etas", self.etas, 0 < shrink < 1 < grow and isfinite(grow), "two numbers, 0 < shrink < 1 < grow")
        least, most = _pair("step_sizes", self.step_sizes, "0 <= least <= most")
        fits = 0 <= least <= most and isfinite(least)
        expect("step_sizes", self.step_sizes, fits, "two numbers, 0 <= least <= most")
        expect("variant", self.variant, self.variant in VARIANTS, f"one of {VARIANTS}")
        expect("dialect", self.dialect, self.dialect in DIALECTS, f"one of {DIALECTS}")
        alone = self.dialect != "optax" or self.variant == "irprop-"
        expect("variant", self.variant, alone, "'irprop-' with dialect='optax', which has no other")
        is_bool = type(self.maximize).__name__ in ("bool", "bool_")
        expect("maximize", self.maximize, is_bool, "True or False")
        plain = {"lr": lr, "etas": (shrink, grow), "step_sizes": (least, most), "maximize": bool(self.maximize)}
        for name, value in plain.items():
            object.__setattr__(self, name, value)

    def replace(self, **options: object) -> "RpropRule":
        """This rule with some options changed; the new values are checked."""
        return replace(self, **options)  # type: ignore[arg-type]

    def after(self, loss: float, previous: float | None) -> "RpropRule":
        """The rule of one step, where the loss is known: "irprop+" becomes "rprop+" or "irprop-", any other stays.

        Args:
            loss: at the parameters as they are (the objective, with `maximize`).
            previous: what it was one step before; None at the first.
        """
        if self.variant != "irprop+":
            return self
        rose = previous is not None and (loss < previous if self.maximize else loss > previous)
        return self.replace(variant="rprop+" if rose else "irprop-")

    def slots(self) -> dict[str, str]:
        """The state arrays: the place each has in the kernels' tables, and its public name, as torch has it."""
        return {"v": "step_size", "m": "prev"}

    def starts(self) -> dict[str, float]:
        """What the state arrays begin with."""
        return {"v": self.lr, "m": 0.0}

    def flags(self) -> dict[str, bool]:
        """The choices `update` is specialised for."""
        if self.variant == "irprop+":
            raise OptionError("variant", self.variant, "another one here: `after` says what it is at a given loss")
        return {"forget": self.variant != "rprop-", "back": self.variant == "rprop+", "optax": self.dialect == "optax"}

    def scalars(self, t: float = 1, lr: float | None = None, grad_scale: float = 1.0) -> dict[str, float]:
        """The coefficients of a step, which are the same at every step number `t` and `lr`.

        Args:
            t, lr: as for `Rule.scalars`; neither matters here.
            grad_scale: what the gradients have been multiplied by (mixed precision); they are divided by it.
        """
        names = ("sign", "shrink", "grow", "least", "most")
        return dict(
            zip(names, ((-1.0 if self.maximize else 1.0) / grad_scale, *self.etas, *self.step_sizes), strict=True)
        )


#: The names of all options, in order.
OPTIONS = tuple(field.name for field in fields(RpropRule))


def _pair(name: str, value: Any, allowed: str) -> tuple[float, float]:
    expect(name, value, isinstance(value, (tuple, list)) and len(value) == 2, f"two numbers, {allowed}")
    return as_float(value[0]), as_float(value[1])


def update(p, g, s, q, sign, shrink, grow, least, most, forget, back, optax, where):  # type: ignore[no-untyped-def]
    r"""One step for one array, out of place: the mathematics of Rprop, stated once.

    Args:
        p, g, s, q: parameter, gradient, step size, previous gradient: arrays of one shape and one float dtype, of any
            library; all are read only.
        sign .. most: `RpropRule.scalars()`, as keywords.
        forget, back, optax: `RpropRule.flags()`, as keywords; constants when traced or compiled, but for `back`, which
            may be an array of one truth value.
        where: the library's function of this name.

    Returns:
        (p, move, s, q): new parameter, what has been taken off it, and new state.

    Comparisons are written so that NaN fails them and stays.
    """
    g = sign * g
    agree = g * q
    s1 = where(agree > 0, s * grow, s * shrink if optax else where(agree < 0, s * shrink, s))
    s1 = where(s1 < least, least, s1)
    s1 = where(s1 > most, most, s1)
    if optax:
        s1 = where(agree == 0, s, s1)
    turned = agree < 0
    if forget:
        g = where(turned, 0.0, g)
    step = where(g > 0, s1, where(g < 0, -s1, g if optax else 0.0))
    if optax:
        move, q1 = where(turned, 0.0, q), step
    elif forget:
        move, q1 = where(turned & back, where(q > 0, -s, s), step), g  # the last step was sign(q) s
    else:
        move, q1 = step, g
    return p - move, move, s1, q1
