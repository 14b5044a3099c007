"""Whether parameters can have the options of their group."""

from typing import Any

import torch
from torch import Tensor
from torch.nn.parameter import is_lazy

from rmsprop.torch.options import check_fused, not_fused
from rmsprop.torch.shards import rows_here


def name_of(p: Tensor, group: dict[str, Any]) -> str:
    """What a message calls a parameter of this group."""
    k = next(k for k, q in enumerate(group["params"]) if q is p)
    return str(group["param_names"][k]) if "param_names" in group else f"params[{k}]"


def check_params(group: dict[str, Any]) -> None:
    """Raises unless the parameters of this group can have its options; what is lazy yet has its turn before a step."""
    for p in group["params"]:
        if not is_lazy(p):
            check_param(p, group)


def check_param(p: Tensor, group: dict[str, Any]) -> None:
    """Raises unless this parameter can have the options of its group. Its name is looked for only then."""
    if p.is_neg() or p.is_conj():
        name = name_of(p, group)
        raise ValueError(f"{name}: a lazily negated or conjugated tensor cannot be updated in place; clone it")
    if group["stochastic_rounding"] and p.dtype == torch.float16:
        raise ValueError(
            f"{name_of(p, group)} is float16: stochastic_rounding is for bfloat16; expected it to be False"
        )
    if group["state_dtype"] == torch.bfloat16 and p.is_complex():
        raise ValueError(f"{name_of(p, group)} is complex: expected state_dtype=None, torch.float32 or torch.float64")
    if group["state_shape"] == "row" and p.ndim > 1:
        if p.is_complex():
            raise ValueError(f"{name_of(p, group)} is complex: expected state_shape='full'")
        if hasattr(p, "placements"):
            rows_here(name_of(p, group), p, "state_shape='row'")
    if group["fused"] and not p.is_meta and not_fused(p, group["state_dtype"]):  # a meta tensor's device is yet to come
        check_fused(name_of(p, group), p, group["state_dtype"])
