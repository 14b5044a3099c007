"""Evaluating with averaged weights: arrays and averages change places, and change back."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from rmsprop import averaging
from rmsprop.numpy.inplace import Array
from rmsprop.numpy.tables import Tables


class Averaging(Tables):
    """What `RMSprop` does with averages. Not to be used on its own."""

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Within this block the parameters hold their averages; then again, bit for bit, what they held before.

        Those that have not been stepped stay as they are. The others change in place, one after the other. That takes
        the memory of one parameter, or, for float16, whose averages are float32, of all of them. What is written to a
        parameter within the block is lost, or becomes its average.

        Raises:
            ValueError: made without `averaging`.
            RuntimeError: within another such block. Within this one, so do `step`, `state_dict`, `load_state_dict`,
                pickling and copying the optimizer, before anything is written.

        Example:
            >>> import numpy as np, rmsprop
            >>> w, rng = np.array([1.0, -2.0]), np.random.default_rng(0)
            >>> optimizer = rmsprop.RMSprop([w], lr=0.1, averaging=True)
            >>> for _ in range(100):
            ...     optimizer.step([2 * w + rng.normal(size=2)])
            >>> with optimizer.averaged():
            ...     loss = w @ w
        """
        if self._gamma is None:
            raise ValueError("averaged: this optimizer does not average; expected averaging=True when it is made")
        self.flush()
        held: list[tuple[Array, Array, Array | None]] = []
        with self._turn:
            self._expect_own_weights("averaged")
            self._is_averaged = True
        try:
            with averaging.uninterrupted():
                for p, state in zip(self._params, self._states, strict=True):
                    if state["step"] > 0:
                        held.append((p, state[averaging.SLOT], _take(p, state[averaging.SLOT])))
            yield
        finally:
            with averaging.uninterrupted(), self._turn:
                for p, average, kept in held:
                    if kept is None:
                        _take(p, average)
                    else:
                        p[...] = kept
                self._is_averaged = False

    def _averaging(self, option: Any) -> float | None:
        return averaging.gamma_of(option)


def _take(p: Array, average: Array) -> Array | None:
    """Puts an average into its parameter; returns what that held, or None where it is in the average's place."""
    kept = p.copy()
    with np.errstate(over="ignore"):
        p[...] = average
    if average.dtype != p.dtype:
        return kept
    average[...] = kept
    return None
