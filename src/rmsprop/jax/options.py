"""The options of a transformation: optax's names and defaults, and the rule and numbers they make."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from rmsprop.dialects import dialect as dialect_rule
from rmsprop.rule import OptionError, Rule

#: How optax calls what the rule calls otherwise.
_OPTAX_NAMES = {"lr": "learning_rate", "beta": "decay", "epsilon": "eps", "initial_square": "initial_scale"}
_RULE_NAMES = {theirs: ours for ours, theirs in _OPTAX_NAMES.items()}
#: What stands for a number that is only known when the step runs.
_UNKNOWN = {"beta": 0.5, "momentum": 0.5}
_COMPLEX = ("modulus", "parts")


class Default:
    """A default in a signature: it gives way to a dialect's, and an equal value given by the caller does not.

    It is no number, or `optax.inject_hyperparams` would hand it on as if the caller had given it.
    """

    def __init__(self, value: object) -> None:
        self.value = value

    def __repr__(self) -> str:
        return repr(self.value)

    def __eq__(self, other: object) -> bool:
        return bool(self.value == (other.value if isinstance(other, Default) else other))

    def __hash__(self) -> int:
        return hash(self.value)


class Known(NamedTuple):
    """What the options amount to.

    Attributes:
        rule: the rule; it decides which state there is.
        numbers: options under the rule's names that are JAX arrays, in the place of the rule's numbers.
        schedule: learning rate by the number of steps made, or None.
        mask: where weight decay applies, or None for everywhere.
        state_dtype: of the state, or None.
        complex_as: "modulus" or "parts".
        fused: whether `step` is the native one: True, False, or None for wherever it can.
    """

    rule: Rule
    numbers: dict[str, jax.Array]
    schedule: Callable[[jax.Array], Any] | None
    mask: Any
    state_dtype: Any
    complex_as: str
    fused: bool | None


def known(
    *,
    learning_rate: Any,
    dialect: object,
    mask: Any,
    state_dtype: Any,
    complex_as: str,
    fused: bool | None = None,
    **options: Any,
) -> Known:
    """What the arguments of `rmsprop.jax.rmsprop` amount to; None and `Default` among them are the dialect's.

    Raises:
        ValueError: an option outside its range, or options that cannot be combined; in optax's names.
    """
    base = dialect_rule("optax" if dialect is None else dialect)
    schedule = learning_rate if callable(learning_rate) else None
    options["learning_rate"] = None if schedule else learning_rate
    given = {
        _RULE_NAMES.get(name, name): value
        for name, value in _with_epsilon_mode(options).items()
        if value is not None and not isinstance(value, Default)
    }
    arrays = {name: _number(name, x) for name, x in given.items() if isinstance(x, jax.Array)}
    try:
        now = {name: x for name, x in arrays.items() if not isinstance(x, jax.core.Tracer)}
        later = given | {name: _UNKNOWN.get(name, 1.0) for name in arrays}
        base.replace(**later | now)  # checks what can be known now
        rule = base.replace(**later)
    except OptionError as error:
        raise ValueError(f"{_optax(error.name)}={error.value!r}: expected {error.allowed}") from None
    if rule.nonfinite == "error":
        raise ValueError(
            "nonfinite='error': a compiled step cannot raise; expected 'propagate' or 'skip', or wrap the "
            "transformation in optax.apply_if_finite"
        )
    if complex_as not in _COMPLEX:
        raise ValueError(f"complex_as={complex_as!r}: expected one of {_COMPLEX}")
    if not (fused is None or isinstance(fused, bool)):
        raise ValueError(f"fused={fused!r}: expected True, False or None")
    return Known(rule, arrays, schedule, mask, _state_dtype(state_dtype), complex_as, fused)


def _optax(name: str) -> str:
    return _OPTAX_NAMES.get(name, name)


def _with_epsilon_mode(options: dict[str, Any]) -> dict[str, Any]:
    """`eps_in_sqrt` as the rule says it."""
    inside, mode = options.pop("eps_in_sqrt"), options["epsilon_mode"]
    if isinstance(inside, Default):
        return options
    if not isinstance(inside, bool):
        raise ValueError(f"eps_in_sqrt={inside!r}: expected True or False")
    if mode is not None:
        raise ValueError(f"eps_in_sqrt={inside} and epsilon_mode={mode!r}: expected one of them")
    return {**options, "epsilon_mode": "inside" if inside else "outside"}


def _state_dtype(dtype: Any) -> Any:
    if dtype is None:
        return None
    if jnp.dtype(dtype) not in (jnp.float32, jnp.float64):
        raise ValueError(f"state_dtype={dtype!r}: expected None, float32 or float64: in fewer bits the average stalls")
    return jnp.dtype(dtype)


def _number(name: str, x: jax.Array) -> jax.Array:
    """The array, in at least float32: 1 - decay has no digits left in 16 bits."""
    if x.ndim or not jnp.issubdtype(x.dtype, jnp.floating):
        raise ValueError(f"{_optax(name)} has shape {x.shape} and dtype {x.dtype}: expected one float")
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))
