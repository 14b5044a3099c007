"""A problem that trains in a moment, in float64, and the plain training loop that its replicas are held to."""

import torch
from torch.nn import Tanh
from torch.nn.functional import mse_loss

from rmsprop.comparing.networks import Perceptron
from rmsprop.comparing.problem import Problem, Split


def rows(n, seed):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 3, generator=generator, dtype=torch.float64)
    return Split(x, (x.sin().sum(1, keepdim=True) + 0.1 * torch.randn(n, 1, generator=generator)).double())


def perceptron():
    return Perceptron(3, 5, 1, activation=Tanh).double()


def small(model=perceptron, steps=40, **options):
    parts = [rows(n, seed) for seed, n in enumerate((64, 30, 300))]  # 300: more than are evaluated at once
    return Problem("small", "a small problem", model, mse_loss, *parts, steps=steps, batch_size=16, **options)


def plain(problem, make, lr, seed, at, full_batch=False, decay=False):
    """(validation losses, test losses) after these steps of torch's usual loop, one model alone."""
    model, order = problem.start(seed), problem.order(seed)
    optimizer = make(model.parameters(), lr)
    free = hasattr(optimizer, "train")
    valid, test, steps = [], [], at[-1]
    for step in range(steps):
        if free:
            optimizer.train()
        if decay:
            optimizer.param_groups[0]["lr"] = lr * (1 - step / steps)
        x, y = problem.train if full_batch else (part[order[step]] for part in problem.train)
        optimizer.zero_grad()
        problem.loss(model(x), y).backward()
        optimizer.step()
        if step + 1 not in at:
            continue
        if free:
            optimizer.eval()
        modes = [(module, module.training) for module in model.modules()]
        model.eval()
        with torch.no_grad():
            valid.append(problem.loss(model(problem.valid.inputs), problem.valid.targets).item())
            test.append(problem.loss(model(problem.test.inputs), problem.test.targets).item())
        for module, training in modes:
            module.training = training
    return valid, test
