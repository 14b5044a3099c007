"""RMSprop: one update rule, every dialect, every framework, at memory speed."""

from rmsprop.dialects import DIALECTS, dialect
from rmsprop.rule import Rule

__version__ = "0.1.0"
__all__ = ["DIALECTS", "Rule", "dialect"]
