"""Checkpoints of optimizers that run: `of` takes one, `restore` puts one back."""

from collections.abc import Sequence
from typing import Any

from rmsprop.checkpoint.bitsandbytes import from_bitsandbytes
from rmsprop.checkpoint.form import Checkpoint, match_names
from rmsprop.checkpoint.keras import from_keras, to_keras
from rmsprop.checkpoint.numpy import from_numpy, to_numpy
from rmsprop.checkpoint.slots import SLOTS
from rmsprop.checkpoint.torch import from_adam, from_torch, to_torch
from rmsprop.numpy import RMSprop

#: Where an optimizer's class comes from: the library it is of.
_HOMES = {
    ("rmsprop.torch.optimizer", "RMSprop"): "rmsprop",
    ("torch.optim.rmsprop", "RMSprop"): "torch",
    ("torch.optim.adam", "Adam"): "adam",
    ("timm.optim.rmsprop_tf", "RMSpropTF"): "timm",
    ("stable_baselines3.common.sb2_compat.rmsprop_tf_like", "RMSpropTFLike"): "sb3",
    ("bitsandbytes.optim.rmsprop", "RMSprop"): "bitsandbytes",
    ("bitsandbytes.optim.rmsprop", "RMSprop8bit"): "bitsandbytes",
    ("bitsandbytes.optim.rmsprop", "RMSprop32bit"): "bitsandbytes",
    ("keras.src.optimizers.rmsprop", "RMSprop"): "keras",
}


def of(optimizer: Any, *, names: Sequence[str] | None = None) -> Checkpoint:
    """The checkpoint of an optimizer: a copy that later steps do not change.

    Args:
        optimizer: `rmsprop.RMSprop`, `rmsprop.torch.RMSprop`, or RMSprop of torch, timm, stable-baselines3,
            bitsandbytes or Keras 3, or torch.optim.Adam with betas[0] = 0. JAX has no such object: `from_optax(state)`,
            or `from_numpy(rmsprop.jax.state_dict(state, rule))`.
        names: of the parameters, in the optimizer's order; see `from_torch`.

    Raises:
        ValueError: another optimizer.
    """
    library = _library(optimizer)
    if library == "numpy":
        return from_numpy(optimizer.state_dict())
    if library == "keras":
        return from_keras(optimizer, names=names)
    state = optimizer.state_dict()
    if library == "bitsandbytes":
        return from_bitsandbytes(state, names=names)
    return from_adam(state, names=names) if library == "adam" else from_torch(state, library=library, names=names)


def restore(optimizer: Any, checkpoint: Checkpoint, *, names: Sequence[str] | None = None) -> None:
    """Put a checkpoint into an optimizer: its state, to the parameter of its name, and its rule.

    An optimizer of Keras keeps its own options, which must be the checkpoint's. Ours take every rule.

    Args:
        optimizer: as for `of`, but bitsandbytes'.
        checkpoint: see `Checkpoint.renamed` and `mapped` where names or layouts differ.
        names: of the optimizer's parameters, in its order, where it does not know them.

    Raises:
        ValueError: other parameters, another shape, or a rule that the optimizer cannot have; nothing has changed then.

    Warns:
        UserWarning: the momentum buffer had to be converted.

    Example:
        >>> import torch, rmsprop.torch
        >>> from rmsprop.checkpoint import of, restore
        >>> layer = torch.nn.Linear(2, 1)
        >>> theirs = torch.optim.RMSprop(layer.named_parameters(), lr=0.1)
        >>> ours = rmsprop.torch.RMSprop(layer.named_parameters())
        >>> restore(ours, of(theirs))
        >>> ours.param_groups[0]["lr"]
        0.1
    """
    library = _library(optimizer)
    if library == "numpy":
        mine = optimizer.state_dict()["state"]
        optimizer.load_state_dict(to_numpy(checkpoint, names=mine))
    elif library == "keras":
        _into_keras(optimizer, checkpoint, names)
    elif library == "bitsandbytes":
        raise ValueError("bitsandbytes: expected another optimizer; its state is read, not written")
    else:
        _into_torch(optimizer, checkpoint, library, names)


def _library(optimizer: Any) -> str:
    for cls in type(optimizer).__mro__:
        if cls is RMSprop:
            return "numpy"
        if found := _HOMES.get((cls.__module__, cls.__name__)):
            return found
    raise ValueError(f"optimizer={type(optimizer).__name__}: expected an RMSprop of a library that is known here")


def _into_torch(optimizer: Any, checkpoint: Checkpoint, library: str, names: Sequence[str] | None) -> None:
    groups = optimizer.param_groups
    flat = list(names) if names is not None else [n for group in groups for n in group.get("param_names", ())]
    params = [p for group in groups for p in group["params"]]
    own = flat or [str(i) for i in range(len(params))]
    if len(own) != len(params):
        raise ValueError(f"names: {len(own)} of them: expected {len(params)}, one for each parameter")
    match_names(own, checkpoint.names)
    for name, p in zip(own, params, strict=True):
        _check_shapes(checkpoint, name, tuple(p.shape))
    rest = iter(own)
    state_dict = to_torch(checkpoint, library, names=[[next(rest) for _ in group["params"]] for group in groups])
    for group, new in zip(groups, state_dict["param_groups"], strict=True):
        new.pop("param_names", None)
        if "param_names" in group:
            new["param_names"] = group["param_names"]
    optimizer.load_state_dict(state_dict)


def _into_keras(optimizer: Any, checkpoint: Checkpoint, names: Sequence[str] | None) -> None:
    if not optimizer.built:
        raise ValueError("optimizer: not built; expected optimizer.build(model.trainable_variables) first")
    variables = optimizer._trainable_variables
    own = [v.path for v in variables] if names is None else list(names)
    match_names(own, checkpoint.names)
    for name, v in zip(own, variables, strict=True):
        _check_shapes(checkpoint, name, tuple(v.shape))
    rule, config = checkpoint.adapted("keras").rule, optimizer.get_config()
    store = to_keras(checkpoint, names=own, scheduled=isinstance(config["learning_rate"], dict))
    wanted = {"rho": rule.beta, "epsilon": rule.epsilon, "momentum": rule.momentum, "centered": rule.centered}
    wanted["weight_decay"] = rule.weight_decay
    for option, value in wanted.items():
        if (config[option] or 0) != value:
            raise ValueError(f"optimizer: it has {option}={config[option]!r}: expected {value!r}, as the checkpoint")
    if len(store) != len(optimizer.variables):
        raise ValueError(
            f"optimizer: {len(optimizer.variables)} variables: expected {len(store)}; it has options of its own"
        )
    optimizer.load_own_variables(store)


def _check_shapes(checkpoint: Checkpoint, name: str, shape: tuple[int, ...]) -> None:
    entry = checkpoint.state.get(name, {})
    for slot in SLOTS:
        if slot in entry and entry[slot].shape != shape:
            raise ValueError(f"{name}: {slot} has shape {entry[slot].shape}: expected {shape}, its parameter's")
