"""What the checks train, and how they compare it."""

from collections.abc import Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Shard, distribute_tensor

from rmsprop.torch import RMSprop

#: With a coupled decay, so that a step that should not have been made shows in the state.
OPTIONS: dict[str, Any] = {"lr": 1e-2, "alpha": 0.9, "momentum": 0.9, "weight_decay": 0.1, "centered": True}
TOLERANCE = {torch.float32: 2e-5, torch.float64: 1e-12}


def network(dtype: torch.dtype = torch.float32) -> nn.Sequential:
    """First dimensions of 5, 3 and 1: on two processes uneven, and empty on the second."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(7, 5), nn.Tanh(), nn.Linear(5, 3), nn.Tanh(), nn.Linear(3, 1)).to(dtype)


def mesh() -> DeviceMesh:
    return init_device_mesh("cpu", (dist.get_world_size(),))


def sharded(model: nn.Sequential, **options: Any) -> nn.Sequential:
    """The model under FSDP2."""
    for layer in model:
        if isinstance(layer, nn.Linear):
            fully_shard(layer, mesh=mesh(), **options)
    return fully_shard(model, mesh=mesh(), **options)


def train(model: nn.Module, optimizer: Any, steps: int = 5, rows: slice = slice(None), first: int = 0) -> None:
    """Some steps, each on another batch; `rows` is this process's part of them."""
    dtype = next(model.parameters()).dtype
    for t in range(first, first + steps):
        x = torch.randn(16, 7, generator=torch.Generator().manual_seed(t)).to(dtype)[rows]
        optimizer.zero_grad()
        (model(x) - x.sum(1, keepdim=True)).square().mean().backward()
        optimizer.step()


def give(model: nn.Module, t: int) -> None:
    """Sets gradients by hand, the same for every way of sharding: no sum over processes rounds them differently."""
    generator = torch.Generator().manual_seed(t)
    for p in model.parameters():
        g = torch.randn(p.shape, generator=generator).to(p.dtype)
        p.grad = distribute_tensor(g, p.device_mesh, p.placements) if isinstance(p, DTensor) else g


def feed(model: nn.Module, optimizer: Any, steps: int = 4, first: int = 0) -> None:
    for t in range(first, first + steps):
        give(model, t)
        optimizer.step()


def whole(x: Tensor) -> Tensor:
    return x.full_tensor() if isinstance(x, DTensor) else x


def values(model: nn.Module, optimizer: RMSprop) -> list[Tensor]:
    """Parameters and their state, as one process would have them."""
    params = list(model.parameters())
    states = [x for p in params for _, x in sorted(optimizer.state[p].items())]
    return [whole(x.detach()).clone() for x in (*params, *states)]


def assert_same(actual: Iterable[Tensor], expected: Iterable[Tensor], tolerance: float = 0.0) -> None:
    """Same dtypes, shapes and, to a tolerance, numbers."""
    for a, b in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


def alone(dtype: torch.dtype = torch.float32, steps: int = 5, **options: Any) -> tuple[nn.Module, RMSprop]:
    """One process with the whole batches."""
    model = network(dtype)
    optimizer = RMSprop(model.parameters(), **OPTIONS | options)
    train(model, optimizer, steps)
    return model, optimizer


def shard(values: list[float] | Tensor, dim: int = 0, dtype: torch.dtype = torch.float32) -> nn.Parameter:
    """A parameter laid out over both processes."""
    return nn.Parameter(distribute_tensor(torch.as_tensor(values, dtype=dtype), mesh(), [Shard(dim)]))
