"""What "RMSprop" means elsewhere: each dialect is one `Rule`, with the source it was read from.

A dialect says where epsilon goes, where the average starts, where the learning rate sits and how weights
decay, and it carries its home's default numbers. Where the home requires a learning rate, the row has ours.

    >>> import rmsprop
    >>> rmsprop.dialect("torch", momentum=0.9).epsilon_mode
    'outside'
    >>> rmsprop.dialect("keras").epsilon
    1e-07
"""

from dataclasses import dataclass
from difflib import get_close_matches

from rmsprop.rule import OPTIONS, Rule


class Default(float):
    """A default in a signature, to be told from the same number given by the caller: it gives way to a dialect's."""


@dataclass(frozen=True, slots=True)
class Dialect:
    """One row: the rule with its home's defaults, where that was read, and what a user should know."""

    rule: Rule
    source: str
    note: str = ""


#: Every dialect by name.
DIALECTS: dict[str, Dialect] = {}


def _row(name: str, rule: Rule, source: str, note: str = "") -> Rule:
    DIALECTS[name] = Dialect(rule, source, note)
    return rule


TUTORIAL = _row("tutorial", Rule(), "the NumPy tutorial this project grew out of; its defaults are `Rule()`")
HINTON = _row(
    "hinton",
    Rule(epsilon=0.0),
    "T. Tieleman, G. Hinton, Neural Networks for Machine Learning, lecture 6e, 2012, slide 29",
    "no epsilon: a weight whose v is still 0 does not move",
)
GRAVES = _row(
    "graves",
    Rule(1e-4, 0.95, 1e-4, centered=True, momentum=0.9, momentum_form="lr_inside"),
    "A. Graves, arXiv:1308.0850, equations 38 to 45; chainer/optimizers/rmsprop_graves.py",
)
TORCH = _row(
    "torch",
    Rule(1e-2, 0.99, 1e-8, "outside"),
    "pytorch 2.13, torch/optim/rmsprop.py",
    "centered torch can turn to NaN; ours keeps the variance itself",
)
TF1 = _row(
    "tf1",
    Rule(epsilon=1e-10, initial_square=1.0, momentum_form="lr_inside"),
    "tensorflow, python/training/rmsprop.py and core/kernels/training_ops.cc",
    "v starts at 1: a hidden warm-up that lasts ln(v)/ln(beta) steps",
)
TF2 = _row(
    "tf2",
    Rule(epsilon_mode="outside", momentum_form="lr_inside"),
    "keras 2, optimizer_v2/rmsprop.py (tf.keras.optimizers.legacy), momentum=0",
    "with momentum epsilon moves inside the root: that is tf2_momentum",
)
TF2_MOMENTUM = _row(
    "tf2_momentum",
    Rule(momentum=0.9, momentum_form="lr_inside"),
    "keras 2, optimizer_v2/rmsprop.py (tf.keras.optimizers.legacy), momentum above 0",
    "its default momentum is 0, which is tf2; 0.9 is ours",
)
KERAS = _row(
    "keras", Rule(momentum_form="lr_inside", decay_mode="decoupled"), "keras 3.15, keras/src/optimizers/rmsprop.py"
)
OPTAX = _row(
    "optax",
    Rule(epsilon=1e-8, momentum_form="lr_inside", decay_mode="decoupled"),
    "optax 0.2.8, optax/_src/alias.py (rmsprop) and transform.py (scale_by_rms, scale_by_stddev)",
    "epsilon_mode='outside' is optax's eps_in_sqrt=False; weight decay is a chain there",
)
TIMM = _row(
    "timm",
    Rule(1e-2, epsilon=1e-10, initial_square=1.0, momentum_form="lr_inside"),
    "timm 1.0.31, timm/optim/rmsprop_tf.py (RMSpropTF)",
    "decay_mode='decoupled' is timm's decoupled_decay=True; momentum_form='lr_outside' its lr_in_momentum=False",
)
SB3 = _row(
    "sb3",
    Rule(1e-2, 0.99, 1e-8, initial_square=1.0),
    "stable-baselines3 2.9.2, common/sb2_compat/rmsprop_tf_like.py (RMSpropTFLike)",
    "lr outside the buffer, so not TensorFlow's rule with momentum and a schedule",
)
MXNET = _row(
    "mxnet",
    Rule(epsilon=1e-8, epsilon_mode="outside", momentum_form="lr_inside"),
    "mxnet 2.0, python/mxnet/optimizer/rmsprop.py, centered=False",
    "MXNet ignores momentum here",
)
MXNET_CENTERED = _row(
    "mxnet_centered",
    Rule(epsilon=1e-8, centered=True, momentum=0.9, momentum_form="lr_inside"),
    "mxnet 2.0, python/mxnet/optimizer/rmsprop.py, centered=True",
    "epsilon moves inside the root when centered",
)
PADDLE = _row(
    "paddle",
    Rule(beta=0.95, epsilon=1e-6, momentum_form="lr_inside"),
    "paddle, python/paddle/optimizer/rmsprop.py and phi/kernels/impl/rmsprop_kernel_impl.h",
    "its documentation says Nesterov, its code is heavy ball",
)
MINDSPORE = _row(
    "mindspore",
    Rule(0.1, epsilon=1e-10, initial_square=1.0, momentum_form="lr_inside"),
    "mindspore 2.10, mindspore/nn/optim/rmsprop.py",
    "its CPU kernel puts epsilon outside the root for all but the last n mod 8 entries of a tensor",
)
MLX = _row("mlx", Rule(beta=0.99, epsilon=1e-8, epsilon_mode="outside"), "mlx 0.32, mlx/optimizers/optimizers.py")
SONNET = _row("sonnet", Rule(epsilon=1e-10, momentum_form="lr_inside"), "sonnet 2, sonnet/src/optimizers/rmsprop.py")
CHAINER = _row(
    "chainer",
    Rule(0.01, 0.99, 1e-8, "outside"),
    "chainer, chainer/optimizers/rmsprop.py",
    "epsilon_mode='inside' is its eps_inside_sqrt=True",
)
BURN = _row(
    "burn", Rule(beta=0.99, epsilon=1e-5, epsilon_mode="outside", momentum=0.9), "burn, crates/burn-optim, rmsprop.rs"
)
LASAGNE = _row("lasagne", Rule(1.0, 0.9, 1e-6), "lasagne, lasagne/updates.py (rmsprop)")
BLOCKS = _row("blocks", Rule(1.0, 0.9, 1e-5, "floor"), "blocks, blocks/algorithms (RMSProp, max_scaling=1e5)")
NEON = _row("neon", Rule(2e-3, 0.95, 1e-6, "both"), "neon, neon/optimizers/optimizer.py (RMSProp)")
HEAVYBALL = _row(
    "heavyball",
    Rule(2.5e-3, 0.99, 1e-6, "floor", bias_correction=True, decay_mode="decoupled"),
    "heavyball 3.2.1, heavyball/__init__.py (RMSprop)",
)
MODERN = _row(
    "modern",
    Rule(
        1e-2,
        0.99,
        1e-8,
        "outside",
        bias_correction=True,
        momentum=0.7,
        momentum_form="ema",
        decay_mode="decoupled",
        clip=2.0,
    ),
    "this project's own, chosen by measurement: docs/quality.md",
    "made to be used with averaged weights, or with a learning rate that falls to 0",
)


def dialect(name: object, **overrides: object) -> Rule:
    """The rule of a dialect, with some options changed.

    Args:
        name: a key of `DIALECTS`, or a `Rule`, or what has a `rule`, such as a recipe.
        **overrides: fields of `Rule`; they win over the dialect's own.

    Raises:
        ValueError: an unknown name, or a value outside its range.
        TypeError: an option that `Rule` does not have.

    Example:
        >>> from rmsprop import dialect
        >>> dialect("graves", lr=0.001).momentum
        0.9
    """
    if isinstance(name, str) and name in DIALECTS:
        name = DIALECTS[name]
    rule = getattr(name, "rule", name)
    if not isinstance(rule, Rule):
        names = tuple(DIALECTS)
        raise ValueError(f"dialect={name!r}: expected one of {names}{_hint(name, names)}, or a Rule")
    return rule.replace(**known(overrides))


def known(options: dict[str, object]) -> dict[str, object]:
    """The options, unless one of them is no field of `Rule`: then a TypeError that names it."""
    for name in options:
        if name not in OPTIONS:
            raise TypeError(f"{name!r} is not an option of Rule; it has {', '.join(OPTIONS)}{_hint(name, OPTIONS)}")
    return options


def _hint(name: object, allowed: tuple[str, ...]) -> str:
    close = get_close_matches(str(name), allowed, 1)
    return f" (did you mean {close[0]!r}?)" if close else ""
