"""The NumPy front end: `RMSprop(params).step(grads)`, in place."""

from bisect import bisect_left
from collections.abc import Iterable, Mapping
from itertools import accumulate
from typing import Any

import numpy as np
from numpy.lib.array_utils import byte_bounds
from numpy.typing import NDArray

from rmsprop.dialects import dialect as dialect_rule
from rmsprop.dialects import known
from rmsprop.kernels import cpu
from rmsprop.rule import Rule

Array = NDArray[np.floating[Any]]
Arrays = Iterable[Array] | Mapping[str, Array]
_FLOATS = tuple(np.dtype(f"f{size}") for size in (2, 4, 8))
_FORMAT = 1


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
        self, params: Arrays, rule: Rule | None = None, *, dialect: str | None = None, **options: Any
    ) -> None:
        if rule is not None and not isinstance(rule, Rule):
            raise TypeError(f"rule={rule!r}: expected a Rule; a dialect's name goes to dialect=")
        if rule is not None and dialect is not None:
            raise ValueError(f"rule and dialect={dialect!r}: expected one of them")
        base = rule or (Rule() if dialect is None else dialect_rule(dialect))
        self.rule = base.replace(**known(options))
        self._names, self._params = _named(params, "params")
        for name, p in zip(self._names, self._params, strict=True):
            _check_param(name, p)
        self._grad_names = [name.replace("params", "grads", 1) for name in self._names]
        _check_overlap(self._names, self._params)
        spans = sorted(byte_bounds(p) for p in self._params if p.size)
        self._starts = [start for start, _ in spans]
        self._reach = list(accumulate((end for _, end in spans), max))  # how far the arrays up to here extend
        self._states = [self._fresh(p) for p in self._params]
        self.skipped = 0

    @property
    def lr(self) -> float:
        """The step size; assign to it between steps to follow a schedule."""
        return self.rule.lr

    @lr.setter
    def lr(self, lr: float) -> None:
        self.rule = self.rule.replace(lr=lr)

    def step(self, grads: Iterable[Any] | Mapping[str, Any]) -> None:
        """One update. Every check comes before the first write: a step that raises has changed nothing.

        Args:
            grads: gradients in the order (or under the names) of `params`, of the same shapes; read only. Another
                float dtype is converted to the parameter's. None leaves its parameter and state alone.

        Raises:
            ValueError: a gradient of another shape, not of floats, or missing; the error names it.
            FloatingPointError: with `nonfinite="error"`, a gradient entry whose square is not finite.
        """
        names, given = _named(grads, "grads")
        if names != self._grad_names:
            raise ValueError(f"grads: expected one for each of {self._names}, got {names}")
        converted = []
        for name, g, p, own in zip(names, given, self._params, self._names, strict=True):
            _check_param(own, p)
            converted.append(None if g is None else self._apart(_gradient(name, g, p), p))
        scalars, flags = cpu.coefficients(self.rule)
        group = (scalars, flags, self._params, converted, self._states, self._names)
        self.skipped += cpu.step([group], cpu.threads())

    def state_dict(self) -> dict[str, Any]:
        """The rule and a copy of the state: plain numbers, strings and arrays.

        {"format": 1, "rule": {...}, "state": {name: {"step": int, "square_avg": array, ...}}}
        """
        state = {
            name: {key: int(value) if key == "step" else value.copy() for key, value in entry.items()}
            for name, entry in zip(self._names, self._states, strict=True)
        }
        options = {name: getattr(self.rule, name) for name in Rule.__dataclass_fields__}
        return {"format": _FORMAT, "rule": options, "state": state}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Takes over rule and state from `state_dict()`; on an error nothing has changed.

        Raises:
            ValueError: another format, other parameters, or an array that is missing, of another shape, not finite
                or (v) negative; the error names it.
        """
        if not isinstance(state_dict, Mapping) or state_dict.get("format") != _FORMAT:
            raise ValueError(f"state_dict: expected a dict with format={_FORMAT}, from RMSprop.state_dict()")
        rule = Rule(**known(dict(state_dict["rule"])))
        given = state_dict["state"]
        if list(given) != self._names:
            raise ValueError(f"state_dict: expected state for {self._names}, got {list(given)}")
        keys = ["step", *rule.slots().values()]
        states = [
            {key: _loaded(f"state of {name}: {key}", given[name].get(key), p) for key in keys}
            for name, p in zip(self._names, self._params, strict=True)
        ]
        self.rule, self._states = rule, states

    def __repr__(self) -> str:
        return f"RMSprop({', '.join(f'{n}{list(p.shape)}' for n, p in zip(self._names, self._params))}; {self.rule})"

    def _fresh(self, p: Array) -> dict[str, Array]:
        dtype = np.promote_types(p.dtype, np.float32)
        start = {"v": self.rule.initial_square, "m": 0.0, "b": 0.0}
        slots = {name: np.full(p.shape, start[slot], dtype) for slot, name in self.rule.slots().items()}
        return {"step": np.zeros(()), **slots}

    def _apart(self, g: Array, p: Array) -> Array:
        """The gradient, or a copy where it shares memory with a parameter other than by being its own."""
        low, high = byte_bounds(g)
        before = bisect_left(self._starts, high)
        if not before or self._reach[before - 1] <= low:
            return g
        same = byte_bounds(p) == (low, high) and g.strides == p.strides
        return g if same else g.copy()


def _named(arrays: Any, what: str) -> tuple[list[str], list[Any]]:
    """Names for error messages and the state, and the arrays, of a list or dict."""
    if isinstance(arrays, Mapping):
        return [f"{what}[{name!r}]" for name in arrays], list(arrays.values())
    if isinstance(arrays, np.ndarray) or not isinstance(arrays, Iterable):
        raise TypeError(f"{what}: expected a list or dict of arrays, got {type(arrays).__name__}; put it in a list")
    values = list(arrays)
    return [f"{what}[{i}]" for i in range(len(values))], values


def _check_param(name: str, p: Any) -> None:
    if not isinstance(p, np.ndarray):
        raise ValueError(f"{name}: expected a NumPy array, got {type(p).__name__}")
    if p.dtype not in _FLOATS:
        raise ValueError(f"{name} has dtype {p.dtype}: expected float16, float32 or float64 in native byte order")
    if not p.flags.writeable:
        raise ValueError(f"{name} is read-only: expected an array that can be updated in place")


def _gradient(name: str, g: Any, p: Array) -> Array:
    g = np.asarray(g)
    if g.dtype.kind != "f":
        raise ValueError(f"{name} has dtype {g.dtype}: expected a float dtype")
    if g.shape != p.shape:
        raise ValueError(f"{name} has shape {g.shape}: expected its parameter's, {p.shape}")
    if g.dtype == p.dtype:
        return g
    with np.errstate(over="ignore"):
        return g.astype(p.dtype)


def _check_overlap(names: list[str], params: list[Array]) -> None:
    """No two elements may share memory, neither within an array nor between two."""
    for name, p in zip(names, params, strict=True):
        reach = p.itemsize  # bytes the axes so far reach over; a stride inside them meets another element
        for stride, length in sorted((abs(s), n) for s, n in zip(p.strides, p.shape, strict=True) if n > 1):
            if stride < reach and p.size:
                raise ValueError(f"{name}: several of its elements share memory (strides {p.strides}, shape {p.shape})")
            reach += stride * (length - 1)
    spans = sorted((*byte_bounds(p), i) for i, p in enumerate(params) if p.size)
    for k, (_, end, i) in enumerate(spans):
        for start, _, j in spans[k + 1 :]:
            if start >= end:
                break
            if np.shares_memory(params[i], params[j]):
                first, second = sorted((i, j))
                raise ValueError(f"{names[second]} overlaps {names[first]}: expected arrays that share no memory")


def _loaded(name: str, value: Any, p: Array) -> Array:
    """A checked copy of one entry of a state."""
    if value is None:
        raise ValueError(f"{name}: missing")
    shape, dtype = ((), np.dtype(float)) if name.endswith(": step") else (p.shape, np.promote_types(p.dtype, "f4"))
    array = np.asarray(value)
    if array.dtype.kind not in "fiu" or array.shape != shape:
        raise ValueError(f"{name}: expected numbers of shape {shape}, got {array.dtype} of shape {array.shape}")
    if not np.isfinite(array).all():
        raise ValueError(f"{name}: expected finite numbers")
    if name.endswith((": step", ": square_avg", ": variance")) and (array < 0).any():
        raise ValueError(f"{name}: expected no negative numbers, got {array.min()}")
    return array.astype(dtype)
