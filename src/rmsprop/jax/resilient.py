"""Rprop, resilient backpropagation: `rprop` and `scale_by_rprop` for optax."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from rmsprop.jax.pairs import parts, whole
from rmsprop.rprop import RpropRule, update
from rmsprop.rule import OptionError

_OPTAX_NAMES = {
    "lr": "learning_rate",
    "etas": "(eta_minus, eta_plus)",
    "step_sizes": "(min_step_size, max_step_size)",
}


class RpropState(NamedTuple):
    """The state of `rmsprop.jax.rprop`, in optax's names.

    Attributes:
        step_sizes: one for each number, as a tree like the parameters.
        prev_updates: of the last step: the gradients or, in optax's dialect, what the next step takes off.
        loss: of the last step, where the variant is "irprop+".
    """

    step_sizes: Any
    prev_updates: Any
    loss: Any = None


def rprop(
    learning_rate: Any,
    eta_minus: Any = 0.5,
    eta_plus: Any = 1.2,
    min_step_size: Any = 1e-6,
    max_step_size: Any = 50.0,
    *,
    variant: str = "irprop-",
    dialect: str | None = None,
    maximize: bool | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Rprop with `optax.rprop`'s arguments, defaults and numbers, and this package's options.

    Only the signs of gradients count, so they must be those of all the data, not of mini-batches. `init` and `update`
    are pure and work on any tree; `update` goes on from a state of optax's `rprop` too. Updates have the dtype of
    their gradients; the state has at least float32, whatever the gradients' dtype, and arithmetic likewise. Complex
    numbers count as two real ones. A gradient that is None leaves its state alone.

    Args:
        learning_rate: the first step size of every weight, at least 0.
        eta_minus, eta_plus: what a step size is multiplied by where the sign has changed, in (0, 1), and where it has
            stayed, above 1.
        min_step_size, max_step_size: limits of the step sizes, 0 <= min <= max.
        variant: "irprop-" (optax's), "rprop-", "rprop+" or "irprop+", as in `rmsprop.rprop.RpropRule`. "irprop+" needs
            the loss: `update(grads, state, params, value=loss)`.
        dialect: "optax" has optax's numbers, in float32 and float64 to the last bit, and with them its fault: each
            step is taken one step late. "torch" is without it. None is "optax" with variant "irprop-", which is all
            that optax has, and otherwise "torch".
        maximize: climb instead of descend; None is False.

    All numbers may be JAX arrays, traced ones too (`optax.inject_hyperparams`); the range of a traced one is not
    checked.

    Raises:
        ValueError: an option outside its range, or options that cannot be combined; by `update`, a missing loss.

    Example:
        >>> import jax, jax.numpy as jnp, optax, rmsprop.jax
        >>> optimizer = rmsprop.jax.rprop(0.01, variant="irprop+")
        >>> w = jnp.array([1.0, -200.0])
        >>> state = optimizer.init(w)
        >>> for _ in range(100):
        ...     loss, grads = jax.value_and_grad(lambda w: w @ w)(w)
        ...     updates, state = optimizer.update(grads, state, w, value=loss)
        ...     w = optax.apply_updates(w, updates)
        >>> bool(abs(w).max() < 1e-3)
        True

    Source: optax 0.2.8, optax/_src/alias.py (rprop); C. Igel and M. Hüsken, Neurocomputing 50, 2003.
    """
    return optax.chain(scale_by_rprop(**locals()), optax.scale(-1.0))


def scale_by_rprop(
    learning_rate: Any,
    eta_minus: Any = 0.5,
    eta_plus: Any = 1.2,
    min_step_size: Any = 1e-6,
    max_step_size: Any = 50.0,
    *,
    variant: str = "irprop-",
    dialect: str | None = None,
    maximize: bool | None = None,
) -> optax.GradientTransformationExtraArgs:
    """The direction of `rprop` alone, for `optax.chain`: what is to be taken off, without the minus."""
    numbers = {"shrink": eta_minus, "grow": eta_plus, "least": min_step_size, "most": max_step_size}
    traced = {name: x for name, x in numbers.items() if isinstance(x, jax.core.Tracer)}
    known = {"shrink": 0.5, "grow": 1.2, "least": 0.0, "most": float("inf")}
    known |= {name: x for name, x in numbers.items() if name not in traced}
    try:
        rule = RpropRule(
            0.0 if isinstance(learning_rate, jax.core.Tracer) else learning_rate,
            (known["shrink"], known["grow"]),
            (known["least"], known["most"]),
            variant,
            dialect or ("optax" if variant == "irprop-" else "torch"),
            False if maximize is None else maximize,
        )
    except OptionError as error:
        name = _OPTAX_NAMES.get(error.name, error.name)
        raise ValueError(f"{name}={error.value!r}: expected {error.allowed}") from None
    needs_loss = rule.variant == "irprop+"
    flags = (rule.replace(variant="rprop+") if needs_loss else rule).flags()

    def init(params: Any) -> RpropState:
        sizes = jax.tree.map(lambda p: _full(p, learning_rate), params)
        return RpropState(sizes, jax.tree.map(lambda p: _full(p, 0), params), _no_loss() if needs_loss else None)

    def update_tree(updates: Any, state: Any, params: Any = None, *, value: Any = None, **_: Any) -> Any:
        structure: Any
        leaves, structure = jax.tree.flatten(updates, is_leaf=lambda x: x is None)
        columns = [structure.flatten_up_to(tree) for tree in (state.step_sizes, state.prev_updates)]
        now: dict[str, Any] = flags
        loss = getattr(state, "loss", None)  # optax's own state has none
        if needs_loss:
            if value is None:
                raise ValueError("variant='irprop+': expected update(grads, state, params, value=loss), got no value")
            previous_loss = _no_loss() if loss is None else loss
            loss = jnp.asarray(value).astype(previous_loss.dtype)
            now = flags | {"back": loss < previous_loss if rule.maximize else loss > previous_loss}
        scalars = rule.scalars() | traced
        rows = [_step(g, s, q, scalars, now) for g, s, q in zip(leaves, *columns, strict=True)]
        moves, sizes, previous = (structure.unflatten([row[i] for row in rows]) for i in range(3))
        if not needs_loss:
            return moves, state._replace(step_sizes=sizes, prev_updates=previous)  # of optax's type where it was
        return moves, RpropState(sizes, previous, loss)

    return optax.GradientTransformationExtraArgs(init, update_tree)


def _no_loss() -> jax.Array:
    """What a loss is compared with at the first step: NaN, from which none has risen."""
    return jnp.full((), jnp.nan, jnp.result_type(float))


def _full(p: Any, number: Any) -> jax.Array:
    """A state array of this number, which of a complex parameter are two."""
    dtype = jnp.promote_types(jnp.result_type(p), jnp.float32)
    both = 1 + 1j if jnp.issubdtype(dtype, jnp.complexfloating) else 1
    return jnp.full_like(p, number * both, dtype=dtype)


def _step(g: Any, s: Any, q: Any, scalars: dict[str, Any], flags: dict[str, Any]) -> tuple[Any, Any, Any]:
    """What is taken off one parameter, and its new state."""
    if g is None:
        return None, s, q
    like, is_complex = jnp.asarray(g), jnp.iscomplexobj(g)
    g, s, q = (parts(x) if is_complex else x for x in (like.astype(s.dtype), s, q))
    k = {name: jnp.asarray(x, s.dtype) for name, x in scalars.items()}
    new = update(jnp.zeros((), s.dtype), g, s, q, **k, **flags, where=jnp.where)[1:]
    move, s1, q1 = (whole(x) if is_complex else x for x in new)
    return move.astype(like.dtype), s1, q1
