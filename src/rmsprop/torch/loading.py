"""Taking over a `state_dict`: whose entry belongs to which parameter, and whether it can be true."""

from itertools import chain
from typing import Any

import torch
from torch import Tensor
from torch.nn.parameter import is_lazy

from rmsprop import averaging
from rmsprop.rowwise import shape_of
from rmsprop.torch.checks import check_params
from rmsprop.torch.options import ENGINE, Family
from rmsprop.torch.shards import local
from rmsprop.torch.state import State, dtype, is_slot, real, settled, square_avg

Groups = list[dict[str, Any]]
_WRAPPERS = ("module", "_orig_mod")
_NEVER_NEGATIVE = ("variance", "step_size", "square_avg")
_FINITE = ("grad_avg", "momentum_buffer", *_NEVER_NEGATIVE)  # the last may be infinite beside the others
#: Options by which the groups of torch's other optimizers are known.
_OTHERS = {"betas", "dampening", "etas", "lr_decay", "rho"}


def prepared(given: dict[str, Any], groups: Groups, family: Family) -> dict[str, Any]:
    """The given `state_dict` with its groups as ours are, checked; the given one is not changed.

    Raises:
        ValueError: names that do not match, or state that no step could have left; says whose.
    """
    saved = [_completed(group, own) for own, group in _pairs(given["param_groups"], groups)]
    for group in saved:
        family.known(family.values({**family.neutral, **group}))
    if len(saved) == len(groups):
        for i, (group, own) in enumerate(zip(saved, groups, strict=True)):
            check_params({**own, **{name: group[name] for name in ENGINE}, "fused": None})  # that one each step checks
            for k, (index, p) in enumerate(zip(group["params"], own["params"], strict=False)):
                name = own["param_names"][k] if "param_names" in own else f"parameter {k} of group {i}"
                _check(name, entry := given["state"].get(index, {}), p, group)
                if family.name == "RMSprop":  # Rprop makes its step sizes anew
                    _check_square(name, entry)
            if family.name == "RMSprop" and (others := sorted(_OTHERS & group.keys() - own.keys())):
                raise ValueError(f"state_dict: group {i} has {others}, which are no options of RMSprop")
    return {**given, "param_groups": saved}


def _completed(saved: dict[str, Any], own: dict[str, Any]) -> dict[str, Any]:
    """A saved group with our values of what it does not know, or what must stay."""
    stay = ("state_shape",) if "fused" in saved else ("state_shape", "foreach")  # torch's choice may not suit our fused
    return {**{name: own[name] for name in ENGINE}, **saved, **{name: own[name] for name in stay}}


def restored(saved: dict[str, Any], groups: Groups, state: dict[Tensor, State]) -> dict[Tensor, State]:
    """The state with the saved numbers in their own precision, where torch has cast them to the parameter's."""
    result = {}
    for group, old in zip(groups, saved["param_groups"], strict=True):
        for p, index in zip(group["params"], old["params"], strict=True):
            if not state.get(p):
                continue
            kept = dtype(p, group["state_dtype"])
            entry = saved["state"].get(index, {})
            exact = {k: v.to(p.device, kept, copy=True) for k, v in entry.items() if is_slot(k, v)}
            step = torch.as_tensor(state[p].get("step", 0)).to(torch.float32, copy=True)
            result[p] = settled({**state[p], **exact, "step": step}, group.get("centered", False))
    return result


def _pairs(saved: Groups, groups: Groups) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """Pairs of our groups and the saved ones, in our order; by name where both sides have names, each but once."""
    if len(saved) != len(groups) or not all("param_names" in group for group in (*saved, *groups)):
        spare = groups[-1:] * max(len(saved) - len(groups), 0)  # torch refuses another number of groups
        return list(zip([*groups, *spare], saved, strict=False))
    plain = _unwrapped(groups), _unwrapped(saved)
    for ours, theirs in (plain, (_names(groups), _names(saved))):
        if _unique(ours) and _unique(theirs):
            return _by_name(saved, theirs, groups, ours)
    if plain[0] != plain[1]:
        raise ValueError(_mismatch(groups, saved))
    return [(own, {**match, "param_names": own["param_names"]}) for own, match in zip(groups, saved, strict=True)]


def _by_name(
    saved: Groups, theirs: list[list[str]], groups: Groups, ours: list[list[str]]
) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    found = {frozenset(names): (group, names) for group, names in zip(saved, theirs, strict=True)}
    pairs = []
    for own, names in zip(groups, ours, strict=True):
        if frozenset(names) not in found:
            raise ValueError(_mismatch(groups, saved))
        match, known = found[frozenset(names)]
        ids = dict(zip(known, match["params"], strict=True))
        pairs.append((own, {**match, "params": [ids[name] for name in names], "param_names": own["param_names"]}))
    return pairs


def _names(groups: Groups) -> list[list[str]]:
    return [list(group["param_names"]) for group in groups]


def _unwrapped(groups: Groups) -> list[list[str]]:
    """The names without what DistributedDataParallel and torch.compile put before them."""
    return [
        [".".join(part for part in name.split(".") if part not in _WRAPPERS) for name in names]
        for names in _names(groups)
    ]


def _unique(names: list[list[str]]) -> bool:
    return len(set(chain.from_iterable(names))) == sum(map(len, names))


def _mismatch(groups: Groups, saved: Groups) -> str:
    names, theirs = (list(chain.from_iterable(_names(side))) for side in (groups, saved))
    missing, unknown = [n for n in names if n not in theirs], [n for n in theirs if n not in names]
    if missing or unknown:
        return f"state_dict: its parameters are not this optimizer's: missing {missing}, unknown {unknown}"
    return f"state_dict: its groups are not this optimizer's: it has {[g['param_names'] for g in saved]}"


def _check(name: str, entry: State, p: Tensor, group: dict[str, Any]) -> None:
    """What is never negative, nor infinite, nor of another shape."""
    if not isinstance(entry, dict):
        raise ValueError(f"{name}: its state is a {type(entry).__name__}, expected a dict")
    step = entry.get("step", 0)
    if not (isinstance(step, (int, float, Tensor)) and torch.as_tensor(step).numel() == 1 and 0 <= float(step) < 2**53):
        raise ValueError(f"{name}: step={step!r}: expected one number of at least 0")
    for key in (*_FINITE, "prev", averaging.SLOT):
        if key in entry:
            _check_form(name, key, entry[key], p, group["state_shape"])
            if not (local(entry[key]).is_meta or is_lazy(p)):
                _check_numbers(name, key, entry, p, group)


def _check_square(name: str, entry: State) -> None:
    """What every step leaves: without it, the next one would be a first step."""
    if "square_avg" in entry or {"variance", "grad_avg"} <= entry.keys():
        return
    if float(entry["step"]) > 0 if "step" in entry else any(isinstance(value, Tensor) for value in entry.values()):
        hint = "; rmsprop.checkpoint converts Adam's" if "exp_avg_sq" in entry else ""
        raise ValueError(f"{name}: its state has {sorted(entry)}: expected square_avg among it{hint}")


def _check_form(name: str, key: str, value: Any, p: Tensor, state_shape: str) -> None:
    if not is_lazy(p):  # nor has that one a shape
        expected = shape_of(p.shape, state_shape if key in ("square_avg", "variance") else "full")
        if not isinstance(value, Tensor) or value.shape != expected:
            shape = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            whose = (
                "its parameter's shape"
                if expected == p.shape
                else f"one number for each row (state_shape={state_shape!r})"
            )
            raise ValueError(f"{name}: {key} is {shape}: expected a tensor of {whose}, {expected}")
    if not isinstance(value, Tensor) or value.is_complex() != p.is_complex():
        found = value.dtype if isinstance(value, Tensor) else type(value).__name__
        raise ValueError(f"{name}: {key} is {found}: expected a {'complex' if p.is_complex() else 'real'} tensor")


def _check_numbers(name: str, key: str, entry: State, p: Tensor, group: dict[str, Any]) -> None:
    """As they are saved, and as they will be kept."""
    saved, kept = local(entry[key].detach()), dtype(p, group["state_dtype"])
    numbers = real(saved.to(kept))
    finite = numbers.isfinite()
    if key in _FINITE and not finite.all():
        if key == "square_avg" and group.get("centered") and {"variance", "grad_avg"} <= entry.keys():
            finite |= real(saved) == real(local(square_avg(entry)))  # too large for it alone, and not used
        if not finite.all():
            raise ValueError(f"{name}: {key} has numbers that are not finite in {kept}")
    if key == averaging.SLOT and not (finite | (numbers == real(local(p.detach())))).all():
        raise ValueError(f"{name}: {key} has numbers that are not finite where the parameter is")
    if key in _NEVER_NEGATIVE and (real(saved) < 0).any():
        raise ValueError(f"{name}: {key} has negative numbers, the least {real(saved).min().item()}")
