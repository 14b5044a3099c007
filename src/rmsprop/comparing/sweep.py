"""One optimizer's learning rates tried on one problem, every result on disk as soon as it is there."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

from rmsprop.checkpoint.disk import write
from rmsprop.comparing.candidates import Candidate, lr_at
from rmsprop.comparing.curves import Curves
from rmsprop.comparing.problem import Problem
from rmsprop.comparing.replicas import train
from rmsprop.comparing.seeding import seeded
from rmsprop.comparing.timing import step_seconds

CONFIG = "compare.json"
EXTENSIONS = 3  # more learning rates where the best is the first or the last
MOST_WEIGHTS = 20_000_000  # of the replicas that are trained at once
Tell = Callable[[float], None]


@dataclass
class Result:
    """What a candidate did on a problem.

    `seconds` is how long all its trainings took together, `step_seconds` what one step of the optimizer costs.
    """

    problem: str
    candidate: str
    decay: bool
    curves: Curves
    seconds: float
    step_seconds: float

    @property
    def optimizer_seconds(self) -> float:
        """How long one training spends in the optimizer."""
        return self.step_seconds * self.curves.steps[-1]


def sweep(
    problem: Problem,
    candidate: Candidate,
    seeds: list[int],
    decay: bool,
    tell: Tell = lambda done: None,
    lrs: list[float] | None = None,
) -> Result:
    """Train with every learning rate of a grid.

    Without `lrs` that is the candidate's own, and up to three more beyond an edge that is best.
    """
    start = perf_counter()
    if lrs is None:
        curves = _extended(problem, candidate, seeds, decay, tell)
    else:
        curves = _train(problem, candidate, lrs, seeds, decay, tell)
    step = step_seconds(problem, candidate, curves.lrs[curves.best()], seeds[0])
    return Result(problem.name, candidate.name, decay, curves, perf_counter() - start, step)


def _extended(problem: Problem, candidate: Candidate, seeds: list[int], decay: bool, tell: Tell) -> Curves:
    k = candidate.first
    curves = _train(problem, candidate, candidate.grid, seeds, decay, tell)
    low, high = k - 1, k + len(curves.lrs)
    for _ in range(EXTENSIONS):
        edge = curves.at_edge()
        if not edge:
            break
        more = [lr_at(low if edge < 0 else high)]
        low, high = low - (edge < 0), high + (edge > 0)
        curves = curves.joined(_train(problem, candidate, more, seeds, decay, lambda done: None))
    return curves


def _train(
    problem: Problem, candidate: Candidate, lrs: list[float], seeds: list[int], decay: bool, tell: Tell
) -> Curves:
    """Those learning rates at once whose weights fit."""
    weights = sum(p.numel() for p in problem.start(seeds[0]).parameters())
    at_once = min(max(MOST_WEIGHTS // (weights * len(seeds)), 1), len(lrs))
    curves: Curves | None = None
    for i in range(0, len(lrs), at_once):
        part = lrs[i : i + at_once]
        done, share = i / len(lrs), len(part) / len(lrs)

        def told(x: float, done: float = done, share: float = share) -> None:
            tell(done + share * x)

        with seeded(seeds[0]):  # for models that draw random numbers, such as dropout
            found = train(problem, candidate, part, seeds, decay, told)
        curves = found if curves is None else curves.joined(found)
    assert curves is not None
    return curves


class Store:
    """Results in a folder: one JSON file for each, and what they were made with, which later runs must share."""

    def __init__(self, folder: Path, settings: dict[str, Any]) -> None:
        """Opens or makes the folder.

        Raises:
            ValueError: it has results of other settings, or is no such folder; nothing is changed then.
        """
        self.folder, path = folder, folder / CONFIG
        if path.is_file():
            _same(folder, read(path), settings)
        elif folder.exists() and any(folder.iterdir()):
            raise ValueError(f"{folder}: expected a new or empty folder, or one of an earlier comparison")
        else:
            folder.mkdir(parents=True, exist_ok=True)
            write(path, json.dumps(settings, indent=2).encode())

    def get(self, problem: str, candidate: str, decay: bool) -> Result | None:
        """A result, if it is there."""
        path = self._path(problem, candidate, decay)
        if not path.is_file():
            return None
        try:
            values = read(path)
            return Result(**{**values, "curves": Curves.from_json(values["curves"])})
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            text = str(error) if isinstance(error, ValueError) else f"{path}: damaged or of another version: {error!r}"
            raise ValueError(f"{text}; delete it to have it made anew") from error

    def put(self, result: Result) -> None:
        """Keeps a result; a kill leaves it whole or not at all."""
        values = {**vars(result), "curves": result.curves.to_json()}
        write(self._path(result.problem, result.candidate, result.decay), json.dumps(values).encode())

    def _path(self, problem: str, candidate: str, decay: bool) -> Path:
        return self.folder / f"{problem}--{candidate}{'--decay' if decay else ''}.json"


def _same(folder: Path, known: dict[str, Any], settings: dict[str, Any]) -> None:
    """Refuse other settings than those that are known, in words."""
    changed = {name for name in settings.keys() | known.keys() if settings.get(name) != known.get(name)}
    old, new = known.get("data"), settings.get("data")
    if changed == {"data"} and isinstance(old, dict) and isinstance(new, dict):
        names = " and ".join(repr(name) for name in {**old, **new} if old.get(name) != new.get(name))
        raise ValueError(
            f"{folder}: the model, loss or data of {names} differ from those this comparison began with: expected the "
            "same, with whatever is random seeded, on the same machine; or another folder"
        )
    for name in sorted(changed, key=lambda name: (name == "data", name)):  # which may have changed due to the others
        raise ValueError(
            f"{folder} has results of {name}={known.get(name)!r}, not {settings.get(name)!r}: "
            "expected the same settings, or another folder"
        )


def read(path: Path) -> dict[str, Any]:
    """The values in a file of a comparison's folder."""
    try:
        values: dict[str, Any] = json.loads(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{path}: damaged: {error}") from error
    if not isinstance(values, dict):
        raise ValueError(f"{path}: damaged: expected a JSON object")
    return values
