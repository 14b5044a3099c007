"""Which parameters the kernel for GPUs takes: `rmsprop.kernels.triton`, where Triton is installed."""

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
    """The module that launches it, or None without Triton; torch for GPUs brings it along."""
    try:
        from rmsprop.kernels import launch
    except ImportError:
        return None
    return launch


def launcher(optimizer: "Stateful") -> Any:
    """What makes the optimizer's steps, where the kernel is; the same each time."""
    if optimizer._launcher is None:
        optimizer._launcher = new_launcher()
    return optimizer._launcher


def new_launcher() -> Any:
    """A `Launcher` that remembers nothing yet."""
    module = kernel()
    assert module is not None
    return module.Launcher()


def is_capturing() -> bool:
    """Whether a CUDA graph takes down what is being done."""
    return bool(torch.cuda.is_initialized()) and torch.cuda.is_current_stream_capturing()  # type: ignore[no-untyped-call]


def takes(p: Tensor) -> bool:
    """Whether a parameter is where the kernel for GPUs can step it; the native module reads the table for it."""
    return p.device.type == "cuda" and cpu.native is not None and _is_there()


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _is_there() -> bool:
    return kernel() is not None
