"""Runs what the documentation shows: every block of Python, every `rmsprop` command, every docstring example."""

import doctest
import importlib
import pkgutil
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

import rmsprop

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
#: What a shell block may hold beside `rmsprop`: what installs or runs this very suite need not run here.
NOT_RUN = ("make ", "pip install ", "git clone ", "cd ")
MODULES = sorted(
    name
    for _, name, _ in pkgutil.walk_packages(rmsprop.__path__, "rmsprop.")
    if not name.rpartition(".")[2].startswith(("_cpu", "__main__"))
)


def blocks(page, language):
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_python_blocks_run(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    namespace = {"__name__": "__main__"}
    for code in blocks(page, "python"):
        exec(compile(code, page.name, "exec"), namespace)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_run(page, tmp_path):
    """The commands of a page run in order in one folder; lines that begin with # are comments."""
    for block in blocks(page, "bash"):
        for line in block.replace("\\\n", " ").splitlines():
            command = shlex.split(line, comments=True)
            if not command or line.startswith(NOT_RUN):
                continue
            assert command[0] == "rmsprop", f"{page.name} shows a command that nothing runs: {line}"
            result = subprocess.run(
                [sys.executable, "-m", "rmsprop", *command[1:]],
                cwd=tmp_path,
                capture_output=True,
                text=True,
                check=False,
            )
            assert result.returncode == 0, f"{line}\n{result.stderr}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text()):
        if "://" not in target:
            assert (page.parent / target).exists(), f"{page.name}: {target}"


@pytest.mark.parametrize("name", MODULES)
def test_docstring_examples_run(name):
    if name in ("rmsprop.kernels.launch", "rmsprop.kernels.triton"):
        pytest.importorskip("triton")
    failed, _ = doctest.testmod(importlib.import_module(name), optionflags=doctest.IGNORE_EXCEPTION_DETAIL)
    assert not failed


def test_public_names_have_examples():
    for name in rmsprop.__all__:
        if name != "DIALECTS":
            assert ">>>" in getattr(rmsprop, name).__doc__, name


def dialect_table():
    yield "| dialect | lr | beta | epsilon | v starts at | lr in the buffer | weight decay | else |"
    yield "|---|---|---|---|---|---|---|---|"
    for name, row in rmsprop.DIALECTS.items():
        rule = row.rule
        other = [f"momentum {rule.momentum}"] * (rule.momentum > 0)
        other += ["centered"] * rule.centered + ["bias correction"] * rule.bias_correction
        other += [f"clip {rule.clip}"] * (rule.clip is not None)
        buffer = {"lr_inside": "inside", "lr_outside": "outside", "ema": "outside, ema"}[rule.momentum_form]
        epsilon = f"{rule.epsilon:g}, {rule.epsilon_mode}" if rule.epsilon else "none"
        cells = (f"{rule.lr:g}", f"{rule.beta:g}", epsilon, f"{rule.initial_square:g}", buffer, rule.decay_mode)
        yield f"| {name} | {' | '.join(cells)} | {', '.join(other)} |"


def test_the_readme_has_the_dialects_as_they_are():
    assert "\n".join(dialect_table()) in (ROOT / "README.md").read_text()
