"""The state of a transformation, and its form as a plain dict, which is the NumPy front end's."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rmsprop.rule import OPTIONS, Rule

_FORMAT = 1
#: The field for each name of `Rule.slots()`.
_FIELDS = {"square_avg": "nu", "variance": "variance", "grad_avg": "mu", "momentum_buffer": "trace"}


class RMSpropState(NamedTuple):
    """The state of `rmsprop.jax.rmsprop`, in optax's names; what the rule has no use for is None.

    Attributes:
        count: steps made, int32.
        nu: mean squares, as a tree like the parameters.
        variance: of the gradients, in the place of `nu` where the rule is centered.
        mu: mean gradients, where the rule is centered.
        trace: momentum buffers.
        skipped: how many gradient entries `nonfinite="skip"` has left alone so far, int32.
    """

    count: Any
    nu: Any = None
    variance: Any = None
    mu: Any = None
    trace: Any = None
    skipped: Any = None


def field(slot_name: str) -> str:
    """The field of `RMSpropState` that holds a slot of the rule."""
    return _FIELDS[slot_name]


def slot_dtype(given: Any, slot: str, wanted: Any, complex_as: str) -> Any:
    """The dtype of a parameter's state: what is wanted, else at least float32; |g|^2 is real."""
    real = jnp.finfo(given).dtype if wanted is None else wanted
    real = jnp.promote_types(real, jnp.float32)
    is_complex = jnp.issubdtype(given, jnp.complexfloating) and not (slot == "v" and complex_as == "modulus")
    return jnp.promote_types(real, jnp.complex64) if is_complex else real


def state_dict(state: RMSpropState, rule: Rule) -> dict[str, Any]:
    """The state as the NumPy front end's `state_dict()` has it, with NumPy arrays.

    Args:
        state: what `init` and `update` of `rmsprop.jax.rmsprop` return; inside a chain it is one of the entries.
        rule: the rule the state belongs to, for instance the one given as `dialect`.

    Raises:
        ValueError: the state is that of another rule.

    Example:
        >>> import jax.numpy as jnp, numpy as np, rmsprop, rmsprop.jax
        >>> rule = rmsprop.dialect("optax", lr=0.1, momentum=0.9)
        >>> state = rmsprop.jax.rmsprop(0.1, dialect=rule).init({"w": jnp.ones(3)})
        >>> saved = rmsprop.jax.state_dict(state, rule)
        >>> rmsprop.RMSprop({"w": np.ones(3, "f4")}).load_state_dict(saved)
    """
    columns = {}
    for name in rule.slots().values():
        if (tree := getattr(state, _FIELDS[name])) is None:
            raise ValueError(f"state: its {_FIELDS[name]} is None, but the rule keeps {name}")
        columns[name] = jax.tree_util.tree_leaves_with_path(jax.device_get(tree))
    step = int(state.count)
    rows = zip(*columns.values(), strict=True)
    entries = {
        _name(row[0][0]): {"step": step, **{key: x for key, (_, x) in zip(columns, row, strict=True)}} for row in rows
    }
    return {"format": _FORMAT, "rule": {name: getattr(rule, name) for name in OPTIONS}, "state": entries}


def load_state_dict(state: RMSpropState, saved: Mapping[str, Any]) -> RMSpropState:
    """A state with the numbers of a `state_dict`, and the structure, dtypes and shardings of the one given.

    Args:
        state: from `init`; nothing is written to it.
        saved: from `state_dict`, or from the NumPy front end's.

    Returns:
        A new state; `skipped` is that of `state`.

    Raises:
        ValueError: another format, other parameters, a slot that is missing or not wanted, another shape, numbers
            that are not finite or (v) negative, or parameters at different steps.
    """
    if saved.get("format") != _FORMAT:
        raise ValueError(f"saved: expected format={_FORMAT}, from state_dict()")
    entries = saved["state"]
    steps = {int(entry["step"]) for entry in entries.values()}
    if len(steps) > 1:
        raise ValueError(f"saved: parameters at steps {sorted(steps)}: here they share one count")
    slots = {name: key for name, key in _FIELDS.items() if getattr(state, key) is not None}
    for name, entry in entries.items():
        if entry.keys() != {"step", *slots}:
            raise ValueError(f"saved: {name} has {sorted(entry)}: expected {sorted({'step', *slots})}")
    trees = {key: _filled(getattr(state, key), name, entries) for name, key in slots.items()}
    return state._replace(count=jnp.asarray(max(steps, default=0), jnp.int32), **trees)


def _filled(tree: Any, slot: str, entries: Mapping[str, Any]) -> Any:
    names = {_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(tree)}
    if names != entries.keys():
        missing, unknown = sorted(names - entries.keys()), sorted(entries.keys() - names)
        raise ValueError(f"saved: missing {missing}, unknown {unknown}")

    def fill(path: Any, old: Any) -> Any:
        new = np.asarray(entries[name := _name(path)][slot])
        if new.shape != old.shape:
            raise ValueError(f"saved: {slot} of {name} has shape {new.shape}: expected {old.shape}")
        positive = slot in ("square_avg", "variance")
        if not np.isfinite(new).all() or (
            positive and (np.minimum(new.real, new.imag if np.iscomplexobj(new) else new) < 0).any()
        ):
            least = " of at least 0" if positive else ""
            raise ValueError(f"saved: {slot} of {name}: expected finite numbers{least}")
        return jax.device_put(new.astype(old.dtype), old.sharding)

    return jax.tree_util.tree_map_with_path(fill, tree)


def _name(path: Any) -> str:
    """As the NumPy front end calls a parameter: params['w'], params[0]."""
    return "params" + jax.tree_util.keystr(path)
