"""Sparse gradients: what becomes of rows that a step does not touch, and rows on devices without a kernel."""

import warnings
import weakref
from collections.abc import Iterator
from itertools import chain
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.graph import increment_version
from torch.utils.hooks import RemovableHandle

from rmsprop.kernels import cpu
from rmsprop.kernels.rows import Rows, Table
from rmsprop.missed import catch_up as made_up
from rmsprop.missed import moves, refusal
from rmsprop.rule import Rule
from rmsprop.torch.options import coefficients
from rmsprop.torch.shards import local, rows_here
from rmsprop.torch.state import State, real

if TYPE_CHECKING:
    from rmsprop.torch.optimizer import RMSprop
    from rmsprop.torch.plan import Plan
    from rmsprop.torch.stateful import Stateful

#: What `cpu.step` raises for tensors that are not for the kernel.
NOT_NATIVE = (TypeError, RuntimeError, BufferError)


def any_sparse(plan: "Plan") -> bool:
    """Whether the step has a sparse gradient."""
    grads = chain.from_iterable(work.grads for work in plan.work)
    return any(isinstance(g, Tensor) and g.is_sparse for g in grads)


def take(plan: "Plan", optimizer: "Stateful") -> None:
    """Puts gradients of rows in the place of sparse ones, and brings up to date what is about to be stepped whole.

    Raises:
        ValueError: a rule for which rows that are not touched cannot be made up for.
    """
    for i, (group, work) in enumerate(zip(optimizer.param_groups, plan.work, strict=True)):
        rule = plan.known[i].rule
        for k, (p, g) in enumerate(zip(work.params, work.grads, strict=True)):
            if g is None:
                continue
            table = optimizer._tables.get(p)
            waits = group["sparse"] != "dense" and not group["differentiable"]
            rows = None if not waits else _rows(_name(group, i, k), g, p)
            if rows is not None and plan.known[i].gamma is not None:
                raise ValueError(
                    f"{_name(group, i, k)}: with averaging={group['averaging']!r} a sparse gradient cannot leave rows "
                    f"waiting (sparse={group['sparse']!r}); expected sparse='dense', or averaging=False"
                )
            if rows is not None and group["sparse"] == "lazy":
                work.grads[k] = Rows(*rows)
            elif rows is not None and _is_made_up_for(_name(group, i, k), rule, p, optimizer):
                step = int(work.states[k]["step"])
                table = table or Table(
                    torch.full((len(local(p)),), step, dtype=torch.int32, device=p.device), rule, step
                )
                plan.tables[p] = table, i
                work.grads[k] = table.gradient(*rows, strict=not _is_distributed())
            elif table is not None:
                bring_up(optimizer, p)


def _is_made_up_for(name: str, rule: Rule, p: Tensor, optimizer: "Stateful") -> bool:
    """Whether rows that are not touched may wait, or the whole table is to be stepped."""
    if why := refusal(rule):
        raise ValueError(f"{name}: {why}")
    if not moves(rule) or p in optimizer._attached:
        return True
    if not optimizer._has_warned:
        warnings.warn(
            f"{name}: with momentum or weight decay, rows move that no gradient touches, so each step passes over the "
            "whole table; attach() its embedding, or call catch_up() before rows are read, and they wait until then",
            stacklevel=2,
        )
        optimizer._has_warned = True
    return False


def bring_up(optimizer: "Stateful", p: Tensor, indices: Tensor | None = None) -> None:
    """Brings rows of a table up to date, or all, which then is one no longer."""
    table, state = optimizer._tables[p], optimizer.state[p]
    group, name = next(_find(optimizer, p))
    if indices is not None:
        _, indices = _here(name, indices, p)
        if not (table.last[_inside(name, indices, len(table.last))] < table.missed.start + table.missed.length).any():
            return
    behind = table.behind(indices)
    try:
        if cpu.native is None:
            raise RuntimeError(cpu.NAME)
        part = {key: local(value) for key, value in state.items()}
        scalars = coefficients(table.missed.rule, group)
        work = cpu.Group(*scalars, [local(p).detach()], [behind], [part], [name], group["seed"])
        cpu.step([work], torch.get_num_threads())
    except NOT_NATIVE:
        with torch.no_grad():
            Gathered(name, behind, p, state, table.missed.rule).scatter()
    if moves(table.missed.rule):
        increment_version([p])
    if indices is None:
        del optimizer._tables[p]


def _find(optimizer: "Stateful", p: Tensor) -> Iterator[tuple[dict[str, Any], str]]:
    """The group of a parameter, and its name."""
    for i, group in enumerate(optimizer.param_groups):
        for k, q in enumerate(group["params"]):
            if q is p:
                yield group, _name(group, i, k)


def _name(group: dict[str, Any], i: int, k: int) -> str:
    return str(group["param_names"][k]) if "param_names" in group else f"parameter {k} of group {i}"


def _is_distributed() -> bool:
    """Whether other processes may have read the rows: each brings up to date what it reads itself."""
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def _rows(name: str, g: Any, p: Any) -> tuple[Tensor, Tensor] | None:
    """Indices and values of a sparse gradient whose entries are whole rows; None for any other.

    Of a distributed table, the rows that are here: a sparse gradient is that of the whole table, the same everywhere.
    """
    if not g.is_sparse or g.sparse_dim() != 1:
        return None
    here, indices = _here(name, g._indices()[0], p)
    return indices, g._values()[here].contiguous()


def _here(name: str, indices: Tensor, p: Any) -> tuple[Any, Tensor]:
    """Which of these rows this process holds, and where."""
    if not hasattr(p, "placements"):
        return ..., indices
    _inside(name, indices, len(p))
    first, count = rows_here(name, p, "a sparse gradient")
    here = (indices >= first) & (indices < first + count)
    return here, indices[here] - first


def checked(indices: Any, p: Tensor) -> Tensor:
    """The indices in one dimension, if they are those of rows."""
    indices = torch.as_tensor(indices, device=p.device).reshape(-1)
    if indices.numel() and (indices.is_floating_point() or indices.is_complex() or indices.dtype == torch.bool):
        raise ValueError(f"indices are {indices.dtype}: expected integers")
    return _inside("catch_up", indices.long().contiguous(), len(p))


def _inside(name: str, indices: Tensor, height: int) -> Tensor:
    """The same indices, if they are those of rows."""
    if len(outside := indices[(indices < 0) | (indices >= height)]):
        raise IndexError(f"{name}: row index {int(outside[0])}: expected 0 to {height - 1}")
    return indices


class Handle(NamedTuple):
    """What undoes an `attach`."""

    hooks: tuple[RemovableHandle, ...]

    def remove(self) -> None:
        """The module reads its rows as they are again."""
        for hook in self.hooks:
            hook.remove()


class CatchUp:
    """Before a module reads rows, they are brought up to date; a copy of the module does without."""

    def __init__(self, optimizer: "RMSprop | None" = None) -> None:
        self._optimizer = weakref.ref(optimizer) if optimizer is not None else None

    def __reduce__(self) -> tuple[Any, ...]:
        return CatchUp, ()

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def __call__(self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """A forward pre-hook for `torch.nn.Embedding` and `EmbeddingBag`."""
        optimizer = self._optimizer() if self._optimizer is not None else None
        if optimizer is not None:
            optimizer.catch_up(module.weight, args[0] if args else kwargs["input"])

    def before_state_dict(self, module: Any, prefix: str, keep_vars: bool) -> None:
        """A pre-hook for `state_dict`."""
        optimizer = self._optimizer() if self._optimizer is not None else None
        if optimizer is not None:
            optimizer.catch_up(module.weight)

    def attached_to(self, module: Any) -> Handle:
        """Hooks both to a module."""
        forward = module.register_forward_pre_hook(self, with_kwargs=True)
        return Handle((forward, module.register_state_dict_pre_hook(self.before_state_dict)))


class Gathered:
    """The touched rows of a table as tensors of their own, brought up to date; `scatter` puts them back.

    Attributes:
        p, g, state: these rows, in which complex numbers are two real ones; g is None where there is no gradient.

    Raises:
        IndexError: an index outside the table.
        ValueError: a row that has missed steps, with `rows.strict`.
    """

    def __init__(self, name: str, rows: Rows, p: Tensor, state: State, rule: Rule) -> None:
        self._rows, self._p = rows, real(local(p).detach())
        self._kept = {key: real(local(state[key])) for key in rule.slots().values()}
        self.g = None
        if rows.indices is None:
            self._touched = torch.arange(len(self._p), device=p.device)
        else:
            self._touched, place = torch.unique(_inside(name, rows.indices, len(self._p)), return_inverse=True)
            if rows.values is not None:
                values = real(rows.values.resolve_conj())
                values = values.to(torch.promote_types(values.dtype, torch.float32))
                self.g = values.new_zeros((len(self._touched), *values.shape[1:])).index_add_(0, place, values)
        self.p = self._p[self._touched]
        self.state = {key: value[self._touched] for key, value in self._kept.items()} | {"step": state["step"]}
        if rows.last is not None and rows.missed is not None:
            self._catch_up(name, rule)

    def _catch_up(self, name: str, rule: Rule) -> None:
        missed, slots = self._rows.missed, rule.slots()
        assert missed is not None
        last = self._rows.last[self._touched]
        if self._rows.strict:
            missed.check(name, self._touched.cpu().numpy(), last.cpu().numpy())
        old = {letter: self.state[key] for letter, key in slots.items()}
        dtype = torch.promote_types(old["v"].dtype, torch.float32)
        shape = (-1, *(1,) * (self.p.ndim - 1))
        factors = {
            key: torch.as_tensor(value, dtype=dtype, device=last.device).reshape(shape)
            for key, value in missed.factors(last.cpu().numpy()).items()
        }
        flags = {key: value for key, value in rule.flags().items() if key != "skip"}
        given: dict[str, Any] = {**factors, **flags, "tiny": torch.finfo(dtype).tiny, "where": torch.where}
        arrays = {"p": self.p.to(dtype), **{x: old[x].to(dtype) if x in old else 0.0 for x in "vmb"}}
        new = made_up(**arrays, **given)
        self.p = new[0].to(self.p.dtype)
        self.state |= {key: new["pvmb".index(letter)].to(old[letter].dtype) for letter, key in slots.items()}

    def scatter(self) -> None:
        """Writes the rows back, as having taken the steps that the table has taken."""
        self._p[self._touched] = self.p
        for key, value in self._kept.items():
            value[self._touched] = self.state[key]
        if self._rows.last is not None:
            self._rows.last[self._touched] = int(self.state["step"])
