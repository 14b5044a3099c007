"""The PyTorch front end: drop-ins for `torch.optim.RMSprop` and `torch.optim.Rprop`."""

from rmsprop.torch.optimizer import RMSprop
from rmsprop.torch.rprop import Rprop

__all__ = ["RMSprop", "Rprop"]
