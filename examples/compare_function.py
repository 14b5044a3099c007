"""Which optimizer for a model of one's own? A function that returns model, loss and data is all that is needed.

Run in this folder

    rmsprop compare compare_function:waves --seeds 3

or as a program, which compares four optimizers on it:

    python examples/compare_function.py
"""

import torch
from torch import nn
from torch.nn.functional import mse_loss

import rmsprop


def waves():
    """A small convolutional network that tells the frequency of a noisy wave."""
    generator = torch.Generator().manual_seed(0)  # the data are the same whatever the seed of the weights
    frequency = 1 + 4 * torch.rand(600, 1, generator=generator)
    phase = 6.28 * torch.rand(600, 1, generator=generator)
    x = torch.sin(torch.linspace(0, 6.28, 32) * frequency + phase)
    x += 0.1 * torch.randn(x.shape, generator=generator)
    layers = [nn.Unflatten(1, (1, 32)), nn.Conv1d(1, 8, 5, stride=3), nn.ReLU(), nn.Flatten()]
    model = nn.Sequential(*layers, nn.Linear(8 * 10, 16), nn.ReLU(), nn.Linear(16, 1))
    return model, mse_loss, (x, frequency)


if __name__ == "__main__":
    found = rmsprop.compare(waves, optimizers=["rmsprop", "rmsprop-modern", "sgd"], seeds=3, steps=60)
    print(found)
