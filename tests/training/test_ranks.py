import os
import subprocess
import sys

import pytest
import torch

from rmsprop.training.ranks import ALONE, Ranks, joined, launched

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]


def torchrun(*arguments, **options):
    """Two processes; (exit code, standard output, standard error)."""
    result = subprocess.run(
        [*TORCHRUN, *arguments], capture_output=True, text=True, check=False, timeout=120, **options
    )
    return result.returncode, result.stdout, result.stderr


@pytest.mark.parametrize("size", [1, 2, 3, 7])
@pytest.mark.parametrize("rows", [0, 1, 2, 5, 64])
def test_the_shares_are_the_batch(size, rows):
    batch = torch.randperm(rows)
    shares = [Ranks(rank, size).share(batch) for rank in range(size)]
    assert torch.equal(torch.cat(shares), batch)
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_alone_nothing_is_asked_of_others():
    with joined() as ranks:
        assert ranks is ALONE
    network = torch.nn.Linear(1, 1)
    assert (ALONE.leads, ALONE.parallel(network), ALONE.sum(0.1), ALONE.most(2)) == (True, network, 0.1, 2)
    assert (ALONE.lead(lambda: 3), ALONE.together(lambda: 4), ALONE.threads(5)) == (3, 4, 5)
    ALONE.same("x", object())


def test_the_threads_of_all_find_room(monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    assert [Ranks(0, 2).threads(n) for n in (1, 4, 8)] == [1, 4, 4]
    assert Ranks(0, 16).threads(4) == 1
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")  # the others are on other machines
    assert Ranks(0, 16).threads(8) == 4


def test_only_torchrun_makes_ranks(monkeypatch):
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert launched() == (0, 1)
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "x")
    assert launched() == (1, 2)


def test_a_connection_that_broke_is_said_and_other_faults_stay(monkeypatch):
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "new_group", lambda backend: None)
    for name, value in {"get_world_size": 2, "get_rank": 0, "destroy_process_group": None}.items():
        monkeypatch.setattr(torch.distributed, name, lambda group=None, value=value: value)
    with pytest.raises(ConnectionError, match="another rank has ended"), joined():
        raise RuntimeError("[gloo/transport/tcp/pair.cc:537] Connection reset by peer")
    with pytest.raises(RuntimeError, match="mine"), joined():
        raise RuntimeError("mine")


BOTH = """
from pathlib import Path
import numpy as np
import torch
import torch.distributed as dist
import rmsprop
from rmsprop.training.ranks import joined

def outcome(action):
    try:
        return action()
    except Exception as error:
        return f"{type(error).__name__}: {error}"

def fails_on(number):
    if rank == number:
        raise KeyError("broken")
    return "fine"

def threads():
    return sum("gloo" in path.read_text() for path in Path("/proc/self/task").glob("*/comm"))

x = np.random.default_rng(0).normal(size=(103, 2))
target = np.where(x[:, 0] > 0, "a", "b")
with joined() as ranks:
    ranks.parallel(torch.nn.Linear(1, 1))
left = dist.is_initialized(), threads()
for _ in range(4):
    rmsprop.fit(x, target, epochs=1, hidden=(4,), batch_size=9)
dist.init_process_group("gloo")
rank = dist.get_rank()
with joined() as ranks:
    results = [ranks.sum(0.5 + rank), ranks.most(rank), ranks.lead(lambda: f"from {rank}")]
    results += [outcome(lambda: ranks.together(lambda: fails_on(1))), outcome(lambda: ranks.lead(lambda: fails_on(0)))]
results.append(outcome(lambda: rmsprop.fit(x + rank, target)))
model = rmsprop.fit(x, target, epochs=2, hidden=(4,), batch_size=9, progress=True, out="run")
model.network(model.network[0].weight.new_zeros(1, 2)).sum().backward()  # nothing of the group is left in it
results += [left, model.config["processes"], str(model.folder), model.network[0].weight.tolist()]
everyone = [None, None]
dist.all_gather_object(everyone, results)  # the group is still the caller's
if rank == 0:
    print(everyone)
dist.destroy_process_group()
"""


def test_two_ranks_in_a_process_group_of_their_own_and_of_the_callers(tmp_path):
    (tmp_path / "both.py").write_text(BOTH)
    code, out, err = torchrun("both.py", cwd=tmp_path)
    assert code == 0, err
    first, second = eval(out)
    assert first[:3] == second[:3] == [2.0, 1, "from 0"]
    assert first[3:5] == ["RankError: rank 1: 'broken'", "KeyError: 'broken'"]
    assert second[3:5] == ["KeyError: 'broken'", "RankError: rank 0: 'broken'"]
    assert first[5] == second[5]
    assert first[5].startswith("ValueError: columns or options: others on rank 1 than on rank 0")
    assert first[6:] == second[6:]
    assert first[6:9] == [(False, 0), 2, "run"]  # a thread of gloo's that outlives its group can abort Python's end
    assert err.count("epoch 2/2") == err.count("; 2 processes\n") == 1


def test_modules_that_need_no_torch_can_ask_who_they_are():
    script = "import sys; from rmsprop.training.ranks import launched; print(launched(), 'torch' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert result.stdout == "(0, 1) False\n"
