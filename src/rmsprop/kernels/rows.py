"""Gradients that touch some rows of a table: what the kernel is handed, and the same step in NumPy."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from rmsprop.missed import Missed, catch_up, moves
from rmsprop.rule import Rule


class Rows(NamedTuple):
    """Stands in a `cpu.Group` in the place of a gradient.

    Attributes:
        indices: int32 or int64, one-dimensional; rows may come several times. None for all rows.
        values: one row of gradient for each index, contiguous; what belongs to one row is summed first. None to bring
            the rows up to date, and no more.
        last: for every row of the table the step it has taken last, int32; written. None where rows that no gradient
            touches wait (the "lazy" rule).
        missed: the steps since all rows were up to date; needed with `last`.
        strict: refuse rows that have missed steps, for they have been read without having been brought up to date.
    """

    indices: Any
    values: Any
    last: Any = None
    missed: Missed | None = None
    strict: bool = False


class Table:
    """How far the rows of one parameter have come.

    Args:
        last: the front end's int32 array: for every row the step it has taken last, which is `step` for all.
        rule: the rule of the steps to come, while `missed.fits`.
        step: the number of the last step.
    """

    def __init__(self, last: Any, rule: Rule, step: int) -> None:
        self.last, self.missed = last, Missed(rule, step)

    def gradient(self, indices: Any, values: Any, strict: bool = True) -> Rows:
        """A gradient of rows of this table; `strict` matters only where rows move."""
        return Rows(indices, values, self.last, self.missed, strict and moves(self.missed.rule))

    def behind(self, indices: Any = None) -> Rows:
        """To bring these rows up to date, or all."""
        return Rows(indices, None, self.last, self.missed)


class Gathered:
    """The touched rows of a table as arrays of their own, brought up to date; `scatter` puts them back.

    Raises:
        IndexError: an index outside the table.
        ValueError: a row that has missed steps, with `strict`.
    """

    def __init__(
        self, name: object, rows: Rows, p: Any, state: Mapping[str, Any], slots: Mapping[str, str], decay: bool
    ) -> None:
        self._rows, self._p, self._state, self._slots = rows, p, state, slots
        if rows.indices is None:
            self.touched, sums = np.arange(len(p)), None
        else:
            self.touched, sums = _summed(name, np.asarray(rows.indices), rows.values, len(p))
        self.p, self.g = p[self.touched], sums
        self.state = {name: state[name][self.touched] for name in slots.values()} | {"step": state["step"]}
        if rows.last is not None and rows.missed is not None:
            if rows.strict:
                rows.missed.check(name, self.touched, rows.last[self.touched])
            self._catch_up(rows.missed, rows.last[self.touched], decay)

    def _catch_up(self, missed: Missed, last: Any, decay: bool) -> None:
        old = {letter: self.state[name] for letter, name in self._slots.items()}
        dtype = old["v"].dtype
        shape = (-1, *(1,) * (self.p.ndim - 1))
        factors = {name: value.astype(dtype).reshape(shape) for name, value in missed.factors(last).items()}
        given: dict[str, Any] = {**factors, "tiny": float(np.finfo(dtype).tiny), "where": np.where, "decay": decay}
        given |= {"centered": "m" in old, "momentum": "b" in old}
        new = catch_up(self.p.astype(dtype), old["v"], old.get("m", 0.0), old.get("b", 0.0), **given)
        self.p = new[0].astype(self.p.dtype)
        self.state |= {name: new["pvmb".index(letter)] for letter, name in self._slots.items()}

    def scatter(self) -> None:
        """Writes the rows back, as having taken the steps that the table has taken."""
        self._p[self.touched] = self.p
        for name in self._slots.values():
            self._state[name][self.touched] = self.state[name]
        if self._rows.last is not None:
            self._rows.last[self.touched] = self._state["step"]


def _summed(name: object, indices: Any, values: Any, height: int) -> tuple[Any, Any]:
    """Each row once, and its gradient."""
    outside = (indices < 0) | (indices >= height)
    if outside.any():
        raise IndexError(f"{name}: row index {indices[outside][0]}: expected 0 to {height - 1}")
    touched, place = np.unique(indices, return_inverse=True)
    if values is None:
        return touched, None
    sums = np.zeros((len(touched), *values.shape[1:]), np.promote_types(values.dtype, np.float32))
    np.add.at(sums, place, values)
    return touched, sums
