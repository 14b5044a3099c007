"""Statistics, tables and plot of `rl.py`."""

import os
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

BASELINE = "adam"
#: What the plot shows, in colours that differ; the tables have the variants too.
SHOWN = ("adam", "sgd-momentum", "rmsprop-torch", "rmsprop-tf1", "rmsprop-corrected", "rmsprop-modern")
MARKS = ("<!-- rl.py --write writes from here -->\n", "<!-- to here -->\n")


def machine() -> str:
    """Processor, cores and versions, in words."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    model = next((line.split(": ")[1] for line in lines if line.startswith("model name")), platform.processor())
    packages = ", ".join(f"{name} {version(name)}" for name in ("jax", "optax", "gymnax", "rmsprop"))
    return f"{model}, {os.cpu_count()} cores, Python {platform.python_version()}, {packages}"


def curve(total: np.ndarray, ended: np.ndarray) -> np.ndarray:
    """Mean return of the episodes that end in each part of a run, (n, parts); where none does, the part before's."""
    mean = np.where(ended > 0, total / np.maximum(ended, 1), 0.0)
    last = np.maximum.accumulate(np.where(ended > 0, np.arange(mean.shape[1]), 0), axis=1)
    return np.take_along_axis(mean, last, axis=1)


def score(total: np.ndarray, ended: np.ndarray) -> np.ndarray:
    """Mean return of the episodes that end in the last tenth of each run, (n,)."""
    tenth = total.shape[1] // 10
    count = ended[:, -tenth:].sum(1)
    return np.where(count > 0, total[:, -tenth:].sum(1) / np.maximum(count, 1), curve(total, ended)[:, -1])


def interval(x: np.ndarray) -> tuple[Any, Any]:
    """The 95 % bootstrap interval (percentiles) of the mean over the first axis."""
    from scipy.stats import bootstrap

    low, high = bootstrap((x,), np.mean, axis=0, method="percentile", n_resamples=9999, rng=0).confidence_interval
    return low, high


def number(x: float, like: float, sign: str = "") -> str:
    """With as many decimals as suit numbers of the size of `like`."""
    return f"{x:{sign}.{1 if abs(like) >= 20 else 2}f}"


def with_interval(x: np.ndarray, like: float, sign: str = "") -> str:
    low, high = interval(x)
    return f"{number(x.mean(), like, sign)} ({number(low, like, sign)} to {number(high, like, sign)})"


def arrays(result: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    return np.array(result["total"]), np.array(result["ended"])


def lr(k: int | str) -> str:
    return f"{10 ** (int(k) / 2):.2g}"


def judged(results: dict[str, dict]) -> list[str]:
    """The table of the seeds that judge."""
    scores = {name: score(*arrays(result)) for name, result in results.items()}
    base = scores.get(BASELINE)
    lines = [
        f"| optimizer | lr | return at the end | mean over the training | end, more than {BASELINE}'s | seeds better |",
        "|---|---|---|---|---|---|",
    ]
    for name, x in scores.items():
        like = x.mean()
        cells = [name, lr(results[name]["k"]), with_interval(x, like)]
        cells.append(with_interval(curve(*arrays(results[name])).mean(1), like))
        if base is None or name == BASELINE:
            cells += ["", ""]
        else:
            cells += [with_interval(x - base, like, "+"), f"{(x > base).sum()} of {len(x)}"]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def tried(results: dict[str, dict]) -> list[str]:
    """The table of the seeds that choose: mean return at the end by learning rate, the chosen one in bold."""
    ks = sorted({int(k) for result in results.values() for k in result["tried"]})
    lines = [f"| optimizer | {' | '.join(map(lr, ks))} |", "|---" * (len(ks) + 1) + "|"]
    for name, result in results.items():
        means = {int(k): np.mean(x) for k, x in result["tried"].items()}
        texts = {k: number(x, max(means.values())) for k, x in means.items()}
        texts[result["k"]] = f"**{texts[result['k']]}**"
        lines.append(f"| {name} | {' | '.join(texts.get(k, '') for k in ks)} |")
    return lines


def text(found: dict[str, dict[str, dict]]) -> str:
    """All tables, with where and when they were measured."""
    everything = [result for results in found.values() for result in results.values()]
    made = {name: result["settings"]["optimizer"] for results in found.values() for name, result in results.items()}
    dates, machines = sorted({r["date"] for r in everything}), sorted({r["machine"] for r in everything})
    minutes = sum(r["seconds"] for r in everything) / 60
    lines = [
        f"{' and '.join(dates)}; {'; and '.join(machines)}; {minutes:.0f} minutes of one core.",
        "",
        "| optimizer | is |",
        "|---|---|",
    ]
    lines += [f"| {name} | `{code}` |" for name, code in made.items()]
    for name, results in found.items():
        first = next(iter(results.values()))["settings"]
        lines += ["", f"### {name}", ""]
        lines += [f"{first['frames']:,} frames; judged on {first['judging']} seeds, which had no part in choosing:", ""]
        lines += [*judged(results), "", f"Return at the end on the {first['choosing']} seeds that choose:", ""]
        lines += tried(results)
    return "\n".join(lines) + "\n"


def plot(found: dict[str, dict[str, dict]], path: Path) -> None:
    """Learning curves: means over the seeds that judge, and their intervals."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    figure, lines = Figure((4.5 * len(found), 4.2), layout="constrained"), {}
    for axes, (name, results) in zip(figure.subplots(1, len(found), squeeze=False)[0], found.items(), strict=True):
        for i, optimizer in enumerate(SHOWN):
            if optimizer not in results:
                continue
            y, color = curve(*arrays(results[optimizer])), f"C{i}"
            x = np.linspace(0, results[optimizer]["settings"]["frames"] / 1000, y.shape[1] + 1)[1:]
            lines[optimizer] = axes.plot(x, y.mean(0), color=color, linewidth=1.2)[0]
            axes.fill_between(x, *interval(y), color=color, alpha=0.15, linewidth=0)
        axes.set(title=name, xlabel="thousand frames", ylabel="return")
    place = {"loc": "outside lower center", "ncols": 3, "frameon": False}
    figure.legend(lines.values(), lines.keys(), **place)
    with mpl.rc_context({"svg.hashsalt": "rl", "svg.fonttype": "none"}):
        figure.savefig(path, metadata={"Date": None})


def put(text: str, path: Path) -> None:
    """Replace what stands between the marks of a page."""
    page = path.read_text()
    before, after = page.index(MARKS[0]) + len(MARKS[0]), page.index(MARKS[1])
    path.write_text(f"{page[:before]}\n{text}\n{page[after:]}")
