"""The optimizers that are compared: ours in variants, torch's, and others where they are installed."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor
from torch.optim import SGD, Adagrad, Adam, AdamW, Optimizer
from torch.optim import RMSprop as TorchRMSprop

from rmsprop.averaging import GAMMA, rate
from rmsprop.comparing.gains import Gains
from rmsprop.comparing.problem import Problem
from rmsprop.torch import RMSprop, Rprop

POINTS = 8  # of every grid of learning rates: all get the same budget
Make = Callable[[list[Tensor], float], Optimizer]


@dataclass(frozen=True)
class Candidate:
    """One optimizer with everything but its learning rate.

    Attributes:
        name: as in tables.
        about: one line for people.
        make: (parameters, learning rate) -> the optimizer.
        first: the exponent k of the first learning rate of its grid, 10^(k/2); `POINTS` half decades from there.
        averaging: evaluate a running average of the weights (`rmsprop.averaging`).
        full_batch: every step sees all rows, and there are as many fewer steps.
        alone: it shares numbers among its weights, so each replica needs one of its own.
        package: what must be installed.
    """

    name: str
    about: str
    make: Make
    first: int = -8
    averaging: bool = False
    full_batch: bool = False
    alone: bool = False
    package: str = "torch"

    @property
    def installed(self) -> bool:
        """Whether it can be used here."""
        return find_spec(self.package) is not None

    @property
    def grid(self) -> list[float]:
        """The learning rates it is tried with."""
        return [lr_at(k) for k in range(self.first, self.first + POINTS)]

    def steps(self, problem: Problem) -> int:
        """How many steps see as many rows as the problem's budget."""
        return max(round(problem.passes), 1) if self.full_batch else problem.steps

    def optimizer(self, params: list[Tensor], lr: float) -> Optimizer:
        """The optimizer, ready to train."""
        optimizer = self.make(params, lr)
        if self.averaging and not isinstance(optimizer, RMSprop):
            optimizer.averaged = Average(optimizer).swapped  # type: ignore[attr-defined]
        if hasattr(optimizer, "train"):  # schedule-free ones have two sets of weights
            optimizer.train()
        return optimizer

    @contextmanager
    def evaluating(self, optimizer: Any) -> Iterator[None]:
        """Inside, the parameters are those to be evaluated."""
        if self.averaging:
            with optimizer.averaged():
                yield
        elif hasattr(optimizer, "eval"):
            optimizer.eval()
            yield
            optimizer.train()
        else:
            yield


def lr_at(k: int) -> float:
    """The learning rate number k of the grids, two a decade: 0.001 for k = -6, 0.00316 for -5."""
    return float(f"{10 ** (k / 2):.3g}")


class Average:
    """For any optimizer the average of its weights that ours keeps by itself: `rmsprop.averaging`."""

    def __init__(self, optimizer: Optimizer) -> None:
        self.params = [p for group in optimizer.param_groups for p in group["params"]]
        self.values = [p.detach().clone() for p in self.params]
        self.t = 0
        optimizer.register_step_post_hook(self._follow)

    @torch.no_grad()
    def _follow(self, *_: Any) -> None:
        self.t += 1
        for a, p in zip(self.values, self.params, strict=True):
            a.lerp_(p, rate(self.t, GAMMA))

    @contextmanager
    def swapped(self) -> Iterator[None]:
        """Inside, the parameters are the averages."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        for a, p in zip(self.values, self.params, strict=True):
            kept = a.clone()
            a.copy_(p)
            p.copy_(kept)


def _ours(name: str, about: str, averaging: bool = False, **options: Any) -> Candidate:
    options["averaging"] = averaging
    return Candidate(name, about, lambda params, lr: RMSprop(params, lr=lr, **options), averaging=averaging)


def _gains(**options: Any) -> Make:
    return lambda params, lr: Gains(params, lr, **options)


def _elsewhere(package: str, kind: str, **options: Any) -> Make:
    """The optimizer `kind` of a package that is imported when it is wanted."""
    return lambda params, lr: getattr(import_module(package), kind)(params, lr=lr, **options)


_CORRECTED: dict[str, Any] = {"bias_correction": True}
CANDIDATES = {
    candidate.name: candidate
    for candidate in (
        _ours("rmsprop", "PyTorch's rule: alpha 0.99, eps 1e-8 outside the root"),
        _ours("rmsprop-keras", "Keras' rule: rho 0.9, epsilon 1e-7 inside the root", dialect="keras"),
        _ours("rmsprop-tf1", "TensorFlow 1's rule: the average starts at 1", dialect="tf1"),
        _ours("rmsprop-centered", "PyTorch's rule, divided by the standard deviation", centered=True),
        _ours("rmsprop-momentum", "PyTorch's rule with momentum 0.9", momentum=0.9),
        _ours("rmsprop-corrected", "PyTorch's rule with bias correction", **_CORRECTED),
        _ours("rmsprop-corrected-averaged", "the same, its weights averaged", averaging=True, **_CORRECTED),
        Candidate("rmsprop-gains", "rmsprop-corrected, and each weight has a gain", _gains(**_CORRECTED)),
        Candidate("rmsprop-modern-gains", "rmsprop-modern, and each weight has a gain", _gains(dialect="modern")),
        _ours("rmsprop-modern", "with bias correction, EMA momentum 0.7 and clip 2", dialect="modern"),
        _ours("rmsprop-modern-averaged", "the same, its weights averaged", averaging=True, dialect="modern"),
        Candidate("sgd", "torch SGD with momentum 0.9", lambda p, lr: SGD(p, lr, momentum=0.9), first=-6),
        Candidate("adam", "torch Adam", Adam),
        Candidate("adam-averaged", "torch Adam, its weights averaged", Adam, averaging=True),
        Candidate("adamw", "torch AdamW, weight decay 0.01", AdamW),
        Candidate("adagrad", "torch Adagrad", Adagrad, first=-6),
        Candidate("torch-rmsprop", "torch.optim.RMSprop itself", TorchRMSprop),
        Candidate("rprop", "Rprop on all rows at once", Rprop, first=-8, full_batch=True),
        Candidate(
            "schedulefree",
            "AdamW, schedule-free",
            _elsewhere("schedulefree", "AdamWScheduleFree"),
            package="schedulefree",
        ),
        Candidate(
            "prodigy",
            "Prodigy, which finds its step size; lr multiplies it",
            _elsewhere("prodigyopt", "Prodigy"),
            first=-4,
            alone=True,
            package="prodigyopt",
        ),
    )
}
