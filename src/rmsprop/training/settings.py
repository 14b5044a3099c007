"""Every option of a training run, checked when it is made and kept in the run's config.json."""

from dataclasses import asdict, dataclass
from difflib import get_close_matches
from numbers import Integral, Real
from typing import Any

from rmsprop.dialects import DIALECTS, Default, dialect
from rmsprop.rule import Rule

INITS = ("kaiming", "zeros", "huge", "tiny")
TASKS = ("classification", "regression")
WIDEST, DEEPEST = 16_384, 32


@dataclass(frozen=True)
class Settings:
    """What a run was asked to do. `rule` is complete: dialect and explicit numbers are already one.

    Raises:
        ValueError: an option outside its range; the message names it, its value and what is allowed.
    """

    rule: Rule
    dialect: str
    epochs: int
    cooldown: float
    batch_size: int
    hidden: tuple[int, ...]
    init: str
    seed: int
    test_size: float
    task: str | None
    drop: tuple[str, ...]

    def __post_init__(self) -> None:
        for name, low, high in (("epochs", 1, 10**6), ("batch_size", 1, 10**7), ("seed", 0, 2**32 - 1)):
            _whole(name, getattr(self, name), low, high)
        if not isinstance(self.hidden, tuple) or len(self.hidden) > DEEPEST:
            raise ValueError(f"hidden={self.hidden!r}: expected at most {DEEPEST} widths, such as (256, 128)")
        for width in self.hidden:
            _whole("hidden", width, 1, WIDEST)
        _one_of("dialect", self.dialect, tuple(DIALECTS))
        _one_of("init", self.init, INITS)
        if self.task is not None:
            _one_of("task", self.task, TASKS)
        if not _real(self.cooldown) or not 0 <= self.cooldown <= 1:
            raise ValueError(f"cooldown={self.cooldown!r}: expected a number from 0 to 1, the part of the training")
        if not _real(self.test_size) or not 0 < self.test_size < 1:
            raise ValueError(f"test_size={self.test_size!r}: expected a number between 0 and 1, the part of the rows")

    @classmethod
    def of(cls, **options: Any) -> "Settings":
        """From the arguments of `rmsprop.fit`; others of them are passed over.

        A `Default`, or None for `centered`, leaves that number to the dialect.
        """
        numbers = {name: options[name] for name in ("lr", "beta", "epsilon", "momentum", "centered")}
        given = {name: x for name, x in numbers.items() if x is not None and not isinstance(x, Default)}
        hidden, drop = options["hidden"], options["drop"]
        try:
            hidden = tuple(hidden)
        except TypeError:
            hidden = (hidden,)  # one width stands for one layer
        drop = (drop,) if isinstance(drop, str) else tuple(str(name) for name in drop)
        names = ("dialect", "epochs", "cooldown", "batch_size", "init", "seed", "test_size", "task")
        rest = {name: options[name] for name in names}
        return cls(rule=dialect(options["dialect"], **given), hidden=hidden, drop=drop, **rest)

    def as_json(self) -> dict[str, Any]:
        """Plain values; `from_json` takes them back."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "Settings":
        """The settings that `as_json` wrote."""
        lists = {name: tuple(values[name]) for name in ("hidden", "drop")}
        return cls(**{**values, **lists, "rule": Rule(**values["rule"])})


def _real(value: object) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def _whole(name: str, value: object, low: int, high: int) -> None:
    if not isinstance(value, Integral) or isinstance(value, bool) or not low <= int(value) <= high:
        raise ValueError(f"{name}={value!r}: expected a whole number from {low} to {high}")


def _one_of(name: str, value: object, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"{name}={value!r}: expected one of {', '.join(allowed)}{hint(value, allowed)}")


def hint(value: object, allowed: tuple[str, ...]) -> str:
    """' (did you mean ...?)' where a name is close, else nothing."""
    close = get_close_matches(str(value), allowed, 1)
    return f" (did you mean {close[0]!r}?)" if close else ""
