"""The NumPy front end: optimizers that update arrays in place."""

from rmsprop.numpy.rmsprop import RMSprop
from rmsprop.numpy.rprop import Rprop

__all__ = ["RMSprop", "Rprop"]
