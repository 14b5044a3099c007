"""The step on a GPU: `rule.update` itself, compiled by Triton, for any number of tensors in one launch.

Roots and divisions are rounded as IEEE 754 has it and nothing is fused, so the bits are those of the CPU's kernel.
What the kernel reads beside the tensors are three tables, which `launch.py` makes: rows, scalars and blocks.
"""

from types import FunctionType
from typing import Any

import triton
import triton.language as tl

from rmsprop import averaging, rprop, rule

#: What the kernel reads of a row: addresses of p, g, v, m, b, a; count, offset, key, index of the scalars.
ROW = 10
#: The doubles of one set of scalars; the last is the rate of the average.
SCALARS = 17
#: Elements a program takes, and by how many warps: measured on an H200.
BLOCK, WARPS = 1024, 8


def _jit(function: Any, **helpers: Any) -> Any:
    """A function of the definition for Triton, calling such ones itself."""
    return triton.jit(FunctionType(function.__code__, {**function.__globals__, "tl": tl, **helpers}, function.__name__))


@triton.jit
def _root(x):  # type: ignore[no-untyped-def]
    if x.dtype == tl.float64:
        return tl.sqrt(x)
    else:  # noqa: RET505 (Triton takes one branch while it compiles, and knows it by the `else`)
        return tl.sqrt_rn(x)


@triton.jit
def _quotient(x, y):  # type: ignore[no-untyped-def]
    if x.dtype == tl.float64:
        return x / y
    else:  # noqa: RET505
        return tl.div_rn(x, y)


@triton.jit
def _where(condition, x, y):  # type: ignore[no-untyped-def]
    return tl.where(condition, x, y)


_update = _jit(rule.update, mean_square=_jit(rule.mean_square), denominator=_jit(rule.denominator))
_rprop = _jit(rprop.update)
_average = _jit(averaging.update)


@triton.jit
def _mix(x):  # type: ignore[no-untyped-def]
    """splitmix64's finaliser, as in formats.h."""
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB
    return x ^ (x >> 31)


@triton.jit
def _scramble(x):  # type: ignore[no-untyped-def]
    """lowbias32, as in formats.h."""
    x = (x ^ (x >> 16)) * 0x7FEB352D
    x = (x ^ (x >> 15)) * 0x846CA68B
    return x ^ (x >> 16)


@triton.jit
def _dice(row, i):  # type: ignore[no-untyped-def]
    """32 random bits for each of the parameter and its mean square, for m and b, and for the average."""
    index = tl.load(row + 7).to(tl.uint64) + i.to(tl.uint64)
    key = _mix(tl.load(row + 8).to(tl.uint64) + (index >> 32))
    pv = _scramble(_scramble(index.to(tl.uint32) ^ key.to(tl.uint32)) + (key >> 32).to(tl.uint32))
    mb = _scramble(pv + 0x9E3779B9)
    return pv, mb, _scramble(mb + 0x9E3779B9)


@triton.jit
def _at(row, slot: tl.constexpr, i, dtype: tl.constexpr, aligned: tl.constexpr):  # type: ignore[no-untyped-def]
    """The addresses of some elements of an operand."""
    start = tl.load(row + slot).to(tl.pointer_type(dtype))
    if aligned:
        start = tl.multiple_of(start, 16)
    return start + i


@triton.jit
def _stored(at, x, mask, bits, dithers: tl.constexpr):  # type: ignore[no-untyped-def]
    """Writes numbers, rounded to nearest or, as `Dithered` in formats.h, by 16 random bits; as they are kept."""
    if at.dtype.element_ty == tl.bfloat16:
        raw = x.to(tl.uint32, bitcast=True)
        bits = bits if dithers else 0x7FFF + (raw >> 16 & 1)
        raw = tl.where((raw & 0x7F800000) == 0x7F800000, raw, raw + bits)
        raw = tl.where(x != x, 0x7FC00000, raw)  # noqa: PLR0124
        kept = (raw >> 16).to(tl.uint16).to(tl.bfloat16, bitcast=True)
    else:
        kept = x.to(at.dtype.element_ty)
    tl.store(at, kept, mask)
    return kept.to(x.dtype)


@triton.jit
def _five(k, dtype: tl.constexpr):  # type: ignore[no-untyped-def]
    """Scalars, rounded once."""
    x0, x1, x2, x3, x4 = tl.load(k), tl.load(k + 1), tl.load(k + 2), tl.load(k + 3), tl.load(k + 4)
    return x0.to(dtype), x1.to(dtype), x2.to(dtype), x3.to(dtype), x4.to(dtype)


# fmt: off
@triton.jit
def _step(row, k, i, mask, skipped, dtype: tl.constexpr, state: tl.constexpr, flags: tl.constexpr,  # type: ignore[no-untyped-def]
          tiny: tl.constexpr, largest: tl.constexpr, aligned: tl.constexpr):
    """One step for the elements i of a row; k are its scalars. Flags are those of the native module."""
    centered: tl.constexpr = (flags & 1) != 0
    momentum: tl.constexpr = (flags & 2) != 0
    skip: tl.constexpr = (flags & 4) != 0
    stochastic: tl.constexpr = (flags & 32) != 0
    resilient: tl.constexpr = (flags & 64) != 0
    low: tl.constexpr = state == tl.bfloat16
    wide: tl.constexpr = tl.float64 if dtype == tl.float64 else tl.float32
    p_at, g_at, v_at = _at(row, 0, i, dtype, aligned), _at(row, 1, i, dtype, aligned), _at(row, 2, i, state, aligned)
    m_at, b_at, a_at = _at(row, 3, i, state, aligned), _at(row, 4, i, state, aligned), _at(row, 5, i, state, aligned)
    p, g, v = tl.load(p_at, mask).to(wide), tl.load(g_at, mask).to(wide), tl.load(v_at, mask).to(wide)
    m = tl.load(m_at, mask).to(wide) if centered or resilient else 0.0
    b = tl.load(b_at, mask).to(wide) if momentum else 0.0
    k0, k1, k2, k3, k4 = _five(k, wide)
    if resilient:
        p, _, v, m = _rprop(p, g, v, m, k0, k1, k2, k3, k4,
                            (flags & 128) != 0, (flags & 256) != 0, (flags & 512) != 0, _where)
        used = True
    else:
        k5, k6, k7, k8, k9 = _five(k + 5, wide)
        k10, k11, k12, k13, k14 = _five(k + 10, wide)
        p, _, v, m, b, used = _update(p, g, v, m, b, k0, k1, k2, k3, k4, k5, k6, k7, k8, k9, k10, k11, k12, k13, k14,
                                      tl.load(k + 15).to(wide), tiny, largest, centered, momentum, skip,
                                      (flags & 8) != 0, _root, _quotient, _where)
    pv, mb, ab = _dice(row, i) if low or stochastic else (0, 0, 0)
    p = _stored(p_at, p, mask, pv >> 16, stochastic)
    _stored(v_at, v, mask, pv & 0xFFFF, low)
    if centered or resilient:
        _stored(m_at, m, mask, mb >> 16, low)
    if momentum:
        _stored(b_at, b, mask, mb & 0xFFFF, low)
    if (flags & 2048) != 0:
        rate = tl.load(k + 16).to(wide) + tl.zeros_like(p)
        _stored(a_at, _average(tl.load(a_at, mask).to(wide), p, rate, tiny, _where), mask, ab >> 16, low)
    if skip:
        unused = ~used if mask is None else ~used & mask
        tl.atomic_add(skipped, tl.sum(unused.to(tl.int64)))


@triton.jit
def step(rows, scalars, blocks, skipped, dtype: tl.constexpr, state: tl.constexpr, flags: tl.constexpr,  # type: ignore[no-untyped-def]
         tiny: tl.constexpr, largest: tl.constexpr, aligned: tl.constexpr, row_size: tl.constexpr,
         set_size: tl.constexpr, size: tl.constexpr):
    """Each program takes one block of one row; `blocks` says which."""
    which = blocks + 2 * tl.program_id(0)
    row = rows + tl.load(which) * row_size
    first = tl.load(which + 1).to(tl.int64) * size
    k = scalars + tl.load(row + 9) * set_size
    i, n = first + tl.arange(0, size), tl.load(row + 6)
    if first + size <= n:  # without a mask, loads and stores can be as wide as the hardware has them
        _step(row, k, i, None, skipped, dtype, state, flags, tiny, largest, aligned)
    else:
        _step(row, k, i, i < n, skipped, dtype, state, flags, tiny, largest, aligned)
# fmt: on
