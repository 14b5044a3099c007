"""What several test files need."""

import signal

import pytest
import torch

from rmsprop.kernels import cpu
from rmsprop.torch import RMSprop


@pytest.fixture(autouse=True, scope="session")
def _ctrl_c_is_heard():
    """A shell has what it starts in the background ignore Ctrl-C, and so would the processes that tests start."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


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
