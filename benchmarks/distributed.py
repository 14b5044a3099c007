"""What a step costs on shards, and what each engine keeps and sends.

    torchrun --nproc-per-node 2 benchmarks/distributed.py

All processes step at once, one thread each. Figures are rank 0's; a time is a median over turns. Shards are of the same
size as the plain tensors beside them, so that the difference is what DTensor costs.
"""

import argparse
from collections import Counter
from math import prod

import torch
import torch.distributed as dist
from speed import CASES, interleaved
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.optim import ZeroRedundancyOptimizer
from torch.distributed.tensor import DTensor, Shard
from torch.nn.parallel import DistributedDataParallel

import rmsprop.torch

OPTIONS = {"lr": 1e-3, "momentum": 0.9, "centered": True}


def plain(shapes: list[tuple[int, ...]]) -> list[nn.Parameter]:
    params = [nn.Parameter(torch.randn(shape)) for shape in shapes]
    for p in params:
        p.grad = torch.randn_like(p)
    return params


def shards(shapes: list[tuple[int, ...]]) -> list[nn.Parameter]:
    """Parameters of which each process holds as much as `plain` has."""
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    params = []
    for p in plain(shapes):
        whole = nn.Parameter(DTensor.from_local(p.detach(), mesh, [Shard(0)]))
        whole.grad = DTensor.from_local(p.grad, mesh, [Shard(0)])
        params.append(whole)
    return params


def steps(rounds: int) -> list[str]:
    lines = ["", "| each process holds | plain | shards | each shard more | torch, shards |", "|---|---|---|---|---|"]
    for case, (shapes, _) in CASES.items():
        contenders = {
            "plain": rmsprop.torch.RMSprop(plain(shapes)).step,
            "shards": rmsprop.torch.RMSprop(shards(shapes)).step,
            "torch": torch.optim.RMSprop(shards(shapes), foreach=True).step,
        }
        took = interleaved(contenders, rounds, turn=3)
        more = (took["shards"] - took["plain"]) / len(shapes)
        shown = [f"{x * 1e6:,.0f} µs" for x in (took["plain"], took["shards"], more, took["torch"])]
        lines.append(f"| {case} | {' | '.join(shown)} |")
    return lines


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(512, 1024), nn.ReLU(), nn.Linear(1024, 512), nn.ReLU(), nn.Linear(512, 10))


def ddp() -> tuple[nn.Module, torch.optim.Optimizer]:
    model = DistributedDataParallel(network())
    return model, rmsprop.torch.RMSprop(model.parameters(), **OPTIONS)


def zero() -> tuple[nn.Module, torch.optim.Optimizer]:
    model = DistributedDataParallel(network())
    return model, ZeroRedundancyOptimizer(model.parameters(), rmsprop.torch.RMSprop, **OPTIONS)


def fsdp2() -> tuple[nn.Module, torch.optim.Optimizer]:
    model = network()
    for layer in (*(x for x in model if isinstance(x, nn.Linear)), model):
        fully_shard(layer, mesh=init_device_mesh("cpu", (dist.get_world_size(),)))
    return model, rmsprop.torch.RMSprop(model.parameters(), **OPTIONS)


def engines(rounds: int) -> list[str]:
    size = sum(p.numel() for p in network().parameters())
    lines = ["", f"A network of {size:,} numbers, momentum and centered:", ""]
    lines += ["| engine | state of this process | sent in a step | a step |", "|---|---|---|---|"]
    x, y = torch.randn(32, 512), torch.randint(10, (32,))
    for make in (ddp, zero, fsdp2):
        model, optimizer = make()
        nn.functional.cross_entropy(model(x), y).backward()
        took = interleaved({"step": optimizer.step}, rounds, turn=3)["step"]
        with torch.profiler.profile(record_shapes=True) as said:
            optimizer.step()
        state = getattr(optimizer, "optim", optimizer).state.values()
        tensors = [v.to_local() if isinstance(v, DTensor) else v for entry in state for v in entry.values()]
        kept = sum(v.numel() * v.element_size() for v in tensors)
        collectives = [event for event in said.events() if event.name.startswith("gloo:")]
        numbers = sum(prod(shape) for event in collectives for shape in event.input_shapes)
        calls = ", ".join(f"{n} x {name[5:]}" for name, n in Counter(event.name for event in collectives).items())
        sent = f"{calls}: {4 * numbers:,} bytes" if calls else "nothing"
        lines.append(f"| {make.__name__} | {kept:,} bytes | {sent} | {took * 1e6:,.0f} µs |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15, help="turns of each contender")
    rounds = parser.parse_args().rounds
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    lines = [f"torch {torch.__version__}, {dist.get_world_size()} processes", *steps(rounds), *engines(rounds)]
    if dist.get_rank() == 0:
        print("\n".join(lines))
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
