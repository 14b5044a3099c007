"""RMSprop in SciPy's manner: `minimize` a function of one array, or of a list or dict of arrays.

NumPy is all it needs. SciPy, where it is installed, lends its result class and, without `jac`, its finite
differences.
"""

from collections.abc import Callable
from inspect import signature
from numbers import Integral, Real
from typing import Any

import numpy as np

from rmsprop.dialects import Default
from rmsprop.numpy import RMSprop
from rmsprop.objective import Form, Objective, scipy_optimize
from rmsprop.rule import Rule

_PLAIN = Rule()
_LR, _BETA, _EPSILON, _EPOCHS = Default(_PLAIN.lr), Default(_PLAIN.beta), Default(_PLAIN.epsilon), 100


def minimize(
    fun: Callable[..., Any],
    x0: Any,
    args: Any = (),
    jac: Any = None,
    *,
    lr: float | Callable[[int], float] = _LR,
    beta: float = _BETA,
    epochs: int = _EPOCHS,
    epsilon: float = _EPSILON,
    callback: Callable[..., Any] | None = None,
    tol: float | None = None,
    maxiter: int | None = None,
    disp: bool = False,
    hess: Any = None,
    hessp: Any = None,
    bounds: Any = None,
    constraints: Any = (),
    **options: Any,
) -> Any:
    r"""Minimize a function with RMSprop, and return the best point seen.

    An epoch is one step with the whole gradient g of `fun`: for each entry of x

        v <- beta v + (1 - beta) g^2
        x <- x - lr g / sqrt(v + epsilon)

    `scipy.optimize.minimize(fun, x0, method=rmsprop.minimize, options={"lr": 0.1})` does the same.

    Args:
        fun: `fun(x, *args)` returns the value, one real number; with `jac=True` the value and the gradient.
            x has the structure, shapes and dtypes of `x0` and is a fresh copy: keep it or write to it at will.
        x0: where to start: an array of any shape, or a list, tuple or dict of arrays. A list of plain numbers
            is one array. Finite. Floats keep their dtype, integers become float64; where dtypes differ the
            arithmetic is in the widest. Never written to.
        args: more arguments for `fun` and `jac`; what is not a tuple is one argument.
        jac: `jac(x, *args)` returns the gradient, in the structure and shapes of `x0`; or True, see `fun`; or
            None, False or "2-point" for SciPy's forward differences (n + 1 calls of `fun` an epoch for n
            numbers), "3-point" for central ones (2n + 1 calls).
        lr: the step size, or a function from the epoch (0, 1, ...) to its step size.
        beta: decay of the mean square v, in [0, 1).
        epochs: the number of steps, at least 1.
        epsilon: keeps the denominator from zero, at least 0.
        callback: called after each step as `callback(x)`, or as `callback(intermediate_result=result)` where
            that is the name of its one parameter; `result` has x, fun, jac and nit of this step. To stop the
            run it returns True or raises StopIteration.
        tol: stop as soon as no entry of the best point's gradient is larger, in absolute value.
        maxiter: SciPy's name for `epochs`; give one of them.
        disp: print a line at the end.
        hess: ignored, as by every first-order method.
        hessp: ignored likewise.
        bounds: refused, unless None or empty.
        constraints: refused likewise.
        **options: `rule`, `dialect` and the fields of `Rule`, as for `rmsprop.RMSprop`. Fields win over the
            rule or dialect; so do `lr`, `beta` and `epsilon` where given.

    Returns:
        SciPy's `OptimizeResult`, or without SciPy a dict like it; every key is an attribute too:
        x, fun, jac: the best point seen, its value and its gradient. RMSprop's steps do not shrink by
            themselves, so the last point is seldom the best. "Best" is the smallest value (with `maximize` the
            largest), then the smallest gradient. `fun` is what the function returned for this very x.
        x_last, fun_last: the last point and its value.
        success, status, message: how it ended. Status 0: all epochs done, or `tol` met. Without success: 1,
            `tol` not met; 2, NaN or infinity in the value, gradient or x at the last point (the message says
            which); 99, stopped by the callback.
        nit, nfev, njev: how many steps, calls of `fun`, gradients.
        history: a dict of arrays: `fun` and `grad_norm` (the largest absolute entry) at the nit + 1 points
            from `x0` on, and the `lr` of each step.

    Raises:
        ValueError: an argument outside its range, or a value or gradient of a wrong shape or kind.
        TypeError: `fun` or `callback` is no function, or an option is not known.
        ImportError: finite differences without SciPy.

    Example:
        >>> import numpy as np
        >>> from rmsprop import minimize
        >>> def loss(p, data):
        ...     error = p["centre"] - data
        ...     return np.mean(error**2), {"centre": np.mean(2 * error)}
        >>> result = minimize(loss, {"centre": 0.0}, args=(np.array([1.0, 2.0, 6.0]),), jac=True, lr=0.1)
        >>> print(result.x["centre"].round(3), result.success)
        3.0 True

    Source: the conventions of `scipy.optimize.minimize`, SciPy 1.17; the step is `rmsprop.rule.update`.
    """
    del hess, hessp
    for name, value in {"bounds": bounds, "constraints": constraints}.items():
        if value is not None and not (hasattr(value, "__len__") and len(value) == 0):
            raise ValueError(f"{name}={value!r}: expected None, for RMSprop cannot honour it")
    if tol is not None and not (isinstance(tol, Real) and 0 <= tol < float("inf")):
        raise ValueError(f"tol={tol!r}: expected a finite number of at least 0, or None")
    schedule = lr if callable(lr) else None
    numbers = {"lr": _LR if callable(lr) else lr, "beta": beta, "epsilon": epsilon}
    options |= {name: number for name, number in numbers.items() if not isinstance(number, Default)}
    objective = Objective(fun, jac, args, Form(x0))
    optimizer = RMSprop({"x0": objective.form.x}, **options)
    result = _descend(optimizer, objective, _count(epochs, maxiter), schedule, tol=tol, stops=_listener(callback))
    if disp:
        print(f"{result.message}: fun={result.fun:.6g}, nit={result.nit}, nfev={result.nfev}, njev={result.njev}")
    return result


def _descend(
    optimizer: RMSprop,
    objective: Objective,
    epochs: int,
    schedule: Callable[[int], float] | None,
    *,
    tol: float | None,
    stops: Callable[[Any], bool] | None,
) -> Any:
    """Step and evaluate in turn until there is a reason to stop; the result."""
    form, rule = objective.form, optimizer.rule
    best = point = objective.point()
    history: dict[str, list[float]] = {"fun": [], "grad_norm": [], "lr": []}
    status, message = (0, f"all {epochs} epochs done") if tol is None else (1, f"tol={tol} not met in {epochs} epochs")
    for epoch in range(epochs + 1):
        if epoch:
            if schedule:
                optimizer.lr = schedule(epoch - 1)
            optimizer.step({"x0": point.gradient})
            history["lr"].append(optimizer.lr)
            point = objective.point()
        history["fun"].append(point.value)
        history["grad_norm"].append(point.norm)
        if trouble := form.trouble(point, rule.nonfinite == "skip"):
            status, message = 2, f"epoch {epoch}: {trouble}"
            break
        best = min(best, point, key=lambda point: (-point.value if rule.maximize else point.value, point.norm))
        if epoch and stops and stops(_result(**form.show(point), nit=epoch)):
            status, message = 99, f"epoch {epoch}: stopped by the callback"
            break
        if tol is not None and best.norm <= tol:
            status, message = 0, f"epoch {epoch}: no entry of the gradient is larger than tol={tol}"
            break
    return _result(
        message=message,
        success=status == 0,
        status=status,
        **form.show(best),
        x_last=form.join(point.x),
        fun_last=point.value,
        nit=epoch,
        nfev=objective.nfev,
        njev=objective.njev,
        history={name: np.array(numbers) for name, numbers in history.items()},
    )


class Result(dict[str, Any]):
    """What `minimize` returns where SciPy is missing: a dict whose keys are attributes too."""

    __setattr__ = dict.__setitem__

    def __getattr__(self, name: str) -> Any:
        if name not in self:
            raise AttributeError(name)
        return self[name]

    def __repr__(self) -> str:
        return "\n".join(f"{name:>8}: {value!r}" for name, value in self.items())


def _result(**items: Any) -> Any:
    scipy = scipy_optimize()
    return scipy.OptimizeResult(items) if scipy else Result(items)


def _count(epochs: int, maxiter: int | None) -> int:
    if maxiter is not None and epochs not in (_EPOCHS, maxiter):
        raise ValueError(f"maxiter={maxiter!r}, epochs={epochs!r}: expected one of them, for they mean the same")
    name, count = ("epochs", epochs) if maxiter is None else ("maxiter", maxiter)
    if not isinstance(count, Integral) or isinstance(count, bool) or count < 1:
        raise ValueError(f"{name}={count!r}: expected a whole number of at least 1")
    return int(count)


def _listener(callback: Callable[..., Any] | None) -> Callable[[Any], bool] | None:
    """The callback, under either of SciPy's conventions, as a function of a result that tells whether to stop."""
    if callback is None:
        return None
    if not callable(callback):
        raise TypeError(f"callback={callback!r}: expected a function or None")
    try:
        whole = set(signature(callback).parameters) == {"intermediate_result"}
    except ValueError:  # some functions written in C have no signature
        whole = False

    def stops(result: Any) -> bool:
        try:
            answer = callback(intermediate_result=result) if whole else callback(result.x)
        except StopIteration:
            return True
        return isinstance(answer, bool | np.bool_) and bool(answer)  # anything else it returns is not meant for us

    return stops
