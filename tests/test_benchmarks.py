"""What benchmarks compute beside times; the environments of `rl.py` are no requirement of the tests."""

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


@pytest.fixture(autouse=True)
def _path(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)


def test_the_learning_rate_is_sought_beyond_the_ends(monkeypatch):
    import rl

    asked = []

    def train(replicas):
        asked.extend(replicas)
        best = np.array([[-abs(2 * np.log10(lr) + 9.0)] * 40 for lr, _ in replicas])
        return 10 + best, np.ones_like(best)

    best, tried = rl.choose(train, range(-7, -2), range(2), lambda _: None)
    assert best == -9
    assert sorted(tried) == [-10, -9, -8, -7, -6, -5, -4, -3]
    assert len(asked) == len(set(asked)) == 16
    monkeypatch.setattr(rl, "EXTREMES", (-8, 6))
    assert rl.choose(train, range(-7, -2), range(2), lambda _: None)[0] == -8


def test_batches_are_of_one_width_and_keep_the_order():
    import rl

    widths = []

    def program(lrs, seeds):
        widths.append(len(lrs))
        return lrs[:, None] + seeds[:, None] * np.ones(40), np.ones((len(lrs), 40))

    total, ended = rl.in_batches(program, 4)([(0.5, seed) for seed in range(6)])
    assert widths == [4, 4]
    assert total[:, 0].tolist() == [0.5 + seed for seed in range(6)]
    assert ended.shape == (6, 40)


def test_returns_of_the_last_tenth_and_of_parts_where_no_episode_ends():
    import rl_report

    total, ended = np.zeros((2, 40)), np.zeros((2, 40))
    total[0, 34], ended[0, 34] = 30.0, 3  # before the last tenth: it is the latest there is
    total[1, 36:], ended[1, 36:] = [10.0, 0.0, 40.0, 0.0], [1, 0, 1, 0]
    assert rl_report.score(total, ended).tolist() == [10.0, 25.0]
    assert rl_report.curve(total, ended)[:, 33:].tolist() == [[0, *[10] * 6], [0, 0, 0, 10, 10, 40, 40]]


def test_intervals_are_of_the_mean_over_seeds():
    import rl_report

    x = np.random.default_rng(0).normal(3.0, 2.0, (20, 2))
    low, high = rl_report.interval(x)
    half = 1.96 * x.std(0) / 20**0.5
    np.testing.assert_allclose((low, high), (x.mean(0) - half, x.mean(0) + half), atol=0.1)


def result(k, returns):
    returns = np.array(returns, float)[:, None] * np.ones(40)
    settings = {"frames": 3200, "judging": len(returns), "choosing": 1, "optimizer": "f(lr)"}
    made = {"date": "2026-01-01", "machine": "a machine", "seconds": 60.0}
    return {"k": k, "tried": {k: [1.0]}, "total": returns, "ended": np.ones_like(returns), "settings": settings, **made}


def test_tables_compare_seed_by_seed():
    import rl_report

    found = {"A game": {"adam": result(-6, [1, 2, 3]), "Other": result(-4, [2, 3, 2])}}
    text = rl_report.text(found)
    assert "| adam | 0.001 | 2.00 (1.00 to 3.00) | 2.00 (1.00 to 3.00) |  |  |" in text
    assert "| Other | 0.01 | 2.33 (2.00 to 3.00) | 2.33 (2.00 to 3.00) | +0.33 (-1.00 to +1.00) | 2 of 3 |" in text
    assert "| Other |  | **1.00** |" in text


def test_a_page_keeps_what_is_outside_the_marks(tmp_path):
    import rl_report

    page = tmp_path / "page.md"
    page.write_text(f"before\n{rl_report.MARKS[0]}old\n{rl_report.MARKS[1]}after\n")
    rl_report.put("new\n", page)
    rl_report.put("newer\n", page)
    assert page.read_text() == f"before\n{rl_report.MARKS[0]}\nnewer\n\n{rl_report.MARKS[1]}after\n"


def test_nothing_to_report_is_one_line(tmp_path, capsys, monkeypatch):
    import rl

    monkeypatch.setattr(sys, "argv", ["rl.py", "--report", "--folder", str(tmp_path)])
    with pytest.raises(SystemExit) as stop:
        rl.main()
    assert stop.value.code == 2
    assert capsys.readouterr().err.splitlines()[-1].endswith("nothing there to report")


def test_results_are_made_once_for_the_same_settings(tmp_path, monkeypatch):
    import rl

    made = []
    monkeypatch.setattr(rl, "measure", lambda task, name: made.append(name) or {"k": len(made)})
    task = rl.TASKS["Breakout-MinAtar"]
    names = ["adam", task.without[0]]
    assert rl.results(tmp_path, [task], names, train=False) == {}
    for _ in range(2):
        assert rl.results(tmp_path, [task], names, train=True)[task.name]["adam"]["k"] == 1
    assert made == ["adam"]
    longer = replace(task, frames=2 * task.frames)
    assert rl.results(tmp_path, [longer], names, train=False) == {}
    assert rl.results(tmp_path, [longer], names, train=True)[task.name]["adam"]["k"] == 2
    assert [path.name for path in tmp_path.iterdir()] == ["Breakout-MinAtar-adam.json"]
