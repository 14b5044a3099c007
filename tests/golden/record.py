"""Records what the real implementations do, for tests/test_golden.py to replay.

One environment holds all libraries but Chainer and MXNet, which need a NumPy of their time. From the root of the
project, on Linux x86-64 with Python 3.11:

    python3.11 -m venv .venv-golden
    .venv-golden/bin/pip install -c constraints.txt -r tests/golden/requirements.txt
    .venv-golden/bin/pip install --no-deps -r tests/golden/requirements-paddle.txt
    .venv-golden/bin/python -m tests.golden.record

    python3.11 -m venv .venv-golden-old
    .venv-golden-old/bin/pip install setuptools==70.3.0 wheel numpy==1.23.5
    .venv-golden-old/bin/pip install --no-build-isolation -r tests/golden/requirements-old.txt
    .venv-golden-old/bin/python -m tests.golden.record

    python3.11 -m venv .venv-golden-mxnet2
    .venv-golden-mxnet2/bin/pip install -r tests/golden/requirements-mxnet2.txt
    .venv-golden-mxnet2/bin/python -m tests.golden.record

Each run records the libraries that it finds in the versions of their requirements, every one in a process of its own:
its file, library.npz, and its part of manifest.json. Names after the command choose among them; `problem` draws
problem.npz anew, after which everything has to be recorded.

In library.npz, "case/dtype/p" has a row of all parameters for each of `problem.RECORDED`, and "case/dtype/v", "m", "b"
the state after the last step. manifest.json says of each case the call, the dialect and the options that replay it, in
which dtype the two differ by more than the tolerance, by how much and why ("exception"), and which argument of the
library the rule does not have ("refused").
"""

import argparse
import json
import os
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np

from tests.golden import problem
from tests.golden.case import Case, Library
from tests.golden.libraries import optax, others, tensorflow, torch

LIBRARIES: dict[str, Library] = torch.LIBRARIES | tensorflow.LIBRARIES | optax.LIBRARIES | others.LIBRARIES
QUIET = {"TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": "", "PYTHONWARNINGS": "ignore"}


def run(library: Library, case: Case, dtype: str, given: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The parameters after the recorded steps, a row each, and the state after the last."""
    table = case.problem.startswith("table")
    params = [given["table"]] if table else problem.tensors(given["start"])
    step, read = library.make(case.target, [p.astype(dtype) for p in params], **case.call)
    track = []
    for t in range(problem.STEPS):
        if table:
            grads: list[Any] = [(given["rows"][t], given["row_gradients"][t].astype(dtype))]
        else:
            grads = problem.tensors(given[case.problem][t].astype(dtype))
        step(float(given["lr"][t]), grads)
        if t + 1 in problem.RECORDED:
            track.append(problem.flat(read()["p"]))
    arrays = {letter: problem.flat(values) for letter, values in read().items()} | {"p": np.stack(track)}
    for letter, array in arrays.items():
        if array.dtype != dtype:
            raise TypeError(f"{case.name}: {letter} is {array.dtype}: expected {dtype}")
    return arrays


def record(name: str) -> None:
    """Writes the file of one library, and its part of the manifest."""
    library, given = LIBRARIES[name], problem.load("problem")
    arrays, entries = {}, []
    for case in library.cases:
        for dtype in case.dtypes:
            found = run(library, case, dtype, given)
            arrays |= {f"{case.name}/{dtype}/{letter}": array for letter, array in found.items()}
            entries.append(case.entry(dtype))
    np.savez_compressed(problem.FOLDER / f"{name}.npz", **arrays)
    versions = {package: version(package) for package in library.packages}
    write_manifest(name, {"requirements": library.requirements, "versions": versions, "recordings": entries})


def write_manifest(name: str, part: dict[str, Any]) -> None:
    """Puts the part in, a line a recording."""
    path = problem.FOLDER / "manifest.json"
    manifest = json.loads(path.read_text()) if path.exists() else {}
    manifest[name] = part
    parts = []
    for key, entry in sorted(manifest.items()):
        head = json.dumps({k: v for k, v in entry.items() if k != "recordings"})
        lines = ",\n".join(f"    {json.dumps(recording)}" for recording in entry["recordings"])
        parts.append(f'  "{key}": {head[:-1]}, "recordings": [\n{lines}\n  ]}}')
    path.write_text("{\n" + ",\n".join(parts) + "\n}\n")


def missing(library: Library) -> str:
    """The first package that is not there in the version of its requirements."""
    lines = (problem.FOLDER / library.requirements).read_text().splitlines()
    pinned = dict(line.split("==") for line in lines if "==" in line and "#" not in line)
    pinned = {name.partition("[")[0]: number for name, number in pinned.items()}
    for package in library.packages:
        try:
            found = version(package).partition("+")[0]
        except PackageNotFoundError:
            found = "none"
        if found != pinned[package]:
            return f"{package} {pinned[package]}, found {found}"
    return ""


def main() -> int:
    parser = argparse.ArgumentParser(description="Records what the real implementations do.")
    parser.add_argument("names", nargs="*", choices=[[], "problem", *LIBRARIES], metavar="NAME")
    names = parser.parse_args().names
    if names == ["problem"]:
        np.savez_compressed(problem.FOLDER / "problem.npz", **problem.draw())
        return 0
    if len(names) == 1:
        record(names[0])
        return 0
    failed = 0
    for name in names or LIBRARIES:
        if why := missing(LIBRARIES[name]):
            print(f"{name}: left alone, wants {why}")
            continue
        command = [sys.executable, "-m", "tests.golden.record", name]
        done = subprocess.run(command, env=os.environ | QUIET, capture_output=True, text=True, check=False)
        print(f"{name}: {'recorded' if done.returncode == 0 else 'failed' + chr(10) + done.stderr}", flush=True)
        failed += done.returncode != 0
    return failed


if __name__ == "__main__":
    sys.exit(main())
