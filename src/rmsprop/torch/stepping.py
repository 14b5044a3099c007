"""The step: of all parameters in one native call where that can be, in a graph, under hooks, watched."""

from collections.abc import Callable, Iterable, Sized
from typing import Any

import torch
from torch.autograd import profiler
from torch.autograd.graph import increment_version
from torch.optim import Optimizer
from torch.optim.optimizer import _global_optimizer_post_hooks, _global_optimizer_pre_hooks

from rmsprop.kernels import cpu
from rmsprop.torch import graph, mixed, rows
from rmsprop.torch.options import check_params, plain
from rmsprop.torch.plan import Plan
from rmsprop.torch.stateful import Stateful


class Stepping(Stateful):
    """What the optimizers share beside their options. Not to be used on its own."""

    def __init__(self, params: Iterable[Any], options: dict[str, Any]) -> None:
        self._family.known(self._family.values(options))  # before anything is asked of the parameters
        self._skipped = torch.zeros((), dtype=torch.int64, device="cpu")
        self._begin()
        super().__init__(params, options)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Adds a group, as torch does; its options are checked before it is taken."""
        self._family.known(self._family.values({**self.defaults, **param_group}))
        super().add_param_group(dict(param_group))
        group = self.param_groups[-1]
        group.update({name: plain(group[name]) for name in self._family.keys})
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
            RuntimeError: within `averaged()`.
        """
        self._expect_own_weights("step")
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
            self._eager_step(loss)
        return loss

    def _is_captured(self) -> bool:
        """Whether a CUDA graph may be taking this step down: it must not wait for the device."""
        for group in self.param_groups:
            if group["capturable"] and any(p.device.type != "cpu" for p in group["params"]):
                return True
        return False

    _watched_step = Optimizer.profile_hook_step(_bare_step)

    def _eager_step(self, loss: Any) -> None:
        scale = self.__dict__.get("grad_scale")
        watch = self._watch if self._watch is not None and self._watch.due() else None
        with self._turn:
            self._expect_own_weights("step")
            plan = Plan(self, 1.0 if scale is None else float(scale), loss)
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
