"""Tensors that are spread over processes (DTensor): the part that is here, and its place in the whole.

They are known by their methods, not their class: torch.distributed.tensor takes long to import.
"""

from math import prod
from typing import Any

from torch import Tensor


def local(x: Any) -> Tensor:
    """The part of a distributed tensor that this process holds, sharing its memory; any other tensor as it is."""
    part: Tensor = x.to_local() if hasattr(x, "to_local") else x
    return part


def aligned(g: Any, p: Any) -> Tensor:
    """The gradient as a dense tensor, laid out over processes as its parameter."""
    if g.layout != p.layout:
        g = g.to_dense()
    if hasattr(p, "placements") and getattr(g, "placements", None) != p.placements:
        g = g.redistribute(p.device_mesh, p.placements)
    dense: Tensor = g
    return dense


def is_zero(x: Any) -> bool:
    """Whether all entries are 0, of a distributed tensor those of all processes: they must come to one answer."""
    size = x.abs().sum()  # DTensor's count_nonzero counts here alone
    return not (size.full_tensor() if hasattr(size, "full_tensor") else size)


def start(name: str, p: Any) -> int:
    """Where the elements that this process holds begin in the whole parameter, in row-major order.

    Raises:
        ValueError: they are not next to each other there.
    """
    if not hasattr(p, "placements"):
        return 0
    (chunk,) = p.__create_chunk_list__()
    if 0 in chunk.sizes:
        return 0
    if chunk.sizes[1:] != p.shape[1:] or not _in_one_piece(p):
        raise ValueError(f"{name}: random rounding needs shards along the first dimension, not {p.placements}")
    return int(chunk.offsets[0]) * (p.numel() // p.shape[0]) if p.ndim else 0


def _in_one_piece(p: Any) -> bool:
    """Whether the rows that are here follow each other: those of a strided shard do if later shards fill the gaps."""
    along = [(x, p.device_mesh.size(i)) for i, x in enumerate(p.placements) if getattr(x, "dim", None) == 0]
    factors, sizes = [getattr(x, "split_factor", 1) for x, _ in along], [size for _, size in along]
    return all(factor in (1, prod(sizes[i + 1 :])) for i, factor in enumerate(factors))
