"""The options of a parameter group: their names, the rule they make, and what cannot be combined."""

from collections.abc import Callable, Iterable
from difflib import get_close_matches
from operator import itemgetter
from typing import Any, Generic, NamedTuple, TypeVar

import torch
from torch import Tensor

from rmsprop import averaging
from rmsprop.dialects import dialect as dialect_rule
from rmsprop.kernels import cpu
from rmsprop.rowwise import STATE_SHAPES
from rmsprop.rprop import RpropRule
from rmsprop.rule import OptionError, Rule
from rmsprop.torch import gpu

#: How torch calls what the rule calls otherwise.
_TORCH_NAMES = {"beta": "alpha", "epsilon": "eps"}
_MESSAGE_NAMES = {"lr": "learning rate", "beta": "alpha value"}
_FIELDS = tuple(name for name in Rule.__dataclass_fields__ if name != "decay_mode")
#: The options that make the rule, under torch's names.
RULE_KEYS = (*(_TORCH_NAMES.get(name, name) for name in _FIELDS), "decoupled_weight_decay")
#: The options that say how it is computed, and their defaults.
ENGINE = {
    "capturable": False,
    "foreach": None,
    "differentiable": False,
    "fused": None,
    "state_dtype": None,
    "stochastic_rounding": False,
    "seed": 0,
    "sparse": "exact",
    "state_shape": "full",
    "averaging": False,
}
VALUES = itemgetter(*RULE_KEYS, *ENGINE)
#: Options that None leaves to the dialect; it is no value of theirs.
_LEFT_BY_NONE = {"epsilon_mode", "initial_square", "variance_floor", "bias_correction", "momentum_form", "nesterov"}
_LEFT_BY_NONE |= {"nonfinite", "decoupled_weight_decay"}
_SPARSE = ("exact", "lazy", "dense")
_STATE_DTYPES = (None, torch.float32, torch.float64, torch.bfloat16)


AnyRule = TypeVar("AnyRule", Rule, RpropRule)


class Known(NamedTuple, Generic[AnyRule]):
    """A group's rule, the option values it was made from, and the gamma of its average."""

    values: tuple[Any, ...]
    rule: AnyRule
    scalars: cpu.Scalars
    flags: int
    gamma: float | None = None


class Family(NamedTuple):
    """The options that the groups of one optimizer hold.

    Attributes:
        name: the optimizer's.
        keys: those that make the rule, `lr` first.
        values: of a group, as `known` takes them: those of `keys` and then those of `ENGINE`.
        known: what they amount to; raises where they amount to nothing.
        neutral: the values of options that a saved state does not have: torch's.
    """

    name: str
    keys: tuple[str, ...]
    values: Callable[[dict[str, Any]], tuple[Any, ...]]
    known: Callable[[tuple[Any, ...]], Known[Any]]
    neutral: dict[str, Any]


def defaults(dialect: str | Rule) -> dict[str, Any]:
    """The options of a dialect, by name, or of a rule, under torch's names."""
    rule = dialect_rule(dialect)
    values = (*(getattr(rule, name) for name in _FIELDS), rule.decay_mode == "decoupled")
    return dict(zip(RULE_KEYS, values, strict=True))


def spelled_out(group: dict[str, Any], known: Iterable[str]) -> dict[str, Any]:
    """A group as a caller gives it, with the options of its `dialect`, and without those that None leaves alone.

    Args:
        group: the options of the group win over its dialect's; it may have keys that are nobody's option.
        known: the names of the optimizer's options. If `dialect` is one, it is a mere option.

    Raises:
        ValueError: a key that is nearly the name of an option, or an unknown dialect.
    """
    group, names = {**group}, [*known, "dialect"]
    for key in group:
        near = get_close_matches(str(key), names, 1, cutoff=0.85)
        if key not in names and near and abs(len(str(key)) - len(near[0])) < 3:  # no_weight_decay is no slip
            raise ValueError(f"{key!r} is not an option of a group (did you mean {near[0]!r}?)")
    if names.count("dialect") > 1:
        return group
    given = {name: value for name, value in group.items() if value is not None or name not in _LEFT_BY_NONE}
    dialect = given.pop("dialect", None)
    return given if dialect is None else {**defaults(dialect), **given}


def _values(group: dict[str, Any]) -> tuple[Any, ...]:
    """The options of a group: those of `RULE_KEYS`, then those of `ENGINE`."""
    found = VALUES(group)
    return (*found[:-1], distinct(found[-1]))


def distinct(option: Any) -> Any:
    """A value of `averaging` that no other equals: True == 1 and False == 0, but here they mean something else."""
    return averaging.gamma_of(option) if isinstance(option, bool) else option


def known(values: tuple[Any, ...]) -> Known[Rule]:
    """What `VALUES` of a group amount to.

    Raises:
        ValueError: an option outside its range, in torch's names, or options that cannot be combined.
        RuntimeError: the combinations for which torch raises one.
    """
    options = dict(zip((*RULE_KEYS, *ENGINE), values, strict=True))
    check_engine(options)
    fields = dict(zip((*_FIELDS, "decoupled"), values, strict=False))
    rule = _rule(fields, fields.pop("decoupled"))
    if options["capturable"] and rule.nonfinite != "propagate":
        raise ValueError(f"capturable=True: nonfinite={rule.nonfinite!r} counts on the host; expected 'propagate'")
    for name, excluded in (("capturable", options["capturable"]), ("centered", rule.centered)):
        allowed = f"'full' with {name}=True"
        _expect("state_shape", options["state_shape"], options["state_shape"] == "full" or not excluded, allowed)
    gamma = averaging.gamma_of(options["averaging"])
    return Known(values, rule, *coefficients(rule, options, gamma=gamma), gamma)


def coefficients(
    rule: Rule, group: dict[str, Any], scale: float = 1.0, gamma: float | None = None
) -> tuple[cpu.Scalars, int]:
    """Those of the kernel, for a group of this rule whose gradients have been multiplied by `scale`."""
    return cpu.coefficients(rule, scale, group["stochastic_rounding"], group["state_shape"] == "row", gamma)


def _rule(fields: dict[str, Any], decoupled: Any) -> Rule:
    fields["lr"] = number(fields["lr"])
    if not isinstance(decoupled, bool):
        raise ValueError(f"Invalid decoupled_weight_decay value: {decoupled!r}: expected True or False")
    try:
        if tensor := next((name for name, value in fields.items() if isinstance(value, Tensor)), None):
            raise OptionError(tensor, fields[tensor], "a number; only lr may be a tensor")
        return Rule(**fields, decay_mode="decoupled" if decoupled else "coupled")
    except OptionError as error:
        raise invalid(error) from None


def number(lr: Any) -> Any:
    """A learning rate that is a tensor as a number; anything else as it is."""
    if not isinstance(lr, Tensor):
        return lr
    if lr.numel() != 1:
        raise ValueError(f"Tensor lr must be 1-element, got {lr.numel()}")
    if lr.requires_grad:
        raise ValueError("Invalid learning rate: a tensor that requires grad: expected one that does not")
    return lr.item()


def invalid(error: OptionError) -> ValueError:
    """The error as torch words it."""
    name = _MESSAGE_NAMES.get(error.name, f"{error.name} value")
    return ValueError(f"Invalid {name}: {error.value!r}: expected {error.allowed}")


def check_engine(options: dict[str, Any]) -> None:
    """Raises unless the options of `ENGINE` are in their ranges and can be combined."""
    for name in ("capturable", "differentiable", "stochastic_rounding"):
        _expect(name, options[name], isinstance(options[name], bool), "True or False")
    for name in ("foreach", "fused"):
        _expect(name, options[name], options[name] is None or isinstance(options[name], bool), "True, False or None")
    _expect("sparse", options["sparse"], options["sparse"] in _SPARSE, f"one of {_SPARSE}")
    _expect("state_shape", options["state_shape"], options["state_shape"] in STATE_SHAPES, f"one of {STATE_SHAPES}")
    state_dtype, seed = options["state_dtype"], options["seed"]
    _expect("state_dtype", state_dtype, state_dtype in _STATE_DTYPES, f"one of {_STATE_DTYPES}")
    whole = isinstance(seed, int) and not isinstance(seed, bool)
    _expect("seed", seed, whole and 0 <= seed < 2**63, "a whole number from 0 to 2**63 - 1")
    try:
        gamma = averaging.gamma_of(options["averaging"])
    except OptionError as error:
        raise invalid(error) from None
    if options["fused"] and options["foreach"]:
        raise RuntimeError("`fused` and `foreach` cannot be `True` together.")
    if options["differentiable"]:
        if options["fused"]:
            raise RuntimeError("`fused` does not support `differentiable`")
        for name, excluded in (("foreach", True), ("stochastic_rounding", True), ("state_dtype", torch.bfloat16)):
            _expect(name, options[name], options[name] != excluded, "another value with differentiable=True")
        if gamma is not None:
            raise ValueError("averaging and differentiable=True cannot be combined: expected one of them to be False")


def _expect(name: str, value: object, fits: bool, allowed: str) -> None:
    if not fits:
        raise ValueError(f"Invalid {name} value: {value!r}: expected {allowed}")


#: What the groups of `RMSprop` hold.
RMSPROP = Family("RMSprop", RULE_KEYS, _values, known, defaults("torch") | ENGINE)
#: The families by their names in compiled graphs.
FAMILIES = {RMSPROP.name: RMSPROP}


def plain(value: Any) -> Any:
    """A NumPy number as Python's, in a pair too, which becomes a tuple; anything else as it is."""
    if isinstance(value, (tuple, list)):
        return tuple(map(plain, value))
    return value.item() if type(value).__module__ == "numpy" else value


def left_to_lists(group: dict[str, Any]) -> bool:
    """Whether the options of a group ask for a step without a kernel."""
    return bool(group["foreach"] or group["fused"] is False or group["differentiable"])


def check_fused(name: str, p: Tensor, state_dtype: torch.dtype | None) -> None:
    """Raises a RuntimeError unless the kernel can take this parameter."""
    if why := not_fused(p, state_dtype):
        raise RuntimeError(
            "`fused=True` requires all the params to be floating point Tensors on the CPU or, with Triton, a GPU: "
            f"{name} {why}"
        )


def not_fused(p: Tensor, state_dtype: torch.dtype | None) -> str:
    """Why the kernel cannot take a parameter, or nothing."""
    if cpu.native is None:
        return f"cannot be stepped by {cpu.NAME}"
    if p.device.type != "cpu" and not gpu.takes(p):
        return f"is on {p.device}"
    if not (p.is_floating_point() or p.is_complex()):
        return f"is {p.dtype}"
    wide = p.dtype in (torch.float64, torch.complex128)
    if state_dtype is not None and (state_dtype == torch.float64) != wide:
        return f"is {p.dtype}, whose state the kernel does not keep in {state_dtype}"
    return ""
