import re
import signal
import socket
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from time import monotonic, sleep
from urllib.error import HTTPError, URLError
from urllib.request import HTTPCookieProcessor, build_opener

import pytest

from rmsprop import notebooks
from rmsprop.cli.__main__ import main

NOTEBOOK = Path(notebooks.__path__[0]) / "learn.py"


@contextmanager
def server(folder, *arguments):
    """The command at work: (process, address)."""
    command = [sys.executable, "-m", "rmsprop", "learn", "--no-browser", *arguments]
    with subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            yield process, process.stdout.readline().split()[0]
        finally:
            process.kill()


def opened(address, patience=60):
    """(where a browser ends up, what it reads), once somebody listens there."""
    browser = build_opener(HTTPCookieProcessor())
    end = monotonic() + patience
    while True:
        try:
            with browser.open(address, timeout=5) as answer:
                return answer.geturl(), answer.read().decode()
        except HTTPError:
            raise
        except URLError:
            if monotonic() > end:
                raise
            sleep(0.2)


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return probe.getsockname()[1]


@pytest.mark.parametrize("missing", ["marimo", "matplotlib", "sklearn", "torch"])
def test_what_is_missing_and_which_extra_brings_it(missing, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, missing, None)
    assert main(["learn"]) == 2
    assert capsys.readouterr() == ("", f'rmsprop: {missing} is not installed: pip install "rmsprop[learn]"\n')


def test_a_port_in_use_is_one_line(capsys):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert main(["learn", "--port", str(port)]) == 2
    assert capsys.readouterr() == ("", f"rmsprop: --port {port}: Address already in use\n")


def test_a_port_that_is_none(capsys):
    assert main(["learn", "--port", "70000"]) == 2
    assert "--port" in capsys.readouterr().err


def test_an_export_is_never_overwritten_unless_asked(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr("rmsprop.notebooks.page.page", lambda: "<p>x²</p>")
    file = tmp_path / "a.html"
    assert main(["learn", "--export", str(file)]) == 0
    assert file.read_bytes() == "<p>x²</p>".encode()
    file.write_text("mine")
    assert main(["learn", "--export", str(file)]) == 2
    assert f"{file}: exists already" in capsys.readouterr().err
    assert file.read_text() == "mine"
    assert main(["learn", "--export", str(file), "--force"]) == 0
    assert file.read_text() != "mine"


def test_a_target_that_cannot_be_is_named_before_anything_is_computed(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr("rmsprop.notebooks.page.page", lambda: pytest.fail("computed"))
    nowhere = tmp_path / "nowhere" / "x.html"
    missing = f"there is no folder {nowhere.parent}"
    for target, words in ((nowhere, missing), (tmp_path, "is a folder; expected a file")):
        assert main(["learn", "--export", str(target), "--force"]) == 2
        assert capsys.readouterr() == ("", f"rmsprop: {target}: {words}\n")
    assert list(tmp_path.iterdir()) == []


def test_a_write_that_fails_names_the_target(capsys, monkeypatch, tmp_path):
    def full(file, _):
        raise OSError(28, "No space left on device", f"{file}.tmp")

    monkeypatch.setattr("rmsprop.notebooks.page.page", lambda: "<p>x²</p>")
    monkeypatch.setattr("rmsprop.checkpoint.disk.write", full)
    target = tmp_path / "x.html"
    assert main(["learn", "--export", str(target)]) == 2
    assert capsys.readouterr() == ("", f"rmsprop: {target}: No space left on device\n")


@pytest.mark.parametrize(
    ("options", "name"),
    [
        (["--export", "x.html", "--edit"], "--edit"),
        (["--export", "x.html", "--port", "5"], "--port"),
        (["--export", "x.html", "--no-browser"], "--browser or --no-browser"),
        (["--force"], "--force"),
    ],
    ids=str,
)
def test_options_that_would_be_ignored_are_refused(options, name, capsys, monkeypatch):
    monkeypatch.setattr("rmsprop.notebooks.page.page", lambda: pytest.fail("computed"))
    monkeypatch.setattr("rmsprop.cli.learn._serve", lambda *_: pytest.fail("served"))
    assert main(["learn", *options]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"rmsprop: {name}: expected ")
    assert err.count("\n") == 1


@pytest.mark.skipif(sys.platform == "win32", reason="sends a signal")
def test_it_serves_on_loopback_until_ctrl_c(tmp_path):
    port = free_port()
    with server(tmp_path, "--port", str(port)) as (process, address):
        assert address == f"http://127.0.0.1:{port}"
        assert "RMSprop from the beginning" in opened(address)[1]
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=30)
    assert (process.returncode, out, err) == (0, "", "")
    assert list(tmp_path.iterdir()) == []


def test_without_a_port_it_finds_one(tmp_path):
    with server(tmp_path) as (_, one):
        assert "RMSprop from the beginning" in opened(one)[1]
        with server(tmp_path) as (_, other):
            assert one != other
            assert "RMSprop from the beginning" in opened(other)[1]


def test_edit_is_of_a_copy_and_behind_a_password(tmp_path):
    original = NOTEBOOK.read_bytes()
    with server(tmp_path, "--edit") as (_, address):
        bare, _, token = address.partition("?access_token=")
        assert len(token) > 16
        assert "/auth/login" in opened(bare)[0]
        assert "/auth/login" not in opened(address)[0]
    copy = tmp_path / "rmsprop_learn.py"
    assert copy.read_bytes() == original
    copy.write_text(re.sub("# RMSprop from the beginning", "# Mine", copy.read_text()))
    with server(tmp_path, "--edit") as (_, address):
        opened(address)
    assert "# Mine" in copy.read_text()
    assert NOTEBOOK.read_bytes() == original
