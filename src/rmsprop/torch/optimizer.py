"""`RMSprop` for PyTorch."""

from collections.abc import Callable, Iterable
from typing import Any, ClassVar

import torch
from torch import Tensor

from rmsprop.dialects import Default
from rmsprop.rule import Rule
from rmsprop.torch import rows
from rmsprop.torch.averaged import Averaging
from rmsprop.torch.options import RMSPROP, Family, defaults
from rmsprop.torch.watch import Watch

_LR, _ALPHA, _EPS, _ZERO, _FALSE = Default(1e-2), Default(0.99), Default(1e-8), Default(0), Default(False)


class RMSprop(Averaging):
    r"""RMSprop with `torch.optim.RMSprop`'s arguments, names, defaults and state, and this package's options.

        v <- alpha v + (1 - alpha) g^2
        p <- p - lr g / (sqrt(v) + eps)

    One native call makes the whole step on the CPU, one launch of a Triton kernel on a GPU, with the same bits;
    elsewhere `rmsprop.rule.update` runs over lists of tensors.
    Arithmetic and state are float32 for float16, bfloat16 and float32 parameters, float64 for float64; complex
    parameters count as two real numbers an entry. Sparse gradients give the dense result. Gradients are never written.

    Args:
        params: parameters, named parameters, or groups of them, as every torch optimizer takes.
        lr: step size, at least 0; a one-element tensor is read at every step.
        alpha: decay of the mean square, in [0, 1).
        eps: keeps the denominator from zero, at least 0.
        weight_decay: at least 0; added to the gradient as weight_decay * p.
        momentum: decay of the momentum buffer, in [0, 1).
        centered: divide by the standard deviation instead. It is kept as a variance, which cannot turn negative;
            `state_dict` has `square_avg` for other libraries beside it.
        capturable: let a CUDA graph capture the step: counters live with their parameters, and `lr` may be a tensor
            there. Nothing is to be captured on a CPU, and nothing changes.
        foreach: True runs `rmsprop.rule.update` over lists of tensors wherever they are; False runs it one tensor at
            a time where the kernel does not; None lets the kernel come first.
        maximize: climb instead of descend.
        differentiable: let autograd follow the step from gradients, parameters and state; lr is a constant.
        fused: True raises where a kernel could never step a parameter; None takes one wherever it can; False does
            without.
        dialect: whose rule and defaults to use (`rmsprop.DIALECTS`), or a rule itself (`**rmsprop.recipes.dqn` gives
            one); an argument that is given wins over it.
        nesterov, momentum_form, bias_correction, epsilon_mode, initial_square, variance_floor, clip, clip_weights,
        nonfinite: as in `rmsprop.Rule`; None is the dialect's.
        state_dtype: torch.float32, float64 or bfloat16; None is float32, or the parameter's where that is wider.
            bfloat16 state is rounded at random, or its averages would stall.
        stochastic_rounding: round bfloat16 parameters at random, so that steps below their precision count on average.
        seed: of the random rounding, whose bits depend on seed, step number and the element's index in the whole
            optimizer alone.
        state_shape: what has a mean square v of its own: "full", every entry; "row", every row of a parameter of two or
            more dimensions, 4 bytes a row: v <- alpha v + (1 - alpha) (mean of g^2 over the row), of shape
            (rows, 1, ..., 1). Not with `centered`, complex parameters, in graphs (`capturable`, torch.compile), or for
            shards along another dimension than the first; nor does torch.optim.RMSprop take such a state.
        averaging: let the step keep an average of the weights, for `averaged` to evaluate with: True, or gamma, a
            number of at least 0, for a_t = a_{t-1} + (gamma + 1) / (t + gamma) (p_t - a_{t-1}), a_1 = p_1, with t the
            parameter's own step count; 0 is the mean of all steps, True is 8. It is part of the state, in its dtype,
            as `weight_avg`. Turned on later, it starts at the parameter as it is then. Not with `differentiable`;
            sparse gradients need sparse="dense".
        decoupled_weight_decay: take lr * weight_decay * p off the parameter instead; None is the dialect's.

    Attributes:
        skipped: how many gradient entries `nonfinite="skip"` has left alone so far.

    Raises:
        ValueError: an option outside its range, or options that cannot be combined.
        RuntimeError: `fused=True` with what the kernel cannot do.

    Example:
        >>> import torch, rmsprop.torch
        >>> layer = torch.nn.Linear(3, 1)
        >>> optimizer = rmsprop.torch.RMSprop(layer.parameters(), lr=0.01, dialect="keras")
        >>> layer(torch.ones(2, 3)).square().mean().backward()
        >>> optimizer.step()
        >>> optimizer.param_groups[0]["eps"], optimizer.param_groups[0]["epsilon_mode"]
        (1e-07, 'inside')

    Source: pytorch 2.13, torch/optim/rmsprop.py.
    """

    _family: ClassVar[Family] = RMSPROP

    def __init__(
        self,
        params: Iterable[Any],
        lr: float | Tensor = _LR,
        alpha: float = _ALPHA,
        eps: float = _EPS,
        weight_decay: float = _ZERO,
        momentum: float = _ZERO,
        centered: bool = _FALSE,  # type: ignore[assignment]
        capturable: bool = False,
        foreach: bool | None = None,
        maximize: bool = False,
        differentiable: bool = False,
        *,
        fused: bool | None = None,
        dialect: str | Rule = "torch",
        nesterov: bool | None = None,
        momentum_form: str | None = None,
        bias_correction: bool | None = None,
        epsilon_mode: str | None = None,
        initial_square: float | None = None,
        decoupled_weight_decay: bool | None = None,
        variance_floor: float | None = None,
        clip: float | None = None,
        clip_weights: float | None = None,
        nonfinite: str | None = None,
        state_dtype: torch.dtype | None = None,
        stochastic_rounding: bool = False,
        seed: int = 0,
        sparse: str = "exact",
        state_shape: str = "full",
        averaging: bool | float | None = False,
    ) -> None:
        options = defaults(dialect)
        given = {"lr": lr, "alpha": alpha, "eps": eps, "weight_decay": weight_decay, "momentum": momentum}
        given |= {"centered": centered, "maximize": maximize}
        ours: dict[str, Any] = {"nesterov": nesterov, "momentum_form": momentum_form, "nonfinite": nonfinite}
        ours |= {"bias_correction": bias_correction, "clip": clip, "clip_weights": clip_weights}
        ours |= {"epsilon_mode": epsilon_mode, "initial_square": initial_square, "variance_floor": variance_floor}
        ours |= {"decoupled_weight_decay": decoupled_weight_decay}
        options |= {name: value for name, value in given.items() if not isinstance(value, Default)}
        options |= {name: value for name, value in ours.items() if value is not None}
        options |= {"capturable": capturable, "foreach": foreach, "differentiable": differentiable, "fused": fused}
        options |= {"state_dtype": state_dtype, "stochastic_rounding": stochastic_rounding, "seed": seed}
        options |= {"sparse": sparse, "state_shape": state_shape, "averaging": averaging}
        super().__init__(params, options)

    @property
    def skipped(self) -> int:
        """How many gradient entries `nonfinite="skip"` has left alone so far."""
        return int(self._skipped)

    def attach(self, module: torch.nn.Module) -> rows.Handle:
        """From now on, rows of an embedding are brought up to date before it reads them, or its `state_dict` is made.

        With momentum or weight decay rows move that no gradient touches; unless their embedding is attached, each step
        with a sparse gradient passes over the whole table. Before the weight is read other than by the module, call
        `flush`. A copy of the module or of the optimizer is to be attached anew.

        Args:
            module: a `torch.nn.Embedding` or `torch.nn.EmbeddingBag` (or what reads the rows of its `weight` that its
                first argument lists) whose weight this optimizer has.

        Returns:
            A handle with `remove()`.

        Raises:
            ValueError: the optimizer does not have its weight.

        Example:
            >>> import torch, rmsprop.torch
            >>> embedding = torch.nn.Embedding(1000, 8, sparse=True)
            >>> optimizer = rmsprop.torch.RMSprop(embedding.parameters(), momentum=0.9)
            >>> handle = optimizer.attach(embedding)
            >>> embedding(torch.tensor([1, 5])).square().sum().backward()
            >>> optimizer.step()
            >>> optimizer.flush()  # before the whole table is read
        """
        self._attach(getattr(module, "weight", None))
        return rows.CatchUp(self).attached_to(module)

    def _attach(self, p: Any) -> None:
        if not any(p is q for group in self.param_groups for q in group["params"]):
            raise ValueError("expected a parameter of this optimizer, or a module whose weight is one")
        self._attached.add(p)

    @torch.no_grad()
    def catch_up(self, param: Tensor, indices: Any = None) -> None:
        """Brings rows up to date, as gradients of 0 at every step they have missed would have left them.

        Args:
            param: a parameter with sparse gradients.
            indices: rows about to be read, of any shape, of which some may be the same; None for all rows.

        Raises:
            ValueError: not a parameter of this optimizer, or indices that are no integers.
            IndexError: an index outside the table.
        """
        if param not in self._attached:
            self._attach(param)
        if indices is not None:
            indices = rows.checked(indices, param)
        if param not in self._tables:
            return
        with self._own_turn("catch_up"):
            if param in self._tables:
                rows.bring_up(self, param, indices)

    def watch(self, log: Callable[[dict[str, float]], Any] | None = None, every: int = 1) -> None:
        """From now on, let every `every`-th step gather the statistics that `stats` returns, in its own pass.

        Args:
            log: called after such a step with one flat dict: {"step": 100, "0.weight/update_rms": 0.0013, ...}, as
                loggers take it. What it does to the optimizer or raises comes after the step.
            every: gather at every so many steps, counted from this call; 0 stops.

        Raises:
            ValueError: `every` is no whole number of at least 0.
            TypeError: `log` cannot be called.

        Example:
            >>> import torch, rmsprop.torch
            >>> layer = torch.nn.Linear(3, 1)
            >>> optimizer = rmsprop.torch.RMSprop(layer.named_parameters(), lr=0.01)
            >>> optimizer.watch()
            >>> layer(torch.ones(2, 3)).square().mean().backward()
            >>> optimizer.step()
            >>> round(optimizer.stats()["weight"]["update_rms"], 4)  # the first step is lr / sqrt(1 - alpha)
            0.1
        """
        if not isinstance(every, int) or isinstance(every, bool) or every < 0:
            raise ValueError(f"every={every!r}: expected a whole number of at least 0")
        if log is not None and not callable(log):
            raise TypeError(f"log={log!r}: expected a callable that takes a dict, or None")
        self._watch = Watch(log, every) if every else None

    def stats(self) -> dict[str, dict[str, float]]:
        """What the last watched step did, by parameter: its name, or "group0.parameter3" where it has none.

        A name that another group has too comes after its group's: "group0.weight".

        * gradient_rms, update_rms, weight_rms: root mean squares of the gradient (unscaled, without those skipped), of
          what the step added to the weights, and of the weights after it;
        * update_to_weight: update_rms / weight_rms;
        * epsilon_share: the share of entries whose denominator is more epsilon than root mean square;
        * skipped: how many entries `nonfinite="skip"` has left alone;
        * step_size_10, step_size_50, step_size_90: quantiles of lr / d over the entries, d being the denominator.

        Of a distributed tensor, the part that this process holds.

        Raises:
            RuntimeError: no step has been watched since `watch`.
        """
        if self._watch is None or not self._watch.latest:
            raise RuntimeError("stats: no step has been watched; call watch() before a step")
        return self._watch.latest
