"""Times an optimizer step against torch's own, side by side in one process.

    python benchmarks/speed.py
    python benchmarks/speed.py --long-compile     # compiles torch's step for 1,000 tensors too, which takes minutes
    python benchmarks/speed.py --no-compile --no-large --rounds 5
    python benchmarks/speed.py --only-sparse
    python benchmarks/speed.py --formats

Contenders take turns of a few steps, so that a drift of the machine's speed meets all of them alike; each figure is a
median. The last table has the step as training meets it, between a forward and a backward pass.
Ratios are against the faster of torch's loop and foreach. Quote them from a quiet machine only.
"""

import argparse
import platform
from collections.abc import Callable
from pathlib import Path
from random import Random
from statistics import median
from time import perf_counter

import torch
from torch import Tensor, nn

import rmsprop.torch
from rmsprop.kernels import cpu

Shapes = list[tuple[int, ...]]


def resnet50() -> Shapes:
    """The shapes of torchvision's ResNet-50 parameters, in order: 161 tensors, 25,557,032 numbers."""
    shapes: Shapes = [(64, 3, 7, 7), (64,), (64,)]
    width = 64
    for planes, blocks in ((64, 3), (128, 4), (256, 6), (512, 3)):
        for block in range(blocks):
            for shape in ((planes, width, 1, 1), (planes, planes, 3, 3), (4 * planes, planes, 1, 1)):
                shapes += [shape, shape[:1], shape[:1]]
            if block == 0:
                shapes += [(4 * planes, width, 1, 1), (4 * planes,), (4 * planes,)]
            width = 4 * planes
    return [*shapes, (1000, 2048), (1000,)]


CASES: dict[str, tuple[Shapes, float]] = {  # shapes, and the ratio to reach
    "2 x 4096²": ([(4096, 4096)] * 2, 4.0),
    "ResNet-50, 161 tensors": (resnet50(), 2.2),
    "6 tensors, 8,970 numbers": ([(64, 64), (64,), (64, 64), (64,), (10, 64), (10,)], 5.0),
    "1,000 tensors of 64": ([(64,)] * 1000, 12.0),
}
RPROP_TARGETS = {"2 x 4096²": 4.0, "6 tensors, 8,970 numbers": 10.0}
OPTIONS = {
    "plain": ({}, {}),
    "momentum, centered, decay, clip": (
        {"momentum": 0.9, "centered": True, "weight_decay": 1e-4},
        {"clip": 1.0},  # torch has no clip: ours does more
    ),
}


def parameters(shapes: Shapes, dtype: torch.dtype = torch.float32) -> list[nn.Parameter]:
    params = [nn.Parameter(torch.randn(shape).to(dtype)) for shape in shapes]
    for p in params:
        p.grad = torch.randn(p.shape).to(dtype)
    return params


def compiled(shapes: Shapes, options: dict) -> Callable[[], object]:
    """torch.optim.RMSprop's step, compiled; the learning rate is a tensor, as a schedule would need."""
    optimizer = torch.optim.RMSprop(parameters(shapes), lr=torch.tensor(1e-2), foreach=True, **options)
    torch._dynamo.reset()
    return torch.compile(optimizer.step, fullgraph=False)


def interleaved(steps: dict[str, Callable[[], object]], rounds: int, turn: int = 1) -> dict[str, float]:
    """Median seconds of each step, in rounds of turns of some steps each."""
    times: dict[str, list[float]] = {name: [] for name in steps}
    for step in steps.values():
        step()
        step()
    for _ in range(rounds):
        for name, step in steps.items():
            for _ in range(turn):
                start = perf_counter()
                step()
                times[name].append(perf_counter() - start)
    return {name: median(values) for name, values in times.items()}


def bare_steps(rounds: int, with_compile: bool, long_compile: bool) -> None:
    print("\n## The step alone\n")
    print("| tensors | options | torch loop | torch foreach | torch compiled | rmsprop | ratio | target |")
    print("|---|---|---|---|---|---|---|---|")
    for options, (common, ours) in OPTIONS.items():
        for case, (shapes, target) in CASES.items():
            steps: dict[str, Callable[[], object]] = {
                "loop": torch.optim.RMSprop(parameters(shapes), foreach=False, **common).step,
                "foreach": torch.optim.RMSprop(parameters(shapes), foreach=True, **common).step,
                "rmsprop": rmsprop.torch.RMSprop(parameters(shapes), **common, **ours).step,
            }
            if with_compile and not common and (len(shapes) < 1000 or long_compile):
                steps["compiled"] = compiled(shapes, common)
            elements = sum(p.numel() for p in parameters(shapes))
            took = interleaved(steps, rounds, turn=3 if elements > 1e6 else 20)
            ratio = min(took["loop"], took["foreach"]) / took["rmsprop"]
            names = ("loop", "foreach", "compiled", "rmsprop")
            shown = [f"{took[name] * 1e6:,.0f} µs" if name in took else "" for name in names]
            print(f"| {case} | {options} | {' | '.join(shown)} | {ratio:.2f} | {target} |")


def rprop_steps(rounds: int) -> None:
    print("\n## Rprop: the step alone\n")
    print("| tensors | torch loop | torch foreach | rmsprop | ratio | target |\n|---|---|---|---|---|---|")
    for case, (shapes, _) in CASES.items():
        steps: dict[str, Callable[[], object]] = {
            "loop": torch.optim.Rprop(parameters(shapes), foreach=False).step,
            "foreach": torch.optim.Rprop(parameters(shapes), foreach=True).step,
            "rmsprop": rmsprop.torch.Rprop(parameters(shapes)).step,
        }
        elements = sum(p.numel() for p in parameters(shapes))
        took = interleaved(steps, rounds, turn=3 if elements > 1e6 else 20)
        ratio = min(took["loop"], took["foreach"]) / took["rmsprop"]
        shown = " | ".join(f"{seconds * 1e6:,.0f} µs" for seconds in took.values())
        print(f"| {case} | {shown} | {ratio:.2f} | {RPROP_TARGETS.get(case, '')} |")


def bandwidth(rounds: int) -> None:
    """Bytes a second of the plain step (20 a parameter) against those of a plain read-add-write (12 a number)."""
    shapes = CASES["2 x 4096²"][0]
    params = parameters(shapes)
    a, b = ([torch.randn(shape) for shape in shapes] for _ in range(2))
    steps = {
        "step": rmsprop.torch.RMSprop(params).step,
        "add": lambda: [x.add_(y) for x, y in zip(a, b, strict=True)],
    }
    took = interleaved(steps, rounds, turn=3)
    n = sum(p.numel() for p in params)
    step, add = 20 * n / took["step"] / 1e9, 12 * n / took["add"] / 1e9
    print("\n## Memory bandwidth at 2 x 4096²\n")
    print(f"step {step:.1f} GB/s, a += b {add:.1f} GB/s: {step / add:.2f} of a plain read-add-write loop (target .85)")


def variants(rounds: int) -> None:
    """What bfloat16, random rounding and statistics cost, against the plain float32 step of the same shapes."""
    shapes, dtypes = CASES["2 x 4096²"][0], {"float32": torch.float32, "bfloat16": torch.bfloat16}
    cases: dict[str, tuple[str, dict]] = {
        "float32": ("float32", {}),
        "float32, watched": ("float32", {}),
        "float32, bfloat16 state": ("float32", {"state_dtype": torch.bfloat16}),
        "bfloat16": ("bfloat16", {}),
        "bfloat16, stochastic_rounding": ("bfloat16", {"stochastic_rounding": True}),
        "bfloat16, bfloat16 state": ("bfloat16", {"state_dtype": torch.bfloat16, "stochastic_rounding": True}),
    }
    steps: dict[str, Callable[[], object]] = {}
    for name, (dtype, options) in cases.items():
        optimizer = rmsprop.torch.RMSprop(parameters(shapes, dtypes[dtype]), **options)
        if "watched" in name:
            optimizer.watch()
        steps[name] = optimizer.step
    took = interleaved(steps, rounds, turn=3)
    print("\n## Precision and statistics at 2 x 4096²\n")
    print("| parameters | a step | times as fast as float32 |\n|---|---|---|")
    for name, seconds in took.items():
        print(f"| {name} | {seconds * 1e6:,.0f} µs | {took['float32'] / seconds:.2f} |")


def formats(rounds: int) -> None:
    """16-bit parameters, with float32 state, against float32 ones, each with the same options."""
    shapes, dtypes = CASES["2 x 4096²"][0], (torch.float32, torch.bfloat16, torch.float16)
    print("\n## 16-bit parameters at 2 x 4096²\n")
    print("| options | float32 | bfloat16 | float16 | bfloat16 is | float16 is |\n|---|---|---|---|---|---|")
    cases: dict[str, dict] = {name: common | ours for name, (common, ours) in OPTIONS.items()}
    cases |= {"momentum": {"momentum": 0.9}, "centered": {"centered": True}, "decay": {"weight_decay": 1e-4}}
    cases |= {"averaging": {"averaging": True}}
    for name, options in cases.items():
        steps = {str(dtype): rmsprop.torch.RMSprop(parameters(shapes, dtype), **options).step for dtype in dtypes}
        full, *narrow = interleaved(steps, rounds, turn=3).values()
        shown = [f"{seconds * 1e3:.1f} ms" for seconds in (full, *narrow)]
        shown += [f"{full / seconds:.2f} times as fast" for seconds in narrow]
        print(f"| {name} | {' | '.join(shown)} |", flush=True)


def memory() -> None:
    """How far the process grows during a step, beyond parameters, gradients and state (Linux)."""
    shapes = CASES["2 x 4096²"][0]
    size = sum(p.numel() * p.element_size() for p in parameters(shapes))
    print(f"\n## Extra memory of a step at 2 x 4096² ({size / 2**20:.0f} MiB of parameters)\n")
    print("| optimizer | plain | momentum, centered, decay |\n|---|---|---|")
    rows: dict[str, Callable[..., torch.optim.Optimizer]] = {
        "torch loop": lambda params, **options: torch.optim.RMSprop(params, foreach=False, **options),
        "torch foreach": lambda params, **options: torch.optim.RMSprop(params, foreach=True, **options),
        "rmsprop": rmsprop.torch.RMSprop,
    }
    for name, make in rows.items():
        grown = []
        for options in ({}, OPTIONS["momentum, centered, decay, clip"][0]):
            optimizer = make(parameters(shapes), **options)
            optimizer.step()
            before = resident("VmRSS")
            Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
            optimizer.step()
            grown.append(f"{max(resident('VmHWM') - before, 0) / 2**10:.1f} MiB")
        print(f"| {name} | {' | '.join(grown)} |")


def resident(key: str) -> int:
    """A figure of this process in KiB: memory now (VmRSS) or at its peak (VmHWM)."""
    return int(Path("/proc/self/status").read_text().split(key)[1].split()[1])


def training_loop(rounds: int) -> None:
    """The same inside training: torch's threads are busy, or still spinning, when the step begins."""
    print("\n## Inside a training loop\n")
    print("| network | optimizer | an iteration | its step | rmsprop's step is |")
    print("|---|---|---|---|---|")
    for width, batch in ((64, 64), (512, 64), (2048, 32)):
        times: dict[str, list[tuple[float, float]]] = {}
        loops = {}
        for name in ("torch loop", "torch foreach", "rmsprop"):
            torch.manual_seed(0)
            layers = [nn.Linear(width, width), nn.ReLU()] * 3
            model = nn.Sequential(*layers, nn.Linear(width, 10))
            params = list(model.parameters())
            optimizer: torch.optim.Optimizer = (
                rmsprop.torch.RMSprop(params, lr=1e-4)
                if name == "rmsprop"
                else torch.optim.RMSprop(params, lr=1e-4, foreach=name == "torch foreach")
            )
            loops[name], times[name] = (model, optimizer), []
        x, y = torch.randn(batch, width), torch.randint(10, (batch,))
        for _ in range(4 * rounds):
            for name, (model, optimizer) in loops.items():
                start = perf_counter()
                optimizer.zero_grad()
                nn.functional.cross_entropy(model(x), y).backward()
                before = perf_counter()
                optimizer.step()
                end = perf_counter()
                times[name].append((end - start, end - before))
        steps = {name: median(step for _, step in pairs[2:]) for name, pairs in times.items()}
        fastest = min(steps["torch loop"], steps["torch foreach"])
        for name, pairs in times.items():
            whole = median(total for total, _ in pairs[2:])
            ratio = f"{fastest / steps[name]:.2f} times as fast" if name == "rmsprop" else ""
            times_shown = f"{whole * 1e6:,.0f} µs | {steps[name] * 1e6:,.0f} µs"
            print(f"| 4 x {width} wide, batch {batch} | {name} | {times_shown} | {ratio} |")


def of_rows(height: int) -> list[Tensor]:
    """Sparse gradients of a table 32 wide, each of 4,096 rows."""
    shape = (4096, 32)
    picked = [torch.randperm(height)[None, : shape[0]] for _ in range(64)]
    size = (height, shape[1])
    return [torch.sparse_coo_tensor(rows, torch.randn(shape), size, check_invariants=False) for rows in picked]


def table_step(
    make: Callable[[list[nn.Parameter]], torch.optim.Optimizer], height: int, gradients: list[Tensor]
) -> Callable[[], object]:
    """A step of a table of that height by one of the gradients, in an order that is the same for all optimizers."""
    p, order = nn.Parameter(torch.randn(height, 32)), Random(0)
    optimizer = make([p])
    must_catch_up = optimizer.defaults.get("sparse") == "exact" and optimizer.defaults["momentum"] > 0

    def step() -> None:
        p.grad = order.choice(gradients)
        if must_catch_up:  # what `attach` has done before a forward pass
            optimizer.catch_up(p, p.grad._indices()[0])
        optimizer.step()

    step()
    for value in optimizer.state[p].values():
        if isinstance(value, Tensor) and value.shape == p.shape:
            value.add_(1e-3)  # memory that has only been asked for is not there yet
    return step


def sparse_steps(rounds: int, with_large: bool) -> None:
    """Steps of large tables by sparse gradients, against dense steps and torch's optimizer for sparse ones."""
    makers: dict[str, Callable[[list[nn.Parameter]], torch.optim.Optimizer]] = {
        "torch.optim.RMSprop, dense": torch.optim.RMSprop,
        "torch.optim.SparseAdam": torch.optim.SparseAdam,
        "rmsprop, exact": rmsprop.torch.RMSprop,
        "rmsprop, exact, momentum": lambda params: rmsprop.torch.RMSprop(params, momentum=0.9),
        "rmsprop, lazy": lambda params: rmsprop.torch.RMSprop(params, sparse="lazy"),
    }
    took = {}
    for height in (1_000_000, 10_000_000)[: 1 + with_large]:
        gradients = of_rows(height)
        steps = {}
        for name, make in makers.items():
            is_dense = "dense" in name
            if height == 1_000_000 or not is_dense:
                steps[name] = table_step(make, height, [gradients[0].to_dense()] if is_dense else gradients)
        took[height] = interleaved(steps, rounds, turn=5)
    small, large = took[1_000_000], took.get(10_000_000, {})
    dense, adam = (small[name] for name in list(makers)[:2])
    print("\n## 4,096 rows of a table, 32 wide\n")
    print("| step | 1,000,000 rows | 10,000,000 rows | times as long | torch dense / it | SparseAdam / it |")
    print("|---|---|---|---|---|---|")
    for name, seconds in small.items():
        tall = f"{large[name] * 1e6:,.0f} µs | {large[name] / seconds:.2f}" if name in large else " | "
        print(f"| {name} | {seconds * 1e6:,.0f} µs | {tall} | {dense / seconds:.2f} | {adam / seconds:.2f} |")
    print("\nTargets of exact: torch dense / it 100, SparseAdam / it 3, times as long at most 2.5.")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15, help="turns of each contender")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out")
    parser.add_argument("--formats", action="store_true", help="16-bit parameters, and nothing else")
    parser.add_argument("--rprop", action="store_true", help="the table of Rprop alone")
    parser.add_argument("--no-large", action="store_true", help="leave out tables that take 16 GB of memory together")
    parser.add_argument("--only-sparse", action="store_true", help="sparse steps, and nothing else")
    parser.add_argument("--long-compile", action="store_true", help="compile the step for 1,000 tensors too: minutes")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    print(f"torch {torch.__version__}, {arguments.threads} threads, kernel: {cpu.NAME}, {platform.machine()}")
    if arguments.formats:
        formats(arguments.rounds)
        return
    if arguments.rprop:
        rprop_steps(arguments.rounds)
        return
    if arguments.only_sparse:
        sparse_steps(arguments.rounds, not arguments.no_large)
        return
    if Path("/proc/self/clear_refs").exists():
        memory()  # first: later on the process has memory to spare
    bare_steps(arguments.rounds, not arguments.no_compile, arguments.long_compile)
    rprop_steps(arguments.rounds)
    bandwidth(arguments.rounds)
    variants(arguments.rounds)
    formats(arguments.rounds)
    training_loop(arguments.rounds)
    sparse_steps(arguments.rounds, not arguments.no_large)


if __name__ == "__main__":
    main()
