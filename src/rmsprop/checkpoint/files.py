"""Checkpoint files of every kind: what one is, by its content, and what is in it.

Nothing is executed: torch's files are read with weights_only=True, NumPy's with allow_pickle=False.
"""

import io
import pickle
import warnings
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rmsprop.checkpoint import native
from rmsprop.checkpoint.bitsandbytes import from_bitsandbytes
from rmsprop.checkpoint.disk import parsing
from rmsprop.checkpoint.form import Checkpoint, array
from rmsprop.checkpoint.keras import from_keras
from rmsprop.checkpoint.libraries import LIBRARIES
from rmsprop.checkpoint.optax import from_optax
from rmsprop.checkpoint.runs import from_run, is_run
from rmsprop.checkpoint.tf1 import from_tf1
from rmsprop.checkpoint.torch import MARKS, from_adam, from_torch, likely, optimizer_state

_POLICY = "policy.optimizer.pth"  # stable-baselines3's model.zip


@dataclass(frozen=True, slots=True)
class Source:
    """A file that has been read.

    Attributes:
        kind: what sort of file it is, in words.
        library: the key of `LIBRARIES` whose state it is.
        checkpoint: what is in it.
        reasons: why it is taken for that, a sentence each.
    """

    kind: str
    library: str
    checkpoint: Checkpoint
    reasons: tuple[str, ...]


def read(path: str | Path, *, library: str | None = None, strict: bool = True, **options: Any) -> Source:
    """Read a checkpoint file: native, torch's, Keras's, of `rmsprop train`, or named arrays (.npz, .safetensors).

    Args:
        path: a file, or a run folder of `rmsprop train`.
        library: a key of `LIBRARIES`, where the file leaves it open.
        strict: refuse a damaged file and state that no step could have left.
        **options: what the file does not tell, or tells otherwise; see the `from_` function of its kind.

    Raises:
        ValueError: no checkpoint of a kind that is known here, or whatever its `from_` function raises; names the file.
        OSError: it cannot be read.

    Example:
        >>> import tempfile, torch
        >>> from rmsprop.checkpoint import read
        >>> model = torch.nn.Linear(2, 1)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     torch.save({"optimizer": torch.optim.RMSprop(model.parameters()).state_dict()}, f"{folder}/last.pt")
        ...     read(f"{folder}/last.pt").library
        'torch'
    """
    path = Path(path)
    if path.is_dir():
        path = path / "checkpoint.safetensors"
    with path.open("rb") as file:
        head = file.read(16)
    try:
        return _reader(path, head)(path, library, {"strict": strict, **options})
    except (ValueError, zipfile.BadZipFile) as error:
        text = str(error)
        raise ValueError(text if text.startswith(str(path)) else f"{path}: {text}") from None


def _reader(path: Path, head: bytes) -> Callable[[Path, str | None, dict[str, Any]], Source]:
    if head.startswith(b"\x89HDF"):
        return _keras
    if head[8:9] == b"{":
        return _safetensors
    if zipfile.is_zipfile(path):
        with parsing(path), zipfile.ZipFile(path) as archive:
            names = archive.namelist()
        if "model.weights.h5" in names:
            return _keras
        return _arrays if any(name.endswith(".npy") for name in names) else _torch
    if head[:1] == b"\x80":
        return _torch
    raise ValueError(
        "not a checkpoint that is known here: expected .safetensors, .npz, .keras, .weights.h5, or a file of torch.save"
    )


def _keras(path: Path, library: str | None, options: dict[str, Any]) -> Source:
    _expect(library, ("keras",))
    whole_model = zipfile.is_zipfile(path)
    reason = (
        "config.json has Keras's RMSprop with its options"
        if whole_model
        else "optimizer variables without options: an iteration count, a learning rate, then arrays"
    )
    return Source(
        "Keras 3 model" if whole_model else "Keras 3 weights", "keras", from_keras(path, **options), (reason,)
    )


def _torch(path: Path, library: str | None, options: dict[str, Any]) -> Source:
    state, kind = _unpickled(path)
    found, _ = optimizer_state(state)
    keys = set(found["param_groups"][0])
    shown = ", ".join(sorted(keys - {"params", "param_names"}))
    reasons = [f"param_groups have {shown}"]
    if "betas" in keys and _has_state1(found):
        _expect(library, ("bitsandbytes",))
        reasons.append("the state has state1: bitsandbytes")
        return Source(kind, "bitsandbytes", from_bitsandbytes(state, **options), tuple(reasons))
    if "betas" in keys:
        _expect(library, ("adam",))
        reasons.append("betas: Adam")
        return Source(kind, "adam", from_adam(state, **options), tuple(reasons))
    if library is None:
        from_sb3 = kind.startswith("stable-baselines3")
        library, doubts = likely(found, strict=options["strict"] and not from_sb3)
        library = "sb3" if doubts and from_sb3 else library
        reasons += doubts * (not from_sb3)
    if mark := MARKS.get(library):
        reasons.append(f"{mark} is an option of {LIBRARIES[library].title}")
    return Source(kind, library, from_torch(state, library=library, **options), tuple(reasons))


def _has_state1(found: Mapping[str, Any]) -> bool:
    entries = found["state"].values()
    return any("state1" in {**entry, **entry.get("__bnb_optimizer_quant_state__", {})} for entry in entries)


def _unpickled(path: Path) -> tuple[Mapping[str, Any], str]:
    import torch

    content, kind = path.read_bytes(), "file of torch.save"
    with parsing(path):
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                if _POLICY in archive.namelist():
                    content, kind = archive.read(_POLICY), "stable-baselines3 model"
        with warnings.catch_warnings(action="ignore"):  # that it may not be torch's: the error says so, if it is not
            try:
                state = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
            except pickle.UnpicklingError as error:
                raise ValueError("loading it would execute code; save the optimizer's state_dict() alone") from error
    if not isinstance(state, Mapping):
        raise ValueError(f"a {type(state).__name__}: expected a dict with an optimizer's state_dict")
    return state, kind


def _safetensors(path: Path, library: str | None, options: dict[str, Any]) -> Source:
    tensors, metadata = native.read_safetensors(path)
    facts = metadata.get("rmsprop", "")
    if f'"kind":"{native.KIND}"' in facts:
        _expect(library, ("rmsprop",))
        checkpoint = native.load(path, strict=options.pop("strict")).replace(**options)
        return Source("native", "rmsprop", checkpoint, ("metadata of rmsprop.checkpoint.save",))
    if is_run(tensors, metadata):
        _expect(library, ("rmsprop",))
        reasons = ("tensors and facts of a run folder",)
        return Source("checkpoint of rmsprop train", "rmsprop", from_run(path, tensors, metadata, **options), reasons)
    return _named(tensors, library, options)


def _arrays(path: Path, library: str | None, options: dict[str, Any]) -> Source:
    with parsing(path), np.load(path, allow_pickle=False) as file:
        arrays = {name: array(file[name]) for name in file.files}
    return _named(arrays, library, options)


def _named(arrays: dict[str, Any], library: str | None, options: dict[str, Any]) -> Source:
    """Arrays that are told apart by their names: TensorFlow 1's slots, or optax's paths."""
    if library == "tf1" or any("/RMSProp" in name for name in arrays):
        _expect(library, ("tf1",))
        reasons = ("slots named /RMSProp, /RMSProp_1",)
        return Source("named arrays", "tf1", from_tf1(arrays, **options), reasons)
    if any(".nu" in name for name in arrays):
        _expect(library, ("optax",))
        return Source(
            "named arrays", "optax", from_optax(arrays, **options), ("paths with .nu: scale_by_rms of optax",)
        )
    raise ValueError(f"arrays named {sorted(arrays)[:4]}: expected TensorFlow 1's /RMSProp slots or optax's .nu paths")


def _expect(library: str | None, allowed: tuple[str, ...]) -> None:
    if library is not None and library not in allowed:
        raise ValueError(f"dialect {library!r}: this is a file of {' or '.join(allowed)}")
