"""`rmsprop` and `scale_by_rmsprop` for optax: pure functions on trees of arrays, which XLA compiles."""

from collections.abc import Callable
from typing import Any

import optax

from rmsprop.jax import tree
from rmsprop.jax.options import Default, Known, known
from rmsprop.jax.state import RMSpropState
from rmsprop.rule import Rule

_DECAY, _EPS, _ZERO, _TRUE, _FALSE = Default(0.9), Default(1e-8), Default(0.0), Default(True), Default(False)


class Transformation(optax.GradientTransformationExtraArgs):  # type: ignore[misc]
    """What `rmsprop` returns: optax's pair of `init` and `update`, and `step`."""

    _options: Known

    def __new__(cls, options: Known) -> "Transformation":  # noqa: D102 a named tuple has no __init__
        self: Transformation = super().__new__(cls, *_functions(options, sign=-1))
        self._options = options
        return self

    def step(self, params: Any, state: RMSpropState, grads: Any) -> tuple[Any, RMSpropState]:
        """New parameters and state: `update` and `optax.apply_updates` in one, and faster on a CPU.

        There one native call makes the whole step, for float32 and float64 leaves, with the NumPy front end's bits;
        inside `jax.jit` with `params` and `state` donated it writes to their memory and takes none of its own. (JAX
        pairs donated arguments with results by their order, so a function should return them as it takes them.)

        Args:
            params, state, grads: as for `update`; nothing is written that is not donated.

        Example:
            >>> import jax, jax.numpy as jnp, rmsprop.jax
            >>> optimizer = rmsprop.jax.rmsprop(0.1)
            >>> w = jnp.array([1.0, -2.0])
            >>> step = jax.jit(optimizer.step, donate_argnums=(0, 1))
            >>> w, state = step(w, optimizer.init(w), 2 * w)
            >>> [round(float(x), 3) for x in w]
            [0.684, -1.684]
        """
        return tree.new_params(self._options, params, state, grads)


def rmsprop(
    learning_rate: Any,
    decay: Any = _DECAY,
    eps: Any = _EPS,
    initial_scale: Any = _ZERO,
    eps_in_sqrt: Any = _TRUE,
    centered: Any = _FALSE,
    momentum: Any = None,
    nesterov: Any = _FALSE,
    bias_correction: Any = _FALSE,
    *,
    dialect: str | Rule | None = None,
    epsilon_mode: str | None = None,
    momentum_form: str | None = None,
    weight_decay: Any = None,
    decay_mode: str | None = None,
    mask: Any = None,
    clip: Any = None,
    clip_weights: Any = None,
    variance_floor: Any = None,
    maximize: bool | None = None,
    nonfinite: str | None = None,
    state_dtype: Any = None,
    complex_as: str = "modulus",
    fused: bool | None = None,
) -> "Transformation":
    r"""RMSprop with `optax.rmsprop`'s arguments and defaults, and this package's options.

        v <- decay v + (1 - decay) g^2
        update = -learning_rate g / sqrt(v + eps)

    `init` and `update` are pure and work on any tree. Updates have the dtype of their gradients. The state has the
    structure and sharding of the parameters and at least float32, whatever the gradients' dtype; arithmetic likewise.
    A gradient that is None leaves its state alone.

    Args:
        learning_rate: at least 0; a number, an array, or a schedule of the number of steps made; None is the
            dialect's.
        decay: of the mean square, in [0, 1).
        eps: keeps the denominator from zero, at least 0.
        initial_scale: where the mean square starts, at least 0.
        eps_in_sqrt: sqrt(v + eps), or sqrt(v) + eps; `epsilon_mode` has more.
        centered: divide by the standard deviation instead. It is kept as a variance, which cannot turn negative.
        momentum: decay of the momentum buffer, in [0, 1); None is the dialect's, which is 0 in optax.
        nesterov: look ahead along the buffer; needs momentum.
        bias_correction: divide v by 1 - decay^t; with `centered`, the variance.
        dialect: whose rule and defaults to use, a key of `rmsprop.DIALECTS` or a `Rule`; None is "optax". An argument
            that is given wins over it.
        epsilon_mode, momentum_form, weight_decay, decay_mode, clip, clip_weights, variance_floor, maximize,
        nonfinite: as in `rmsprop.Rule`; None is the dialect's. Decay and `clip_weights` need the parameters at
            `update`. "skip" counts in the state's `skipped`; "error" is refused, for compiled code cannot raise.
        mask: where weight decay applies: a tree of booleans, a prefix of the parameters' tree, or a function of the
            parameters that returns one.
        state_dtype: float32 or float64; None is float32, or the parameter's where that is wider.
        complex_as: "modulus", v averages |g|^2 (optax), or "parts", two real numbers an entry (torch).
        fused: True wants the native kernel in `step` for all leaves, or raises; None takes it where it can; False does
            without (as `jax.export` must). `update` is XLA's alone.

    All numbers may be JAX arrays, traced ones too (`optax.inject_hyperparams`). The range of a traced one is not
    checked, and with a traced `momentum` or `weight_decay` there is momentum or decay even if it turns out 0.

    Raises:
        ValueError: an option outside its range, or options that cannot be combined; by `init` and `update`, a leaf
            of another shape or dtype than can be, or parameters that are missing. The error names it.

    Example:
        >>> import jax, jax.numpy as jnp, optax, rmsprop.jax
        >>> optimizer = rmsprop.jax.rmsprop(0.1, bias_correction=True)
        >>> params = {"w": jnp.array([1.0, -2.0])}
        >>> state = optimizer.init(params)
        >>> for _ in range(100):
        ...     grads = jax.grad(lambda p: jnp.sum(p["w"] ** 2))(params)
        ...     updates, state = optimizer.update(grads, state, params)
        ...     params = optax.apply_updates(params, updates)
        >>> bool(abs(params["w"]).max() < 0.1)
        True

    Source: optax 0.2.8, optax/_src/alias.py (rmsprop).
    """
    return Transformation(known(**locals()))


def scale_by_rmsprop(
    decay: Any = _DECAY,
    eps: Any = _EPS,
    initial_scale: Any = _ZERO,
    eps_in_sqrt: Any = _TRUE,
    bias_correction: Any = _FALSE,
    *,
    centered: Any = _FALSE,
    momentum: Any = None,
    nesterov: Any = _FALSE,
    dialect: str | Rule | None = None,
    epsilon_mode: str | None = None,
    momentum_form: str | None = None,
    weight_decay: Any = None,
    decay_mode: str | None = None,
    mask: Any = None,
    clip: Any = None,
    variance_floor: Any = None,
    maximize: bool | None = None,
    nonfinite: str | None = None,
    state_dtype: Any = None,
    complex_as: str = "modulus",
) -> optax.GradientTransformationExtraArgs:
    """The direction of `rmsprop` alone, g / sqrt(v + eps), for `optax.chain`: no learning rate, and no minus.

    Arguments are those of `optax.scale_by_rms` and, by keyword, of `rmsprop`. With momentum, the learning rate that
    comes later in the chain lies outside the buffer, so `momentum_form` must be "lr_outside" or "ema" (for optax's
    form put `optax.trace` after `optax.scale_by_learning_rate`). Decoupled decay adds weight_decay * p.

    Example:
        >>> import optax, rmsprop.jax
        >>> optimizer = optax.chain(
        ...     optax.clip_by_global_norm(1.0),
        ...     rmsprop.jax.scale_by_rmsprop(decay=0.99, clip=1.0),
        ...     optax.scale_by_learning_rate(0.01),
        ... )

    Source: optax 0.2.8, optax/_src/transform.py (scale_by_rms, scale_by_stddev).
    """
    options = known(learning_rate=1.0, **locals())
    if options.rule.momentum and options.rule.momentum_form == "lr_inside":
        raise ValueError(
            "momentum_form='lr_inside': the learning rate is not known here; expected 'lr_outside' or 'ema', or "
            "optax.trace after optax.scale_by_learning_rate"
        )
    if options.rule.clip_weights is not None:
        raise ValueError(f"clip_weights={options.rule.clip_weights}: the step is not known here; expected None")
    return optax.GradientTransformationExtraArgs(*_functions(options, sign=1))


def _functions(options: Known, sign: int) -> tuple[Callable[..., Any], Callable[..., Any]]:
    def init(params: Any) -> RMSpropState:
        return tree.init(options, params)

    def update(updates: Any, state: RMSpropState, params: Any = None, **_: Any) -> tuple[Any, RMSpropState]:
        return tree.update(options, sign, updates, state, params)

    return init, update
