"""A live bar on a terminal, ten or so plain lines elsewhere, nothing when quiet. Always on standard error."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import monotonic

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from rmsprop.training.loop import State

Show = Callable[[State], None]


@contextmanager
def shown(epochs: int, batches: int, score_name: str, wanted: bool) -> Iterator[Show]:
    """A function to call after every batch; it draws only when there is something new to see.

    Args:
        epochs, batches: how many, and how many batches an epoch has.
        score_name: what the score is called.
        wanted: False draws nothing.
    """
    console = Console(stderr=True)
    if not wanted:
        yield lambda state: None
    elif console.is_terminal:
        with _bar(console) as bar:
            yield _live(bar, epochs, batches, score_name)
    else:
        yield _plain(epochs, score_name)


def _text(state: State, score_name: str) -> str:
    """The last finished epoch in words."""
    if not state.history:
        return "first epoch"
    last = state.history[-1]
    return (
        f"loss {last['train_loss']:.4g}  test loss {last['test_loss']:.4g}  test {score_name} {last['test_score']:.4f}"
    )


def _bar(console: Console) -> Progress:
    columns = (TextColumn("epoch {task.fields[epoch]}"), BarColumn(), TextColumn("{task.description}"))
    return Progress(*columns, TimeRemainingColumn(elapsed_when_finished=True), console=console)


def _live(bar: Progress, epochs: int, batches: int, score_name: str) -> Show:
    task = bar.add_task("", total=epochs * batches, epoch=f"0/{epochs}")
    next_time = 0.0

    def show(state: State) -> None:
        nonlocal next_time
        now, done = monotonic(), len(state.history)
        if now < next_time and done < epochs:
            return
        next_time = now + 0.1
        bar.update(
            task, completed=done * batches + state.batch, epoch=f"{done}/{epochs}", description=_text(state, score_name)
        )

    return show


def _plain(epochs: int, score_name: str) -> Show:
    next_time, shown_epoch = monotonic() + 30, 0

    def show(state: State) -> None:
        nonlocal next_time, shown_epoch
        done, now = len(state.history), monotonic()
        due = done in (1, epochs) or done * 10 // epochs > shown_epoch * 10 // epochs
        if done > shown_epoch and (due or now >= next_time):
            print(f"epoch {done}/{epochs}  {_text(state, score_name)}", file=sys.stderr)
            next_time, shown_epoch = now + 30, done

    return show
