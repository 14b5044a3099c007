"""Tensors that are spread over processes (DTensor): the part that is here, and its place in the whole.

They are known by their methods, not their class: torch.distributed.tensor takes long to import.
"""

from collections.abc import Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor


def local(x: Any) -> Tensor:
    """The part of a distributed tensor that this process holds, sharing its memory; any other tensor as it is."""
    part: Tensor = x.to_local() if hasattr(x, "to_local") else x
    return part


def aligned(g: Any, p: Any) -> Tensor:
    """The gradient as a dense tensor, laid out over processes as its parameter."""
    if g.layout != p.layout:
        g = g.to_dense()
    if hasattr(p, "placements") and not hasattr(g, "placements"):
        g = _part(g, p)
    if hasattr(p, "placements") and getattr(g, "placements", None) != p.placements:
        g = g.redistribute(p.device_mesh, p.placements)
    dense: Tensor = g
    return dense


def _part(g: Tensor, p: Any) -> Any:
    """The part of a gradient that every process has whole, as the parameter is laid out."""
    (chunk,) = p.__create_chunk_list__()
    for dim, (first, length) in enumerate(zip(chunk.offsets, chunk.sizes, strict=True)):
        g = g.narrow(dim, first, length)
    return p.from_local(g.contiguous(), p.device_mesh, p.placements, shape=p.shape, stride=p.stride(), run_check=False)


def spread(part: Tensor, p: Any, shape: Sequence[int]) -> Tensor:
    """A contiguous part as that of a tensor of this shape which is laid out over processes as `p` is."""
    if not hasattr(p, "placements"):
        return part
    layout = {"shape": torch.Size(shape), "stride": part.stride(), "run_check": False}
    whole: Tensor = p.from_local(part, p.device_mesh, p.placements, **layout)
    return whole


def is_zero(x: Any) -> bool:
    """Whether all entries are 0, of a distributed tensor those of all processes: they must come to one answer."""
    size = x.abs().sum()  # DTensor's count_nonzero counts here alone
    return not (size.full_tensor() if hasattr(size, "full_tensor") else size)


def start(name: str, p: Any) -> int:
    """Where the elements that this process holds begin in the whole parameter, in row-major order.

    Raises:
        ValueError: they are not next to each other there.
    """
    first, rows = rows_here(name, p, "random rounding")
    return first * (p.numel() // p.shape[0]) if rows else 0


def rows_here(name: str, p: Any, what: str) -> tuple[int, int]:
    """Which rows of a parameter this process holds: the first, and how many.

    Raises:
        ValueError: not whole rows, or not next to each other; `what` cannot be done then.
    """
    if not hasattr(p, "placements"):
        return 0, len(p) if p.ndim else 0
    (chunk,) = p.__create_chunk_list__()
    if 0 in chunk.sizes or not p.ndim:
        return 0, 0
    if chunk.sizes[1:] != p.shape[1:] or not _in_one_piece(p):
        raise ValueError(f"{name}: {what} needs shards along the first dimension, not {p.placements}")
    return int(chunk.offsets[0]), int(chunk.sizes[0])


def _in_one_piece(p: Any) -> bool:
    """Whether the rows that are here follow each other: those of a strided shard do if later shards fill the gaps."""
    along = [(x, p.device_mesh.size(i)) for i, x in enumerate(p.placements) if getattr(x, "dim", None) == 0]
    factors, sizes = [getattr(x, "split_factor", 1) for x, _ in along], [size for _, size in along]
    return all(factor in (1, prod(sizes[i + 1 :])) for i, factor in enumerate(factors))
