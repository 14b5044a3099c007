"""`watch` in use: whose statistics, which steps, what the log gets, and what is refused."""

import copy
import warnings

import pytest
import torch

from tests.conftest import parameter

KEYS = ["gradient_rms", "update_rms", "weight_rms", "update_to_weight", "epsilon_share", "skipped"]
KEYS += ["step_size_10", "step_size_50", "step_size_90"]


def test_names_and_groups(make):
    a, b, c, z = parameter(), parameter(), parameter(), parameter(dtype=torch.complex64)
    unnamed = make([{"params": [a, b]}, {"params": [z, c], "momentum": 0.9}])
    b.grad, size = None, 1
    for optimizer, names in (
        (unnamed, ["group0.parameter0", "group1.parameter0", "group1.parameter1"]),
        (make([{"params": [("first", a), ("no gradient", b)]}, {"params": [("z", z), ("c", c)]}]), ["first", "z", "c"]),
    ):
        optimizer.watch()
        optimizer.step()
        assert list(optimizer.stats()) == names
        assert all(list(row) == KEYS for row in optimizer.stats().values())
        size += 1
    rows = unnamed.stats()
    assert rows["group1.parameter0"]["gradient_rms"] == pytest.approx(
        rows["group0.parameter0"]["gradient_rms"] / 2**0.5
    )


def test_equal_names_are_told_apart(make):
    groups = [[("w", parameter()), ("b", parameter())], [("w", parameter(grad=(5.0, 5.0, 5.0)))]]
    groups.append([("twice", parameter()), ("twice", parameter())])
    optimizer = make([{"params": group} for group in groups])
    optimizer.watch()
    optimizer.step()
    assert list(optimizer.stats()) == ["group0.w", "b", "group1.w", "group2.parameter0", "group2.parameter1"]
    assert optimizer.stats()["group1.w"]["gradient_rms"] == pytest.approx(5)


def test_empty_parameters_have_none(make):
    empty, p = torch.nn.Parameter(torch.zeros(4, 0, 3)), parameter()
    empty.grad = torch.zeros(4, 0, 3)
    optimizer = make([("empty", empty), ("p", p)])
    optimizer.watch()
    optimizer.step()
    assert list(optimizer.stats()) == ["p"]


def test_parameter_listed_twice_keeps_the_names_of_others(make):
    p, q = parameter(), parameter(grad=(5.0, 5.0, 5.0))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        optimizer = make([("a", p), ("a again", p), ("b", q)])
    optimizer.watch()
    optimizer.step()
    assert list(optimizer.stats()) == ["a", "b"]
    assert optimizer.stats()["b"]["gradient_rms"] == pytest.approx(5)
    optimizer.load_state_dict(optimizer.state_dict())
    assert optimizer.state[q]["square_avg"][0] == pytest.approx(0.25)


def test_every_counts_and_zero_stops(make):
    p, told = parameter(), []
    optimizer = make([("p", p)])
    optimizer.step()
    optimizer.watch(told.append, every=3)
    for _ in range(7):
        optimizer.step()
    assert [row["step"] for row in told] == [3, 6]
    optimizer.watch(told.append, every=2)
    for _ in range(2):
        optimizer.step()
    assert [row["step"] for row in told] == [3, 6, 2]
    optimizer.watch(every=0)
    for _ in range(3):
        optimizer.step()
    assert len(told) == 3
    with pytest.raises(RuntimeError, match="no step has been watched"):
        optimizer.stats()


def test_log_gets_one_flat_dict_of_numbers(make):
    told, params = [], [("a", parameter()), ("b.weight", parameter())]
    optimizer = make(params)
    optimizer.watch(told.append)
    optimizer.step()
    (row,) = told
    assert set(row) == {"step"} | {f"{name}/{key}" for name, _ in params for key in KEYS}
    assert {type(value) for value in row.values()} <= {int, float}
    assert row["b.weight/update_rms"] == optimizer.stats()["b.weight"]["update_rms"]


def test_log_that_raises_leaves_the_step_done(make):
    p, q = parameter(), parameter()
    optimizer, plain = make([p]), make([q])

    def log(row):
        raise OSError("disk full")

    optimizer.watch(log)
    for t in range(2):
        plain.step()
        with pytest.raises(OSError, match="disk full"):
            optimizer.step()
        assert torch.equal(p, q)
        assert optimizer.state[p]["step"] == t + 1
    optimizer.watch(lambda row: optimizer.watch(every=0))  # what a log may do to the optimizer comes after the step
    optimizer.step()
    with pytest.raises(RuntimeError, match="stats"):
        optimizer.stats()


def test_interrupted_statistics_leave_the_step_done(make, monkeypatch):
    p = parameter()
    optimizer = make([p])
    optimizer.watch()
    version = p._version

    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(torch, "quantile", interrupt)
    with pytest.raises(KeyboardInterrupt):
        optimizer.step()
    assert p.tolist() != [1, -2, 3]
    assert optimizer.state[p]["step"] == 1
    assert p._version > version


def test_failed_step_tells_nothing(make):
    p, told = parameter(), []
    optimizer = make([p], nonfinite="error")
    optimizer.watch(told.append)
    optimizer.step()
    seen = copy.deepcopy(optimizer.stats())
    p.grad[0] = float("nan")
    with pytest.raises(FloatingPointError):
        optimizer.step()
    assert optimizer.stats() == seen
    assert len(told) == 1


def test_stats_before_a_watched_step(make):
    optimizer = make([parameter()])
    for prepare in (
        lambda: None,
        optimizer.step,
        optimizer.watch,
        lambda: optimizer.watch(every=2) or optimizer.step(),
    ):
        prepare()
        with pytest.raises(RuntimeError, match=r"stats: no step has been watched; call watch\(\)"):
            optimizer.stats()


@pytest.mark.parametrize("every", [-1, 1.0, True, None, "1"])
def test_refusals(make, every):
    with pytest.raises(ValueError, match=r"every=.*expected a whole number of at least 0"):
        make([parameter()]).watch(every=every)


def test_closure_and_copies(make):
    p = parameter()
    optimizer = make([p])
    optimizer.watch()
    assert optimizer.step(lambda: 3.0) == 3
    other = copy.deepcopy(optimizer)
    other.step()
    with pytest.raises(RuntimeError, match="stats"):  # a log belongs to one optimizer
        other.stats()


@pytest.mark.parametrize("state_dtype", [None, torch.float64, torch.bfloat16], ids=str)
def test_mixed_kinds_in_one_step(make, state_dtype):
    """Some by the kernel, some by lists: statistics stay in the parameters' order."""
    kinds = [torch.float32, torch.float64, torch.bfloat16, torch.float32]
    params = [parameter(grad=(2.0**i, 2.0**i, 2.0**i), dtype=kind) for i, kind in enumerate(kinds)]
    optimizer = make(params, state_dtype=state_dtype)
    optimizer.watch()
    for _ in range(2):
        optimizer.step()
    found = [row["gradient_rms"] for row in optimizer.stats().values()]
    assert found == pytest.approx([1, 2, 4, 8])
