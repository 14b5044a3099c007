r"""Averaged weights: the definition. They are evaluated with in the place of the last ones, which scatter around them.

    a_1 = p_1,    a_t = a_{t-1} + (gamma + 1) / (t + gamma) (p_t - a_{t-1})

with p_t the parameter as it is stored after its step t. gamma = 0 is the mean of all steps (Polyak and Ruppert); a
larger gamma forgets early ones: step s has a weight in a_t that is about proportional to s^gamma.

Source: O. Shamir and T. Zhang, Stochastic gradient descent for non-smooth optimization, ICML 2013, arXiv:1212.1824,
section 4 (polynomial-decay averaging).
"""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from math import isfinite
from typing import Any

from rmsprop.rule import as_float, expect

#: The gamma of `averaging=True`.
GAMMA = 8.0
#: The name of the average among the state arrays of a parameter; its letter is `a`.
SLOT = "weight_avg"


def gamma_of(averaging: object) -> float | None:
    """The gamma of an `averaging` option: None, for no average, of None and False, and `GAMMA` of True.

    Raises:
        OptionError: neither one of these nor a finite number of at least 0.
    """
    if averaging is None:
        return None
    if type(averaging).__name__ in ("bool", "bool_"):
        return GAMMA if averaging else None
    gamma = as_float(averaging)
    expect("averaging", averaging, gamma >= 0 and isfinite(gamma), "True, False or a finite number of at least 0")
    return gamma


def slots(gamma: float | None) -> dict[str, str]:
    """The state array of an average, letter and name, as `Rule.slots` has those of a rule."""
    return {} if gamma is None else {"a": SLOT}


def rate(t: Any, gamma: float) -> Any:
    """How far the average goes towards the parameter at its step t (from 1), in double."""
    return (gamma + 1) / (t + gamma)


def update(a, p, rate, tiny, where):  # type: ignore[no-untyped-def]
    """The average after a step, out of place.

    Args:
        a, p: average and new parameter: arrays of one shape and float dtype, of any library.
        rate: of this step.
        tiny: the smallest normal number of the dtype; a difference that leaves less makes the average 0.
        where: the library's function of this name.

    The first average is the parameter itself, and one that equals it stays, infinite (a mask) or not.
    """
    moved = a + rate * (p - a)
    moved = where((moved < tiny) & (moved > -tiny), 0.0, moved)
    return where((a == p) | (rate == 1), p, moved)


def refusal(what: str) -> str:
    """The message of what cannot be done while the parameters hold their averages."""
    return f"{what}: the parameters hold their averages; expected it after the block of `with optimizer.averaged():`"


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Within this block a Ctrl-C waits until its end, so that parameters and averages never stop half exchanged."""
    usual = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(usual):
        yield  # Ctrl-C interrupts the main thread alone
        return
    heard: list[tuple[int, Any]] = []
    signal.signal(signal.SIGINT, lambda *call: heard.append(call))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, usual)
        if heard:
            usual(*heard[0])
