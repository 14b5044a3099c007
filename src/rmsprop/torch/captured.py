"""A step whose numbers are on the GPU, as a CUDA graph needs it: one launch, and nothing waits for the device.

Step counters, learning rates, `grad_scale` and `found_inf` are read on the device at each replay; all other options are
those of the moment when the graph was taken down.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from rmsprop import averaging
from rmsprop.kernels import cpu, rounding
from rmsprop.rprop import RpropRule
from rmsprop.rule import Rule


class Part(NamedTuple):
    """A group's part in a step: its rule, whose lr `lr` takes the place of, its average's gamma, and its tensors."""

    rule: Rule | RpropRule
    gamma: float | None
    lr: Tensor
    work: cpu.Group

    def steps(self) -> Tensor:
        """The number of the step of each parameter, in double."""
        return torch.stack([state["step"] for state in self.work.states]).double() + 1

    def scalars(self, scale: Tensor | None) -> list[Any]:
        """A set of scalars as the table has them; a tensor where they are known on the device alone."""
        t: Any = self.steps() if callable(self.work.scalars) else 1
        is_there = self.lr.device == self.work.params[0].device
        lr: Any = self.lr.double().reshape(()) if is_there else float(self.lr)
        by: Any = 1.0 if scale is None else scale.double()
        values: list[Any] = [*self.rule.scalars(t, lr, by).values()]
        return [*values, *[0.0] * (16 - len(values)), 0.0 if self.gamma is None else averaging.rate(t, self.gamma)]


def step(parts: list[Part], scale: Tensor | None, found_inf: Tensor | None, launcher: Any) -> None:
    """One step of parameters whose step counters are on their device too.

    Args:
        parts: none without parameters, all on one device.
        scale: what the gradients have been multiplied by.
        found_inf: not 0 where no step is to be made.
        launcher: a `kernels.launch.Launcher`.

    Raises:
        TypeError, ValueError: before anything is written: not all of it is for the kernel, or does not fit.
    """
    sound = None if found_inf is None else (found_inf == 0).reshape(())

    def launch(rows: bytes, _: bytes) -> int:
        def keys() -> Tensor:
            return torch.cat([rounding.key_of(part.work.seed, part.steps().long()) for part in parts])

        launcher.captured(rows, [(len(part.work.params), part.scalars(scale)) for part in parts], keys, sound)
        counters = [state["step"] for part in parts for state in part.work.states]
        if sound is None:
            torch._foreach_add_(counters, 1)
        else:
            torch._foreach_add_(counters, [sound.to(counters[0].dtype)] * len(counters))
        return 0

    assert cpu.native is not None
    with averaging.uninterrupted():
        cpu.native.launch([part.work for part in parts], launch, True)
