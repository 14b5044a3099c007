"""Gradients that touch some rows of a table, as a pair of arrays, under `jit` too."""

from functools import partial
from math import ceil, log
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from rmsprop.jax import tree
from rmsprop.jax.options import Known
from rmsprop.jax.state import RMSpropState, field
from rmsprop.jax.step import Leaf, scalars, step
from rmsprop.jax.transform import Transformation
from rmsprop.missed import catch_up, moves, refusal

#: Steps after which all rows are brought up to date, so that what is known of past learning rates stays small; or, as a
#: logarithm, so much decay.
HORIZON, _DECAYED = 1 << 14, -60.0
#: Below this, what a row's momentum still adds cannot be seen.
_NOTHING = 2.0**-80


class RowsState(NamedTuple):
    """The state of one table.

    Attributes:
        inner: that of `rmsprop.jax.rmsprop`, of the whole table; right for the rows that are up to date.
        last: int32, for every row the step it has taken last.
        start: int32, the step that all rows have taken.
        decayed: for every step since `start`, the logarithm of what decay has left of a weight; see `rmsprop.missed`.
        pull: for every such step, how far a momentum of 1 has moved a weight since; both None where rows move only if
            they are touched.
    """

    inner: RMSpropState
    last: Any
    start: Any
    decayed: Any = None
    pull: Any = None


class rows:  # noqa: N801 named as optax names what makes a transformation
    """Steps of a table, of which a gradient touches few rows, at the cost of these rows.

    The result is that of dense gradients: what rows miss is made up for when they are next touched. All methods are
    pure, and may be compiled with `jax.jit`; donate table and state, or XLA copies the table.

    Args:
        transformation: from `rmsprop.jax.rmsprop`: the rule, with any schedule of the learning rate.
        sparse: "exact", or "lazy": rows that are not touched wait (TensorFlow's rule).

    Raises:
        ValueError: a rule for which missed steps cannot be made up for (coupled weight decay, `clip_weights`), or whose
            `decay` or `momentum` is an array.

    Example:
        >>> import jax, jax.numpy as jnp, rmsprop.jax
        >>> optimizer = rmsprop.jax.rows(rmsprop.jax.rmsprop(0.1, momentum=0.9))
        >>> table = jnp.ones((1000, 2))
        >>> state = optimizer.init(table)
        >>> for indices in (jnp.array([1, 2]), jnp.array([3]), jnp.array([2, 1])):
        ...     table, state = optimizer.catch_up(table, state, indices)  # before they are read
        ...     table, state = optimizer.step(table, state, (indices, 2 * table[indices]))
        >>> table, state = optimizer.flush(table, state)  # before the whole table is read

    Source: `rmsprop.missed`.
    """

    def __init__(self, transformation: Transformation, sparse: str = "exact") -> None:
        if not isinstance(transformation, Transformation):
            raise TypeError(f"transformation: expected what rmsprop.jax.rmsprop returns, got {transformation!r}")
        if sparse not in ("exact", "lazy"):
            raise ValueError(f"sparse={sparse!r}: expected 'exact' or 'lazy'")
        self._known: Known = transformation._options
        self._exact = sparse == "exact"
        rule, numbers = self._known.rule, self._known.numbers
        if self._exact and (why := refusal(rule)):
            raise ValueError(why)
        if named := [name for name in ("beta", "momentum") if name in numbers]:
            raise ValueError(f"{named[0]} is an array: expected a number, whose powers are known")
        self._moves = self._exact and moves(rule)
        self._window = min(ceil(log(_NOTHING) / log(rule.momentum)), HORIZON) if rule.momentum else 0

    def init(self, table: Any) -> RowsState:
        """The state before the first step; `table` may be a `jax.ShapeDtypeStruct`.

        Raises:
            ValueError: no floats, or no dimensions.
        """
        if not table.ndim:
            raise ValueError("table: expected an array with rows, got one without dimensions")
        inner = tree.init(self._known, table)
        dtype = self._arithmetic(inner)
        history = (jnp.zeros(HORIZON + 1, dtype), jnp.zeros(HORIZON + 1, dtype)) if self._moves else (None, None)
        return RowsState(inner, jnp.zeros(table.shape[0], jnp.int32), jnp.zeros([], jnp.int32), *history)

    def step(self, table: Any, state: RowsState, gradient: tuple[Any, Any]) -> tuple[Any, RowsState]:
        """New table and state after a step.

        Args:
            table, state: nothing is written that is not donated.
            gradient: (indices, values): integers in one dimension, and for each a row of gradient. What belongs to one
                row is summed. Rows that the table does not have raise an IndexError, or are left out where the
                indices are traced.

        Raises:
            ValueError: indices or values of another dtype or shape than can be; the error names it.
        """
        indices, values = gradient
        indices = _checked(indices, len(table))
        values = jnp.asarray(values)
        if values.shape != (*indices.shape, *table.shape[1:]) or not jnp.issubdtype(values.dtype, jnp.inexact):
            expected = (*indices.shape, *table.shape[1:])
            raise ValueError(f"values have dtype {values.dtype} and shape {values.shape}: expected floats, {expected}")
        if self._moves:
            table, state = self._with_room(table, state)
        touched, place = jnp.unique(indices, return_inverse=True, size=len(indices), fill_value=len(table))
        wide = values.astype(jnp.promote_types(values.dtype, jnp.float32))
        g = jnp.zeros_like(wide).at[place.reshape(-1)].add(wide)
        leaf = self._gathered(table, state, touched)
        count = state.inner.count + 1
        k = scalars(self._known, state.inner.count, count)
        new, skipped = step(leaf._replace(g=g), k, self._known.rule, self._known.complex_as)
        table, state = self._scattered(table, state, touched, new, count)
        inner = state.inner._replace(count=count)
        if skipped is not None:
            inner = inner._replace(skipped=inner.skipped + skipped)
        state = state._replace(inner=inner)
        return table, self._remembered(state, k) if self._moves else state

    def catch_up(self, table: Any, state: RowsState, indices: Any) -> tuple[Any, RowsState]:
        """Table and state with these rows brought up to date, of which some may be the same."""
        if not self._exact:
            return table, state
        touched = jnp.unique(_checked(indices, len(table)), size=jnp.size(indices), fill_value=len(table))
        return self._scattered(table, state, touched, self._gathered(table, state, touched), state.inner.count)

    def flush(self, table: Any, state: RowsState) -> tuple[Any, RowsState]:
        """Table and state with all rows brought up to date."""
        if not self._exact:
            return table, state
        every = jnp.arange(len(table))
        table, state = self._scattered(table, state, every, self._gathered(table, state, every), state.inner.count)
        state = state._replace(start=state.inner.count)
        if self._moves:
            state = state._replace(decayed=jnp.zeros_like(state.decayed), pull=jnp.zeros_like(state.pull))
        return table, state

    def _arithmetic(self, inner: RMSpropState) -> Any:
        v = getattr(inner, field(self._known.rule.slots()["v"]))
        return jnp.promote_types(jnp.finfo(v.dtype).dtype, jnp.float32)

    def _with_room(self, table: Any, state: RowsState) -> tuple[Any, RowsState]:
        """All rows brought up to date where no more steps can be remembered."""
        n = state.inner.count - state.start
        full = (n >= HORIZON) | (state.decayed[n] < _DECAYED)
        new: tuple[Any, RowsState] = jax.lax.cond(full, self.flush, lambda *same: same, table, state)
        return new

    def _remembered(self, state: RowsState, k: dict[str, Any]) -> RowsState:
        """The history with one step more; `Missed.add`, with logarithms for the sake of float32."""
        dtype, n = state.decayed.dtype, state.inner.count - state.start
        decayed = state.decayed[n - 1] + jnp.log1p(-jnp.asarray(k["decoupled"], dtype))
        state = state._replace(decayed=state.decayed.at[n].set(decayed))
        if not self._window:
            return state
        ages = jnp.arange(1, self._window + 1)
        weights = jnp.exp(ages * log(self._known.rule.momentum)).astype(dtype)
        at = jnp.where(ages <= n, n - ages, HORIZON + 1)
        grown = jnp.asarray(k["c2"], dtype) * jnp.exp(-decayed) * weights
        return state._replace(pull=state.pull.at[at].add(grown, mode="drop"))

    def _gathered(self, table: Any, state: RowsState, touched: Any) -> Leaf:
        """These rows, brought up to date; whatever for those that do not exist."""
        slots = self._known.rule.slots()
        take = partial(jnp.take, indices=touched, axis=0, mode="clip")
        leaf = Leaf(None, take(table), **{s: take(getattr(state.inner, field(name))) for s, name in slots.items()})
        if not self._exact:
            return leaf
        dtype, rule = self._arithmetic(state.inner), self._known.rule
        s, n = take(state.last) - state.start, state.inner.count - state.start
        age = (n - s).astype(dtype)
        faded = age * (log(rule.beta) if rule.beta else -jnp.inf)
        faded = jnp.where(age == 0, 0.0, faded)
        factors = {"fade": jnp.exp(faded), "rest": -jnp.expm1(faded), "lost": 0.0, "moved": 0.0, "kept": 0.0}
        if self._moves:
            factors["lost"] = -jnp.expm1(state.decayed[n] - state.decayed[s])
            factors["moved"] = jnp.exp(state.decayed[n]) * state.pull[s]
            factors["kept"] = jnp.exp(age * log(rule.momentum)) if rule.momentum else 0.0
        shape = (-1, *(1,) * (table.ndim - 1))
        factors = {key: jnp.reshape(x, shape) if jnp.ndim(x) else x for key, x in factors.items()}
        flags = {key: on for key, on in rule.flags().items() if key != "skip"}
        arrays = [0.0 if x is None else x.astype(jnp.promote_types(x.dtype, dtype)) for x in leaf[1:]]
        given: dict[str, Any] = {**factors, **flags, "tiny": float(jnp.finfo(dtype).tiny), "where": jnp.where}
        new = catch_up(*arrays, **given)
        return Leaf(None, *(x if x is None else y.astype(x.dtype) for x, y in zip(leaf[1:], new, strict=True)))

    def _scattered(self, table: Any, state: RowsState, touched: Any, leaf: Leaf, count: Any) -> tuple[Any, RowsState]:
        """Table and state with these rows, as having taken `count` steps."""

        def put(whole: Any, part: Any) -> Any:
            return whole.at[touched].set(part.astype(whole.dtype), mode="drop")

        slots = {field(name): getattr(leaf, s) for s, name in self._known.rule.slots().items()}
        inner = state.inner._replace(**{name: put(getattr(state.inner, name), x) for name, x in slots.items()})
        last = state.last.at[touched].set(count, mode="drop")
        return put(table, leaf.p), state._replace(inner=inner, last=last)


def _checked(indices: Any, height: int) -> jax.Array:
    """The indices, of which those outside the table become `height` where they are traced."""
    indices = jnp.asarray(indices)
    if indices.size == 0 and not jnp.issubdtype(indices.dtype, jnp.integer):
        indices = indices.astype(jnp.int32)
    if indices.ndim != 1 or not jnp.issubdtype(indices.dtype, jnp.integer):
        raise ValueError(
            f"indices have dtype {indices.dtype} and shape {indices.shape}: expected integers in one dimension"
        )
    outside = (indices < 0) | (indices >= height)
    if not isinstance(indices, jax.core.Tracer) and outside.any():
        raise IndexError(f"row index {int(indices[outside][0])}: expected 0 to {height - 1}")
    return jnp.where(outside, height, indices)
