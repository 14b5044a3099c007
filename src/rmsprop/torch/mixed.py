"""The step for tensors of all kinds: other devices, complex, sparse or distributed tensors, no kernel."""

from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from rmsprop import averaging
from rmsprop.kernels import cpu, lists
from rmsprop.kernels.cpu import Sums
from rmsprop.kernels.rows import Rows
from rmsprop.rowwise import shape_of
from rmsprop.rprop import RpropRule
from rmsprop.rule import Rule
from rmsprop.torch import gpu
from rmsprop.torch.options import check_fused, left_to_lists, not_fused
from rmsprop.torch.plan import Plan
from rmsprop.torch.rows import Gathered
from rmsprop.torch.shards import aligned, local, start
from rmsprop.torch.state import State, dtype, is_slot, real


class Row(NamedTuple):
    """One parameter's part in a step, complex numbers as two real ones."""

    name: str
    p: Tensor
    g: Any  # a tensor or, for the kernel, `Rows`
    state: State
    offset: int | None
    place: int  # among the parameters that take part
    gathered: Gathered | None = None  # where p, g and state are some rows of a table


def step(
    groups: list[dict[str, Any]], plan: Plan, watched: bool, launch: Callable[[list[cpu.Group]], int]
) -> tuple[int, list[Sums]]:
    """Everything is checked, then what the kernel can take goes there, and the rest to lists of tensors.

    Args:
        groups, plan: the parameter groups, and what their step is.
        watched: whether somebody wants to know what was done.
        launch: makes the step of parameters on a GPU; returns the number of entries skipped.

    Returns:
        The number of gradient entries skipped and, if watched, what was done to each parameter.
    """
    for_kernel: dict[str, list[cpu.Group]] = defaultdict(list)  # by the kind of device
    for_lists: dict[Any, list[Row]] = defaultdict(list)
    places: dict[str, list[int]] = defaultdict(list)
    seen = 0
    for i, (group, work) in enumerate(zip(groups, plan.work, strict=True)):
        with torch.set_grad_enabled(group["differentiable"]):
            rows = _rows(work, i, plan.known[i].rule, group, seen)
        seen += len(rows)
        native: dict[str, list[Row]] = defaultdict(list)
        for row in rows:
            if _for_kernel(row, group) or (not watched and _for_gpu(row, group, plan.known[i].rule)):
                native[row.p.device.type].append(row)
            else:
                for_lists[i, *_shared(row, group, plan.known[i].rule)].append(row)
        for device, own in native.items():
            places[device] += [row.place for row in own]
            names, offsets = [row.name for row in own], [row.offset or 0 for row in own]
            for_kernel[device].append(cpu.Group(work.scalars, work.flags, *_columns(own), names, work.seed, offsets))
    calls = {key: _call(plan, key[0], groups[key[0]], key[-2]) for key in for_lists}
    for key, rows in for_lists.items():
        for row in rows:
            if calls[key].rule.nonfinite == "error" and not lists.is_usable(calls[key], row.p, row.g):
                raise FloatingPointError(f"{row.name}: its gradient, squared, is not finite")
    parts = *places.values(), *([row.place for row in rows] for rows in for_lists.values())
    plan.parts = [plan.part([plan.stepped[place] for place in part]) for part in parts]
    with averaging.uninterrupted():
        skipped, sums = _native_step(for_kernel.pop("cpu", []), places["cpu"], watched)
        skipped += sum(map(launch, for_kernel.values()))
        for key, rows in for_lists.items():
            skipped += _listed_step(calls[key], rows, sums if watched else None)
    return skipped, [sums[place] for place in sorted(sums)]


def _listed_step(call: lists.Call, rows: list[Row], sums: dict[int, Sums] | None) -> int:
    """One step of parameters that go through `lists.step` together; `sums` gets what was done to them."""
    before = [row.p.detach().clone() for row in rows] if sums is not None else []
    starts = None if rows[0].offset is None else [row.offset or 0 for row in rows]
    with torch.set_grad_enabled(call.differentiable):
        skipped = lists.step(call, *_columns(rows), starts)
    with torch.no_grad():
        torch._foreach_add_([row.state["step"] for row in rows], 1)
        for row in rows:
            if row.gathered is not None:
                row.gathered.state = row.state
                row.gathered.scatter()
        for row, old in zip(rows, before, strict=False):
            assert sums is not None
            sums[row.place] = lists.sums(call, old, row.p, row.g, row.state)
    return skipped


def _native_step(groups: list[cpu.Group], places: list[int], watched: bool) -> tuple[int, dict[int, Sums]]:
    """(entries skipped, what was done to the parameters at these places)."""
    if not places:
        return 0, {}
    if not watched:
        return cpu.step(groups, torch.get_num_threads()), {}
    sums = dict(zip(places, cpu.watched_step(groups, torch.get_num_threads()), strict=True))
    return sum(row.skipped for row in sums.values()), sums


def _shared(row: Row, group: dict[str, Any], rule: Rule | RpropRule) -> tuple[Any, ...]:
    """What parameters that go through `lists.step` together have in common; the last two: step, and who goes alone."""
    alone = row.place if group["foreach"] is False or group["differentiable"] else None
    v = row.state[rule.slots()["v"]]
    return row.p.dtype, row.p.device, v.dtype, v.shape == row.p.shape, int(row.state["step"]) + 1, alone


def _call(plan: Plan, i: int, group: dict[str, Any], t: int) -> lists.Call:
    engine = (group["seed"], group["stochastic_rounding"], group["differentiable"])
    return lists.Call(plan.known[i].rule, t, None, plan.scale, *engine, plan.known[i].gamma)


def _columns(rows: list[Row]) -> tuple[list[Tensor], list[Tensor], list[State]]:
    return [row.p for row in rows], [row.g for row in rows], [row.state for row in rows]


def _for_kernel(row: Row, group: dict[str, Any]) -> bool:
    """Whether the kernel takes this one, and is to."""
    if cpu.native is None or row.p.device.type != "cpu" or left_to_lists(group):
        return False
    if row.gathered is not None or isinstance(row.g, Rows):
        return row.gathered is None
    wide = row.p.dtype == torch.float64
    states = [value.dtype for key, value in row.state.items() if is_slot(key, value)]
    fits = all((x == torch.float64) == wide for x in states)
    return fits and row.g.dtype == row.p.dtype


def _for_gpu(row: Row, group: dict[str, Any], rule: Rule | RpropRule) -> bool:
    """Whether the kernel for GPUs takes this one, and is to."""
    if left_to_lists(group) or row.gathered is not None:
        return False
    p, slots = row.p, [value for key, value in row.state.items() if is_slot(key, value)]
    if not gpu.takes(p) or rule.nonfinite == "error" or not_fused(p, group["state_dtype"]) or row.g.dtype != p.dtype:
        return False
    return gpu.lie_alike(p, [row.g, *slots], row.offset is not None)


def _rows(work: cpu.Group, number: int, rule: Rule | RpropRule, group: dict[str, Any], first: int) -> list[Row]:
    """The parameters of a group that have a gradient, with it and their state, as real tensors that fit."""
    rows: list[Row] = []
    offsets: Sequence[int | None] = work.offsets or [None] * len(work.params)
    for k, (p, g, state, offset) in enumerate(zip(work.params, work.grads, work.states, offsets, strict=True)):
        if g is None:
            continue
        name = work.names[k] if work.names else f"parameter {k} of group {number}"
        if group["fused"]:
            check_fused(name, p, group["state_dtype"])
        if isinstance(g, Rows):
            begin = None if offset is None else offset + start(name, p)
            rows.append(_row_of_rows(name, g, p, state, rule, group, begin, first + len(rows)))
            continue
        g = aligned(g, p)  # noqa: PLW2901
        _check_row(name, p, g, state, rule, group)
        slots = {key: real(local(value)) if is_slot(key, value) else value for key, value in state.items()}
        begin = None if offset is None else offset + start(name, p)
        rows.append(Row(name, real(local(p)), real(local(g).resolve_conj()), slots, begin, first + len(rows)))
    return rows


def _row_of_rows(
    name: str, g: Rows, p: Tensor, state: State, rule: Any, group: dict[str, Any], begin: int | None, place: int
) -> Row:
    """A gradient of rows for the kernel, or the rows it touches as tensors of their own."""
    here, kept = local(p).detach(), {key: local(value) for key, value in state.items()}
    if _kernel_takes(here, g, kept, group):
        return Row(name, here, g, kept, begin, place)
    if group["stochastic_rounding"] or group["state_dtype"] == torch.bfloat16:
        raise ValueError(f"{name}: random rounding of some rows needs the kernel; expected sparse='dense'")
    found = Gathered(name, g, p, state, rule)
    assert found.g is not None
    if found.g.shape != found.p.shape:
        raise ValueError(f"{name}: its gradient's values are {tuple(g.values.shape)}, rows are {tuple(p.shape[1:])}")
    return Row(name, found.p, found.g, found.state, None, place, found)


def _kernel_takes(p: Tensor, g: Rows, state: State, group: dict[str, Any]) -> bool:
    if p.device.type != "cpu" or not_fused(p, group["state_dtype"]) or p.is_complex():
        return False
    if group["foreach"] or group["fused"] is False:
        return False
    slots = [value for key, value in state.items() if is_slot(key, value)]
    contiguous = all(x.is_contiguous() for x in (p, *slots))
    return contiguous and g.values.dtype == p.dtype and len({x.dtype for x in slots}) == 1


def _check_row(name: str, p: Tensor, g: Tensor, state: State, rule: Rule | RpropRule, group: dict[str, Any]) -> None:
    if cpu.overlapping(p.stride(), p.shape, 1):
        raise ValueError(f"{name}: several elements of the parameter share memory")
    names = rule.slots() | averaging.slots(averaging.gamma_of(group["averaging"]))
    if not {"step", *names.values()} <= state.keys():
        raise ValueError(f"{name}: its state is incomplete")
    if group["stochastic_rounding"] and p.dtype == torch.float16:
        raise ValueError(f"{name} is float16: stochastic_rounding is for bfloat16; expected it to be False")
    if group["differentiable"] and p.is_leaf and p.requires_grad:
        raise RuntimeError(f"{name} is a leaf that requires grad: a differentiable step needs one that is computed")
    slots = {f"its {key}": value for key, value in state.items() if is_slot(key, value)}
    for what, x in {"its gradient": g, **slots}.items():
        expected = p.dtype if x is g else dtype(p, group["state_dtype"])
        same_kind = x.is_complex() == p.is_complex() and x.is_floating_point() == p.is_floating_point()
        fits = same_kind if x is g else x.dtype == expected
        shape = shape_of(p.shape, group["state_shape"]) if what == "its square_avg" else tuple(p.shape)
        if x.shape != shape or not fits or x.device != p.device:
            raise ValueError(
                f"{name}: {what} is {x.dtype} of shape {tuple(x.shape)} on {x.device}, "
                f"expected {expected} of shape {shape} on {p.device}"
            )
