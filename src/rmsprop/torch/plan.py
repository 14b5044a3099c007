"""What a step is about to do: for every group its rule, its scalars, and the tensors that take part."""

from operator import attrgetter, is_, itemgetter
from typing import TYPE_CHECKING, Any, NamedTuple

from torch import Tensor

from rmsprop.dialects import dialect as dialect_rule
from rmsprop.kernels import cpu
from rmsprop.rule import OptionError, Rule
from rmsprop.torch.state import State, fresh

if TYPE_CHECKING:
    from rmsprop.torch.optimizer import RMSprop

#: How torch calls what the rule calls otherwise.
_TORCH_NAMES = {"beta": "alpha", "epsilon": "eps"}
_MESSAGE_NAMES = {"lr": "learning rate", "beta": "alpha value"}
_FIELDS = tuple(name for name in Rule.__dataclass_fields__ if name != "decay_mode")
_KEYS = (*(_TORCH_NAMES.get(name, name) for name in _FIELDS), "decoupled_weight_decay")
_MISSING = ("capturable", "differentiable")
_VALUES = itemgetter(*_KEYS, *_MISSING)
_GRAD = attrgetter("grad")


class Known(NamedTuple):
    """A group's rule, and the option values it was made from."""

    values: tuple[Any, ...]
    rule: Rule
    scalars: cpu.Scalars
    flags: int


class Plan:
    """One step's work. Rules and state that are new are kept here, for the optimizer to take if the step succeeds."""

    def __init__(self, optimizer: "RMSprop") -> None:
        self.known = dict(optimizer._known)
        self.created: dict[Tensor, State] = {}
        self.stepped: list[Tensor] = []
        self.for_lists = False
        self._state = optimizer.state
        self._keys, self._values, self._at = list(self._state), list(self._state.values()), 0
        self.work = [self._group(i, group) for i, group in enumerate(optimizer.param_groups)]

    def _group(self, i: int, group: dict[str, Any]) -> cpu.Group:
        params: list[Any] = group["params"]
        grads = list(map(_GRAD, params))
        states = self._states(params)
        values = _VALUES(group)
        if isinstance(values[0], Tensor):
            values = (float(values[0]), *values[1:])
        known = self.known.get(i)
        if known is None or known.values != values:
            known = self.known[i] = _known(values)
            states = [s and self._fresh(p, known.rule, s) for p, s in zip(params, states, strict=True)]
        try:
            special = any(map(Tensor.is_neg, grads))
        except TypeError:  # some are None
            special = True
        if special:
            grads = [g if g is None else g.resolve_neg() for g in grads]  # a lazy sign is not in the memory we read
        if not all(states):
            states = [
                s if s or g is None else self._fresh(p, known.rule, {})
                for p, g, s in zip(params, grads, states, strict=True)
            ]
        self.stepped += [p for p, g in zip(params, grads, strict=True) if g is not None] if special else params
        self.for_lists |= bool(group["foreach"])
        return known.scalars, known.flags, params, grads, states, group.get("param_names")

    def _states(self, params: list[Any]) -> list[Any]:
        """The state of each parameter, or None.

        After a step of all parameters the state lists them in the groups' order, and comparing that takes less than
        half the time of looking up each, for torch hashes tensors in Python.
        """
        end = self._at + len(params)
        if end <= len(self._keys) and all(map(is_, params, self._keys[self._at : end])):
            states = self._values[self._at : end]
            self._at = end
            return states
        return list(map(self._state.get, params))

    def _fresh(self, p: Tensor, rule: Rule, state: State) -> State:
        entry = fresh(p, rule, state)
        if entry is not state:
            self.created[p] = entry
        return entry


def defaults(dialect: str) -> dict[str, Any]:
    """A dialect's options under torch's names."""
    rule = dialect_rule(dialect)
    values = (*(getattr(rule, name) for name in _FIELDS), rule.decay_mode == "decoupled")
    return dict(zip(_KEYS, values, strict=True))


def check(options: dict[str, Any]) -> None:
    """Raises a ValueError, in torch's names, unless these options make a rule."""
    _known(_VALUES(options))


def _known(values: tuple[Any, ...]) -> Known:
    options = dict(zip((*_FIELDS, "decoupled", *_MISSING), values, strict=True))
    for name in _MISSING:
        if options.pop(name):
            raise ValueError(f"{name}=True: not supported yet, expected False")
    if isinstance(lr := options["lr"], Tensor):
        if lr.numel() != 1:
            raise ValueError(f"Tensor lr must be 1-element, got {lr.numel()}")
        options["lr"] = lr.item()
    decoupled = options.pop("decoupled")
    if not isinstance(decoupled, bool):
        raise ValueError(f"Invalid decoupled_weight_decay value: {decoupled!r}: expected True or False")
    try:
        if tensor := next((name for name, value in options.items() if isinstance(value, Tensor)), None):
            raise OptionError(tensor, options[tensor], "a number; only lr may be a tensor")
        rule = Rule(**options, decay_mode="decoupled" if decoupled else "coupled")
    except OptionError as error:
        name = _MESSAGE_NAMES.get(error.name, f"{error.name} value")
        raise ValueError(f"Invalid {name}: {error.value!r}: expected {error.allowed}") from None
    return Known(values, rule, *cpu.coefficients(rule))
