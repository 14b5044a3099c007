"""`Rprop` for NumPy."""

from collections.abc import Iterable, Mapping
from math import isnan
from typing import Any, ClassVar

from rmsprop.numpy.inplace import Array, Arrays, InPlace
from rmsprop.rprop import RpropRule
from rmsprop.rule import as_float, expect


class Rprop(InPlace):
    r"""Updates float arrays in place by Rprop: only the signs of full-batch gradients count.

        s <- 1.2 s    where the gradient has the sign it had before, at most 50
        s <- 0.5 s    where the sign has changed, at least 1e-6; there p stays for this step
        p <- p - sign(g) s

    and whatever else the `RpropRule` says. The arithmetic is float32 for float16 and float32 arrays and float64 for
    float64; the state (step size s, previous gradient) likewise.

    Args:
        params: a list or dict of float16, float32 or float64 arrays of any shape and strides. They are written by
            `step`, and by nothing else.
        rule: the rule; by default `RpropRule()`.
        **options: fields of `RpropRule` (`lr`, the first step size; `etas`, `step_sizes`, `variant`, `dialect`,
            `maximize`); they win over `rule`.

    Attributes:
        rule: the rule in use. Its `lr` has been read when the optimizer was made; step sizes change by themselves.

    Raises:
        ValueError: an array that cannot be updated in place (not a float array, read-only, elements that share
            memory, two arrays that overlap), or an option outside its range.
        TypeError: `params` is no list or dict, or an option does not exist.

    Example:
        >>> import numpy as np, rmsprop
        >>> w = np.array([1.0, -200.0])
        >>> optimizer = rmsprop.Rprop([w], variant="irprop+")
        >>> for _ in range(100):
        ...     optimizer.step([2 * w], loss=w @ w)
        >>> bool(abs(w).max() < 1e-3)
        True

    Source: C. Igel and M. Hüsken, Neurocomputing 50, 2003; see `RpropRule`.
    """

    _free: ClassVar[tuple[str, ...]] = ("prev",)
    _start: ClassVar[str] = "lr"

    def __init__(self, params: Arrays, rule: RpropRule | None = None, **options: Any) -> None:
        if rule is not None and not isinstance(rule, RpropRule):
            raise TypeError(f"rule={rule!r}: expected an RpropRule")
        super().__init__(params, (rule or RpropRule()).replace(**options))
        self._loss: float | None = None

    @property
    def rule(self) -> RpropRule:
        """The rule in use."""
        rule: RpropRule = self._rule
        return rule

    def step(self, grads: Iterable[Any] | Mapping[str, Any], loss: float | None = None) -> None:
        """One update. Every check comes before the first write: a step that raises has changed nothing.

        Threads that step the same optimizer take turns.

        Args:
            grads: gradients in the order of `params` or, for a dict, under its keys; of the same shapes; read only.
                Another float dtype is converted to the parameter's. None leaves its parameter and state alone.
            loss: at the parameters as they are now; for variant "irprop+", and for no other.

        Raises:
            ValueError: a gradient of another shape, not of floats, or missing, or a loss that is missing, not asked for
                or not a number; the error names it.
        """
        wanted = self.rule.variant == "irprop+"
        expect("loss", loss, (loss is not None) == wanted, "a number" if wanted else f"None with {self.rule.variant!r}")
        number = None if loss is None else _loss(loss)
        checked = self._checked(grads)
        with self._turn:
            self._make(self.rule if number is None else self.rule.after(number, self._loss), checked)
            self._loss = number

    def state_dict(self) -> dict[str, Any]:
        """The rule, the last loss (None but for "irprop+") and a copy of the state: plain numbers, strings and arrays.

        {"format": 1, "rule": {...}, "loss": None, "state": {name: {"step": int, "step_size": array, "prev": array}}}
        """
        return {**super().state_dict(), "loss": self._loss}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Takes over rule and state from `state_dict()`; on an error nothing has changed.

        Raises:
            ValueError: another format, other parameters, an option outside its range, or a number or array that is
                missing, of another shape, not finite (step sizes) or negative; the error names it.
            TypeError: an option that does not exist.
        """
        loss = state_dict.get("loss") if isinstance(state_dict, Mapping) else None
        loss = None if loss is None else _loss(loss)
        super().load_state_dict(state_dict)
        self._loss = loss

    def _converted(self, name: str, g: Any, p: Array) -> Any:
        if isinstance(g, tuple):
            raise ValueError(f"{name}: a tuple is a gradient of rows, which Rprop does not take; expected an array")
        return super()._converted(name, g, p)

    def _with(self, options: Mapping[str, Any]) -> RpropRule:
        return RpropRule(**options)


def _loss(value: Any) -> float:
    number = as_float(value)
    expect("loss", value, not isnan(number), "a number")
    return number
