r"""The definition of RMSprop: its options, its scalars, its arithmetic.

Everything else in this package is a faster or friendlier way to run the function `update` below.
NumPy, torch and JAX run this very text; the C++ kernel is a transcription of it, line by line.

Letters, here and in every kernel: `p` parameter, `g` gradient, `v` mean square (centered: variance),
`m` mean gradient, `b` momentum buffer, `u` the normalised gradient, `t` the step number, from 1.
"""

from dataclasses import dataclass, fields, replace
from math import isfinite

EPSILON_MODES = ("inside", "outside", "floor", "both")
MOMENTUM_FORMS = ("lr_outside", "lr_inside", "ema")
DECAY_MODES = ("coupled", "decoupled")
NONFINITE = ("propagate", "skip", "error")


_CHOICES = {
    "epsilon_mode": EPSILON_MODES,
    "momentum_form": MOMENTUM_FORMS,
    "decay_mode": DECAY_MODES,
    "nonfinite": NONFINITE,
}
_FLAGS = ("centered", "bias_correction", "nesterov", "maximize")
_BELOW_ONE = ("beta", "momentum")
_POSITIVE_OR_NONE = ("clip", "clip_weights")


class OptionError(ValueError):
    """An option outside its range: which one, its value, and what is allowed."""

    def __init__(self, name: str, value: object, allowed: str) -> None:
        super().__init__(f"{name}={value!r}: expected {allowed}")
        self.name, self.value, self.allowed = name, value, allowed


@dataclass(frozen=True, slots=True)
class Rule:
    r"""Every choice that makes one RMSprop differ from another, checked when it is made.

    The plain rule, which the defaults give, is

        v <- beta v + (1 - beta) g^2
        p <- p - lr g / sqrt(v + epsilon)

    Args:
        lr: step size, at least 0.
        beta: decay of the mean square, in [0, 1). torch: `alpha`, Keras: `rho`, optax: `decay`.
        epsilon: keeps the denominator from zero, at least 0.
        epsilon_mode: "inside" sqrt(v + e), "outside" sqrt(v) + e, "floor" max(sqrt(v), e),
            "both" sqrt(v + e) + e.
        initial_square: where v starts, at least 0 (0 nearly everywhere, 1 in TensorFlow 1).
        centered: divide by the standard deviation: v holds the variance, and m the mean gradient.
        variance_floor: centered only: the variance counts as at least `variance_floor * m^2`, which bounds
            the step where a gradient hardly varies. 0 in every exact dialect.
        bias_correction: divide v by 1 - beta^t (centered: after centering), so that the first step has
            length lr instead of lr / sqrt(1 - beta).
        momentum: decay of the momentum buffer, in [0, 1).
        momentum_form: "lr_outside" b = mu b + u, move lr b (torch); "lr_inside" b = mu b + lr u, move b
            (TensorFlow, Keras, optax); "ema" b = mu b + (1 - mu) u, move lr b (LaProp).
        nesterov: look ahead along the buffer; the root mean square divides the correction, not the jump
            (Hinton's lecture 6e, slide 30). Needs momentum above 0.
        weight_decay: at least 0.
        decay_mode: "coupled" adds weight_decay * p to the gradient; "decoupled" takes
            lr * weight_decay * p off the parameter.
        clip: limit every entry of u to plus or minus this; above 0, or None.
        clip_weights: limit every parameter to plus or minus this after the step (WGAN); above 0, or None.
        maximize: climb instead of descend.
        nonfinite: a gradient entry whose square is not finite (after coupled decay) is used as it is
            ("propagate"), leaves its parameter and state alone and is counted ("skip"), or stops the step
            before anything is written ("error").

    Raises:
        OptionError: (a ValueError) an argument outside its range; NaN and, for numbers, booleans are refused too.

    Example:
        >>> from rmsprop import Rule
        >>> Rule(lr=0.01, momentum=0.9).slots()
        {'v': 'square_avg', 'b': 'momentum_buffer'}
        >>> Rule(beta=1.5)
        Traceback (most recent call last):
        rmsprop.rule.OptionError: beta=1.5: expected a number in [0, 1)

    Source: T. Tieleman and G. Hinton, Neural Networks for Machine Learning, lecture 6e, 2012;
    centered form: A. Graves, arXiv:1308.0850, equations 38 to 45.
    """

    lr: float = 0.001
    beta: float = 0.9
    epsilon: float = 1e-7
    epsilon_mode: str = "inside"
    initial_square: float = 0.0
    centered: bool = False
    variance_floor: float = 0.0
    bias_correction: bool = False
    momentum: float = 0.0
    momentum_form: str = "lr_outside"
    nesterov: bool = False
    weight_decay: float = 0.0
    decay_mode: str = "coupled"
    clip: float | None = None
    clip_weights: float | None = None
    maximize: bool = False
    nonfinite: str = "propagate"

    def __post_init__(self) -> None:
        for name in OPTIONS:
            object.__setattr__(self, name, _checked(name, getattr(self, name)))
        if self.nesterov and self.momentum == 0:
            raise OptionError("nesterov", True, "False without momentum")
        if self.variance_floor > 0 and not self.centered:
            raise OptionError("variance_floor", self.variance_floor, "0 unless centered=True")

    def replace(self, **options: object) -> "Rule":
        """This rule with some options changed; the new values are checked."""
        return replace(self, **options)  # type: ignore[arg-type]

    def slots(self) -> dict[str, str]:
        """The state arrays this rule keeps: letter and public name, as torch has it ("variance" is our own)."""
        names = {"v": "variance" if self.centered else "square_avg", "m": "grad_avg", "b": "momentum_buffer"}
        return {s: names[s] for s in ("v", *"m" * self.centered, *"b" * (self.momentum > 0))}

    def starts(self) -> dict[str, float]:
        """What the state arrays begin with, by letter."""
        return {"v": self.initial_square, "m": 0.0, "b": 0.0}

    def flags(self) -> dict[str, bool]:
        """The choices `update` is specialised for: which arrays exist, and what need not be computed."""
        momentum, decay = self.momentum > 0, self.weight_decay > 0
        return {"centered": self.centered, "momentum": momentum, "skip": self.nonfinite == "skip", "decay": decay}

    def scalars(self, t: float, lr: float | None = None, grad_scale: float = 1.0, **numbers: float) -> dict[str, float]:
        """The coefficients of step t (from 1), in double: options become numbers, so `update` need not branch.

        "No clip" is infinity, "no epsilon here" is 0.

        Args:
            t: matters only with `bias_correction`.
            lr: takes the place of the rule's.
            grad_scale: what the gradients have been multiplied by (mixed precision); they are divided by it.
            **numbers: other options whose numbers take the place of the rule's; its `flags` stay.

        All may be arrays of one number, and then so are the scalars that depend on them.
        """
        if unknown := sorted(numbers.keys() - OPTIONS):
            raise TypeError(f"{unknown[0]!r} is not an option of Rule")
        now = numbers.get
        mu, mode, inf = now("momentum", self.momentum), self.epsilon_mode, float("inf")
        beta, epsilon = now("beta", self.beta), now("epsilon", self.epsilon)
        weight_decay = now("weight_decay", self.weight_decay)
        lr = self.lr if lr is None else lr
        fade = 1.0
        if self.bias_correction and self.momentum_form == "ema":
            fade = 1 - mu ** (t + 1 if self.nesterov else t)
        c1, scale = {"lr_outside": (1.0, lr), "lr_inside": (lr, 1.0), "ema": (1 - mu, lr / fade)}[self.momentum_form]
        c2, c3 = (0.0, lr) if self.momentum == 0 else (scale * mu, scale * c1) if self.nesterov else (scale, 0.0)
        coupled = self.decay_mode == "coupled"
        return {
            "sign": (-1.0 if self.maximize else 1.0) / grad_scale,
            "coupled": weight_decay if coupled else 0.0,
            "decoupled": 0.0 if coupled else lr * weight_decay,
            "beta": beta,
            "rest": 1 - beta,
            "correction": 1 / (1 - beta**t) if self.bias_correction else 1.0,
            "variance_floor": now("variance_floor", self.variance_floor),
            "e_in": epsilon if mode in ("inside", "both") else 0.0,
            "e_out": epsilon if mode in ("outside", "both") else 0.0,
            "floor": epsilon if mode == "floor" else 0.0,
            "clip": now("clip", self.clip or inf),
            "mu": mu,
            "c1": c1,
            "c2": c2,
            "c3": c3,
            "clip_weights": now("clip_weights", self.clip_weights or inf),
        }


#: The names of all options, in order.
OPTIONS = tuple(field.name for field in fields(Rule))


def _checked(name: str, value: object) -> object:
    """The value as float, bool or str, or a ValueError that names argument, value and range."""
    if name in _CHOICES:
        return expect(name, value, isinstance(value, str) and value in _CHOICES[name], f"one of {_CHOICES[name]}")
    is_bool = type(value).__name__ in ("bool", "bool_")
    if name in _FLAGS:
        expect(name, value, is_bool, "True or False")
        return bool(value)
    if value is None and name in _POSITIVE_OR_NONE:
        return None
    number = as_float(value)
    if name in _BELOW_ONE:
        fits, allowed = 0 <= number < 1, "a number in [0, 1)"
    elif name in _POSITIVE_OR_NONE:
        fits, allowed = number > 0 and isfinite(number), "a finite number above 0, or None"
    else:
        fits, allowed = number >= 0 and isfinite(number), "a finite number of at least 0"
    expect(name, value, fits, allowed)
    return number


def as_float(value: object) -> float:
    """The value as a float; NaN where it is not a single real number, so that every range refuses it."""
    kind = getattr(getattr(value, "dtype", None), "kind", "f")  # of a NumPy scalar or array: no booleans, no text
    single = hasattr(value, "__float__") and not getattr(value, "ndim", 0) and kind in "fiu"
    if not single or type(value).__name__ in ("bool", "MaskedConstant"):
        return float("nan")
    try:
        return float(value)  # type: ignore[arg-type]
    except OverflowError:
        return float("inf")


def expect(name: str, value: object, fits: bool, allowed: str) -> object:
    """The value, or an `OptionError`."""
    if not fits:
        raise OptionError(name, value, allowed)
    return value


def usable(p, g, sign, coupled, largest, decay):  # type: ignore[no-untyped-def]
    """The entries of a gradient that `nonfinite="error"` lets pass; arguments as for `update`."""
    g = sign * g
    if decay:
        g = g + coupled * p
    return g * g <= largest


def mean_square(v, m, correction, variance_floor, centered, where):  # type: ignore[no-untyped-def]
    """What goes under the root: v or the variance, corrected and floored; arguments as for `update`."""
    s = v * correction
    if centered:
        least = variance_floor * m * m
        s = where(s < least, least, s)
    return s


def denominator(s, e_in, e_out, floor, sqrt, where):  # type: ignore[no-untyped-def]
    """What the gradient is divided by, from a `mean_square`."""
    d = sqrt(s + e_in) + e_out
    return where(d < floor, floor, d)


def epsilon_dominates(s, e_in, e_out, floor):  # type: ignore[no-untyped-def]
    """The entries of a `mean_square` whose root is less than epsilon's part in the denominator."""
    return (s < e_in) | (s < e_out * e_out) | (s < floor * floor)


# fmt: off
def update(p, g, v, m, b, sign, coupled, decoupled, beta, rest, correction, variance_floor, e_in, e_out, floor, clip,  # type: ignore[no-untyped-def]
           mu, c1, c2, c3, clip_weights, tiny, largest, centered, momentum, skip, decay, sqrt, divide, where):
    r"""One step for one array, out of place: the mathematics of this package, stated once.

    Args:
        p, g, v, m, b: parameter, gradient, mean square, mean gradient, momentum buffer: arrays of one shape and
            one float dtype, of any library; all are read only. `m` and `b` may be anything where the rule has none.
        sign .. clip_weights: `Rule.scalars(t)`, as keywords.
        tiny, largest: the smallest normal and the largest finite number of the dtype.
        centered, momentum, skip, decay: `Rule.flags()`, as keywords; constants when traced or compiled.
        sqrt, divide, where: the library's functions of these names. `divide` is `operator.truediv` where `/` is
            rounded as IEEE 754 has it.

    Returns:
        (p, move, v, m, b, used): new parameter and state; `move`, what has been taken off the parameter, for
        libraries that want it; and `used`, the entries that took part (True for all of them, without `skip`).

    Comparisons are written so that NaN fails them and stays.
    """
    inf = float("inf")
    g = sign * g
    if decay:
        g = g + coupled * p
    if centered:
        # West's recursion: equals v - m^2 in exact arithmetic, and cannot go negative.
        gap = g - m
        m1 = m + rest * gap
        m1 = where((m1 < tiny) & (m1 > -tiny), 0.0, m1)
        v1 = beta * (v + rest * gap * gap)
    else:
        m1 = m
        v1 = beta * v + rest * g * g
    v1 = where(v1 < tiny, 0.0, v1)  # subnormal numbers cost up to 10x
    s = mean_square(v1, m1, correction, variance_floor, centered, where)
    d = denominator(s, e_in, e_out, floor, sqrt, where)
    # 0/0 counts as 0, whatever epsilon, and so does 0/NaN.
    u = divide(g, where((d == 0) | (g == 0) & (d != d), inf, d))  # noqa: PLR0124
    u = where(u > clip, clip, u)
    u = where(u < -clip, -clip, u)
    if momentum:
        b1 = mu * b + c1 * u
        b1 = where((b1 < tiny) & (b1 > -tiny), 0.0, b1)
        step = c2 * b1 + c3 * u
    else:
        b1 = b
        step = c3 * u
    if decay:
        shrink = decoupled * p
        p1 = p - shrink - step
        move = shrink + step
    else:
        p1 = p - step
        move = step
    p1 = where(p1 > clip_weights, clip_weights, p1)
    p1 = where(p1 < -clip_weights, -clip_weights, p1)
    if skip:
        used = g * g <= largest
        p1 = where(used, p1, p)
        move = where(used, move, 0.0)
        v1 = where(used, v1, v)
        if centered:
            m1 = where(used, m1, m)
        if momentum:
            b1 = where(used, b1, b)
    else:
        used = True
    return p1, move, v1, m1, b1, used
# fmt: on
