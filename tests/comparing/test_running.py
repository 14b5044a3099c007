import json
import random
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn
from torch.nn.functional import mse_loss

import rmsprop
from rmsprop.comparing import running
from rmsprop.comparing.candidates import CANDIDATES
from rmsprop.comparing.running import fingerprint
from rmsprop.comparing.sweep import Store, sweep
from tests.comparing.small import perceptron, small
from tests.comparing.test_compare import QUICK, line, numbers


def test_resume_trains_only_what_is_missing(tmp_path, monkeypatch):
    whole = rmsprop.compare(line, **QUICK)
    rmsprop.compare(line, **QUICK, out=tmp_path / "new")
    (tmp_path / "new/line--sgd.json").unlink()
    (tmp_path / "new/report.html").unlink()
    trained = []

    def spying(problem, candidate, *rest):
        trained.append(candidate.name)
        return sweep(problem, candidate, *rest)

    monkeypatch.setattr(running, "sweep", spying)
    resumed = rmsprop.compare(line, resume=tmp_path / "new")
    assert trained == ["sgd"]
    assert numbers(resumed) == numbers(whole)
    assert (tmp_path / "new/report.html").exists()
    rmsprop.compare(line, **QUICK, out=tmp_path / "new")
    assert trained == ["sgd"]


def other():
    model, loss, (x, y) = line()
    return model, loss, (x + 1e-6, y)


def test_resume_wants_the_same_problem_and_no_other_options(tmp_path):
    folder = tmp_path / "new"
    rmsprop.compare(line, **QUICK, out=folder)
    before = {path: path.read_bytes() for path in folder.iterdir()}
    refused = [
        ({"problem": other}, "has results of source="),
        ({}, r"its problem was in memory; expected rmsprop.compare\(line, resume="),
        ({"problem": "tests.comparing.test_compare:line"}, "expected that function or table"),
        ({"problem": line, "seeds": 3}, "seeds=3: expected nothing beside resume"),
    ]
    for arguments, message in refused:
        with pytest.raises(ValueError, match=message):
            rmsprop.compare(**arguments, resume=folder)
    with pytest.raises(ValueError, match="has results of"):
        rmsprop.compare(line, **{**QUICK, "seeds": 1}, out=folder)
    with pytest.raises(ValueError, match="no folder of a comparison"):
        rmsprop.compare(line, resume=tmp_path)
    assert {path: path.read_bytes() for path in folder.iterdir()} == before


def test_ctrl_c_between_optimizers_says_how_to_go_on(tmp_path, monkeypatch):
    def stopped(problem, candidate, *rest):
        if candidate.name == "sgd":
            raise KeyboardInterrupt
        return sweep(problem, candidate, *rest)

    monkeypatch.setattr(running, "sweep", stopped)
    with pytest.raises(KeyboardInterrupt, match=r"stopped with 1 of 2 .*nothing was kept \(out was not given\)"):
        rmsprop.compare(line, **QUICK)
    with pytest.raises(KeyboardInterrupt, match=r"1 of 2 .* kept; go on with: rmsprop.compare\(..., resume='.*new'\)"):
        rmsprop.compare(line, **QUICK, out=tmp_path / "new")
    monkeypatch.undo()
    assert numbers(rmsprop.compare(line, resume=tmp_path / "new")) == numbers(rmsprop.compare(line, **QUICK))


def test_ctrl_c_before_the_first_optimizer_says_how_to_go_on(tmp_path, monkeypatch):
    def stopped(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(running.timing, "guess", stopped)
    with pytest.raises(KeyboardInterrupt, match=r"stopped with 0 of 2 .* kept; go on with: rmsprop.compare\(..., res"):
        rmsprop.compare(line, **QUICK, out=tmp_path / "new", progress=True)


def test_versions_are_also_those_of_the_optimizers_packages(tmp_path, monkeypatch):
    monkeypatch.setitem(CANDIDATES, "sgd", replace(CANDIDATES["sgd"], package="pandas"))
    assert "pandas" not in rmsprop.compare(line, **{**QUICK, "optimizers": "adam"}).settings["versions"]
    found = rmsprop.compare(line, **QUICK, out=tmp_path / "new")
    assert found.settings["versions"]["pandas"] == pd.__version__
    monkeypatch.setattr(running, "version", lambda package: "0.1")
    with pytest.raises(ValueError, match=r"new has results of versions=.*, not .*'pandas': '0.1'"):
        rmsprop.compare(line, resume=tmp_path / "new")


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("threads", "x", "threads='x': expected a whole number"),
        ("threads", 0, "threads=0: expected a whole number"),
        ("source", {"kind": "builtin"}, "'names'"),
        ("source", {"kind": "strange"}, "'strange'"),
        ("source", [], "AttributeError"),
        ("optimizers", ["adan"], "optimizers=adan: expected"),
        ("seeds", None, "seeds=None: expected"),
    ],
)
def test_a_damaged_setting_is_told_with_its_file(tmp_path, name, value, message):
    settings = {"optimizers": ["sgd"], "lrs": None, "seeds": 1, "steps": 1, "batch_size": None, "decay": False}
    settings |= {"threads": 1, "source": {"kind": "builtin", "names": ["digits"]}, name: value}
    (tmp_path / "compare.json").write_text(json.dumps(settings))
    with pytest.raises(ValueError, match=f"compare.json: damaged or of another version: .*{message}"):
        rmsprop.compare(resume=tmp_path)


def test_a_second_process_is_kept_out(tmp_path):
    fcntl = pytest.importorskip("fcntl")
    rmsprop.compare(line, **QUICK, out=tmp_path / "new")
    with (tmp_path / "new/compare.json").open() as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(ValueError, match="another process"):
            rmsprop.compare(line, resume=tmp_path / "new")


def changed(**parts):
    """A function of the name `line` that differs from it in these parts."""

    def line():
        x = torch.randn(80, 3)
        return parts.get("model", nn.Linear)(3, 1), parts.get("loss", mse_loss), (x, x.sum(1, keepdim=True))

    return line


class Scaled(nn.Linear):
    def forward(self, x):
        return super().forward(x) * (1 if self.training else 1.001)


class Counting(nn.Linear):
    def __init__(self, *sizes):
        super().__init__(*sizes)
        self.register_buffer("unused", torch.zeros(1))


def unbiased(*_):
    return nn.Linear(3, 1, bias=False)


@pytest.mark.parametrize("parts", [{"loss": nn.L1Loss()}, {"model": Scaled}, {"model": Counting}, {"model": unbiased}])
def test_another_loss_forward_pass_or_buffer_is_refused_in_words(tmp_path, parts):
    rmsprop.compare(changed(), **QUICK, out=tmp_path / "new")
    rmsprop.compare(changed(), resume=tmp_path / "new")
    with pytest.raises(ValueError, match=r"new: the model, loss or data of 'line' differ from those this .* seeded"):
        rmsprop.compare(changed(**parts), resume=tmp_path / "new")


def test_the_fingerprint_has_the_error_and_nested_outputs_and_draws_no_numbers():
    class Nested(nn.Module):
        def __init__(self, extra):
            super().__init__()
            self.inner, self.drop, self.extra = perceptron(), nn.Dropout(0.5), extra

        def forward(self, x):
            return {"y": self.inner(self.drop(x)), "more": (torch.tensor(self.extra), "text")}

    def nested(extra):
        problem = small(lambda: Nested(extra))
        object.__setattr__(problem, "loss", lambda outputs, targets: mse_loss(outputs["y"], targets))
        return fingerprint(problem)

    state = torch.get_rng_state()
    assert nested(1.0) == nested(1.0) != nested(2.0)
    assert torch.equal(torch.get_rng_state(), state)
    one, two = (small(error=lambda outputs, targets, c=c: (outputs - targets).abs().mean() * c) for c in (1, 2))
    assert fingerprint(one) != fingerprint(two)


def test_global_generators_of_numpy_and_python_are_seeded_and_left_alone(tmp_path):
    def drawn():
        x = torch.tensor(np.random.randn(80, 3), dtype=torch.float32) + random.random()
        model = nn.Linear(3, 1)
        nn.init.constant_(model.bias, np.random.rand())
        return model, mse_loss, (x, x.sum(1, keepdim=True))

    np.random.seed(1)
    random.seed(1)
    before = np.random.get_state()[1].tolist(), random.getstate()
    found = rmsprop.compare(drawn, **QUICK, out=tmp_path / "new")
    assert (np.random.get_state()[1].tolist(), random.getstate()) == before
    np.random.seed(2)
    random.seed(2)
    assert numbers(rmsprop.compare(drawn, resume=tmp_path / "new")) == numbers(found)
    one, two = found.results[0].curves.train[0]
    assert one != two


def test_a_numbered_folder_belongs_to_who_made_it_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert [str(running._new_folder("a")) for _ in range(2)] == ["compare/a-001", "compare/a-002"]
    job = running.Job(running.Source(), None, None, 1, False, kept=True)
    job.source.name = "b"

    def failing(folder, settings):
        assert folder.is_dir()
        raise OSError("disk full")

    monkeypatch.setattr(running, "Store", failing)
    with pytest.raises(OSError, match="disk full"):
        job._store({})
    assert not (tmp_path / "compare/b-001").exists()
    monkeypatch.setattr(running, "Store", Store)
    job.folder = None
    assert job._store({"seeds": 1}).folder == job.folder
    assert (tmp_path / "compare/b-001/compare.json").is_file()
