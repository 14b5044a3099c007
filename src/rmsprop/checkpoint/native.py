"""The native format: one safetensors file that says everything and that nothing in can change unnoticed.

The tensors are called "<parameter>.<slot>". The metadata's "rmsprop" is JSON: format, the groups with their rules and
names, the step counts, the notes, and for each tensor a SHA-256 of its dtype, shape and bytes, so that two tensors
cannot change places; "sha256" is that of this JSON. Loading executes no code.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np

from rmsprop.averaging import gamma_of
from rmsprop.checkpoint import slots
from rmsprop.checkpoint.disk import parsing, write
from rmsprop.checkpoint.form import Checkpoint, Group, array
from rmsprop.checkpoint.live import of
from rmsprop.checkpoint.slots import Array, Entry
from rmsprop.rule import OPTIONS, Rule

KIND, FORMAT = "rmsprop.checkpoint", 1
_COMPLEX = {"float32": np.complex64, "float64": np.complex128}


def save(path: str | Path, source: Any) -> None:
    """Write a checkpoint, or that of an optimizer, as `path`, a .safetensors file.

    It is written beside the old file, synced and renamed over it: a kill or a power cut leaves one of the two.

    Args:
        path: an existing file is replaced.
        source: a `Checkpoint`, or an optimizer that `of` knows.

    Raises:
        ValueError: state that no step could have left; the file is as before.

    Example:
        >>> import tempfile, numpy as np, rmsprop
        >>> from rmsprop.checkpoint import load, restore, save
        >>> w = np.ones(2)
        >>> optimizer = rmsprop.RMSprop({"w": w})
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save(f"{folder}/state.safetensors", optimizer)
        ...     restore(rmsprop.RMSprop({"w": w}), load(f"{folder}/state.safetensors"))
    """
    checkpoint = source if isinstance(source, Checkpoint) else of(source)
    write(Path(path), native_bytes(checkpoint.check()))


def native_bytes(checkpoint: Checkpoint) -> bytes:
    """The content of a native file."""
    from safetensors.numpy import save as pack

    tensors = {
        f"{name}.{slot}": entry[slot] for name, entry in checkpoint.state.items() for slot in entry.keys() & slots.SLOTS
    }
    facts = {
        "kind": KIND,
        "format": FORMAT,
        "groups": [_group(group) for group in checkpoint.groups],
        "steps": {name: entry["step"] for name, entry in checkpoint.state.items()},
        "complex": sorted(name for name, x in tensors.items() if x.dtype.kind == "c"),
        "notes": list(checkpoint.notes),
        "sha256": {name: _digest(x) for name, x in tensors.items()},
    }
    text = json.dumps(facts, sort_keys=True, separators=(",", ":"), allow_nan=False)
    flat = {name: np.ascontiguousarray(slots.real(x)).reshape(slots.real(x).shape) for name, x in tensors.items()}
    packed: bytes = pack(flat, _metadata(text))
    return packed


def _group(group: Group) -> dict[str, Any]:
    average = {} if group.averaging is None else {"averaging": group.averaging}
    return {"rule": {name: getattr(group.rule, name) for name in OPTIONS}, "names": list(group.names), **average}


def _metadata(text: str) -> dict[str, str]:
    return {"format": "np", "rmsprop": text, "sha256": hashlib.sha256(text.encode()).hexdigest()}


def load(path: str | Path, *, strict: bool = True) -> Checkpoint:
    """Read a file that `save` wrote.

    Args:
        path: the file.
        strict: False reads what can be read of a damaged file, and says in the notes what is wrong.

    Raises:
        ValueError: torn, a changed byte, exchanged tensors, another format, or state that no step could have left;
            names the file and the tensor.
    """
    tensors, metadata = read_safetensors(Path(path))
    facts, wrong = _facts(path, metadata)
    if not (wrong and strict):
        wrong += _damage(tensors, facts)
    if wrong and strict:
        raise ValueError(f"{path}: damaged: {wrong[0]}" + (f" (and {len(wrong) - 1} more)" if wrong[1:] else ""))
    try:
        checkpoint = _unpacked(tensors, facts, tuple(f"damaged: {what}" for what in wrong))
        return checkpoint.check() if strict else checkpoint
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from None


def _unpacked(tensors: dict[str, Array], facts: dict[str, Any], notes: tuple[str, ...]) -> Checkpoint:
    groups = tuple(
        Group(Rule(**group["rule"]), tuple(group["names"]), gamma_of(group.get("averaging")))
        for group in facts["groups"]
    )
    state: dict[str, Entry] = {name: {"step": step} for name, step in facts["steps"].items()}
    for name, x in tensors.items():
        parameter, _, slot = name.rpartition(".")
        if parameter in state and slot in slots.SLOTS:
            state[parameter][slot] = _restored(x, name in facts["complex"])
    return Checkpoint(groups, state, (*facts["notes"], *notes))


def _facts(path: str | Path, metadata: dict[str, str]) -> tuple[dict[str, Any], list[str]]:
    """(what the metadata say, what is wrong with them)."""
    text, wrong = metadata.get("rmsprop", ""), []
    if metadata != _metadata(text):
        wrong = ["its metadata do not match their checksum"]
    try:
        facts = json.loads(text)
        kind, version = facts.get("kind"), facts.get("format")
    except (ValueError, AttributeError):
        kind, version = None, None
    if kind != KIND:
        what = f"damaged: {wrong[0]}" if wrong and text else "not written by rmsprop.checkpoint.save"
        raise ValueError(f"{path}: {what}")
    if version != FORMAT:
        raise ValueError(f"{path}: format={version!r}: expected {FORMAT}; another version of rmsprop wrote it")
    return facts, wrong


def read_safetensors(path: Path) -> tuple[dict[str, Array], dict[str, str]]:
    """(tensors, metadata) of any safetensors file; bfloat16 as float32.

    Raises:
        ValueError: torn, or no safetensors; names the file.
    """
    from safetensors import safe_open

    with parsing(path), safe_open(path, framework="np") as file:
        return {name: array(file.get_tensor(name)) for name in file.keys()}, dict(file.metadata() or {})  # noqa: SIM118


def _damage(tensors: dict[str, Array], facts: dict[str, Any]) -> list[str]:
    stated, pairs = facts.get("sha256", {}), facts.get("complex", ())
    wrong = [f"tensor {name} is missing" for name in sorted(stated.keys() - tensors.keys())]
    for name, x in sorted(tensors.items()):
        if name not in stated or _digest(_restored(x, name in pairs)) != stated[name]:
            wrong.append(f"tensor {name} does not match its checksum")
    return wrong


def _restored(x: Array, is_complex: bool) -> Array:
    return np.ascontiguousarray(x).view(_COMPLEX[x.dtype.name])[..., 0] if is_complex else x


def _digest(x: Array) -> str:
    """A checksum of dtype, shape and bytes."""
    head = f"{x.dtype.name} {x.shape} ".encode()
    return hashlib.sha256(head + np.ascontiguousarray(x).tobytes()).hexdigest()
