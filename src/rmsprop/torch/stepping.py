"""The step: of all parameters in one native call where that can be, in a graph, under hooks, watched."""

from collections.abc import Callable, Iterable, Sized
from functools import wraps
from typing import Any, TypeVar, cast

import torch
from torch.autograd import profiler
from torch.autograd.graph import increment_version
from torch.optim import Optimizer
from torch.optim.optimizer import _global_optimizer_post_hooks, _global_optimizer_pre_hooks

from rmsprop import averaging
from rmsprop.kernels import cpu
from rmsprop.torch import gpu, graph, mixed, rows
from rmsprop.torch.checks import check_params
from rmsprop.torch.options import ENGINE, plain, spelled_out
from rmsprop.torch.plan import Plan
from rmsprop.torch.stateful import Stateful

_Step = TypeVar("_Step", bound=Callable[..., Any])


def _hooked(step: _Step) -> _Step:
    """A step that hooks and profilers hear of with the arguments as they came, as torch's own wrapper has them.

    torch wraps every `step`, which costs some 15 us: here that is only while anyone listens.
    """
    watched = Optimizer.profile_hook_step(step)

    @wraps(step)
    def wrapper(self: "Stepping", *args: Any, **kwargs: Any) -> Any:
        self._expect_own_weights("step")
        if not torch.compiler.is_compiling():  # then it has been set for all steps
            self._opt_called = True
        hooks: tuple[Sized, ...] = (self._optimizer_step_pre_hooks, self._optimizer_step_post_hooks)
        hooks += (_global_optimizer_pre_hooks, _global_optimizer_post_hooks)
        # A graph is guarded by the length of a dict, but not by whether it has one.
        if any(len(registered) for registered in hooks) or profiler._is_profiler_enabled:
            return watched(self, *args, **kwargs)
        return step(self, *args, **kwargs)

    wrapper.hooked = True  # type: ignore[attr-defined]
    # A scheduler would wrap it once more to see whether it is called, in a file that torch.compile refuses to trace.
    wrapper._wrapped_by_lr_sched = True  # type: ignore[attr-defined]
    return cast(_Step, wrapper)


class Stepping(Stateful):
    """What the optimizers share beside their options. Not to be used on its own."""

    def __init__(self, params: Iterable[Any], options: dict[str, Any]) -> None:
        self._family.known(self._family.values(options))  # before anything is asked of the parameters
        self._skipped = torch.zeros((), dtype=torch.int64, device="cpu")
        self._begin()
        super().__init__(params, options)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Adds a group, as torch does; its options are checked before it is taken.

        `dialect` in a group of `RMSprop` stands for all of that dialect's options, but for those the group has too.

        Raises:
            ValueError: as for the optimizer, or a key that is nearly the name of an option.
        """
        given = spelled_out(param_group, self.defaults)
        self._family.known(self._family.values({**self.defaults, **given}))
        super().add_param_group(given)
        group = self.param_groups[-1]
        group.update({name: plain(group[name]) for name in (*self._family.keys, *ENGINE)})
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

    @_hooked
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
            RuntimeError: within `averaged()`, or while this thread is within a step of this optimizer, as a signal's
                handler may be.
        """
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

    def _eager_step(self, loss: Any) -> None:
        if gpu.is_capturing() and any(p.is_cuda for group in self.param_groups for p in group["params"]):
            raise RuntimeError(f"a CUDA graph captures this step: expected capturable=True of {type(self).__name__}")
        watch = self._watch if self._watch is not None and self._watch.due() else None
        with self._turn:  # not `_own_turn`, which takes 2 us
            self._expect_no_step("step")
            self._is_stepping = True
            try:
                self._expect_own_weights("step")
                plan, sums = self._whole_step(loss, watch is not None)
                if watch is not None and sums:  # after all that belongs to the step: it takes long enough for a Ctrl-C
                    watch.take(plan, sums)
            finally:
                self._is_stepping = False
        if watch is not None and sums:
            watch.tell()

    def _whole_step(self, loss: Any, watched: bool) -> tuple[Plan, list[cpu.Sums]]:
        """A step, or none, or as much of one as there was memory for, with all that belongs to it."""
        scale = self.__dict__.get("grad_scale")
        plan = Plan(self, 1.0 if scale is None else float(scale), loss)
        sums: list[cpu.Sums] = []
        try:
            if not plan.only_asks_for_state():
                skipped, sums = self._step(plan, watched)
                if skipped:
                    self._skipped += skipped
            self._settle(plan)
        except BaseException:  # a signal's handler may raise when the weights have moved
            if plan.moved():
                plan.keep_moved()
                self._settle(plan)
            raise
        return plan, sums

    def _settle(self, plan: Plan) -> None:
        """What belongs to a step beside the numbers; to do it again changes nothing."""
        increment_version(plan.stepped)
        self.state.update(plan.created)
        self._known = plan.known if plan.is_whole else {}  # state of other parts may have another form than it says
        for p, (table, i) in plan.tables.items():
            t = float(self.state[p]["step"])
            if table.missed.start + table.missed.length < t:
                table.missed.add(plan.known[i].rule.scalars(t))
            self._tables[p] = table

    def _step(self, plan: Plan, watched: bool) -> tuple[int, list[cpu.Sums]]:
        """Try the kernel on everything: it checks before it writes, and that is faster than to look here first."""
        if self._has_sparse:
            rows.take(plan, self)
        if cpu.native is not None and not plan.for_lists:
            plan.parts = [plan.part(plan.stepped)]
            try:
                if plan.stepped and not watched and gpu.takes(plan.stepped[0]):
                    return self._launched(plan.work), []
                if not watched:
                    return cpu.step(plan.work, torch.get_num_threads()), []
                sums = cpu.watched_step(plan.work, torch.get_num_threads())
                return sum(each.skipped for each in sums), sums
            except rows.NOT_NATIVE:  # not all of it is for the kernel: other devices, complex
                if plan.moved():  # but this comes from the handler of a signal
                    raise
        if not self._has_sparse and rows.any_sparse(plan):
            self._has_sparse = True  # from now on each step looks for them first
            return self._step(plan, watched)
        return mixed.step(self.param_groups, plan, watched, self._launched)

    def _launched(self, work: list[cpu.Group]) -> int:
        """One step of parameters on a GPU; the number of entries skipped."""
        assert cpu.native is not None
        with averaging.uninterrupted():
            skipped: int = cpu.native.launch(work, gpu.launcher(self))
        return skipped
