"""The step for tensors of all kinds: other devices, complex numbers, no kernel."""

from collections import defaultdict
from typing import Any, NamedTuple

import torch
from torch import Tensor

from rmsprop.kernels import cpu, lists
from rmsprop.rule import Rule
from rmsprop.torch.plan import Plan
from rmsprop.torch.state import State, dtype, is_slot, real


class Row(NamedTuple):
    """One parameter's part in a step, complex numbers as two real ones."""

    name: str
    p: Tensor
    g: Tensor
    state: State


@torch.no_grad()
def step(groups: list[dict[str, Any]], plan: Plan) -> int:
    """Everything is checked, then what the kernel can take goes there, and the rest to lists of tensors.

    Returns:
        The number of gradient entries skipped.
    """
    for_kernel: list[cpu.Group] = []
    for_lists: dict[Any, list[Row]] = defaultdict(list)
    for i, (group, work) in enumerate(zip(groups, plan.work, strict=True)):
        rule = plan.known[i].rule
        native: list[Row] = []
        for k, row in enumerate(_rows(work, i, rule)):
            p = row.p
            if p.device.type == "cpu" and cpu.native is not None and not group["foreach"]:
                native.append(row)
                continue
            if rule.nonfinite == "error" and not lists.is_usable(rule, p, row.g):
                raise FloatingPointError(f"{row.name}: its gradient, squared, is not finite")
            alone = k if group["foreach"] is False else None
            for_lists[i, p.dtype, p.device, int(row.state["step"]), alone].append(row)
        for_kernel.append((work[0], work[1], *_columns(native), [row.name for row in native]))
    skipped = cpu.step(for_kernel, torch.get_num_threads()) if cpu.native is not None else 0
    for (i, _, _, t, _), rows in for_lists.items():
        skipped += lists.step(plan.known[i].rule, t + 1, *_columns(rows))
        torch._foreach_add_([row.state["step"] for row in rows], 1)
    return skipped


def _columns(rows: list[Row]) -> tuple[list[Tensor], list[Tensor], list[State]]:
    return [row.p for row in rows], [row.g for row in rows], [row.state for row in rows]


def _rows(work: cpu.Group, number: int, rule: Rule) -> list[Row]:
    """The parameters of a group that have a gradient, with it and their state, as real tensors that fit."""
    _, _, params, grads, states, names = work
    rows = []
    for k, (p, g, state) in enumerate(zip(params, grads, states, strict=True)):
        if g is None:
            continue
        name = names[k] if names else f"parameter {k} of group {number}"
        _check_row(name, p, g, state, rule)
        slots = {key: real(value) if is_slot(key, value) else value for key, value in state.items()}
        rows.append(Row(name, real(p), real(g.resolve_conj()), slots))
    return rows


def _check_row(name: str, p: Tensor, g: Tensor, state: State, rule: Rule) -> None:
    if g.layout != torch.strided:
        raise RuntimeError(f"{name}: RMSprop does not support sparse gradients")
    if cpu.overlapping(p.stride(), p.shape, 1):
        raise ValueError(f"{name}: several elements of the parameter share memory")
    if not {"step", *rule.slots().values()} <= state.keys():
        raise ValueError(f"{name}: its state is incomplete")
    slots = {f"its {key}": value for key, value in state.items() if is_slot(key, value)}
    for what, x in {"its gradient": g, **slots}.items():
        expected = p.dtype if x is g else dtype(p)
        if x.shape != p.shape or x.dtype != expected or x.device != p.device:
            raise ValueError(
                f"{name}: {what} is {x.dtype} of shape {tuple(x.shape)} on {x.device}, "
                f"expected {expected} of shape {tuple(p.shape)} on {p.device}"
            )
