"""One step: `rule.update` for every leaf of a tree, and the scalars of a step whose number is traced."""

from functools import partial
from math import log
from operator import truediv
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from rmsprop.jax.options import Known
from rmsprop.jax.pairs import Pairs, parts, where, whole
from rmsprop.rule import Rule, update


class Steps:
    """A traced step number t for `Rule.scalars`, where 1 - beta**t keeps its digits in float32."""

    def __init__(self, t: jax.Array) -> None:
        self.t = t

    def __add__(self, more: int) -> "Steps":
        return Steps(self.t + more)

    def __rpow__(self, base: Any) -> "_Power":
        rate = jnp.log(base) if isinstance(base, jax.Array) else log(base) if base else -float("inf")
        return _Power(self.t.astype(jnp.result_type(float)) * rate)


class _Power:
    """exp(exponent), to be taken from 1."""

    def __init__(self, exponent: jax.Array) -> None:
        self.exponent = exponent

    def __rsub__(self, one: int) -> jax.Array:
        return one - 1 - jnp.expm1(self.exponent)


class Idle(float):
    """A coefficient that changes nothing, and so need not be compared with or multiplied by.

    XLA for CPUs does not fuse a root or a quotient that is used twice: with all comparisons a step takes three times
    as long.
    """

    def __neg__(self) -> "Idle":
        return self

    def __mul__(self, _: Any) -> "Idle":
        return self


def _where(condition: Any, a: Any, b: Any) -> Any:
    return b if isinstance(a, Idle) else where(condition, a, b)


class Leaf(NamedTuple):
    """The arrays of one parameter; None for what there is none of."""

    g: Any
    p: Any = None
    v: Any = None
    m: Any = None
    b: Any = None


def scalars(known: Known, made: jax.Array, count: jax.Array) -> dict[str, Any]:
    """Those of `Rule.scalars` for the step after which `count` steps are made."""
    numbers = dict(known.numbers)
    lr = numbers.pop("lr", None) if known.schedule is None else known.schedule(made)
    return known.rule.scalars(Steps(count), lr, **numbers)  # type: ignore[arg-type]


@partial(jax.jit, static_argnames=("rule", "complex_as"), inline=True)
def step(leaf: Leaf, k: dict[str, Any], rule: Rule, complex_as: str) -> tuple[Leaf, Any]:
    """One step of one parameter.

    Args:
        leaf: its arrays, of one shape.
        k: `Rule.scalars`.
        rule: what `k` is of.
        complex_as: "modulus" or "parts".

    Returns:
        The new arrays, with what is to be taken off the parameter in the place of `g`; and the number of entries
        skipped, None unless the rule skips any.
    """
    dtype = jnp.promote_types(_real(leaf.g), jnp.promote_types(_real(leaf.v), jnp.float32))
    finfo = jnp.finfo(dtype)
    pairs = jnp.iscomplexobj(leaf.g) and complex_as == "modulus"

    def entered(x: Any) -> Any:
        if x is None:
            return jnp.zeros((), dtype)
        if not jnp.iscomplexobj(x):
            return (x[..., None] if pairs else x).astype(dtype)
        both = parts(x).astype(dtype)
        return Pairs(both) if pairs else both

    def left(x: Any, like: Any) -> Any:
        if like is None:
            return None
        x = x.of if isinstance(x, Pairs) else x
        if jnp.iscomplexobj(like):
            x = whole(x)
        return (x[..., 0] if pairs and not jnp.iscomplexobj(like) else x).astype(like.dtype)

    k = {name: x.astype(dtype) if isinstance(x, jax.Array) else x for name, x in k.items()} | _idle(rule)
    given: dict[str, Any] = {**k, **rule.flags(), "tiny": float(finfo.tiny), "largest": float(finfo.max)}
    given |= {"sqrt": jnp.sqrt, "divide": truediv, "where": _where}
    p, g, *state = (entered(x) for x in (leaf.p, leaf.g, leaf.v, leaf.m, leaf.b))
    p1, move, v, m, b, used = update(p, g, *state, **given)
    if rule.clip_weights is not None:
        move = p - p1
    new = Leaf(left(move, leaf.g), left(p1, leaf.p), left(v, leaf.v), left(m, leaf.m), left(b, leaf.b))
    return new, jnp.sum(~used, dtype=jnp.int32) if rule.nonfinite == "skip" else None


def _idle(rule: Rule) -> dict[str, Idle]:
    """The coefficients of options that are off."""
    off = {
        "floor": rule.epsilon_mode != "floor",
        "variance_floor": rule.variance_floor == 0,
        "clip": rule.clip is None,
        "clip_weights": rule.clip_weights is None,
        "c3": rule.momentum > 0 and not rule.nesterov,
    }
    return {name: Idle() for name, is_off in off.items() if is_off}


def _real(x: jax.Array) -> Any:
    """The dtype of an array's real part."""
    return jnp.finfo(x.dtype).dtype
