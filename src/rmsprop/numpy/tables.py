"""Gradients of rows: tables of which a step touches few rows, and how the others are brought up to date."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rmsprop.kernels import cpu
from rmsprop.kernels.rows import Rows, Table
from rmsprop.missed import refusal
from rmsprop.numpy.inplace import Array, Arrays, InPlace, gradient
from rmsprop.rowwise import STATE_SHAPES
from rmsprop.rule import OptionError

_SPARSE = ("exact", "lazy")


class Tables(InPlace):
    """What `RMSprop` does with gradients of rows. Not to be used on its own."""

    def __init__(self, params: Arrays, rule: Any, sparse: str, state_shape: str, gamma: float | None) -> None:
        if sparse not in _SPARSE:
            raise OptionError("sparse", sparse, f"one of {_SPARSE}")
        if state_shape not in STATE_SHAPES:
            raise OptionError("state_shape", state_shape, f"one of {STATE_SHAPES}")
        self._sparse, self._state_shape, self._gamma = sparse, state_shape, gamma
        self._check_shape(rule)
        super().__init__(params, rule)
        self._tables: dict[int, Table] = {}  # of the parameters that have rows which are not up to date

    def _make(self, rule: Any, grads: list[Any]) -> int:
        """The step of gradients that have been checked, some of them perhaps of rows."""
        tables = self._with_rows(grads)
        try:
            return super()._make(rule, grads)
        finally:  # a Ctrl-C is heard as the native call returns: the step has been made
            for i, table in tables.items():
                if (t := float(self._states[i]["step"])) > table.missed.start + table.missed.length:
                    table.missed.add(rule.scalars(t))
                    self._tables[i] = table

    def catch_up(self, key: Any, rows: Any = None) -> None:
        """Brings rows up to date, as gradients of 0 at every step they have missed would have left them.

        Where rows move without being touched (momentum, weight decay), this belongs before they are read.

        Args:
            key: which parameter: its place in the list, or its key in the dict.
            rows: indices, of which some may be the same; None for all rows.

        Raises:
            ValueError, IndexError: no such parameter; `rows` are no integers, or the parameter does not have them.

        Example:
            >>> import numpy as np, rmsprop
            >>> table = np.ones((1000, 2))
            >>> optimizer = rmsprop.RMSprop([table], lr=0.1, momentum=0.9)
            >>> for rows in ([1, 2], [3], [2, 1]):
            ...     optimizer.catch_up(0, rows)
            ...     optimizer.step([(rows, 2 * table[rows])])
            >>> optimizer.flush()  # before the whole table is read
        """
        name = f"params[{key!r}]"
        if name not in self._names:
            raise ValueError(f"key={key!r}: expected that of a parameter, one of {self._names}")
        i = self._names.index(name)
        if rows is not None:
            rows = _indices("rows", rows)
            if len(outside := rows[(rows < 0) | (rows >= len(self._params[i]))]):
                raise IndexError(f"{name}: row index {outside[0]}: expected 0 to {len(self._params[i]) - 1}")
        with self._turn:
            if i in self._tables:
                self._bring_up(i, rows)

    def flush(self) -> None:
        """Brings all rows of all parameters up to date; belongs before whole tables are read."""
        with self._turn:
            for i in list(self._tables):
                self._bring_up(i)
                del self._tables[i]

    def state_dict(self) -> dict[str, Any]:
        """The rule and a copy of the state, all rows brought up to date: plain numbers, strings and arrays.

        {"format": 1, "rule": {...}, "state": {name: {"step": int, "square_avg": array, ...}}}, and with averaging
        "averaging": gamma.

        Raises:
            RuntimeError: within `averaged()`.
        """
        self.flush()
        return super().state_dict()

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Takes over rule and state from `state_dict()`; on an error nothing has changed.

        Raises:
            ValueError: another format, other parameters, an option outside its range, or a number or array that is
                missing, of another shape, not finite or (step and v) negative; the error names it.
            TypeError: an option that does not exist.
        """
        super().load_state_dict(state_dict)
        self._tables = {}

    def _check_shape(self, rule: Any) -> None:
        if rule.centered and self._state_shape == "row":
            raise OptionError("state_shape", "row", "'full' with centered=True")

    def _converted(self, name: str, g: Any, p: Array) -> Any:
        return _rows(name, g, p) if isinstance(g, tuple) else super()._converted(name, g, p)

    def _with_rows(self, grads: list[Any]) -> dict[int, Table]:
        """Completes the gradients of rows, and brings up to date what the step needs; the tables that take part."""
        tables = {}
        for i, g in enumerate(grads):
            if g is None:
                continue
            if isinstance(g, Rows) and self._gamma is not None:
                raise ValueError(f"{self._grad_names[i]}: averaged weights need a gradient of all rows, an array")
            table, exact = self._tables.get(i), isinstance(g, Rows) and self._sparse == "exact"
            if exact and (why := refusal(self._rule)):
                raise ValueError(f"{self._grad_names[i]}: {why}")
            if table is not None and not (exact and table.missed.fits(self._rule)):
                self._bring_up(i)
                del self._tables[i]
                table = None
            if exact:
                done = int(self._states[i]["step"])
                table = table or Table(np.full(len(self._params[i]), done, np.int32), self._rule, done)
                grads[i], tables[i] = table.gradient(g.indices, g.values), table
        return tables

    def _bring_up(self, i: int, rows: Any = None) -> None:
        table, names = self._tables[i], [self._names[i]]
        coefficients = cpu.coefficients(table.missed.rule, rowwise=self._state_shape == "row")
        group = cpu.Group(*coefficients, [self._params[i]], [table.behind(rows)], [self._states[i]], names)
        cpu.step([group], cpu.threads())


def _rows(name: str, pair: tuple[Any, ...], p: Array) -> Rows:
    """A gradient of rows: indices and values as the kernel takes them."""
    if len(pair) != 2 or p.ndim == 0:
        raise ValueError(f"{name}: a tuple is (row indices, values), for an array with rows; got {len(pair)} entries")
    if not p.flags.c_contiguous:
        raise ValueError(f"{name}: a gradient of rows is for a contiguous array, not one with strides {p.strides}")
    indices = _indices(f"{name}: indices", pair[0])
    like = np.broadcast_to(np.empty((), p.dtype), (len(indices), *p.shape[1:]))  # what shape the values must have
    return Rows(indices, np.ascontiguousarray(gradient(f"{name}: values", pair[1], like)))


def _indices(name: str, rows: Any) -> NDArray[np.int64]:
    array = np.asarray(rows)
    if array.size == 0 and array.ndim == 1:
        array = array.astype(np.int64)
    if array.dtype.kind not in "iu" or array.ndim != 1:
        raise ValueError(f"{name} has dtype {array.dtype} and shape {array.shape}: expected integers in one dimension")
    return np.ascontiguousarray(array, np.int64)
