"""State that is made early, saved, loaded, pickled and shared: all of the optimizer but its step."""

import itertools
from threading import Lock
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from rmsprop.kernels.rows import Table
from rmsprop.torch import graph, loading, rows
from rmsprop.torch.options import ENGINE, VALUES, Known, defaults, known
from rmsprop.torch.shards import local
from rmsprop.torch.state import fresh, square_avg
from rmsprop.torch.watch import Watch


class Stateful(Optimizer):
    """What `RMSprop` is beside its step. Not to be used on its own."""

    _skipped: Tensor
    _opt_called: bool
    _tables: dict[Tensor, Table]  # of the parameters that have rows which are not up to date

    def _begin(self) -> None:
        """What a copy must have anew."""
        self._known: dict[int, Known] = {}
        self._turn = Lock()
        self._watch: Watch | None = None
        self.__dict__.setdefault("_tables", {})
        self._attached: set[Tensor] = set()  # of which rows are brought up to date before they are read
        self._has_sparse, self._has_warned = bool(self._tables), False
        self._number = str(id(self))  # as text, for dynamo makes variables of numbers
        graph.OPTIMIZERS[self._number] = self

    def __getstate__(self) -> dict[str, Any]:
        """What a copy or a pickle takes along; rows that have steps to make up for still do in the copy."""
        return {**super().__getstate__(), "_skipped": self._skipped, "_tables": self._tables}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Takes over a pickled or loaded state; options the state does not know have torch's values."""
        super().__setstate__(state)
        if "_turn" not in self.__dict__:
            self._begin()
        self._known = {}
        neutral = defaults("torch") | ENGINE
        for group in self.param_groups:
            for name, value in neutral.items():
                group.setdefault(name, value)

    def init_state(self) -> None:
        """Makes the state of every parameter now, as a first step would find it; what is there stays."""
        for group in self.param_groups:
            rule = known(VALUES(group)).rule
            for p in group["params"]:
                if (entry := fresh(p, rule, self.state[p], group)) is not self.state[p]:
                    self.state[p] = entry

    def share_memory(self) -> None:
        """Makes the state now, in memory that processes share: they then step with common statistics (A3C)."""
        self.init_state()
        for p in itertools.chain.from_iterable(group["params"] for group in self.param_groups):
            for value in self.state[p].values():
                if isinstance(value, Tensor):
                    local(value).share_memory_()  # type: ignore[no-untyped-call]

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
        with self._turn:
            if param not in self._tables:
                return
            if indices is not None:
                indices = torch.as_tensor(indices, device=param.device).reshape(-1)
                if indices.is_floating_point() or indices.is_complex() or indices.dtype == torch.bool:
                    raise ValueError(f"indices are {indices.dtype}: expected integers")
                indices = indices.long().contiguous()
            rows.bring_up(self, param, indices)

    def flush(self) -> None:
        """Brings all rows of all parameters up to date; belongs before whole tables are read."""
        with self._turn:
            for p in list(self._tables):
                rows.bring_up(self, p)

    def state_dict(self) -> dict[str, Any]:
        """Torch's layout, all rows brought up to date; centered state has `square_avg`, for other libraries, too.

        With `state_shape="row"` it is this optimizer's alone: torch.optim.RMSprop expects a number for every entry.
        """
        self.flush()
        result = super().state_dict()
        result["state"] = {
            i: {**entry, "square_avg": square_avg(entry)} if isinstance(entry, dict) and "variance" in entry else entry
            for i, entry in result["state"].items()
        }
        return result

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes over a `state_dict` of this optimizer or of `torch.optim.RMSprop`; the state keeps its dtype.

        `state_shape` stays this optimizer's own, and the state must have it.
        Where both sides have parameter names, state goes to the parameter of its name, whatever the order.

        Raises:
            ValueError: other names or groups, or state of another shape, not finite, or negative where it cannot be;
                nothing has changed then.
        """
        final: list[dict[str, Any]] = []

        def prepare(_: Optimizer, given: dict[str, Any]) -> dict[str, Any]:
            final.append(loading.prepared(given, self.param_groups))
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
