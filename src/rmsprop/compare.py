"""Which optimizer, dialect and learning rate for a problem: `compare` tries them, `Comparison` has what came out."""

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rmsprop.comparing.ranking import Ranking
    from rmsprop.comparing.sweep import Result
    from rmsprop.comparing.verdict import Verdict


def compare(
    problem: Any = None,
    target: Any = None,
    *,
    problems: Sequence[str] | str | None = None,
    optimizers: Sequence[str] | str | None = None,
    lrs: Sequence[float] | None = None,
    seeds: int | None = None,
    steps: int | None = None,
    batch_size: int | None = None,
    decay: bool = False,
    fast: bool = False,
    out: str | Path | None = None,
    resume: str | Path | None = None,
    progress: bool = False,
) -> "Comparison":
    """Train a problem with many optimizers, learning rates and seeds, and rank the optimizers.

    Every optimizer gets the same number of learning rates, seeds and training rows; seeds share first weights and
    order of rows, so optimizers are compared in pairs. The validation rows choose the learning rate and the
    test rows, which nothing else looks at, give the score. The same call gives the same numbers on the same machine and
    versions, times apart. docs/compare.md has more.

    Args:
        problem: a function without arguments that returns (model, loss, data), its name as "module:function", a table
            (a CSV or Parquet file, data frame, dict of arrays or 2-D array) with a `target`, or None for the built-in
            problems. The model is a `torch.nn.Module`; the loss takes (outputs, targets) and returns a scalar; data
            are a `Dataset`, a `DataLoader` or a pair (inputs, targets), or train, valid and test of these in a tuple or
            dict. What is missing is split off the training rows.
        target: a column's name, or an array with one value a row; only with a table.
        problems: names of built-in problems, or one. None takes all whose data are on this machine.
        optimizers: names as `rmsprop compare --list` has them, or "all". None takes twelve, less those whose package is
            not installed.
        lrs: the learning rates of every optimizer, ascending, in a list or array. None is eight to each optimizer, two
            a decade; where the best is the first or the last, up to three more beyond it.
        seeds: how many, from 0 on. None is 5, or 3 if `fast`.
        steps, batch_size: of every training. None is 64 rows and 20 passes over the training rows, between 200 and
            1,000 steps; or what the built-in problem has.
        decay: let the learning rate fall linearly to 0, but for Rprop, whose steps a schedule does not change.
        fast: fewer seeds, and without a problem only the quick ones.
        out: a folder for results and report, new or of the same comparison; None keeps nothing.
        resume: the folder of a comparison to go on with; it has its own options, so give no others. One of a function
            or table in memory needs `problem` (and `target`) again.
        progress: show it on standard error.

    Raises:
        ValueError: an option outside its range, or a problem that cannot be learned from; also what the user's own
            function raises, told with file and line.
        KeyboardInterrupt: stopped by Ctrl-C; with `out`, what is done is kept, and `resume` goes on.

    Example:
        >>> import rmsprop, torch
        >>> def line():
        ...     x = torch.randn(200, 3)
        ...     return torch.nn.Linear(3, 1), torch.nn.functional.mse_loss, (x, x.sum(1, keepdim=True))
        >>> found = rmsprop.compare(line, optimizers=["rmsprop", "sgd"], lrs=[0.01, 0.1], seeds=2, steps=20)
        >>> [row.name for row in found.rankings[0].rows]
        ['rmsprop', 'sgd']
    """
    options: dict[str, Any] = {"problems": problems, "optimizers": optimizers, "lrs": lrs, "seeds": seeds}
    options |= {"steps": steps, "batch_size": batch_size, "decay": decay, "fast": fast}
    starting = _part("starting")
    if resume is None:
        started: Comparison = starting.start(problem, target, options, out=out, progress=progress)
        return started
    for name, value in {**options, "out": out}.items():
        if value is not DEFAULTS[name]:
            raise ValueError(f"{name}={value!r}: expected nothing beside resume, whose folder has its own options")
    resumed: Comparison = starting.resume(Path(resume), problem, target, progress=progress)
    return resumed


#: The default of every option of `compare`.
DEFAULTS = {name: parameter.default for name, parameter in signature(compare).parameters.items()}


def _part(name: str) -> Any:
    """A module of `rmsprop.comparing`, imported when it is first used: it brings torch and pandas with it."""
    try:
        return import_module(f"rmsprop.comparing.{name}")
    except ModuleNotFoundError as error:
        missing = f'rmsprop.compare needs {error.name}: pip install "rmsprop[compare]"'
        raise ModuleNotFoundError(missing, name=error.name) from error


@dataclass
class Comparison:
    """What came out. `str` of it is the table with the sentence.

    Attributes:
        problems: each problem's name with its one line.
        results: every training's curves and scores, one `Result` for an optimizer on a problem.
        rankings: for each problem its optimizers, best test loss first.
        verdict: what to use, at which learning rate, and how sure that is.
        settings: what was compared, as the folder's compare.json has it.
        folder: where it is kept, with report.html; or None.

    Example:
        >>> import rmsprop, torch
        >>> def line():
        ...     x = torch.randn(200, 3)
        ...     return torch.nn.Linear(3, 1), torch.nn.functional.mse_loss, (x, x.sum(1, keepdim=True))
        >>> found = rmsprop.compare(line, optimizers=["sgd"], lrs=[0.1], seeds=1, steps=20)
        >>> found.results[0].curves.lrs, found.folder
        ([0.1], None)
    """

    problems: dict[str, str]
    results: "list[Result]"
    rankings: "list[Ranking]"
    verdict: "Verdict"
    settings: dict[str, Any]
    folder: Path | None = None

    @property
    def sentence(self) -> str:
        """What to use and how sure that is, in one plain sentence."""
        return self.verdict.sentence

    def text(self, width: int | None = None) -> str:
        """The tables, the sentence and what there is to note, for so many columns."""
        tables: str = _part("table").text(self.rankings, width)
        return "\n".join([tables.rstrip("\n"), "", self.sentence, *self.verdict.notes])

    def __str__(self) -> str:
        return self.text()

    def __repr__(self) -> str:
        names = ", ".join(self.problems)
        return f"<rmsprop.Comparison of {len(self.settings['optimizers'])} optimizers on {names}: {self.sentence}>"
