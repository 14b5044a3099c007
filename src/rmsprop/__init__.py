"""RMSprop: one update rule, every dialect, every framework, at memory speed."""

from rmsprop.dialects import DIALECTS, dialect
from rmsprop.fit import Model, fit
from rmsprop.minimize import minimize
from rmsprop.numpy import RMSprop, Rprop
from rmsprop.rule import Rule

__version__ = "0.1.0"
__all__ = ["DIALECTS", "Model", "RMSprop", "Rprop", "Rule", "dialect", "fit", "minimize"]
