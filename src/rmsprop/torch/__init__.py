"""The PyTorch front end: a drop-in for `torch.optim.RMSprop`."""

from rmsprop.torch.optimizer import RMSprop

__all__ = ["RMSprop"]
