"""`Checkpoint`, the one form that every format is read into and written from."""

import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from rmsprop.averaging import SLOT
from rmsprop.checkpoint import slots
from rmsprop.checkpoint.libraries import fitted, library
from rmsprop.checkpoint.slots import Array, Entry
from rmsprop.rule import OPTIONS, Rule

_ONE_COUNT = ("keras", "optax", "tf1")  # of steps, for all parameters


@dataclass(frozen=True, slots=True)
class Group:
    """Parameters that share a rule, and the gamma of an average of their weights (`rmsprop.averaging`), or None."""

    rule: Rule
    names: tuple[str, ...]
    averaging: float | None = None


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """The state of an optimizer, and the rule it was made by.

    Attributes:
        groups: every parameter's name once, with its rule.
        state: for each parameter that has been stepped, {"step": int, "square_avg": array, ...}; as many of
            `square_avg`, `variance`, `grad_avg` and `momentum_buffer` as its rule needs. Centered state has `variance`
            (ours), `square_avg` (other libraries'), or both. Averaged weights are `weight_avg`. Arrays are NumPy's, of
            float16, 32 or 64 or complex; bfloat16 is held as float32, which has all its numbers. They are copies.
        notes: what did not come through unchanged, a sentence each.

    Example:
        >>> import numpy as np, rmsprop
        >>> from rmsprop.checkpoint import of
        >>> optimizer = rmsprop.RMSprop({"w": np.ones(2)}, momentum=0.9)
        >>> optimizer.step({"w": np.ones(2)})
        >>> checkpoint = of(optimizer)
        >>> checkpoint.rule.momentum, checkpoint.state["w"]["step"]
        (0.9, 1)
    """

    groups: tuple[Group, ...]
    state: dict[str, Entry]
    notes: tuple[str, ...] = ()

    @property
    def rule(self) -> Rule:
        """The rule of all parameters.

        Raises:
            ValueError: there are several.
        """
        rules = {group.rule for group in self.groups}
        if len(rules) != 1:
            raise ValueError(f"{len(rules)} rules: expected one for all parameters; {self._differences()}")
        return rules.pop()

    @property
    def averaging(self) -> float | None:
        """The gamma of the averages of all parameters, or None.

        Raises:
            ValueError: there are several.
        """
        found = {group.averaging for group in self.groups}
        if len(found) > 1:
            raise ValueError(f"the groups differ in averaging, {sorted(map(str, found))}: expected one for all")
        return found.pop() if found else None

    def _differences(self) -> str:
        first = self.groups[0].rule if self.groups else Rule()
        odd = {f for group in self.groups for f in Rule.__slots__ if getattr(group.rule, f) != getattr(first, f)}
        return f"the groups differ in {', '.join(sorted(odd))}" if odd else "there is no group"

    @property
    def rules(self) -> dict[str, Rule]:
        """The rule of each parameter."""
        return {name: group.rule for group in self.groups for name in group.names}

    @property
    def names(self) -> tuple[str, ...]:
        """The parameters' names, in the groups' order."""
        return tuple(name for group in self.groups for name in group.names)

    @property
    def step(self) -> int:
        """How many steps have been made; where parameters differ, the largest number."""
        return max((entry["step"] for entry in self.state.values()), default=0)

    def faults(self) -> list[str]:
        """What no optimizer could have saved, each with its parameter's name."""
        rules = self.rules
        found = [f"{name}: state without a rule" for name in self.state if name not in rules]
        found += [f"{name}: in several groups" for name, times in Counter(self.names).items() if times > 1]
        for name, entry in self.state.items():
            if name in rules:
                found += slots.faults(name, entry, rules[name])
        return found

    def check(self) -> "Checkpoint":
        """This checkpoint.

        Raises:
            ValueError: it has faults; the first, and how many more.
        """
        if found := self.faults():
            raise ValueError(found[0] + (f" (and {len(found) - 1} more faults)" if len(found) > 1 else ""))
        return self

    def replace(self, **options: Any) -> "Checkpoint":
        """With options of every rule changed: what to do when the other side must differ, and you know why.

        Raises:
            ValueError: no option of `Rule`, or a value outside its range.
        """
        for name, value in options.items():
            if name not in OPTIONS:
                raise ValueError(f"{name}={value!r}: no such option; expected one of {', '.join(OPTIONS)}")
        return replace(self, groups=tuple(replace(group, rule=group.rule.replace(**options)) for group in self.groups))

    def renamed(self, names: Mapping[str, str] | Callable[[str], str]) -> "Checkpoint":
        """With other names: a dict (what it lacks stays), or a function of the name.

        Raises:
            ValueError: two parameters would have one name, or the dict has a name that is not there.
        """
        if isinstance(names, Mapping):
            if unknown := names.keys() - set(self.names):
                raise ValueError(f"names: {sorted(unknown)} are not here; expected some of {list(self.names)}")
            new = {name: names.get(name, name) for name in self.names}
        else:
            new = {name: names(name) for name in self.names}
        if len(set(new.values())) < len(new):
            raise ValueError(f"names: two parameters would have one name: {list(new.values())}")
        groups = tuple(replace(group, names=tuple(new[name] for name in group.names)) for group in self.groups)
        return replace(self, groups=groups, state={new.get(name, name): e for name, e in self.state.items()})

    def mapped(self, function: Callable[[str, Array], Array]) -> "Checkpoint":
        """With `function(name, array)` in the place of every state array, for another layout of the weights.

        A torch weight is a Keras kernel transposed: `lambda name, x: x.T if x.ndim == 2 else x`.
        """
        state = {
            name: {slot: function(name, x) if slot in slots.SLOTS else x for slot, x in entry.items()}
            for name, entry in self.state.items()
        }
        return replace(self, state=state)

    def regrouped(self, groups: Iterable[Iterable[str]]) -> "Checkpoint":
        """With the parameters in these groups, in this order.

        Raises:
            ValueError: other parameters, or parameters of different rules in one group.
        """
        here = {name: replace(group, names=()) for group in self.groups for name in group.names}
        wanted = [tuple(group) for group in groups]
        match_names([name for group in wanted for name in group], here)
        result = []
        for group in wanted:
            if len({here[name] for name in group}) > 1:
                raise ValueError(f"{list(group)} have different rules here: expected them in groups of their own")
            result += [replace(here[group[0]], names=group)] if group else []
        return replace(self, groups=tuple(result))

    def adapted(self, to: str) -> "Checkpoint":
        """As a library can have it: its rules, and the momentum buffer in its form; `notes` says what that changed.

        Args:
            to: a key of `LIBRARIES`.

        Raises:
            ValueError: the library cannot have a rule; names the option.
        """
        groups, state, notes = [], dict(self.state), list(self.notes)
        for group in self.groups:
            rule, factor, more = fitted(group.rule, to)
            stepped = [name for name in group.names if name in state]
            if averages := to != "rmsprop" and group.averaging is not None:
                more.append(f"{SLOT} is left out: {library(to).title} keeps no average of the weights")
                state |= {name: {k: x for k, x in state[name].items() if k != SLOT} for name in stepped}
            groups.append(Group(rule, group.names, None if averages else group.averaging))
            for name in stepped if factor != 1 else ():
                buffer = slots.rescaled(state[name]["momentum_buffer"], factor)
                state[name] = {**state[name], "momentum_buffer": buffer}
            home = library(to).home.initial_square
            if len(stepped) < len(group.names) and to not in ("rmsprop", "optax") and rule.initial_square != home:
                fresh = [name for name in group.names if name not in state]
                more.append(
                    f"{', '.join(fresh)}: no state yet; there it starts at {home:g}, not {rule.initial_square:g}"
                )
            notes += [note for note in more if note not in notes]
        steps = sorted({entry["step"] for entry in state.values()})
        if len(steps) > 1 and to in _ONE_COUNT:
            notes.append(
                f"parameters are at steps {steps[0]} to {steps[-1]}: {library(to).title} counts {steps[-1]} for all"
            )
        return replace(self, groups=tuple(groups), state=state, notes=tuple(notes))

    def written(self, to: str) -> "Checkpoint":
        """`adapted` and checked, for writers; what is new in the notes is a warning."""
        result = self.check().adapted(to)
        for note in result.notes[len(self.notes) :]:
            warnings.warn(note, stacklevel=3)
        return result

    def stepped(self) -> list[Entry]:
        """The state of all parameters, in order.

        Raises:
            ValueError: a parameter has none.
        """
        if fresh := [name for name in self.names if name not in self.state]:
            raise ValueError(f"{', '.join(fresh)}: no state yet; expected at least one step of every parameter")
        return [self.state[name] for name in self.names]


def match_names(wanted: Iterable[str], here: Iterable[str]) -> None:
    """Each of the names here is wanted, once, and no other.

    Raises:
        ValueError: names that are missing and names that are too many.
    """
    wanted, here = list(wanted), list(here)
    known, asked = set(here), set(wanted)
    missing, unknown = [n for n in wanted if n not in known], [n for n in here if n not in asked]
    if missing or unknown or len(wanted) != len(here):
        hint = ""
        if here == [str(i) for i in range(len(here))] and unknown:
            hint = "; the source has positions for names: read it with names=[...]"
        raise ValueError(f"other parameters than the checkpoint's: it lacks {missing} and has {unknown}{hint}")


def array(value: Any) -> Array:
    """A copy of a NumPy array, torch tensor or scalar, in native byte order; bfloat16 as float32.

    Raises:
        ValueError: a tensor that is spread over processes.
    """
    if hasattr(value, "placements"):
        raise ValueError("a distributed tensor: expected the full state; torch.distributed.checkpoint can gather it")
    if hasattr(value, "detach"):
        value = value.detach().cpu()
        value = (value.float() if str(value.dtype) == "torch.bfloat16" else value).numpy()
    result: Array = np.array(value, order="C")
    wide = np.dtype(np.float32) if result.dtype.name == "bfloat16" else result.dtype.newbyteorder("=")
    return result.astype(wide, copy=False)
