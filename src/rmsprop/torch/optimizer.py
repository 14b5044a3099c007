"""`RMSprop` for PyTorch."""

from collections.abc import Callable, Iterable
from threading import Lock
from typing import Any

import torch
from torch import Tensor
from torch.autograd import profiler
from torch.autograd.graph import increment_version
from torch.optim import Optimizer
from torch.optim.optimizer import _global_optimizer_post_hooks, _global_optimizer_pre_hooks

from rmsprop.dialects import Default
from rmsprop.kernels import cpu
from rmsprop.torch import mixed
from rmsprop.torch.plan import Known, Plan, check, defaults
from rmsprop.torch.state import dtype, is_slot, settled, square_avg

_SWITCHES = {"capturable": False, "foreach": None, "differentiable": False}
_LR, _ALPHA, _EPS, _ZERO, _FALSE = Default(1e-2), Default(0.99), Default(1e-8), Default(0), Default(False)


class RMSprop(Optimizer):
    r"""RMSprop with `torch.optim.RMSprop`'s arguments, names, defaults and state, and this package's options.

        v <- alpha v + (1 - alpha) g^2
        p <- p - lr g / (sqrt(v) + eps)

    On the CPU one native call makes the whole step; elsewhere `rmsprop.rule.update` runs over lists of tensors.
    Arithmetic and state are float32 for float16, bfloat16 and float32 parameters, float64 for float64; complex
    parameters count as two real numbers an entry. Gradients are never written.

    Args:
        params: parameters, named parameters, or groups of them, as every torch optimizer takes.
        lr: step size, at least 0; a one-element tensor is read at every step.
        alpha: decay of the mean square, in [0, 1).
        eps: keeps the denominator from zero, at least 0.
        weight_decay: at least 0; added to the gradient as weight_decay * p.
        momentum: decay of the momentum buffer, in [0, 1).
        centered: divide by the standard deviation instead. It is kept as a variance, which cannot turn negative;
            `state_dict` has `square_avg` for other libraries beside it.
        foreach: True runs `rmsprop.rule.update` over lists of tensors on the CPU too; False runs it one tensor at a
            time on other devices; None and False use the native kernel on the CPU.
        maximize: climb instead of descend.
        capturable, differentiable: not supported yet; True raises.
        dialect: whose rule and defaults to use (`rmsprop.DIALECTS`); an argument that is given wins over it.
        nesterov, momentum_form, bias_correction, epsilon_mode, initial_square, variance_floor, clip, clip_weights,
        nonfinite: as in `rmsprop.Rule`; None is the dialect's.
        decoupled_weight_decay: take lr * weight_decay * p off the parameter instead; None is the dialect's.

    Attributes:
        skipped: how many gradient entries `nonfinite="skip"` has left alone so far.

    Raises:
        ValueError: an option outside its range, or options that cannot be combined.

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
        dialect: str = "torch",
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
        options |= {"capturable": capturable, "foreach": foreach, "differentiable": differentiable}
        self.skipped = 0
        self._known: dict[int, Known] = {}
        self._turn = Lock()
        super().__init__(params, options)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Adds a group, as torch does; its options are checked before it is taken."""
        check({**self.defaults, **param_group})
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        group["params"] = list(dict.fromkeys(group["params"]))  # torch has warned; one step each is what is meant
        for p in group["params"]:
            if p.is_neg() or p.is_conj():
                del self.param_groups[-1]
                raise ValueError("params: a lazily negated or conjugated tensor cannot be updated in place; clone it")

    def __getstate__(self) -> dict[str, Any]:
        """What a copy or a pickle takes along."""
        return {**super().__getstate__(), "skipped": self.skipped}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Takes over a pickled or loaded state; options the state does not know have torch's values."""
        super().__setstate__(state)
        self._known = {}
        self.__dict__.setdefault("skipped", 0)
        self.__dict__.setdefault("_turn", Lock())
        neutral = defaults("torch") | _SWITCHES
        for group in self.param_groups:
            for name, value in neutral.items():
                group.setdefault(name, value)

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One update of every parameter that has a gradient; everything is checked before the first write.

        Threads that step the same optimizer take turns.

        Args:
            closure: evaluates the model again and returns the loss.

        Returns:
            What the closure returned, or None.

        Raises:
            ValueError: a gradient or state that does not fit its parameter, or an option outside its range.
            FloatingPointError: with `nonfinite="error"`, a gradient entry whose square is not finite.
        """
        watched = self._optimizer_step_pre_hooks or self._optimizer_step_post_hooks or profiler._is_profiler_enabled
        watched = watched or _global_optimizer_pre_hooks or _global_optimizer_post_hooks
        return (self._watched_step if watched else self._bare_step)(closure)

    # torch wraps every `step` for hooks and profilers, which costs some 15 us: here only while there are any.
    step.hooked = True  # type: ignore[attr-defined]

    def _bare_step(self, closure: Callable[[], Any] | None = None) -> Any:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        with self._turn:
            plan = Plan(self)
            self.skipped += self._step(plan)
            self.state.update(plan.created)
            self._known = plan.known
        increment_version(plan.stepped)
        return loss

    _watched_step = Optimizer.profile_hook_step(_bare_step)

    def _step(self, plan: Plan) -> int:
        """Try the kernel on everything: it checks before it writes, and that is faster than to look here first."""
        if cpu.native is not None and not plan.for_lists:
            try:
                return cpu.step(plan.work, torch.get_num_threads())
            except (TypeError, RuntimeError, BufferError):  # not all of it is for the kernel: other devices, complex
                pass
        return mixed.step(self.param_groups, plan)

    def state_dict(self) -> dict[str, Any]:
        """Torch's layout; centered state has `square_avg`, for other libraries, beside our `variance`."""
        result = super().state_dict()
        result["state"] = {
            i: {**entry, "square_avg": square_avg(entry)} if "variance" in entry else entry
            for i, entry in result["state"].items()
        }
        return result

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes over a `state_dict` of this optimizer or of `torch.optim.RMSprop`; the state keeps its dtype."""
        final: list[dict[str, Any]] = []
        hooks = [  # after the caller's hooks that change what is loaded, before those that look at the result
            self.register_load_state_dict_pre_hook(lambda _, given: final.append(given)),
            self.register_load_state_dict_post_hook(lambda _: self._restore(final[0]), prepend=True),
        ]
        try:
            super().load_state_dict(state_dict)
        finally:
            for hook in hooks:
                hook.remove()

    def _restore(self, saved: dict[str, Any]) -> None:
        """Puts the saved numbers in their own precision where torch has cast them to the parameter's."""
        indices = iter([i for group in saved["param_groups"] for i in group["params"]])
        for group in self.param_groups:
            for p in group["params"]:
                entry = saved["state"].get(next(indices), {})
                if self.state.get(p):
                    exact = {k: v.to(p.device, dtype(p), copy=True) for k, v in entry.items() if is_slot(k, v)}
                    step = torch.as_tensor(self.state[p].get("step", 0), dtype=torch.float32)
                    self.state[p] = settled({**self.state[p], **exact, "step": step}, group["centered"])
