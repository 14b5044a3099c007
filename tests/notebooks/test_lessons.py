import numpy as np
import pytest

import rmsprop
from rmsprop.notebooks import lessons


def test_gradient_descent_multiplies():
    np.testing.assert_allclose(lessons.descend(0.1), -4 * 0.8 ** np.arange(21))


@pytest.mark.parametrize("unit", [1.0, 10.0])
def test_plain_descent_is_stable_up_to_twice_the_inverse_curvature(unit):
    lr = 2 / lessons.steepest(unit)
    below, above = (lessons.two_lines(lambda p, f=f: lessons.Descent(p, f * lr), unit) for f in (0.98, 1.02))
    assert below[-1].max() < below[0].max()
    assert above[-1].max() > 100 * above[0].max()


def test_rmsprop_does_not_mind_the_unit():
    for unit in (1.0, 100.0):
        off = lessons.two_lines(lambda p: rmsprop.RMSprop(p, lr=0.02), unit, steps=600)
        assert off[-1].max() < 0.3
        np.testing.assert_allclose(off[0], [2, 3, 1, 0.5])


def test_mean_squares_are_the_average_of_squares():
    gradients, v, expected = lessons.noisy_gradients(), 0.0, []
    for g in gradients:
        v = 0.8 * v + 0.2 * g * g
        expected.append(v)
    np.testing.assert_allclose(lessons.mean_squares(gradients, 0.8), expected)


def test_the_slip_depends_on_the_size_and_loses_negative_gradients():
    for g in (0.01, 100.0):
        np.testing.assert_allclose(lessons.moves(np.full(200, g))[-1], 1, rtol=1e-3)
        np.testing.assert_allclose(lessons.slip(g), g**0.5, rtol=1e-3)
    assert np.isnan(lessons.slip(-0.5))
    np.testing.assert_allclose(lessons.moves(np.full(200, -0.5))[-1], -1, rtol=1e-3)


def test_hintons_mini_batches():
    assert sum(lessons.MINI_BATCHES) == pytest.approx(0)
    signs = lessons.drift(lambda p: rmsprop.Rprop(p, lr=0.1, variant="rprop-", step_sizes=(0.1, 0.1)))
    np.testing.assert_allclose(signs[::10], -0.8 * np.arange(21), atol=1e-12)
    plain = lessons.drift(lambda p: lessons.Descent(p, 0.1))
    np.testing.assert_allclose(plain[::10], 0, atol=1e-12)
    grown = lessons.drift(lambda p: rmsprop.Rprop(p, lr=0.1, variant="rprop-"))
    assert grown[-1] < 3 * signs[-1]
    averaged = lessons.drift(lambda p: rmsprop.RMSprop(p, lr=0.1, beta=0.99, bias_correction=True))
    assert abs(averaged[-1]) < 0.1 * abs(signs[-1])


def test_the_first_step_shows_epsilon():
    g = np.array([1e-5, 1e-2, 1.0])
    np.testing.assert_allclose(lessons.first_step(g, epsilon=1e-4), g / np.sqrt(g**2 + 1e-4))
    np.testing.assert_allclose(lessons.first_step(g, epsilon=1e-4, epsilon_mode="outside"), g / (g + 1e-4))


def test_moves_show_bias_correction_and_momentum():
    np.testing.assert_allclose(lessons.moves(np.ones(1))[0], 10**0.5, rtol=1e-6)
    np.testing.assert_allclose(lessons.moves(np.ones(5), bias_correction=True), 1, rtol=1e-6)
    np.testing.assert_allclose(lessons.moves(np.ones(200), momentum=0.9)[-1], 10, rtol=1e-6)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_exact_rows_are_dense_ones_and_lazy_rows_are_not(momentum):
    (dense, table), (exact, table1), (lazy, table2) = (
        lessons.rare_row(momentum, mode, steps=100) for mode in ("dense", "exact", "lazy")
    )
    np.testing.assert_allclose(exact, dense, atol=1e-12)
    np.testing.assert_allclose(table1, table, atol=1e-6)
    assert np.abs(table2 - table).max() > 0.01
    assert np.abs(lazy - dense).max() > 0.01


def test_steps_of_rows_and_of_a_whole_table_take_time():
    assert lessons.seconds_a_step(sparse=True, rows=1000) > 0
    assert lessons.seconds_a_step(sparse=False, rows=1000) > 0


def test_a_short_memory_goes_the_wrong_way():
    assert lessons.wrong_way(0.1)[-1] == 1
    assert lessons.wrong_way(0.99)[-1] < -0.99
