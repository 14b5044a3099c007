"""RMSprop: one update rule, every dialect, every framework, at memory speed."""

from rmsprop import recipes
from rmsprop.compare import Comparison, compare
from rmsprop.dialects import DIALECTS, dialect
from rmsprop.explain import explain
from rmsprop.fit import Model, fit
from rmsprop.minimize import minimize
from rmsprop.numpy import RMSprop, Rprop
from rmsprop.rule import Rule
from rmsprop.scaling import scaled_for_batch

__version__ = "0.1.0"
__all__ = [
    "DIALECTS",
    "Comparison",
    "Model",
    "RMSprop",
    "Rprop",
    "Rule",
    "compare",
    "dialect",
    "explain",
    "fit",
    "minimize",
    "recipes",
    "scaled_for_batch",
]
