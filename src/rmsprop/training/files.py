"""Files whose readers notice a changed byte, written so that a kill at any moment leaves a whole one.

Tensor files are safetensors with a SHA-256 for each tensor and one for the rest, in the metadata; JSON files carry
their own. Nothing here can execute code.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from rmsprop.checkpoint.disk import write

LABEL = {"format": "pt"}  # what other readers of safetensors look for


class DamagedError(ValueError):
    """A file that is torn, changed or not ours; the message names it."""


def sha256(content: bytes) -> str:
    """The checksum used throughout, in hexadecimal."""
    return hashlib.sha256(content).hexdigest()


def json_bytes(values: dict[str, Any]) -> bytes:
    """Readable JSON with a checksum of itself in the last entry, "sha256"."""
    plain = {name: x for name, x in values.items() if name != "sha256"}
    return (json.dumps({**plain, "sha256": sha256(_canonical(plain))}, indent=2, ensure_ascii=False) + "\n").encode()


def read_json(path: Path) -> dict[str, Any]:
    """What `json_bytes` wrote, "sha256" included.

    Raises:
        DamagedError: missing, no JSON, or not what was written.
    """
    try:
        values = json.loads(path.read_bytes())
        stated = values.pop("sha256")
    except FileNotFoundError as error:
        raise DamagedError(f"{path}: no such file") from error
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise DamagedError(f"{path}: damaged: no complete JSON with a checksum") from error
    if sha256(_canonical(values)) != stated:
        raise DamagedError(f"{path}: damaged or edited: the content does not match its checksum")
    return {**values, "sha256": stated}


def _canonical(values: Any) -> bytes:
    return json.dumps(values, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def write_tensors(path: Path, tensors: dict[str, torch.Tensor], facts: dict[str, Any]) -> None:
    """Write tensors and plain facts as one safetensors file."""
    tensors = {name: tensor.detach().contiguous() for name, tensor in tensors.items()}
    rest = {"facts": facts, "tensors": {name: _digest(tensor) for name, tensor in tensors.items()}}
    metadata = {**LABEL, "rmsprop": _canonical(rest).decode(), "sha256": sha256(_canonical(rest))}
    write(path, save(tensors, metadata))


def read_tensors(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """(tensors, facts) as `write_tensors` got them.

    Raises:
        DamagedError: torn, or any tensor, name or fact differs from what was written.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118 (no mapping)
        text, stated = metadata.pop("rmsprop").encode(), metadata.pop("sha256")
    except (SafetensorError, KeyError, UnicodeError) as error:
        raise DamagedError(f"{path}: damaged: torn, or not written by rmsprop") from error
    if sha256(text) != stated or metadata != LABEL:
        raise DamagedError(f"{path}: damaged: its facts do not match their checksum")
    rest = json.loads(text)
    wrong = [
        name for name in rest["tensors"].keys() | tensors.keys() if _of(tensors, name) != rest["tensors"].get(name)
    ]
    if wrong:
        raise DamagedError(f"{path}: damaged: tensor {min(wrong)!r} does not match its checksum")
    return tensors, rest["facts"]


def _of(tensors: dict[str, torch.Tensor], name: str) -> str | None:
    return _digest(tensors[name]) if name in tensors else None


def _digest(tensor: torch.Tensor) -> str:
    """A checksum of type, shape and bytes."""
    head = f"{tensor.dtype} {tuple(tensor.shape)} ".encode()
    return sha256(head + tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
