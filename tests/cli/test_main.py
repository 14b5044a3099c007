import os
import subprocess
import sys
import types

import pytest

import rmsprop
from rmsprop.cli.__main__ import main


def python(*arguments, **options):
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=False, **options)


def test_version_and_help(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"rmsprop {rmsprop.__version__}\n"
    for arguments in ([], ["--help"], ["-h"]):
        assert main(arguments) == 0
        out = capsys.readouterr().out
        assert "train" in out
        assert "predict" in out


@pytest.mark.parametrize("command", ["train", "predict", "inspect", "convert", "explain", "learn"])
def test_every_command_has_examples_a_line_each(command, capsys):
    assert main([command, "--help"]) == 0
    out = capsys.readouterr().out
    assert "\b" not in out
    lines = [line.strip() for line in out.splitlines()]
    assert lines[lines.index("Examples:") + 1].startswith(f"rmsprop {command}")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["tran"], "No such command 'tran'"),
        (["train", "--lr", "much"], "--lr"),
        (["train", "--nonsense"], "--nonsense"),
        (["train", "a.csv", "b.csv"], "b.csv"),
        (["predict"], "RUN"),
    ],
)
def test_a_wrong_command_line_is_one_line(arguments, message, capsys):
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert err.startswith("rmsprop: ")
    assert message in err
    assert "--help" in err


def test_a_new_file_is_a_new_command(capsys, monkeypatch, tmp_path):
    (tmp_path / "hello.py").write_text('def hello(name: str) -> None:\n    """Greet."""\n    print(f"hello {name}")\n')
    monkeypatch.setattr("rmsprop.cli.__path__", [*rmsprop.cli.__path__, str(tmp_path)])
    assert main(["hello", "you"]) == 0
    assert capsys.readouterr().out == "hello you\n"
    sys.modules.pop("rmsprop.cli.hello")


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (ValueError("lr=-1:\n expected more"), 2, "rmsprop: lr=-1: expected more\n"),
        (PermissionError(13, "Permission denied", "runs"), 2, "rmsprop: runs: Permission denied\n"),
        (FloatingPointError("diverged"), 1, "rmsprop: diverged\n"),
        (KeyboardInterrupt(), 130, "rmsprop: interrupted\n"),
        (KeyError("x"), 2, "rmsprop: unexpected KeyError in test_main.py"),
    ],
)
def test_every_error_is_one_line_and_a_code(error, code, line, capsys, monkeypatch):
    def train() -> None:
        raise error

    monkeypatch.setitem(sys.modules, "rmsprop.cli.train", types.SimpleNamespace(train=train))
    assert main(["train"]) == code
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(line)
    assert err.count("\n") == 1


@pytest.mark.parametrize(("rank", "said"), [("0", "rmsprop: lr=-1\n"), ("1", "rmsprop: lr=-1 (rank 1)\n")])
def test_under_torchrun_rank_0_speaks_first_and_a_ctrl_c_once(rank, said, capsys, monkeypatch):
    errors, waited = [ValueError("lr=-1"), KeyboardInterrupt()], []

    def train() -> None:
        raise errors.pop(0)

    monkeypatch.setitem(sys.modules, "rmsprop.cli.train", types.SimpleNamespace(train=train))
    monkeypatch.setattr("time.sleep", waited.append)
    for name, value in {"TORCHELASTIC_RUN_ID": "x", "RANK": rank, "WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    assert main(["train"]) == 2
    assert capsys.readouterr().err == said
    assert len(waited) == int(rank)
    assert main(["train"]) == 130
    assert capsys.readouterr().err == "rmsprop: interrupted\n" * (rank == "0")


@pytest.mark.parametrize("missing", ["typer", "torch", "pandas"])
def test_a_missing_package_is_one_line_that_says_what_to_install(missing, tmp_path):
    script = (
        f"import sys; sys.modules['{missing}'] = None; from rmsprop.cli.__main__ import main; sys.exit(main(['train']))"
    )
    result = python("-c", script, cwd=tmp_path)
    assert result.returncode == 2
    assert result.stderr == f'rmsprop: {missing} is not installed: pip install "rmsprop[train]"\n'


@pytest.mark.skipif(os.name != "posix", reason="pipes of a shell")
def test_nobody_listening_is_no_traceback():
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as closed:
        command = [sys.executable, "-m", "rmsprop", "--version"]
        result = subprocess.run(command, stdout=closed, stderr=subprocess.PIPE, text=True, check=False)
    assert (result.returncode, result.stderr) == (141, "")


def test_the_module_and_the_package_are_the_command():
    for module in ("rmsprop", "rmsprop.cli"):
        assert python("-m", module, "--version").stdout == f"rmsprop {rmsprop.__version__}\n"
