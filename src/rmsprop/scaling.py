"""Another batch size, the same training: the square-root scaling rule for RMSprop."""

from math import isfinite, sqrt
from numbers import Real

from rmsprop.dialects import dialect
from rmsprop.rule import OptionError, Rule


def scaled_for_batch(rule: object, k: float) -> Rule:
    r"""The rule for a batch k times as large that trains alike, in 1/k as many steps.

        lr sqrt(k)        1 - beta, times k        epsilon / sqrt(k), inside the root / k

    Where the noise of a batch outweighs the gradient's mean, v is that noise, and falls to v / k. So u keeps its noise
    and its mean grows by sqrt(k): one step of lr sqrt(k) moves and scatters a weight as much as k steps did.
    What else is scaled, by the same reasoning:

    - `initial_square` and `variance_floor`, as v: divided by k.
    - momentum, as Adam's first average in the paper: 1 - momentum, times k, so that it remembers as many examples.
      Forms "lr_outside" and "lr_inside" move lr / (1 - momentum) in all for each u; it is this that grows by sqrt(k),
      and so lr itself by k sqrt(k).
    - decoupled weight decay: lr weight_decay grows by k, as the weights decay between examples. Coupled decay is part
      of the gradient's mean and stays.
    - `clip` and `clip_weights` stay: u and the weights have the same size as before.

    What this cannot see and you should: gradients must be means over the batch, not sums; a schedule or warm-up counted
    in steps takes 1/k as many; a limit on the norm of all gradients goes down by sqrt(k) where noise makes that norm; a
    weight average's decay is raised to the power k (arXiv:2307.13813). The rule ends where the mean outweighs the noise
    of the larger batch.

    Args:
        rule: a rule, or anything that `rmsprop.dialect` takes.
        k: new batch size over old, above 0; below 1 for a smaller batch.

    Raises:
        OptionError: (a ValueError) k is no such number, or too large for `beta` or `momentum`, which cannot forget
            faster than in one step; or the rule has epsilon_mode="both", one number in two places that scale apart.

    Example:
        >>> import rmsprop
        >>> rule = rmsprop.scaled_for_batch(rmsprop.Rule(lr=0.001, beta=0.99, epsilon=1e-6), 4)
        >>> rule.lr, round(rule.beta, 6), rule.epsilon
        (0.002, 0.96, 2.5e-07)

    Source: S. Malladi, K. Lyu, A. Panigrahi, S. Arora, On the SDEs and Scaling Rules for Adaptive Gradient Algorithms,
    2022, arXiv:2205.10287.
    """
    rule = dialect(rule)
    if not isinstance(k, Real) or isinstance(k, bool) or not (isfinite(k) and k > 0):
        raise OptionError("k", k, "a finite number above 0")
    k = float(k)
    if rule.epsilon_mode == "both" and rule.epsilon > 0:
        raise OptionError(
            "epsilon_mode", "both", "'inside', 'outside' or 'floor': 'both' has one epsilon in two places"
        )
    heavy_ball = rule.momentum > 0 and rule.momentum_form != "ema"
    lr_factor = sqrt(k) * (k if heavy_ball else 1)
    return rule.replace(
        lr=rule.lr * lr_factor,
        beta=_faster("beta", rule.beta, k),
        epsilon=rule.epsilon / (k if rule.epsilon_mode == "inside" else sqrt(k)),
        initial_square=rule.initial_square / k,
        variance_floor=rule.variance_floor / k,
        momentum=_faster("momentum", rule.momentum, k) if rule.momentum else 0.0,
        weight_decay=rule.weight_decay * (k / lr_factor if rule.decay_mode == "decoupled" else 1),
    )


def _faster(name: str, decay: float, k: float) -> float:
    """The decay that forgets in one step what `decay` forgets in k."""
    rest = k * (1 - decay)
    if rest > 1 + 1e-12:
        raise OptionError("k", k, f"at most {1 / (1 - decay):.6g}, for {name}={decay}")
    return max(0.0, 1 - rest)
