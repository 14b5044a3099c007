import numpy as np
import pytest
import torch

from rmsprop.training.network import build, stream, threads_for


def weights(network):
    return [layer.weight.detach().numpy() for layer in network if isinstance(layer, torch.nn.Linear)]


def test_kaiming_keeps_the_size_and_the_others_scale_it():
    first, last = weights(build(400, (300,), 200, "kaiming", 0))
    assert first.std() == pytest.approx((2 / 400) ** 0.5, rel=0.01)
    assert last.std() == pytest.approx((1 / 300) ** 0.5, rel=0.01)
    for init, factor in (("huge", 20.0), ("tiny", 1e-3), ("zeros", 0.0)):
        np.testing.assert_allclose(weights(build(400, (300,), 200, init, 0))[0], factor * first, rtol=1e-5)


def test_shapes_and_activations():
    network = build(3, (5, 4), 2, "kaiming", 0)
    assert [type(layer).__name__ for layer in network] == ["Linear", "ReLU", "Linear", "ReLU", "Linear"]
    assert [p.shape for p in build(3, (), 2, "kaiming", 0).parameters()] == [(2, 3), (2,)]


def test_only_the_seed_decides_and_torchs_own_numbers_are_left_alone():
    before = torch.get_rng_state()
    first = weights(build(3, (5,), 2, "kaiming", 1))
    torch.rand(7)
    torch.set_rng_state(before)
    for a, b in zip(first, weights(build(3, (5,), 2, "kaiming", 1)), strict=True):
        np.testing.assert_array_equal(a, b)
    assert not np.array_equal(first[0], weights(build(3, (5,), 2, "kaiming", 2))[0])
    np.testing.assert_array_equal(torch.get_rng_state(), before)
    assert stream(0, "a").initial_seed() != stream(0, "b").initial_seed()


def test_small_work_takes_one_thread():
    assert threads_for(build(64, (256, 128), 10, "zeros", 0), 64) == 1
    assert threads_for(build(64, (1024, 1024), 10, "zeros", 0), 256) == torch.get_num_threads()
