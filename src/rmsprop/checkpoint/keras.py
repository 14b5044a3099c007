"""Keras 3's RMSprop: its variables in the order iteration, learning_rate, velocities, momentums, average gradients.

Files are read and written by h5py, without Keras. Source: keras 3.15, optimizers/rmsprop.py,
optimizers/base_optimizer.py (save_own_variables) and saving/saving_lib.py.
"""

import io
import json
import zipfile
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rmsprop.checkpoint import slots
from rmsprop.checkpoint.disk import parsing
from rmsprop.checkpoint.form import Checkpoint, Group, array
from rmsprop.checkpoint.libraries import rule_of
from rmsprop.checkpoint.slots import Array
from rmsprop.checkpoint.torch import ordered, whole
from rmsprop.rule import Rule

_WEIGHTS, _CONFIG = "model.weights.h5", "config.json"
_PLACES = ("optimizer/vars/", "vars/")


def from_keras(source: Any, *, names: Sequence[str] | None = None, strict: bool = True, **options: Any) -> Checkpoint:
    """Read a Keras optimizer, or the optimizer in a `.keras` or `.weights.h5` file.

    A `.weights.h5` file has the learning rate but no other option: what is not given is Keras's default, and where its
    arrays show that there was momentum or centering, `momentum` and `centered` must be given.

    Args:
        source: a built `keras.optimizers.RMSprop`, or a path.
        names: of the trainable variables, in the model's order: `[v.path for v in model.trainable_variables]`. None
            takes a live optimizer's; files have none: "0", "1", ...
        strict: refuse state that no step could have left.
        **options: Keras's options, or the rule's; they win over the source.

    Raises:
        ValueError: no optimizer's state, another optimizer's, or options that do not fit the arrays; names it.
    """
    if isinstance(source, (str, Path)):
        config, variables, weights = _read(Path(source))
    else:
        config, variables, weights = source.get_config(), _variables(source), None
        if names is None:
            names = [v.path for v in source._trainable_variables]
    step, given = _counters(variables, config)
    rule, notes = rule_of("keras", {**(config or {}), **step}, options, strict=strict)
    blocks = _blocks(rule, config or {})
    possible = _possible([x.shape for x in given], weights, names)
    sure = config is not None or {"momentum", "centered"} <= options.keys() or len(possible) == 1
    if len(blocks) not in possible or not sure:
        why = f"momentum, centered: {len(given)} arrays after the counters do not fit {len(blocks)} for each parameter"
        if strict or not possible:
            raise ValueError(f"{why}, or not these alone: give what it was made with, and names=...")
        notes.append(f"{why}; the first are taken as the mean squares")
        blocks = ["square_avg", *[""] * (possible[0] - 1)]
    size = len(given) // len(blocks)
    own = [str(name) for name in names or range(size)]
    state = {
        name: slots.of_rule(
            {"step": whole(variables[0])} | {slot: given[k * size + i] for k, slot in enumerate(blocks)}, rule
        )
        for i, name in enumerate(own)
    }
    checkpoint = Checkpoint((Group(rule, tuple(own)),), state, tuple(notes))
    return checkpoint.check() if strict else checkpoint


def _blocks(rule: Rule, config: Mapping[str, Any]) -> list[str]:
    """What the arrays after the counters are, in Keras's order; all parameters have each."""
    return [
        *["average"] * bool(config.get("use_ema")),
        "square_avg",
        *["momentum_buffer"] * bool(rule.momentum),
        *["grad_avg"] * rule.centered,
    ]


def _possible(
    shapes: list[tuple[int, ...]], weights: list[tuple[int, ...]] | None, names: Sequence[str] | None
) -> list[int]:
    """How many arrays there may be for each parameter, as far as shapes tell."""

    def fits(k: int) -> bool:
        n = len(shapes) // k
        spare = Counter(shapes[:n]) - Counter(weights) if weights else Counter()
        named = names is None or len(names) == n
        return bool(n) and named and len(shapes) == n * k and shapes == shapes[:n] * k and not spare

    return [k for k in range(1, 5) if fits(k)]


def _variables(optimizer: Any) -> list[Array]:
    store: dict[str, Array] = {}
    optimizer.save_own_variables(store)
    return [array(store[str(i)]) for i in range(len(store))]


def _counters(variables: list[Array], config: Mapping[str, Any] | None) -> tuple[dict[str, Any], list[Array]]:
    """({"learning_rate": ...} if it is a variable, the arrays after the counters)."""
    if not variables or variables[0].ndim or variables[0].dtype.kind not in "iu":
        raise ValueError("expected an iteration count as the optimizer's first variable")
    scheduled = isinstance((config or {}).get("learning_rate"), Mapping)
    if scheduled or len(variables) < 2 or variables[1].ndim:
        return {"learning_rate": None}, variables[1:]
    return {"learning_rate": float(variables[1])}, variables[2:]


def _read(path: Path) -> tuple[dict[str, Any] | None, list[Array], list[tuple[int, ...]]]:
    """(the optimizer's config if the file has one, its variables, the shapes of all other arrays)."""
    content = path.read_bytes()
    optimizer: Any = {}
    if zipfile.is_zipfile(io.BytesIO(content)):
        with parsing(path), zipfile.ZipFile(io.BytesIO(content)) as archive:
            optimizer = (json.loads(archive.read(_CONFIG)).get("compile_config") or {}).get("optimizer")
            content = archive.read(_WEIGHTS)
        if not isinstance(optimizer, dict):
            raise ValueError(f"{path}: the model was saved without its optimizer")
        if optimizer.get("class_name") != "RMSprop":
            raise ValueError(f"{path}: its optimizer is {optimizer.get('class_name')}: expected RMSprop")
    with parsing(path):
        arrays = _datasets(content)
    place = next((place for place in _PLACES if any(name.startswith(place) for name in arrays)), "")
    own = {name.removeprefix(place): x for name, x in arrays.items() if place and name.startswith(place)}
    others = [x.shape for name, x in arrays.items() if name.removeprefix(place) not in own]
    if own.keys() != {str(i) for i in range(len(own))} or (place == _PLACES[1] and others) or not own:
        raise ValueError(f"{path}: no optimizer variables: was the model saved before its first training step?")
    return optimizer.get("config"), [own[str(i)] for i in range(len(own))], others


def _datasets(content: bytes) -> dict[str, Array]:
    """All arrays of an HDF5 file by path."""
    import h5py

    arrays: dict[str, Array] = {}

    def visit(name: str, node: Any) -> None:
        if isinstance(node, h5py.Dataset):
            arrays[name] = _dataset(node)

    with h5py.File(io.BytesIO(content)) as file:
        file.visititems(visit)
    return arrays


def _dataset(dataset: Any) -> Array:
    """A variable; bfloat16, which HDF5 does not know, is the upper half of a float32."""
    values = dataset[()]
    if dataset.attrs.get("dtype") == "bfloat16":
        values = (np.asarray(values).view("<u2").astype("<u4") << 16).view("<f4")
    return array(values)


def to_keras(
    checkpoint: Checkpoint, *, names: Iterable[str] | None = None, scheduled: bool = False
) -> dict[str, Array]:
    """Write the store for `optimizer.load_own_variables`, of a built `keras.optimizers.RMSprop` with the same options.

    `arguments(checkpoint.rule, "keras")` has those options; `restore` checks that optimizer and store fit.

    Args:
        checkpoint: the source; all parameters must have one rule, and have been stepped.
        names: of the trainable variables, in the model's order; None keeps the checkpoint's order.
        scheduled: the optimizer's learning rate is a schedule, and so not among its variables.

    Raises:
        ValueError: Keras cannot have the rule, several rules, other names, or a parameter without state.

    Warns:
        UserWarning: the momentum buffer had to be converted, or parameters are at different steps.
    """
    checkpoint = ordered(checkpoint, names).written("keras")
    entries, rule = checkpoint.stepped(), checkpoint.rule
    arrays = [slots.square_avg(entry) for entry in entries]
    arrays += [entry["momentum_buffer"] for entry in entries if rule.momentum]
    arrays += [entry["grad_avg"] for entry in entries if rule.centered]
    if any(x.dtype.kind == "c" for x in arrays):
        raise ValueError("complex parameters: expected real ones, for Keras 3")
    first = [np.array(checkpoint.step, np.int32), *[np.array(rule.lr, np.float32)] * (not scheduled)]
    return {str(i): np.array(x) for i, x in enumerate([*first, *arrays])}


def keras_bytes(checkpoint: Checkpoint) -> bytes:
    """The content of a `.weights.h5` file for `keras.saving.load_weights(optimizer, path)`: the optimizer alone."""
    import h5py

    content = io.BytesIO()
    with h5py.File(content, "w") as file:
        group = file.create_group("vars")
        group.attrs["name"] = "rmsprop"
        for key, value in to_keras(checkpoint).items():
            group[key] = value
    return content.getvalue()
