"""Every file in examples/ runs, by the command in its first lines."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = sorted((Path(__file__).parent.parent / "examples").glob("*.py"))
LAUNCHERS = {"torchrun": ["-m", "torch.distributed.run", "--standalone"], "python": []}
#: What an example is given, and what it prints.
RUNS = {
    "compiled_step.py": ([], r"graphs compiled: 1\nequal to the eager run: True\n"),
    "jax_equinox.py": ([], r"epoch 10: 9[6-9]\.\d%"),
    "fsdp2.py": (["checkpoint"], r"not trained on: (8[5-9]|9\d|100)\.\d%\nresumed run equal bit for bit: True\n"),
}


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.name)
def test_example(example, tmp_path):
    shown = re.search(rf"^ {{4}}(.*)examples/{example.name}", example.read_text(), re.MULTILINE)[1]
    launcher, *options = shlex.split(shown)
    given, says = RUNS.get(example.name, ([], ""))
    command = [sys.executable, *LAUNCHERS[launcher], *options, str(example), *given]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
    assert result.returncode == 0, result.stderr
    assert re.search(says, result.stdout), result.stdout
    assert {path.name for path in tmp_path.iterdir()} == set(given)
