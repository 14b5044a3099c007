"""The JAX front end: `rmsprop` and `rprop`, drop-ins for optax's, and `scale_by_` either for chains."""

from rmsprop.jax.resilient import RpropState, rprop, scale_by_rprop
from rmsprop.jax.sparse import RowsState, rows
from rmsprop.jax.state import RMSpropState, load_state_dict, state_dict
from rmsprop.jax.transform import Transformation, rmsprop, scale_by_rmsprop

__all__ = [
    "RMSpropState",
    "RowsState",
    "RpropState",
    "Transformation",
    "load_state_dict",
    "rmsprop",
    "rows",
    "rprop",
    "scale_by_rmsprop",
    "scale_by_rprop",
    "state_dict",
]
