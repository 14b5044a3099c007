"""The whole comparison in order: problems and optimizers in, results out, each kept as soon as it is there."""

import hashlib
import shlex
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rmsprop.checkpoint.disk import write
from rmsprop.compare import Comparison
from rmsprop.comparing import progress, report, timing
from rmsprop.comparing.candidates import POINTS, Candidate
from rmsprop.comparing.plan import Plan
from rmsprop.comparing.problem import Problem
from rmsprop.comparing.ranking import rank
from rmsprop.comparing.seeding import seeded
from rmsprop.comparing.sources import Source
from rmsprop.comparing.sweep import CONFIG, EXTENSIONS, Result, Store, sweep
from rmsprop.comparing.verdict import verdict
from rmsprop.training import run
from rmsprop.training.job import versions
from rmsprop.training.network import running_on, threads_for

REPORT = "report.html"
FOLDER = "compare"  # NAME-001, NAME-002, ... in it, for who names no other


@dataclass
class Job:
    """A comparison that has been set up: what is compared, on what, and where it is kept.

    Without a `folder`, one that is `kept` goes to the first that is free.
    """

    source: Source
    plan: Plan
    folder: Path | None
    threads: int
    shown: bool
    kept: bool = False

    def run(self) -> Comparison:
        """Train what is not there yet, then judge all of it."""
        candidates = self.plan.candidates()
        with self.source.ready(self.plan) as problems:
            settings = self._settings(problems, candidates)
            self._tell_missing()
            store = self._store(settings)
            with run.locked(self.folder, CONFIG):
                results = self._results(problems, candidates, store)
        return self._judged(problems, results, settings)

    def _store(self, settings: dict[str, Any]) -> Store | None:
        """Where results are kept, if they are."""
        if self.folder is not None or not self.kept:
            return None if self.folder is None else Store(self.folder, settings)
        self.folder = _new_folder(self.source.name)
        try:
            return Store(self.folder, settings)
        except BaseException:
            with suppress(OSError):  # it has something in it
                self.folder.rmdir()
            raise

    def _tell_missing(self) -> None:
        """Name on standard error what was left out and why."""
        if self.shown:
            for name, why in {**self.source.missing, **self.plan.missing()}.items():
                print(f"left out: {name}: {why}", file=sys.stderr)

    def _settings(self, problems: list[Problem], candidates: list[Candidate]) -> dict[str, Any]:
        """Everything that the numbers depend on, and what a resumed comparison needs."""
        plain = {"source": self.source.as_json(), **self.plan.as_json(), "threads": self.threads}
        with self.source.blamed(), running_on(1):  # sums depend on the number of threads
            for problem in problems:
                for seed in self._seeds():  # a model that fails does so before anything is written
                    problem.start(seed)
            data = {p.name: fingerprint(p) for p in problems}
        packages = {c.package: version(c.package) for c in candidates if c.package != "torch"}
        return {**plain, "data": data, "versions": {**versions(), **packages}}

    def _results(self, problems: list[Problem], candidates: list[Candidate], store: Store | None) -> list[Result]:
        units = [(problem, candidate) for problem in problems for candidate in candidates]
        found = {} if store is None else self._kept(units, store)
        rest = [(p, c) for p, c in units if (p.name, c.name) not in found]
        with progress.shown(len(units), self.shown) as show:
            for result in found.values():
                show.known(result.problem, result.seconds)
            try:
                show.expect([p.name for p, _ in rest], self._guesses([p for p, _ in rest]) if self.shown else {})
                for problem, candidate in rest:
                    result = self._one(problem, candidate, show)
                    if store is not None:
                        store.put(result)
                    found[problem.name, candidate.name] = result
                    show.finish(result)
            except KeyboardInterrupt:
                raise KeyboardInterrupt(self._farewell(len(found), len(units))) from None
        return [found[p.name, c.name] for p, c in units]

    def _kept(self, units: list[tuple[Problem, Candidate]], store: Store) -> dict[tuple[str, str], Result]:
        """What an earlier process has done."""
        found = (store.get(p.name, c.name, self.plan.decay) for p, c in units)
        return {(result.problem, result.candidate): result for result in found if result is not None}

    def _one(self, problem: Problem, candidate: Candidate, show: progress.Show) -> Result:
        show.start(problem.name, candidate.name)
        with self.source.blamed(), self._threads(problem):
            lrs = None if self.plan.lrs is None else list(self.plan.lrs)
            return sweep(problem, candidate, self._seeds(), self.plan.decay, show.tell, lrs)

    def _guesses(self, problems: list[Problem]) -> dict[str, float]:
        """About how many seconds one candidate will take on each problem."""
        lrs = len(self.plan.lrs) if self.plan.lrs else POINTS
        guesses = {}
        for problem in {p.name: p for p in problems}.values():
            with self.source.blamed(), self._threads(problem), seeded(0):
                guesses[problem.name] = timing.guess(problem, self._seeds(), lrs)
        return guesses

    def _seeds(self) -> list[int]:
        return list(range(self.plan.seeds))

    @contextmanager
    def _threads(self, problem: Problem) -> Iterator[None]:
        """As many threads as the comparison began with, or one where the work is too little for more."""
        with running_on(self.threads):
            replicas = self.plan.seeds * (len(self.plan.lrs) if self.plan.lrs else POINTS)
            threads = threads_for(problem.start(0), problem.batch_size * replicas)
        with running_on(threads):
            yield

    def _judged(self, problems: list[Problem], results: list[Result], settings: dict[str, Any]) -> Comparison:
        rankings = rank(results)
        abouts = {p.name: p.about for p in problems}
        if self.folder is not None:
            how = {"Settings": self._how(settings), "Versions": settings["versions"]}
            write(self.folder / REPORT, report.render(rankings, abouts, how).encode())
        return Comparison(abouts, results, rankings, verdict(rankings), settings, self.folder)

    def _how(self, settings: dict[str, Any]) -> dict[str, Any]:
        """The settings in words, for the report."""
        plan = self.plan
        whole = ", ".join(c.name for c in plan.candidates() if c.full_batch)
        still = f"; none for {whole}" if whole else ""
        grid = f"{POINTS} for each optimizer, two a decade; up to {EXTENSIONS} more where the best is the first or last"
        return {
            "of": self.source.about,
            "learning rates": ", ".join(f"{lr:g}" for lr in plan.lrs) if plan.lrs else grid,
            "schedule": f"falling linearly to 0{still}" if plan.decay else "constant",
            "seeds": plan.seeds,
            "steps": plan.steps or "the problem's own",
            "rows a step": plan.batch_size or "the problem's own",
            "threads": settings["threads"],
        }

    def _farewell(self, done: int, units: int) -> str:
        """What a Ctrl-C has left, and how to go on from there."""
        text = f"stopped with {done} of {units} optimizers done"
        if self.folder is None:
            return f"{text}; nothing was kept (out was not given)"
        if self.source.in_memory:
            return f"{text} and kept; go on with: rmsprop.compare(..., resume={str(self.folder)!r})"
        return f"{text} and kept; go on with: rmsprop compare --resume {shlex.quote(str(self.folder))}"


def _new_folder(name: str) -> Path:
    """The first numbered folder that is free, made at once so that no other process takes it."""
    for place in run.numbered(name, FOLDER):
        with suppress(FileExistsError):
            place.mkdir(parents=True)
            return place
    raise AssertionError("numbers do not end")


def fingerprint(problem: Problem) -> str:
    """SHA-256 that changes with the data, the budget, the first weights and buffers, and what model and loss do.

    That is taken from their results on the first batch, in training and in evaluation.
    """
    digest = hashlib.sha256(f"{problem.steps} {problem.batch_size}".encode())
    model, rows = problem.start(0), problem.order(0)[0]
    tensors = [x for split in (problem.train, problem.valid, problem.test) for x in split]
    tensors += [*model.parameters(), *model.buffers()]
    x, y = problem.train.inputs[rows], problem.train.targets[rows]
    for training in (True, False):
        with seeded(0):
            model = problem.start(0) if training else problem.start(0).eval()
            outputs = model(x)
            scores = [problem.loss(outputs, y), problem.error(outputs.detach(), y) if problem.error else None]
        tensors += _tensors([outputs, scores])
    for tensor in tensors:
        digest.update(f"{tensor.dtype} {tuple(tensor.shape)} ".encode())
        digest.update(tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _tensors(value: Any) -> list[Tensor]:
    """All tensors in a result, in whatever dicts, lists and tuples."""
    if isinstance(value, Tensor):
        return [value]
    inner = value.values() if isinstance(value, Mapping) else value if isinstance(value, (list, tuple)) else ()
    return [tensor for part in inner for tensor in _tensors(part)]
