"""Compares optimizers in A2C: CartPole, and MinAtar's Breakout and Space Invaders, on environments that JAX compiles.

    pip install -e ".[jax]" -r benchmarks/requirements.txt
    python benchmarks/rl.py --fast
    python benchmarks/rl.py --environment CartPole-v1 --optimizer adam
    python benchmarks/rl.py --write

Each optimizer's learning rate, a power of the root of 10, is chosen on some seeds (where the best lies at an end of
those tried, the next one is tried too) and judged on others. Every result is saved in a folder, and a run goes on from
what is there. `--write` puts tables and plot into docs/rl.md and docs/rl.svg; `--report` does not train.
"""

import argparse
import json
import os
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from datetime import date
from hashlib import sha256
from importlib import import_module
from pathlib import Path
from time import process_time
from typing import Any

import numpy as np
import rl_report

import rmsprop


@dataclass(frozen=True)
class Optimizer:
    """A function of a module, its arguments, and the learning rates to begin with: 10^(k/2)."""

    module: str
    function: str
    options: dict[str, Any]
    begin: range = range(-7, -2)

    def make(self, lr: Any) -> Any:
        """The transformation; `lr` may be traced."""
        return getattr(import_module(self.module), self.function)(lr, **self.options)

    def __str__(self) -> str:
        return f"{self.module}.{self.function}({', '.join(['lr', *(f'{k}={v!r}' for k, v in self.options.items())])})"


def ours(**options: Any) -> Optimizer:
    return Optimizer("rmsprop.jax", "rmsprop", options)


OPTIMIZERS = {
    "adam": Optimizer("optax", "adam", {}),
    "adam-eps-1e-5": Optimizer("optax", "adam", {"eps": 1e-5}),
    "sgd-momentum": Optimizer("optax", "sgd", {"momentum": 0.9}, range(-4, 1)),
    "rmsprop-torch": ours(dialect="torch"),
    "rmsprop-sb3": ours(dialect="torch", eps=1e-5),
    "rmsprop-tf1": ours(dialect="tf1", decay=0.99, eps=1e-5),
    "rmsprop-tf1-from-0": ours(dialect="tf1", decay=0.99, eps=1e-5, initial_scale=0.0),
    "rmsprop-corrected": ours(dialect="torch", bias_correction=True),
    "rmsprop-corrected-clip": ours(dialect="torch", bias_correction=True, clip=1.0),
    "rmsprop-corrected-clip-ema": ours(
        dialect="torch", bias_correction=True, clip=1.0, momentum=0.9, momentum_form="ema"
    ),
    "rmsprop-modern": ours(dialect="modern"),
}
FAST = ("adam", "rmsprop-corrected")
EXTREMES = (-12, 6)


@dataclass(frozen=True)
class Task:
    """An environment of gymnax, the seeds that choose and judge, and how many replicas at a time were fastest."""

    name: str
    frames: int
    choosing: int
    judging: int
    width: int
    without: tuple[str, ...] = ()


#: What the slow games go without.
VARIANTS = ("rmsprop-sb3", "rmsprop-tf1-from-0")
TASKS = {
    "CartPole-v1": Task("CartPole-v1", 96_000, choosing=12, judging=20, width=20),
    "Breakout-MinAtar": Task("Breakout-MinAtar", 112_000, choosing=4, judging=12, width=4, without=VARIANTS),
    "SpaceInvaders-MinAtar": Task("SpaceInvaders-MinAtar", 112_000, choosing=4, judging=12, width=4, without=VARIANTS),
}
FAST_TASKS = ("CartPole-v1", "Breakout-MinAtar")
#: Seeds that judge begin here, far from those that choose.
JUDGES = 2000

Train = Callable[[list[tuple[float, int]]], tuple[np.ndarray, np.ndarray]]


def in_batches(program: Callable[..., Any], width: int) -> Train:
    """Training of any number of (learning rate, seed), by a program that is compiled once, for `width` of them."""

    def train(replicas: list[tuple[float, int]]) -> tuple[np.ndarray, np.ndarray]:
        done = []
        for i in range(0, len(replicas), width):
            batch = replicas[i : i + width]
            padded = batch + batch[-1:] * (width - len(batch))
            lrs, seeds = np.array([lr for lr, _ in padded], np.float32), np.array([seed for _, seed in padded])
            done.append([np.asarray(x)[: len(batch)] for x in program(lrs, seeds)])
        total, ended = zip(*done, strict=True)
        return np.concatenate(total), np.concatenate(ended)

    return train


def choose(train: Train, begin: range, seeds: range, say: Callable[[str], None]) -> tuple[int, dict[int, list[float]]]:
    """The k whose learning rate 10^(k/2) has the highest mean return at the end, and the returns of all tried."""
    tried: dict[int, list[float]] = {}
    wanted = list(begin)
    while wanted:
        curves = rl_report.score(*train([(10 ** (k / 2), seed) for k in wanted for seed in seeds]))
        for k, scores in zip(wanted, curves.reshape(len(wanted), len(seeds)), strict=True):
            tried[k] = scores.tolist()
            say(f"lr {rl_report.lr(k)}: {scores.mean():.2f}")
        best = max(sorted(tried), key=lambda k: np.mean(tried[k]))
        ends = {min(tried): min(tried) - 1, max(tried): max(tried) + 1}
        wanted = [k for end, k in ends.items() if end == best and EXTREMES[0] <= k <= EXTREMES[1]]
    return best, tried


def measure(task: Task, name: str) -> dict[str, Any]:
    """Choose the learning rate of an optimizer, and judge it on other seeds."""
    from rl_a2c import trainer

    def say(text: str) -> None:
        print(f"{task.name}, {name}: {text}", file=sys.stderr, flush=True)

    start, optimizer = process_time(), OPTIMIZERS[name]
    train = in_batches(trainer(task.name, task.frames, optimizer.make), task.width)
    k, tried = choose(train, optimizer.begin, range(task.choosing), say)
    total, ended = train([(10 ** (k / 2), JUDGES + seed) for seed in range(task.judging)])
    say(f"lr {rl_report.lr(k)} on other seeds: {rl_report.score(total, ended).mean():.2f}")
    return {
        "k": k,
        "tried": tried,
        "total": total.tolist(),
        "ended": ended.tolist(),
        "seconds": process_time() - start,
        "date": date.today().isoformat(),
        "machine": rl_report.machine(),
    }


def provenance(task: Task, optimizer: Optimizer) -> dict[str, Any]:
    """What a result depends on; those of anything else are made anew."""
    what = {key: value for key, value in asdict(task).items() if key != "without"}
    dialect = optimizer.options.get("dialect")
    return {
        **what,
        "optimizer": str(optimizer),
        "begin": list(optimizer.begin),
        "rule": repr(rmsprop.dialect(dialect)) if dialect else None,
        "program": sha256(Path(__file__).with_name("rl_a2c.py").read_bytes()).hexdigest(),
    }


def results(folder: Path, tasks: list[Task], names: list[str], train: bool) -> dict[str, dict[str, dict]]:
    """Results by environment and optimizer: from the folder if they are there with these settings, or made now."""
    found: dict[str, dict[str, dict]] = {}
    for task in tasks:
        for name in (name for name in names if name not in task.without):
            file = folder / f"{task.name}-{name}.json"
            settings = provenance(task, OPTIMIZERS[name])
            saved = json.loads(file.read_text()) if file.exists() else {}
            if saved.get("settings") != settings:
                if not train:
                    continue
                saved = {"settings": settings, **measure(task, name)}
                folder.mkdir(parents=True, exist_ok=True)
                whole = file.with_suffix(".part")
                whole.write_text(json.dumps(saved))
                os.replace(whole, file)
            found.setdefault(task.name, {})[name] = saved
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fast", action="store_true", help="some 90 s: few frames and seeds, two of the optimizers")
    parser.add_argument("--environment", action="append", choices=TASKS, help="only this one; may be repeated")
    parser.add_argument("--optimizer", action="append", choices=OPTIMIZERS, help="only this one; may be repeated")
    parser.add_argument("--folder", type=Path, default=Path("runs/rl"), help="of results (%(default)s)")
    parser.add_argument("--report", action="store_true", help="report what is there, and train nothing")
    parser.add_argument("--write", action="store_true", help="write docs/rl.md and docs/rl.svg too")
    arguments = parser.parse_args()
    if arguments.fast and arguments.write:
        parser.error("--write and --fast: the page is for whole results")
    names = arguments.optimizer or list(FAST if arguments.fast else OPTIMIZERS)
    tasks = [TASKS[name] for name in arguments.environment or (FAST_TASKS if arguments.fast else TASKS)]
    folder = arguments.folder
    os.environ.setdefault("NPROC", "1")  # with two, jaxlib 0.10.2 may wait for ever, and it is no faster
    if arguments.fast:
        folder /= "fast"
        tasks = [replace(task, frames=12_800, choosing=1, judging=4) for task in tasks]
    try:
        found = results(folder, tasks, names, train=not arguments.report)
        if not found:
            parser.error(f"--folder {folder}: nothing there to report")
        report(found, write=arguments.write)
    except ModuleNotFoundError as error:
        parser.error(f"{error.name} is missing: pip install -e '.[jax]' -r benchmarks/requirements.txt")


def report(found: dict[str, dict[str, dict]], write: bool) -> None:
    text = rl_report.text(found)
    print(text)
    if write:
        docs = Path(__file__).parents[1] / "docs"
        rl_report.plot(found, docs / "rl.svg")
        rl_report.put(text, docs / "rl.md")


if __name__ == "__main__":
    main()
