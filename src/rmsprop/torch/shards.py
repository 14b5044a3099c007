"""Tensors that are spread over processes (DTensor): the part that is here, and its place in the whole.

They are known by their methods, not their class: torch.distributed.tensor takes long to import.
"""

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
    if chunk.sizes[1:] != p.shape[1:]:
        raise ValueError(f"{name}: random rounding needs shards along the first dimension, not {p.placements}")
    return int(chunk.offsets[0]) * (p.numel() // p.shape[0]) if p.ndim else 0
