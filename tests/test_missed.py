"""Rows that a gradient does not touch end where gradients of 0 would have left them, whatever the rule and its lr."""

import numpy as np
import pytest
from numpy.testing import assert_allclose

from rmsprop import Rule
from rmsprop.kernels import cpu
from rmsprop.kernels.rows import Table
from rmsprop.missed import Missed, catch_up, moves, refusal
from tests.cases import RULES

EXACT = {name: rule for name, rule in RULES.items() if not refusal(rule)}
ROWS, WIDTH = 24, 3
ENGINES = {"native": lambda groups: cpu.step(groups, 1), "blocked": cpu._blocked}
if cpu.native is None:
    del ENGINES["native"]
engines = pytest.mark.parametrize("step", ENGINES.values(), ids=ENGINES)


def state(rule, dtype=np.float64):
    start = {"v": rule.initial_square, "m": 0.0, "b": 0.0}
    slots = {name: np.full((ROWS, WIDTH), start[letter], dtype) for letter, name in rule.slots().items()}
    return {"step": np.zeros(()), **slots}


def group(rule, p, g, own):
    return [cpu.Group(*cpu.coefficients(rule), [p], [g], [own])]


def trajectories(rule, step, steps, lr, dtype=np.float64, touch=None):
    """(parameter, state) after dense steps, and after steps of rows and a flush."""
    rng = np.random.default_rng(0)
    dense = rng.normal(size=(ROWS, WIDTH)).astype(dtype)
    p, own, whole = dense.copy(), state(rule, dtype), state(rule, dtype)
    table = Table(np.zeros(ROWS, np.int32), rule, 0)
    for t in range(1, steps + 1):
        now = rule.replace(lr=lr(t))
        # Row 0 is touched at every step, the last one never, another once; some come several times.
        rows = (
            np.array([0, *rng.integers(1, ROWS - 2, size=2), *([ROWS - 2] * (t == 7))]) if touch is None else touch(t)
        )
        values = rng.normal(size=(len(rows), WIDTH)).astype(dtype)
        g = np.zeros_like(dense)
        np.add.at(g, rows, values)
        step(group(now, dense, g, whole))
        if not table.missed.fits(now):
            step(group(table.missed.rule, p, table.behind(), own))
            table = Table(np.full(ROWS, t - 1, np.int32), now, t - 1)
        step(group(now, p, table.gradient(rows, values, strict=False), own))
        table.missed.add(now.scalars(t))
    step(group(table.missed.rule, p, table.behind(), own))
    assert (table.last == steps).all()
    return (dense, whole), (p, own)


def assert_equal(expected, actual, tolerance):
    (p, dense), (q, own) = expected, actual
    assert_allclose(q, p, rtol=tolerance, atol=tolerance * abs(p).max())
    for name, value in dense.items():
        assert_allclose(own[name], value, rtol=tolerance, atol=tolerance * abs(value).max(), err_msg=name)


SCHEDULES = {
    "constant": lambda t: 0.01,
    "cosine": lambda t: 0.005 * (1 + np.cos(t / 50)),
    "steps": lambda t: 0.01 * 0.1 ** (t // 300),
    "from 0": lambda t: 1e-5 * t,
}


@pytest.mark.parametrize("lr", SCHEDULES.values(), ids=SCHEDULES)
@pytest.mark.parametrize("rule", EXACT.values(), ids=EXACT)
def test_a_thousand_steps_are_those_of_the_dense_rule(rule, lr):
    if cpu.native is None:
        pytest.skip("takes long without the kernel")
    assert_equal(*trajectories(rule, ENGINES["native"], 1000, lr), 1e-10)


@pytest.mark.parametrize("rule", EXACT.values(), ids=EXACT)
def test_without_the_kernel(rule):
    assert_equal(*trajectories(rule, cpu._blocked, 100, SCHEDULES["cosine"]), 1e-11)


@pytest.mark.parametrize("momentum", [0.5, 0.9, 0.99, 0.9999])
@pytest.mark.parametrize("form", ["lr_outside", "lr_inside", "ema"])
@pytest.mark.parametrize("decay", [0.0, 0.1, 30.0])
def test_momentum_and_decay_together(momentum, form, decay):
    rule = Rule(0.01, 0.99, momentum=momentum, momentum_form=form, weight_decay=decay, decay_mode="decoupled")
    assert_equal(*trajectories(rule, next(iter(ENGINES.values())), 500, SCHEDULES["cosine"]), 1e-10)


@engines
def test_float32_is_equal_to_its_own_roundings(step):
    rule = Rule(0.01, 0.99, momentum=0.9, centered=True, weight_decay=0.1, decay_mode="decoupled")
    (p, dense), (q, own) = trajectories(rule, step, 300, SCHEDULES["cosine"], np.float32)
    assert_allclose(q, p, rtol=0, atol=2e-5 * abs(p).max())
    assert own["variance"].dtype == np.float32
    assert_allclose(own["variance"], dense["variance"], rtol=1e-3)


@pytest.mark.parametrize("options", [{}, {"momentum": 0.9, "centered": True}], ids=str)
def test_a_million_missed_steps(options):
    """Against the scalars of the dense rule, in a plain loop over the one row that waits."""
    steps = 1_000_000
    rule = Rule(0.01, 0.99999, weight_decay=1e-5 if options else 0.0, decay_mode="decoupled", **options)
    p, own = np.ones((2, 1)), {"step": np.zeros(()), **{n: np.zeros((2, 1)) for n in rule.slots().values()}}
    table = Table(np.zeros(2, np.int32), rule, 0)
    step = next(iter(ENGINES.values()))
    step([cpu.Group(*cpu.coefficients(rule), [p], [table.gradient(np.array([0]), np.ones((1, 1)))], [own])])
    table.missed.add(rule.scalars(1))
    x, v, m, b = (
        float(p[0, 0]),
        *(float(own[n][0, 0]) if n in own else 0.0 for n in (rule.slots()["v"], "grad_avg", "momentum_buffer")),
    )
    k = rule.scalars(1)
    for t in range(2, steps + 1):
        if rule.centered:
            v, m = rule.beta * (v + (1 - rule.beta) * m * m), rule.beta * m
        else:
            v = rule.beta * v
        b = rule.momentum * b
        x = x - k["decoupled"] * x - k["c2"] * b
        if not table.missed.fits(rule):
            step([cpu.Group(*cpu.coefficients(rule), [p], [table.behind()], [own])])
            table = Table(np.full(2, t - 1, np.int32), rule, t - 1)
        own["step"] += 1  # a step that touches neither row
        table.missed.add(k)
    step([cpu.Group(*cpu.coefficients(rule), [p], [table.behind()], [own])])
    assert_allclose(p[0, 0], x, rtol=1e-9)
    assert_allclose(own[rule.slots()["v"]][0, 0], v, rtol=1e-9)
    assert 0 < v < 1e-4


def test_refused_rules():
    assert "coupled" in refusal(Rule(weight_decay=0.1))
    assert "clip_weights=0.1" in refusal(Rule(clip_weights=0.1))
    assert "less than 1" in refusal(Rule(lr=2.0, weight_decay=0.5, decay_mode="decoupled"))
    assert not refusal(Rule(weight_decay=0.1, decay_mode="decoupled"))
    assert not refusal(Rule())


@pytest.mark.parametrize(
    ("options", "expected"), [({}, False), ({"momentum": 0.9}, True), ({"weight_decay": 0.1}, True)]
)
def test_what_moves(options, expected):
    assert moves(Rule(**options)) is expected


def test_a_history_ends_with_its_rule_and_before_it_underflows():
    rule = Rule(0.1, momentum=0.9, weight_decay=1.0, decay_mode="decoupled")
    missed = Missed(rule, 0)
    assert missed.fits(rule.replace(lr=0.5))
    for change in ({"beta": 0.8}, {"momentum": 0.8}, {"centered": True}):
        assert not missed.fits(rule.replace(**change))
    while missed.fits(rule):
        missed.add(rule.scalars(missed.length + 1))
    assert 3000 < missed.length < 4000
    assert missed.retained[missed.length] > 1e-200


def test_catch_up_writes_to_nothing():
    arrays = [np.ones((4, 2)) for _ in range(4)]
    rule = Rule(momentum=0.9, centered=True)
    missed = Missed(rule, 0)
    missed.add(rule.scalars(1))
    factors = {key: value[:, None] for key, value in missed.factors(np.zeros(4, np.int32)).items()}
    flags = {"centered": True, "momentum": True, "decay": False}
    new = catch_up(*arrays, **factors, **flags, tiny=1e-300, where=np.where)
    assert all((x == 1).all() for x in arrays)
    assert [round(float(x[0, 0]), 6) for x in new] == [0.9991, 0.99, 0.9, 0.9]
