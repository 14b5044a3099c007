"""The user's code: found by the name `module:function`, and its errors told by file and line."""

import os
import sys
import sysconfig
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

import rmsprop

#: Whose code is not the user's.
_OTHERS = tuple(
    f"{os.path.realpath(place)}{os.sep}"
    for place in (
        os.path.dirname(rmsprop.__file__),
        os.path.dirname(torch.__file__),
        *(sysconfig.get_paths()[name] for name in ("stdlib", "purelib", "platlib")),
    )
)


@contextmanager
def importable(folder: str) -> Iterator[None]:
    """Inside, modules of this folder can be imported, before all others."""
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        sys.path.remove(folder)


def function(spec: str) -> Callable[[], Any]:
    """The function called `module:function`.

    Raises:
        ValueError: there is none, or importing the module fails.
    """
    module, _, name = spec.partition(":")
    with reported(spec):
        try:
            found: Any = import_module(module)
        except ModuleNotFoundError as error:
            if error.name is None or not f"{module}.".startswith(f"{error.name}."):
                raise
            hint = f"; did you mean {module.removesuffix('.py')}:{name}?" if module.endswith(".py") else ""
            raise ValueError(f"there is no module {module!r} in this folder or installed{hint}") from error
    for part in name.split("."):
        if not hasattr(found, part):
            raise ValueError(f"{spec}: {getattr(found, '__file__', module)} has no {part!r}")
        found = getattr(found, part)
    if not callable(found):
        raise ValueError(f"{spec}: is a {type(found).__name__}; expected a function that returns (model, loss, data)")
    return found  # type: ignore[no-any-return]


@contextmanager
def reported(name: str, function: Callable[..., Any] | None = None) -> Iterator[None]:
    """Turns an error or exit in the user's code into a ValueError that says what and where; in ours it is named."""
    try:
        yield
    except SystemExit as error:
        where, code = place(error, function), "" if error.code is None else repr(error.code)
        raise ValueError(f"{name}: it called sys.exit({code})" + (f" ({where})" if where else "")) from error
    except Exception as error:
        where = place(error, function)
        if where:
            raise ValueError(f"{name}: {type(error).__name__}: {error} ({where})") from error
        if isinstance(error, ValueError):
            raise ValueError(f"{name}: {error}") from error
        raise


def place(error: BaseException, function: Callable[..., Any] | None = None) -> str | None:
    """File and line of the user's code that an error comes from; this function is theirs wherever it is installed."""
    own = getattr(getattr(function, "__code__", None), "co_filename", None)
    if isinstance(error, SyntaxError) and error.filename:
        return f"{error.filename}, line {error.lineno}"
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        path = Path(frame.filename).resolve()
        if frame.filename == own or (path.is_file() and not str(path).startswith(_OTHERS)):
            return f"{frame.filename}, line {frame.lineno}"
    return None
