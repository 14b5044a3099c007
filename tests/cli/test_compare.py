import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from rmsprop.cli.__main__ import main
from rmsprop.comparing import sources
from rmsprop.comparing.data import DataMissing
from rmsprop.comparing.sweep import Store
from tests.comparing.small import small

MINE = """
import sys

import torch

def problem():
    x = torch.randn(80, 3)
    return torch.nn.Linear(3, 1), torch.nn.functional.mse_loss, (x, x.sum(1, keepdim=True))

def broken():
    return problem() + (1 / 0,)

nothing = 3

def needs(config):
    return problem()

def stops(late=7):
    calls = []
    def loss(outputs, targets):
        calls.append(1)
        if len(calls) > late:
            sys.exit("no more")
        return torch.nn.functional.mse_loss(outputs, targets)
    return torch.nn.Linear(3, 1), loss, problem()[2]

def stops_late():
    return stops(30)

widths = [2, 3]

def grows():
    return torch.nn.Linear(3, widths.pop(0)), lambda outputs, targets: outputs.mean(), problem()[2]

def leaves():
    sys.exit(3)
"""
QUICK = ["--optimizers", "rmsprop,sgd", "--lrs", "0.003,0.03", "--seeds", "2", "--steps", "20"]
#: Long enough to be stopped in the middle.
LONG = ["--optimizers", "rmsprop,sgd,adam,adagrad", "--lrs", "1e-3:1e-1:3", "--seeds", "2", "--steps", "200"]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "mine", raising=False)
    Path("mine.py").write_text(MINE)
    table = pd.DataFrame({"a": range(60), "b": [x**0.5 for x in range(60)], "price": [3 * x for x in range(60)]})
    table.to_csv("houses.csv", index=False)
    return tmp_path


def curves(folder):
    """Every result in a folder, times apart."""
    store = Store(Path(folder), json.loads(Path(folder, "compare.json").read_text()))
    found = [path.stem.split("--") for path in Path(folder).glob("*--*.json")]
    return {tuple(parts): store.get(parts[0], parts[1], "decay" in parts).curves for parts in found}


def test_a_function_of_ones_own(folder, capsys):
    assert main(["compare", "mine:problem", *QUICK]) == 0
    out, err = capsys.readouterr()
    assert out.startswith("problem, 2 seeds\n")
    assert out.endswith("\nsaved in compare/problem-001 (look at compare/problem-001/report.html)\n")
    assert "on problem" in out
    assert err.startswith("1/2  problem rmsprop: loss ")
    assert set(curves("compare/problem-001")) == {("problem", "rmsprop"), ("problem", "sgd")}
    assert main(["compare", "mine:problem", *QUICK, "-q"]) == 0
    assert capsys.readouterr() == ("compare/problem-002\n", "")
    assert curves("compare/problem-002") == curves("compare/problem-001")


def test_a_table_and_the_options_reach_the_comparison(folder, capsys):
    options = "--optimizers adam --lrs 1e-3:1e-1:3 --seeds 1 --steps 7 --batch-size 9 --decay --out deep/er/run -q"
    assert main(["compare", "houses.csv", "--target", "price", *options.split()]) == 0
    assert capsys.readouterr().out == "deep/er/run\n"
    settings = json.loads(Path("deep/er/run/compare.json").read_text())
    expected = {"optimizers": ["adam"], "lrs": [0.001, 0.01, 0.1], "seeds": 1, "steps": 7, "batch_size": 9}
    expected |= {"decay": True, "source": {"kind": "table", "path": str(folder / "houses.csv"), "target": "price"}}
    assert {name: settings[name] for name in expected} == expected
    (found,) = curves("deep/er/run").values()
    assert found.lrs == [0.001, 0.01, 0.1]
    assert (len(found.seeds), found.steps[-1]) == (1, 7)


def test_built_in_problems_and_those_that_are_not_here(folder, capsys, monkeypatch):
    def missing():
        raise DataMissing("the numbers are not here: buy them")

    monkeypatch.setattr(sources, "BUILTIN", {"small": small, "missing": missing, "slow": missing})
    monkeypatch.setattr(sources, "FAST", ("small", "missing"))
    assert main(["compare", *QUICK, "--fast"]) == 0
    out, err = capsys.readouterr()
    assert err.startswith("left out: missing: the numbers are not here: buy them\n1/2  small rmsprop")
    assert "compare/problems-001" in out or "compare/small-001" in out
    settings = json.loads(next(Path("compare").iterdir()).joinpath("compare.json").read_text())
    assert settings["source"] == {"kind": "builtin", "names": ["small"]}
    assert main(["compare", *QUICK, "--problems", "small,missing"]) == 2
    assert capsys.readouterr().err == "rmsprop: problems=missing: the numbers are not here: buy them\n"
    assert main(["compare", *QUICK, "--problems", "small", "-q"]) == 0
    assert capsys.readouterr() == ("compare/small-001\n", "")


def test_fast_means_fewer_seeds(folder):
    assert main(["compare", "mine:problem", "--optimizers", "sgd", "--lrs", "0.1", "--fast", "--steps", "2", "-q"]) == 0
    assert json.loads(Path("compare/problem-001/compare.json").read_text())["seeds"] == 3


def test_the_list_has_optimizers_and_problems(folder, capsys):
    assert main(["compare", "--list"]) == 0
    out = capsys.readouterr().out
    assert "\n* rmsprop-modern  " in out
    assert "\n  rmsprop-tf1  " in out
    assert "\n  digits  " in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("nothing.csv --target y", "nothing.csv: no such file"),
        ("houses.csv", "target: expected the column to predict; houses.csv has a, b, price"),
        ("houses.csv --target prise", "target='prise': no such column (did you mean 'price'?)"),
        ("mine:problem --target y", "target='y': expected a table before it"),
        ("mine:nothing", "mine:nothing: is a int; expected a function"),
        ("mine:problen", "mine.py has no 'problen'"),
        ("yours:problem", "yours:problem: there is no module 'yours' in this folder or installed"),
        ("mine.py:problem", "there is no module 'mine.py' in this folder or installed; did you mean mine:problem?"),
        ("mine:broken", f"mine:broken: ZeroDivisionError: division by zero (PLACE{os.sep}mine.py, line 11)"),
        ("mine:leaves", f"mine:leaves: it called sys.exit(3) (PLACE{os.sep}mine.py, line 36)"),
        ("mine:stops", f"mine:stops: it called sys.exit('no more') (PLACE{os.sep}mine.py, line 23)"),
        ("leaves:problem", f"leaves:problem: it called sys.exit() (PLACE{os.sep}leaves.py, line 1)"),
        ("parses:problem", f"parses:problem: it called sys.exit(2) (PLACE{os.sep}parses.py, line 3)"),
        ("mine:needs", "mine:needs: calling it failed: TypeError: needs() missing 1 required positional argument"),
        (
            "mine:grows",
            "mine:grows: its model differs between seeds: 'weight' is (2, 3) for seed 0 and (3, 3) for",
        ),
        ("./mine:problem", "./mine:problem: no such file; did you mean mine:problem, a function in a module?"),
        (".mine:problem", ".mine:problem: no such file; did you mean mine:problem,"),
        ("sub/mine.py:problem", "no such file; did you mean sub.mine:problem,"),
        ("..:problem", "..:problem: no such file; a function is named module:function"),
        ("../mine:problem", "../mine:problem: no such file; a function is named module:function"),
        ("digits", "digits: no such file; did you mean --problems digits, which is built in?"),
        ("digits --target y", "digits: no such file; did you mean --problems digits, which is built in?"),
        ("syntax:problem", "syntax:problem: SyntaxError: "),
        (
            "needs:problem",
            f"needs:problem: ModuleNotFoundError: No module named 'nowhere' (PLACE{os.sep}needs.py, line 1)",
        ),
        ("--problems digit", "problems=digit: expected of digits, "),
        ("mine:problem --problems digits", "problems=digits: expected no problem of your own"),
        ("mine:problem --optimizers adan", "(did you mean 'adam'?)"),
        ("mine:problem --optimizers ,", "optimizers=: expected of rmsprop, "),
        ("mine:problem --lrs 1e-3:1e-1", "--lrs 1e-3:1e-1: expected numbers such as 0.001,0.01, or LOW:HIGH:COUNT"),
        ("mine:problem --lrs x", "--lrs x: expected numbers"),
        ("mine:problem --lrs 1:0.1:3", "--lrs 1:0.1:3: expected numbers"),
        ("mine:problem --lrs 1,0.1", "lrs=1.0,0.1: expected 1 to 100 positive numbers, ascending"),
        ("mine:problem --seeds 0", "seeds=0: expected a whole number from 1 to 1000"),
        ("mine:problem --batch-size 100", "mine:problem: batch_size=100: expected at most 48"),
        ("mine:problem --out mine.py", "mine.py"),
        ("--resume nowhere", "nowhere: no folder of a comparison: it has no compare.json"),
        ("mine:problem --resume .", "a problem mine:problem: expected nothing beside --resume"),
        ("mine:problem --lrs 1e-4:1e-1:2000000000", "1e-4:1e-1:7, with COUNT from 2 to 100"),
        ("nothing.csv --list", "a problem nothing.csv: expected nothing beside --list"),
        ("--list --seeds 3", "--seeds 3: expected nothing beside --list"),
        ("--resume . --seeds 3", "--seeds 3: expected nothing beside --resume"),
    ],
)
def test_bad_input_is_one_line_exit_2_and_writes_nothing(folder, capsys, monkeypatch, arguments, message):
    Path("syntax.py").write_text("def problem(:\n")
    Path("needs.py").write_text("import nowhere\n")
    Path("leaves.py").write_text("raise SystemExit\n")
    Path("parses.py").write_text("import argparse\n\nargparse.ArgumentParser(exit_on_error=True).exit(2)\n")
    for name in ("leaves", "parses"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    before = {path: path.read_bytes() for path in folder.iterdir()}
    assert main(["compare", *arguments.split()]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert err.startswith("rmsprop: ")
    assert message.replace("PLACE", str(folder)) in err
    assert {path: path.read_bytes() for path in folder.iterdir() if path.name != "__pycache__"} == before


def test_an_exit_in_the_middle_of_training_is_told(folder, capsys):
    assert main(["compare", "mine:stops_late", *QUICK]) == 2
    message = f"rmsprop: mine:stops_late: it called sys.exit('no more') ({folder}{os.sep}mine.py, line 23)\n"
    assert capsys.readouterr().err == message


@pytest.mark.skipif(os.name != "posix", reason="pipes of a shell")
def test_nobody_listening_to_the_table_is_no_error(folder):
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as closed:
        command = [sys.executable, "-u", "-m", "rmsprop", "compare", "--list"]
        result = subprocess.run(command, stdout=closed, stderr=subprocess.PIPE, text=True, check=False)
    assert (result.returncode, result.stderr) == (141, "")


def test_help_loads_neither_torch_nor_pandas(folder):
    script = "import sys; from rmsprop.cli.__main__ import main; main(['compare', '--help']); "
    script += "sys.exit(any(name in sys.modules for name in ('torch', 'pandas', 'sklearn', 'rich.progress')))"
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert "rmsprop compare --resume compare/problems-001" in result.stdout


def stopped(by, after, *arguments):
    """What is left of standard error, and the exit code, when a comparison gets a signal after so many optimizers."""
    command = [sys.executable, "-m", "rmsprop", "compare", *arguments]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        for line in process.stderr:
            if line.startswith(f"{after}/4"):
                process.send_signal(by)
                break
        rest = process.stderr.read()
    return rest, process.returncode


def test_killed_then_stopped_by_ctrl_c_it_goes_on_to_the_same_end(folder, capsys):
    assert main(["compare", "mine:problem", *LONG, "--out", "uninterrupted", "-q"]) == 0
    assert stopped(signal.SIGKILL, 1, "mine:problem", *LONG, "--out", "my run") == ("", -signal.SIGKILL)
    assert len(curves("my run")) == 1
    rest, code = stopped(signal.SIGINT, 2, "--resume", "my run")
    assert code == 130
    how = "rmsprop compare --resume 'my run'"
    assert rest == f"rmsprop: stopped with 2 of 4 optimizers done and kept; go on with: {how}\n"
    kept = {path: path.stat().st_mtime_ns for path in Path("my run").glob("*--*.json")}
    assert len(kept) == 2
    assert not Path("my run/report.html").exists()
    capsys.readouterr()
    assert main(["compare", "--resume", "my run"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().err.splitlines()] == ["3/4", "4/4"]
    assert curves("my run") == curves("uninterrupted")
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    assert Path("my run/report.html").exists()
