"""The state of `optax.rmsprop`, as the tree itself or as its leaves by path: "[0].nu['dense']['kernel']".

optax's trace has the opposite sign of our buffer, for updates are added there. Source: optax 0.2.8, _src/alias.py
(rmsprop) and _src/transform.py (scale_by_rms, scale_by_stddev, trace).
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from rmsprop.checkpoint import slots
from rmsprop.checkpoint.form import Checkpoint, Group, array, match_names
from rmsprop.checkpoint.libraries import rule_of
from rmsprop.checkpoint.numpy import plain
from rmsprop.checkpoint.slots import Array, Entry
from rmsprop.checkpoint.torch import whole

_FIELDS = {"nu": "square_avg", "mu": "grad_avg", "trace": "momentum_buffer"}
_LEAF = re.compile(
    r"(?P<place>(?:\[\d+\]|\.inner_(?:opt_)?state|\.inner_states\[[^]]*\])*)\.(?P<field>\w+)(?P<path>.*)"
)


def leaves(state: Any) -> dict[str, Array]:
    """The leaves of an optax state by path, as `jax.tree_util.keystr` writes it."""
    import jax

    return {jax.tree_util.keystr(path): array(x) for path, x in jax.tree_util.tree_leaves_with_path(state)}


def from_optax(state: Any, *, step: int | None = None, strict: bool = True, **options: Any) -> Checkpoint:
    """Read the state of `optax.rmsprop`, alone or inside a chain.

    Parameters are called by their path in the tree: params["dense"]["kernel"] is dense.kernel.

    Args:
        state: the tree that `init` and `update` return, or its `leaves`.
        step: how many steps have been made, where no count in the tree tells (no bias correction, no schedule).
        strict: refuse state that no step could have left.
        **options: those given to `optax.rmsprop`, under its names or the rule's; `learning_rate` is that of the next
            step. `optax.inject_hyperparams` has left most of them in the state.

    Raises:
        ValueError: no state of rmsprop or several, an option that is missing, or does not fit the state; names it.

    Example:
        >>> import jax.numpy as jnp, optax
        >>> from rmsprop.checkpoint import from_optax
        >>> state = optax.rmsprop(0.1, momentum=0.9).init({"w": jnp.ones(3)})
        >>> sorted(from_optax(state, learning_rate=0.1, momentum=0.9).state["w"])
        ['momentum_buffer', 'square_avg', 'step']
    """
    found = state if _is_flat(state) else leaves(state)
    columns, counts, settings = _parsed(found)
    names = list(columns["nu"])
    settings |= {"centered": "mu" in columns, "bias_correction": "count" in columns}
    _expect_same(options, settings, ("centered", "bias_correction"))
    if "trace" in columns and options.get("momentum", settings.get("momentum")) is None and strict:
        raise ValueError("momentum is not in the state, which has a trace: give momentum=... (0 if it had none)")
    if "trace" not in columns and options.get("momentum"):
        raise ValueError(f"momentum={options['momentum']!r}: the state has no trace; expected None")
    rule, notes = rule_of("optax", settings, options, strict=strict)
    if rule.centered and rule.bias_correction:
        raise ValueError("optax computes something else with centered and bias_correction together")
    if step is None and not counts:
        notes.append("optax has counted no steps here: step is 0")
    count = whole(max(counts, default=0) if step is None else step)
    entries: dict[str, Entry] = {name: {"step": count} for name in names}
    for field, slot in _FIELDS.items():
        for name, x in columns.get(field, {}).items():
            entries[name][slot] = -x if field == "trace" else x
    entries = {name: slots.of_rule(entry, rule) for name, entry in entries.items()}
    checkpoint = Checkpoint((Group(rule, tuple(names)),), entries, tuple(notes))
    return checkpoint.check() if strict else checkpoint


def _is_flat(state: Any) -> bool:
    return isinstance(state, Mapping) and bool(state) and all(isinstance(k, str) and _LEAF.fullmatch(k) for k in state)


def _parsed(found: Mapping[str, Any]) -> tuple[dict[str, dict[str, Array]], list[Any], dict[str, Any]]:
    """(leaves by field and parameter, step counts, injected options)."""
    columns: dict[str, dict[str, Array]] = {}
    places: dict[str, set[str]] = {}
    counts, settings = [], {}
    for key, value in found.items():
        match = _LEAF.fullmatch(key)
        place, field, path = match.groups() if match else ("", key, "")
        if field == "hyperparams":
            settings[plain(path)] = array(value).item()
        elif field == "count" and not path:
            counts.append((place, array(value).item()))
        elif field in _FIELDS:
            columns.setdefault(field, {})[plain(path)] = array(value)
            places.setdefault(field, set()).add(place)
    if "nu" not in columns:
        raise ValueError(f"no nu among {sorted(found)[:5]}: expected the state of optax.rmsprop")
    for field, where in places.items():
        if len(where) > 1:
            raise ValueError(
                f"{field} at {sorted(where)}: expected one rmsprop; convert each part of a partition alone"
            )
        if columns[field].keys() != columns["nu"].keys():
            raise ValueError(f"{field} and nu have different parameters: expected one tree")
    (at,) = places["nu"]
    if at in [place for place, _ in counts]:
        columns["count"] = {}
    return columns, [value for _, value in counts], settings


def _expect_same(options: Mapping[str, Any], settings: Mapping[str, Any], names: Iterable[str]) -> None:
    for name in names:
        if name in options and bool(options[name]) != settings[name]:
            raise ValueError(f"{name}={options[name]!r}: the state was made with {name}={settings[name]}")


def to_optax(checkpoint: Checkpoint, state: Any) -> Any:
    """Write into a state of the same structure as `state`, from `optax.rmsprop(**options).init(params)`.

    `arguments(checkpoint.rule, "optax")` has the options. Leaves keep the dtype and placement of those in `state`; what
    is neither rmsprop's nor a count stays.

    Args:
        checkpoint: the source; all parameters must have one rule, and have been stepped.
        state: the tree, or its `leaves`; nothing is written to it.

    Raises:
        ValueError: optax cannot have the rule, or the state is that of other options or parameters.

    Warns:
        UserWarning: the momentum buffer had to be converted.
    """
    if _is_flat(state):
        return _filled(checkpoint, state)
    import jax
    import jax.numpy as jnp

    new = _filled(checkpoint, leaves(state))

    def place(path: Any, old: Any) -> Any:
        old = jnp.asarray(old)
        return jax.device_put(new[jax.tree_util.keystr(path)].astype(old.dtype), old.sharding)

    result: Any = jax.tree_util.tree_map_with_path(place, state)
    return result


def _filled(checkpoint: Checkpoint, old: Mapping[str, Any]) -> dict[str, Array]:
    checkpoint = checkpoint.written("optax")
    rule, entries = checkpoint.rule, dict(zip(checkpoint.names, checkpoint.stepped(), strict=True))
    columns, _, _ = _parsed(old)
    match_names(columns["nu"], entries)
    structure = {"centered": "mu" in columns, "bias_correction": "count" in columns, "momentum": "trace" in columns}
    for name, has in structure.items():
        if bool(getattr(rule, name)) != has:
            raise ValueError(
                f"state: made {'with' if has else 'without'} {name}, and the rule has {getattr(rule, name)}"
            )
    steps = {entry["step"] for entry in entries.values()}
    if rule.bias_correction and len(steps) > 1:
        raise ValueError(f"parameters at steps {sorted(steps)}: expected one count for all, which bias_correction uses")
    return {key: _leaf(key, array(x), entries, checkpoint.step) for key, x in old.items()}


def _leaf(key: str, old: Array, entries: Mapping[str, Entry], step: int) -> Array:
    match = _LEAF.fullmatch(key)
    field, path = (match["field"], match["path"]) if match else ("", "")
    if field == "count" and not path:
        return np.asarray(step, old.dtype)
    if field not in _FIELDS:
        return old
    entry = entries[plain(path)]
    if field == "nu":
        new = slots.square_avg(entry)
    else:
        new = entry["grad_avg"] if field == "mu" else -entry["momentum_buffer"]
    if new.shape != old.shape:
        raise ValueError(f"{plain(path)}: {_FIELDS[field]} has shape {new.shape}: expected {old.shape}")
    if new.dtype.kind != old.dtype.kind:
        raise ValueError(f"{plain(path)}: {_FIELDS[field]} is {new.dtype}: expected {old.dtype}; optax averages |g|^2")
    result: Array = new.astype(old.dtype)
    return result


def optax_leaves(checkpoint: Checkpoint) -> dict[str, Array]:
    """The leaves by path that `optax.rmsprop(**arguments(rule, "optax"))` would have for parameters in a flat dict."""
    rule, names = checkpoint.rule, checkpoint.names
    fields = ["nu", *["mu"] * rule.centered]
    empty = {f"[0].{field}[{name!r}]": checkpoint.state[name] for field in fields for name in names}
    empty |= {f"[2].trace[{name!r}]": checkpoint.state[name] for name in names if rule.momentum}
    zeros = {key: np.zeros_like(slots.square_avg(entry)) for key, entry in empty.items()}
    return _filled(checkpoint, {**({"[0].count": np.zeros((), np.int32)} if rule.bias_correction else {}), **zeros})
