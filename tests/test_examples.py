"""Every file in examples/ runs, by the command in its first lines."""

import re
import runpy
import shlex
import subprocess
import sys
from pathlib import Path
from zipfile import ZipFile

import pytest

EXAMPLES = sorted((Path(__file__).parent.parent / "examples").glob("*.py"))
LAUNCHERS = {"torchrun": ["-m", "torch.distributed.run", "--standalone"], "python": []}
#: What an example is given, and what it prints.
RUNS = {
    "compiled_step.py": ([], r"graphs compiled: 1\nequal to the eager run: True\n"),
    "jax_equinox.py": ([], r"epoch 10: 9[6-9]\.\d%"),
    # What curve and weights are off by: exact by rounding, lazy by far more.
    "recommender.py": (
        ["--plot", "curves.svg"],
        r"(?s)plain \| exact \| 0.98\d\d \| (0e\+00|\de-0[6-9]) \| \de-0[5-7] .*"
        r"plain \| lazy \| 0.98\d\d \| \de-03 \| \de-02 .*"
        r"momentum \| exact \| 0.98\d\d \| (0e\+00|\de-0[6-9]) \| \de-0[5-7] .*"
        r"momentum \| lazy \| 0.99\d\d \| \de-03 \| \de-0[12] ",
    ),
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
    assert {path.name for path in tmp_path.iterdir()} == {name for name in given if not name.startswith("-")}


def test_ratings_are_read_from_text_and_from_a_wheel(tmp_path):
    rated = runpy.run_path(str(EXAMPLES[0].parent / "recommender.py"))["rated"]
    lines, text, wheel = "7\t3\t4\t881250949\n8\t3\t2.5\t0\n", tmp_path / "u.data", tmp_path / "recbole.whl"
    text.write_text(lines)
    with ZipFile(wheel, "w") as file:
        header = "user_id:token\titem_id:token\trating:float\ttimestamp:float\n"
        file.writestr("recbole/dataset_example/ml-100k/ml-100k.inter", header + lines)
    assert list(rated(text)) == list(rated(wheel)) == [("7", "3", 4.0), ("8", "3", 2.5)]
