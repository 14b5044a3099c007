"""Averaged weights of distributed parameters, against one process."""

from pathlib import Path

import pytest
import torch
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from rmsprop.torch import RMSprop
from tests.distributed.problem import OPTIONS, assert_same, feed, mesh, network, sharded, train, values


def _whole(model: torch.nn.Module) -> list[torch.Tensor]:
    return [(p.full_tensor() if isinstance(p, DTensor) else p).detach().clone() for p in model.parameters()]


def shards_hold_averages_and_give_the_weights_back(rank: int, folder: Path) -> None:
    for dtype in (torch.float32, torch.bfloat16):
        found = []
        for model in (sharded(network(dtype)), network(dtype)):
            optimizer = RMSprop(model.parameters(), **OPTIONS, averaging=True)
            feed(model, optimizer)
            before = _whole(model)
            with optimizer.averaged():
                found.append(_whole(model))
                with pytest.raises(RuntimeError, match="step: the parameters hold their averages"):
                    optimizer.step()
            assert all(map(torch.equal, _whole(model), before))
            assert not torch.equal(found[-1][0], before[0])
            found.append(values(model, optimizer))
        assert_same(found[0], found[2])
        assert_same(found[1], found[3])


def fsdp_evaluates_with_averages_and_trains_on(rank: int, folder: Path) -> None:
    """A module at the root keeps what it has gathered until a backward pass, or `reshard`."""
    x, results = torch.randn(8, 7, generator=torch.Generator().manual_seed(9)), []
    for evaluates in (False, True):
        model = fully_shard(network(), mesh=mesh())
        optimizer = RMSprop(model.parameters(), **OPTIONS, averaging=True)
        train(model, optimizer)
        if evaluates:
            with torch.no_grad():
                last = model(x)
                model.reshard()
                with optimizer.averaged():
                    assert not torch.equal(model(x), last)
                    model.reshard()
                assert torch.equal(model(x), last)
        train(model, optimizer, first=5)
        results.append(values(model, optimizer))
    assert_same(*results)
