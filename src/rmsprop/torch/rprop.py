"""`Rprop` for PyTorch."""

from collections.abc import Iterable
from dataclasses import fields
from math import isnan
from operator import itemgetter
from typing import Any, ClassVar

import torch
from torch import Tensor

from rmsprop import averaging
from rmsprop.kernels import cpu
from rmsprop.rprop import OPTIONS, RpropRule
from rmsprop.rule import OptionError, as_float
from rmsprop.torch.options import ENGINE, FAMILIES, Family, Known, check_engine, invalid, number
from rmsprop.torch.plan import Plan
from rmsprop.torch.stepping import Stepping


def _known(values: tuple[Any, ...]) -> Known[RpropRule]:
    """What the values of a group amount to, as `options.known`."""
    options = dict(zip((*OPTIONS, *ENGINE), values, strict=True))
    check_engine(options)
    if options["sparse"] != "dense":
        raise ValueError(f"Invalid sparse value: {options['sparse']!r}: expected 'dense', which is all that Rprop has")
    if averaging.gamma_of(options["averaging"]) is not None:
        raise ValueError(
            f"Invalid averaging value: {options['averaging']!r}: expected False, which is all that Rprop has"
        )
    try:
        rule = RpropRule(**{name: number(options[name]) if name == "lr" else options[name] for name in OPTIONS})
    except OptionError as error:
        if error.name == "etas" and isinstance(error.value, (tuple, list)):
            raise ValueError(f"Invalid eta values: {str(error.value)[1:-1]}: expected {error.allowed}") from None
        raise invalid(error) from None
    scalars = cpu.coefficients(rule.after(0.0, None), stochastic=options["stochastic_rounding"])
    return Known(values, rule, *scalars)


_NEUTRAL = (
    {field.name: field.default for field in fields(RpropRule)}
    | ENGINE
    | {"sparse": "dense", "state_shape": "full", "last_loss": None}
)
RPROP = FAMILIES["Rprop"] = Family("Rprop", OPTIONS, itemgetter(*OPTIONS, *ENGINE), _known, _NEUTRAL)


class Rprop(Stepping):
    r"""Rprop with `torch.optim.Rprop`'s arguments, names, defaults and state, and this package's options.

        s <- etas[1] s    where the gradient has the sign it had before
        s <- etas[0] s    where the sign has changed; there p stays for this step
        s <- clamp(s, *step_sizes)
        p <- p - sign(g) s

    It wants the gradient of all the data: signs of mini-batches change by chance, and step sizes shrink.

    On the CPU one native call makes the whole step; elsewhere `rmsprop.rprop.update` runs over lists of tensors.
    Arithmetic and state are float32 for float16, bfloat16 and float32 parameters, float64 for float64; complex
    parameters count as two real numbers an entry. Sparse gradients give the dense result. Gradients are never written.

    Args:
        params: parameters, named parameters, or groups of them, as every torch optimizer takes.
        lr: the first step size of every weight, at least 0; read when a parameter's state is made.
        etas: (shrink, grow), with 0 < shrink < 1 < grow.
        step_sizes: (least, most) step size, with 0 <= least <= most; the largest may be infinite.
        capturable, foreach, differentiable, fused: as for `RMSprop`.
        maximize: climb instead of descend.
        variant: "irprop-" is torch's, the above; "rprop-", "rprop+" and "irprop+" see `rmsprop.rprop.RpropRule`.
            "irprop+" needs a closure, whose loss must be the same on all processes, and no graph.
        dialect: "torch", or "optax" for optax's numbers.
        state_dtype, stochastic_rounding, seed: as for `RMSprop`.

    Raises:
        ValueError: an option outside its range, or options that cannot be combined.
        RuntimeError: `fused=True` with what the kernel cannot do.

    Example:
        >>> import torch, rmsprop.torch
        >>> layer = torch.nn.Linear(3, 1)
        >>> optimizer = rmsprop.torch.Rprop(layer.parameters(), variant="irprop+")
        >>> def closure():
        ...     optimizer.zero_grad()
        ...     loss = (layer(torch.eye(3)) - 1).square().mean()
        ...     loss.backward()
        ...     return loss
        >>> for _ in range(200):
        ...     loss = optimizer.step(closure)
        >>> loss.item() < 1e-6
        True

    Source: pytorch 2.13, torch/optim/rprop.py; C. Igel and M. Hüsken, Neurocomputing 50, 2003.
    """

    _family: ClassVar[Family] = RPROP

    def __init__(
        self,
        params: Iterable[Any],
        lr: float | Tensor = 1e-2,
        etas: tuple[float, float] = (0.5, 1.2),
        step_sizes: tuple[float, float] = (1e-6, 50),
        *,
        capturable: bool = False,
        foreach: bool | None = None,
        maximize: bool = False,
        differentiable: bool = False,
        fused: bool | None = None,
        variant: str = "irprop-",
        dialect: str = "torch",
        state_dtype: torch.dtype | None = None,
        stochastic_rounding: bool = False,
        seed: int = 0,
    ) -> None:
        options: dict[str, Any] = {"lr": lr, "etas": etas, "step_sizes": step_sizes, "variant": variant}
        options |= {"dialect": dialect, "maximize": maximize}
        options |= {"capturable": capturable, "foreach": foreach, "differentiable": differentiable, "fused": fused}
        options |= {"state_dtype": state_dtype, "stochastic_rounding": stochastic_rounding, "seed": seed}
        super().__init__(
            params, options | {"sparse": "dense", "state_shape": "full", "averaging": False, "last_loss": None}
        )

    def _values(self, group: dict[str, Any], loss: Any) -> tuple[Any, ...]:
        if group["variant"] != "irprop+":
            return super()._values(group, loss)
        if loss is None and not self.state and as_float(group["lr"]) == 0:  # may ask for its state: `_step` sees to it
            return super()._values({**group, "variant": "irprop-"}, loss)
        if isnan(value := _loss(loss)):
            raise _no_loss(loss)
        rule = RpropRule(variant="irprop+", maximize=group["maximize"]).after(value, group["last_loss"])
        return super()._values({**group, "variant": rule.variant}, loss)

    def _step(self, plan: Plan, watched: bool) -> tuple[int, list[cpu.Sums]]:
        if plan.loss is None and any(group["variant"] == "irprop+" for group in self.param_groups):
            raise _no_loss(None)
        return super()._step(plan, watched)

    def _settle(self, plan: Plan) -> None:
        super()._settle(plan)
        for group in self.param_groups:
            if group["variant"] == "irprop+" and plan.loss is not None:
                group["last_loss"] = _loss(plan.loss)


def _loss(loss: Any) -> float:
    """A closure's loss as a number, NaN where it is not one real number."""
    if not isinstance(loss, Tensor):
        return as_float(loss)
    return as_float(loss.item()) if loss.numel() == 1 else float("nan")


def _no_loss(loss: Any) -> ValueError:
    return ValueError(
        f"variant='irprop+': step(closure) needs a closure that returns the loss, one real number that is not NaN; "
        f"got {loss!r}"
    )
