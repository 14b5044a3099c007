"""State that is made early, saved, loaded, pickled and shared: all of the optimizer but its step."""

import itertools
import os
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from threading import RLock
from typing import Any, ClassVar

from torch import Tensor
from torch.optim import Optimizer

from rmsprop import averaging
from rmsprop.kernels.rows import Table
from rmsprop.torch import graph, loading, rows
from rmsprop.torch.options import Family, Known
from rmsprop.torch.shards import local
from rmsprop.torch.state import fresh, square_avg
from rmsprop.torch.watch import Watch

_NUMBERS = itertools.count()  # the same in each run, so that what has been compiled is found again


class Stateful(Optimizer):
    """What the optimizers are beside their step. Not to be used on its own."""

    _family: ClassVar[Family]
    _skipped: Tensor
    _opt_called: bool
    _tables: dict[Tensor, Table]  # of the parameters that have rows which are not up to date

    def _begin(self) -> None:
        """What a copy must have anew."""
        self._known: dict[int, Known[Any]] = {}
        self._turn, self._is_stepping = RLock(), False
        self._watch: Watch | None = None
        self._is_averaged = False  # whether the parameters hold their averages
        self.__dict__.setdefault("_tables", {})
        self._attached: set[Tensor] = set()  # of which rows are brought up to date before they are read
        self._has_sparse, self._has_warned = bool(self._tables), False
        self._launcher: Any = None  # of steps on a GPU
        self._number = str(next(_NUMBERS))  # as text, for dynamo makes variables of numbers
        graph.OPTIMIZERS[self._number] = self

    def __getstate__(self) -> dict[str, Any]:
        """What a copy or a pickle takes along; rows that have steps to make up for still do in the copy."""
        self._expect_own_weights("copy")
        return {**super().__getstate__(), "_skipped": self._skipped, "_tables": self._tables}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Takes over a pickled or loaded state; options the state does not know have torch's values."""
        super().__setstate__(state)
        if "_turn" not in self.__dict__:
            self._begin()
        self._known = {}
        for group in self.param_groups:
            for name, value in self._family.neutral.items():
                group.setdefault(name, value)

    def _values(self, group: dict[str, Any], loss: Any) -> tuple[Any, ...]:
        """The options of a group for the step at hand, for which the closure has returned this loss."""
        return self._family.values(group)

    def _expect_own_weights(self, what: str) -> None:
        """Raises a RuntimeError within `averaged()`."""
        if self._is_averaged:
            raise RuntimeError(averaging.refusal(what))

    def _expect_no_step(self, what: str) -> None:
        """Raises a RuntimeError in a thread that has its turn already."""
        if self._is_stepping:
            raise RuntimeError(f"{what}: this thread is within a step of this optimizer; expected it afterwards")

    @contextmanager
    def _own_turn(self, what: str) -> Iterator[None]:
        """Waits for other threads, but not for a step that a signal's handler has interrupted: that would be for ever.

        Raises:
            RuntimeError: this thread is within such a block.
        """
        with self._turn:
            self._expect_no_step(what)
            self._is_stepping = True
            try:
                yield
            finally:
                self._is_stepping = False

    def init_state(self) -> None:
        """Makes the state of every parameter now, as a first step would find it; what is there stays."""
        self._expect_own_weights("init_state")
        for group in self.param_groups:
            values = self._family.values(group)
            # lr is for state that is not there yet, and one on a GPU would have to be waited for.
            if all(len(self.state.get(p, ())) > 1 for p in group["params"]):
                values = (0.0, *values[1:])
            rule = self._family.known(values).rule
            for p in group["params"]:
                if (entry := fresh(p, rule, self.state[p], group)) is not self.state[p]:
                    self.state[p] = entry
                    self._known = {}  # says nothing of state of another form

    def share_memory(self) -> None:
        """Makes the state now, in memory that processes share: they then step with common statistics (A3C)."""
        self.init_state()
        for p in itertools.chain.from_iterable(group["params"] for group in self.param_groups):
            for value in self.state[p].values():
                if isinstance(value, Tensor):
                    local(value).share_memory_()  # type: ignore[no-untyped-call]

    def flush(self) -> None:
        """Brings all rows of all parameters up to date; belongs before whole tables are read."""
        if not self._tables:
            return
        with self._own_turn("flush"):
            for p in list(self._tables):
                rows.bring_up(self, p)

    def state_dict(self) -> dict[str, Any]:
        """Torch's layout, all rows brought up to date; centered state has `square_avg`, for other libraries, too.

        With `state_shape="row"` it is this optimizer's alone: torch.optim.RMSprop expects a number for every entry.

        Raises:
            RuntimeError: within `averaged()`, or in the handler of a signal that has interrupted a step of sparse
                gradients.
        """
        self._expect_own_weights("state_dict")
        self.flush()
        with self._turn:
            hooks = self._optimizer_state_dict_post_hooks
            # Exchanged, not written to: a signal's handler may save while they are being gone through.
            self._optimizer_state_dict_post_hooks = OrderedDict({-1: _add_square_avg, **hooks})
            try:
                return super().state_dict()
            finally:
                self._optimizer_state_dict_post_hooks = hooks

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes over a `state_dict` of this optimizer or of torch's of its name; the state keeps its dtype.

        `state_shape` stays this optimizer's own, and the state must have it.
        Where both sides have parameter names, state goes to the parameter of its name, whatever the order.

        Raises:
            ValueError: other names or groups, or state of another shape, not finite, or negative where it cannot be;
                nothing has changed then.
            RuntimeError: within `averaged()`.
        """
        self._expect_own_weights("load_state_dict")
        final: list[dict[str, Any]] = []

        def prepare(_: Optimizer, given: dict[str, Any]) -> dict[str, Any]:
            final.append(loading.prepared(given, self.param_groups, self._family))
            return final[0]

        hooks = [  # after the caller's hooks that change what is loaded, before those that look at the result
            self.register_load_state_dict_pre_hook(prepare),
            self.register_load_state_dict_post_hook(
                lambda _: self.state.update(loading.restored(final[0], self.param_groups, self.state)), prepend=True
            ),
        ]
        try:
            super().load_state_dict(state_dict)
            self._tables.clear()
        finally:
            for hook in hooks:
                hook.remove()


def _add_square_avg(_: Optimizer, result: dict[str, Any]) -> None:
    """The first of the hooks that look at a `state_dict`."""
    result["state"] = {
        i: {**entry, "square_avg": square_avg(entry)} if isinstance(entry, dict) and "variance" in entry else entry
        for i, entry in result["state"].items()
    }


def _in_child() -> None:
    """A thread that was within a step when the process was forked does not go on in the child to end its turn."""
    for optimizer in list(graph.OPTIMIZERS.values()):
        if optimizer._turn.acquire(blocking=False):
            optimizer._turn.release()
        else:
            optimizer._turn, optimizer._is_stepping = RLock(), False


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_in_child)
