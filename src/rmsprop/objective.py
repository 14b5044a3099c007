"""The user's function as `minimize` sees it: its numbers in one flat array, its calls counted and checked."""

from collections.abc import Callable
from math import isfinite
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

#: The sides of x that finite differences look at; a central difference is the mean of two one-sided ones.
_SIDES = {"2-point": (1,), "3-point": (1, -1)}


class Point(NamedTuple):
    """Numbers x, the value and the gradient there, and the gradient's largest absolute entry."""

    x: Array
    value: float
    gradient: Array
    norm: float


class Form:
    """The structure of x0; inside, all its numbers stand in one flat array `x`, which the optimizer moves."""

    def __init__(self, x0: Any) -> None:
        many = isinstance(x0, dict) or (isinstance(x0, list | tuple) and any(isinstance(x, np.ndarray) for x in x0))
        self.type = type(x0) if many else None
        self.keys = _keys(x0) if many else ()
        self.suffixes = [f"[{key!r}]" for key in self.keys] if many else [""]
        arrays = [np.asarray(part) for part in self._parts(x0)]
        if not any(array.size for array in arrays):
            raise ValueError(f"x0={x0!r}: expected at least one number")
        self.like = [np.empty(a.shape, a.dtype if a.dtype.kind == "f" else float) for a in arrays]
        ends = np.cumsum([a.size for a in arrays])
        self.places = [slice(end - a.size, end) for a, end in zip(arrays, ends, strict=True)]
        self.dtype = np.result_type(*self.like)
        self.x = self.flat("x0", x0)
        if bad := self._not_finite("x0", self.x):
            raise ValueError(f"{bad}: expected finite numbers")

    def _parts(self, whole: Any) -> list[Any]:
        return [whole] if self.type is None else [whole[key] for key in self.keys]

    def flat(self, name: str, whole: Any) -> Array:
        """The numbers of something with the structure and shapes of x0, in the dtype of `x`."""
        if self.type is not None and set(_keys(whole)) != set(self.keys):
            got = f"{type(whole).__name__} with parts {_keys(whole)}"
            raise ValueError(f"{name} is a {got}: expected a {self.type.__name__} with parts {self.keys}, as x0")
        named = zip(self.suffixes, self._parts(whole), self.like, strict=True)
        arrays = [_real(name + suffix, part, like.shape) for suffix, part, like in named]
        with np.errstate(over="ignore"):  # `trouble` reports infinities
            return np.concatenate([np.ravel(array) for array in arrays], dtype=self.dtype, casting="unsafe")

    def join(self, flat: Array) -> Any:
        """Fresh arrays with these numbers, in the structure, shapes and dtypes of x0."""
        pieces = zip(self.places, self.like, strict=True)
        arrays = [flat[place].reshape(like.shape).astype(like.dtype) for place, like in pieces]
        if self.type is None:
            return arrays[0]
        if issubclass(self.type, dict):
            return dict(zip(self.keys, arrays, strict=True))
        return getattr(self.type, "_make", self.type)(arrays)  # a named tuple takes its fields one by one

    def show(self, point: Point) -> dict[str, Any]:
        """What a result says of a point."""
        return {"x": self.join(point.x), "fun": point.value, "jac": self.join(point.gradient)}

    def trouble(self, point: Point, skip: bool) -> str:
        """What is not finite here; the gradient may be so where the rule skips such entries."""
        if not isfinite(point.value):
            return f"the value is {point.value}"
        return self._not_finite("x", point.x) or ("" if skip else self._not_finite("gradient", point.gradient))

    def _not_finite(self, name: str, flat: Array) -> str:
        if np.isfinite(flat).all():
            return ""
        pieces = zip(self.suffixes, self.places, strict=True)
        return (
            ", ".join(name + suffix for suffix, place in pieces if not np.isfinite(flat[place]).all()) + " not finite"
        )


class Objective:
    """The user's functions: counted, called with copies, and what they return checked."""

    def __init__(self, fun: Callable[..., Any], jac: Any, args: Any, form: Form) -> None:
        if not callable(fun):
            raise TypeError(f"fun={fun!r}: expected a function")
        self.fun, self.jac, self.form = fun, jac, form
        self.args = args if isinstance(args, tuple) else (args,)
        self.nfev = self.njev = 0
        self.sides: tuple[int, ...] = ()
        if jac is not True and not callable(jac):
            scheme = "2-point" if jac is None or jac is False else jac
            if scheme not in tuple(_SIDES):
                raise ValueError(f"jac={jac!r}: expected a function, True, False, None or one of {tuple(_SIDES)}")
            if (scipy := scipy_optimize()) is None:
                raise ImportError(f"jac={jac!r}: finite differences need SciPy; install it, or give the gradient")
            self.sides, self.approx_fprime = _SIDES[scheme], scipy.approx_fprime

    def point(self) -> Point:
        """Everything about where `form.x` is now."""
        x = self.form.x.copy()
        value, parts = self._value(x)
        if not np.isfinite(value):  # the run ends here, and `jac` might fail
            return Point(x, float(value), np.full_like(x, np.nan), float("nan"))
        self.njev += 1
        if callable(self.jac):
            parts = self.jac(self.form.join(x), *self.args)
        gradient = self._differences(x, value) if self.sides else self.form.flat("gradient", parts)
        return Point(x, float(value), gradient, float(np.max(np.abs(gradient))))

    def _value(self, x: Array) -> tuple[Array, Any]:
        """The value as an array of no axes; and the gradient, if it comes along."""
        self.nfev += 1
        value, parts = self.fun(self.form.join(x), *self.args), None
        if (self.jac is True) != (isinstance(value, tuple | list) and len(value) == 2):
            expected = "(value, gradient)" if self.jac is True else "one number; (value, gradient) goes with jac=True"
            raise ValueError(f"fun returned {value!r}: expected {expected}")
        if self.jac is True:
            value, parts = value
        return _real("value of fun", np.squeeze(value), ()), parts

    def _differences(self, x: Array, value: Array) -> Array:
        """SciPy's finite differences, with steps that suit the coarsest dtype and that x can take exactly."""
        dtypes = [np.dtype(float), value.dtype, *(like.dtype for like in self.form.like)]
        size = max(float(np.finfo(dtype).eps) for dtype in dtypes if dtype.kind == "f") ** (1 / (1 + len(self.sides)))

        def taken(x: Array) -> Array:
            return self.form.flat("x", self.form.join(x)).astype(float)

        def at(x: Array) -> float:
            return float(value if x is here else self._value(x)[0])

        here = taken(x)
        far = size * np.maximum(1, np.abs(here))
        slopes = [self.approx_fprime(here, at, taken(here + side * far) - here) for side in self.sides]
        gradient: Array = np.mean(slopes, axis=0)
        return gradient.astype(x.dtype)


def scipy_optimize() -> Any:
    """`scipy.optimize`, or None where SciPy is not installed."""
    try:
        from scipy import optimize
    except ImportError:
        return None
    return optimize


def _keys(whole: Any) -> tuple[Any, ...]:
    if isinstance(whole, list | tuple):
        return tuple(range(len(whole)))
    return tuple(whole) if isinstance(whole, dict) else ()


def _real(name: str, value: Any, shape: tuple[int, ...]) -> Array:
    array = np.asarray(value)
    if array.dtype.kind not in "fiub" or array.shape != shape:
        raise ValueError(f"{name} is {array.dtype} of shape {array.shape}: expected real numbers of shape {shape}")
    return array
