"""The definition of averaged weights, in numbers."""

import numpy as np
import pytest

from rmsprop.averaging import GAMMA, gamma_of, rate, slots, update
from rmsprop.rule import OptionError
from tests.cases import special

TINY = float(np.finfo(float).tiny)


def averages(points, gamma):
    a, result = np.float64(points[0]), []
    for t, p in enumerate(points, 1):
        a = update(a, p, rate(t, gamma), TINY, np.where)
        result.append(a)
    return np.array(result)


def test_gamma_0_is_the_mean():
    points = np.random.default_rng(0).normal(size=200)
    np.testing.assert_allclose(averages(points, 0.0), np.cumsum(points) / np.arange(1, 201), rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("gamma", [1.0, 3.0, 8.0])
def test_step_s_weighs_as_much_as_its_binomial(gamma):
    """The weight of p_s in a_t is proportional to (s + gamma - 1) over gamma: a polynomial in s of degree gamma."""
    last, g = 60, int(gamma)
    weights = np.array([averages(np.eye(last)[s], gamma)[-1] for s in range(last)])
    expected = np.array([np.prod([s + k for k in range(g)]) for s in range(1, last + 1)], float)
    np.testing.assert_allclose(weights, expected / expected.sum(), rtol=1e-10, atol=1e-16)


def test_the_first_is_the_parameter_and_what_equals_it_stays():
    for dtype in (np.float32, np.float64):
        tiny, numbers = np.finfo(dtype).tiny, special(dtype)
        with np.errstate(all="ignore"):
            first = update(np.full_like(numbers, 3), numbers, rate(1, GAMMA), tiny, np.where)
            np.testing.assert_array_equal(first, numbers)
            np.testing.assert_array_equal(update(numbers, numbers, 0.1, tiny, np.where), numbers)


def test_what_is_too_small_becomes_0():
    tiny = np.finfo(np.float32).tiny
    assert update(np.float32(tiny), np.float32(0), 0.5, tiny, np.where) == 0
    assert update(np.float32(-tiny), np.float32(0), 0.5, tiny, np.where) == 0
    assert update(np.float32(4 * tiny), np.float32(0), 0.5, tiny, np.where) == 2 * tiny


def test_options():
    assert [gamma_of(x) for x in (None, False, True, 0, 3, np.float32(0.5), np.True_)] == [None, None, 8, 0, 3, 0.5, 8]
    assert slots(None) == {}
    assert slots(0.0) == {"a": "weight_avg"}
    for bad in (-1, float("nan"), float("inf"), "yes", [1]):
        with pytest.raises(OptionError, match=r"averaging=.*expected True, False or a finite number of at least 0"):
            gamma_of(bad)
