import json
from dataclasses import replace

import pytest
import torch
from torch.optim.optimizer import register_optimizer_step_post_hook

from rmsprop.comparing import sweep as module
from rmsprop.comparing.candidates import CANDIDATES, POINTS
from rmsprop.comparing.sweep import Store, sweep
from rmsprop.comparing.timing import guess, step_seconds
from tests.comparing.small import small

SGD = CANDIDATES["sgd"]


def test_an_edge_that_is_best_is_passed_at_most_three_times():
    low = sweep(small(), replace(SGD, first=-16), [0, 1], decay=False)
    assert len(low.curves.lrs) == POINTS + 3
    assert low.curves.lrs == sorted(low.curves.lrs)
    assert low.curves.lrs[-1] == pytest.approx(10 ** (-16 / 2 + (POINTS + 2) / 2), rel=0.01)
    high = sweep(small(), replace(SGD, first=-1), [0, 1], decay=False)
    assert high.curves.lrs[0] < SGD.grid[-1]
    assert high.curves.at_edge() == 0
    inside = sweep(small(), SGD, [0, 1], decay=False)
    assert inside.curves.lrs == SGD.grid


def test_learning_rates_that_were_asked_for_are_all():
    told = []
    found = sweep(small(), SGD, [0], decay=True, tell=told.append, lrs=[1e-6, 1e-5])
    assert found.curves.lrs == [1e-6, 1e-5]
    assert found.curves.at_edge() == 1
    assert (found.problem, found.candidate, found.decay) == ("small", "sgd", True)
    assert told[-1] == 1
    assert told == sorted(told)
    assert found.seconds > 0
    assert found.optimizer_seconds == found.step_seconds * 40


def test_weights_that_do_not_fit_at_once_are_trained_in_parts(monkeypatch):
    whole = sweep(small(), SGD, [0, 1], decay=False)
    told = []
    monkeypatch.setattr(module, "MOST_WEIGHTS", 26 * 2 * 3)
    parts = sweep(small(), SGD, [0, 1], decay=False, tell=told.append)
    assert told == sorted(told)
    assert len(told) == 3 * 20
    for name in ("valid", "test", "train"):
        torch.testing.assert_close(getattr(whole.curves, name), getattr(parts.curves, name), rtol=1e-9, atol=0)


def test_models_that_draw_random_numbers_give_the_same_twice():
    def dropping():
        return torch.nn.Sequential(torch.nn.Linear(3, 8), torch.nn.Dropout(0.5), torch.nn.Linear(8, 1)).double()

    torch.manual_seed(1)
    one = sweep(small(dropping), SGD, [0, 1], decay=False, lrs=[0.01])
    torch.manual_seed(2)
    assert sweep(small(dropping), SGD, [0, 1], decay=False, lrs=[0.01]).curves == one.curves


def test_results_are_kept_whole(tmp_path):
    store, found = Store(tmp_path / "new", {"seeds": 2}), sweep(small(), SGD, [0, 1], decay=False, lrs=[0.01, 1e200])
    assert store.get("small", "sgd", False) is None
    store.put(found)
    assert Store(tmp_path / "new", {"seeds": 2}).get("small", "sgd", False) == found
    assert store.get("small", "sgd", True) is None
    assert json.loads((tmp_path / "new/compare.json").read_text()) == {"seeds": 2}
    for text in ("{", "{}", "[]", '{"curves": 3}', '{"curves": {"lrs": []}}'):
        (tmp_path / "new/small--sgd.json").write_text(text)
        with pytest.raises(ValueError, match=r"small--sgd.json: damaged.*; delete it to have it made anew"):
            store.get("small", "sgd", False)


def test_other_settings_and_other_folders_are_refused(tmp_path):
    Store(tmp_path / "new", {"seeds": 2, "decay": False})
    with pytest.raises(ValueError, match=r"new has results of seeds=2, not 3"):
        Store(tmp_path / "new", {"seeds": 3, "decay": False})
    (tmp_path / "odd").mkdir()
    for text, message in (("[]", "compare.json: damaged"), ('{"data": 3, "seeds": 3}', "odd has results of data=3")):
        (tmp_path / "odd/compare.json").write_text(text)
        with pytest.raises(ValueError, match=message):
            Store(tmp_path / "odd", {"seeds": 3, "data": {"small": "1"}})
    (tmp_path / "full").mkdir()
    (tmp_path / "full/file").touch()
    with pytest.raises(ValueError, match=r"full: expected a new or empty folder"):
        Store(tmp_path / "full", {"seeds": 3})
    assert [path.name for path in (tmp_path / "full").iterdir()] == ["file"]


def test_a_step_is_timed_with_all_that_belongs_to_it(monkeypatch):
    """The clock is the test's: every step of the optimizer, averaging included, is a second of it."""
    now = [0.0]

    def slow(optimizer, *_):
        now[0] += 1.0

    monkeypatch.setattr("rmsprop.comparing.timing.perf_counter", lambda: now[0])
    hook = register_optimizer_step_post_hook(slow)
    try:
        assert step_seconds(small(), SGD, 0.1, 0) == 1.0
    finally:
        hook.remove()


def test_the_guess_grows_with_the_learning_rates_and_steps(monkeypatch):
    ticks = iter(range(1000))
    monkeypatch.setattr("rmsprop.comparing.timing.perf_counter", lambda: next(ticks))
    assert guess(small(), [0, 1], 8) == 8 * 40
