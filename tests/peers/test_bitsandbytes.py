"""bitsandbytes: its 32-bit RMSprop on the CPU is torch's rule, without momentum."""

import bitsandbytes
import pytest
import torch
from torch.testing import assert_close

from rmsprop.torch import RMSprop
from tests.peers.conftest import loader, network, numbers

OPTIONS = [{}, {"lr": 0.001}, {"weight_decay": 0.1}, {"alpha": 0.5, "eps": 1e-2, "weight_decay": 0.01}]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_equals_their_32_bit_rmsprop(dtype, options):
    """bfloat16 parameters too: both keep the mean square in float32, which torch's own does not."""
    theirs, ours = (network().to(dtype) for _ in range(2))
    optimizers = [
        bitsandbytes.optim.RMSprop32bit(theirs.parameters(), **options),
        RMSprop(ours.parameters(), dialect="torch", **options),
    ]
    for x, y in loader():
        torch.nn.functional.mse_loss(theirs(x.to(dtype)), y.to(dtype)).backward()
        for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
            p.grad = q.grad.clone()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        states = [list(optimizer.state.values()) for optimizer in optimizers]
        for a, b in zip(*states, strict=True):
            assert b["square_avg"].dtype == torch.float32
            assert_close(b["square_avg"], a["state1"], rtol=1e-6, atol=1e-9)
    assert_close(numbers(ours), numbers(theirs), rtol=0, atol=1e-6 if dtype == torch.float32 else 2**-8)
