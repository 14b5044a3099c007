"""Optimizer state between libraries: read into one form, `Checkpoint`, and written from it.

    >>> import torch, rmsprop.torch
    >>> from rmsprop import checkpoint
    >>> model = torch.nn.Linear(3, 1)
    >>> theirs = torch.optim.RMSprop(model.named_parameters(), lr=0.01, momentum=0.9)
    >>> found = checkpoint.from_torch(theirs.state_dict())
    >>> found.rule.momentum_form
    'lr_outside'

What cannot be exact is refused by name, or told in `Checkpoint.notes`.
"""

from rmsprop.checkpoint.bitsandbytes import from_bitsandbytes
from rmsprop.checkpoint.files import read
from rmsprop.checkpoint.form import Checkpoint, Group
from rmsprop.checkpoint.keras import from_keras, to_keras
from rmsprop.checkpoint.libraries import LIBRARIES, arguments
from rmsprop.checkpoint.live import of, restore
from rmsprop.checkpoint.native import load, save
from rmsprop.checkpoint.numpy import from_numpy, to_numpy
from rmsprop.checkpoint.optax import from_optax, to_optax
from rmsprop.checkpoint.tf1 import from_tf1, to_tf1
from rmsprop.checkpoint.torch import from_adam, from_torch, to_adam, to_torch

__all__ = [
    "LIBRARIES",
    "Checkpoint",
    "Group",
    "arguments",
    "from_adam",
    "from_bitsandbytes",
    "from_keras",
    "from_numpy",
    "from_optax",
    "from_tf1",
    "from_torch",
    "load",
    "of",
    "read",
    "restore",
    "save",
    "to_adam",
    "to_keras",
    "to_numpy",
    "to_optax",
    "to_tf1",
    "to_torch",
]
