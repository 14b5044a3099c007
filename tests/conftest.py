"""What several test files of the PyTorch front end need."""

import pytest
import torch

from rmsprop.kernels import cpu
from rmsprop.torch import RMSprop


@pytest.fixture(params=["native", "foreach", "no kernel"])
def make(request, monkeypatch):
    """Makes optimizers that take each of the ways a step can go on a CPU."""
    if request.param == "native" and cpu.native is None:
        pytest.skip("no native kernel on this machine")
    if request.param == "no kernel":
        monkeypatch.setattr(cpu, "native", None)
    return lambda *args, **options: RMSprop(*args, **{"foreach": request.param == "foreach" or None} | options)


def parameter(values=(1.0, -2.0, 3.0), grad=(0.1, 0.2, -0.3), dtype=torch.float32):
    p = torch.nn.Parameter(torch.tensor(values, dtype=dtype))
    p.grad = torch.tensor(grad, dtype=dtype)
    return p
