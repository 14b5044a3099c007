import numpy as np
import pytest

from rmsprop.notebooks.starts import train

CHANCE = 0.2


def test_a_good_start_learns_and_repeats():
    first, again = train("kaiming", epochs=4), train("kaiming", epochs=4)
    assert first.accuracy > 0.85
    assert first.different == 32
    np.testing.assert_array_equal(first.losses, again.losses)


@pytest.mark.parametrize("start", ["zeros", "same"])
def test_equal_units_stay_copies(start):
    training = train(start, epochs=4)
    assert training.different == 1
    assert training.accuracy <= CHANCE


def test_huge_weights_start_from_a_huge_loss():
    training = train("huge", epochs=4)
    assert training.losses[0] > 1000
    assert training.accuracy < 0.6


def test_tiny_weights_learn_only_with_a_smaller_epsilon():
    stuck, freed = train("tiny"), train("tiny", epsilon=1e-16)
    assert stuck.accuracy <= CHANCE
    assert freed.accuracy > 0.4
    assert stuck.different == 32
