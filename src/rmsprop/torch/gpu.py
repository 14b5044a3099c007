"""Which parameters the kernel for GPUs takes: `rmsprop.kernels.triton`, where Triton is installed."""

import warnings
from functools import cache
from types import ModuleType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from rmsprop.kernels import cpu

if TYPE_CHECKING:
    from rmsprop.torch.stateful import Stateful


@cache
def kernel() -> ModuleType | None:
    """The module that launches it, or None without a Triton that runs; torch for GPUs brings one along."""
    try:
        from rmsprop.kernels import launch
    except ImportError:
        return None
    try:
        if torch.cuda.is_available() and cpu.native is not None:
            launch.try_out()
    except Exception as error:  # of many kinds: no C compiler, no GPU that it knows, no ptxas
        warnings.warn(f"steps on a GPU go through lists of tensors, for Triton does not run: {error}", stacklevel=2)
        return None
    return launch


def launcher(optimizer: "Stateful | None") -> Any:
    """What makes the optimizer's steps, where the kernel is; the same each time, but for one that is gone."""
    known = None if optimizer is None else optimizer._launcher
    if known is None:
        module = kernel()
        assert module is not None
        known = module.Launcher()
    if optimizer is not None:
        optimizer._launcher = known
    return known


def is_capturing() -> bool:
    """Whether a CUDA graph takes down what is being done."""
    return bool(torch.cuda.is_initialized()) and torch.cuda.is_current_stream_capturing()  # type: ignore[no-untyped-call]


def takes(p: Tensor) -> bool:
    """Whether a parameter is where the kernel for GPUs can step it; the native module reads the table for it."""
    return p.is_cuda and cpu.native is not None and _is_there()


def lie_alike(p: Tensor, others: list[Tensor], dithers: bool) -> bool:
    """Whether a parameter is one block of memory, and its gradient and state are, in the same order.

    Random numbers belong to the place in row-major order.
    """
    last = p.ndim == 4 and not dithers and p.is_contiguous(memory_format=torch.channels_last)
    if not (p.is_contiguous() or last):
        return False
    return all(x.layout == torch.strided and x.shape == p.shape and x.stride() == p.stride() for x in others)


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _is_there() -> bool:
    return kernel() is not None
