"""`rule.update` over lists of torch tensors, on any device: torch's foreach functions under the operators.

One text of the rule serves arrays and lists alike, because a list of tensors is dressed up as one array here.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from rmsprop.rule import Rule, update, usable


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
    **{name: _comparison(name) for name in ("__lt__", "__le__", "__gt__", "__eq__", "__and__", "__or__")},
}
for _name, _function in _OPERATORS.items():
    setattr(_Each, _name, _function)


def _where(condition: _Each, a: Any, b: Any) -> _Each:
    first, second = (x.of if isinstance(x, _Each) else [x] * len(condition.of) for x in (a, b))
    return _Each([torch.where(c, x, y) for c, x, y in zip(condition.of, first, second, strict=True)])


def _sqrt(a: _Each) -> _Each:
    return _Each(list(torch._foreach_sqrt(a.of)))


def step(rule: Rule, t: int, params: list[Tensor], grads: list[Tensor], states: list[dict[str, Any]]) -> int:
    """One step for tensors of one dtype and device, at one step number; the number of entries skipped.

    Parameters and state are written in place; temporaries of several times the parameters' size are made.
    """
    slots = rule.slots()
    dtype = states[0][slots["v"]].dtype
    finfo = torch.finfo(dtype)
    state = {letter: _Each([s[name] for s in states]) for letter, name in slots.items()}
    p, g = (_Each([x.to(dtype) for x in tensors]) for tensors in (params, grads))
    given: dict[str, Any] = {**rule.scalars(t), **rule.flags(), "tiny": finfo.tiny, "largest": finfo.max}
    given |= {"sqrt": _sqrt, "where": _where}
    new = update(p, g, *(state.get(s, 0.0) for s in "vmb"), **given)
    torch._foreach_copy_(params, new[0].of)
    for letter, value in zip("vmb", new[2:5], strict=True):
        if letter in state:
            torch._foreach_copy_(state[letter].of, value.of)
    return sum(int((~used).sum()) for used in new[5].of) if rule.nonfinite == "skip" else 0


def is_usable(rule: Rule, p: Tensor, g: Tensor) -> bool:
    """Whether `nonfinite="error"` lets this gradient pass."""
    k = rule.scalars(1)
    dtype = torch.promote_types(p.dtype, torch.float32)
    passing = usable(p.to(dtype), g.to(dtype), k["sign"], k["coupled"], torch.finfo(dtype).max, rule.weight_decay > 0)
    return bool(passing.all())
