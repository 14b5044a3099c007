"""Trains eight problems with every optimizer, and writes what came out into docs/quality.md.

    python benchmarks/quality.py --fast              # three problems, three seeds: a minute and a half of two cores
    python benchmarks/quality.py                     # everything: an hour or more of two cores; goes on after a stop
    python benchmarks/quality.py --page docs/quality.md

All learning rates and seeds of an optimizer on a problem are trained at once (`rmsprop.comparing.replicas`).
The learning rate is chosen on the validation rows and scored on the test rows. Results are kept in --out, one file for
each optimizer and problem; a second run uses those that are there.

Fashion-MNIST and the letters are Debian's dataset-fashion-mnist and r-cran-mlbench: see docs/quality.md.
"""

import argparse
import os
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import replace
from datetime import date
from importlib.metadata import version
from multiprocessing import get_context
from pathlib import Path
from time import perf_counter
from typing import NamedTuple

import quality_tables
import torch

from rmsprop.comparing.builtin import BUILTIN
from rmsprop.comparing.candidates import CANDIDATES
from rmsprop.comparing.problem import Problem
from rmsprop.comparing.running import fingerprint
from rmsprop.comparing.sweep import Store, sweep
from rmsprop.dialects import MODERN
from rmsprop.training.job import versions

FAST = ("digits", "mnist1d", "cooccurrence")
DECAYED = ("adam", "rmsprop-modern", "rmsprop-corrected", "torch-rmsprop", "sgd")
AVERAGED = ("adam-averaged", "rmsprop-corrected-averaged", "rmsprop-modern-averaged")
FULL_BATCH = ("rprop", "rmsprop-modern", "rmsprop-corrected", "torch-rmsprop", "rmsprop-momentum", "adam", "sgd")
PEERS = ("sgd", "schedulefree", "adagrad", "rmsprop-keras", "rmsprop-momentum", "prodigy")
LAST = ("adamw", "rprop", "rmsprop-tf1", "rmsprop-centered")


class Unit(NamedTuple):
    """One optimizer on one problem."""

    problem: str
    candidate: str
    decay: bool = False


def longer(name: str, factor: int) -> Problem:
    """A problem with more steps."""
    problem = BUILTIN[name]()
    return replace(problem, name=f"{name}-long", steps=factor * problem.steps)


def full_batch() -> Problem:
    """The digits, all rows in every step: Rprop's home ground."""
    problem = BUILTIN["digits"]()
    return replace(problem, name="digits-full", batch_size=len(problem.train), steps=200)


PROBLEMS = {
    **BUILTIN,
    "letters-long": lambda: longer("letters", 5),
    "gru-long": lambda: longer("gru", 3),
    "digits-full": full_batch,
}


def units(fast: bool) -> Iterator[Unit]:
    """All that is to be trained, what the bars need first."""
    problems = FAST if fast else tuple(BUILTIN)
    first = ("adam", *AVERAGED[::-1], "rmsprop-modern", "rmsprop-corrected", "torch-rmsprop")
    wanted = [(name, False) for name in first] + [(name, True) for name in DECAYED[:3]]
    for name, decay in wanted:
        if not (fast and "corrected" in name):
            yield from (Unit(problem, name, decay) for problem in problems)
    if fast:
        return
    yield from (Unit("digits-full", name) for name in FULL_BATCH)
    yield from longer_units("letters-long")
    yield from (Unit(problem, name) for name in PEERS for problem in problems)
    yield from longer_units("gru-long")
    yield from (Unit(problem, name, True) for name in DECAYED[3:] for problem in problems)
    yield from (Unit(problem, name) for name in LAST for problem in problems)
    yield from (Unit(problem, name) for name in quality_tables.GAINS for problem in quality_tables.WITH_GAINS)


def longer_units(problem: str) -> Iterator[Unit]:
    """The strongest, averaged or with decay, on a longer training."""
    yield from (Unit(problem, name) for name in AVERAGED)
    yield from (Unit(problem, name, True) for name in DECAYED[:3])


def run(unit: Unit, folder: Path, settings: dict[str, object], seeds: list[int]) -> float:
    """Train one unit and keep its result; the seconds it took."""
    torch.set_num_threads(1)
    result = sweep(PROBLEMS[unit.problem](), CANDIDATES[unit.candidate], seeds, unit.decay)
    Store(folder, settings).put(result)
    return result.seconds


def provenance(seeds: list[int], problems: list[str]) -> dict[str, object]:
    """What the numbers depend on; results of anything else are not mixed in."""
    data = {name: fingerprint(PROBLEMS[name]()) for name in problems}
    peers = {name: version(name) for name in ("schedulefree", "prodigyopt")}
    rules = {"machine": quality_tables.processor(), "modern": repr(MODERN)}
    return {"seeds": seeds, "versions": versions(), "peers": peers, **rules, "data": data}


def train_all(todo: list[Unit], folder: Path, settings: dict[str, object], seeds: list[int], processes: int) -> None:
    start = perf_counter()
    with ProcessPoolExecutor(processes, get_context("spawn")) as pool:
        futures = {pool.submit(run, unit, folder, settings, seeds): unit for unit in todo}
        for done, future in enumerate(as_completed(futures), 1):
            unit, seconds = futures[future], future.result()
            left = (perf_counter() - start) / done * (len(todo) - done) / 60
            label = f"{unit.problem}, {unit.candidate}{' with decay' * unit.decay}"
            print(f"{done}/{len(todo)}  {label}: {seconds:.0f} s; some {left:.0f} min left", file=sys.stderr)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fast", action="store_true", help="three problems, three seeds")
    parser.add_argument("--out", type=Path, help="folder of the results (default: quality, or quality-fast)")
    parser.add_argument(
        "--page", type=Path, help="write the tables into this page, between its markers, and plots beside"
    )
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    return parser.parse_args()


def main() -> None:
    options = arguments()
    folder = options.out or Path("quality-fast" if options.fast else "quality")
    seeds = list(range(3 if options.fast else 8))
    wanted = list(units(options.fast))
    settings = provenance(seeds, sorted({unit.problem for unit in wanted}))
    store = Store(folder, settings)
    todo = [unit for unit in wanted if store.get(*unit) is None]
    if todo:
        train_all(todo, folder, settings, seeds, options.processes)
    results = [result for unit in wanted if (result := store.get(*unit)) is not None]
    tables = quality_tables.tables(results)
    day = date.fromtimestamp(max(path.stat().st_mtime for path in folder.glob("*--*.json")))
    known = ", ".join(f"{name} {number}" for name, number in versions().items())
    tables["machine"] = f"{day}, {settings['machine']}, one thread a training, {known}; {len(seeds)} seeds."
    if options.page is None:
        print("\n\n".join(f"## {name}\n\n{table}" for name, table in tables.items()))
    else:
        quality_tables.write(options.page, tables, results)


if __name__ == "__main__":
    main()
