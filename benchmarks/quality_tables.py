"""The tables, bars and plots of benchmarks/quality.py."""

import math
import re
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from statistics import fmean, stdev

import matplotlib.pyplot as plt
import numpy as np

from rmsprop.comparing.curves import Curves
from rmsprop.comparing.sweep import Result

plt.rcParams["svg.hashsalt"] = "rmsprop"  # the same names in the file each time
#: A training is good enough when its final validation loss is at most so many times that of Adam with its best
#: learning rate: wider where the loss of one optimizer varies more from seed to seed.
TOLERANCE = {"digits": 1.15, "autoencoder": 1.15, "letters": 1.10, "fashion": 1.05, "mnist1d": 1.05}
TOLERANCE |= {"gru": 1.03, "transformer": 1.03, "cooccurrence": 1.02}
REFERENCE = "adam"
#: A gain for each weight, and the problems it was tried on, against the same rules without.
GAINS, WITHOUT = ("rmsprop-gains", "rmsprop-modern-gains"), ("rmsprop-corrected", "rmsprop-modern")
WITH_GAINS = ("digits", "mnist1d", "letters", "autoencoder", "cooccurrence")
Found = dict[tuple[str, str, bool], Curves]


def tables(results: Sequence[Result]) -> dict[str, str]:
    """Every table of the page, by the name of its marker."""
    found: Found = {(r.problem, r.candidate, r.decay): r.curves for r in results}
    problems = [p for p in dict.fromkeys(r.problem for r in results) if p in TOLERANCE]
    tried = dict.fromkeys(r.candidate for r in results if not r.decay and r.problem in problems)
    names = [name for name in tried if all((problem, name, False) in found for problem in problems)]
    decayed = list(dict.fromkeys(r.candidate for r in results if r.decay and r.problem in problems))
    made = {
        "bars": _bars(found, problems, names),
        "one-lr": _one_rate(found, problems, names),
        "scores": _scores(found, problems, names, decay=False),
        "windows": _windows(found, problems, names),
        "decay": _scores(found, problems, decayed, decay=True),
        "spikes": _spikes(found, problems, names),
    }
    if all((problem, name, False) in found for problem in WITH_GAINS for name in GAINS):
        pairs = [name for pair in zip(WITHOUT, GAINS, strict=True) for name in pair]
        made["gains"] = _scores(found, list(WITH_GAINS), pairs, decay=False)
        made["gains-windows"] = _windows(found, list(WITH_GAINS), pairs)
    for problem in ("letters-long", "gru-long"):
        rows = [(r.candidate + " with decay" * r.decay, r.curves) for r in results if r.problem == problem]
        made |= {problem: _long(rows)} if rows else {}
    full = [(r.candidate, r.curves) for r in results if r.problem == "digits-full"]
    return made | ({"full-batch": _full_batch(full)} if full else {})


def write(page: Path, made: dict[str, str], results: Sequence[Result]) -> None:
    """Put the tables between the page's markers, and the plot beside it.

    Raises:
        ValueError: the page has no place for a table.
    """
    text = page.read_text(encoding="utf-8")
    for name, table in made.items():
        pattern = rf"(<!-- {name} -->\n).*?(<!-- end -->)"
        text, count = re.subn(pattern, lambda m, table=table: f"{m[1]}{table}\n{m[2]}", text, flags=re.DOTALL)
        if count != 1:
            raise ValueError(f"{page}: expected one <!-- {name} --> with an <!-- end -->, found {count}")
    page.write_text(text, encoding="utf-8")
    plot(results, page.with_name(f"{page.stem}.svg"))


def processor() -> str:
    """What the processor calls itself, and how many there are."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return f"{len(names)} x {names[0]}" if names else "unknown"


def score(curves: Curves, lr: int) -> float:
    """The test loss at one learning rate, over all seeds."""
    return fmean(x if math.isfinite(x) else math.inf for x in curves.test[lr])


def ratios_at(found: Found, problems: list[str], name: str, lr: float, valid: bool = False) -> list[float]:
    """The loss with this learning rate over that of Adam with its best one, for each problem."""
    ratios = []
    for problem in problems:
        curves, base = found[problem, name, False], found[problem, REFERENCE, False]
        if lr not in curves.lrs:
            return [math.inf]
        i = curves.lrs.index(lr)
        ratios.append(curves.finals()[i] / min(base.finals()) if valid else score(curves, i) / score(base, base.best()))
    return ratios


def one_rate(found: Found, problems: list[str], name: str) -> float:
    """The learning rate whose validation losses are best over all problems: the least mean ratio."""
    lrs = {lr for problem in problems for lr in found[problem, name, False].lrs}
    return min(sorted(lrs), key=lambda lr: fmean(ratios_at(found, problems, name, lr, valid=True)))


def width(curves: Curves, target: float) -> float:
    """Decades of learning rates whose final validation loss is at most `target`; between two, by its logarithm."""
    total, at = 0.0, [math.log10(lr) for lr in curves.lrs]
    losses = [math.log(min(max(x, 1e-30), 1e30)) - math.log(target) for x in curves.finals()]
    for (left, right), (a, b) in zip(pairwise(at), pairwise(losses), strict=True):
        if a <= 0 and b <= 0:
            total += right - left
        elif (a <= 0) != (b <= 0):
            total += (right - left) * min(a, b) / (min(a, b) - max(a, b))
    return total


def _target(found: Found, problem: str) -> float:
    return TOLERANCE[problem] * min(found[problem, REFERENCE, False].finals())


def _bars(found: Found, problems: list[str], names: list[str]) -> str:
    """What was hoped for, and what came out."""
    rows = [["*hoped for*", "", "0.95", "1.05", "1.2", "6 of 8"]]
    for name in names:
        if not name.startswith(("rmsprop", "adam")):
            continue
        lr = one_rate(found, problems, name)
        ratios = ratios_at(found, problems, name, lr)
        widths = [width(found[problem, name, False], _target(found, problem)) for problem in problems]
        pairs = [(found.get((problem, name, True)), found.get((problem, REFERENCE, True))) for problem in problems]
        both = [(a, b) for a, b in pairs if a is not None and b is not None]
        wins = f"{sum(score(a, a.best()) < score(b, b.best()) for a, b in both)} of {len(both)}" if both else "–"
        rows.append([name, f"{lr:g}", f"{fmean(ratios):.3f}", f"{max(ratios):.3f}", f"{fmean(widths):.2f}", wins])
    head = [
        "optimizer",
        "the one lr",
        "mean ratio",
        "worst ratio",
        "window, decades",
        "with decay, better than Adam on",
    ]
    return _table(head, rows)


def _one_rate(found: Found, problems: list[str], names: list[str]) -> str:
    """Every optimizer with one learning rate for all problems, and each ratio."""
    tried = [(name, name, one_rate(found, problems, name)) for name in names]
    tried += [("prodigy, its default", "prodigy", 1.0)] if "prodigy" in names else []  # which is to need no other
    rows = []
    for label, name, lr in tried:
        ratios = ratios_at(found, problems, name, lr)
        if len(ratios) == len(problems):
            mean = math.exp(fmean(math.log(min(r, 1e9)) for r in ratios))
            rows.append([label, f"{lr:g}", f"{mean:.3f}", *(_short(r) for r in ratios)])
    rows.sort(key=lambda row: float(row[2]))
    return _table(["optimizer", "lr", "geometric mean", *problems], rows)


def _scores(found: Found, problems: list[str], names: list[str], decay: bool) -> str:
    """Test loss with its spread over seeds, and the learning rate that validation chose; bold: the lowest."""
    losses = {(p, n): score(c, c.best()) for p in problems for n in names if (c := found.get((p, n, decay)))}
    rows = []
    for name in names:
        row = [name]
        for problem in problems:
            if (curves := found.get((problem, name, decay))) is None:
                row.append("–")
                continue
            mean, best = losses[problem, name], min(losses[problem, n] for n in names if (problem, n) in losses)
            text = f"{mean:.4f}" if mean > best else f"**{mean:.4f}**"
            row.append(f"{text} ± {_spread(curves):.4f} ({curves.lrs[curves.best()]:g})")
        rows.append(row)
    return _table(["optimizer", *problems], rows)


def _windows(found: Found, problems: list[str], names: list[str]) -> str:
    rows = []
    for name in names:
        widths = [width(found[problem, name, False], _target(found, problem)) for problem in problems]
        rows.append([name, f"{fmean(widths):.2f}", *(f"{w:.2f}" for w in widths)])
    rows.sort(key=lambda row: -float(row[1]))
    return _table(["optimizer", "mean", *problems], rows)


def _spikes(found: Found, problems: list[str], names: list[str], lr: float = 0.01) -> str:
    """The largest loss of the first 20 steps over the first one, at lr 0.01; the median over seeds."""
    rows = []
    for name in names:
        if any(lr not in found[problem, name, False].lrs for problem in problems):
            continue
        spikes = [found[p, name, False] for p in problems]
        rows.append([name, *(_short(float(np.median(c.spike[c.lrs.index(lr)]))) for c in spikes)])
    return _table(["optimizer", *problems], rows)


def _long(rows: list[tuple[str, Curves]]) -> str:
    scored = sorted((score(c, c.best()), name, c) for name, c in rows)
    return _table(
        ["optimizer", "test loss", "lr"],
        [[name, f"{x:.4f} ± {_spread(c):.4f}", f"{c.lrs[c.best()]:g}"] for x, name, c in scored],
    )


def _full_batch(rows: list[tuple[str, Curves]]) -> str:
    """Steps until the training loss is at most 0.01 with the learning rate that is quickest, and how many get there."""
    made = []
    for name, curves in rows:
        reached = []
        for lr, seeds in zip(curves.lrs, curves.train, strict=True):
            means = [fmean(x if math.isfinite(x) else math.inf for x in at) for at in zip(*seeds, strict=True)]
            steps = [s for s, x in zip(curves.steps, means, strict=True) if x <= 0.01]
            reached += [(steps[0], lr)] if steps else []
        steps, lr = min(reached, default=(math.inf, math.nan))
        cells = [f"{steps:g}", f"{lr:g}"] if reached else ["not in 200", "–"]
        made.append(
            (steps, [name, *cells, f"{len(reached)} of {len(curves.lrs)}", f"{score(curves, curves.best()):.4f}"])
        )
    head = [
        "optimizer",
        "steps to a training loss of 0.01",
        "lr",
        "learning rates that get there",
        "test loss, best lr",
    ]
    return _table(head, [row for _, row in sorted(made)])


def _spread(curves: Curves) -> float:
    """The standard deviation of the test loss over seeds; NaN where one has diverged."""
    losses = curves.test[curves.best()]
    return stdev(losses) if all(map(math.isfinite, losses)) else math.nan


def _short(x: float) -> str:
    return f"{x:.2f}" if x < 100 else "diverged" if not math.isfinite(x) else f"{x:.0f}"


def _table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


SHOWN = {"adam": "C0", "adam-averaged": "C9", "torch-rmsprop": "C3", "rmsprop-modern": "C1"}
SHOWN |= {"rmsprop-modern-averaged": "C2", "sgd": "C7"}


def plot(results: Sequence[Result], path: Path) -> None:
    """Final validation loss against the learning rate, one panel a problem."""
    problems = [p for p in dict.fromkeys(r.problem for r in results) if p in TOLERANCE]
    columns = min(4, len(problems))
    rows = -(-len(problems) // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(3.2 * columns, 2.7 * rows), layout="constrained", squeeze=False)
    for ax, problem in zip(axes.flat, problems, strict=False):
        for result in results:
            if result.problem == problem and not result.decay and result.candidate in SHOWN:
                finals = result.curves.finals()
                colour = SHOWN[result.candidate]
                ax.loglog(result.curves.lrs, finals, label=result.candidate, color=colour, lw=1.6, marker=".")
        high = ax.get_ylim()[1]
        best = min(min(r.curves.finals()) for r in results if r.problem == problem and not r.decay)
        ax.set(title=problem, ylim=(0.85 * best, min(high, 6 * best)), xlabel="learning rate")
    axes[0, 0].set_ylabel("validation loss")
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False)
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)
