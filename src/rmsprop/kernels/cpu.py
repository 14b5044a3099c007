"""The CPU kernel: chooses the native code at load, and runs blocked NumPy where there is none."""

import os
from collections.abc import Callable, Sequence
from struct import pack, unpack
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np

from rmsprop import averaging, rowwise, rprop
from rmsprop.kernels.rows import Gathered, Rows
from rmsprop.rprop import RpropRule
from rmsprop.rule import Rule, update, usable

#: Scalars of a group as bytes, or a function of the step number that returns them.
Scalars = bytes | Callable[[int], bytes]


class Group(NamedTuple):
    """Tensors that share one rule, in lists of equal length.

    Attributes:
        scalars, flags: from `coefficients`.
        params, grads: a gradient that is None leaves its parameter alone; it may be `rows.Rows`.
        states: dicts with "step" (one writable float32 or float64) and an array for each of the rule's slots, of the
            parameter's shape; that of the mean square is `rowwise.shape_of` it. With averaging there is one more.
        names: for messages; None for "parameter i of group j".
        seed, offsets: of the random numbers for bfloat16; `offsets` are the indices of the parameters' first elements.
    """

    scalars: Scalars
    flags: int
    params: list[Any]
    grads: list[Any]
    states: list[dict[str, Any]]
    names: list[str] | None = None
    seed: int = 0
    offsets: list[int] | None = None


class Sums(NamedTuple):
    """What a watched step did to one parameter: sums of squares, and counts of entries."""

    gradient: float
    update: float
    weight: float
    dominated: int
    skipped: int
    entries: int


_NAMES, _RPROP_NAMES = tuple(Rule().scalars(1)), tuple(RpropRule().scalars())
_FLAGS = {"centered": 1, "momentum": 2, "skip": 4, "decay": 8}
_RPROP_FLAGS = {"forget": 128, "back": 256, "optax": 512}
_ERROR, _STOCHASTIC, _RPROP, _ROWWISE, _AVERAGE = 16, 32, 64, 1024, 2048
#: Elements NumPy handles at a time, so that its temporaries stay in cache (whole arrays are four times slower).
_BLOCK = 1 << 14


def _load() -> tuple[ModuleType | None, str]:
    """The native module that suits this processor, and its name."""
    try:
        from rmsprop.kernels import _cpu
    except ImportError:
        return None, "blocked NumPy (rmsprop was installed without a C++ compiler)"
    if _cpu.supports_v3():
        from rmsprop.kernels import _cpu_v3

        return _cpu_v3, "native, x86-64-v3"
    return _cpu, "native, baseline"


native, NAME = _load()


def threads() -> int:
    """How many processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def overlapping(strides: Sequence[int], shape: Sequence[int], itemsize: int) -> bool:
    """Whether elements of an array may share memory; strides count in the same unit as `itemsize`."""
    reach = itemsize  # how far the axes so far extend: a shorter stride meets another element
    for stride, length in sorted(zip(map(abs, strides), shape, strict=True)):
        if length != 1 and stride < reach:
            return 0 not in shape
        reach += stride * (length - 1)
    return False


def coefficients(
    rule: Rule | RpropRule,
    scale: float = 1.0,
    stochastic: bool = False,
    rowwise: bool = False,
    gamma: float | None = None,
) -> tuple[Scalars, int]:
    """The first two entries of a `Group`.

    Args:
        rule: the rule of the group.
        scale: what the gradients have been multiplied by.
        stochastic: round bfloat16 parameters at random.
        rowwise: the mean squares belong to rows; not for a centered rule.
        gamma: of an average of the parameters (`rmsprop.averaging`), or None; not for Rprop, nor gradients of rows.
    """
    bits = _FLAGS | _RPROP_FLAGS
    flags = sum(bits[name] for name, on in rule.flags().items() if on) | _ERROR * (rule.nonfinite == "error")

    def packed(t: int) -> bytes:
        values = [*rule.scalars(t, grad_scale=scale).values()]
        values += [] if gamma is None else [averaging.rate(t, gamma)]
        return pack(f"{len(values)}d", *values)

    flags |= _STOCHASTIC * stochastic | _ROWWISE * rowwise | _AVERAGE * (gamma is not None)
    if isinstance(rule, RpropRule):
        return packed(1), flags | _RPROP
    return packed if rule.bias_correction or gamma is not None else packed(1), flags


def step(groups: Sequence[Group], threads: int) -> int:
    """One step for all groups, in place; everything is checked first. The contract is in `rmsprop.kernels`.

    Returns:
        The number of gradient entries skipped (`nonfinite="skip"`).

    Raises:
        ValueError: a parameter, gradient or state the kernel cannot take; it names group and position.
        FloatingPointError: `nonfinite="error"` and a gradient entry whose square is not finite.
    """
    return native.step(groups, threads) if native is not None else _blocked(groups)


def watched_step(groups: Sequence[Group], threads: int) -> list[Sums]:
    """The same step by native code, and what it did, for each gradient that is not None."""
    assert native is not None
    return [Sums(*row) for row in native.step(groups, threads, True)]


def _blocked(groups: Sequence[Group]) -> int:
    """The same step in NumPy, for arrays whose shapes and dtypes the front end has checked."""
    rows = [
        (p, g, state, _scalars_at(scalars, float(state["step"]) + 1, flags), flags, names[i] if names else i)
        for scalars, flags, params, grads, states, names, *_ in groups
        for i, (p, g, state) in enumerate(zip(params, grads, states, strict=True))
        if g is not None
    ]
    gathered: list[Gathered] = []
    stepped = [state for _, g, state, *_ in rows if not isinstance(g, Rows) or g.values is not None]
    with np.errstate(all="ignore"):
        for i, (p, g, state, scalars, flags, name) in enumerate(rows):
            if isinstance(g, Rows):
                gathered.append(Gathered(name, g, p, state, _slots(scalars, flags), bool(flags & _FLAGS["decay"])))
                p, g, state = gathered[-1].p, gathered[-1].g, gathered[-1].state  # noqa: PLW2901
                rows[i] = (p, g, state, scalars, flags, name)
            if g is not None and flags & _ERROR and not _usable(p, g, scalars, bool(flags & _FLAGS["decay"])):
                raise FloatingPointError(f"{name}: its gradient, squared, is not finite")
        skipped = sum((_rprop_update if row[4] & _RPROP else _update)(*row[:-1]) for row in rows if row[1] is not None)
        for p, _, state, scalars, flags, _ in rows:
            if flags & _AVERAGE:
                _average(p, state[averaging.SLOT], scalars["rate"])
    for state in stepped:
        state["step"] += 1
    for table in gathered:
        table.scatter()
    return skipped


def _slots(scalars: dict[str, float], flags: int) -> dict[str, str]:
    return Rule(centered=bool(flags & _FLAGS["centered"]), momentum=scalars["mu"]).slots()


def _scalars_at(scalars: Scalars, t: float, flags: int) -> dict[str, float]:
    packed = scalars if isinstance(scalars, bytes) else scalars(int(t))
    names = _RPROP_NAMES if flags & _RPROP else (*_NAMES, *["rate"] * bool(flags & _AVERAGE))
    return dict(zip(names, unpack(f"{len(packed) // 8}d", packed), strict=True))


def _blocks(arrays: list[np.ndarray], writable: int, dtype: np.dtype) -> np.nditer:
    """The arrays a block at a time, as 1-d arrays of `dtype`, whatever their strides; the first few are written."""
    kinds = [["readwrite"]] * writable + [["readonly"]] * (len(arrays) - writable)
    dtype = np.dtype(dtype)
    order = {"op_flags": kinds, "op_dtypes": [dtype] * len(arrays), "casting": "same_kind", "buffersize": _BLOCK}
    return np.nditer(arrays, ["external_loop", "buffered", "zerosize_ok"], **order)  # type: ignore[call-overload, no-any-return]


def _usable(p: np.ndarray, g: np.ndarray, k: dict[str, float], decay: bool) -> bool:
    dtype = np.promote_types(p.dtype, np.float32)
    largest = float(np.finfo(dtype).max)
    with _blocks([p, g], 0, dtype) as blocks:
        return all(usable(x, y, k["sign"], k["coupled"], largest, decay).all() for x, y in blocks)


def _update(p: np.ndarray, g: np.ndarray, state: dict[str, np.ndarray], k: dict[str, float], flags: int) -> int:
    choices = {name: bool(flags & bit) for name, bit in _FLAGS.items()}
    slots = _slots(k, flags)
    dtype = np.promote_types(p.dtype, np.float32)
    finfo = np.finfo(dtype)
    given: dict[str, Any] = {**{name: k[name] for name in _NAMES}, **choices}
    given |= {"tiny": float(finfo.tiny), "largest": float(finfo.max), "sqrt": np.sqrt, "divide": np.divide}
    given["where"] = np.where
    if state[slots["v"]].shape != p.shape:
        return _update_rowwise(p, g, [state.get(name) for name in ("square_avg", "momentum_buffer")], given)
    skipped = 0
    with _blocks([p, *(state[name] for name in slots.values()), g], len(slots) + 1, dtype) as blocks:
        for x, *kept, y in blocks:
            now = dict(zip(slots, kept, strict=True))
            v, m, b = (now.get(s, 0.0) for s in "vmb")
            new = update(x, y, v, m, b, **given)
            x[...] = new[0]
            for letter, value in zip("vmb", new[2:5], strict=True):
                if letter in now:
                    now[letter][...] = value
            skipped += int(np.count_nonzero(~new[5])) if choices["skip"] else 0
    return skipped


def _average(p: np.ndarray, average: np.ndarray, rate: float) -> None:
    dtype = np.promote_types(p.dtype, np.float32)
    with _blocks([average, p], 1, dtype) as blocks:
        for a, x in blocks:
            a[...] = averaging.update(a, x, rate, float(np.finfo(dtype).tiny), np.where)


def _rprop_update(p: np.ndarray, g: np.ndarray, state: dict[str, np.ndarray], k: dict[str, float], flags: int) -> int:
    choices = {name: bool(flags & bit) for name, bit in _RPROP_FLAGS.items()}
    slots = [state[name] for name in RpropRule().slots().values()]
    with _blocks([p, *slots, g], 3, np.promote_types(p.dtype, np.float32)) as blocks:
        for x, s, q, y in blocks:
            x[...], _, s[...], q[...] = rprop.update(x, y, s, q, **k, **choices, where=np.where)
    return 0


def _update_rowwise(p: np.ndarray, g: np.ndarray, state: Sequence[Any], given: dict[str, Any]) -> int:
    """`_update` where there is one mean square for each row: some rows at a time."""
    v, b = state
    skipped, height = 0, max(_BLOCK * len(p) // max(p.size, 1), 1)
    for first in range(0, len(p), height):
        some = slice(first, first + height)
        arrays = [x[some].astype(v.dtype, "C") if x is not None else 0.0 for x in (p, g, v, None, b)]
        new = rowwise.update(_row_mean, *arrays, **given)
        p[some], v[some] = new[0], new[2]
        if b is not None:
            b[some] = new[4]
        skipped += int(np.count_nonzero(~new[5])) if given["skip"] else 0
    return skipped


def _row_mean(squares: np.ndarray, used: np.ndarray | None) -> np.ndarray:
    """The `mean` of `rowwise.square`."""
    axes = tuple(range(1, squares.ndim))
    used = np.broadcast_to(True, squares.shape) if used is None else used
    total = squares.sum(axes, np.float64, keepdims=True, where=used)
    mean: np.ndarray = (total / used.sum(axes, keepdims=True)).astype(squares.dtype)
    return mean
