"""Times an optimizer step on a GPU against torch's own, side by side in one process.

    python benchmarks/gpu.py
    python benchmarks/gpu.py --rounds 50 --no-compile

A step's time is from the call until the GPU has done all of it; each figure is a median of steps that take turns. In
graphs, it is the time of a replay. Ratios are against the faster of torch's loop and foreach.
"""

import argparse
from collections.abc import Callable
from statistics import median
from time import perf_counter

import torch
from speed import CASES, OPTIONS, Shapes
from torch import nn

import rmsprop.torch

Step = Callable[[], object]


def parameters(shapes: Shapes, dtype: torch.dtype = torch.float32) -> list[nn.Parameter]:
    params = [nn.Parameter(torch.randn(shape, device="cuda").to(dtype)) for shape in shapes]
    for p in params:
        p.grad = torch.randn(p.shape, device="cuda").to(dtype)
    return params


def interleaved(steps: dict[str, Step], rounds: int) -> dict[str, float]:
    """Median seconds of each step, in turns."""
    times: dict[str, list[float]] = {name: [] for name in steps}
    for step in [*steps.values()] * 3:  # compiles, makes state, fills caches
        step()
    for _ in range(rounds):
        for name, step in steps.items():
            torch.cuda.synchronize()
            start = perf_counter()
            step()
            torch.cuda.synchronize()
            times[name].append(perf_counter() - start)
    return {name: median(values) for name, values in times.items()}


def captured(optimizer: torch.optim.Optimizer) -> Step:
    """A step in a CUDA graph."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            optimizer.step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        optimizer.step()
    return lambda: (graph.replay(), optimizer)  # whose memory it reads


def shown(seconds: dict[str, float], names: tuple[str, ...]) -> str:
    return " | ".join(f"{seconds[name] * 1e6:,.0f} µs" if name in seconds else "" for name in names)


def bare_steps(rounds: int, with_compile: bool) -> None:
    names = ("torch loop", "torch foreach", "torch compiled", "torch's fused Adam", "rmsprop")
    print("\n## The step alone\n")
    print(f"| tensors | options | {' | '.join(names)} | ratio |\n|---|---|---|---|---|---|---|---|")
    for options, (common, ours) in OPTIONS.items():
        for case, (shapes, _) in CASES.items():
            steps: dict[str, Step] = {
                "torch loop": torch.optim.RMSprop(parameters(shapes), foreach=False, **common).step,
                "torch foreach": torch.optim.RMSprop(parameters(shapes), foreach=True, **common).step,
                "torch's fused Adam": torch.optim.Adam(parameters(shapes), fused=True).step,
                "rmsprop": rmsprop.torch.RMSprop(parameters(shapes), **common, **ours).step,
            }
            if with_compile and len(shapes) < 10:
                torch._dynamo.reset()
                lr = torch.tensor(1e-2, device="cuda")
                steps["torch compiled"] = torch.compile(torch.optim.RMSprop(parameters(shapes), lr=lr, **common).step)
            took = interleaved(steps, rounds)
            ratio = min(took["torch loop"], took["torch foreach"]) / took["rmsprop"]
            print(f"| {case} | {options} | {shown(took, names)} | {ratio:.2f} |", flush=True)


def graph_steps(rounds: int) -> None:
    names = ("torch foreach", "rmsprop")
    print("\n## In a CUDA graph\n")
    print(f"| tensors | options | {' | '.join(names)} | ratio |\n|---|---|---|---|---|")
    for options, (common, ours) in OPTIONS.items():
        for case, (shapes, _) in CASES.items():
            steps = {
                "torch foreach": captured(torch.optim.RMSprop(parameters(shapes), capturable=True, **common)),
                "rmsprop": captured(rmsprop.torch.RMSprop(parameters(shapes), capturable=True, **common, **ours)),
            }
            took = interleaved(steps, rounds)
            print(f"| {case} | {options} | {shown(took, names)} | {took['torch foreach'] / took['rmsprop']:.2f} |")


def formats(rounds: int) -> None:
    """16-bit parameters, with float32 state, against float32 ones; and with state of 16 bits."""
    print("\n## 16-bit parameters at 2 x 4096²\n")
    print("| options | float32 | bfloat16 | float16 | bfloat16, state too | bfloat16 is | torch foreach, bfloat16 |")
    print("|---|---|---|---|---|---|---|")
    shapes, ours = CASES["2 x 4096²"][0], rmsprop.torch.RMSprop
    dithers = {"state_dtype": torch.bfloat16, "stochastic_rounding": True}
    for name, (common, more) in OPTIONS.items():
        options = {**common, **more}
        steps: dict[str, Step] = {
            "float32": ours(parameters(shapes), **options).step,
            "bfloat16": ours(parameters(shapes, torch.bfloat16), **options).step,
            "float16": ours(parameters(shapes, torch.float16), **options).step,
            "dithered": ours(parameters(shapes, torch.bfloat16), **options, **dithers).step,
            "torch": torch.optim.RMSprop(parameters(shapes, torch.bfloat16), foreach=True, **common).step,
        }
        took = interleaved(steps, rounds)
        ratio = f"{took['float32'] / took['bfloat16']:.2f} times as fast"
        four = shown(took, ("float32", "bfloat16", "float16", "dithered"))
        print(f"| {name} | {four} | {ratio} | {shown(took, ('torch',))} |")


def bandwidth(rounds: int) -> None:
    """Bytes a second of the plain step (20 a parameter), against those of a plain read-add-write (12 a number)."""
    shapes = CASES["2 x 4096²"][0]
    params = parameters(shapes)
    a, b = parameters(shapes), parameters(shapes)
    with torch.no_grad():
        steps: dict[str, Step] = {
            "step": rmsprop.torch.RMSprop(params).step,
            "add": lambda: torch._foreach_add_(a, b),
        }
        took = interleaved(steps, rounds)
    n = sum(p.numel() for p in params)
    step, add = 20 * n / took["step"] / 1e9, 12 * n / took["add"] / 1e9
    print(f"\nMemory at 2 x 4096²: step {step:,.0f} GB/s, a += b {add:,.0f} GB/s: {step / add:.2f}")


def memory() -> None:
    """How much more memory a step takes while it runs."""
    shapes = CASES["2 x 4096²"][0]
    print("\n## Extra memory of a step at 2 x 4096² (128 MiB of parameters)\n")
    print("| torch loop | torch foreach | rmsprop |\n|---|---|---|")
    grown = []
    for make, options in (
        (torch.optim.RMSprop, {"foreach": False}),
        (torch.optim.RMSprop, {}),
        (rmsprop.torch.RMSprop, {}),
    ):
        optimizer = make(parameters(shapes), **options)
        optimizer.step()
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        optimizer.step()
        torch.cuda.synchronize()
        grown.append(f"{(torch.cuda.max_memory_allocated() - before) / 2**20:.1f} MiB")
    print(f"| {' | '.join(grown)} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=30, help="turns of each contender")
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        parser.error("torch sees no GPU")
    print(f"torch {torch.__version__}, {torch.cuda.get_device_name()}")
    memory()
    bare_steps(arguments.rounds, not arguments.no_compile)
    graph_steps(arguments.rounds)
    formats(arguments.rounds)
    bandwidth(arguments.rounds)


if __name__ == "__main__":
    main()
