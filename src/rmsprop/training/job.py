"""The whole job in order: a table in, a trained model out, started afresh or resumed."""

import platform
import shlex
import signal
import sys
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from time import monotonic
from typing import Any

import numpy as np
import torch

import rmsprop
from rmsprop.fit import Model
from rmsprop.training import features, run
from rmsprop.training.files import write
from rmsprop.training.loop import DivergedError, State, train
from rmsprop.training.network import build, threads_for
from rmsprop.training.predicting import load
from rmsprop.training.progress import Show, shown
from rmsprop.training.race import optimizer_for, race
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
    sheet = prepare(columns, target, settings)
    found = features.fit(sheet.columns, sheet.kinds, sheet.train)
    network = build(found.width, settings.hidden, sheet.target.outputs, settings.init, settings.seed)
    config = {
        "settings": settings.as_json(),
        "target": sheet.target.as_json(),
        "data": {
            "source": source,
            "rows": len(sheet.codes),
            "columns": len(sheet.kinds),
            "fingerprint": sheet.fingerprint(),
        },
        "threads": threads_for(network, settings.batch_size),
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": versions(),
    }
    folder = None
    if out is not None:
        folder = run.create(out, config, found)
        config = run.read_config(folder)
    return Job(settings, sheet, found, config, folder, progress).run(network)


def resume(folder: Path, columns: Any, target: Any, *, progress: bool = False) -> Model:
    """Go on with a run; the weights end up as if it had never stopped. A finished run is only loaded.

    Raises:
        ValueError: another table than the run's, a damaged file, or a run that is still being trained.
    """
    if run.finished(folder):
        return load(folder)
    config = run.read_config(folder)
    settings = Settings.from_json(config["settings"])
    sheet = prepare(columns, target, settings)
    if sheet.fingerprint() != config["data"]["fingerprint"]:
        raise ValueError(f"{config['data']['source'] or 'columns'}: not the table that {folder} was started with")
    found = run.read_features(folder, config)
    network = build(found.width, settings.hidden, sheet.target.outputs, settings.init, settings.seed)
    return Job(settings, sheet, found, config, folder, progress).run(network)


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
    run.write_metrics(folder, model.history)
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
    stop: bool = False
    saved: float = field(default_factory=monotonic)

    def run(self, network: torch.nn.Sequential) -> Model:
        """Train to the last epoch with checkpoints on the way, then finish the run folder."""
        state = State(network, optimizer_for(network, self.settings))
        with run.locked(self.folder), _threads(self.config["threads"]):
            if self.folder is not None:
                run.load_checkpoint(self.folder, state, self.config["sha256"])
            try:
                return self._train(state)
            except KeyboardInterrupt:
                raise KeyboardInterrupt(self._farewell(state)) from None
            except DivergedError as error:
                if self.folder is not None:
                    run.write_metrics(self.folder, state.history)
                raise DivergedError(f"{error}; {self._advice()}") from None

    def _train(self, state: State) -> Model:
        data, target = self.sheet.data(self.features), self.sheet.target
        batches = -(-len(data.x) // self.settings.batch_size)
        if self.progress:
            print(self._announced(state), file=sys.stderr)
        with self._stoppable(), shown(self.settings.epochs, batches, target.score_name, self.progress) as show:
            train(state, data, self.settings, lambda state: self._tick(state, show))
        self._keep(state)
        result = result_of(state, data, target)
        model = Model(state.network, self.features, target, self.config, state.history, result, self.folder)
        if self.folder is not None:
            result["race"] = race(state.network, data, self.settings)
            finish(model, self.folder)
        return model

    def _tick(self, state: State, show: Show) -> None:
        """After every batch: show it, keep it once a second, and stop here if asked to."""
        show(state)
        if self.stop or monotonic() - self.saved > CHECKPOINT_EVERY:
            self._keep(state)
        if self.stop:
            raise KeyboardInterrupt

    def _keep(self, state: State) -> None:
        if self.folder is not None:
            run.save_checkpoint(self.folder, state, self.config["sha256"])
        self.saved = monotonic()

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


@contextmanager
def _threads(number: int) -> Iterator[None]:
    """Run torch with this many threads: the number decides the order of some sums, so a resumed run needs the same."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)
