"""What is recorded of a library: a row a call, with the dialect that replays it."""

import contextlib
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

import numpy as np

Arrays = list[np.ndarray]
#: A function of a learning rate and the gradients, and one that reads parameters and state: under the letters of
#: `rmsprop.rule`, p, v, m, b, each a list of arrays.
Run = tuple[Callable[[float, Arrays], None], Callable[[], dict[str, Arrays]]]

BOTH, SINGLE = ("float32", "float64"), ("float32",)
#: What others call the fields of `Rule`.
_NAMES = {"alpha": "beta", "rho": "beta", "decay": "beta", "gamma1": "beta", "gamma2": "momentum", "eps": "epsilon"}
_NAMES |= {"initial_scale": "initial_square", "wd": "weight_decay"}
_MEANS = {
    ("eps_in_sqrt", False): {"epsilon_mode": "outside"},
    ("eps_inside_sqrt", True): {"epsilon_mode": "inside"},
    ("lr_in_momentum", False): {"momentum_form": "lr_outside"},
    ("decoupled_decay", True): {"decay_mode": "decoupled"},
}
#: What changes nothing about the rule, or has been said by `_MEANS`.
_NOT_RULE = {name for name, _ in _MEANS} | {"foreach", "use_fused_step", "caution"}
#: The fields that some libraries round to float32.
NUMBERS = ("beta", "epsilon", "momentum", "weight_decay")


@dataclass(frozen=True)
class Case:
    """One call, recorded in each dtype; `options` win over what the call's own arguments say of the rule."""

    name: str
    target: str
    call: dict[str, Any]
    dialect: str | None
    options: dict[str, Any] = field(default_factory=dict)
    dtypes: tuple[str, ...] = BOTH
    problem: str = "wild"
    #: The call's arguments spell out the dialect's defaults: they are not laid over it.
    defaults: bool = False
    #: The dtypes in which the dialect cannot follow to the tolerance: how far it stays off, in units of the largest
    #: parameter's ulp (float32) or of 1e-12 of the largest parameter (float64), and why.
    exception: dict[str, tuple[float | str, str]] = field(default_factory=dict)
    #: The fields of `Rule` that the library rounds to float32 whatever the dtype of its parameters.
    rounded: tuple[str, ...] = ()
    #: The argument that `Rule` does not have, where the call is recorded to show what is refused.
    refused: str | None = None

    def rule_options(self) -> dict[str, Any]:
        """The fields of `Rule` to lay over the dialect's."""
        options: dict[str, Any] = {}
        for name, value in () if self.defaults else self.call.items():
            if name != self.refused and isinstance(value, bool | int | float | str):
                options |= _MEANS.get((name, value), {_NAMES.get(name, name): value})
        return {name: value for name, value in options.items() if name not in _NOT_RULE} | self.options

    def entry(self, dtype: str) -> dict[str, Any]:
        """What the manifest says of this case in one dtype."""
        found: dict[str, Any] = {"name": self.name, "dtype": dtype, "target": self.target, "call": self.call}
        found |= {"problem": self.problem, "dialect": self.dialect}
        if self.dialect is not None:
            found["options"] = self.rule_options()
        if self.rounded and dtype == "float64":
            found["rounded"] = self.rounded
        if dtype in self.exception:
            found["exception"] = dict(zip(("size", "reason"), self.exception[dtype], strict=True))
        if self.refused is not None:
            found["refused"] = self.refused
        return found


@dataclass(frozen=True)
class Library:
    """How to step it, `make(target, params, **call)`; what to record; the packages whose versions count."""

    make: Callable[..., Run]
    cases: list[Case]
    packages: tuple[str, ...]
    requirements: str = "requirements.txt"


def find(target: str) -> Any:
    """The object of a dotted name."""
    module, *rest = target.split(".")
    found = import_module(module)
    for name in rest:
        module = f"{module}.{name}"
        with contextlib.suppress(ImportError):
            import_module(module)
        found = getattr(found, name)
    return found
