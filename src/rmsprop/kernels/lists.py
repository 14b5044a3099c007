"""`rule.update` over lists of torch tensors, on any device: torch's foreach functions under the operators.

One text of the rule serves arrays and lists alike, because a list of tensors is dressed up as one array here.
"""

from collections.abc import Callable
from operator import itemgetter, truediv
from typing import Any, NamedTuple

import torch
from torch import Tensor

from rmsprop import averaging, rowwise, rprop
from rmsprop.kernels import rounding
from rmsprop.kernels.cpu import Sums
from rmsprop.rprop import RpropRule
from rmsprop.rule import Rule, denominator, epsilon_dominates, mean_square, update, usable


class _Each:
    """A list of tensors that adds, multiplies and compares like one array."""

    __slots__ = ("of",)

    def __init__(self, of: list[Tensor]) -> None:
        self.of = of


def _operator(foreach: Any) -> Callable[[_Each, Any], _Each]:
    return lambda a, b: _Each(foreach(a.of, b.of if isinstance(b, _Each) else b))


def _comparison(name: str) -> Callable[[_Each, Any], _Each]:
    def compare(a: _Each, b: Any) -> _Each:
        others = b.of if isinstance(b, _Each) else [b] * len(a.of)
        return _Each([getattr(x, name)(y) for x, y in zip(a.of, others, strict=True)])

    return compare


_OPERATORS = {
    "__add__": _operator(torch._foreach_add),
    "__radd__": _operator(torch._foreach_add),
    "__sub__": _operator(torch._foreach_sub),
    "__mul__": _operator(torch._foreach_mul),
    "__rmul__": _operator(torch._foreach_mul),
    "__truediv__": _operator(torch._foreach_div),
    "__neg__": lambda a: _Each(list(torch._foreach_neg(a.of))),
    **{name: _comparison(name) for name in ("__lt__", "__le__", "__gt__", "__eq__", "__ne__", "__and__", "__or__")},
}
for _name, _function in _OPERATORS.items():
    setattr(_Each, _name, _function)


def _where(condition: _Each, a: Any, b: Any) -> _Each:
    first, second = (x.of if isinstance(x, _Each) else [x] * len(condition.of) for x in (a, b))
    return _Each([torch.where(c, x, y) for c, x, y in zip(condition.of, first, second, strict=True)])


def _sqrt(a: _Each) -> _Each:
    return _Each(list(torch._foreach_sqrt(a.of)))


def _smooth_sqrt(x: Tensor) -> Tensor:
    """The root with a derivative of 0 at 0, where the true one, infinite, would turn what is multiplied by 0 to NaN."""
    positive = x > 0
    return torch.where(positive, torch.sqrt(torch.where(positive, x, 1.0)), x)


class Call(NamedTuple):
    """What the tensors of one call share.

    Attributes:
        rule: the rule.
        t: the number of the step, from 1; a tensor of one number where a graph is captured.
        lr: in the place of the rule's, where it is a tensor.
        scale: what the gradients have been multiplied by.
        seed: of the random rounding of bfloat16.
        stochastic: round bfloat16 parameters at random.
        differentiable: autograd follows the step.
        gamma: of an average of the parameters, or None.
    """

    rule: Rule | RpropRule
    t: Any
    lr: Any = None
    scale: Any = 1.0
    seed: int = 0
    stochastic: bool = False
    differentiable: bool = False
    gamma: float | None = None

    def scalars(self) -> dict[str, Any]:
        """Those of `Rule.scalars`."""
        return self.rule.scalars(self.t, self.lr, self.scale)


def arithmetic(p: Tensor, state: Tensor | None = None) -> torch.dtype:
    """The dtype a step computes in: at least float32, and that of the state."""
    dtype = torch.promote_types(p.dtype, torch.float32)
    return dtype if state is None else torch.promote_types(dtype, state.dtype)


def step(
    call: Call, params: list[Tensor], grads: list[Tensor], states: list[dict[str, Any]], offsets: list[int] | None
) -> int:
    """One step for tensors of one dtype and device, at one step number; the number of entries skipped.

    Parameters and state are written in place, once all new values are there, for memory may be short: temporaries of
    several times the parameters' size are made. Several tensors go through torch's foreach functions, one alone
    through the ordinary ones. Where the first has one mean square for each row, all have.

    Args:
        call: what they share.
        params, grads, states: lists of equal length; a gradient may have another dtype than its parameter.
        offsets: index of each parameter's first element, for random numbers; None where there are none.
    """
    rule, slots = call.rule, call.rule.slots()
    dtype = arithmetic(params[0], states[0][slots["v"]])
    finfo = torch.finfo(dtype)
    several = len(params) > 1
    wrap: Any = _Each if several else itemgetter(0)
    copy = call.differentiable  # what autograd keeps must not be written to
    state = {letter: wrap([s[name].to(dtype, copy=copy) for s in states]) for letter, name in slots.items()}
    p, g = (wrap([x.to(dtype, copy=copy) for x in tensors]) for tensors in (params, grads))
    given: dict[str, Any] = {**call.scalars(), **rule.flags(), "where": _where if several else torch.where}
    if isinstance(rule, RpropRule):
        new = (*rprop.update(p, g, state["v"], state["m"], **given), None, True)
    else:
        given |= {"tiny": finfo.tiny, "largest": finfo.max, "divide": truediv}
        given["sqrt"] = _sqrt if several else _smooth_sqrt if call.differentiable else torch.sqrt
        if states[0][slots["v"]].shape != params[0].shape:
            new = rowwise.update(_row_mean, p, g, *(state.get(s, 0.0) for s in "vmb"), **given)
        else:
            new = update(p, g, *(state.get(s, 0.0) for s in "vmb"), **given)
    targets = {"p": params} | {letter: [s[name] for s in states] for letter, name in slots.items()}
    values = {
        letter: _rounded(call, letter, targets[letter], value, offsets, params)
        for letter, value in zip("pvmb", (new[0], *new[2:5]), strict=True)
        if letter in targets
    }
    if call.gamma is not None:
        averages = targets["a"] = [s[averaging.SLOT] for s in states]
        stored = [x.to(p.dtype).to(dtype) for x, p in zip(values["p"], params, strict=True)]
        a = wrap([x.to(dtype) for x in averages])
        average = averaging.update(a, wrap(stored), averaging.rate(call.t, call.gamma), finfo.tiny, given["where"])
        values["a"] = _rounded(call, "a", averages, average, offsets, params)
    skipped = 0
    if rule.nonfinite == "skip":
        skipped = sum(int((~used).sum()) for used in (new[5].of if several else [new[5]]))
    for letter, kept in targets.items():
        if several:
            torch._foreach_copy_(kept, values[letter])
        else:
            kept[0].copy_(values[letter][0])
    return skipped


def _rounded(
    call: Call, letter: str, targets: list[Tensor], value: Any, offsets: list[int] | None, params: list[Tensor]
) -> list[Tensor]:
    """New values, one of several tensors or an `_Each`, as the targets are to have them."""
    values: list[Tensor] = value.of if isinstance(value, _Each) else [value]
    if offsets is None or (letter == "p" and not call.stochastic):
        return values
    return [_dithered(call, letter, *row) for row in zip(targets, values, offsets, params, strict=True)]


def _row_mean(squares: Any, used: Any) -> Any:
    """The `mean` of `rowwise.square`."""
    if isinstance(squares, _Each):
        each = zip(squares.of, used.of if used is not None else [None] * len(squares.of), strict=True)
        return _Each([_row_mean(*row) for row in each])
    axes = tuple(range(1, squares.ndim))
    kept = squares if used is None else torch.where(used, squares, 0.0)
    exact = torch.float32 if squares.device.type == "mps" else torch.float64  # which has no other
    count = squares[:1].numel() if used is None else used.sum(axes, keepdim=True)
    return (kept.sum(axes, keepdim=True, dtype=exact) / count).to(squares.dtype)


def _dithered(call: Call, letter: str, target: Tensor, value: Tensor, offset: int, p: Tensor) -> Tensor:
    """The value as it is to be stored: rounded at random where the target is bfloat16."""
    if target.dtype != torch.bfloat16:
        return value
    width = p.numel() // max(value.numel(), 1)  # more than 1 where the value is one of a row
    index = offset + width * torch.arange(value.numel(), device=value.device).view(value.shape)
    return rounding.dithered(value, rounding.bits(call.seed, call.t, index)["pvmba".index(letter)])


def is_usable(call: Call, p: Tensor, g: Tensor) -> bool:
    """Whether `nonfinite="error"` lets this gradient pass."""
    return bool(_usable(call, p, g).all())


def _usable(call: Call, p: Tensor, g: Tensor) -> Tensor:
    k, dtype = call.scalars(), arithmetic(p)
    decay = call.rule.flags()["decay"]
    passing: Tensor = usable(p.to(dtype), g.to(dtype), k["sign"], k["coupled"], torch.finfo(dtype).max, decay)
    return passing


def denominators(call: Call, state: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """The mean square under the root, and what the gradient is divided by, as the state has them now."""
    k, slots = call.scalars(), call.rule.slots()
    v = state[slots["v"]]
    v = v.to(arithmetic(v))
    m = state[slots["m"]].to(v.dtype) if "m" in slots else 0.0
    s = mean_square(v, m, k["correction"], k["variance_floor"], call.rule.centered, torch.where)
    return s, denominator(s, k["e_in"], k["e_out"], k["floor"], torch.sqrt, torch.where)


def sums(call: Call, before: Tensor, p: Tensor, g: Tensor, state: dict[str, Any]) -> Sums:
    """What a step has done to a parameter; as the kernel's `measure`."""
    k, dtype = call.scalars(), arithmetic(p)
    x, used = (k["sign"] * g.to(dtype)).double(), torch.ones_like(p, dtype=torch.bool)
    if call.rule.nonfinite == "skip":
        used = _usable(call, before, g)
    s, _ = denominators(call, state)
    dominated = epsilon_dominates(s, k["e_in"], k["e_out"], k["floor"]).expand_as(p)
    tensors = torch.where(used, x, 0), p.double() - before.double(), p.double()
    gradient, change, weight = (float(y.square().sum()) for y in tensors)
    return Sums(gradient, change, weight, int(dominated.sum()), int((~used).sum()), p.numel())
