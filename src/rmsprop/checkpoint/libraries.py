"""How each library calls the options of the rule, and which it cannot have: one row a library.

An option that a row does not name, the library has only with the value of its `home`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from rmsprop.dialects import DIALECTS
from rmsprop.rule import OPTIONS, Rule


@dataclass(frozen=True, slots=True)
class Library:
    """One row.

    Attributes:
        title: for messages.
        home: the rule with its defaults.
        names: its argument for each option of `Rule` that it has.
        choices: where it says the value otherwise too: by option, its value for each of ours.
        excludes: flags of `Rule` that it has, but together compute something else there.
        neutral: its own arguments of which the rule knows nothing, and the values at which they do nothing.
        outside: its own arguments that act on gradients or weights, not on the state: worth a note.
        required: options that neither its state nor its defaults tell.
        untold: options that its state may not tell, so that its default is worth a note.
    """

    title: str
    home: Rule
    names: Mapping[str, str]
    choices: Mapping[str, Mapping[Any, Any]] = field(default_factory=dict)
    excludes: tuple[str, ...] = ()
    neutral: dict[str, tuple[Any, ...]] = field(default_factory=dict)
    outside: dict[str, tuple[Any, ...]] = field(default_factory=dict)
    required: tuple[str, ...] = ()
    untold: tuple[str, ...] = ()


_TORCH = {name: name for name in ("lr", "weight_decay", "momentum", "centered")} | {"beta": "alpha", "epsilon": "eps"}
_DECAY = {"coupled": False, "decoupled": True}
_OFF = (None, False, 0)

LIBRARIES = {
    "rmsprop": Library(
        "rmsprop.torch.RMSprop",
        DIALECTS["torch"].rule,
        {name: name for name in OPTIONS} | _TORCH | {"decay_mode": "decoupled_weight_decay"},
        {"decay_mode": _DECAY},
    ),
    "torch": Library("torch.optim.RMSprop", DIALECTS["torch"].rule, _TORCH | {"maximize": "maximize"}),
    "timm": Library(
        "timm's RMSpropTF",
        DIALECTS["timm"].rule,
        _TORCH | {"decay_mode": "decoupled_decay", "momentum_form": "lr_in_momentum"},
        {"decay_mode": _DECAY, "momentum_form": {"lr_inside": True, "lr_outside": False}},
        neutral={"caution": _OFF, "corrected_weight_decay": _OFF},
    ),
    "sb3": Library("stable-baselines3's RMSpropTFLike", DIALECTS["sb3"].rule, _TORCH),
    "bitsandbytes": Library(
        "bitsandbytes' RMSprop",
        DIALECTS["torch"].rule,
        {name: _TORCH[name] for name in ("lr", "beta", "epsilon", "weight_decay")},
        neutral={"max_unorm": _OFF},
        outside={"percentile_clipping": (None, 100)},
    ),
    "adam": Library(
        "torch.optim.Adam with betas[0] = 0",
        Rule(1e-3, 0.999, 1e-8, "outside", bias_correction=True),
        {
            **{name: name for name in ("lr", "weight_decay", "maximize")},
            "beta": "beta2",
            "epsilon": "eps",
            "decay_mode": "decoupled_weight_decay",
        },
        {"decay_mode": _DECAY},
        neutral={"amsgrad": _OFF},
    ),
    "keras": Library(
        "Keras 3's RMSprop",
        DIALECTS["keras"].rule,
        {"lr": "learning_rate", "beta": "rho", "epsilon": "epsilon"}
        | {name: name for name in ("weight_decay", "momentum", "centered")},
        neutral={"gradient_accumulation_steps": _OFF},
        outside=dict.fromkeys(("clipnorm", "clipvalue", "global_clipnorm", "use_ema", "loss_scale_factor"), _OFF),
        required=("lr",),
        untold=("beta", "epsilon", "weight_decay"),
    ),
    "optax": Library(
        "optax.rmsprop",
        DIALECTS["optax"].rule,
        {"lr": "learning_rate", "beta": "decay", "epsilon": "eps", "initial_square": "initial_scale"}
        | {"epsilon_mode": "eps_in_sqrt"}
        | {name: name for name in ("centered", "momentum", "nesterov", "bias_correction")},
        {"epsilon_mode": {"inside": True, "outside": False}},
        excludes=("centered", "bias_correction"),
        required=("lr",),
        untold=("beta", "epsilon"),
    ),
    "tf1": Library(
        "TensorFlow 1's RMSPropOptimizer",
        DIALECTS["tf1"].rule,
        {"lr": "learning_rate", "beta": "decay"} | {name: name for name in ("momentum", "epsilon", "centered")},
        required=("lr",),
        untold=("beta", "epsilon"),
    ),
}


def library(name: str) -> Library:
    """The row of this name.

    Raises:
        ValueError: there is none.
    """
    if name not in LIBRARIES:
        raise ValueError(f"library={name!r}: expected one of {tuple(LIBRARIES)}")
    return LIBRARIES[name]


def arguments(rule: Rule, to: str) -> dict[str, Any]:
    """What to give a library's optimizer for this rule, under the library's own names.

    Args:
        rule: the rule.
        to: a key of `LIBRARIES`.

    Raises:
        ValueError: the library cannot have it; names the option. `momentum_form` counts as one: convert the buffer
            first (`Checkpoint.adapted`).

    Example:
        >>> import rmsprop
        >>> from rmsprop.checkpoint import arguments
        >>> arguments(rmsprop.dialect("torch", lr=0.01, beta=0.9), "optax")["eps_in_sqrt"]
        False
    """
    row, changed = library(to), fitted(rule, to)[0]
    if changed.momentum_form != rule.momentum_form:
        raise ValueError(_cannot(row, rule, "momentum_form"))
    result = {
        theirs: row.choices.get(ours, {}).get(getattr(rule, ours), getattr(rule, ours))
        for ours, theirs in row.names.items()
    }
    if to == "adam":
        result["betas"] = (0.0, result.pop("beta2"))
    if to == "optax" and not rule.momentum:
        result["momentum"] = None  # with 0 it would keep a buffer
    return result


def fitted(rule: Rule, to: str) -> tuple[Rule, float, list[str]]:
    """(the rule as the library can have it, factor for the momentum buffer, notes).

    Raises:
        ValueError: it cannot have it.
    """
    row, factor, notes = library(to), 1.0, []
    for name in OPTIONS:
        value, home = getattr(rule, name), getattr(row.home, name)
        allowed = row.choices.get(name, (value,)) if name in row.names else (home,)
        if value in allowed or not _matters(rule, name):
            continue
        if name == "momentum_form" and "ema" not in (value, home):
            factor = _factor(rule, home)
            notes.append(
                f"momentum_buffer: {'divided' if home == 'lr_outside' else 'multiplied'} by lr={rule.lr:g}, for "
                f"{row.title} has lr {home[3:]} it: the same steps, up to rounding, while lr stays so; others after"
            )
            rule = rule.replace(momentum_form=home)
        elif name == "nonfinite":
            notes.append(f"nonfinite={value!r}: {row.title} lets gradients that are not finite through")
            rule = rule.replace(nonfinite=home)
        else:
            raise ValueError(_cannot(row, rule, name))
    if row.excludes and all(getattr(rule, name) for name in row.excludes):
        raise ValueError(f"{row.title} computes something else with {' and '.join(row.excludes)} together")
    return rule, factor, notes


def _matters(rule: Rule, name: str) -> bool:
    """Whether the option has an effect on steps that go on from a state."""
    on = {"momentum_form": rule.momentum, "decay_mode": rule.weight_decay, "epsilon_mode": rule.epsilon}
    return bool(on.get(name, name != "initial_square"))


def _factor(rule: Rule, form: str) -> float:
    if not rule.lr:
        raise ValueError("lr=0.0: the momentum buffer cannot be converted; expected the lr of the next step")
    return 1 / rule.lr if form == "lr_outside" else rule.lr


def _cannot(row: Library, rule: Rule, name: str) -> str:
    allowed = tuple(row.choices.get(name, (getattr(row.home, name),)))
    expected = repr(allowed[0]) if len(allowed) == 1 else f"one of {allowed}"
    return f"{row.title} cannot have {name}={getattr(rule, name)!r}: expected {expected}"


def rule_of(
    name: str, theirs: Mapping[str, Any], given: Mapping[str, Any], *, strict: bool = True
) -> tuple[Rule, list[str]]:
    """(the rule, notes) that a library's options amount to.

    Args:
        name: a key of `LIBRARIES`.
        theirs: what the source says, under the library's names; what it does not say has the library's default.
        given: what the caller says, under the library's names or the rule's; wins.
        strict: False takes defaults for what is required too, and ignores what no rule has; notes say so.

    Raises:
        ValueError: an option that no rule has, or one that nobody tells; names it.
    """
    row = library(name)
    ours = {theirs_: option for option, theirs_ in row.names.items()}
    for option in given:
        if option not in ours and option not in OPTIONS:
            allowed = ", ".join(dict.fromkeys([*ours, *OPTIONS]))
            raise ValueError(f"{option}={given[option]!r}: {row.title} has no such option; expected one of {allowed}")
    for option, off in row.neutral.items():
        if theirs.get(option) not in off and strict:
            raise ValueError(f"{option}={theirs[option]!r}: no rule here has this option of {row.title}")
    notes = [
        f"{option}={theirs[option]!r} of {row.title} is no part of the rule and is not carried"
        for option, off in (row.outside | row.neutral).items()
        if theirs.get(option) not in off
    ]
    values: dict[str, Any] = {}
    for options in (theirs, given):
        for option, value in options.items():
            field_ = ours.get(option, option)
            if field_ in OPTIONS:
                values[field_] = _ours(row, field_, value)
    missing = [option for option in row.required if values.get(option) is None]
    if missing and strict:
        name = row.names[missing[0]]
        raise ValueError(f"{name} is not in the state: give {name}=...")
    missing += [option for option in row.untold if option not in values]
    notes += [
        f"{row.names[option]} is not in the state: taken as {getattr(row.home, option):g}, the default of {row.title}"
        for option in missing
    ]
    return row.home.replace(**{k: v for k, v in values.items() if v is not None}), notes


def _ours(row: Library, option: str, value: Any) -> Any:
    """The rule's value for a library's; a tensor's is its number."""
    value = value.item() if hasattr(value, "item") else value
    return next((ours for ours, theirs in row.choices.get(option, {}).items() if theirs is value), value)
