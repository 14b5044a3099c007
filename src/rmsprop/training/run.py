"""The run folder.

    config.json             every option, the rule, the table's fingerprint, the classes, the versions; written once
    preprocessing.json      the fitted preprocessing (`Features`); written once
    checkpoint.safetensors  weights, optimizer state and progress, from the first batches on
    metrics.csv             one line an epoch
    layers.csv              how the steps of each layer went, one line an epoch and parameter
    report.html             one page to look at
    model.safetensors       the trained weights; comes last, so it says that the run is finished

The first two exist from the folder's first moment (it is renamed into place), so a run killed at any time goes on.
"""

import csv
import io
import secrets
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any

from rmsprop.checkpoint.disk import sync_folder, write
from rmsprop.fit import Model
from rmsprop.training import layers
from rmsprop.training.features import Features
from rmsprop.training.files import (
    DamagedError,
    json_bytes,
    read_json,
    read_tensors,
    write_tensors,
)
from rmsprop.training.loop import State
from rmsprop.training.ranks import ALONE, Ranks

CONFIG, FEATURES, CHECKPOINT = "config.json", "preprocessing.json", "checkpoint.safetensors"
METRICS, LAYERS, REPORT, MODEL = "metrics.csv", "layers.csv", "report.html", "model.safetensors"
FORMAT = 1
COLUMNS = ("epoch", "train_loss", "test_loss", "test_score", "seconds", "optimizer_seconds")


def numbered(name: str, folder: str = "runs") -> Iterator[Path]:
    """runs/NAME-001, runs/NAME-002, ...: where a run goes that was not told where."""
    return (Path(folder) / f"{name}-{n:03}" for n in count(1))


def create(places: Iterable[Path], config: dict[str, Any], features: Features) -> Path:
    """A new run folder at the first of the places that is free, complete from its first moment.

    Raises:
        ValueError: all of them exist; nothing is ever overwritten.
    """
    place = Path()
    for place in places:
        if place.exists() or place.is_symlink():
            continue
        place.parent.mkdir(parents=True, exist_ok=True)
        new = place.with_name(f".{place.name}-{secrets.token_hex(4)}")
        new.mkdir()
        try:
            write(new / FEATURES, json_bytes(features.as_json()))
            stated = read_json(new / FEATURES)["sha256"]
            write(new / CONFIG, json_bytes({"format": FORMAT, **config, "preprocessing": stated}))
            new.rename(place)
        except BaseException as error:
            shutil.rmtree(new, ignore_errors=True)
            if isinstance(error, OSError) and place.exists():  # another run was quicker
                continue
            raise
        sync_folder(place.parent)
        return place
    raise ValueError(f"out={str(place)!r}: exists already; expected a new folder")


@contextmanager
def locked(folder: Path | None, name: str = CONFIG) -> Iterator[None]:
    """Keep a second process from training the same run (where the system has file locks); `name` is a file of it."""
    try:
        import fcntl
    except ImportError:
        folder = None
    if folder is None:
        yield
        return
    with (folder / name).open() as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ValueError(f"{folder}: another process is training this run") from error
        yield


def read_config(folder: Path) -> dict[str, Any]:
    """The run's config.json.

    Raises:
        ValueError: no run folder, a damaged file, or one from a newer version; names it.
    """
    if not folder.is_dir():
        raise ValueError(f"{folder}: no such run folder")
    if not (folder / CONFIG).exists():
        raise ValueError(f"{folder}: not a run folder: it has no {CONFIG}")
    config = read_json(folder / CONFIG)
    if config.get("format") != FORMAT:
        raise ValueError(f"{folder / CONFIG}: format={config.get('format')!r}: expected {FORMAT}")
    return config


def read_features(folder: Path, config: dict[str, Any]) -> Features:
    """The run's preprocessing.json."""
    values = read_json(folder / FEATURES)
    _belongs(folder / FEATURES, values.pop("sha256"), config["preprocessing"])
    return Features.from_json(values)


def save_checkpoint(folder: Path, state: State, run: str) -> None:
    """Write checkpoint.safetensors and the two tables; `run` is the config's checksum."""
    tensors = {f"model.{name}": tensor for name, tensor in state.network.state_dict().items()}
    for i, slots in state.optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{i}.{name}": tensor for name, tensor in slots.items()}
    write_tensors(folder / CHECKPOINT, tensors, {"run": run, **state.progress()})
    write_tables(folder, state)


def load_checkpoint(folder: Path, state: State, run: str, ranks: Ranks = ALONE) -> None:
    """Bring a fresh state to where the checkpoint is; without one it stays fresh. Rank 0 reads, for all."""
    found = ranks.lead(lambda: _read_checkpoint(folder, run))
    if found is None:
        return
    tensors, facts = found
    weights: dict[str, Any] = {}
    slots: dict[int, dict[str, Any]] = {}
    for name, tensor in tensors.items():
        part, rest = name.split(".", 1)
        if part == "model":
            weights[rest] = tensor
        else:
            index, slot = rest.split(".", 1)
            slots.setdefault(int(index), {})[slot] = tensor
    state.network.load_state_dict(weights)
    state.optimizer.load_state_dict({**state.optimizer.state_dict(), "state": slots})
    for name in state.progress().keys() & facts.keys():  # an older version's checkpoint has no layers
        setattr(state, name, facts[name])


def _read_checkpoint(folder: Path, run: str) -> tuple[dict[str, Any], dict[str, Any]] | None:
    if not (folder / CHECKPOINT).exists():
        return None
    tensors, facts = read_tensors(folder / CHECKPOINT)
    _belongs(folder / CHECKPOINT, facts["run"], run)
    return tensors, facts


def write_tables(folder: Path, source: State | Model) -> None:
    """metrics.csv from the history, layers.csv from the layers."""
    for name, columns, rows in ((METRICS, COLUMNS, source.history), (LAYERS, layers.COLUMNS, source.layers)):
        text = io.StringIO()
        table = csv.DictWriter(text, columns, lineterminator="\n")
        table.writeheader()
        table.writerows(rows)
        write(folder / name, text.getvalue().encode())


def save_model(folder: Path, model: Model) -> None:
    """Write model.safetensors: weights, with the result, the history and the layers beside them."""
    facts = {"run": read_config(folder)["sha256"], "result": model.result}
    facts |= {"history": model.history, "layers": model.layers}
    write_tensors(folder / MODEL, model.network.state_dict(), facts)


def finished(folder: Path) -> bool:
    """Whether the run has come to its end."""
    return (folder / MODEL).exists()


def load_model(folder: Path, run: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """(weights, facts) of a finished run.

    Raises:
        ValueError: the run is not finished, or the file is damaged or from another run.
    """
    path = folder / MODEL
    if not finished(folder):
        raise ValueError(f"{folder}: not finished (no {MODEL}); go on with: rmsprop train --resume {folder}")
    weights, facts = read_tensors(path)
    _belongs(path, facts["run"], run)
    return weights, facts


def _belongs(path: Path, stated: str, expected: str) -> None:
    if stated != expected:
        raise DamagedError(f"{path}: belongs to another run than the {CONFIG} beside it")
