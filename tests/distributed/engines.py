"""DDP, ZeroRedundancyOptimizer and FSDP2 against one process with the whole batch."""

from copy import deepcopy
from pathlib import Path

import torch
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict
from torch.distributed.fsdp import MixedPrecisionPolicy
from torch.distributed.optim import ZeroRedundancyOptimizer
from torch.distributed.tensor import distribute_tensor
from torch.nn.parallel import DistributedDataParallel

from rmsprop.torch import RMSprop
from tests.distributed.problem import (
    OPTIONS,
    TOLERANCE,
    alone,
    assert_same,
    give,
    network,
    shard,
    sharded,
    train,
    values,
)

CORRECTED = {"bias_correction": True, "clip": 2.0}


def ddp(rank: int, folder: Path) -> None:
    for dtype, tolerance in TOLERANCE.items():
        for options in ({}, {"gradient_as_bucket_view": True}):
            model = DistributedDataParallel(network(dtype), **options)
            optimizer = RMSprop(model.parameters(), **OPTIONS)
            train(model, optimizer, rows=slice(rank, None, 2))
            assert_same(values(model, optimizer), values(*alone(dtype)), tolerance)


def zero(rank: int, folder: Path) -> None:
    """The state that rank 0 gathers has our keys and numbers, and another run goes on from it bit for bit."""
    for as_view in (False, True):
        model, optimizer = _zero(as_view)
        train(model, optimizer, rows=slice(rank, None, 2))
        reference, single = alone(torch.float64)
        assert_same(model.parameters(), reference.parameters(), 1e-12)
        assert len(optimizer.optim.state) < len(single.state)  # each rank keeps its part only
        optimizer.consolidate_state_dict(to=0)
        gathered = [optimizer.state_dict() if rank == 0 else None]
        torch.distributed.broadcast_object_list(gathered)
        for i, entry in single.state_dict()["state"].items():
            assert gathered[0]["state"][i].keys() == entry.keys() >= {"variance", "square_avg"}
            assert_same(gathered[0]["state"][i].values(), entry.values(), 1e-12)

        resumed, other = _zero(as_view)
        resumed.load_state_dict(model.state_dict())
        other.load_state_dict(deepcopy(gathered[0]))  # rank 0's entries are the live state, and loading shares them
        for each in ((model, optimizer), (resumed, other)):
            train(*each, rows=slice(rank, None, 2), first=5)
        assert_same(resumed.parameters(), model.parameters())


def zero_does_not_take_a_stale_variance(rank: int, folder: Path) -> None:
    """It puts the saved state past `load_state_dict` into the optimizer inside: torch's square_avg counts there too."""
    model, optimizer = _zero(False)
    train(model, optimizer, rows=slice(rank, None, 2))
    optimizer.consolidate_state_dict(to=0)
    saved = [optimizer.state_dict() if rank == 0 else None]
    torch.distributed.broadcast_object_list(saved)
    for entry in saved[0]["state"].values():
        entry["square_avg"] = entry["square_avg"] + 1  # as torch.optim.RMSprop would, which leaves the variance alone
    expected = {i: entry["square_avg"] - entry["grad_avg"] ** 2 for i, entry in saved[0]["state"].items()}
    resumed, other = _zero(False)
    other.load_state_dict(deepcopy(saved[0]))
    for p in resumed.parameters():
        p.grad = torch.zeros_like(p)
    other.param_groups[0].update(weight_decay=0.0, lr=0.0)
    other.step()
    for i, p in enumerate(resumed.parameters()):
        if p in other.optim.state:
            m = saved[0]["state"][i]["grad_avg"]
            v = OPTIONS["alpha"] * (expected[i] + (1 - OPTIONS["alpha"]) * m**2)  # of the rule, for a gradient of 0
            assert_same([other.optim.state[p]["variance"]], [v], 1e-12)


def _zero(as_view: bool) -> tuple[DistributedDataParallel, ZeroRedundancyOptimizer]:
    model = DistributedDataParallel(network(torch.float64))
    options = {**OPTIONS, "parameters_as_bucket_view": as_view}
    return model, ZeroRedundancyOptimizer(model.parameters(), RMSprop, **options)


def fsdp2(rank: int, folder: Path) -> None:
    """Uneven and empty shards too: the last layer's one row is on rank 0."""
    for dtype, tolerance in TOLERANCE.items():
        for early in (False, True):
            model = sharded(network(dtype))
            optimizer = RMSprop(model.parameters(), **OPTIONS, **CORRECTED)
            if early:
                optimizer.init_state()
            train(model, optimizer, rows=slice(rank, None, 2))
            assert_same(values(model, optimizer), values(*alone(dtype, **CORRECTED)), tolerance)
            last = [p.to_local().shape for p in model[-1].parameters()]
            assert last == ([(1, 3), (1,)] if rank == 0 else [(0, 3), (0,)])


def fsdp2_in_mixed_precision(rank: int, folder: Path) -> None:
    """Forward and backward in bfloat16, parameters and state in float32: as near as bfloat16 gradients are."""
    model = sharded(network(), mp_policy=MixedPrecisionPolicy(torch.bfloat16, torch.float32))
    optimizer = RMSprop(model.parameters(), **OPTIONS)
    train(model, optimizer, steps=1, rows=slice(rank, None, 2))
    assert_same(values(model, optimizer), values(*alone(steps=1)), 0.1)
    assert all(x.dtype == torch.float32 for x in values(model, optimizer))


def fsdp2_says_nothing_to_others(rank: int, folder: Path) -> None:
    """The step of a shard is its process's own business; only whether a first step is one at all is agreed on."""
    model = sharded(network())
    optimizer = RMSprop(model.parameters(), **OPTIONS)
    give(model, 0)
    with torch.profiler.profile() as said:
        optimizer.step()
        optimizer.state_dict()
    assert _collectives(said) == set()
    model.zero_grad()
    with torch.profiler.profile() as said:
        get_optimizer_state_dict(model, RMSprop(model.parameters(), **OPTIONS))
    assert _collectives(said) == {"gloo:all_reduce"}


def _collectives(said: torch.profiler.profile) -> set[str]:
    return {event.name for event in said.events() if event.name.startswith("gloo:")}


def fsdp2_warm_up_from_zero(rank: int, folder: Path) -> None:
    """A first step with lr 0 counts on both, though all that is not 0 in its gradient is in the other's rows."""
    for owner in (0, 1):
        p = shard(torch.ones(4, 3))
        optimizer = RMSprop([p], **OPTIONS | {"lr": 0.0})
        g = torch.zeros(4, 3)
        g[3 * owner, 1] = 1.0
        p.grad = distribute_tensor(g, p.device_mesh, p.placements)
        optimizer.step()
        assert optimizer.state[p]["step"] == 1
