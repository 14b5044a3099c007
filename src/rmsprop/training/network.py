"""The multilayer network, and the four ways to start it that the tutorial compares."""

import hashlib
import itertools
from collections.abc import Iterator
from contextlib import contextmanager

import torch

#: What each start teaches, said at the end of a run that used it.
LESSONS = {
    "zeros": "every hidden unit computes the same and passes no gradient down, so only the last bias can learn; "
    "a network without hidden layers has no such trouble",
    "huge": "weights 20 times too large start from an enormous loss, and steps of about lr are slow to repair them",
    "tiny": "with weights near 0 signal and gradient all but vanish; RMSprop divides the gradient's size out, but only "
    "above the root of epsilon, so a smaller epsilon learns (also dialect torch, with epsilon outside the root)",
}


def stream(seed: int, name: str) -> torch.Generator:
    """Random numbers for one purpose. Never torch's global ones, and the same whatever ran before."""
    digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big"))


def build(inputs: int, hidden: tuple[int, ...], outputs: int, init: str, seed: int) -> torch.nn.Sequential:
    """Linear layers with ReLU between them, float32; biases start at 0.

    Kaiming draws each weight with variance 2 / inputs of the layer (1 / inputs in the last, which has no ReLU
    after it), so that the signal keeps its size; huge and tiny multiply these weights by 20 and 0.001.

    Source: K. He et al., arXiv:1502.01852, equation 10.
    """
    generator = stream(seed, "init")
    factor = {"kaiming": 1.0, "zeros": 0.0, "huge": 20.0, "tiny": 1e-3}[init]
    layers: list[torch.nn.Module] = []
    for fan_in, fan_out in itertools.pairwise((inputs, *hidden, outputs)):
        last = len(layers) == 2 * len(hidden)
        # Linear itself would draw from the global random numbers, and to no purpose.
        layer = torch.nn.utils.skip_init(torch.nn.Linear, fan_in, fan_out)  # type: ignore[no-untyped-call]
        with torch.no_grad():
            layer.weight.normal_(0, factor * ((1 if last else 2) / fan_in) ** 0.5, generator=generator)
            layer.bias.zero_()
        layers += [layer] if last else [layer, torch.nn.ReLU()]
    return torch.nn.Sequential(*layers)


def threads_for(network: torch.nn.Module, batch_size: int) -> int:
    """1 where a batch is too little work to share between threads, else what torch was going to use."""
    work = batch_size * sum(p.numel() for p in network.parameters())
    return torch.get_num_threads() if work > 1.5e7 else 1


@contextmanager
def running_on(threads: int) -> Iterator[None]:
    """Have torch use this many threads: it decides the order of some sums, so a resumed run needs the same."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)
