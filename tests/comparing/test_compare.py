import math
import os
import re
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn
from torch.nn.functional import mse_loss

import rmsprop
from rmsprop.comparing import running
from rmsprop.comparing.candidates import CANDIDATES, POINTS, Candidate
from rmsprop.comparing.plan import DEFAULT
from rmsprop.comparing.sweep import sweep
from tests.comparing.small import small

QUICK = {"optimizers": ["rmsprop", "sgd"], "lrs": [0.003, 0.03], "seeds": 2, "steps": 20}


def line():
    x = torch.randn(80, 3)
    return nn.Linear(3, 1), mse_loss, (x, x.sum(1, keepdim=True))


def numbers(comparison):
    """All that must not depend on when or how often a comparison was run."""
    return [(result.problem, result.candidate, result.decay, result.curves) for result in comparison.results]


def test_a_function_is_compared_and_kept(tmp_path):
    found = rmsprop.compare(line, **QUICK, out=tmp_path / "new")
    assert [(r.problem, r.candidate) for r in found.results] == [("line", "rmsprop"), ("line", "sgd")]
    assert [ranking.problem for ranking in found.rankings] == ["line"]
    assert found.sentence in str(found)
    assert repr(found) == f"<rmsprop.Comparison of 2 optimizers on line: {found.sentence}>"
    assert found.problems == {"line": "Linear of 4 weights"}
    names = ["compare.json", "line--rmsprop.json", "line--sgd.json", "report.html"]
    assert sorted(os.listdir(tmp_path / "new")) == names
    page = (tmp_path / "new/report.html").read_text()
    assert found.sentence.split(",")[0] in page
    assert not re.findall(
        r"""(src|href|url)\s*[=(]\s*["']?(https?:|//)""", re.sub(r"<metadata>.*?</metadata>", "", page, flags=re.S)
    )
    for row, result in zip(sorted(found.rankings[0].rows, key=lambda row: row.name), found.results, strict=True):
        assert row.seconds == result.optimizer_seconds
        assert result.optimizer_seconds == 20 * result.step_seconds > 0


def test_the_same_call_gives_the_same_numbers_whatever_ran_before():
    one = rmsprop.compare(line, **QUICK)
    torch.manual_seed(5)
    torch.randn(3)
    assert numbers(rmsprop.compare(line, **QUICK)) == numbers(one)


def test_results_are_those_of_a_sweep_and_budgets_are_equal():
    problem = small()
    found = rmsprop.compare(problem, optimizers=["rmsprop", "adam", "rprop"], seeds=2, decay=True)
    for result in found.results:
        assert result.curves == sweep(problem, CANDIDATES[result.candidate], [0, 1], True).curves
        assert POINTS <= len(result.curves.lrs) <= POINTS + 3
        assert np.shape(result.curves.test) == (len(result.curves.lrs), 2)
    assert found.settings["decay"]
    assert found.folder is None


def test_tables_in_memory_and_in_files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    table = pd.DataFrame({"a": np.arange(60.0), "b": np.arange(60.0) ** 0.5, "y": np.arange(60) % 2})
    table.to_csv("my table.csv", index=False)
    from_memory = rmsprop.compare(table, "y", **QUICK)
    from_file = rmsprop.compare("my table.csv", "y", **QUICK, out="new")
    assert [r.curves for r in from_memory.results] == [r.curves for r in from_file.results]
    assert list(from_file.problems) == ["my-table"]
    assert from_file.results[0].curves.error is not None
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert numbers(rmsprop.compare(resume=tmp_path / "new")) == numbers(from_file)
    table.assign(a=1.5).to_csv(tmp_path / "my table.csv", index=False)
    with pytest.raises(ValueError, match="model, loss or data of 'my-table' differ"):
        rmsprop.compare(resume=tmp_path / "new")


def test_learning_rates_may_be_an_array(tmp_path):
    lrs = np.array(QUICK["lrs"])
    found = rmsprop.compare(line, **{**QUICK, "lrs": lrs}, out=tmp_path / "new")
    assert numbers(found) == numbers(rmsprop.compare(line, **QUICK))
    assert rmsprop.compare(line, **{**QUICK, "lrs": lrs.astype(np.float32)}).settings["lrs"] == pytest.approx(lrs)
    with pytest.raises(ValueError, match=r"lrs=array\(\[0.003, 0.03 ?\]\): expected nothing beside resume"):
        rmsprop.compare(line, lrs=lrs, resume=tmp_path / "new")


def test_all_diverged_is_a_result_and_not_an_error(tmp_path):
    found = rmsprop.compare(line, optimizers=["sgd"], lrs=[1e20, 1e30], seeds=2, steps=20, out=tmp_path / "new")
    assert all(math.isinf(loss) for lr in found.results[0].curves.test for loss in lr)
    assert found.rankings[0].rows[0].diverged == 2
    assert numbers(rmsprop.compare(line, resume=tmp_path / "new")) == numbers(found)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"optimizers": ["adamm"]}, r"optimizers=adamm: expected .*did you mean 'adam'"),
        ({"optimizers": []}, "optimizers=: expected one or more"),
        ({"optimizers": ["adam", "adam"]}, "optimizers=adam,adam: expected one or more, each once"),
        ({"seeds": 0}, "seeds=0: expected a whole number from 1 to 1000"),
        ({"steps": 1.5}, "steps=1.5: expected a whole number"),
        ({"batch_size": True}, "batch_size=True: expected a whole number"),
        ({"batch_size": 49}, "line: batch_size=49: expected at most 48, the number of training rows"),
        ({"lrs": []}, "lrs=: expected 1 to 100 positive numbers, ascending"),
        ({"lrs": [0.1, 0.01]}, "lrs=0.1,0.01: expected 1 to 100 positive"),
        ({"lrs": [0.0, 0.01]}, "lrs=0.0,0.01: expected 1 to 100 positive"),
        ({"lrs": [0.01, math.inf]}, "lrs=0.01,inf: expected 1 to 100 positive"),
        ({"problems": ["digits"]}, "problems=digits: expected no problem of your own"),
        ({"target": "y"}, "target='y': expected a table before it; a function"),
        ({"problem": None, "target": "y"}, "target='y': expected a table before it; the built-in"),
        ({"problem": None, "problems": ["digit"]}, r"problems=digit: expected .*did you mean 'digits'"),
        ({"problem": None, "problems": "digit"}, r"problems=digit: expected .*did you mean 'digits'"),
        ({"problems": "digits"}, "problems=digits: expected no problem of your own"),
        ({"lrs": np.array([[0.1]])}, r"lrs=\[0.1\]: expected 1 to 100 positive"),
        ({"lrs": np.array([0.1, 0.01], np.float32)}, r"lrs=0\.1\d*,0\.00999\d*: expected 1 to 100 positive"),
        (
            {"problem": pd.DataFrame({"a": range(12), "y": np.arange(12) / 2}), "target": "y"},
            "has 12 rows: expected at least 13",
        ),
        ({"problem": None, "problems": []}, "problems=: expected one or more"),
        ({"problem": np.zeros((20, 2))}, "target=None: expected the column to predict"),
        ({"problem": "nothing.csv"}, "nothing.csv: no such file"),
        ({"problem": lambda: 3}, "lambda: it returned a int; expected a tuple"),
    ],
)
def test_what_is_refused_before_anything_is_written(tmp_path, arguments, message):
    with pytest.raises(ValueError, match=message):
        rmsprop.compare(**{"problem": line, **QUICK, **arguments}, out=tmp_path / "new")
    assert not list(tmp_path.iterdir())


def test_optimizers_that_are_not_installed(monkeypatch, capsys):
    lacking = Candidate("prodigy", "", CANDIDATES["adam"].make, package="no_such_package")
    monkeypatch.setitem(CANDIDATES, "prodigy", lacking)
    quick = {"lrs": [0.01], "seeds": 1, "steps": 1}
    found = rmsprop.compare(line, **quick, progress=True)
    assert [r.candidate for r in found.results] == [name for name in DEFAULT if name != "prodigy"]
    assert "left out: prodigy: not installed: pip install no_such_package\n" in capsys.readouterr().err
    with pytest.raises(ValueError, match="optimizers=prodigy: not installed; expected pip install no_such_package"):
        rmsprop.compare(line, **quick, optimizers=["prodigy"])


def failing_model():
    class Failing(nn.Linear):
        def forward(self, x):
            if not self.training:
                raise TypeError("no, thank you")
            return super().forward(x)

    _, loss, data = line()
    return Failing(3, 1), loss, data


def test_errors_of_the_users_code_are_told_with_their_place():
    def failing():
        return {}["data"]

    with pytest.raises(ValueError, match=r"failing: KeyError: 'data' \(.*test_compare.py, line \d+\)"):
        rmsprop.compare(failing, **QUICK)
    with pytest.raises(ValueError, match=r"failing_model: TypeError: no, thank you \(.*test_compare.py, line \d+\)"):
        rmsprop.compare(failing_model, **QUICK)


def test_an_error_of_ours_is_not_blamed_on_the_user(monkeypatch):
    monkeypatch.setattr(running, "sweep", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        rmsprop.compare(small(), **{**QUICK, "steps": 5})


def test_functions_are_found_by_name_in_the_current_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("my_lines.py").write_text("from tests.comparing.test_compare import line as found\n")
    path = list(sys.path)
    named = rmsprop.compare("my_lines:found", **QUICK)
    assert [(r.candidate, r.curves) for r in named.results] == [
        (r.candidate, r.curves) for r in rmsprop.compare(line, **QUICK).results
    ]
    assert named.settings["source"] == {"kind": "function", "spec": "my_lines:found", "folder": str(tmp_path)}
    assert sys.path == path
