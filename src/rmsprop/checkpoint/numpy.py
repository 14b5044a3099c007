"""The dict that the NumPy front end's `state_dict()` makes, and `rmsprop.jax.state_dict`."""

import re
from ast import literal_eval
from collections.abc import Iterable, Mapping
from typing import Any

from rmsprop.averaging import gamma_of
from rmsprop.checkpoint import slots
from rmsprop.checkpoint.form import Checkpoint, Group, array, match_names
from rmsprop.checkpoint.torch import whole
from rmsprop.rule import OPTIONS, Rule

_FORMAT = 1
_PART = re.compile(r"""\[(?P<key>'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*"|\d+)\]|\.(?P<attribute>\w+)""")


def plain(path: str) -> str:
    """A path into Python containers as a dotted name: ['dense']['kernel'] is dense.kernel, and [0].weight 0.weight."""
    parts = list(_PART.finditer(path))
    if "".join(part.group() for part in parts) != path:
        return path
    return ".".join(str(literal_eval(part["key"])) if part["key"] else part["attribute"] for part in parts)


def from_numpy(state_dict: Mapping[str, Any], *, strict: bool = True) -> Checkpoint:
    """Read the `state_dict()` of `rmsprop.RMSprop`, or what `rmsprop.jax.state_dict` returns.

    A parameter that is called params['w'] there is called w here, params[0] is 0, and params['a']['b'] is a.b.

    Raises:
        ValueError: another format, or (if strict) state that no step could have left.
    """
    if state_dict.get("format") != _FORMAT:
        raise ValueError(f"state_dict: expected format={_FORMAT}, from RMSprop.state_dict()")
    if unknown := sorted(state_dict["rule"].keys() - set(OPTIONS)):
        raise ValueError(f"state_dict['rule']: {unknown} are no options of Rule: expected an RMSprop's")
    rule = Rule(**state_dict["rule"])
    state = {}
    for name, entry in state_dict["state"].items():
        arrays = {slot: array(entry[slot]) for slot in slots.SLOTS if slot in entry}
        state[plain(name.removeprefix("params"))] = {"step": whole(entry["step"]), **arrays}
    if len(state) < len(state_dict["state"]):
        raise ValueError(f"state_dict: two parameters would have one name: {list(state_dict['state'])}")
    gamma = gamma_of(state_dict.get("averaging"))
    checkpoint = Checkpoint((Group(rule, tuple(state), gamma),), state)
    return checkpoint.check() if strict else checkpoint


def to_numpy(checkpoint: Checkpoint, *, names: Iterable[str] | None = None) -> dict[str, Any]:
    """Write a dict for `rmsprop.RMSprop.load_state_dict` or `rmsprop.jax.load_state_dict`.

    Args:
        checkpoint: the source; all parameters must have one rule, and have been stepped.
        names: the optimizer's names, params['w'] or params[0], which it has in `state_dict()["state"]`. None makes them
            of a list where the checkpoint's names are 0, 1, ..., and else of a dict.

    Raises:
        ValueError: several rules, other names, or a parameter without state.
    """
    average = {} if checkpoint.averaging is None else {"averaging": checkpoint.averaging}
    entries, rule = dict(zip(checkpoint.check().names, checkpoint.stepped(), strict=True)), checkpoint.rule
    if names is None:
        positional = list(entries) == [str(i) for i in range(len(entries))]
        ours = {name: f"params[{int(name) if positional else name!r}]" for name in entries}
    else:
        ours = {plain(name.removeprefix("params")): name for name in names}
        match_names(ours, entries)
    return {
        "format": _FORMAT,
        "rule": {option: getattr(rule, option) for option in OPTIONS},
        **average,
        "state": {theirs: slots.kept(entries[name], rule) for name, theirs in ours.items()},
    }
