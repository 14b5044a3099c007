"""The JAX front end: `rmsprop`, a drop-in for `optax.rmsprop`, and `scale_by_rmsprop` for chains."""

from rmsprop.jax.state import RMSpropState, load_state_dict, state_dict
from rmsprop.jax.transform import Transformation, rmsprop, scale_by_rmsprop

__all__ = ["RMSpropState", "Transformation", "load_state_dict", "rmsprop", "scale_by_rmsprop", "state_dict"]
