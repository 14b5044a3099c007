"""Complex numbers for `rule.update`: an array of them as real numbers, along one more axis of two."""

import operator
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp


def parts(x: jax.Array) -> jax.Array:
    """Complex of shape s as real of shape (*s, 2)."""
    return jnp.stack([x.real, x.imag], axis=-1)


def whole(x: jax.Array) -> jax.Array:
    """The inverse of `parts`."""
    return jax.lax.complex(x[..., 0], x[..., 1])


class Pairs:
    """Real and imaginary parts, of shape (*s, 2), whose product with each other is Re(x y*), of shape (*s, 1).

    So `g * g` is |g|^2, one number for both parts; all else, comparisons too, is done part by part.
    """

    __slots__ = ("of",)

    def __init__(self, of: Any) -> None:
        self.of = of

    def __mul__(self, other: Any) -> Any:
        if isinstance(other, Pairs):
            return jnp.sum(self.of * other.of, axis=-1, keepdims=True)
        return Pairs(self.of * other)

    def __rmul__(self, other: Any) -> "Pairs":
        return Pairs(other * self.of)


def _bare(x: Any) -> Any:
    return x.of if isinstance(x, Pairs) else x


def _by_part(function: Callable[[Any, Any], Any], wrap: Callable[[Any], Any]) -> Callable[[Pairs, Any], Any]:
    return lambda a, b: wrap(function(a.of, _bare(b)))


for _name in ("__add__", "__sub__", "__truediv__"):
    setattr(Pairs, _name, _by_part(getattr(operator, _name), Pairs))
for _name in ("__lt__", "__gt__", "__eq__", "__ne__"):
    setattr(Pairs, _name, _by_part(getattr(operator, _name), _bare))


def where(condition: Any, a: Any, b: Any) -> Any:
    """`jnp.where` for arrays and pairs."""
    chosen = jnp.where(condition, _bare(a), _bare(b))
    return Pairs(chosen) if isinstance(a, Pairs) or isinstance(b, Pairs) else chosen
