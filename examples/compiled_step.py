"""A whole training step in one graph of torch.compile: forward, backward, the optimizer's step, and a schedule.

    python examples/compiled_step.py

The learning rate is a tensor, so that a schedule that changes it compiles nothing again. `trace_autograd_ops` is
torch's switch for `backward` in a graph. It is experimental: in torch 2.13 a function compiled after it in the same
process, with or without this optimizer, may fail with a NameError if it writes in place.
"""

import copy

import torch
import torch._dynamo
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch.optim.lr_scheduler import ExponentialLR

from rmsprop.torch import RMSprop

STEPS = 20
torch.manual_seed(0)
model = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 1))
plain = copy.deepcopy(model)
x = torch.randn(64, 8)


def train(model: nn.Module, optimizer: RMSprop) -> torch.Tensor:
    """One step; torch.compile refuses to trace `optimizer.zero_grad`, hence the loop."""
    for p in model.parameters():
        p.grad = None
    loss = nn.functional.mse_loss(model(x), x.sum(1, keepdim=True))
    loss.backward()
    optimizer.step()
    return loss.detach()


graphs = CompileCounterWithBackend("aot_eager")
for network, step in ((plain, train), (model, torch.compile(train, fullgraph=True, backend=graphs))):
    optimizer = RMSprop(network.parameters(), lr=torch.tensor(1e-2), momentum=0.9, bias_correction=True)
    schedule = ExponentialLR(optimizer, 0.9)
    with torch._dynamo.config.patch(trace_autograd_ops=True):
        for _ in range(STEPS):
            loss = step(network, optimizer)
            schedule.step()

pairs = zip(model.parameters(), plain.parameters(), strict=True)
print(f"loss after {STEPS} steps: {loss.item():.4f}; graphs compiled: {graphs.frame_count}")
print(f"equal to the eager run: {all(torch.allclose(p, q, rtol=1e-5, atol=1e-6) for p, q in pairs)}")
