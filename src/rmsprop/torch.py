"""The PyTorch front end: a drop-in for `torch.optim.RMSprop`."""

from collections import defaultdict
from collections.abc import Callable, Iterable
from operator import attrgetter, itemgetter
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import increment_version
from torch.optim import Optimizer

from rmsprop.dialects import Default
from rmsprop.dialects import dialect as dialect_rule
from rmsprop.kernels import cpu, lists
from rmsprop.rule import OptionError, Rule

#: How torch calls what the rule calls otherwise.
_TORCH_NAMES = {"beta": "alpha", "epsilon": "eps"}
_NAMES = tuple(_TORCH_NAMES.get(name, name) for name in Rule.__dataclass_fields__ if name != "decay_mode")
_VALUES = itemgetter(*_NAMES, "decoupled_weight_decay")
_SWITCHES = {"capturable": False, "foreach": None, "differentiable": False}


_LR, _ALPHA, _EPS, _ZERO, _FALSE = Default(1e-2), Default(0.99), Default(1e-8), Default(0), Default(False)


class RMSprop(Optimizer):
    r"""RMSprop with `torch.optim.RMSprop`'s arguments, names, defaults and state, and this package's options.

        v <- alpha v + (1 - alpha) g^2
        p <- p - lr g / (sqrt(v) + eps)

    On the CPU one native call makes the whole step; elsewhere `rmsprop.rule.update` runs over lists of tensors.
    Arithmetic and state are float32 for float16, bfloat16 and float32 parameters, float64 for float64; complex
    parameters count as two real numbers an entry. Gradients are never written.

    Args:
        params: parameters, named parameters, or groups of them, as every torch optimizer takes.
        lr: step size, at least 0; a one-element tensor is read at every step.
        alpha: decay of the mean square, in [0, 1).
        eps: keeps the denominator from zero, at least 0.
        weight_decay: at least 0; added to the gradient as weight_decay * p.
        momentum: decay of the momentum buffer, in [0, 1).
        centered: divide by the standard deviation instead. It is kept as a variance, which cannot turn negative;
            `state_dict` has `square_avg` for other libraries beside it.
        foreach: True runs `rmsprop.rule.update` over lists of tensors on the CPU too; False runs it one tensor at a
            time on other devices; None and False use the native kernel on the CPU.
        maximize: climb instead of descend.
        capturable, differentiable: not supported yet; True raises.
        dialect: whose rule and defaults to use (`rmsprop.DIALECTS`); an argument that is given wins over it.
        nesterov, momentum_form, bias_correction, epsilon_mode, initial_square, variance_floor, clip, clip_weights,
        nonfinite: as in `rmsprop.Rule`; None is the dialect's.
        decoupled_weight_decay: take lr * weight_decay * p off the parameter instead; None is the dialect's.

    Attributes:
        skipped: how many gradient entries `nonfinite="skip"` has left alone so far.

    Raises:
        ValueError: an option outside its range, or options that cannot be combined.

    Example:
        >>> import torch, rmsprop.torch
        >>> layer = torch.nn.Linear(3, 1)
        >>> optimizer = rmsprop.torch.RMSprop(layer.parameters(), lr=0.01, dialect="keras")
        >>> layer(torch.ones(2, 3)).square().mean().backward()
        >>> optimizer.step()
        >>> optimizer.param_groups[0]["eps"], optimizer.param_groups[0]["epsilon_mode"]
        (1e-07, 'inside')

    Source: pytorch 2.13, torch/optim/rmsprop.py.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float | Tensor = _LR,
        alpha: float = _ALPHA,
        eps: float = _EPS,
        weight_decay: float = _ZERO,
        momentum: float = _ZERO,
        centered: bool = _FALSE,  # type: ignore[assignment]
        capturable: bool = False,
        foreach: bool | None = None,
        maximize: bool = False,
        differentiable: bool = False,
        *,
        dialect: str = "torch",
        nesterov: bool | None = None,
        momentum_form: str | None = None,
        bias_correction: bool | None = None,
        epsilon_mode: str | None = None,
        initial_square: float | None = None,
        decoupled_weight_decay: bool | None = None,
        variance_floor: float | None = None,
        clip: float | None = None,
        clip_weights: float | None = None,
        nonfinite: str | None = None,
    ) -> None:
        given = {
            "lr": lr,
            "alpha": alpha,
            "eps": eps,
            "weight_decay": weight_decay,
            "momentum": momentum,
            "centered": centered,
            "maximize": maximize,
            "nesterov": nesterov,
            "momentum_form": momentum_form,
            "bias_correction": bias_correction,
            "epsilon_mode": epsilon_mode,
            "initial_square": initial_square,
            "decoupled_weight_decay": decoupled_weight_decay,
            "variance_floor": variance_floor,
            "clip": clip,
            "clip_weights": clip_weights,
            "nonfinite": nonfinite,
        }
        defaults = _defaults(dialect)
        defaults |= {k: v for k, v in given.items() if v is not None and not isinstance(v, Default)}
        defaults |= {"capturable": capturable, "foreach": foreach, "differentiable": differentiable}
        for name in ("capturable", "differentiable"):
            if defaults[name]:
                raise ValueError(f"{name}=True: not supported yet, expected False")
        self.skipped = 0
        self._rules: dict[int, tuple[Any, Rule, cpu.Scalars, int]] = {}
        super().__init__(params, defaults)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Adds a group, as torch does; its options are checked before it is taken."""
        _rule(_VALUES({**self.defaults, **param_group}))
        super().add_param_group(param_group)

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Takes over a pickled or loaded state; options the state does not know have torch's values."""
        super().__setstate__(state)
        self._rules = {}
        self.__dict__.setdefault("skipped", 0)
        neutral = _defaults("torch") | _SWITCHES
        for group in self.param_groups:
            for name, value in neutral.items():
                group.setdefault(name, value)

    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        """One update of every parameter that has a gradient; everything is checked before the first write.

        Args:
            closure: evaluates the model again and returns the loss.

        Returns:
            What the closure returned, or None.

        Raises:
            ValueError: a gradient or state that does not fit its parameter, or an option outside its range.
            FloatingPointError: with `nonfinite="error"`, a gradient entry whose square is not finite.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        plan = _Plan(self)
        native = cpu.native is not None and not plan.listed
        try:
            skipped = cpu.step(plan.work, torch.get_num_threads()) if native else self._general(plan)
        except (TypeError, RuntimeError, BufferError):  # not all of it is for the kernel: other devices, complex
            skipped = self._general(plan)
        self.skipped += skipped
        self.state.update(plan.created)
        self._rules.update(plan.rules)
        for _, _, params, grads, _, _ in plan.work:
            increment_version([p for p, g in zip(params, grads, strict=True) if g is not None])
        return loss

    @torch.no_grad()
    def _general(self, plan: "_Plan") -> int:
        """The step where some tensors are not for the kernel as they are; checks everything, then writes."""
        for_kernel: list[cpu.Group] = []
        for_lists: dict[Any, list[Any]] = defaultdict(list)
        for i, (group, (scalars, flags, params, grads, states, names)) in enumerate(
            zip(self.param_groups, plan.work, strict=True)
        ):
            rows = [
                _real(_checked(names[k] if names else f"parameter {k} of group {i}", p, g, s))
                for k, (p, g, s) in enumerate(zip(params, grads, states, strict=True))
                if g is not None
            ]
            rule, listed = plan.rule(i), group["foreach"] or cpu.native is None
            native = [row for row in rows if row[0].is_cpu and not listed]
            for_kernel.append((scalars, flags, *([row[j] for row in native] for j in range(3)), None))  # type: ignore[arg-type]
            for k, (p, g, s) in enumerate(row for row in rows if not row[0].is_cpu or listed):
                if rule.nonfinite == "error" and not lists.usable(rule, p, g):
                    raise FloatingPointError(f"a gradient of group {i}, squared, is not finite")
                alone = k if group["foreach"] is False else None
                for_lists[i, p.dtype, p.device, int(s["step"]), alone].append((p, g, s))
        skipped = cpu.step(for_kernel, torch.get_num_threads())
        for (i, _, _, t, _), rows in for_lists.items():
            p, g, s = (list(column) for column in zip(*rows, strict=True))
            skipped += lists.step(plan.rule(i), t + 1, p, g, s)
            torch._foreach_add_([state["step"] for state in s], 1)
        return skipped

    def state_dict(self) -> dict[str, Any]:
        """Torch's layout; centered state has `square_avg`, for other libraries, beside our `variance`."""
        result = super().state_dict()
        result["state"] = {
            i: entry if "variance" not in entry else {**entry, "square_avg": _square_avg(entry)}
            for i, entry in result["state"].items()
        }
        return result

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes over a `state_dict` of this optimizer or of `torch.optim.RMSprop`; the state keeps its dtype."""
        super().load_state_dict(state_dict)
        indices = [i for group in state_dict["param_groups"] for i in group["params"]]
        for group in self.param_groups:
            for p in group["params"]:
                saved = state_dict["state"].get(indices.pop(0), {})
                if p in self.state:  # torch has cast it to the parameter's dtype
                    exact = {k: v.to(p.device, _state_dtype(p)) for k, v in saved.items() if _is_slot(k, v)}
                    self.state[p] = _settled({**self.state[p], **exact}, group["centered"])


class _Plan:
    """What a step is about to do: rules, and state that does not exist yet, to be kept only if it succeeds."""

    def __init__(self, optimizer: RMSprop) -> None:
        self.known, self.rules = optimizer._rules, {}  # type: ignore[var-annotated]
        self.created: dict[Tensor, dict[str, Any]] = {}
        self.listed = False
        self.work = [self._group(i, group, optimizer.state) for i, group in enumerate(optimizer.param_groups)]

    def rule(self, i: int) -> Rule:
        return (self.rules.get(i) or self.known[i])[1]

    def _group(self, i: int, group: dict[str, Any], state: dict[Tensor, Any]) -> cpu.Group:
        params = group["params"]
        grads = list(map(_GRAD, params))
        states = list(map(state.get, params))
        values = _VALUES(group)
        if isinstance(values[0], Tensor):
            values = (float(values[0]), *values[1:])
        known = self.known.get(i)
        if known is None or known[0] != values:
            rule = _rule(values)
            known = self.rules[i] = (values, rule, *cpu.coefficients(rule))
            states = [s if s is None else self._complete(p, s, rule) for p, s in zip(params, states, strict=True)]
        if None in states:
            states = [
                self._complete(p, {}, known[1]) if s is None and g is not None else s
                for p, g, s in zip(params, grads, states, strict=True)
            ]
        self.listed |= bool(group["foreach"])
        return known[2], known[3], params, grads, states, group.get("param_names")

    def _complete(self, p: Tensor, state: dict[str, Any], rule: Rule) -> dict[str, Any]:
        """The state with all slots of the rule: new ones as they start, none where all are there."""
        slots = rule.slots()
        if state and all(name in state for name in slots.values()):
            return state
        entry = _settled({"step": torch.zeros(()), **state}, rule.centered)
        for letter, name in slots.items():
            if name not in entry:
                entry[name] = torch.zeros_like(p, dtype=_state_dtype(p), memory_format=torch.preserve_format)
                if letter == "v" and rule.initial_square:
                    (torch.view_as_real(entry[name]) if p.is_complex() else entry[name]).fill_(rule.initial_square)
        self.created[p] = entry
        return entry


_GRAD = attrgetter("grad")


def _defaults(dialect: str) -> dict[str, Any]:
    """A dialect's options under torch's names."""
    rule = dialect_rule(dialect)
    values = {_TORCH_NAMES.get(name, name): getattr(rule, name) for name in Rule.__dataclass_fields__}
    values["decoupled_weight_decay"] = values.pop("decay_mode") == "decoupled"
    return values


def _rule(values: tuple[Any, ...]) -> Rule:
    """The rule of a group's values; errors speak torch's names."""
    *plain, decoupled = values
    fields = [name for name in Rule.__dataclass_fields__ if name != "decay_mode"]
    lr = plain[0]
    if isinstance(lr, Tensor):
        if lr.numel() != 1:
            raise ValueError("Tensor lr must be 1-element")
        plain[0] = lr.item()
    if not isinstance(decoupled, bool):
        raise ValueError(f"Invalid decoupled_weight_decay value: {decoupled!r}: expected True or False")
    try:
        return Rule(**dict(zip(fields, plain, strict=True)), decay_mode="decoupled" if decoupled else "coupled")
    except OptionError as error:
        name = {"lr": "learning rate", "epsilon": "epsilon"}.get(error.name, _TORCH_NAMES.get(error.name, error.name))
        raise ValueError(f"Invalid {name} value: {error.value!r}: expected {error.allowed}") from None


def _state_dtype(p: Tensor) -> torch.dtype:
    return p.dtype if p.is_complex() else torch.promote_types(p.dtype, torch.float32)


def _is_slot(key: str, value: Any) -> bool:
    return key != "step" and isinstance(value, Tensor)


def _square_avg(state: dict[str, Any]) -> Tensor:
    """The mean square that belongs to a variance and a mean."""
    m = state["grad_avg"]
    if not m.is_complex():
        return torch.addcmul(state["variance"], m, m)
    v, m = torch.view_as_real(state["variance"]), torch.view_as_real(m)
    return torch.view_as_complex(torch.addcmul(v, m, m))


def _settled(state: dict[str, Any], centered: bool) -> dict[str, Any]:
    """The state in the form a centered or plain rule keeps, from whichever form it has.

    Beside a `square_avg` that another library has moved on, a `variance` is stale.
    """
    state = dict(state)
    if not centered:
        if "square_avg" not in state and "variance" in state:
            state["square_avg"] = _square_avg(state)
        if "square_avg" in state:
            state.pop("variance", None)
        return state
    square = state.pop("square_avg", None)
    if square is None:
        return state
    m = state.setdefault("grad_avg", torch.zeros_like(square))
    v, s = (torch.view_as_real(x) if x.is_complex() else x for x in (state.get("variance", square), square))
    n = torch.view_as_real(m) if m.is_complex() else m
    fresh = (s - n * n).clamp_min(0)
    kept = torch.where(torch.addcmul(v, n, n) == s, v, fresh) if "variance" in state else fresh
    state["variance"] = torch.view_as_complex(kept) if m.is_complex() else kept
    return state


def _checked(name: str, p: Tensor, g: Tensor, state: dict[str, Any]) -> tuple[Tensor, Tensor, dict[str, Any]]:
    if g.layout != torch.strided:
        raise RuntimeError(f"{name}: RMSprop does not support sparse gradients")
    if g.shape != p.shape or g.dtype != p.dtype or g.device != p.device:
        raise ValueError(
            f"{name}: its gradient is {g.dtype} of shape {tuple(g.shape)} on {g.device}, "
            f"expected {p.dtype} of shape {tuple(p.shape)} on {p.device}"
        )
    for key, value in state.items():
        if _is_slot(key, value) and (value.shape != p.shape or value.device != p.device):
            raise ValueError(
                f"{name}: its {key} has shape {tuple(value.shape)} on {value.device}, unlike the parameter"
            )
    return p, g, state


def _real(row: tuple[Tensor, Tensor, dict[str, Any]]) -> tuple[Tensor, Tensor, dict[str, Any]]:
    """Complex tensors as two real numbers an entry, sharing their memory."""
    p, g, state = row
    if not p.is_complex():
        return p, g.resolve_neg(), state
    views = {k: torch.view_as_real(v) if _is_slot(k, v) else v for k, v in state.items()}
    return torch.view_as_real(p), torch.view_as_real(g.resolve_conj()), views
