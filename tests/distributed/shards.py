"""What only shards can get wrong: random numbers by index, refusals by rank, the kernel, statistics."""

from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch import nn
from torch.distributed.tensor import DTensor, Replicate, distribute_tensor

from rmsprop.kernels import cpu, lists
from rmsprop.torch import RMSprop
from tests.distributed.problem import OPTIONS, assert_same, feed, give, mesh, network, shard, sharded, values

RANDOM = {"stochastic_rounding": True, "seed": 7}


def random_rounding_gives_the_bits_of_one_process(rank: int, folder: Path) -> None:
    for extra in ({}, {"state_dtype": torch.bfloat16}, {"foreach": True}):
        pairs = []
        for model in (sharded(network(torch.bfloat16)), network(torch.bfloat16)):
            optimizer = RMSprop(model.parameters(), **OPTIONS, **RANDOM, **extra)
            feed(model, optimizer)
            pairs.append(values(model, optimizer))
        assert_same(*pairs)
        nearest = network(torch.bfloat16)
        feed(nearest, RMSprop(nearest.parameters(), **OPTIONS))
        assert any(not torch.equal(p, q) for p, q in zip(nearest.parameters(), pairs[0], strict=False))


def random_rounding_of_what_every_process_has(rank: int, folder: Path) -> None:
    for shape in ((5, 3), (4,), ()):
        start = torch.full(shape, 1.0, dtype=torch.bfloat16)
        pair = [nn.Parameter(distribute_tensor(start, mesh(), [Replicate()])), nn.Parameter(start.clone())]
        for p in pair:
            feed(nn.ParameterList([p]), RMSprop([p], lr=1e-3, **RANDOM))
        assert_same([pair[0].to_local()], pair[1:])


def random_rounding_refuses_another_dimension(rank: int, folder: Path) -> None:
    p = shard(torch.ones(4, 6), dim=1, dtype=torch.bfloat16)
    p.grad = torch.ones_like(p)
    with pytest.raises(ValueError, match=r"kernel\.weight: random rounding needs shards along the first dimension"):
        RMSprop([("kernel.weight", p)], **RANDOM).step()
    assert (p.to_local() == 1).all()
    RMSprop([p], lr=0.5).step()
    assert (p.to_local() != 1).all()


def another_dimension(rank: int, folder: Path) -> None:
    start = torch.linspace(-1, 1, 20).reshape(4, 5)
    pair = [shard(start, dim=1), nn.Parameter(start.clone())]
    assert pair[0].to_local().shape == (4, 3 - rank)
    results = []
    for p in pair:
        model = nn.ParameterList([p])
        optimizer = RMSprop([p], **OPTIONS)
        feed(model, optimizer)
        results.append(values(model, optimizer))
    assert_same(*results)


def kernel_takes_shards(rank: int, folder: Path) -> None:
    """One native call for the parts of all parameters, and nothing goes through lists of tensors."""
    if cpu.native is None:
        return
    for fused in (None, True):
        model = sharded(network())
        optimizer = RMSprop(model.parameters(), **OPTIONS, fused=fused)
        give(model, 0)
        taken = []

        def step(groups, threads, kernel=cpu.step, taken=taken):
            result = kernel(groups, threads)
            taken.extend(len(group.params) for group in groups)
            return result

        with patch.object(cpu, "step", step), patch.object(lists, "step", side_effect=AssertionError):
            optimizer.step()
        assert taken == [6], taken


def nonfinite_error_names_the_parameter_where_it_is(rank: int, folder: Path) -> None:
    model = sharded(network())
    optimizer = RMSprop(model.named_parameters(), **OPTIONS, nonfinite="error")
    feed(model, optimizer, 1)
    give(model, 1)
    local = model[2].weight.grad.to_local()
    if rank == 1:
        local[-1, 2] = torch.inf
    before = _local(optimizer)
    if rank == 1:
        with pytest.raises(FloatingPointError, match=r"2\.weight: its gradient, squared, is not finite"):
            optimizer.step()
        assert_same(_local(optimizer), before)
    else:
        optimizer.step()
        assert not any(torch.equal(a, b) for a, b in zip(_local(optimizer), before, strict=True))


def _local(optimizer: RMSprop) -> list[torch.Tensor]:
    """What this process holds of parameters and state."""
    entries = [x for p, state in optimizer.state.items() for x in (p, *state.values())]
    return [(x.to_local() if isinstance(x, DTensor) else x).detach().clone() for x in entries if x.numel()]


def statistics_are_of_the_part_held(rank: int, folder: Path) -> None:
    """Sums of squares add up to the whole's; what is empty here is not listed."""
    model, reference = sharded(network()), network()
    found = []
    for each in (model, reference):
        optimizer = RMSprop(each.named_parameters(), lr=0.01)
        optimizer.watch()
        feed(each, optimizer, 1)
        found.append(optimizer.stats())
    local, whole = found
    assert local.keys() == whole.keys() - ({"4.weight", "4.bias"} if rank else set())
    for name in ("0.weight", "2.bias"):
        p = model.get_parameter(name)
        count = p.to_local().numel()
        for key in ("gradient_rms", "update_rms", "weight_rms"):
            total = torch.tensor(local[name][key] ** 2 * count)
            torch.distributed.all_reduce(total)
            torch.testing.assert_close((total / p.numel()).sqrt().item(), whole[name][key], rtol=1e-5, atol=0)


def init_state_and_share_memory(rank: int, folder: Path) -> None:
    """DTensor's own `share_memory_` is a segmentation fault."""
    model = sharded(network())
    optimizer = RMSprop(model.parameters(), **OPTIONS)
    optimizer.share_memory()
    for p in model.parameters():
        for name in ("variance", "grad_avg", "momentum_buffer"):
            state = optimizer.state[p][name]
            assert state.placements == p.placements
            assert state.to_local().is_shared() or not state.to_local().numel()
    other = sharded(network())
    feed(model, optimizer)
    second = RMSprop(other.parameters(), **OPTIONS)
    feed(other, second)
    assert_same(values(model, optimizer), values(other, second))


def grad_scaler_skips_on_both(rank: int, folder: Path) -> None:
    """An infinity in one process's part stops the step of both; a step that is made divides by the scale."""
    model, reference = sharded(network()), network()
    optimizer, single = (RMSprop(each.parameters(), **OPTIONS) for each in (model, reference))
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0, growth_interval=1)
    for t, spoilt in enumerate((False, True, False)):
        give(model, t)
        give(reference, t)
        scale = scaler.scale(torch.ones(())).item()
        for p in model.parameters():
            p.grad *= scale
        if spoilt and rank == 1:
            model[0].weight.grad.to_local()[0, 0] = torch.inf
        scaler.step(optimizer)
        scaler.update()
        if not spoilt:
            single.step()
    assert_same(values(model, optimizer), values(reference, single))


def sparse_gradients_of_tables_sharded_by_rows(rank: int, folder: Path) -> None:
    """A sparse gradient is that of the whole table, of which each process steps the rows it has."""
    rules: tuple[dict[str, Any], ...] = ({}, {"momentum": 0.9}, {"weight_decay": 0.1, "decoupled_weight_decay": True})
    rules += ({"momentum": 0.9, "state_shape": "row"}, {"state_shape": "row", "foreach": True})
    for options in (*rules, {"centered": True, "momentum": 0.9, "foreach": True}, {"sparse": "dense", "momentum": 0.9}):
        start = torch.linspace(-1, 1, 21, dtype=torch.float64).reshape(7, 3)
        results = []
        for p in (shard(start, dtype=torch.float64), nn.Parameter(start.clone())):
            optimizer = RMSprop(
                [p], **OPTIONS | {"weight_decay": 0.0, "centered": "state_shape" not in options} | options
            )
            rng = torch.Generator().manual_seed(0)
            for _ in range(20):
                rows = torch.randint(0, 7, (2,), generator=rng)
                optimizer.catch_up(p, rows)
                g = torch.randn(2, 3, generator=rng, dtype=torch.float64)
                p.grad = torch.sparse_coo_tensor(rows[None], g, start.shape, check_invariants=True)
                optimizer.step()
            optimizer.flush()
            results.append(values(nn.ParameterList([p]), optimizer))
        assert_same(*results, tolerance=1e-13)


def sparse_gradients_refuse_another_dimension(rank: int, folder: Path) -> None:
    p = shard(torch.ones(4, 6), dim=1)
    p.grad = torch.sparse_coo_tensor([[1]], torch.ones(1, 6), (4, 6), check_invariants=True)
    with pytest.raises(ValueError, match=r"table: a sparse gradient needs shards along the first dimension"):
        RMSprop([("table", p)]).step()
    assert (p.to_local() == 1).all()


def row_wise_state_of_parameters_sharded_by_rows(rank: int, folder: Path) -> None:
    """Each process has the mean squares of its rows; 5, 3 and 1 rows on two processes are uneven, and none."""
    for extra in ({}, {"foreach": True}, {"stochastic_rounding": True}, {"state_dtype": torch.bfloat16}):
        dtype = torch.bfloat16 if extra.keys() & {"stochastic_rounding", "state_dtype"} else torch.float32
        results, options = [], OPTIONS | {"centered": False, "state_shape": "row"}
        for model in (sharded(network(dtype)), network(dtype)):
            optimizer = RMSprop(model.parameters(), **options, **extra)
            feed(model, optimizer)
            for p in model.parameters():
                v = optimizer.state[p]["square_avg"]
                assert v.shape == (p.shape if p.ndim < 2 else (len(p), 1))
                assert getattr(v, "placements", None) == getattr(p, "placements", None)
            results.append((values(model, optimizer), optimizer))
        assert_same(results[0][0], results[1][0])


def row_wise_state_refuses_another_dimension(rank: int, folder: Path) -> None:
    p = shard(torch.ones(4, 6), dim=1)
    with pytest.raises(ValueError, match=r"table: state_shape='row' needs shards along the first dimension"):
        RMSprop([("table", p)], state_shape="row")


def sparse_embedding_under_ddp(rank: int, folder: Path) -> None:
    """Each process reads rows of its own, and steps the rows that any of them has read."""
    tables = []
    for is_sparse in (True, False):
        torch.manual_seed(0)
        embedding = nn.Embedding(12, 3, sparse=is_sparse, dtype=torch.float64)
        optimizer = RMSprop(embedding.parameters(), momentum=0.9, centered=True)
        if is_sparse:
            optimizer.attach(embedding)
        model = nn.parallel.DistributedDataParallel(embedding)
        for t in range(20):
            optimizer.zero_grad()
            model(torch.tensor([t % 5 + rank, 3 * t % 7, 11 * rank])).square().sum().backward()
            optimizer.step()
        optimizer.flush()
        tables.append(embedding.weight)
    torch.testing.assert_close(*tables, rtol=1e-12, atol=1e-14)
