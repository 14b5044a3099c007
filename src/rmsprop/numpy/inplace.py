"""Arrays that are updated in place: what they must be, and the state that belongs to them."""

from bisect import bisect_left
from collections.abc import Iterable, Mapping
from dataclasses import fields
from itertools import accumulate
from threading import Lock
from typing import Any, ClassVar

import numpy as np
from numpy.lib.array_utils import byte_bounds
from numpy.typing import NDArray

from rmsprop import averaging
from rmsprop.kernels import cpu
from rmsprop.rowwise import shape_of
from rmsprop.rule import OptionError, expect

Array = NDArray[np.floating[Any]]
Arrays = Iterable[Array] | Mapping[str, Array]
_FLOATS = tuple(np.dtype(f"f{size}") for size in (2, 4, 8))
_FORMAT = 1


class InPlace:
    """What the optimizers for NumPy share: all but their options and their step. Not to be used on its own."""

    #: State arrays that may hold any number; the others are finite.
    _free: ClassVar[tuple[str, ...]] = ()
    #: The option that v starts at.
    _start: ClassVar[str]
    #: What has a v of its own: an entry ("full"), or a row.
    _state_shape = "full"
    #: Of an average of the parameters, or None.
    _gamma: float | None = None
    #: Whether the parameters hold their averages.
    _is_averaged = False
    _rule: Any

    def __init__(self, params: Arrays, rule: Any) -> None:
        self._rule = rule
        named = _named(params, "params")
        self._names, self._params = list(named), list(named.values())
        for name, p in zip(self._names, self._params, strict=True):
            _check_param(name, p)
        self._grad_names = [name.replace("params", "grads", 1) for name in self._names]
        _check_overlap(self._names, self._params)
        self._shapes = [p.shape for p in self._params]
        self._states = [self._fresh(p) for p in self._params]
        self._settle()

    def _with(self, options: Mapping[str, Any]) -> Any:
        """The rule with these options; a TypeError names one that does not exist."""
        raise NotImplementedError

    def _checked(self, grads: Iterable[Any] | Mapping[str, Any]) -> list[Array | None]:
        """The gradients in the order of the parameters and in their dtypes; parameters are checked too."""
        given = _named(grads, "grads")
        _check_names("grads", given, self._grad_names)
        converted = []
        for own, name, p, shape in zip(self._names, self._grad_names, self._params, self._shapes, strict=True):
            _check_param(own, p)
            if p.shape != shape:
                raise ValueError(f"{own} has shape {p.shape}: expected {shape}, as when the optimizer was made")
            converted.append(None if given[name] is None else self._converted(name, given[name], p))
        return converted

    def _converted(self, name: str, g: Any, p: Array) -> Any:
        return self._apart(gradient(name, g, p), p)

    def _make(self, rule: Any, grads: list[Array | None]) -> int:
        """The step, by a rule, of gradients that have been checked; the number of entries skipped."""
        group = cpu.Group(*self._coefficients(rule), self._params, grads, self._states, self._names)
        return cpu.step([group], cpu.threads())

    def _coefficients(self, rule: Any) -> tuple[cpu.Scalars, int]:
        return cpu.coefficients(rule, rowwise=self._state_shape == "row", gamma=self._gamma)

    def state_dict(self) -> dict[str, Any]:
        """The rule and a copy of the state: plain numbers, strings and arrays.

        {"format": 1, "rule": {...}, "state": {name: {"step": int, "square_avg": array, ...}}}
        """
        self._expect_own_weights("state_dict")
        state = {
            name: {key: int(value) if key == "step" else value.copy() for key, value in entry.items()}
            for name, entry in zip(self._names, self._states, strict=True)
        }
        rule = {field.name: getattr(self._rule, field.name) for field in fields(self._rule)}
        average = {} if self._gamma is None else {"averaging": self._gamma}
        return {"format": _FORMAT, "rule": rule, **average, "state": state}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Takes over rule and state from `state_dict()`; on an error nothing has changed.

        Raises:
            ValueError: another format, other parameters, an option outside its range, or a number or array that is
                missing, of another shape, not finite or (step and v) negative; the error names it.
            TypeError: an option that does not exist.
        """
        self._expect_own_weights("load_state_dict")
        if _dict("state_dict", state_dict).get("format") != _FORMAT:
            raise ValueError(f"state_dict: expected format={_FORMAT}, from {type(self).__name__}.state_dict()")
        rule = self._with(_dict("state_dict['rule']", state_dict.get("rule")))
        gamma = self._averaging(state_dict.get("averaging", self._gamma))
        given = _dict("state_dict['state']", state_dict.get("state"))
        _check_names("state_dict['state']", given, self._names)
        pairs = zip(self._names, self._params, strict=True)
        states = [self._loaded(f"state of {name}", given[name], p, rule, gamma) for name, p in pairs]
        self._rule, self._states, self._gamma = rule, states, gamma

    def _averaging(self, option: Any) -> float | None:
        """The gamma of an `averaging` option; here, of optimizers that have none."""
        expect("averaging", option, averaging.gamma_of(option) is None, "None")
        return None

    def _expect_own_weights(self, what: str) -> None:
        """Raises a RuntimeError while the parameters hold their averages."""
        if self._is_averaged:
            raise RuntimeError(averaging.refusal(what))

    def __repr__(self) -> str:
        arrays = (f"{name}{list(shape)}" for name, shape in zip(self._names, self._shapes, strict=True))
        return f"{type(self).__name__}({', '.join(arrays)}; {self._rule})"

    def _fresh(self, p: Array) -> dict[str, Array]:
        dtype = np.promote_types(p.dtype, np.float32)
        start = self._rule.starts()
        if start["v"] > float(np.finfo(dtype).max):
            raise OptionError(self._start, start["v"], f"a number that {dtype} can hold")
        shapes = {"v": shape_of(p.shape, self._state_shape)}
        slots = {name: np.full(shapes.get(s, p.shape), start[s], dtype) for s, name in self._rule.slots().items()}
        averages = {name: p.astype(dtype) for name in averaging.slots(self._gamma).values()}
        return {"step": np.zeros(()), **slots, **averages}

    def _loaded(self, name: str, entry: Any, p: Array, rule: Any, gamma: float | None) -> dict[str, Array]:
        """A checked copy of the state of one parameter; an average that is not there starts at the parameter."""
        entry, slots = _dict(name, entry), rule.slots() | averaging.slots(gamma)
        if "a" in slots:
            entry.setdefault(averaging.SLOT, p)
        _check_names(name, entry, ["step", *slots.values()])
        step = np.asarray(entry["step"])
        if step.dtype.kind not in "fiu" or step.ndim or not (0 <= step < 2**53 and step % 1 == 0):
            raise ValueError(f"{name}: step={entry['step']!r}: expected a whole number of at least 0")
        arrays = {}
        for slot, key in slots.items():
            like = np.broadcast_to(p.dtype.type(0), shape_of(p.shape, self._state_shape) if slot == "v" else p.shape)
            signed, finite = slot != "v", slot != "a" and key not in self._free
            arrays[key] = _numbers(f"{name}: {key}", entry[key], like, signed=signed, finite=finite)
            if slot == "a" and not (np.isfinite(arrays[key]) | (arrays[key] == p)).all():
                raise ValueError(f"{name}: {key}: expected finite numbers where the parameter is finite")
        return {"step": step.astype(float), **arrays}

    def __getstate__(self) -> dict[str, Any]:
        self._expect_own_weights("copy")
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


def gradient(name: str, g: Any, p: Array) -> Array:
    """The gradient as an array of the dtype of its parameter, whose shape it must have."""
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


def _numbers(name: str, value: Any, p: Array, *, signed: bool, finite: bool) -> Array:
    array = np.asarray(value)
    if array.dtype.kind not in "fiu" or array.shape != p.shape:
        raise ValueError(f"{name}: expected numbers of shape {p.shape}, got {array.dtype} of shape {array.shape}")
    with np.errstate(all="ignore"):
        array = array.astype(np.promote_types(p.dtype, np.float32))
    if finite and not np.isfinite(array).all():
        raise ValueError(f"{name}: expected finite {array.dtype} numbers")
    if not signed and (array < 0).any():
        raise ValueError(f"{name}: expected no negative numbers, got {array.min()}")
    return array
