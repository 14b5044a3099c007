import numpy as np
import pytest

import rmsprop
from rmsprop import DIALECTS, RMSprop, Rule
from rmsprop.checkpoint import LIBRARIES, Checkpoint, Group, of
from rmsprop.checkpoint.summary import dialects, evidence, rows

OURS = LIBRARIES["rmsprop"]


def test_a_row_is_what_the_next_step_divides_by():
    rule = Rule(lr=0.1, bias_correction=True, beta=0.5, epsilon=1.0)
    v = np.array([0.0, 1.0, 4.0, 9.0, 16.0, 25.0, 36.0, 49.0, 64.0, 81.0, 100.0])
    (row,) = rows(Checkpoint((Group(rule, ("w",)),), {"w": {"step": 1, "square_avg": v}}))
    assert (row["shape"], row["dtype"], row["step"], row["dead"]) == ([11], "float64", 1, 1)
    assert row["v"] == [1.0, 25.0, 81.0]
    np.testing.assert_allclose(row["step_size"], 0.1 / np.sqrt(2 * np.array([81.0, 25.0, 1.0]) + 1))


def test_centered_rows_show_the_variance():
    entry = {"step": 9, "square_avg": np.array([5.0, 4.0]), "grad_avg": np.array([1.0, 2.0])}
    (row,) = rows(Checkpoint((Group(Rule(centered=True, epsilon=0.25), ("w",)),), {"w": entry}))
    assert row["v"] == [0.0, 0.0, 4.0]
    assert row["dead"] == 1
    np.testing.assert_allclose(row["step_size"][2], 0.001 / 0.5)


def test_damage_is_counted_and_the_rest_shown():
    v = np.array([1.0, np.nan, np.inf, -1.0, 1.0, 1.0], np.float32)
    state = {"step": 3, "square_avg": v, "momentum_buffer": np.array([np.nan] * 6, np.float32)}
    (row,) = rows(Checkpoint((Group(Rule(momentum=0.9), ("w",)),), {"w": state}))
    assert (row["not_finite"], row["negative"], row["v"]) == (8, 1, [1.0, 1.0, 1.0])
    state = {"step": float("nan"), "square_avg": np.array(["x"]), "momentum_buffer": np.ones(3)}
    assert Checkpoint((Group(Rule(momentum=0.9), ("w",)),), {"w": state}).faults()


def test_a_parameter_without_state():
    (row,) = rows(Checkpoint((Group(Rule(), ("w",)),), {}))
    assert (row["name"], row["v"], row["dtype"]) == ("w", None, "")


@pytest.mark.parametrize("name", DIALECTS)
def test_every_dialect_is_recognised(name):
    assert name in dialects(DIALECTS[name].rule, OURS)
    own, first = DIALECTS[name].rule, DIALECTS[dialects(DIALECTS[name].rule, OURS)[0]].rule
    for option in ("epsilon_mode", "epsilon", "beta", "lr", "momentum", "initial_square"):
        assert getattr(first, option) == getattr(own, option)


def test_where_v_started_is_seen():
    for start, text in ((0.0, "2 entries of v are 0"), (1.0, "2 entries of v are beta^step")):
        optimizer = RMSprop({"w": np.ones(4)}, rmsprop.dialect("tutorial", initial_square=start))
        for _ in range(3):
            optimizer.step({"w": np.array([1.0, 2.0, 0.0, 0.0])})
        assert [line[: len(text)] for line in evidence(of(optimizer))] == [text]
