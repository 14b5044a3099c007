"""A live bar on a terminal and a line for each optimizer, with the time left; nothing when quiet. On standard error."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from statistics import fmean
from time import monotonic

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from rmsprop.comparing.sweep import Result

EVERY = 60.0  # seconds between lines about one optimizer, where there is no bar


class Show:
    """Follows a comparison; a unit of it is one optimizer on one problem.

    How long a unit takes is the mean of those that are done on its problem; before there is one, what was guessed.
    """

    def __init__(self, units: int, console: Console | None, bar: Progress | None) -> None:
        self.units, self.console, self.bar = units, console, bar
        self.took: dict[str, list[float]] = {}
        self.left: Counter[str] = Counter()
        self.guesses: dict[str, float] = {}
        self.now, self.part, self.next_line = ("", ""), 0.0, monotonic() + EVERY
        self.task = bar.add_task("", total=1.0, left="") if bar else None

    def known(self, problem: str, seconds: float) -> None:
        """A unit that an earlier process has done."""
        self.took.setdefault(problem, []).append(seconds)

    def expect(self, problems: list[str], guesses: dict[str, float]) -> None:
        """The problems of the units to come, and about how many seconds one unit of each will take."""
        self.left, self.guesses = Counter(problems), guesses

    def start(self, problem: str, candidate: str) -> None:
        """A unit begins."""
        self.now, self.part = (problem, candidate), 0.0
        self.left[problem] -= 1
        self._draw()

    def tell(self, part: float) -> None:
        """So much of it is done."""
        self.part = part
        self._draw()
        if self.console and not self.bar and monotonic() >= self.next_line:
            self._line(f"{' '.join(self.now)}: {part:.0%}")

    def finish(self, result: Result) -> None:
        """It is done."""
        self.took.setdefault(result.problem, []).append(result.seconds)
        self.now, self.part = ("", ""), 0.0
        curves = result.curves
        best = curves.best()
        loss, lr = curves.finals()[best], curves.lrs[best]
        self._line(f"{result.problem} {result.candidate}: loss {loss:.4g} at lr {lr:g}, {result.seconds:.1f} s")
        self._draw()

    def seconds(self, problem: str) -> float:
        """How long a unit of this problem takes."""
        took = self.took.get(problem)
        return fmean(took) if took else self.guesses.get(problem, 0.0)

    def remaining(self) -> float:
        """Seconds."""
        under_way = self.seconds(self.now[0]) * (1 - self.part) if self.now[0] else 0.0
        return under_way + sum(self.seconds(problem) * count for problem, count in self.left.items())

    def _draw(self) -> None:
        if self.bar is None or self.task is None:
            return
        left, running = self.remaining(), self.seconds(self.now[0]) * self.part if self.now[0] else 0.0
        spent = sum(map(sum, self.took.values())) + running
        done = spent / (spent + left) if spent + left else 0.0
        self.bar.update(self.task, completed=done, description=" ".join(self.now), left=_about(left))

    def _line(self, text: str) -> None:
        if self.console is None:
            return
        done = sum(map(len, self.took.values()))
        left = f"; {_about(self.remaining())}" if done < self.units else ""
        self.console.print(f"{done}/{self.units}  {text}{left}", highlight=False, markup=False, soft_wrap=True)
        self.next_line = monotonic() + EVERY


def _about(seconds: float) -> str:
    """Time left in words."""
    if seconds < 90:
        return f"about {max(round(seconds), 1)} s left"
    minutes = round(seconds / 60)
    return f"about {minutes} min left" if minutes < 90 else f"about {minutes // 60} h {minutes % 60:02} min left"


@contextmanager
def shown(units: int, wanted: bool) -> Iterator[Show]:
    """What to tell of a comparison of so many units; draws a bar only on a terminal, nothing unless `wanted`."""
    console = Console(stderr=True)
    if not wanted:
        yield Show(units, None, None)
    elif console.is_terminal:
        columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:>3.0f} %"))
        with Progress(*columns, TextColumn("{task.fields[left]}"), console=console, transient=True) as bar:
            yield Show(units, console, bar)
    else:
        yield Show(units, console, None)
