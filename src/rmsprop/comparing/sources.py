"""Where problems come from: the package, a table, a function, or memory; how a resumed comparison finds them."""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from rmsprop.comparing import modules, yours
from rmsprop.comparing.builtin import BUILTIN
from rmsprop.comparing.data import DataMissing
from rmsprop.comparing.plan import Plan, known
from rmsprop.comparing.problem import Problem
from rmsprop.training.table import listed, read

FAST = ("digits", "mnist1d", "letters")
FUNCTION = re.compile(r"\w+(\.\w+)*:\w+(\.\w+)*")


class Source:
    """What makes the problems. `name` is the comparison's, `about` says in words where they come from."""

    name: str
    about: str
    in_memory = False  # a resumed comparison must be given it again
    missing: Mapping[str, str] = MappingProxyType({})  # problems whose data are not here: what to do about it

    def as_json(self) -> dict[str, Any]:
        """What finds it again."""
        return {"kind": type(self).__name__.lower(), **asdict(self)}  # type: ignore[call-overload]

    @contextmanager
    def ready(self, plan: Plan) -> Iterator[list[Problem]]:
        """The problems, for as long as their code can be imported."""
        yield self.problems(plan)

    def problems(self, plan: Plan) -> list[Problem]:
        """The problems."""
        raise NotImplementedError

    def blamed(self) -> AbstractContextManager[None]:
        """Inside, errors of the user's code are told as theirs."""
        return nullcontext()


@dataclass
class Builtin(Source):
    """Problems that come with the package; `optional` ones are left out where their data are missing."""

    names: list[str]
    optional: bool = False

    def __post_init__(self) -> None:
        for name in self.names:
            known(name, BUILTIN, "problems")
        if not self.names or len(set(self.names)) < len(self.names):
            raise ValueError(f"problems={','.join(self.names)}: expected one or more, each once")
        self.name = self.names[0] if len(self.names) == 1 else "problems"

    @property
    def about(self) -> str:  # type: ignore[override]
        """Their names."""
        return ", ".join(self.names)

    def as_json(self) -> dict[str, Any]:
        """The names of those that are compared."""
        return {"kind": "builtin", "names": self.names}

    def problems(self, plan: Plan) -> list[Problem]:
        """Makes them; the data of those that nobody asked for may be missing."""
        made, missing = {}, {}
        for name in self.names:
            try:
                made[name] = yours.resized(BUILTIN[name](), plan.steps, plan.batch_size)
            except DataMissing as error:
                if not self.optional:
                    raise ValueError(f"problems={name}: {error}") from error
                missing[name] = str(error)
        self.names, self.missing = list(made), missing
        return list(made.values())


@dataclass
class Table(Source):
    """A file with a column to predict."""

    path: str
    target: str

    def __post_init__(self) -> None:
        self.name = re.sub(r"\W+", "-", Path(self.path).name.split(".")[0]) or "table"
        self.about = f"{self.path}, column {self.target!r}"

    def problems(self, plan: Plan) -> list[Problem]:
        """Reads the file."""
        return [yours.from_table(read(self.path), self.target, self.name, plan.steps, plan.batch_size)]


@dataclass
class Function(Source):
    """A function that is found by `module:function`, its module in a folder or installed."""

    spec: str
    folder: str

    def __post_init__(self) -> None:
        self.name = self.spec.partition(":")[2].replace(".", "-")
        self.about = self.spec
        self.function: Callable[[], Any] | None = None

    @contextmanager
    def ready(self, plan: Plan) -> Iterator[list[Problem]]:
        """The problem; modules of the folder can be imported inside."""
        with modules.importable(self.folder):
            yield self.problems(plan)

    def problems(self, plan: Plan) -> list[Problem]:
        """Calls it."""
        self.function = modules.function(self.spec)
        with self.blamed():
            return [yours.from_function(self.function, self.name, plan.steps, plan.batch_size)]

    def blamed(self) -> AbstractContextManager[None]:
        """Inside, errors of the function's module are told as its."""
        return modules.reported(self.spec, self.function)


@dataclass
class Memory(Source):
    """A function, a `Problem`, or columns with a target, handed over in Python."""

    given: Any
    target: Any = None
    in_memory = True

    def __post_init__(self) -> None:
        given, name = self.given, "table"
        if isinstance(given, Problem):
            name = given.name
        elif callable(given):
            name = getattr(given, "__name__", type(given).__name__)
        self.name = re.sub(r"\W+", "-", name).strip("-")
        self.about = f"{self.name}, in memory"

    def as_json(self) -> dict[str, Any]:
        """Only its name."""
        return {"kind": "memory", "name": self.name}

    def problems(self, plan: Plan) -> list[Problem]:
        """Makes it."""
        budget = (plan.steps, plan.batch_size)
        if isinstance(self.given, Problem):
            return [yours.resized(self.given, *budget)]
        if callable(self.given):
            with self.blamed():
                return [yours.from_function(self.given, self.name, *budget)]
        return [yours.from_table(self.given, self.target, self.name, *budget)]

    def blamed(self) -> AbstractContextManager[None]:
        """Inside, errors of the function are told as its."""
        return modules.reported(self.name, self.given) if callable(self.given) else nullcontext()


def source_of(problem: Any, target: Any, problems: Sequence[str] | str | None, fast: bool) -> Source:
    """What the arguments of `rmsprop.compare` mean.

    Raises:
        ValueError: a table without a target, a target or names of problems beside something they do not go with.
    """
    problems = [problems] if isinstance(problems, str) else problems
    if problem is not None and problems is not None:
        raise ValueError(f"problems={','.join(problems)}: expected no problem of your own beside built-in ones")
    if problem is None:
        if target is not None:
            raise ValueError(f"target={target!r}: expected a table before it; the built-in problems have their own")
        names = list(problems) if problems is not None else list(FAST if fast else BUILTIN)
        return Builtin(names, optional=problems is None)
    function = isinstance(problem, str) and FUNCTION.fullmatch(problem) is not None and not Path(problem).exists()
    if function or callable(problem) or isinstance(problem, Problem):
        if target is not None:
            raise ValueError(f"target={target!r}: expected a table before it; a function has its own data")
        return Function(problem, str(Path.cwd())) if function else Memory(problem)
    if isinstance(problem, (str, Path)):
        _exists(problem)
        if target is None:
            raise ValueError(f"target: expected the column to predict; {problem} has {listed(read(problem).columns)}")
        return Table(str(Path(problem).resolve()), str(target))
    if target is None:
        raise ValueError("target=None: expected the column to predict, or an array with one value a row")
    return Memory(problem, target)


def _exists(path: str | Path) -> None:
    """Refuse a file that is not there, with what may have been meant."""
    if Path(path).exists():
        return
    name, colon, function = str(path).partition(":")
    module = name.removesuffix(".py").removeprefix("./").removeprefix(".").replace("/", ".")
    meant = f"{module}:{function}"
    hint = ""
    if str(path) in BUILTIN:
        hint = f"; did you mean --problems {path}, which is built in?"
    elif FUNCTION.fullmatch(meant):
        hint = f"; did you mean {meant}, a function in a module?"
    elif colon and not Path(path).is_absolute():  # C:\houses.csv is
        hint = "; a function is named module:function"
    raise ValueError(f"{path}: no such file{hint}")


def source_from(values: dict[str, Any]) -> Source | None:
    """The source that `as_json` wrote; None for what was in memory, which has to be given again."""
    kinds: dict[str, type[Source]] = {"builtin": Builtin, "table": Table, "function": Function}
    options = {name: value for name, value in values.items() if name != "kind"}
    return None if values["kind"] == "memory" else kinds[values["kind"]](**options)
