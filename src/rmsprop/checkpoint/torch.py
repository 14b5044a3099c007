"""torch's layout, {"state": {index: {...}}, "param_groups": [...]}: ours, torch's, timm's, stable-baselines3's, Adam's.

Sources: pytorch 2.13, torch/optim/rmsprop.py and adam.py; timm 1.0.31, optim/rmsprop_tf.py; stable-baselines3 2.9.2,
common/sb2_compat/rmsprop_tf_like.py.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from rmsprop.averaging import gamma_of
from rmsprop.checkpoint import slots
from rmsprop.checkpoint.form import Checkpoint, Group, array, match_names
from rmsprop.checkpoint.libraries import arguments, rule_of
from rmsprop.checkpoint.slots import Entry

#: What a group of each library has beside the options of the rule.
_REST: dict[str, dict[str, Any]] = {
    "rmsprop": {},
    "torch": {"capturable": False, "foreach": None, "differentiable": False},
    "timm": {"corrected_weight_decay": False, "caution": False, "foreach": None},
    "sb3": {},
    "adam": {"amsgrad": False, "foreach": None, "capturable": False, "differentiable": False, "fused": None},
}


def from_torch(
    state_dict: Mapping[str, Any],
    *,
    library: str | None = None,
    names: Sequence[str] | None = None,
    strict: bool = True,
    **options: Any,
) -> Checkpoint:
    """Read the `state_dict()` of an optimizer of this package, torch, timm or stable-baselines3.

    Args:
        state_dict: it, or a dict that has it somewhere inside ({"model": ..., "optimizer": ...}).
        library: "rmsprop", "torch", "timm" or "sb3"; None tells them apart by their options.
        names: of the parameters, in the optimizer's order: `[name for name, _ in model.named_parameters()]`. None
            takes the names that `named_parameters()` has left in the groups, else positions: "0", "1", ...
        strict: refuse state that no step could have left.
        **options: what the rule had instead, for instance the lr of the next step.

    Raises:
        ValueError: no such state, another optimizer's, or state that cannot be true; names it.

    Example:
        >>> import torch
        >>> from rmsprop.checkpoint import from_torch
        >>> layer = torch.nn.Linear(2, 1)
        >>> from_torch(torch.optim.RMSprop(layer.named_parameters()).state_dict()).rule.epsilon_mode
        'outside'
    """
    found, notes = optimizer_state(state_dict)
    if library is None:
        library, doubts = likely(found, strict=strict)
        notes += doubts
    return _read(found, library, names, strict, options, notes)


def from_adam(
    state_dict: Mapping[str, Any], *, names: Sequence[str] | None = None, strict: bool = True, **options: Any
) -> Checkpoint:
    """Read the `state_dict()` of torch.optim.Adam (or AdamW) with betas[0] = 0, which is RMSprop with bias correction.

    Args: as for `from_torch`. Groups of an old AdamW do not tell how they decay: give decay_mode="decoupled".

    Raises:
        ValueError: betas[0] is not 0, amsgrad, or as for `from_torch`.
    """
    found, notes = optimizer_state(state_dict)
    for group in found["param_groups"]:
        if "betas" not in group:
            raise ValueError(f"param_groups have {sorted(group)}: expected Adam's betas")
        if group["betas"][0] != 0:
            raise ValueError(f"betas={tuple(group['betas'])}: Adam is RMSprop only with betas[0] = 0")
        if "decoupled_weight_decay" not in group and group.get("weight_decay") and "decay_mode" not in options:
            raise ValueError("decay_mode is not in the groups: give 'coupled' for an old Adam, 'decoupled' for AdamW")
    found = {**found, "param_groups": [{**group, "beta2": group["betas"][1]} for group in found["param_groups"]]}
    return _read(found, "adam", names, strict, options, notes)


def _read(
    found: Mapping[str, Any],
    library: str,
    names: Sequence[str] | None,
    strict: bool,
    options: Mapping[str, Any],
    notes: list[str],
) -> Checkpoint:
    groups, state = [], {}
    for group, ids, own in named(found, names):
        rule, more = rule_of(library, group, options, strict=strict)
        notes += [note for note in more if note not in notes]
        gamma = gamma_of(group.get("averaging"))
        groups.append(Group(rule, tuple(own), gamma))
        for index, name in zip(ids, own, strict=True):
            if entry := _entry(found["state"].get(index, {})):
                state[name] = slots.of_rule(entry, rule, gamma)
    checkpoint = Checkpoint(tuple(groups), state, tuple(notes))
    return checkpoint.check() if strict else checkpoint


def _entry(given: Mapping[str, Any]) -> Entry:
    if not given:
        return {}
    renamed = {"exp_avg_sq": "square_avg"}
    arrays = {renamed.get(key, key): value for key, value in given.items()}
    return {"step": whole(given.get("step", 0))} | {
        slot: array(arrays[slot]) for slot in slots.SLOTS if arrays.get(slot) is not None
    }


def whole(step: Any) -> Any:
    """A step count as an int; what is none stays, for `Checkpoint.faults` to name."""
    number = float(step)
    return int(number) if number == number // 1 else number


def named(
    found: Mapping[str, Any], names: Sequence[str] | None
) -> Iterator[tuple[dict[str, Any], list[Any], list[str]]]:
    """(options, indices, names) of each group."""
    groups = found["param_groups"]
    count = sum(len(group["params"]) for group in groups)
    if names is not None and len(names) != count:
        raise ValueError(f"names: {len(names)} of them: expected {count}, one for each parameter")
    position = 0
    for group in groups:
        ids = list(group["params"])
        own = group.get("param_names") or ids
        if names is not None:
            own = names[position : position + len(ids)]
        yield {k: v for k, v in group.items() if k not in ("params", "param_names")}, ids, [str(name) for name in own]
        position += len(ids)


def optimizer_state(given: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """(the optimizer's own dict inside what was given, notes).

    Raises:
        ValueError: there is none, or several.
    """
    if _is_state(given):
        return dict(given), []
    found = dict(_search(given, ""))
    if len(found) != 1:
        what = f"{len(found)} of them, at {', '.join(found)}" if found else "none"
        raise ValueError(f"an optimizer's state_dict (a dict with state and param_groups): expected one, found {what}")
    ((place, state),) = found.items()
    return dict(state), [f"taken from {place} of the file"]


def _search(given: Any, place: str, depth: int = 3) -> Iterator[tuple[str, Any]]:
    items = (
        given.items() if isinstance(given, Mapping) else enumerate(given) if isinstance(given, (list, tuple)) else ()
    )
    for key, value in items:
        if _is_state(value):
            yield f"{place}[{key!r}]", value
        elif depth:
            yield from _search(value, f"{place}[{key!r}]", depth - 1)


def _is_state(x: Any) -> bool:
    if not (isinstance(x, Mapping) and isinstance(x.get("state"), Mapping) and isinstance(x.get("param_groups"), list)):
        return False
    groups, entries = x["param_groups"], x["state"].values()
    return (
        bool(groups) and all(isinstance(y, Mapping) for y in (*groups, *entries)) and all("params" in g for g in groups)
    )


#: An option that no other library has.
MARKS = {"rmsprop": "epsilon_mode", "timm": "lr_in_momentum", "torch": "foreach"}


def likely(found: Mapping[str, Any], *, strict: bool = True) -> tuple[str, list[str]]:
    """(whose options these are, why that is not sure).

    Raises:
        ValueError: nobody's here; or, if strict, it is not sure.
    """
    group = found["param_groups"][0]
    if "alpha" not in group or "eps" not in group:
        hint = "; from_adam and from_bitsandbytes read betas" if "betas" in group else ""
        raise ValueError(f"param_groups have {sorted(group)}: expected an RMSprop's{hint}")
    for name, mark in MARKS.items():
        if mark in group:
            return name, []
    doubt = "torch before 1.12 and stable-baselines3's RMSpropTFLike leave the same options"
    if strict:
        raise ValueError(f"library: {doubt}; expected 'torch' or 'sb3'")
    entries = [_entry(entry) for entry in found["state"].values()]
    fade = [(e["square_avg"], float(group["alpha"]) ** e["step"]) for e in entries if "square_avg" in e]
    name = "sb3" if all((v >= 0.999 * least).all() for v, least in fade) else "torch"  # sb3's v starts at 1
    return name, [f"{doubt}; by the size of v taken as {name}"]


def to_torch(checkpoint: Checkpoint, library: str = "torch", *, names: Any = None) -> dict[str, Any]:
    """Write a `state_dict` for `load_state_dict` of an optimizer.

    Args:
        checkpoint: the source.
        library: "torch" for torch.optim.RMSprop, "rmsprop" for ours, "timm", "sb3", or "adam" for torch.optim.Adam with
            betas[0] = 0.
        names: of the parameters, in the optimizer's order, or a list of them for each of its groups; None keeps the
            checkpoint's.

    Raises:
        ValueError: the library cannot have the rule, or other names.

    Warns:
        UserWarning: the momentum buffer had to be converted.
    """
    if library not in _REST:
        raise ValueError(f"library={library!r}: expected one of {tuple(_REST)}")
    checkpoint = ordered(checkpoint, names).written(library)
    groups, state, position = [], {}, 0
    positional = all(name.isdigit() for name in checkpoint.names)
    for group in checkpoint.groups:
        ids = list(range(position, position + len(group.names)))
        position += len(ids)
        own = {} if positional else {"param_names": list(group.names)}
        average = {} if group.averaging is None else {"averaging": group.averaging}
        groups.append({**own, **arguments(group.rule, library), **average, **_REST[library], "params": ids})
        for i, name in zip(ids, group.names, strict=True):
            if name in checkpoint.state:
                state[i] = _state(checkpoint.state[name], group, library)
    return {"state": state, "param_groups": groups}


def to_adam(checkpoint: Checkpoint, *, names: Any = None) -> dict[str, Any]:
    """Write a `state_dict` for torch.optim.Adam with betas[0] = 0: `to_torch(checkpoint, "adam")`."""
    return to_torch(checkpoint, "adam", names=names)


def ordered(checkpoint: Checkpoint, names: Any) -> Checkpoint:
    """The checkpoint in the order of these names, or with the groups that lists of names make."""
    if names is None:
        return checkpoint
    names = list(names)
    if names and not isinstance(names[0], str):
        return checkpoint.regrouped(names)
    match_names(names, checkpoint.names)
    place = {name: i for i, name in enumerate(names)}
    return checkpoint.regrouped([sorted(group.names, key=place.__getitem__) for group in checkpoint.groups])


def _state(entry: Entry, group: Group, library: str) -> dict[str, Any]:
    import torch

    square = slots.square_avg(entry)
    result: dict[str, Any] = {"step": torch.tensor(float(entry["step"]))}
    if library == "adam":  # with betas[0] = 0 the first average is overwritten before it is used
        return {**result, "exp_avg": torch.zeros(square.shape), "exp_avg_sq": torch.from_numpy(square.copy())}
    arrays = {"square_avg": square, **slots.averages(entry)}
    if group.rule.momentum:
        arrays["momentum_buffer"] = entry["momentum_buffer"]
    if group.rule.centered:
        arrays["grad_avg"] = entry["grad_avg"]
        if library == "rmsprop":
            arrays["variance"] = slots.variance(entry)
    return result | {name: torch.from_numpy(np.array(x)) for name, x in arrays.items()}
