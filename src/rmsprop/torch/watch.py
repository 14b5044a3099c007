"""Statistics of a step: what it did to each parameter, in numbers that people can judge."""

from collections import Counter
from collections.abc import Callable
from itertools import chain
from math import sqrt
from typing import Any

import torch

from rmsprop.kernels import lists
from rmsprop.kernels.cpu import Group, Sums
from rmsprop.rule import Rule
from rmsprop.torch.plan import Plan
from rmsprop.torch.shards import local
from rmsprop.torch.state import State, is_slot, real

#: Quantiles of the effective step size lr / d, in percent.
QUANTILES = (10, 50, 90)
_SAMPLE = 1 << 14  # entries of a parameter that quantiles are taken of: few enough for one of torch's threads

Stats = dict[str, dict[str, float]]


class Watch:
    """Decides which steps are watched, and keeps what the last of them showed."""

    def __init__(self, log: Callable[[dict[str, float]], Any] | None, every: int) -> None:
        self._log, self._every, self.steps = log, every, 0
        self.latest: Stats = {}

    def due(self) -> bool:
        """Whether the step about to be made is to be watched."""
        self.steps += 1
        return self.steps % self._every == 0

    def take(self, plan: Plan, sums: list[Sums]) -> None:
        """Keeps the statistics of a step that has just been made."""
        found, often = iter(sums), Counter(chain.from_iterable(group.names or () for group in plan.work))
        self.latest = {}
        for i, group in enumerate(plan.work):
            for k, g in enumerate(group.grads):
                if g is not None and (row := next(found)).entries:
                    name = _name(group, i, k, often)
                    self.latest[name] = _statistics(row) | _step_sizes(plan.known[i].rule, group, k)

    def tell(self) -> None:
        """Hands the statistics to the caller's log, as one flat dict."""
        if self._log is not None:
            flat = {f"{name}/{key}": value for name, row in self.latest.items() for key, value in row.items()}
            self._log({"step": self.steps, **flat})


def _name(group: Group, i: int, k: int, often: Counter[str]) -> str:
    """The parameter's own name, with its group's where another one has it too, or its place."""
    if not group.names:
        return f"group{i}.parameter{k}"
    name = group.names[k]
    if often[name] == 1:
        return name
    return f"group{i}.{name}" if group.names.count(name) == 1 else f"group{i}.parameter{k}"


def _statistics(row: Sums) -> dict[str, float]:
    gradient, update, weight = (
        sqrt(row.gradient / max(row.entries - row.skipped, 1)),
        sqrt(row.update),
        sqrt(row.weight),
    )
    return {
        "gradient_rms": gradient,
        "update_rms": update / sqrt(row.entries),
        "weight_rms": weight / sqrt(row.entries),
        "update_to_weight": update / weight if weight else float("inf") if update else 0.0,
        "epsilon_share": row.dominated / row.entries,
        "skipped": row.skipped,
    }


@torch.no_grad()
def _step_sizes(rule: Rule, group: Group, k: int) -> dict[str, float]:
    """Quantiles of lr / d over at most 16,384 evenly spaced entries."""
    state: State = group.states[k]
    flat = {key: real(local(x)).flatten() for key, x in state.items() if is_slot(key, x)}
    sample = {key: x[:: -(-len(x) // _SAMPLE)] for key, x in flat.items()}
    _, d = lists.denominators(lists.Call(rule, int(state["step"])), sample)
    at = torch.tensor(QUANTILES, dtype=d.dtype, device=d.device) / 100
    sizes = torch.quantile(rule.lr / d, at, interpolation="nearest")  # between entries that may be infinite
    return {f"step_size_{q}": float(x) for q, x in zip(QUANTILES, sizes, strict=True)}
