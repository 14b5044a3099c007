"""Taking over a `state_dict`: whose entry belongs to which parameter, and whether it can be true."""

from typing import Any

import torch
from torch import Tensor

from rmsprop import averaging
from rmsprop.rowwise import shape_of
from rmsprop.torch.options import ENGINE, Family
from rmsprop.torch.shards import local
from rmsprop.torch.state import State, dtype, is_slot, real, settled

Groups = list[dict[str, Any]]
_WRAPPERS = ("module", "_orig_mod")
_NEVER_NEGATIVE = ("square_avg", "variance", "step_size")
_FINITE = (*_NEVER_NEGATIVE, "grad_avg", "momentum_buffer")


def prepared(given: dict[str, Any], groups: Groups, family: Family) -> dict[str, Any]:
    """The given `state_dict` with its groups as ours are, checked; the given one is not changed.

    Raises:
        ValueError: names that do not match, or state that no step could have left; says whose.
    """
    saved = [
        {**{name: own[name] for name in ENGINE}, **group, "state_shape": own["state_shape"]}
        for own, group in _by_name(given["param_groups"], groups)
    ]
    for group in saved:
        family.known(family.values({**family.neutral, **group}))
    if len(saved) == len(groups):
        for i, (group, own) in enumerate(zip(saved, groups, strict=True)):
            for k, (index, p) in enumerate(zip(group["params"], own["params"], strict=False)):
                name = own["param_names"][k] if "param_names" in own else f"parameter {k} of group {i}"
                _check(name, given["state"].get(index, {}), p, own["state_shape"])
    return {**given, "param_groups": saved}


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


def _by_name(saved: Groups, groups: Groups) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """Pairs of our groups and the saved ones, in our order; by name where both sides have names."""
    if len(saved) != len(groups) or not all("param_names" in group for group in (*saved, *groups)):
        spare = groups[-1:] * max(len(saved) - len(groups), 0)  # torch refuses another number of groups
        return list(zip([*groups, *spare], saved, strict=False))
    theirs = {frozenset(_unwrapped(group["param_names"])): group for group in saved}
    pairs = []
    for own in groups:
        names = _unwrapped(own["param_names"])
        match = theirs.get(frozenset(names))
        if match is None or len(match["param_names"]) != len(names):
            raise ValueError(_mismatch([n for g in groups for n in g["param_names"]], saved))
        ids = dict(zip(_unwrapped(match["param_names"]), match["params"], strict=True))
        pairs.append((own, {**match, "params": [ids[name] for name in names], "param_names": list(own["param_names"])}))
    return pairs


def _unwrapped(names: list[str]) -> list[str]:
    """The names without what DistributedDataParallel and torch.compile put before them."""
    plain = [".".join(part for part in name.split(".") if part not in _WRAPPERS) for name in names]
    return plain if len(set(plain)) == len(names) else names


def _mismatch(names: list[str], saved: Groups) -> str:
    theirs = [name for group in saved for name in group["param_names"]]
    missing, unknown = [n for n in names if n not in theirs], [n for n in theirs if n not in names]
    if missing or unknown:
        return f"state_dict: its parameters are not this optimizer's: missing {missing}, unknown {unknown}"
    return f"state_dict: its groups are not this optimizer's: it has {[g['param_names'] for g in saved]}"


def _check(name: str, entry: State, p: Tensor, state_shape: str) -> None:
    """What is never negative, nor infinite, nor of another shape."""
    if not isinstance(entry, dict):
        raise ValueError(f"{name}: its state is a {type(entry).__name__}, expected a dict")
    step = entry.get("step", 0)
    if not (isinstance(step, (int, float, Tensor)) and torch.as_tensor(step).numel() == 1 and 0 <= float(step) < 2**53):
        raise ValueError(f"{name}: step={step!r}: expected one number of at least 0")
    for key in (*_FINITE, "prev", averaging.SLOT):
        if key not in entry:
            continue
        value = entry[key]
        expected = shape_of(p.shape, state_shape if key in ("square_avg", "variance") else "full")
        if not isinstance(value, Tensor) or value.shape != expected:
            shape = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            whose = (
                "its parameter's shape"
                if expected == p.shape
                else f"one number for each row (state_shape={state_shape!r})"
            )
            raise ValueError(f"{name}: {key} is {shape}: expected a tensor of {whose}, {expected}")
        numbers = real(local(value.detach()))
        if numbers.is_meta:
            continue
        if key in _FINITE and not numbers.isfinite().all():
            raise ValueError(f"{name}: {key} has numbers that are not finite")
        if key == averaging.SLOT and not (numbers.isfinite() | (numbers == real(local(p.detach())))).all():
            raise ValueError(f"{name}: {key} has numbers that are not finite where the parameter is")
        if key in _NEVER_NEGATIVE and (numbers < 0).any():
            raise ValueError(f"{name}: {key} has negative numbers, the least {numbers.min().item()}")
