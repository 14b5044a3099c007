"""Factorises a matrix of ratings with sparse gradients: dense, exact and lazy steps side by side.

    python examples/recommender.py
    python examples/recommender.py RATINGS --steps 2000 --rows 1000000 --plot curves.svg

RATINGS is a file of lines "user item rating ...", such as MovieLens' u.data, or a wheel of recbole, which has it
(`pip download --no-deps recbole`; for research, see the terms of GroupLens). Without it the ratings are how often two
words stand close together in Python's own documentation, which every Python has: the model is then that of GloVe.
"""

import argparse
import re
from collections import Counter
from collections.abc import Iterator
from math import log
from pathlib import Path
from pydoc_data.topics import topics
from time import perf_counter
from typing import NamedTuple
from zipfile import ZipFile, is_zipfile

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LinearLR

from rmsprop.torch import RMSprop

RULES = {"plain": {"lr": 3e-3}, "momentum": {"lr": 3e-4, "momentum": 0.9}}
WAYS = ("torch, dense", "dense", "exact", "lazy")
WIDTH, BATCH, WINDOW, EVERY = 16, 512, 5, 25


class Ratings(NamedTuple):
    """Which two rows meet, [N, 2], and the rating that they give, [N]."""

    pairs: Tensor
    values: Tensor

    def split(self, kept: int) -> tuple["Ratings", "Ratings"]:
        """The first so many, and the others."""
        return Ratings(self.pairs[:kept], self.values[:kept]), Ratings(self.pairs[kept:], self.values[kept:])


class Factors(nn.Module):
    """A rating is the mean, and what user and item add to it, and the product of their factors."""

    def __init__(self, heights: list[int], mean: float, sparse: bool) -> None:
        super().__init__()
        self.users, self.items = (nn.Embedding(height, WIDTH + 1, sparse=sparse) for height in heights)
        self.mean = mean
        for table in (self.users, self.items):
            nn.init.normal_(table.weight, std=0.1)

    def forward(self, pairs: Tensor) -> Tensor:
        """Ratings, [N], of the pairs, [N, 2]."""
        u, i = self.users(pairs[:, 0]), self.items(pairs[:, 1])
        return self.mean + u[:, 0] + i[:, 0] + (u[:, 1:] * i[:, 1:]).sum(1)


def rated(path: Path) -> Iterator[tuple[str, str, float]]:
    """User, item and rating of each line of a file that has them."""
    if is_zipfile(path):
        with ZipFile(path) as wheel:
            text = wheel.read("recbole/dataset_example/ml-100k/ml-100k.inter").decode()
    else:
        text = path.read_text()
    for user, item, rating, *_ in map(str.split, text.splitlines()):
        if user != "user_id:token":  # recbole's first line
            yield user, item, float(rating)


def together() -> Iterator[tuple[str, str, float]]:
    """Two words, and the logarithm of how often they stand close together, the closer the more."""
    counts: Counter[tuple[str, str]] = Counter()
    for topic in sorted(topics):
        words = re.findall("[a-z]+", topics[topic].lower())
        for i, word in enumerate(words):
            for distance, other in enumerate(words[i + 1 : i + 1 + WINDOW], 1):
                counts[word, other] += 1 / distance
                counts[other, word] += 1 / distance
    for (word, other), count in counts.items():
        yield word, other, log(count)


def loaded(path: Path | None) -> Ratings:
    """All ratings in a random order, users and items numbered from 0."""
    users, items, values = zip(*(rated(path) if path else together()), strict=True)
    columns = []
    for names in (users, items):
        numbers = {name: i for i, name in enumerate(dict.fromkeys(names))}
        columns.append(torch.tensor([numbers[name] for name in names]))
    order = torch.randperm(len(values), generator=torch.Generator().manual_seed(0))
    return Ratings(torch.stack(columns, 1)[order], torch.tensor(values)[order])


class Run(NamedTuple):
    """What became of the tables, and how fast.

    Attributes:
        curve: root mean square errors on the held-out ratings.
        weights, squares: of both tables in the end, and their mean squares v.
        step, iteration: median seconds of the optimizer's step, and of all that belongs to it.
    """

    curve: list[float]
    weights: Tensor
    squares: Tensor
    step: float
    iteration: float

    def beside(self, other: "Run") -> tuple[float, float, float]:
        """How far curve and weights are from another run's at most, and v by what factor."""
        curve = max(abs(a - b) for a, b in zip(self.curve, other.curve, strict=True))
        is_seen = (self.squares > 0) & (other.squares > 0)
        factors = (self.squares[is_seen].log() - other.squares[is_seen].log()).abs().exp()
        return curve, (self.weights - other.weights).abs().max().item(), factors.max().item()


def trained(way: str, rule: dict[str, float], train: Ratings, test: Ratings, heights: list[int], steps: int) -> Run:
    """Trains from the same start on the same batches, whatever the way."""
    torch.manual_seed(0)
    model = Factors(heights, train.values.mean().item(), sparse=way in ("exact", "lazy"))
    if way == "torch, dense":
        optimizer: torch.optim.Optimizer = torch.optim.RMSprop(model.parameters(), **rule)
    else:
        ours = optimizer = RMSprop(model.parameters(), **rule, sparse="lazy" if way == "lazy" else "exact")
        if way == "exact" and "momentum" in rule:  # rows move while they are not touched
            ours.attach(model.users)
            ours.attach(model.items)
    schedule = LinearLR(optimizer, 1.0, 0.0, steps)
    curve, times = [], []
    for i in range(steps):
        if i % EVERY == 0:
            curve.append(error(model, test))
        batch = torch.randint(len(train.values), (BATCH,))
        pairs, values = train.pairs[batch], train.values[batch]
        start = perf_counter()
        optimizer.zero_grad()
        (model(pairs) - values).square().mean().backward()
        before = perf_counter()
        optimizer.step()
        times.append((perf_counter() - before, perf_counter() - start))
        schedule.step()
    curve.append(error(model, test))
    if isinstance(optimizer, RMSprop):
        optimizer.flush()  # before whole tables are read
    tables = list(model.parameters())
    squares = torch.cat([optimizer.state[p]["square_avg"].flatten() for p in tables])
    medians = torch.tensor(times).median(0).values.tolist()
    return Run(curve, torch.cat([p.detach().flatten() for p in tables]), squares, *medians)


@torch.no_grad()
def error(model: Factors, test: Ratings) -> float:
    """Root mean square of what the model is off by."""
    return (model(test.pairs) - test.values).square().mean().sqrt().item()


def plot(runs: dict[str, dict[str, Run]], path: Path) -> None:
    """Draws the curves of every rule and way."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    matplotlib.rcParams |= {"svg.fonttype": "none", "svg.hashsalt": "curves"}  # small, and the same each time

    looks = {
        "torch, dense": {"color": "#9ecae1", "linewidth": 6},
        "exact": {"color": "#08306b", "linestyle": "--"},
        "lazy": {"color": "#d94801"},
    }
    figure, axes = pyplot.subplots(1, len(runs), figsize=(9, 3.5), layout="constrained", sharey=True)
    for axis, (rule, of) in zip(axes, runs.items(), strict=True):
        for way, look in looks.items():
            axis.plot(range(0, EVERY * len(of[way].curve), EVERY), of[way].curve, label=way, **look)
        axis.set(title=rule, xlabel="step")
        axis.grid(alpha=0.3)
    axes[0].set(ylabel="error on held-out ratings")
    axes[0].legend()
    figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)


def main() -> None:
    """Trains every way with every rule, and prints what came of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("ratings", type=Path, nargs="?", help="a file of ratings, or a wheel of recbole")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--rows", type=int, default=0, help="rows of each table: room for names yet to come")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw the curves: .svg, .png ...")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    ratings = loaded(arguments.ratings)
    heights = [max(arguments.rows, int(ratings.pairs[:, side].max()) + 1) for side in (0, 1)]
    train, test = ratings.split(len(ratings.values) * 9 // 10)
    print(f"{len(train.values):,} ratings, {len(test.values):,} held out; tables of {heights} rows of {WIDTH + 1}\n")
    print("| rule | gradients | held-out error | curve off by | weights off by | v off by x | a step | an iteration |")
    print("|---|---|---|---|---|---|---|---|")
    runs: dict[str, dict[str, Run]] = {}
    for rule, options in RULES.items():
        runs[rule] = of = {}
        for way in WAYS:
            of[way] = run = trained(way, options, train, test, heights, arguments.steps)
            curve, weights, factor = run.beside(of["torch, dense"])
            times = f"{run.step * 1e6:,.0f} µs | {run.iteration * 1e6:,.0f} µs"
            off = f"{run.curve[-1]:.4f} | {curve:.0e} | {weights:.0e} | {factor:.4g}"
            print(f"| {rule} | {way} | {off} | {times} |", flush=True)
    if arguments.plot:
        plot(runs, arguments.plot)


if __name__ == "__main__":
    main()
