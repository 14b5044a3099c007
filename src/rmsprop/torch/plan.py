"""What a step is about to do: for every group its rule, its scalars, and the tensors that take part."""

from itertools import accumulate, chain
from operator import attrgetter, is_
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from rmsprop.kernels import cpu
from rmsprop.kernels.rows import Table
from rmsprop.torch.options import Known, coefficients, left_to_lists
from rmsprop.torch.rows import bring_up
from rmsprop.torch.shards import is_zero
from rmsprop.torch.state import State, fresh

if TYPE_CHECKING:
    from rmsprop.torch.stateful import Stateful

_GRAD = attrgetter("grad")


def offsets(groups: list[dict[str, Any]]) -> list[list[int]] | None:
    """The index of each parameter's first element among all elements of the optimizer; None where nobody needs it."""
    for group in groups:
        if group["stochastic_rounding"] or group["state_dtype"] is torch.bfloat16:
            break
    else:
        return None
    sizes = [[p.numel() * (2 if p.is_complex() else 1) for p in group["params"]] for group in groups]
    starts = accumulate(chain.from_iterable(sizes), initial=0)
    return [[next(starts) for _ in own] for own in sizes]


class Part(NamedTuple):
    """Parameters that a step changes together or not at all, and what the first one's step counter was before it."""

    params: list[Tensor]
    state: State
    before: float | None

    def has_moved(self) -> bool:
        """Whether they have been stepped: counters move in the same call."""
        return _count(self.state) != self.before


def _count(state: State) -> float | None:
    try:
        return float(state["step"])
    except (KeyError, TypeError, ValueError, RuntimeError):
        return None  # the step itself says what is wrong with it


class Plan:
    """One step's work. Rules and state that are new are kept here, for the optimizer to take if the step succeeds.

    Attributes:
        work: one `cpu.Group` for each parameter group.
        known: what is known of each group's options.
        created: new state.
        stepped: the parameters that take part.
        tables: of these, those of which only some rows do, and the number of their group.
        parts: those that are stepped together; to be set before anything is written.
        is_whole: whether all parameters are still in it.
        for_lists: whether some group is not to be stepped by the kernel.
        scale: what the gradients have been multiplied by.
        loss: what the closure has returned.
    """

    def __init__(self, optimizer: "Stateful", scale: float = 1.0, loss: Any = None) -> None:
        groups = optimizer.param_groups
        self.known = dict(optimizer._known)
        self.created: dict[Tensor, State] = {}
        self.stepped: list[Tensor] = []
        self.tables: dict[Tensor, tuple[Table, int]] = {}
        self.parts: list[Part] = []
        self.is_whole = True
        self.for_lists = False
        self.scale, self.loss = scale, loss
        self._optimizer = optimizer
        self._state = optimizer.state
        self._keys, self._values, self._at = list(self._state), list(self._state.values()), 0
        self._offsets = offsets(groups)
        self.work = [self._group(i, group) for i, group in enumerate(groups)]

    def _group(self, i: int, group: dict[str, Any]) -> cpu.Group:
        params: list[Any] = group["params"]
        grads = list(map(_GRAD, params))
        states = self._states(params)
        values = self._optimizer._values(group, self.loss)
        if isinstance(values[0], Tensor):
            values = (float(values[0]), *values[1:])
        mine = self.known.get(i)
        is_new = mine is None or mine.values != values
        if mine is None or is_new:
            mine = self.known[i] = self._optimizer._family.known(values)
        if self._optimizer._tables:
            self._end_histories(params, mine)
        if is_new:
            states = [s and self._fresh(p, mine, s, group) for p, s in zip(params, states, strict=True)]
        try:
            special = any(map(Tensor.is_neg, grads))
        except TypeError:  # some are None
            special = True
        if special:
            grads = [g if g is None else g.resolve_neg() for g in grads]  # a lazy sign is not in the memory we read
        if not all(states):
            states = [
                s if s or g is None else self._fresh(p, mine, {}, group)
                for p, g, s in zip(params, grads, states, strict=True)
            ]
        self.stepped += [p for p, g in zip(params, grads, strict=True) if g is not None] if special else params
        self.for_lists |= left_to_lists(group)
        scalars, flags = mine.scalars, mine.flags
        if self.scale != 1:
            scalars, flags = coefficients(mine.rule, group, self.scale, mine.gamma)
        names, starts = group.get("param_names"), self._offsets[i] if self._offsets else None
        return cpu.Group(scalars, flags, params, grads, states, names, group["seed"], starts)

    def _end_histories(self, params: list[Tensor], mine: Known[Any]) -> None:
        """What was missed under another rule is made up for before there is another, or an average."""
        for p in params:
            table = self._optimizer._tables.get(p)
            if table is not None and (mine.gamma is not None or not table.missed.fits(mine.rule)):
                bring_up(self._optimizer, p)

    def _states(self, params: list[Any]) -> list[Any]:
        """The state of each parameter, or None.

        After a step of all parameters the state lists them in the groups' order, and comparing that takes less than
        half the time of looking up each, for torch hashes tensors in Python.
        """
        end = self._at + len(params)
        if end <= len(self._keys) and all(map(is_, params, self._keys[self._at : end])):
            states = self._values[self._at : end]
            self._at = end
            return states
        return list(map(self._state.get, params))

    def _fresh(self, p: Tensor, mine: Known[Any], state: State, group: dict[str, Any]) -> State:
        entry = fresh(p, mine.rule, state, group)
        if entry is not state:
            self.created[p] = entry
        return entry

    def part(self, params: list[Tensor]) -> Part:
        """Some of those that take part, as they are before the step."""
        state = (self.created.get(params[0]) or self._state.get(params[0], {})) if params else {}
        return Part(params, state, _count(state))

    def moved(self) -> bool:
        """Whether any part has been stepped."""
        return any(part.has_moved() for part in self.parts)

    def keep_moved(self) -> None:
        """Leaves nothing in the plan but the parts that have been stepped."""
        moved = [part for part in self.parts if part.has_moved()]
        if len(moved) < len(self.parts):
            self.is_whole = False
            self.stepped = [p for part in moved for p in part.params]
            self.created = {p: self.created[p] for p in self.stepped if p in self.created}
            self.tables = {p: self.tables[p] for p in self.stepped if p in self.tables}

    def only_asks_for_state(self) -> bool:
        """Whether this is a first step with lr 0 and gradients of 0, as torch.distributed.checkpoint makes them.

        A true step would count, and decay would enter the mean square (pytorch issue 164929).
        """
        if self._state or any(mine.rule.lr for mine in self.known.values()):
            return False
        return all(is_zero(g) for group in self.work for g in group.grads if g is not None)
