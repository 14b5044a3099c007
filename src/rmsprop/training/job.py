"""The whole job in order: a table in, a trained model out, started afresh or resumed."""

import platform
import shlex
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from time import monotonic
from typing import Any

import numpy as np
import torch

import rmsprop
from rmsprop.checkpoint.disk import write
from rmsprop.fit import Model
from rmsprop.training import features, run
from rmsprop.training.loop import Data, DivergedError, State, train
from rmsprop.training.network import build, running_on, threads_for
from rmsprop.training.predicting import load
from rmsprop.training.progress import Show, shown
from rmsprop.training.race import optimizer_for, race
from rmsprop.training.ranks import ALONE, Ranks, joined
from rmsprop.training.report import render
from rmsprop.training.result import result_of
from rmsprop.training.settings import Settings
from rmsprop.training.sheet import Sheet, prepare

CHECKPOINT_EVERY = 1.0  # seconds


def start(
    columns: Any,
    target: Any,
    settings: Settings,
    *,
    out: Iterable[Path] | None = None,
    source: str | None = None,
    progress: bool = False,
) -> Model:
    """Train on a table.

    Args:
        columns, target, settings: as `sheet.prepare` takes them.
        out: where the run folder may go; the first free place is taken. None keeps nothing.
        source: where a resumed run finds the table again: a file, "digits", or None for a table in memory.
        progress: show it.
    """
    with joined() as ranks:
        sheet, found = ranks.together(lambda: _ready(columns, target, settings))
        fingerprint = sheet.fingerprint()
        ranks.same("columns or options", (fingerprint, settings))
        network = build(found.width, settings.hidden, sheet.target.outputs, settings.init, settings.seed)
        data = {"source": source, "rows": len(sheet.codes), "columns": len(sheet.kinds), "fingerprint": fingerprint}
        config = {
            "settings": settings.as_json(),
            "target": sheet.target.as_json(),
            "data": data,
            "processes": ranks.size,
            "threads": _threads_for(network, settings, ranks),
            "started": datetime.now(UTC).isoformat(timespec="seconds"),
            "versions": versions(),
        }
        folder, config = ranks.lead(lambda: _kept(out, config, found))
        return Job(settings, sheet, found, config, folder, progress, ranks).run(network)


def _ready(columns: Any, target: Any, settings: Settings) -> tuple[Sheet, features.Features]:
    sheet = prepare(columns, target, settings)
    return sheet, features.fit(sheet.columns, sheet.kinds, sheet.train)


def _kept(
    out: Iterable[Path] | None, config: dict[str, Any], found: features.Features
) -> tuple[Path | None, dict[str, Any]]:
    """The run folder, where there is to be one, and the config as it is kept."""
    if out is None:
        return None, config
    folder = run.create(out, config, found)
    return folder, run.read_config(folder)


def resume(folder: Path, columns: Any, target: Any, *, progress: bool = False) -> Model:
    """Go on with a run; the weights end up as if it had never stopped. A finished run is only loaded.

    Raises:
        ValueError: another table than the run's, a damaged file, or a run that is still being trained.
    """
    with joined() as ranks:
        finished = ranks.lead(lambda: load(folder) if run.finished(folder) else None)
        if finished is not None:
            return finished
        config = ranks.lead(lambda: run.read_config(folder))
        settings = Settings.from_json(config["settings"])
        sheet = ranks.together(lambda: _same_sheet(columns, target, settings, config, folder))
        found = ranks.lead(lambda: run.read_features(folder, config))
        network = build(found.width, settings.hidden, sheet.target.outputs, settings.init, settings.seed)
        return Job(settings, sheet, found, config, folder, progress, ranks).run(network)


def _same_sheet(columns: Any, target: Any, settings: Settings, config: dict[str, Any], folder: Path) -> Sheet:
    sheet = prepare(columns, target, settings)
    if sheet.fingerprint() != config["data"]["fingerprint"]:
        raise ValueError(f"{config['data']['source'] or 'columns'}: not the table that {folder} was started with")
    return sheet


def versions() -> dict[str, str]:
    """Of what the numbers depend on."""
    return {
        "rmsprop": rmsprop.__version__,
        "torch": torch.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
    }


def finish(model: Model, folder: Path) -> None:
    """Write what a finished run has; model.safetensors last, which says that all the rest is there."""
    run.write_tables(folder, model)
    write(folder / run.REPORT, render(model).encode())
    run.save_model(folder, model)


@dataclass
class Job:
    """A run that has been set up: what to do, with what, and where it is kept."""

    settings: Settings
    sheet: Sheet
    features: features.Features
    config: dict[str, Any]
    folder: Path | None
    progress: bool
    ranks: Ranks = ALONE
    stop: bool = False
    saved: float = field(default_factory=monotonic)

    def run(self, network: torch.nn.Sequential) -> Model:
        """Train to the last epoch with checkpoints on the way, then finish the run folder."""
        state = State(network, optimizer_for(network, self.settings))
        with ExitStack() as held, running_on(self._threads(network)):
            self.ranks.lead(lambda: held.enter_context(run.locked(self.folder)))
            if self.folder is not None:
                run.load_checkpoint(self.folder, state, self.config["sha256"], self.ranks)
            try:
                return self._train(state)
            except KeyboardInterrupt:
                raise KeyboardInterrupt(self._farewell(state)) from None
            except DivergedError as error:
                self._write(lambda folder: run.write_tables(folder, state))
                raise DivergedError(f"{error}; {self._advice()}") from None

    def _train(self, state: State) -> Model:
        data, progress = self.sheet.data(self.features), self.progress and self.ranks.leads
        batches = -(-len(data.x) // self.settings.batch_size)
        if progress:
            print(self._announced(state), file=sys.stderr)
        with self._stoppable(), shown(self.settings.epochs, batches, self.sheet.target.score_name, progress) as show:
            train(state, data, self.settings, lambda state: self._tick(state, show), self.ranks)
        self._keep(state)
        return self.ranks.lead(lambda: self._finished(state, data))

    def _finished(self, state: State, data: Data) -> Model:
        target, result = self.sheet.target, result_of(state, data, self.sheet.target)
        model = Model(
            state.network, self.features, target, self.config, state.history, result, self.folder, state.layers
        )
        if self.folder is not None:
            result["race"] = race(state.network, data, self.settings)
            finish(model, self.folder)
        return model

    def _tick(self, state: State, show: Show) -> None:
        """After every batch: show it, keep it once a second, and stop here if any rank was asked to."""
        show(state)
        due = monotonic() - self.saved > CHECKPOINT_EVERY
        wish = self.ranks.most(2 if self.stop else int(due))
        if wish:
            self._keep(state)
        if wish == 2:
            raise KeyboardInterrupt

    def _keep(self, state: State) -> None:
        self._write(lambda folder: run.save_checkpoint(folder, state, self.config["sha256"]))
        self.saved = monotonic()

    def _write(self, action: Callable[[Path], None]) -> None:
        """Let rank 0 do something to the run folder, if there is one."""
        folder = self.folder
        if folder is not None:
            self.ranks.lead(lambda: action(folder))

    def _threads(self, network: torch.nn.Module) -> int:
        """The run's own number; with more or fewer processes than it began with the sums differ in any case."""
        if self.ranks.size == self.config.get("processes", 1):
            return int(self.config["threads"])
        return _threads_for(network, self.settings, self.ranks)

    @contextmanager
    def _stoppable(self) -> Iterator[None]:
        """The first Ctrl-C waits for the end of a batch, so that what is saved is whole; a second one does not."""
        if threading.current_thread() is not threading.main_thread():
            yield  # only the main thread hears signals
            return

        def ask(*_: object) -> None:
            self.stop = True
            signal.signal(signal.SIGINT, before)

        before = signal.signal(signal.SIGINT, ask)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, before)

    def _announced(self, state: State) -> str:
        """What is about to be done, in a line."""
        target, rows = self.sheet.target, f"{len(self.sheet.train)} rows ({len(self.sheet.test)} held out)"
        classes = f" in {len(target.classes)} classes" if target.classes else ""
        text = f"{target.task} of {target.name!r}{classes} ({target.why}) from {len(self.sheet.kinds)} columns, {rows}"
        text += f"; {self.ranks.size} processes" * (self.ranks.size > 1)
        return text + f"; going on after epoch {len(state.history)}" * bool(state.history or state.batch)

    def _farewell(self, state: State) -> str:
        """What a Ctrl-C has left, and how to go on from there."""
        done = f"stopped after {len(state.history)} of {self.settings.epochs} epochs"
        if self.folder is None:
            return f"{done}; nothing was saved (out was not given)"
        if self.config["data"]["source"] is None:
            return f"{done}, saved; go on with: rmsprop.fit(columns, target, resume={str(self.folder)!r})"
        return f"{done}, saved; go on with: rmsprop train --resume {shlex.quote(str(self.folder))}"

    def _advice(self) -> str:
        """What to try after the loss has run away."""
        tries = [f"a smaller lr (it was {self.settings.rule.lr:g})"]
        tries += [f"init='kaiming' (it was {self.settings.init!r})"] * (self.settings.init != "kaiming")
        tries += [f"less momentum (it was {self.settings.rule.momentum:g})"] * (self.settings.rule.momentum > 0)
        return f"try {' or '.join(tries)}"


def _threads_for(network: torch.nn.Module, settings: Settings, ranks: Ranks) -> int:
    """How many threads suit a rank's share of a batch."""
    return ranks.threads(threads_for(network, -(-settings.batch_size // ranks.size)))
