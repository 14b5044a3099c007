"""The whole job in order: a table in, a trained model out, started afresh or resumed."""

import platform
import signal
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from time import monotonic
from typing import Any

import numpy as np
import pandas as pd
import torch

import rmsprop
from rmsprop.fit import Model
from rmsprop.training import features as preprocessing
from rmsprop.training import run
from rmsprop.training.files import sync_folder, write
from rmsprop.training.features import Features
from rmsprop.training.loop import Data, Diverged, State, outputs, train
from rmsprop.training.network import build, threads_for
from rmsprop.training.progress import Show, shown
from rmsprop.training.race import optimizer_for, race
from rmsprop.training.report import render
from rmsprop.training.settings import Settings
from rmsprop.training.table import fingerprint, frame_of, kind_of, take, values_of
from rmsprop.training.target import Target, describe, split

CHECKPOINT_EVERY = 1.0  # seconds


class Interrupted(KeyboardInterrupt):
    """Stopped by Ctrl-C; the message says what was saved, `folder` where, if anywhere."""

    def __init__(self, message: str, folder: Path | None) -> None:
        super().__init__(message)
        self.folder = folder


@dataclass(frozen=True)
class Sheet:
    """The table, checked: columns by name, the target, and which rows are for training and which held out."""

    kinds: dict[str, str]
    columns: dict[str, np.ndarray]
    column: pd.Series
    target: Target
    train: np.ndarray
    test: np.ndarray

    def fingerprint(self) -> str:
        """Changes with any value of the table."""
        return fingerprint({**self.columns, "\x00target": self.target.codes(self.column).astype(np.float64)})

    def data(self, features: Features) -> Data:
        """Tensors for the network; torch's own memory, whose alignment decides the order of some sums."""
        x, y = features.transform(self.columns), self.target.codes(self.column)
        parts = (x[self.train], y[self.train], x[self.test], y[self.test])
        return Data(*(torch.tensor(part) for part in parts))


def sheet_of(columns: Any, target: Any, settings: Settings) -> Sheet:
    """Check a table and split it.

    Raises:
        ValueError: anything that cannot be learned from; names the column, what it holds and what is expected.
    """
    frame = frame_of(columns)
    frame, column = _apart(frame, target)
    take(frame, settings.drop, "drop")
    frame = frame.drop(columns=list(settings.drop))
    if not frame.shape[1]:
        raise ValueError("columns: none left to learn from; expected at least one beside the target")
    described = describe(column, settings.task)
    kinds = {name: kind_of(frame[name]) for name in frame}
    values = {name: values_of(frame[name], kind) for name, kind in kinds.items()}
    train_rows, test_rows = split(described.codes(column), described, settings.test_size, settings.seed)
    if described.task == "regression":
        y = values_of(column, "number")[train_rows]
        described = replace(described, mean=float(y.mean()), scale=float(y.std()) or 1.0)
    return Sheet(kinds, values, column, described, train_rows, test_rows)


def _apart(frame: pd.DataFrame, target: Any) -> tuple[pd.DataFrame, pd.Series]:
    """The target column, by name or as an array, and the others."""
    if isinstance(target, (str, int)):
        take(frame, (str(target),), "target")
        return frame.drop(columns=str(target)), frame[str(target)]
    values = target if isinstance(target, pd.Series) else pd.Series(np.asarray(target).squeeze())
    if len(values) != len(frame):
        raise ValueError(f"target: {len(values)} values; expected {len(frame)}, one a row of columns")
    return frame, values.rename(str(values.name or "target")).reset_index(drop=True)


@dataclass
class Job:
    """A run that has been set up: what to do, on what, and where it is kept."""

    settings: Settings
    sheet: Sheet
    features: Features
    config: dict[str, Any]
    folder: Path | None
    progress: bool

    def run(self) -> Model:
        """Train to the end, keep checkpoints on the way, and finish the run folder."""
        torch.set_num_threads(self.config["threads"])
        data, state = self.sheet.data(self.features), self._state()
        batches = -(-len(data.x) // self.settings.batch_size)
        if self.folder is not None:
            run.load_checkpoint(self.folder, state, self.config["sha256"])
        try:
            with shown(self.settings.epochs, batches, self.sheet.target.score_name, self.progress) as show:
                with _stopping() as stop:
                    train(state, data, self.settings, _Tick(self, show, stop))
                self._keep(state)
            return self._finish(state, data)
        except KeyboardInterrupt:
            done = f"stopped after {len(state.history)} of {self.settings.epochs} epochs"
            where = f"saved in {self.folder}" if self.folder else "nothing was saved (no out=)"
            raise Interrupted(f"{done}, {where}", self.folder) from None
        except Diverged as error:
            if self.folder is not None:
                run.write_metrics(self.folder, state.history)
            raise Diverged(
                f"{error}; try a smaller lr (it was {self.settings.rule.lr:g}), "
                f"init=kaiming (it was {self.settings.init}) or the centered or momentum options off"
            ) from None

    def _state(self) -> State:
        target, settings = self.sheet.target, self.settings
        width = len(target.classes) if target.classes else 1
        network = build(self.features.width, settings.hidden, width, settings.init, settings.seed)
        return State(network, optimizer_for(network, settings))

    def _keep(self, state: State) -> None:
        if self.folder is not None:
            run.save_checkpoint(self.folder, state, self.config["sha256"])

    def _finish(self, state: State, data: Data) -> Model:
        result = _result(state, data, self)
        model = Model(state.network, self.features, self.sheet.target, self.config, state.history, result, self.folder)
        if self.folder is not None:
            result["race"] = race(state.network, data, self.settings)
            write_model(model, self.folder)
        return model
