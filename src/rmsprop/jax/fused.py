"""The native step on a CPU: one call of XLA's for all parameters, in place where their buffers are donated.

It is `kernels/ffi.cpp`, which has the NumPy front end's bits. Everywhere else (other devices, `vmap`, derivatives) the
same function is XLA's own.
"""

import importlib
from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.custom_batching import custom_vmap

from rmsprop.jax.step import Leaf
from rmsprop.jax.step import step as xla_step
from rmsprop.kernels import cpu
from rmsprop.rule import Rule

_TARGET = "rmsprop_step"
_FLAGS = {"centered": 1, "momentum": 2, "skip": 4, "decay": 8}
#: Parameters of one call: XLA's time to compile one grows with their square (1,000: 20 s).
MOST = 64

Rows = Sequence[Leaf]


@lru_cache(maxsize=1)
def missing() -> str:
    """Why there is no native step in this process, or nothing."""
    if cpu.native is None:
        return cpu.NAME
    try:
        module = importlib.import_module(cpu.native.__name__.replace("_cpu", "_cpu_ffi"))
    except ImportError:
        return "rmsprop was installed without it"
    try:
        jax.ffi.register_ffi_target(_TARGET, module.step, platform="cpu")
        devices = len(jax.devices("cpu"))
    except Exception as error:  # what a later XLA says of a handler made for this one
        return str(error)
    return "" if devices == 1 else f"there are {devices} CPU devices, and it knows no sharding"


def unfit(row: Leaf) -> str:
    """Why the native step cannot take a parameter, or nothing."""
    kinds = {x.dtype for x in row if x is not None}
    if len(kinds) > 1 or not kinds <= {np.dtype("float32"), np.dtype("float64")}:
        return f"needs gradient, parameter and state of one dtype, float32 or float64, not {sorted(map(str, kinds))}"
    if any(getattr(jax.typeof(x), "vma", None) for x in row if x is not None):
        return "is inside shard_map"
    return ""


def step(rows: Rows, k: dict[str, Any], rule: Rule) -> tuple[Rows, Any]:
    """One step of parameters of one dtype.

    Args:
        rows: their arrays.
        k: `Rule.scalars`.
        rule: what `k` is of.

    Returns:
        New parameters and state, without `g`; and the number of entries skipped, None unless the rule skips any.
    """
    traced = {name: x for name, x in k.items() if isinstance(x, jax.Array)}
    fixed = tuple((name, x) for name, x in k.items() if name not in traced)
    new: tuple[Rows, Any] = _compiled(rule, fixed, tuple(k))(traced, list(rows))
    return new


@lru_cache(maxsize=256)
def _compiled(rule: Rule, fixed: tuple[tuple[str, float], ...], names: tuple[str, ...]) -> Callable[..., Any]:
    """The step of a rule as a function of traced scalars and arrays, the same object for the same rule."""

    def scalars(traced: dict[str, Any]) -> dict[str, Any]:
        both = {**dict(fixed), **traced}
        return {name: both[name] for name in names}

    def by_xla(traced: dict[str, Any], rows: Rows) -> tuple[Rows, Any]:
        done = [xla_step(row, scalars(traced), rule, "modulus") for row in rows]
        skipped = sum(n for _, n in done) if rule.nonfinite == "skip" else None
        return [row._replace(g=None) for row, _ in done], skipped

    def native(traced: dict[str, Any], rows: Rows) -> tuple[Rows, Any]:
        return _call(rule, scalars(traced), rows)

    def on_any_device(traced: dict[str, Any], rows: Rows) -> tuple[Rows, Any]:
        chosen: tuple[Rows, Any] = jax.lax.platform_dependent(traced, rows, cpu=native, default=by_xla)
        return chosen

    batched = custom_vmap(on_any_device)

    @batched.def_vmap
    def many(size: int, is_batched: Any, traced: dict[str, Any], rows: Rows) -> tuple[Any, Any]:
        axes = jax.tree.map(lambda x: 0 if x else None, is_batched)
        new = jax.vmap(by_xla, axes, axis_size=size)(traced, rows)
        return new, jax.tree.map(lambda _: True, new)

    differentiable = jax.custom_jvp(batched)
    differentiable.defjvp(partial(jax.jvp, by_xla))
    return jax.jit(differentiable, inline=True)


def _call(rule: Rule, k: dict[str, Any], rows: Rows) -> tuple[Rows, Any]:
    dtype = rows[0].g.dtype
    if any(isinstance(x, jax.Array) for x in k.values()):
        packed = jnp.stack([jnp.asarray(x, dtype) for x in k.values()])
    else:
        with np.errstate(over="ignore"):
            packed = jnp.asarray(np.array(list(k.values())).astype(dtype))
    flags = sum(_FLAGS[name] for name, on in rule.flags().items() if on)
    operands = [jnp.asarray(flags, jnp.int32), packed]
    results: list[jax.ShapeDtypeStruct] = []
    aliases: dict[int, int] = {}
    for row in rows:
        operands.append(row.g)
        for x in (row.p, row.v, row.m, row.b):
            if x is not None:
                aliases[len(operands)] = len(results)
                results.append(jax.ShapeDtypeStruct(x.shape, x.dtype))
                operands.append(x)
    if rule.nonfinite == "skip":
        results.append(jax.ShapeDtypeStruct((), jnp.int32))
    new = iter(jax.ffi.ffi_call(_TARGET, results, input_output_aliases=aliases)(*operands))
    done = [Leaf(None, *(x if x is None else next(new) for x in (row.p, row.v, row.m, row.b))) for row in rows]
    return done, next(new, None)
