"""`rmsprop learn`: the tutorial, in the browser."""

import shutil
from pathlib import Path
from typing import Annotated

import typer

HOST, PORT = "127.0.0.1", 2718
COPY = Path("rmsprop_learn.py")


def learn(
    port: Annotated[
        int | None,
        typer.Option(help=f"Where to serve; by default {PORT}, or another where that is taken.", min=1, max=65535),
    ] = None,
    browser: Annotated[
        bool | None, typer.Option("--browser/--no-browser", help="Open the browser, which is the default, or not.")
    ] = None,
    edit: Annotated[
        bool, typer.Option("--edit", help=f"Show the code too, to change: a copy, {COPY} in this folder.")
    ] = False,
    export: Annotated[
        Path | None, typer.Option(help="Write the page as HTML instead, with sliders that stand still.", metavar="FILE")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite FILE.")] = False,
) -> None:
    """Learn how RMSprop works, from gradient descent on x² on, in a page that computes as one reads.

    Opens in the browser and needs no network: this computer alone serves the page, to itself. Ctrl-C ends it.

    Examples:
      rmsprop learn
      rmsprop learn --edit
      rmsprop learn --port 8000 --no-browser
      rmsprop learn --export tutorial.html
    """
    _check_together(export, force, {"--port": port, "--browser or --no-browser": browser, "--edit": edit or None})
    _check_installed()
    if export is not None:
        _export(export, force)
        return
    with_code, without = (["edit", "--skip-update-check"], COPY), (["run"], _notebook())
    arguments, file = with_code if edit else without
    if edit and not COPY.exists():
        shutil.copyfile(_notebook(), COPY)
    _serve([*arguments, str(file)], _free(port), browser is not False)


def _check_together(export: Path | None, force: bool, serving: dict[str, object]) -> None:
    """Raises where an option would be ignored: those of serving are None where they have not been given."""
    if export is None:
        if force:
            raise ValueError("--force: expected only with --export FILE")
        return
    for name, value in serving.items():
        if value is not None:
            raise ValueError(f"{name}: expected not together with --export, which serves nothing")


def _check_installed() -> None:
    from importlib.util import find_spec

    for name in ("marimo", "matplotlib", "sklearn", "torch"):
        if find_spec(name) is None:
            raise ValueError(f'{name} is not installed: pip install "rmsprop[learn]"')


def _notebook() -> Path:
    import rmsprop.notebooks

    return Path(rmsprop.notebooks.__path__[0]) / "learn.py"


def _export(file: Path, force: bool) -> None:
    from rmsprop.checkpoint.disk import write
    from rmsprop.notebooks.page import page

    if file.is_dir():
        raise ValueError(f"{file}: is a folder; expected a file")
    if not file.parent.is_dir():
        raise ValueError(f"{file}: there is no folder {file.parent}")
    if file.exists() and not force:
        raise ValueError(f"{file}: exists already; expected a new file, or --force")
    html = page().encode()
    try:
        write(file, html)
    except OSError as error:  # which names a file beside this one
        raise OSError(error.errno, error.strerror, str(file)) from None
    print(file)


def _free(port: int | None) -> int:
    """The port, if nothing listens there; without one, the usual port or any other."""
    import os
    import socket

    for candidate in (PORT, 0) if port is None else (port,):
        try:
            with socket.create_server((HOST, candidate)) as probe:
                return int(probe.getsockname()[1])
        except OSError as error:
            reason = os.strerror(error.errno or 0)
    raise ValueError(f"--port {port}: {reason}")


def _serve(arguments: list[str], port: int, browser: bool) -> None:
    """Runs marimo's server in this process until Ctrl-C."""
    import logging
    import os
    import runpy
    import secrets
    import sys

    # Who can write cells can run any code as this user: without the password, other users of the computer could.
    token = secrets.token_urlsafe(16) if arguments[0] == "edit" else ""
    access = ["--token-password", token] if token else ["--no-token"]
    print(f"http://{HOST}:{port}{f'?access_token={token}' if token else ''} (Ctrl-C ends it)", flush=True)
    sys.argv = ["marimo", "-q", "-y", "--log-level", "ERROR", *arguments, "--host", HOST, "--port", str(port), *access]
    sys.argv += [] if browser else ["--headless"]
    # Ctrl-C while a page is open: uvicorn would show where it has stopped waiting.
    logging.getLogger("uvicorn.error").addFilter(lambda record: "CancelledError" not in record.getMessage())
    try:
        runpy.run_module("marimo", run_name="__main__", alter_sys=True)
    except (SystemExit, KeyboardInterrupt) as end:
        if getattr(end, "code", None):
            raise ValueError(f"marimo ended with exit code {end.code}") from None  # type: ignore[union-attr]
    if arguments[0] == "run":
        # A page that is open may be computing in a thread, which Python's own end can stop inside C++: that aborts.
        os._exit(0)
