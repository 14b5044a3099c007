"""RMSprop with a gain for each weight, the third of Hinton's "further developments": something to compare with.

The idea is Rprop's: a weight whose gradient keeps its sign may go faster. With g the gradient and u RMSprop's own move,

    gain = min(gain + 0.05, high)   where g(t) g(t-1) > 0
    gain = max(gain * 0.95, low)    where g(t) g(t-1) < 0
    w    = w - gain * u

from gain = 1; a gradient of 0 leaves it. Source: G. Hinton, Neural Networks for Machine Learning, lectures 6d (gains)
and 6e (combining them with RMSprop "needs more investigation").
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from rmsprop.torch import RMSprop

UP, DOWN = 0.05, 0.95
REFUSED = ("averaging", "clip_weights", "weight_decay")


class Gains(RMSprop):
    """`rmsprop.torch.RMSprop` whose moves are multiplied by gains.

    Args:
        params: tensors with dense gradients.
        limits: the lowest and the highest gain.
        options: those of `RMSprop` but what moves weights for other reasons than their gradient (`REFUSED`).

    Raises:
        ValueError: an option that gains cannot be combined with, in a group too, or limits that are not
            0 < low <= 1 <= high; from `step`, a sparse gradient.

    The gains are not part of `state_dict`.

    Example:
        >>> w = torch.nn.Parameter(torch.ones(2))
        >>> optimizer = Gains([w], lr=0.01)
        >>> for _ in range(3):
        ...     w.grad = torch.tensor([1.0, 0.0])
        ...     optimizer.step()
        >>> [round(x, 2) for x in optimizer.gains[0].tolist()]
        [1.1, 1.0]
    """

    def __init__(
        self, params: list[Tensor], lr: float, limits: tuple[float, float] = (0.1, 10.0), **options: Any
    ) -> None:
        low, high = limits
        if not 0 < low <= 1 <= high:
            raise ValueError(f"limits must be 0 < low <= 1 <= high, got {limits!r}")
        super().__init__(params, lr=lr, **options)
        for group in self.param_groups:
            for name in REFUSED:
                if group[name]:
                    raise ValueError(f"gains cannot be combined with {name}={group[name]!r}")
        self.limits = limits
        self.weights = [p for group in self.param_groups for p in group["params"]]
        self.gains = [torch.ones_like(p) for p in self.weights]
        self.last = [torch.zeros_like(p) for p in self.weights]

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step; a parameter without a gradient keeps its gains."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        if any(p.grad is not None and p.grad.layout != torch.strided for p in self.weights):
            raise ValueError("gains cannot be combined with sparse gradients")
        before = [p.clone() for p in self.weights]
        super().step()
        for p, start, gain, last in zip(self.weights, before, self.gains, self.last, strict=True):
            if p.grad is None:
                continue
            agrees = p.grad * last
            grown, shrunk = (gain + UP).clamp_(max=self.limits[1]), (gain * DOWN).clamp_(min=self.limits[0])
            gain.copy_(torch.where(agrees > 0, grown, torch.where(agrees < 0, shrunk, gain)))
            last.copy_(p.grad)
            p.copy_(start + gain * (p - start))
        return loss
