"""Problems from the user: a table with a column to predict, or a function that returns a model, a loss and data."""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from rmsprop.comparing.builtin import wrong
from rmsprop.comparing.data import partition
from rmsprop.comparing.modules import place
from rmsprop.comparing.problem import Problem, Split
from rmsprop.comparing.replicas import chunks, trained
from rmsprop.comparing.rows import parts
from rmsprop.comparing.seeding import seeded
from rmsprop.fit import DEFAULTS
from rmsprop.training import features
from rmsprop.training.loop import loss_of
from rmsprop.training.network import build
from rmsprop.training.settings import Settings
from rmsprop.training.sheet import prepare
from rmsprop.training.target import split

BATCH, SMALLEST = 64, 8  # rows a step
PASSES, FEWEST, MOST = 20, 200, 1000  # passes over the rows; steps
HELD_OUT = 0.2  # of the rows for each part that is not given
FEWEST_ROWS = 10
FEWEST_OF_TABLE = 13  # leaves 10 without the fifth to score on
EXPECTED = "expected a tuple (model, loss, data)"


def budget(rows: int, steps: int | None, batch_size: int | None) -> tuple[int, int]:
    """(steps, rows a step), as asked or as suits so many training rows."""
    if batch_size is not None and batch_size > rows:
        raise ValueError(f"batch_size={batch_size}: expected at most {rows}, the number of training rows")
    size = batch_size or min(BATCH, max(rows // 8, SMALLEST), rows)
    return steps or min(max(round(PASSES * rows / size), FEWEST), MOST), size


def from_table(
    columns: Any, target: Any, name: str, steps: int | None = None, batch_size: int | None = None
) -> Problem:
    """A table learned as `rmsprop.fit` does it, with a fifth of its rows to choose by and a fifth to score on.

    Raises:
        ValueError: as `rmsprop.fit`, or too few rows for both fifths.
    """
    settings = Settings.of(**{**DEFAULTS, "test_size": HELD_OUT})
    sheet = prepare(columns, target, settings)
    try:
        kept, chosen = split(sheet.codes[sheet.train], sheet.target, HELD_OUT / (1 - HELD_OUT), settings.seed)
    except ValueError as few:  # it counts the rows that are left
        raise ValueError(
            f"the table has {len(sheet.codes)} rows: expected at least {FEWEST_OF_TABLE}, and of classes three rows of "
            "each and five times as many as there are classes, as a fifth chooses and a fifth is scored on"
        ) from few
    found = features.fit(sheet.columns, sheet.kinds, sheet.train[kept])
    x, y = torch.tensor(found.transform(sheet.columns)), torch.tensor(sheet.codes)
    train, valid, test = (Split(x[r], y[r]) for r in (sheet.train[kept], sheet.train[chosen], sheet.test))
    widths = "-".join(map(str, (found.width, *settings.hidden, sheet.target.outputs)))
    about = f"{sheet.target.task} of {sheet.target.name!r} from {len(sheet.kinds)} columns, perceptron {widths}"
    error = wrong if sheet.target.classes else None
    model = partial(_network, found.width, settings.hidden, sheet.target.outputs)
    return Problem(name, about, model, loss_of, train, valid, test, *budget(len(train), steps, batch_size), error)


def _network(inputs: int, hidden: tuple[int, ...], outputs: int) -> nn.Module:
    return build(inputs, hidden, outputs, "kaiming", int(torch.randint(2**31, ())))


def from_function(
    function: Callable[[], Any], name: str, steps: int | None = None, batch_size: int | None = None
) -> Problem:
    """What a function returns: (model, loss, data).

    It is called once for each seed, with torch's, NumPy's and Python's global generators at that seed, for the model's
    first weights; loss and data are those of the first call. Parts of the data that it does not give are split off the
    training rows.

    Raises:
        ValueError: it takes arguments, returns something else, or a batch of the data fails; says what, and what is
            expected. A model of other shapes for another seed is told when that seed starts.
    """
    models = _Models(function)
    with seeded(0):
        model, loss, data = _three(_called(function))
        given = parts(data, next(p.dtype for p in trained(model)))
    models.made[0] = model
    train, valid, test = _completed(given)
    size = sum(p.numel() for p in trained(model))
    about = f"{type(model).__name__} of {size:,} weights"
    problem = Problem(name, about, models, loss, train, valid, test, *budget(len(train), steps, batch_size))
    with seeded(0):
        _check(problem, function)
    return problem


class _Models:
    """Makes a model for each seed, calling the function only once for each."""

    def __init__(self, function: Callable[[], Any]) -> None:
        self.function = function
        self.made: dict[int, nn.Module] = {}

    def __call__(self) -> nn.Module:
        seed = torch.initial_seed()  # `Problem.start` has just set it
        if seed not in self.made:
            model = _three(_called(self.function))[0]
            _alike(self.made[0], model, seed)
            self.made[seed] = model
        return copy.deepcopy(self.made[seed])


def _called(function: Callable[[], Any]) -> Any:
    """What it returns; where the call itself fails, no line of the user's code is to blame."""
    try:
        return function()
    except Exception as error:
        if place(error, function):
            raise
        raise ValueError(
            f"calling it failed: {type(error).__name__}: {error}; expected a function without arguments that returns "
            "(model, loss, data)"
        ) from error


def _alike(first: nn.Module, model: nn.Module, seed: int) -> None:
    """Refuse a model whose weights have other names or shapes than those of seed 0."""
    one, other = ({name: tuple(p.shape) for name, p in m.named_parameters() if p.requires_grad} for m in (first, model))
    for name in {**one, **other}:
        if one.get(name) != other.get(name):
            raise ValueError(
                f"its model differs between seeds: {name!r} is {one.get(name, 'missing')} for seed 0 and "
                f"{other.get(name, 'missing')} for seed {seed}; expected the same shapes, drawn anew"
            )


def _three(returned: Any) -> tuple[nn.Module, Callable[[Any, Tensor], Tensor], Any]:
    """Model, loss and data, checked."""
    if not isinstance(returned, (tuple, list)) or len(returned) != 3:
        count = f" of {len(returned)}" if isinstance(returned, (tuple, list)) else ""
        raise ValueError(f"it returned a {type(returned).__name__}{count}; {EXPECTED}")
    model, loss, data = returned
    if not isinstance(model, nn.Module):
        raise ValueError(f"the model it returned is a {type(model).__name__}; {EXPECTED} with a torch.nn.Module first")
    if not callable(loss):
        raise ValueError(f"the loss it returned is a {type(loss).__name__}; {EXPECTED} with loss(outputs, targets)")
    if not trained(model):
        raise ValueError("the model it returned has no parameter that requires a gradient; expected one or more")
    devices = {str(p.device) for p in model.parameters()}
    if devices != {"cpu"}:
        raise ValueError(f"the model it returned is on {' and '.join(sorted(devices))}; expected it on the cpu")
    dtypes = {p.dtype for p in trained(model)}
    if len(dtypes) > 1:
        raise ValueError(f"the model's parameters are {' and '.join(sorted(map(str, dtypes)))}; expected one dtype")
    return model, loss, data


def _completed(given: dict[str, Split]) -> list[Split]:
    """Train, valid and test; each that is missing is a fifth of the training rows."""
    train = given["train"]
    lacking = [name for name in ("valid", "test") if name not in given]
    if len(train) < FEWEST_ROWS:
        raise ValueError(f"the data have {len(train)} training rows; expected at least {FEWEST_ROWS}")
    if not lacking:
        return list(given.values())
    held_out = (round(HELD_OUT * len(train)) if name in lacking else 0 for name in ("valid", "test"))
    dealt = dict(zip(("train", "valid", "test"), partition(*train, *held_out), strict=True))
    return [dealt[name] if name in ("train", *lacking) else given[name] for name in dealt]


def _check(problem: Problem, function: Callable[[], Any]) -> None:
    """A batch through model and loss, as the training will do it, then every row as evaluations do."""
    model, rows = problem.start(0), problem.order(0)[0]
    inputs, targets = (values[rows] for values in problem.train)
    with _tried("train", inputs, function):
        loss = problem.loss(model(inputs), targets)
    if not isinstance(loss, Tensor) or loss.shape != ():
        what = f"shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__
        raise ValueError(f"its loss gave a result of {what}; expected a scalar tensor, the mean over the batch")
    if not loss.requires_grad:
        raise ValueError("its loss has no gradient; expected one computed from the model's outputs by torch")
    with _tried("train", inputs, function):
        loss.backward()  # type: ignore[no-untyped-call]
    for name, p in model.named_parameters():
        if p.grad is not None and p.grad.is_sparse:
            layer = type(model.get_submodule(name.rpartition(".")[0])).__name__
            raise ValueError(f"the gradient of {name!r}, of its {layer}, is sparse; expected sparse=False there")
    model.eval()
    for name in ("train", "valid", "test"):
        for inputs, targets in chunks(getattr(problem, name), problem.batch_size):
            with _tried(name, inputs, function), torch.no_grad():
                problem.loss(model(inputs), targets)


@contextmanager
def _tried(part: str, inputs: Tensor, function: Callable[[], Any]) -> Iterator[None]:
    """Tells an error inside torch, where no line of the user's code is to blame, as one of model and loss."""
    try:
        yield
    except Exception as error:
        if place(error, function):
            raise
        what = f"its model or loss failed on {part} rows of shape {tuple(inputs.shape)}"
        raise ValueError(f"{what}: {type(error).__name__}: {error}; expected them to fit the data") from error


def resized(problem: Problem, steps: int | None, batch_size: int | None) -> Problem:
    """A built-in problem with a budget of one's own."""
    steps, size = budget(len(problem.train), steps or problem.steps, batch_size or problem.batch_size)
    return replace(problem, steps=steps, batch_size=size)
