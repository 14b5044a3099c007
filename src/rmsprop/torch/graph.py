"""The step as part of a graph: `torch.compile` traces this file, and CUDA graphs capture it.

The graph has one operator, `rmsprop::step_`, which calls the kernel; everything is checked there before it writes. For
what that does not take, and for complex numbers, which the compiler lets no operator write (torch 2.13), `rule.update`
itself is traced, one tensor after the other, and the compiler fuses it.

State, and rules from options, are made while tracing, by the functions marked `assume_constant_result`: they get
constants that the graph is guarded by, and are no part of it.
"""

import json
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple
from weakref import WeakValueDictionary

import torch
from torch import Tensor

from rmsprop import averaging
from rmsprop.kernels import cpu, lists
from rmsprop.rprop import RpropRule
from rmsprop.rule import Rule
from rmsprop.torch import captured, gpu
from rmsprop.torch.options import ENGINE, FAMILIES, distinct, left_to_lists, not_fused, plain
from rmsprop.torch.shards import aligned, local, start
from rmsprop.torch.state import real

if TYPE_CHECKING:
    from rmsprop.torch.stateful import Stateful

#: All optimizers by their number, which stands for them among constants.
OPTIMIZERS: "WeakValueDictionary[str, Stateful]" = WeakValueDictionary()
# Not lr, which is a tensor, nor what state has settled; and dynamo shows a graph capturable=True, true or not.
_ENGINE_TOLD = tuple(name for name in ENGINE if name not in ("state_dtype", "capturable"))


class Told(NamedTuple):
    """What the options of a group amount to, and all of them as text."""

    rule: Rule | RpropRule
    keys: tuple[str, ...]
    values: tuple[Any, ...]
    slots: tuple[str, ...]
    native: bool
    text: str
    gamma: float | None
    names: tuple[str, ...] = ()  # of the parameters, for messages


def step(optimizer: "Stateful") -> None:
    """One step of all groups."""
    _check(optimizer)
    _make_state(optimizer._number)
    operands: Any = ([], [], [], [])
    lrs, texts, counts, offsets, names, offset, device = [], [], [], [], [], 0, ""
    for number, group in enumerate(optimizer.param_groups):
        told, lr = _tell(optimizer._number, number), group["lr"]
        if any(group[name] != value for name, value in zip(told.keys, told.values, strict=True)):
            raise AssertionError  # never; to have compared them is what guards the graph by them
        rows = [p for p in group["params"] if p.grad is not None]
        states = [optimizer.state[p] for p in rows]
        own = (
            [_here(p) for p in rows],
            [_here(_gradient(p)) for p in rows],
            [_here(state[name]) for state in states for name in told.slots],
            [state["step"] for state in states],
        )
        starts, dithers = [], _dithers(group)
        for name, p in zip(told.names, group["params"], strict=True):
            if p.grad is not None:
                starts.append(offset + (start(name, p) if dithers and hasattr(p, "placements") else 0))
            offset += p.numel() * (2 if p.is_complex() else 1)
        if rows and not (told.native and _for_operator(told, group, own, device or str(rows[0].device))):
            if getattr(optimizer, "grad_scale", None) is not None or getattr(optimizer, "found_inf", None) is not None:
                raise RuntimeError("grad_scale, found_inf: in a graph only the kernel honours them")
            _traced(told, group, lr, starts, *own)
            continue
        if rows:
            device = str(rows[0].device)
        for whole, tensors in zip(operands, own, strict=True):
            whole.extend(tensors)
        lrs.append(lr if isinstance(lr, Tensor) else torch.tensor(lr, dtype=torch.float64))
        texts.append(told.text)
        counts.append(len(rows))
        offsets.extend(starts)
        names.extend([name for name, p in zip(told.names, group["params"], strict=True) if p.grad is not None])
    if names:
        scaling = getattr(optimizer, "grad_scale", None), getattr(optimizer, "found_inf", None)
        text = "\n".join(texts), "\n".join(names)
        torch.ops.rmsprop.step_(*operands, optimizer._skipped, lrs, *scaling, counts, offsets, *text, optimizer._number)


def _check(optimizer: "Stateful") -> None:
    if optimizer._watch is not None:
        raise RuntimeError("watch: a step in a graph gathers no statistics; stop with watch(every=0)")
    if any(group["differentiable"] for group in optimizer.param_groups):
        raise RuntimeError("differentiable=True: autograd does not follow a step in a graph")
    if any(group.get("variant") == "irprop+" for group in optimizer.param_groups):
        raise RuntimeError("variant='irprop+': a step in a graph cannot wait for the loss; expected another one")
    if any(group["state_shape"] == "row" for group in optimizer.param_groups):
        raise RuntimeError("state_shape='row': a step in a graph needs the state of every entry, state_shape='full'")


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _make_state(number: str) -> None:
    OPTIMIZERS[number].init_state()
    OPTIMIZERS[number]._opt_called = True  # which schedulers ask for


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _tell(optimizer: str, number: int) -> Told:
    group, family = OPTIMIZERS[optimizer].param_groups[number], OPTIMIZERS[optimizer]._family.name
    names = group.get("param_names") or [f"parameter {k} of group {number}" for k in range(len(group["params"]))]
    values = tuple([plain(group[x]) for x in _keys(family)])
    told = _told(family, (*values[:-1], distinct(values[-1])))
    return told._replace(values=values, names=tuple([x.replace("\n", " ") for x in names]))


def _for_operator(told: Told, group: dict[str, Any], own: Any, device: str) -> bool:
    """Whether the operator takes this group, whose operands are `own`, beside others on this device."""
    params, grads, state, steps = own
    if any(str(p.device) != device or not_fused(p, group["state_dtype"]) for p in params):
        return False
    compiling = torch.compiler.is_compiling()
    if compiling and any(p.is_complex() or (device != "cpu" and hasattr(p, "placements")) for p in group["params"]):
        return False
    if device == "cpu":
        return True
    if told.rule.nonfinite == "error" or len({t.device.type for t in steps}) > 1:
        return False
    if steps[0].device.type != ("cuda" if group["capturable"] else "cpu"):
        return False
    dithers, n = _dithers(group), len(told.slots)
    return all(
        gpu.lie_alike(p, [g, *state[n * i : n * i + n]], dithers) and g.dtype == p.dtype
        for i, (p, g) in enumerate(zip(params, grads, strict=True))
    )


def _dithers(group: Any) -> bool:
    return bool(group["stochastic_rounding"] or group["state_dtype"] == torch.bfloat16)


def _here(x: Any) -> Any:
    """Real numbers, and of a distributed tensor the part that is here; the compiler follows those itself."""
    return real(x if torch.compiler.is_compiling() else local(x))


def _gradient(p: Any) -> Any:
    is_part = hasattr(p, "placements") and not torch.compiler.is_compiling()
    return (aligned(p.grad, p) if is_part else p.grad).resolve_conj().resolve_neg()


def _keys(family: str) -> tuple[str, ...]:
    return (*FAMILIES[family].keys[1:], *_ENGINE_TOLD)


@lru_cache(maxsize=256)
def _told(family: str, values: tuple[Any, ...]) -> Told:
    keys, text = _keys(family), json.dumps([family, *values])
    options = dict(zip(keys, values, strict=True))
    rule = _rule(text, 0.0)
    native = not left_to_lists(options)
    gamma = averaging.gamma_of(options["averaging"])
    slots = rule.slots() | averaging.slots(gamma)
    return Told(rule, keys, values, tuple(slots.values()), native, text, gamma)


@lru_cache(maxsize=256)
def _rule(text: str, lr: float) -> Rule | RpropRule:
    family, options = FAMILIES[json.loads(text)[0]], _options(text)
    rule: Rule | RpropRule = family.known(family.values({**ENGINE, **options, "lr": lr})).rule
    return rule


@lru_cache(maxsize=256)
def _options(text: str) -> dict[str, Any]:
    family, *values = json.loads(text)
    return dict(zip(_keys(family), values, strict=True))


@torch.library.custom_op("rmsprop::step_", mutates_args=("params", "state", "steps", "skipped"))
def _step(
    params: list[Tensor],
    grads: list[Tensor],
    state: list[Tensor],
    steps: list[Tensor],
    skipped: Tensor,
    lrs: list[Tensor],
    grad_scale: Tensor | None,
    found_inf: Tensor | None,
    counts: list[int],
    offsets: list[int],
    texts: str,
    names: str,
    optimizer: str,
) -> None:
    """One native call for all groups, or one launch; nothing at all where `found_inf` is not 0."""
    on_device = bool(steps) and steps[0].device.type != "cpu"  # and then nothing may wait for it
    if not on_device and found_inf is not None and float(found_inf):
        return
    rows, slots, parts = iter(zip(params, grads, steps, offsets, names.split("\n"), strict=True)), iter(state), []
    for text, lr, count in zip(texts.splitlines(), lrs, counts, strict=True):
        rule, options = _rule(text, 0.0 if on_device else float(lr)), _options(text)
        scale = 1.0 if on_device or grad_scale is None else float(grad_scale)
        gamma = averaging.gamma_of(options["averaging"])
        scalars = cpu.coefficients(rule, scale, options["stochastic_rounding"], gamma=gamma)
        mine, own = [next(rows) for _ in range(count)], (rule.slots() | averaging.slots(gamma)).values()
        states = [{"step": t, **{name: next(slots) for name in own}} for _, _, t, *_ in mine]
        dense = [g.to_dense() if g.layout != torch.strided else g for _, g, *_ in mine]
        offset, called = [row[3] for row in mine], [row[4] for row in mine]
        work = cpu.Group(*scalars, [p for p, *_ in mine], dense, states, called, options["seed"], offset)
        parts += [captured.Part(rule, gamma, lr, work)] * bool(mine)
    if on_device:
        captured.step(parts, grad_scale, found_inf, gpu.launcher(OPTIMIZERS.get(optimizer)))
        return
    if gpu.is_capturing() and params[0].is_cuda:
        raise RuntimeError("a CUDA graph captures this step: expected capturable=True")
    whole = [part.work for part in parts]
    if params[0].device.type == "cpu":
        count = cpu.step(whole, torch.get_num_threads())
    else:
        assert cpu.native is not None
        with averaging.uninterrupted():
            count = cpu.native.launch(whole, gpu.launcher(OPTIMIZERS.get(optimizer)))
    if count:
        skipped += count


def _traced(told: Told, group: Any, lr: Any, starts: Any, params: Any, grads: Any, state: Any, steps: Any) -> None:
    """One group by `rule.update`, with scalars that are tensors; nothing may be copied to or from the device."""
    rule, names = told.rule, told.slots
    if rule.nonfinite != "propagate":
        raise RuntimeError(f"nonfinite={rule.nonfinite!r} in a graph needs the kernel; expected 'propagate'")
    lr = lr.double().reshape(()) if isinstance(lr, Tensor) else lr
    dithers = _dithers(group)
    for i, (p, g, t) in enumerate(zip(params, grads, steps, strict=True)):
        p, g, *slots = (_elements(x) for x in (p, g, *state[i * len(names) : (i + 1) * len(names)]))  # noqa: PLW2901
        engine = (group["seed"], group["stochastic_rounding"], False, told.gamma)
        call = lists.Call(rule, t.double() + 1, lr, 1.0, *engine)
        g = g.to_dense() if g.layout != torch.strided else g  # noqa: PLW2901
        lists.step(call, [p], [g], [dict(zip(names, slots, strict=True))], starts[i : i + 1] if dithers else None)
        t += 1  # noqa: PLW2901


def _elements(x: Tensor) -> Tensor:
    """One number as a list of one: what a graph writes to a float64 tensor of no dimensions is lost (torch 2.13)."""
    return x if x.ndim else x.view(1)
