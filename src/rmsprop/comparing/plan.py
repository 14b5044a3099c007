"""What is tried: optimizers, learning rates, seeds and budget; checked when it is made, kept in compare.json."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rmsprop.comparing.candidates import CANDIDATES, Candidate
from rmsprop.training.settings import hint

DEFAULT = (
    "rmsprop",
    "rmsprop-keras",
    "rmsprop-modern",
    "rmsprop-modern-averaged",
    "torch-rmsprop",
    "sgd",
    "adam",
    "adamw",
    "adagrad",
    "rprop",
    "schedulefree",
    "prodigy",
)
SEEDS, FAST_SEEDS = 5, 3
MOST_SEEDS, MOST_LRS, MOST_STEPS = 1000, 100, 10**8


@dataclass(frozen=True)
class Plan:
    """What was asked for. Seeds count from 0; `lrs` None is each optimizer's own grid, `steps` the problem's own.

    Raises:
        ValueError: an option outside its range; the message names it, its value and what is allowed.
    """

    optimizers: tuple[str, ...]
    lrs: tuple[float, ...] | None
    seeds: int
    steps: int | None
    batch_size: int | None
    decay: bool

    def __post_init__(self) -> None:
        for name in self.optimizers:
            known(name, CANDIDATES, "optimizers")
        if not self.optimizers or len(set(self.optimizers)) < len(self.optimizers):
            raise ValueError(f"optimizers={','.join(self.optimizers)}: expected one or more, each once")
        whole("seeds", self.seeds, MOST_SEEDS)
        for name in ("steps", "batch_size"):
            if getattr(self, name) is not None:
                whole(name, getattr(self, name), MOST_STEPS)
        if self.lrs is not None:
            good = all(isinstance(lr, (int, float)) and math.isfinite(lr) and lr > 0 for lr in self.lrs)
            if not good or not 1 <= len(self.lrs) <= MOST_LRS or list(self.lrs) != sorted(set(self.lrs)):
                raise ValueError(
                    f"lrs={','.join(map(str, self.lrs))}: expected 1 to {MOST_LRS} positive numbers, ascending"
                )

    @classmethod
    def of(
        cls,
        optimizers: Sequence[str] | str | None,
        lrs: Sequence[float] | None,
        seeds: int | None,
        steps: int | None,
        batch_size: int | None,
        decay: bool,
        fast: bool,
    ) -> "Plan":
        """From the arguments of `rmsprop.compare`. Optimizers nobody asked for may lack their package."""
        given = _installed(DEFAULT) if optimizers is None else optimizers
        names = (given,) if isinstance(given, str) else tuple(given)
        if names == ("all",):
            names = _installed(CANDIDATES)
        count = (FAST_SEEDS if fast else SEEDS) if seeds is None else seeds
        rates = None if lrs is None else tuple(lr.tolist() if hasattr(lr, "tolist") else lr for lr in lrs)  # NumPy's
        return cls(names, rates, count, steps, batch_size, decay)

    def missing(self) -> dict[str, str]:
        """The optimizers that would be tried if their packages were here."""
        found = (CANDIDATES[name] for name in DEFAULT if self.optimizers == _installed(DEFAULT))
        return {c.name: f"not installed: pip install {c.package}" for c in found if not c.installed}

    def candidates(self) -> list[Candidate]:
        """The optimizers.

        Raises:
            ValueError: one is not installed; says what to install.
        """
        found = [CANDIDATES[name] for name in self.optimizers]
        for candidate in found:
            if not candidate.installed:
                raise ValueError(
                    f"optimizers={candidate.name}: not installed; expected pip install {candidate.package}"
                )
        return found

    def as_json(self) -> dict[str, Any]:
        """Plain values; `from_json` takes them back."""
        values = asdict(self)
        return {name: list(x) if isinstance(x, tuple) else x for name, x in values.items()}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "Plan":
        """The plan that `as_json` wrote, among other things."""
        taken: dict[str, Any] = {name: values[name] for name in cls.__dataclass_fields__}
        lists = {name: tuple(x) for name, x in taken.items() if isinstance(x, list)}
        return cls(**{**taken, **lists})


def _installed(names: Iterable[str]) -> tuple[str, ...]:
    return tuple(name for name in names if CANDIDATES[name].installed)


def known(name: str, names: Any, argument: str) -> None:
    """Refuse a name that is not there, with the closest one that is."""
    if name not in names:
        listed = ", ".join(names)
        raise ValueError(f"{argument}={name}: expected of {listed}{hint(name, tuple(names))}")


def whole(name: str, value: object, most: int) -> None:
    """Refuse what is no whole number from 1 to this."""
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= most:
        raise ValueError(f"{name}={value!r}: expected a whole number from 1 to {most}")
