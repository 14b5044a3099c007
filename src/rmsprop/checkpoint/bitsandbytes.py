"""bitsandbytes' RMSprop: 32-bit state as it is, 8-bit state decoded.

Source: bitsandbytes 0.50.2, optim/optimizer.py (Optimizer1State) and functional.py (dequantize_blockwise).
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from rmsprop.checkpoint.form import Checkpoint, Group, array
from rmsprop.checkpoint.libraries import rule_of
from rmsprop.checkpoint.slots import Array
from rmsprop.checkpoint.torch import named, optimizer_state, whole

_WRAPPED = "__bnb_optimizer_quant_state__"


def from_bitsandbytes(
    state_dict: Mapping[str, Any], *, names: Sequence[str] | None = None, strict: bool = True, **options: Any
) -> Checkpoint:
    """Read the `state_dict()` of bitsandbytes' RMSprop, RMSprop32bit or RMSprop8bit.

    An 8-bit mean square is `qmap1[code] * absmax1[block]`, in float32: exactly what bitsandbytes computes with, but
    what it has lost is lost; `notes` says so. Its momentum has no effect on its steps, and is left out.

    Args: as for `from_torch`.

    Raises:
        ValueError: as for `from_torch`, or a block size that its arrays do not tell.
    """
    found, notes = optimizer_state(state_dict)
    groups, state, coded = [], {}, []
    for group, ids, own in named(found, names):
        entries = [_unwrapped(found["state"].get(index, {})) for index in ids]
        if "betas" not in group or any(entry and "state1" not in entry for entry in entries):
            raise ValueError(
                f"param_groups have {sorted(group)}: expected bitsandbytes' betas, and state1 in the state"
            )
        if any("state2" in entry for entry in entries):
            raise ValueError("state2: expected bitsandbytes' RMSprop, which has state1 alone")
        alpha, momentum = group["betas"]
        rule, more = rule_of("bitsandbytes", {**group, "alpha": alpha}, options, strict=strict)
        if momentum:
            more.append(f"momentum={momentum:g} has no effect in bitsandbytes and is left out")
        notes += [note for note in more if note not in notes]
        groups.append(Group(rule, tuple(own)))
        for name, entry in zip(own, entries, strict=True):
            if entry:
                coded += [name] * ("qmap1" in entry)
                state[name] = {"step": whole(entry.get("step", 0)), "square_avg": _decoded(name, entry)}
    if coded:
        notes.append(f"lossy origin: square_avg of {', '.join(coded)} was stored in 8 bits")
    checkpoint = Checkpoint(tuple(groups), state, tuple(notes))
    return checkpoint.check() if strict else checkpoint


def _unwrapped(entry: Mapping[str, Any]) -> dict[str, Any]:
    return {**entry, **entry.get(_WRAPPED, {})}


def _decoded(name: str, entry: Mapping[str, Any]) -> Array:
    values = array(entry["state1"])
    if "qmap1" not in entry:
        return values
    if "absmax1" not in entry:
        raise ValueError(f"{name}: no absmax1: expected 8-bit state in blocks")
    codes, scales = values.reshape(-1), array(entry["absmax1"])
    block = next((size for size in (64, 128, 256, 512, 1024, 2048, 4096) if -(-codes.size // size) == scales.size), 0)
    if values.dtype != np.uint8 or not block:
        raise ValueError(
            f"{name}: {codes.size} codes of {values.dtype} and {scales.size} scales: expected a scale a block"
        )
    decoded: Array = array(entry["qmap1"])[codes] * np.repeat(scales, block)[: codes.size]
    return decoded.reshape(values.shape)
