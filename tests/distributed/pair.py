"""Two processes on the loopback that run all checks, one after the other; starting them costs more than what they do.

A check is a function of the rank and of a folder that both see. Each has a process group of its own, so that one that
fails leaves nothing behind for the next, and what waits for a process that has gone is over in a few seconds.

    python -m tests.distributed.pair RANK FOLDER
"""

import json
import os
import subprocess
import sys
import traceback
import warnings
from collections.abc import Callable
from datetime import timedelta
from importlib import import_module
from inspect import isfunction
from pathlib import Path
from socket import if_nameindex
from time import monotonic, sleep

ROOT = Path(__file__).parents[2]
SIZE = 2
MODULES = ("engines", "shards", "checkpoints", "averages")
PATIENCE = timedelta(seconds=20)  # of one process with the other
LIMIT = 300  # seconds for everything; some 30 on a quiet machine

Check = Callable[[int, Path], None]


def checks() -> dict[str, Check]:
    """All checks by name, in the order they run: the public functions whose first argument is the rank."""
    found = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.distributed.optim uses what torch has deprecated
        modules = {name: import_module(f"tests.distributed.{name}") for name in MODULES}
    for module, content in modules.items():
        for name, value in vars(content).items():
            if isfunction(value) and not name.startswith("_") and value.__code__.co_varnames[:1] == ("rank",):
                found[f"{module}.{name}"] = value
    return found


def run(folder: Path) -> list[dict[str, str]]:
    """What became of each check on each rank: "" where it passed, else the traceback.

    Once in some twenty times on a busy machine a process was found dead in the middle of torch's own collectives, with
    no word: a pair in which one has died of a signal is started once more, and the stack goes to standard error.
    """
    codes, reports = _started(folder / "first")
    if any(code < 0 for code in codes):
        print(f"a process died: exit codes {codes}; starting the pair once more", file=sys.stderr)
        _, reports = _started(folder / "second")
    return reports


def _started(folder: Path) -> tuple[list[int], list[dict[str, str]]]:
    """The exit codes, 0 for one that had to be stopped, and the reports."""
    folder.mkdir()
    loopback = next(name for _, name in if_nameindex() if name.startswith("lo"))
    environment = {**os.environ, "GLOO_SOCKET_IFNAME": loopback, "OMP_NUM_THREADS": "1", "PYTHONFAULTHANDLER": "1"}
    command, until = [sys.executable, "-m", __name__], monotonic() + LIMIT
    pair = [subprocess.Popen([*command, str(rank), str(folder)], env=environment, cwd=ROOT) for rank in range(SIZE)]
    try:
        while monotonic() < until and any(process.poll() is None for process in pair):
            if any(process.returncode for process in pair):
                break  # the other would wait for it, check after check
            sleep(0.1)
    finally:
        codes = [process.poll() or 0 for process in pair]
        for process in pair:
            process.kill()
            process.wait()
    return codes, [_report(folder, rank) for rank in range(SIZE)]


def _report(folder: Path, rank: int) -> dict[str, str]:
    path = folder / f"{rank}.json"
    return json.loads(path.read_text()) if path.exists() else {}


def main(rank: int, folder: Path) -> None:
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    report = {}
    todo = checks()
    warnings.simplefilter("error")
    for name, check in todo.items():
        report[name] = "the process ended in it"
        (folder / f"{rank}.json").write_text(json.dumps(report))
        own = folder / name
        own.mkdir(exist_ok=True)
        rendezvous = f"file://{folder / name}.store"  # needs no port that another could take
        dist.init_process_group("gloo", rendezvous, rank=rank, world_size=SIZE, timeout=PATIENCE)
        try:
            check(rank, own)
            dist.barrier()
            report[name] = ""
        except BaseException:
            report[name] = traceback.format_exc()
        dist.destroy_process_group()
        (folder / f"{rank}.json").write_text(json.dumps(report))


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
