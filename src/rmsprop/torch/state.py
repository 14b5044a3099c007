"""The state of one parameter, and its two forms: plain `square_avg`, and `variance` where the rule is centered."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from rmsprop import averaging
from rmsprop.rowwise import shape_of
from rmsprop.rprop import RpropRule
from rmsprop.rule import Rule
from rmsprop.torch.checks import check_param, name_of
from rmsprop.torch.shards import local, spread

State = dict[str, Any]


def fresh(p: Tensor, rule: Rule | RpropRule, state: State, group: dict[str, Any]) -> State:
    """The state with every slot of the rule, in its form; what is not there yet starts as the rule says.

    An average starts at the parameter as it is now, and is dropped where there is to be none.

    Returns `state` itself where there is nothing to do, and otherwise a new dict.

    Raises:
        ValueError: the group's `state_shape` is not that of the state, or as `check_param`.
    """
    if not state:
        check_param(p, group)  # which may have been lazy, or elsewhere, when its group was added
    kept, shape = dtype(p, group["state_dtype"]), shape_of(p.shape, group["state_shape"])
    averages = averaging.slots(averaging.gamma_of(group["averaging"]))
    slots = rule.slots() | averages
    for key in {"square_avg", "variance"} & state.keys():
        if state[key].shape != shape:
            found, own = tuple(state[key].shape), group["state_shape"]
            raise ValueError(f"{name_of(p, group)}: its {key} is {found}: expected {shape} with state_shape={own!r}")
    foreign = rule.centered and "square_avg" in state  # ZeroRedundancyOptimizer loads past `load_state_dict`
    foreign |= not averages and averaging.SLOT in state
    home = p.device if group["capturable"] else torch.device("cpu")
    strays = isinstance(state.get("step"), Tensor) and state["step"].device != home
    complete = all(name in state and state[name].dtype == kept for name in slots.values())
    if state and complete and not foreign and not strays:
        return state
    entry = settled({"step": torch.zeros((), dtype=torch.float32, device=home), **state}, rule.centered)
    if strays:
        entry["step"] = entry["step"].to(home)
    if not averages:
        entry.pop(averaging.SLOT, None)
    for letter, name in slots.items():
        if name in entry:
            entry[name] = entry[name].to(kept)
            continue
        if letter == "a":
            entry[name] = p.detach().to(kept, copy=True)
            continue
        entry[name] = _zeros(p, shape if letter == "v" else p.shape, kept)
        if start := rule.starts()[letter]:
            real(local(entry[name])).fill_(start)
    return entry


def _zeros(p: Tensor, shape: Sequence[int], kept: torch.dtype) -> Tensor:
    if shape == p.shape:
        return torch.zeros_like(p, dtype=kept, memory_format=torch.preserve_format)
    here = local(p)
    return spread(here.new_zeros((len(here), *shape[1:]), dtype=kept), p, shape)


def dtype(p: Tensor, wanted: torch.dtype | None) -> torch.dtype:
    """The dtype of a parameter's state: what is wanted, else at least float32."""
    if p.is_complex():
        return p.dtype if wanted is None else wanted.to_complex()
    return wanted or torch.promote_types(p.dtype, torch.float32)


def is_slot(key: str, value: Any) -> bool:
    """Whether this entry of a state has the parameter's shape."""
    return key != "step" and isinstance(value, Tensor)


def real(x: Tensor) -> Tensor:
    """A complex tensor as two real numbers an entry, sharing its memory; any other as it is."""
    return torch.view_as_real(x) if x.is_complex() else x


def square_avg(state: State) -> Tensor:
    """The mean square that belongs to a variance and a mean."""
    result = torch.empty_like(state["variance"])
    real(result).copy_(_square(real(state["variance"]), real(state["grad_avg"])))
    return result


def _square(variance: Tensor, m: Tensor) -> Tensor:
    return variance + m * m  # no fused operation: what one machine saves, another must recognise


def settled(state: State, centered: bool) -> State:
    """The state in the form a centered or a plain rule keeps, from whichever form it has.

    A `variance` that does not belong to the `square_avg` beside it is stale: another library has moved that on. But one
    that is infinite tells nothing.
    """
    state = dict(state)
    if not centered:
        if "square_avg" not in state and "variance" in state:
            state["square_avg"] = square_avg(state)
        state.pop("variance", None)
        return state
    square = state.pop("square_avg", None)
    if square is None:
        return state
    m = real(state.setdefault("grad_avg", torch.zeros_like(square))).clone()  # autograd may keep it; steps write to it
    known = state.get("variance")
    state["variance"] = variance = torch.empty_like(square)
    v = torch.clamp_min(real(square) - m * m, 0)
    if known is not None:
        v = torch.where((_square(real(known), m) == real(square)) | real(square).isinf(), real(known), v)
    real(variance).copy_(v)
    return state
