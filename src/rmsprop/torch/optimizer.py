"""`RMSprop` for PyTorch."""

from collections.abc import Callable, Iterable, Sized
from typing import Any

import torch
from torch import Tensor
from torch.autograd import profiler
from torch.autograd.graph import increment_version
from torch.optim import Optimizer
from torch.optim.optimizer import _global_optimizer_post_hooks, _global_optimizer_pre_hooks

from rmsprop.dialects import Default
from rmsprop.kernels import cpu
from rmsprop.torch import graph, mixed, rows
from rmsprop.torch.options import RULE_KEYS, VALUES, check_params, defaults, known, plain
from rmsprop.torch.plan import Plan
from rmsprop.torch.stateful import Stateful
from rmsprop.torch.watch import Watch

_LR, _ALPHA, _EPS, _ZERO, _FALSE = Default(1e-2), Default(0.99), Default(1e-8), Default(0), Default(False)


class RMSprop(Stateful):
    r"""RMSprop with `torch.optim.RMSprop`'s arguments, names, defaults and state, and this package's options.

        v <- alpha v + (1 - alpha) g^2
        p <- p - lr g / (sqrt(v) + eps)

    On the CPU one native call makes the whole step; elsewhere `rmsprop.rule.update` runs over lists of tensors.
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
        foreach: True runs `rmsprop.rule.update` over lists of tensors on the CPU too; False runs it one tensor at a
            time where the kernel does not; None lets the kernel come first.
        maximize: climb instead of descend.
        differentiable: let autograd follow the step from gradients, parameters and state; lr is a constant.
        fused: True wants the native kernel for all parameters, or raises; None takes it wherever it can; False does
            without.
        dialect: whose rule and defaults to use (`rmsprop.DIALECTS`); an argument that is given wins over it.
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
        state_dtype: torch.dtype | None = None,
        stochastic_rounding: bool = False,
        seed: int = 0,
        sparse: str = "exact",
        state_shape: str = "full",
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
        options |= {"sparse": sparse, "state_shape": state_shape}
        known(VALUES(options))  # before anything is asked of the parameters
        self._skipped = torch.zeros((), dtype=torch.int64, device="cpu")
        self._begin()
        super().__init__(params, options)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Adds a group, as torch does; its options are checked before it is taken."""
        known(VALUES({**self.defaults, **param_group}))
        super().add_param_group(dict(param_group))
        group = self.param_groups[-1]
        group.update({name: plain(group[name]) for name in RULE_KEYS})
        if "param_names" in group:
            names = dict(zip(reversed(group["params"]), reversed(group["param_names"]), strict=True))
            group["param_names"] = [names[p] for p in dict.fromkeys(group["params"])]
        group["params"] = list(dict.fromkeys(group["params"]))  # torch has warned; one step each is what is meant
        try:
            check_params(group)
        except (ValueError, RuntimeError):
            del self.param_groups[-1]
            raise

    @property
    def skipped(self) -> int:
        """How many gradient entries `nonfinite="skip"` has left alone so far."""
        return int(self._skipped)

    @property
    def _step_supports_amp_scaling(self) -> bool:
        """Whether `GradScaler` leaves it to `step` to divide by `grad_scale` and to look at `found_inf`.

        As in torch only with `fused=True`: trainers then refuse to clip gradients, which nobody has unscaled.
        """
        return all(group["fused"] is True for group in self.param_groups)

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One update of every parameter that has a gradient; everything is checked before the first write.

        Threads that step the same optimizer take turns, but for steps in a graph.

        Args:
            closure: evaluates the model again and returns the loss.

        Returns:
            What the closure returned, or None.

        Raises:
            ValueError: a gradient or state that does not fit its parameter, or an option outside its range.
            FloatingPointError: with `nonfinite="error"`, a gradient entry whose square is not finite.
        """
        self._opt_called = True
        hooks: tuple[Sized, ...] = (self._optimizer_step_pre_hooks, self._optimizer_step_post_hooks)
        hooks += (_global_optimizer_pre_hooks, _global_optimizer_post_hooks)
        # A graph is guarded by the length of a dict, but not by whether it has one.
        watched = any(len(registered) for registered in hooks) or profiler._is_profiler_enabled
        return (self._watched_step if watched else self._bare_step)(closure)

    # torch wraps every `step` for hooks and profilers, which costs some 15 us: here only while there are any.
    step.hooked = True  # type: ignore[attr-defined]
    # A scheduler would wrap it once more to see whether it is called, in a file that torch.compile refuses to trace.
    step._wrapped_by_lr_sched = True  # type: ignore[attr-defined]

    def _bare_step(self, closure: Callable[[], Any] | None = None) -> Any:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        if torch.compiler.is_compiling() or self._is_captured():
            if self._tables:
                raise RuntimeError("some rows are not up to date; call flush() before a step in a graph")
            with torch.no_grad():
                graph.step(self)
        elif not ((found_inf := self.__dict__.get("found_inf")) is not None and float(found_inf)):
            self._eager_step()
        return loss

    def _is_captured(self) -> bool:
        """Whether a CUDA graph may be taking this step down: it must not wait for the device."""
        for group in self.param_groups:
            if group["capturable"] and any(p.device.type != "cpu" for p in group["params"]):
                return True
        return False

    _watched_step = Optimizer.profile_hook_step(_bare_step)

    def _eager_step(self) -> None:
        scale = self.__dict__.get("grad_scale")
        watch = self._watch if self._watch is not None and self._watch.due() else None
        with self._turn:
            plan = Plan(self, 1.0 if scale is None else float(scale))
            sums: list[cpu.Sums] = []
            if not plan.only_asks_for_state():
                try:
                    skipped, sums = self._step(plan, watch is not None)
                except KeyboardInterrupt:  # heard as the native call returns: the step has been made
                    self._settle(plan)
                    raise
                if skipped:
                    self._skipped += skipped
            self._settle(plan)
            if watch is not None and sums:  # after all that belongs to the step: this takes long enough for a Ctrl-C
                watch.take(plan, sums)
        if watch is not None and sums:
            watch.tell()

    def _settle(self, plan: Plan) -> None:
        """What belongs to a step beside the numbers."""
        increment_version(plan.stepped)
        self.state.update(plan.created)
        self._known = plan.known
        for p, (table, i) in plan.tables.items():
            table.missed.add(plan.known[i].rule.scalars(float(self.state[p]["step"])))
            self._tables[p] = table

    def _step(self, plan: Plan, watched: bool) -> tuple[int, list[cpu.Sums]]:
        """Try the kernel on everything: it checks before it writes, and that is faster than to look here first."""
        if self._has_sparse:
            rows.take(plan, self)
        if cpu.native is not None and not plan.for_lists:
            try:
                if not watched:
                    return cpu.step(plan.work, torch.get_num_threads()), []
                sums = cpu.watched_step(plan.work, torch.get_num_threads())
                return sum(each.skipped for each in sums), sums
            except rows.NOT_NATIVE:  # not all of it is for the kernel: other devices, complex
                pass
        if not self._has_sparse and rows.any_sparse(plan):
            self._has_sparse = True  # from now on each step looks for them first
            return self._step(plan, watched)
        return mixed.step(self.param_groups, plan, watched)

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
