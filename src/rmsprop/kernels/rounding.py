"""bfloat16 with rounding at random, for torch tensors: the text that `Dice` and `Dithered` in formats.h transcribe.

bfloat16 has 8 bits of precision: a change below 1/512 of a number is lost when it rounds to nearest, every time.
Rounding up as often as the number lies near its upper neighbour keeps such changes on average.

The random bits are a function of (seed, step, index of the element) alone, so that any split of the work over threads,
tensors or processes gives the same numbers, and a resumed run goes on with them.
"""

from typing import Any

import torch
from torch import Tensor

_LOW = 0xFFFFFFFF


def bits(seed: int, t: Any, index: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """16 random bits for each of p, v, m, b and a; all int64 tensors of the shape of `index`.

    Args:
        seed: 0 to 2**63 - 1.
        t: number of the step, from 1; a whole number, or a tensor of one.
        index: of the elements, int64.
    """
    t = t.long() if isinstance(t, Tensor) else torch.full((), t, device=index.device)
    key = _mix(key_of(seed, t) + (index >> 32))
    pv = _scramble((_scramble((index & _LOW) ^ (key & _LOW)) + (key >> 32 & _LOW)) & _LOW)
    mb = _scramble((pv + 0x9E3779B9) & _LOW)
    a = _scramble((mb + 0x9E3779B9) & _LOW)
    return pv >> 16, pv & 0xFFFF, mb >> 16, mb & 0xFFFF, a >> 16


def key_of(seed: int, t: Tensor) -> Tensor:
    """What seed and step numbers, int64, make: the key of the random bits of the first 2**32 elements, unmixed."""
    return _mix(_mix(torch.full((), seed, dtype=torch.int64, device=t.device)) + t)


def dithered(x: Tensor, random: Tensor) -> Tensor:
    """The float32 or float64 numbers x in bfloat16, rounded at random; what is not finite stays what it is."""
    x = x.float()
    raw = (x.view(torch.int32).to(torch.int64) & _LOW) + torch.where(x.isfinite(), random, 0)
    raw = raw & 0xFFFF0000
    rounded = torch.where(raw > 0x7FFFFFFF, raw - (1 << 32), raw).to(torch.int32).view(torch.float32)
    return torch.where(x.isnan(), x, rounded).to(torch.bfloat16)


def _mix(x: Tensor) -> Tensor:
    """splitmix64's finaliser (S. Vigna); int64 wraps as uint64 does."""
    x = (x ^ _shifted(x, 30)) * (0xBF58476D1CE4E5B9 - (1 << 64))
    x = (x ^ _shifted(x, 27)) * (0x94D049BB133111EB - (1 << 64))
    return x ^ _shifted(x, 31)


def _shifted(x: Tensor, by: int) -> Tensor:
    return x >> by & ((1 << 64 - by) - 1)


def _scramble(x: Tensor) -> Tensor:
    """lowbias32 (C. Wellons), on the lower 32 bits of int64."""
    x = (x ^ x >> 16) * 0x7FEB352D & _LOW
    x = (x ^ x >> 15) * 0x846CA68B & _LOW
    return x ^ x >> 16
