"""The command `rmsprop`: finds the commands, runs one, and turns every error into one line and an exit code."""

import functools
import inspect
import os
import sys
import time
import traceback
from collections.abc import Callable
from importlib import import_module
from pkgutil import iter_modules
from typing import Any

import rmsprop
from rmsprop import cli
from rmsprop.training.ranks import launched

DIVERGED, USAGE, INTERRUPTED, BROKEN_PIPE = 1, 2, 130, 141
PATIENCE = 5.0  # seconds


def main(arguments: list[str] | None = None) -> int:
    """Run a command line and return its exit code.

    0 done; 1 the training diverged; 2 something is wrong with what was asked; 130 stopped by Ctrl-C.

    Args:
        arguments: without the program's name; None takes `sys.argv`.
    """
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # a terminal that lacks a character shows "?"
    try:
        code = _app()(args=arguments, prog_name="rmsprop", standalone_mode=False)
        sys.stdout.flush()
    except (Exception, KeyboardInterrupt, SystemExit) as error:
        if _unheard(error):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return BROKEN_PIPE
        code, message = _explained(error)
        _say(code, f"rmsprop: {' '.join(message.split())}")
    return code if isinstance(code, int) else 0


def _unheard(error: BaseException) -> bool:
    """Whether nobody listens, as in `rmsprop ... | head`; click makes an exit of it."""
    return isinstance(error.__context__ if isinstance(error, SystemExit) else error, BrokenPipeError)


class _StoppedError(Exception):
    """KeyboardInterrupt, which click would turn into a silent exit."""


def _app() -> Callable[..., Any]:
    """The typer application, with every module of this package as a command."""
    import typer

    app = typer.Typer(add_completion=False, context_settings={"help_option_names": ["-h", "--help"]})

    @app.callback(invoke_without_command=True, help=rmsprop.__doc__)
    def _(context: typer.Context, version: bool = typer.Option(False, "--version", help="Show the version.")) -> None:
        if version:
            print(f"rmsprop {rmsprop.__version__}")
        elif context.invoked_subcommand is None:
            print(context.get_help())
        if version or context.invoked_subcommand is None:
            raise typer.Exit

    for found in iter_modules(cli.__path__):
        if not found.name.startswith("_"):
            command = getattr(import_module(f"rmsprop.cli.{found.name}"), found.name)
            app.command(found.name, help=_help(command))(_stoppable(command))
    return typer.main.get_command(app)


def _help(command: Callable[..., None]) -> str:
    """The docstring as typer wants it: a line a paragraph, and a mark before lines that must stay lines."""
    prose, _, examples = inspect.cleandoc(command.__doc__ or "").partition("Examples:")
    paragraphs = [" ".join(paragraph.split()) for paragraph in prose.split("\n\n")]
    return "\n\n".join(paragraphs) + f"\b\nExamples:{examples}" * bool(examples)


def _stoppable(command: Callable[..., None]) -> Callable[..., None]:
    @functools.wraps(command)
    def run(**options: Any) -> None:
        try:
            command(**options)
        except KeyboardInterrupt as error:
            raise _StoppedError(str(error)) from error

    return run


def _say(code: int, message: str) -> None:
    """Print the line of an error, once where torchrun has started several of us.

    Rank 0 has it at once. The others wait first: if rank 0 has failed too, torchrun ends them meanwhile; if it has not,
    the line is theirs alone.
    """
    rank, _ = launched()
    if rank:
        if code == INTERRUPTED:
            return
        time.sleep(PATIENCE)
        message = f"{message} (rank {rank})"
    print(message, file=sys.stderr)


def _explained(error: BaseException) -> tuple[int, str]:
    """(exit code, message) of an error."""
    if isinstance(error, (_StoppedError, KeyboardInterrupt)):
        return INTERRUPTED, str(error) or "interrupted"
    if isinstance(error, FloatingPointError):
        return DIVERGED, str(error)
    if isinstance(error, ModuleNotFoundError):
        return USAGE, f'{error.name} is not installed: pip install "rmsprop[train]"'
    if hasattr(error, "format_message"):  # click's: which of its modules typer brings depends on its version
        context = getattr(error, "ctx", None)
        return USAGE, f"{error.format_message()} (see {context.command_path if context else 'rmsprop'} --help)"
    if isinstance(error, (ValueError, OSError)):
        file, reason = getattr(error, "filename", None), getattr(error, "strerror", None)
        return USAGE, f"{file}: {reason}" if file and reason else str(error)
    place = traceback.extract_tb(error.__traceback__)[-1]
    where = f"{os.path.basename(place.filename)}, line {place.lineno}"
    return USAGE, f"unexpected {type(error).__name__} in {where}: {error}; this is a bug, please report it"


if __name__ == "__main__":
    raise SystemExit(main())
