"""The NumPy front end: `RMSprop(params).step(grads)`, in place."""

from bisect import bisect_left
from collections.abc import Iterable, Mapping
from itertools import accumulate
from threading import Lock
from typing import Any

import numpy as np
from numpy.lib.array_utils import byte_bounds
from numpy.typing import NDArray

from rmsprop.dialects import dialect as dialect_rule
from rmsprop.dialects import known
from rmsprop.kernels import cpu
from rmsprop.kernels.rows import Rows, Table
from rmsprop.missed import refusal
from rmsprop.rowwise import STATE_SHAPES, shape_of
from rmsprop.rule import OPTIONS, OptionError, Rule

Array = NDArray[np.floating[Any]]
Arrays = Iterable[Array] | Mapping[str, Array]
_FLOATS = tuple(np.dtype(f"f{size}") for size in (2, 4, 8))
_FORMAT = 1
_SPARSE = ("exact", "lazy")


class RMSprop:
    r"""Updates float arrays in place by RMSprop.

        v <- beta v + (1 - beta) g^2
        p <- p - lr g / sqrt(v + epsilon)

    and whatever else the `Rule` says. The arithmetic is float32 for float16 and float32 arrays and float64 for
    float64; the state (mean square v, and if asked for the mean gradient m and the momentum buffer b) likewise.

    Args:
        params: a list or dict of float16, float32 or float64 arrays of any shape and strides. They are written by
            `step`, and by nothing else.
        rule: the rule; by default `Rule()`, the plain one.
        dialect: the name of a dialect to take the rule from, instead of `rule`.
        sparse: what becomes of rows that a gradient of rows does not touch: "exact", what gradients of 0 would do, made
            up for when they are next needed; "lazy", nothing (TensorFlow's rule).
        state_shape: what has a mean square v of its own: "full", every entry; "row", every row of an array of two or
            more dimensions, 4 bytes a row (8 in float64): v <- beta v + (1 - beta) (mean of g^2 over the row), of shape
            (rows, 1, ..., 1). Not with `centered`.
        **options: fields of `Rule`; they win over `rule` and `dialect`.

    Attributes:
        rule: the rule in use. `lr` may be changed between steps.
        skipped: how many gradient entries `nonfinite="skip"` has left alone so far.

    Raises:
        ValueError: an array that cannot be updated in place (not a float array, read-only, elements that share
            memory, two arrays that overlap), or an option outside its range.
        TypeError: `params` is no list or dict, or an option does not exist.

    Example:
        >>> import numpy as np, rmsprop
        >>> w = np.array([1.0, -2.0])
        >>> optimizer = rmsprop.RMSprop([w], lr=0.1)
        >>> for _ in range(100):
        ...     optimizer.step([2 * w])  # the gradient of w @ w
        >>> bool(abs(w).max() < 0.1)
        True

    Source: T. Tieleman and G. Hinton, Neural Networks for Machine Learning, lecture 6e, 2012.
    """

    def __init__(
        self,
        params: Arrays,
        rule: Rule | None = None,
        *,
        dialect: str | None = None,
        sparse: str = "exact",
        state_shape: str = "full",
        **options: Any,
    ) -> None:
        if rule is not None and not isinstance(rule, Rule):
            raise TypeError(f"rule={rule!r}: expected a Rule; a dialect's name goes to dialect=")
        if rule is not None and dialect is not None:
            raise ValueError(f"rule and dialect={dialect!r}: expected one of them")
        base = rule or (Rule() if dialect is None else dialect_rule(dialect))
        self._rule = base.replace(**known(options))
        if sparse not in _SPARSE:
            raise OptionError("sparse", sparse, f"one of {_SPARSE}")
        if state_shape not in STATE_SHAPES:
            raise OptionError("state_shape", state_shape, f"one of {STATE_SHAPES}")
        self._sparse, self._state_shape = sparse, state_shape
        self._check_shape(self._rule)
        named = _named(params, "params")
        self._names, self._params = list(named), list(named.values())
        for name, p in zip(self._names, self._params, strict=True):
            _check_param(name, p)
        self._grad_names = [name.replace("params", "grads", 1) for name in self._names]
        _check_overlap(self._names, self._params)
        self._shapes = [p.shape for p in self._params]
        self._states = [self._fresh(p) for p in self._params]
        self._tables: dict[int, Table] = {}  # of the parameters that have rows which are not up to date
        self.skipped = 0
        self._settle()

    @property
    def rule(self) -> Rule:
        """The rule in use; of its options, only `lr` may change."""
        return self._rule

    @property
    def lr(self) -> float:
        """The step size; assign to it between steps to follow a schedule."""
        return self._rule.lr

    @lr.setter
    def lr(self, lr: float) -> None:
        self._rule = self._rule.replace(lr=lr)

    def step(self, grads: Iterable[Any] | Mapping[str, Any]) -> None:
        """One update. Every check comes before the first write: a step that raises has changed nothing.

        Threads that step the same optimizer take turns.

        Args:
            grads: gradients in the order of `params` or, for a dict, under its keys; of the same shapes; read only.
                Another float dtype is converted to the parameter's. None leaves its parameter and state alone.
                A gradient that touches some rows of its parameter may be a tuple (indices, values): integers, and for
                each a row of gradient. What belongs to one row is summed. See `sparse`, `catch_up` and `flush`.

        Raises:
            ValueError: a gradient of another shape, not of floats, or missing; a rule that cannot be exact for rows, or
                rows that were not brought up to date before they were read; the error names it.
            IndexError: a row that the parameter does not have.
            FloatingPointError: with `nonfinite="error"`, a gradient entry whose square is not finite.
        """
        given = _named(grads, "grads")
        _check_names("grads", given, self._grad_names)
        converted = []
        for own, name, p, shape in zip(self._names, self._grad_names, self._params, self._shapes, strict=True):
            _check_param(own, p)
            if p.shape != shape:
                raise ValueError(f"{own} has shape {p.shape}: expected {shape}, as when the optimizer was made")
            converted.append(self._converted(name, given[name], p))
        with self._turn:
            tables = self._with_rows(converted)
            group = cpu.Group(*self._coefficients(self.rule), self._params, converted, self._states, self._names)
            self.skipped += cpu.step([group], cpu.threads())
            for i, table in tables.items():
                table.missed.add(self.rule.scalars(float(self._states[i]["step"])))
            self._tables |= tables

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

    def _converted(self, name: str, g: Any, p: Array) -> Any:
        if g is None:
            return None
        if isinstance(g, tuple):
            return _rows(name, g, p)
        return self._apart(_gradient(name, g, p), p)

    def _with_rows(self, grads: list[Any]) -> dict[int, Table]:
        """Completes the gradients of rows, and brings up to date what the step needs; the tables that take part."""
        tables = {}
        for i, g in enumerate(grads):
            if g is None:
                continue
            table, exact = self._tables.get(i), isinstance(g, Rows) and self._sparse == "exact"
            if exact and (why := refusal(self.rule)):
                raise ValueError(f"{self._grad_names[i]}: {why}")
            if table is not None and not (exact and table.missed.fits(self.rule)):
                self._bring_up(i)
                del self._tables[i]
                table = None
            if exact:
                done = int(self._states[i]["step"])
                table = table or Table(np.full(len(self._params[i]), done, np.int32), self.rule, done)
                grads[i], tables[i] = table.gradient(g.indices, g.values), table
        return tables

    def _bring_up(self, i: int, rows: Any = None) -> None:
        table, names = self._tables[i], [self._names[i]]
        group = cpu.Group(
            *self._coefficients(table.missed.rule), [self._params[i]], [table.behind(rows)], [self._states[i]], names
        )
        cpu.step([group], cpu.threads())

    def _coefficients(self, rule: Rule) -> tuple[cpu.Scalars, int]:
        return cpu.coefficients(rule, rowwise=self._state_shape == "row")

    def _check_shape(self, rule: Rule) -> None:
        if rule.centered and self._state_shape == "row":
            raise OptionError("state_shape", "row", "'full' with centered=True")

    def state_dict(self) -> dict[str, Any]:
        """The rule and a copy of the state, all rows brought up to date: plain numbers, strings and arrays.

        {"format": 1, "rule": {...}, "state": {name: {"step": int, "square_avg": array, ...}}}
        """
        self.flush()
        state = {
            name: {key: int(value) if key == "step" else value.copy() for key, value in entry.items()}
            for name, entry in zip(self._names, self._states, strict=True)
        }
        return {"format": _FORMAT, "rule": {name: getattr(self.rule, name) for name in OPTIONS}, "state": state}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Takes over rule and state from `state_dict()`; on an error nothing has changed.

        Raises:
            ValueError: another format, other parameters, an option outside its range, or a number or array that is
                missing, of another shape, not finite or (step and v) negative; the error names it.
            TypeError: an option that does not exist.
        """
        if _dict("state_dict", state_dict).get("format") != _FORMAT:
            raise ValueError(f"state_dict: expected format={_FORMAT}, from RMSprop.state_dict()")
        rule = Rule().replace(**known(_dict("state_dict['rule']", state_dict.get("rule"))))
        self._check_shape(rule)
        given = _dict("state_dict['state']", state_dict.get("state"))
        _check_names("state_dict['state']", given, self._names)
        states = [
            _loaded(f"state of {name}", given[name], p, rule, self._state_shape)
            for name, p in zip(self._names, self._params, strict=True)
        ]
        self._rule, self._states, self._tables = rule, states, {}

    def __repr__(self) -> str:
        arrays = (f"{name}{list(shape)}" for name, shape in zip(self._names, self._shapes, strict=True))
        return f"RMSprop({', '.join(arrays)}; {self.rule})"

    def _fresh(self, p: Array) -> dict[str, Array]:
        dtype = np.promote_types(p.dtype, np.float32)
        start = {"v": self.rule.initial_square, "m": 0.0, "b": 0.0}
        if start["v"] > np.finfo(dtype).max:
            raise OptionError("initial_square", start["v"], f"a number that {dtype} can hold")
        shapes = {"v": shape_of(p.shape, self._state_shape)}
        slots = {name: np.full(shapes.get(s, p.shape), start[s], dtype) for s, name in self.rule.slots().items()}
        return {"step": np.zeros(()), **slots}

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name not in ("_turn", "_starts", "_reach")}

    def __setstate__(self, attributes: dict[str, Any]) -> None:
        self.__dict__.update(attributes)
        self._settle()

    def _settle(self) -> None:
        """What a copy must have anew: its lock, and where in memory its parameters lie."""
        self._turn = Lock()
        spans = sorted(byte_bounds(p) for p in self._params if p.size)
        self._starts = [start for start, _ in spans]
        self._reach = list(accumulate((end for _, end in spans), max))  # how far the arrays up to here extend

    def _apart(self, g: Array, p: Array) -> Array:
        """The gradient, or a copy where it shares memory with a parameter other than by being its own."""
        low, high = byte_bounds(g)
        before = bisect_left(self._starts, high)
        if not before or self._reach[before - 1] <= low:
            return g
        same = byte_bounds(p) == (low, high) and g.strides == p.strides
        return g if same else g.copy()


def _named(arrays: Any, what: str) -> dict[str, Any]:
    """The arrays of a list or dict, under names for the state and for messages."""
    if isinstance(arrays, np.ndarray) or not isinstance(arrays, Iterable):
        raise TypeError(f"{what}: expected a list or dict of arrays, got {type(arrays).__name__}; put it in a list")
    items = list(arrays.items() if isinstance(arrays, Mapping) else enumerate(arrays))
    named = {f"{what}[{key!r}]": array for key, array in items}
    if len(named) < len(items):
        raise ValueError(f"{what}: some keys look the same: {[key for key, _ in items]}")
    return named


def _check_param(name: str, p: Any) -> None:
    if not isinstance(p, np.ndarray) or isinstance(p, np.ma.MaskedArray):
        raise ValueError(f"{name}: expected a NumPy array, got {type(p).__name__}")
    if p.dtype not in _FLOATS:
        raise ValueError(f"{name} has dtype {p.dtype}: expected float16, float32 or float64 in native byte order")
    if not p.flags.writeable:
        raise ValueError(f"{name} is read-only: expected an array that can be updated in place")


def _gradient(name: str, g: Any, p: Array) -> Array:
    if isinstance(g, np.ma.MaskedArray):
        raise ValueError(f"{name}: expected an array without a mask, got {type(g).__name__}")
    array: Array = np.asarray(g)
    if array.dtype.kind != "f":
        raise ValueError(f"{name} has dtype {array.dtype}: expected a float dtype")
    if array.shape != p.shape:
        raise ValueError(f"{name} has shape {array.shape}: expected its parameter's, {p.shape}")
    if array.dtype == p.dtype:
        return array
    with np.errstate(all="ignore"):
        return array.astype(p.dtype)


def _rows(name: str, pair: tuple[Any, ...], p: Array) -> Rows:
    """A gradient of rows: indices and values as the kernel takes them."""
    if len(pair) != 2 or p.ndim == 0:
        raise ValueError(f"{name}: a tuple is (row indices, values), for an array with rows; got {len(pair)} entries")
    if not p.flags.c_contiguous:
        raise ValueError(f"{name}: a gradient of rows is for a contiguous array, not one with strides {p.strides}")
    indices = _indices(f"{name}: indices", pair[0])
    like = np.broadcast_to(np.empty((), p.dtype), (len(indices), *p.shape[1:]))  # what shape the values must have
    return Rows(indices, np.ascontiguousarray(_gradient(f"{name}: values", pair[1], like)))


def _indices(name: str, rows: Any) -> NDArray[np.int64]:
    array = np.asarray(rows)
    if array.size == 0 and array.ndim == 1:
        array = array.astype(np.int64)
    if array.dtype.kind not in "iu" or array.ndim != 1:
        raise ValueError(f"{name} has dtype {array.dtype} and shape {array.shape}: expected integers in one dimension")
    return np.ascontiguousarray(array, np.int64)


def _check_overlap(names: list[str], params: list[Array]) -> None:
    """No two elements may share memory, neither within an array nor between two."""
    for name, p in zip(names, params, strict=True):
        if cpu.overlapping(p.strides, p.shape, p.itemsize):
            raise ValueError(f"{name}: several of its elements share memory (strides {p.strides}, shape {p.shape})")
    spans = sorted((*byte_bounds(p), i) for i, p in enumerate(params))
    for k, (_, end, i) in enumerate(spans):
        for _, _, j in spans[k + 1 : bisect_left(spans, (end,))]:
            if np.shares_memory(params[i], params[j]):
                raise ValueError(f"{names[max(i, j)]} overlaps {names[min(i, j)]}: expected arrays apart in memory")


def _dict(name: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise ValueError(f"{name}: expected a dict, got {type(value).__name__}")
    return dict(value)


def _check_names(what: str, given: Mapping[str, Any], expected: Iterable[str]) -> None:
    """Each of the expected, in any order, and no other."""
    missing, unknown = [name for name in expected if name not in given], sorted(given.keys() - expected, key=str)
    if missing or unknown:
        raise ValueError(f"{what}: missing {missing}, unknown {unknown}")


def _loaded(name: str, entry: Any, p: Array, rule: Rule, state_shape: str) -> dict[str, Array]:
    """A checked copy of the state of one parameter."""
    entry, slots = _dict(name, entry), rule.slots()
    _check_names(name, entry, ["step", *slots.values()])
    step = np.asarray(entry["step"])
    if step.dtype.kind not in "fiu" or step.ndim or not (0 <= step < 2**53 and step % 1 == 0):
        raise ValueError(f"{name}: step={entry['step']!r}: expected a whole number of at least 0")
    shapes = {"v": shape_of(p.shape, state_shape)}
    arrays = {
        key: _numbers(f"{name}: {key}", entry[key], p, shapes.get(slot, p.shape), signed=slot != "v")
        for slot, key in slots.items()
    }
    return {"step": step.astype(float), **arrays}


def _numbers(name: str, value: Any, p: Array, shape: tuple[int, ...], *, signed: bool) -> Array:
    array = np.asarray(value)
    if array.dtype.kind not in "fiu" or array.shape != shape:
        raise ValueError(f"{name}: expected numbers of shape {shape}, got {array.dtype} of shape {array.shape}")
    with np.errstate(all="ignore"):
        array = array.astype(np.promote_types(p.dtype, np.float32))
    if not np.isfinite(array).all():
        raise ValueError(f"{name}: expected finite {array.dtype} numbers")
    if not signed and (array < 0).any():
        raise ValueError(f"{name}: expected no negative numbers, got {array.min()}")
    return array
