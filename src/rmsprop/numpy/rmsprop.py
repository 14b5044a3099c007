"""`RMSprop` for NumPy."""

from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

from rmsprop.averaging import gamma_of
from rmsprop.dialects import dialect as dialect_rule
from rmsprop.dialects import known
from rmsprop.numpy.averaged import Averaging
from rmsprop.numpy.inplace import Arrays
from rmsprop.rule import Rule


class RMSprop(Averaging):
    r"""Updates float arrays in place by RMSprop.

        v <- beta v + (1 - beta) g^2
        p <- p - lr g / sqrt(v + epsilon)

    and whatever else the `Rule` says. The arithmetic is float32 for float16 and float32 arrays and float64 for
    float64; the state (mean square v, and if asked for the mean gradient m and the momentum buffer b) likewise.

    Args:
        params: a list or dict of float16, float32 or float64 arrays of any shape and strides. They are written by
            `step`, and by nothing else.
        rule: the rule; by default `Rule()`, the plain one.
        dialect: a dialect's name, or a rule (`**rmsprop.recipes.dqn` gives one), to take instead of `rule`.
        sparse: what becomes of rows that a gradient of rows does not touch: "exact", what gradients of 0 would do, made
            up for when they are next needed; "lazy", nothing (TensorFlow's rule).
        state_shape: what has a mean square v of its own: "full", every entry; "row", every row of an array of two or
            more dimensions, 4 bytes a row (8 in float64): v <- beta v + (1 - beta) (mean of g^2 over the row), of shape
            (rows, 1, ..., 1). Not with `centered`.
        averaging: let the step keep an average of the weights, for `averaged` to evaluate with: True, or gamma, a
            number of at least 0, for a_t = a_{t-1} + (gamma + 1) / (t + gamma) (p_t - a_{t-1}), a_1 = p_1; 0 is the
            mean of all steps, True is 8. It is part of the state, as `weight_avg`. Not for gradients of rows.
        **options: fields of `Rule`; they win over `rule` and `dialect`.

    Attributes:
        rule: the rule in use. `lr` may be changed between steps.
        skipped: how many gradient entries `nonfinite="skip"` has left alone so far.

    Raises:
        ValueError: an array that cannot be updated in place (not a float array, read-only, elements that share
            memory, two arrays that overlap), or an option outside its range.
        TypeError: `params` is no list or dict, or an option does not exist.

    Example:
        >>> import numpy as np, rmsprop
        >>> w = np.array([1.0, -2.0])
        >>> optimizer = rmsprop.RMSprop([w], lr=0.1)
        >>> for _ in range(100):
        ...     optimizer.step([2 * w])  # the gradient of w @ w
        >>> bool(abs(w).max() < 0.1)
        True

    Source: T. Tieleman and G. Hinton, Neural Networks for Machine Learning, lecture 6e, 2012.
    """

    _start: ClassVar[str] = "initial_square"

    def __init__(
        self,
        params: Arrays,
        rule: Rule | None = None,
        *,
        dialect: str | Rule | None = None,
        sparse: str = "exact",
        state_shape: str = "full",
        averaging: bool | float | None = False,
        **options: Any,
    ) -> None:
        if rule is not None and not isinstance(rule, Rule):
            raise TypeError(f"rule={rule!r}: expected a Rule; a dialect's name goes to dialect=")
        if rule is not None and dialect is not None:
            raise ValueError(f"rule and dialect={dialect!r}: expected one of them")
        base = rule or (Rule() if dialect is None else dialect_rule(dialect))
        super().__init__(params, base.replace(**known(options)), sparse, state_shape, gamma_of(averaging))
        self.skipped = 0

    @property
    def rule(self) -> Rule:
        """The rule in use; of its options, only `lr` may change."""
        rule: Rule = self._rule
        return rule

    @property
    def lr(self) -> float:
        """The step size; assign to it between steps to follow a schedule."""
        return self.rule.lr

    @lr.setter
    def lr(self, lr: float) -> None:
        self._rule = self.rule.replace(lr=lr)

    def step(self, grads: Iterable[Any] | Mapping[str, Any]) -> None:
        """One update. Every check comes before the first write: a step that raises has changed nothing.

        Threads that step the same optimizer take turns.

        Args:
            grads: gradients in the order of `params` or, for a dict, under its keys; of the same shapes; read only.
                Another float dtype is converted to the parameter's. None leaves its parameter and state alone.
                A gradient that touches some rows of its parameter may be a tuple (indices, values): integers, and for
                each a row of gradient. What belongs to one row is summed. See `sparse`, `catch_up` and `flush`.

        Raises:
            ValueError: a gradient of another shape, not of floats, or missing; a rule that cannot be exact for rows, or
                rows that were not brought up to date before they were read; the error names it.
            IndexError: a row that the parameter does not have.
            FloatingPointError: with `nonfinite="error"`, a gradient entry whose square is not finite.
            RuntimeError: within `averaged()`.
        """
        checked = self._checked(grads)
        with self._turn:
            self._expect_own_weights("step")
            self.skipped += self._make(self._rule, checked)

    def _with(self, options: Mapping[str, Any]) -> Rule:
        rule = Rule().replace(**known(dict(options)))
        self._check_shape(rule)
        return rule
