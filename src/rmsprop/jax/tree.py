"""The transformation itself: reads the trees, checks their leaves, and steps them."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from rmsprop.jax import fused
from rmsprop.jax.options import Known
from rmsprop.jax.state import RMSpropState, field, slot_dtype
from rmsprop.jax.step import Leaf, scalars, step
from rmsprop.rule import Rule

#: What a step made of a leaf, and the number of entries it skipped or None.
Result = tuple[Leaf, Any]


class Table(NamedTuple):
    """The trees of one step, leaf by leaf.

    Attributes:
        rows: the arrays of each leaf.
        rules: the rule of each leaf: some may be masked from weight decay.
        names: of the leaves, for messages.
        structure: of the tree of gradients.
        k: the scalars of this step.
        made: steps made after it.
    """

    rows: list[Leaf]
    rules: list[Rule]
    names: list[str]
    structure: Any
    k: dict[str, Any]
    made: jax.Array


def init(known: Known, params: Any) -> RMSpropState:
    """The state before the first step."""

    def slot(letter: str) -> Any:
        start = known.numbers.get("initial_square", known.rule.initial_square) if letter == "v" else 0.0
        return jax.tree_util.tree_map_with_path(lambda path, p: _fresh(known, path, p, letter, start), params)

    trees = {field(name): slot(letter) for letter, name in known.rule.slots().items()}
    skipped = jnp.zeros([], jnp.int32) if known.rule.nonfinite == "skip" else None
    return RMSpropState(jnp.zeros([], jnp.int32), **trees, skipped=skipped)


def update(known: Known, sign: int, updates: Any, state: RMSpropState, params: Any) -> tuple[Any, RMSpropState]:
    """The `update` of optax, by XLA; `sign` is -1 if what it returns is to be added to the parameters."""
    table = _read(known, updates, state, params)
    done = [_by_xla(known, table, i) for i in range(len(table.rows))]
    moves = [row.g if row.g is None or sign > 0 else -row.g for row, _ in done]
    return table.structure.unflatten(moves), _written(state, table, done)


def new_params(known: Known, params: Any, state: RMSpropState, grads: Any) -> tuple[Any, RMSpropState]:
    """New parameters and state, by the native step where it can."""
    if params is None:
        raise ValueError("params: expected the parameters, got None")
    table = _read(known, grads, state, params)
    done: list[Result | None] = [None] * len(table.rows)
    for rows in _fused(known, table):
        leaves, skipped = fused.step([table.rows[i] for i in rows], table.k, table.rules[rows[0]])
        for i, leaf in zip(rows, leaves, strict=True):
            done[i] = (leaf, None)
        done.append((Leaf(None), skipped))
    whole = [_by_xla(known, table, i) if result is None else result for i, result in enumerate(done)]
    new = [result.p for result, _ in whole[: len(table.rows)]]
    return table.structure.unflatten(new), _written(state, table, whole)


def _read(known: Known, updates: Any, state: RMSpropState, params: Any) -> Table:
    if params is None and (why := _needs_params(known)):
        raise ValueError(f"{why} needs the parameters: call update(grads, state, params)")
    structure: Any
    named, structure = jax.tree_util.tree_flatten_with_path(updates, is_leaf=lambda x: x is None)
    trees = {"p": params} | {letter: getattr(state, field(name)) for letter, name in known.rule.slots().items()}
    columns = {letter: structure.flatten_up_to(tree) for letter, tree in trees.items() if tree is not None}
    names = ["updates" + jax.tree_util.keystr(path) for path, _ in named]
    leaves = [Leaf(g, **{x: column[i] for x, column in columns.items()}) for i, (_, g) in enumerate(named)]
    rows = [_checked(name, leaf) for name, leaf in zip(names, leaves, strict=True)]
    count = optax.safe_increment(state.count)
    k = scalars(known, state.count, count)
    return Table(rows, _rules(known, params, structure), names, structure, k, count)


def _checked(name: str, leaf: Leaf) -> Leaf:
    """The arrays of one parameter, which must fit together."""
    if leaf.g is None:
        return leaf
    arrays = Leaf(*(x if x is None else jnp.asarray(x) for x in leaf))
    g, p, v = arrays.g, arrays.p, arrays.v
    if v is None:
        raise ValueError(f"{name} has no state: expected None, as its parameter was at init")
    if not jnp.issubdtype(g.dtype, jnp.inexact) or (p is not None and jnp.iscomplexobj(g) != jnp.iscomplexobj(p)):
        raise ValueError(f"{name} has dtype {g.dtype}: expected {'floats' if p is None else f'one like {p.dtype}'}")
    if g.shape != v.shape or (p is not None and p.shape != v.shape):
        others = f"{v.shape}" if p is None else f"{v.shape}, and its parameter's, {p.shape}"
        raise ValueError(f"{name} has shape {g.shape}: expected its state's, {others}, to be the same")
    return arrays


def _rules(known: Known, params: Any, structure: Any) -> list[Rule]:
    if known.mask is None or not known.rule.weight_decay:
        return [known.rule] * structure.num_leaves
    without = known.rule.replace(weight_decay=0.0)
    mask = known.mask(params) if callable(known.mask) else known.mask
    spread = jax.tree.map(lambda on, below: jax.tree.map(lambda _: bool(on), below), mask, params)
    return [known.rule if on else without for on in structure.flatten_up_to(spread)]


def _by_xla(known: Known, table: Table, i: int) -> Result:
    row = table.rows[i]
    return (row, None) if row.g is None else step(row, table.k, table.rules[i], known.complex_as)


def _fused(known: Known, table: Table) -> list[list[int]]:
    """The leaves that the native step takes, those of one call together."""
    wanted = known.fused
    groups: dict[Any, list[int]] = {}
    why = fused.missing() if wanted is not False else "not wanted"
    if why and wanted:
        raise ValueError(f"fused=True: {why}")
    for i, row in enumerate(table.rows):
        if why or row.g is None:
            continue
        if not (unfit := fused.unfit(row)):
            groups.setdefault((table.rules[i], row.g.dtype), []).append(i)
        elif wanted:
            raise ValueError(f"fused=True: {table.names[i]} {unfit}")
    return [rows[i : i + fused.MOST] for rows in groups.values() for i in range(0, len(rows), fused.MOST)]


def _written(state: RMSpropState, table: Table, done: list[Result]) -> RMSpropState:
    """The state after a step."""
    leaves = [leaf for leaf, _ in done[: len(table.rows)]]
    slots = table.rules[0].slots() if table.rules else {}
    new = {field(name): table.structure.unflatten([getattr(x, s) for x in leaves]) for s, name in slots.items()}
    if state.skipped is not None:
        total = state.skipped + sum(n for _, n in done if n is not None)
        new["skipped"] = jnp.where(total < state.skipped, jnp.iinfo(jnp.int32).max, total)  # or the largest there is
    return state._replace(count=table.made, **new)


def _fresh(known: Known, path: Any, p: Any, letter: str, start: Any) -> jax.Array:
    """The state of one parameter before the first step, sharded like it."""
    given = jnp.result_type(p)
    if not jnp.issubdtype(given, jnp.inexact):
        name = jax.tree_util.keystr(path)
        raise ValueError(f"params{name} has dtype {given}: expected floats; optax.masked leaves others out")
    dtype = slot_dtype(given, letter, known.state_dtype, known.complex_as)
    if not isinstance(start, jax.Array) and start > float(jnp.finfo(dtype).max):
        raise ValueError(f"initial_scale={start}: expected a number that {dtype} can hold")
    both = 1 + 1j if jnp.issubdtype(dtype, jnp.complexfloating) else 1
    return jnp.full_like(p, start * both, dtype=dtype)


def _needs_params(known: Known) -> str:
    """The option that needs the parameters at `update`, or nothing."""
    names = [name for name in ("weight_decay", "clip_weights") if getattr(known.rule, name)]
    return f"{names[0]}={known.numbers.get(names[0], getattr(known.rule, names[0]))}" if names else ""
