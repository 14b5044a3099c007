"""How two configurations of RMSprop differ: option by option, and in the size of their first steps."""

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from math import inf
from typing import Any, NamedTuple

import numpy as np

from rmsprop.dialects import DIALECTS
from rmsprop.numpy import RMSprop
from rmsprop.recipes import RECIPES
from rmsprop.rule import OPTIONS, Rule

SCALES = (1e-6, 1e-3, 1.0, 1e3)
STEPS = (1, 10, 100)
_WEIGHTS, _SEED = 512, 0
_NAMED = {name: row.rule for name, row in DIALECTS.items()} | {name: row.rule for name, row in RECIPES.items()}
#: What an option does, for the line that reports a difference in it.
_MEANING = {
    "lr": "the length of every step",
    "beta": "the mean square remembers about 1 / (1 - beta) gradients",
    "epsilon": "gradients well below it (inside: below its root) make smaller steps",
    "epsilon_mode": "inside sqrt(v + e), outside sqrt(v) + e, floor max(sqrt(v), e), both sqrt(v + e) + e",
    "initial_square": "where the mean square starts: the larger, the shorter the first steps",
    "centered": "divide by the standard deviation, without the mean: longer steps where the gradient is steady",
    "variance_floor": "the variance counts as at least this times the squared mean",
    "bias_correction": "without it the first step has length lr / sqrt(1 - beta) where v starts at 0",
    "momentum": "how much of its last step a weight repeats; 1 / (1 - momentum) times as far in all, but for ema",
    "momentum_form": "lr_outside: a new lr holds for old steps too; lr_inside: they run on; ema: keeps lr's meaning",
    "nesterov": "look ahead along the buffer",
    "weight_decay": "shrinks weights towards 0",
    "decay_mode": "coupled: part of the gradient, and divided like it; decoupled: lr * weight_decay off each weight",
    "clip": "limit of each entry of gradient / root",
    "clip_weights": "limit of each weight after the step",
    "maximize": "every step goes the other way",
    "nonfinite": "what an infinite or NaN gradient entry does",
}
#: When an option matters at all, where it does not always.
_MATTERS: dict[str, Callable[[Rule], bool]] = {
    "epsilon_mode": lambda rule: rule.epsilon > 0,
    "initial_square": lambda rule: rule.beta > 0,
    "bias_correction": lambda rule: rule.beta > 0 or (rule.momentum > 0 and rule.momentum_form == "ema"),
    "momentum_form": lambda rule: rule.momentum > 0,
    "decay_mode": lambda rule: rule.weight_decay > 0,
}


class Difference(NamedTuple):
    """An option in which two rules differ: its name, both values, what it does."""

    option: str
    a: object
    b: object
    meaning: str


class Move(NamedTuple):
    """How far two rules move weights in one step.

    Attributes:
        scale: root mean square of the gradients.
        step: number of the step, from 1; after a drop of lr, counted from there.
        dropped: whether lr has been divided by 10, after the last of `STEPS`.
        a, b: root mean square of the moves.
        ratio: a / b; 1 where both are 0.
    """

    scale: float
    step: int
    dropped: bool
    a: float
    b: float
    ratio: float


@dataclass(frozen=True)
class Explanation:
    """What `explain` found; `print` shows it.

    Attributes:
        names: what the two are called.
        rules: the two rules.
        differences: the options that make a difference, in the order of `Rule`.
        moves: the first steps of both, for gradients of every one of `SCALES`.
    """

    names: tuple[str, str]
    rules: tuple[Rule, Rule]
    differences: tuple[Difference, ...]
    moves: tuple[Move, ...]

    def __str__(self) -> str:
        a, b = self.names
        if not self.differences:
            return f"{a} and {b} are the same rule."
        rows = [("option", a, b, ""), *((d.option, _shown(d.a), _shown(d.b), d.meaning) for d in self.differences)]
        columns = list(dict.fromkeys((move.dropped, move.step) for move in self.moves))
        ratios = {(move.scale, move.dropped, move.step): f"{move.ratio:.3g}" for move in self.moves}
        table = [("gradients", *(f"lr/10, step {t}" if dropped else f"step {t}" for dropped, t in columns))]
        table += [(f"{scale:g}", *(ratios[scale, *column] for column in columns)) for scale in SCALES]
        return "\n".join([*_aligned(rows), "", f"length of the steps of {a} / {b}:", *_aligned(table)])


def explain(a: Any, b: Any) -> Explanation:
    """How two configurations differ, and by how much their first steps do.

    Options that cannot matter (the place of an epsilon of 0, the form of a momentum of 0) are passed over. Both rules
    then step the same 512 weights of about 0.05 through the same gradients, half of it steady and half noise, of four
    sizes, in float64; where both have momentum and its form differs, also after lr has dropped to a tenth.

    Args:
        a, b: each a `Rule`; the name of a dialect or recipe; a recipe; an optimizer, `rmsprop.RMSprop`,
            `rmsprop.torch.RMSprop` or `torch.optim.RMSprop`; or one of a torch optimizer's `param_groups`.

    Raises:
        ValueError: an unknown name, or an optimizer whose groups have different rules.
        TypeError: anything else.

    Example:
        >>> import rmsprop
        >>> found = rmsprop.explain("tf1", "keras")
        >>> [(d.option, d.a, d.b) for d in found.differences]
        [('epsilon', 1e-10, 1e-07), ('initial_square', 1.0, 0.0)]
        >>> first = found.moves[0]
        >>> first.scale, first.step, round(first.ratio, 4)
        (1e-06, 1, 0.0003)
    """
    rules = _rule("a", a), _rule("b", b)
    names = _name(a, "a"), _name(b, "b")
    if names[0] == names[1]:
        names = f"{names[0]} (a)", f"{names[1]} (b)"
    return Explanation(names, rules, tuple(_differences(*rules)), tuple(_moves(*rules)))


def _rule(argument: str, x: Any) -> Rule:
    if isinstance(x, str):
        if x not in _NAMED:
            close = get_close_matches(x, _NAMED, 1)
            hint = f" (did you mean {close[0]!r}?)" if close else ""
            raise ValueError(f"{argument}={x!r}: expected the name of a dialect or recipe: {', '.join(_NAMED)}{hint}")
        return _NAMED[x]
    rule = getattr(x, "rule", x)
    if isinstance(rule, Rule):
        return rule
    if isinstance(x, Mapping) and {"params", "alpha"} <= x.keys():
        return _group_rule(x)
    if _is_torch_rmsprop(x):
        rules = list(dict.fromkeys(_group_rule(group) for group in x.param_groups))
        if len(rules) > 1:
            options = ", ".join(d.option for rule in rules[1:] for d in _differences(rules[0], rule))
            raise ValueError(f"{argument}: its groups differ in {options}; expected one of its param_groups instead")
        return rules[0]
    allowed = "a Rule, a name, a recipe, an RMSprop of rmsprop or torch.optim, or one of its param_groups"
    raise TypeError(f"{argument}: expected {allowed}, got {type(x).__name__}")


def _is_torch_rmsprop(x: object) -> bool:
    if "torch" not in sys.modules:  # then x cannot be one, and torch takes seconds to import
        return False
    from torch.optim import RMSprop as Theirs

    from rmsprop.torch import RMSprop as Ours

    return isinstance(x, (Theirs, Ours))


def _group_rule(group: Mapping[str, Any]) -> Rule:
    from rmsprop.torch.options import ENGINE, VALUES, defaults, known

    return known(VALUES({**defaults("torch"), **ENGINE, **group})).rule


def _name(x: Any, fallback: str) -> str:
    if isinstance(x, str):
        return x
    for name, rule in _NAMED.items():
        if rule is getattr(x, "rule", x):
            return name
    if isinstance(x, (Rule, Mapping)):
        return fallback
    return f"{type(x).__module__.partition('.')[0]}'s {type(x).__name__}"


def _differences(a: Rule, b: Rule) -> list[Difference]:
    found = []
    for option in OPTIONS:
        values = getattr(a, option), getattr(b, option)
        matters = _MATTERS.get(option)
        if values[0] != values[1] and (matters is None or (matters(a) and matters(b))):
            found.append(Difference(option, *values, _MEANING[option]))
    return found


def _moves(a: Rule, b: Rule) -> list[Move]:
    drops = a.momentum > 0 and b.momentum > 0 and a.momentum_form != b.momentum_form
    lengths = [_lengths(rule, drops) for rule in (a, b)]
    moves = []
    for row, scale in enumerate(SCALES):
        for (dropped, step), of_a in lengths[0].items():
            x, y = float(of_a[row]), float(lengths[1][dropped, step][row])
            moves.append(Move(scale, step, dropped, x, y, x / y if y else inf if x else 1.0))
    return moves


def _lengths(rule: Rule, drops: bool) -> dict[tuple[bool, int], Any]:
    """For each step that is shown, the root mean square of its moves, one for each of `SCALES`."""
    rng = np.random.default_rng(_SEED)
    p = 0.05 * rng.normal(size=(len(SCALES), _WEIGHTS))
    scales = np.array(SCALES)[:, None]
    optimizer = RMSprop([p], rule.replace(nonfinite="propagate"))
    lengths = {}
    for dropped in (False, True)[: 1 + drops]:
        if dropped:
            optimizer.lr = rule.lr / 10
        for step in range(1, max(STEPS) + 1):
            before = p.copy()
            optimizer.step([scales * (1 + rng.normal(size=_WEIGHTS)) / np.sqrt(2)])
            if step in STEPS:
                lengths[dropped, step] = np.sqrt(np.square(p - before).mean(1))
    return lengths


def _shown(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _aligned(rows: Sequence[tuple[str, ...]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
