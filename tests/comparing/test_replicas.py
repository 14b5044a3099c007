import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from rmsprop.comparing import replicas
from rmsprop.comparing.candidates import CANDIDATES, Candidate
from rmsprop.comparing.problem import Split
from rmsprop.comparing.replicas import train
from rmsprop.torch import RMSprop
from tests.comparing.small import perceptron, plain, rows, small

LRS, SEEDS = [0.003, 0.03], [0, 1]


def packaged(module, name):
    def make(params, lr):
        return getattr(pytest.importorskip(module), name)(params, lr=lr)

    return make


#: What each candidate is when torch or its package trains with it alone.
ALONE = {
    "rmsprop": torch.optim.RMSprop,
    "rmsprop-modern": lambda params, lr: RMSprop(params, lr=lr, dialect="modern"),
    "rmsprop-centered": lambda params, lr: torch.optim.RMSprop(params, lr=lr, centered=True),
    "sgd": lambda params, lr: torch.optim.SGD(params, lr, momentum=0.9),
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
    "adagrad": torch.optim.Adagrad,
    "torch-rmsprop": torch.optim.RMSprop,
    "rprop": torch.optim.Rprop,
    "schedulefree": packaged("schedulefree", "AdamWScheduleFree"),
    "prodigy": packaged("prodigyopt", "Prodigy"),
}


def assert_like_plain(curves, problem, make, **options):
    """Every replica's losses are those of the plain loop, at every evaluation."""
    for i, lr in enumerate(LRS):
        for j, seed in enumerate(SEEDS):
            valid, test = plain(problem, make, lr, seed, curves.steps, **options)
            np.testing.assert_allclose(curves.valid[i][j], valid, rtol=1e-5)
            np.testing.assert_allclose(curves.test[i][j], np.mean(test[-2:]), rtol=1e-5)


@pytest.mark.parametrize("name", ALONE)
def test_every_replica_is_a_plain_training(name):
    candidate, problem = CANDIDATES[name], small()
    curves = train(problem, candidate, LRS, SEEDS)
    assert curves.steps[-1] == (10 if name == "rprop" else 40)
    assert_like_plain(curves, problem, ALONE[name], full_batch=candidate.full_batch)


@pytest.mark.parametrize("name", ["rmsprop", "adam", "schedulefree"])
def test_decay_is_linear_to_zero(name):
    problem = small()
    assert_like_plain(train(problem, CANDIDATES[name], LRS, SEEDS, decay=True), problem, ALONE[name], decay=True)


class Normed(nn.Module):
    """Batch normalisation, whose running statistics belong to each replica."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5), nn.Tanh(), nn.Linear(5, 1)).double()

    def forward(self, x):
        return self.layers(x)


class Still(Normed):
    """The user has its batch normalisation in evaluation for good."""

    def __init__(self):
        super().__init__()
        self.layers[1].eval()


class Counting(nn.Sequential):
    """Assigns its buffer anew, and computes with it."""

    def __init__(self):
        super().__init__(*perceptron())
        self.register_buffer("n", torch.zeros((), dtype=torch.float64))

    def forward(self, x):
        if self.training:
            self.n = self.n + 1
        return super().forward(x) / (1 + self.n / 10)


class Choosing(nn.Sequential):
    """Looks at values, which nothing vectorises."""

    def forward(self, x):
        return super().forward(x if float(x.detach().sum()) < 1e9 else -x)


class Frozen(nn.Sequential):
    """The first layer stays as it is."""

    def __init__(self):
        super().__init__(*perceptron())
        self[0].requires_grad_(False)


@pytest.mark.parametrize("error", [None, lambda outputs, targets: (outputs - targets).abs().mean()])
def test_plain_models_are_vectorised(error):
    problem = small(error=error)
    found = replicas.Replicas(problem, [problem.start(seed) for seed in SEEDS])
    losses, errors = found.scores(problem.train.inputs, problem.train.targets, shared=True)
    assert found.vectorised
    assert losses.shape == (2,)
    assert (errors is None) == (error is None)


@pytest.mark.parametrize("model", [Normed, Still, Counting, lambda: Choosing(*perceptron()), Frozen])
def test_models_that_cannot_be_vectorised_are_trained_one_by_one(model):
    problem = small(model)
    found = replicas.Replicas(problem, [problem.start(0)])
    found.scores(problem.train.inputs[None], problem.train.targets[None], shared=False)
    assert not found.vectorised
    assert_like_plain(train(problem, CANDIDATES["adam"], LRS, SEEDS), problem, torch.optim.Adam)


class Dropping(nn.Sequential):
    def __init__(self, p):
        super().__init__(*list(perceptron())[:2], nn.Dropout(p), perceptron()[2])


@pytest.mark.parametrize(("rows", "batch"), [(17, 8), (17, 2), (3, 2), (64, 16), (5, 8)])
def test_rows_are_cut_into_even_parts_of_a_batch_or_more(rows, batch):
    split = Split(torch.arange(rows), torch.arange(rows))
    sizes = [len(part) for part in replicas.chunks(split, batch)]
    assert torch.equal(torch.cat([part.targets for part in replicas.chunks(split, batch)]), split.targets)
    assert min(sizes) >= min(rows, batch)
    assert max(sizes) - min(sizes) <= 1
    assert rows % batch or sizes == [batch] * (rows // batch)


def test_full_batches_with_a_row_left_over_train_batch_norm_and_give_the_mean_gradient():
    problem = replace(small(Normed), train=rows(17, 0))
    assert np.isfinite(train(problem, CANDIDATES["rprop"], LRS, SEEDS).valid).all()
    problem = replace(small(), train=rows(17, 0))
    curves = train(problem, CANDIDATES["rprop"], LRS, SEEDS)
    assert_like_plain(curves, problem, ALONE["rprop"], full_batch=True)


def test_a_schedule_leaves_full_batch_candidates_alone():
    whole = Candidate("whole", "", torch.optim.SGD, full_batch=True)
    one, other = (train(small(), whole, LRS, SEEDS, decay=decay) for decay in (False, True))
    assert one == other


def test_dropout_is_on_in_training_and_off_in_evaluation():
    """At rate 0 it is the plain loop; above it other batches are seen, but the first evaluation's weights are alike."""
    problem = small(lambda: Dropping(0.0))
    assert_like_plain(train(problem, CANDIDATES["sgd"], LRS, SEEDS), problem, ALONE["sgd"])
    dropping = small(lambda: Dropping(0.5))
    curves, without = (train(p, CANDIDATES["sgd"], [1e-12], SEEDS) for p in (dropping, problem))
    np.testing.assert_allclose(curves.valid, without.valid, rtol=1e-6)
    assert not np.allclose(curves.train, without.train, rtol=1e-3)
    assert len({loss for seed in curves.train[0] for loss in seed}) > len(SEEDS)


def test_one_that_diverges_leaves_the_others_as_they_are():
    problem = small()
    for name in ("sgd", "rmsprop", "rmsprop-modern", "prodigy"):
        if not CANDIDATES[name].installed:
            continue
        whole = train(problem, CANDIDATES[name], [0.003, 0.03, 1e200], SEEDS)
        pair = train(problem, CANDIDATES[name], [0.003, 0.03, 0.1], SEEDS)
        assert (whole.valid[:2], whole.test[:2], whole.train[:2]) == (pair.valid[:2], pair.test[:2], pair.train[:2])
        assert not any(math.isfinite(loss) and loss < 1e10 for loss in whole.test[2])


def test_averaged_weights_are_evaluated_and_plain_ones_trained():
    problem, lr = small(), 0.03
    averaged = train(problem, CANDIDATES["adam-averaged"], [lr], [0])
    assert averaged.train == train(problem, CANDIDATES["adam"], [lr], [0]).train
    model, order = problem.start(0), problem.order(0)
    optimizer, average = torch.optim.Adam(model.parameters(), lr), problem.start(0)
    for step in range(problem.steps):
        optimizer.zero_grad()
        problem.loss(*_batch(model, problem, order[step])).backward()
        optimizer.step()
        with torch.no_grad():
            for a, p in zip(average.parameters(), model.parameters(), strict=True):
                a.lerp_(p, 9 / (step + 9))
    loss = problem.loss(average(problem.valid.inputs), problem.valid.targets)
    np.testing.assert_allclose(averaged.valid[0][0][-1], loss.item(), rtol=1e-9)


def _batch(model, problem, rows):
    return model(problem.train.inputs[rows]), problem.train.targets[rows]


def test_the_second_score_and_the_early_spike():
    problem = small(error=lambda outputs, targets: (outputs - targets).abs().mean())
    curves = train(problem, CANDIDATES["sgd"], LRS, SEEDS)
    model = problem.start(0)
    assert np.shape(curves.error) == (2, 2)
    first = problem.loss(*_batch(model, problem, problem.order(0)[0])).item()
    wild = train(problem, CANDIDATES["sgd"], [10.0], [0])
    assert wild.spike[0][0] > 10
    early = train(small(steps=20), CANDIDATES["sgd"], [0.003], [0])
    np.testing.assert_allclose(early.spike[0][0], max(early.train[0][0]) / first, rtol=1e-9)
    with torch.no_grad():
        mean = (model(problem.test.inputs) - problem.test.targets).abs().mean().item()
    still = train(problem, CANDIDATES["sgd"], [1e-15], [0])
    np.testing.assert_allclose(still.error[0][0], mean, rtol=1e-6)


def test_seeds_share_weights_and_rows_between_optimizers():
    problem = small()
    a, b = (train(problem, CANDIDATES[name], [1e-15], SEEDS) for name in ("sgd", "adam"))
    np.testing.assert_allclose(a.train, b.train, rtol=1e-9)
    assert len({tuple(seed) for seed in a.train[0]}) == len(SEEDS)


def test_told_how_far_it_is_and_the_callers_random_numbers_are_left_alone():
    state, told = torch.get_rng_state(), []
    train(small(), CANDIDATES["sgd"], LRS, SEEDS, tell=told.append)
    assert told == [(k + 1) / 20 for k in range(20)]
    assert torch.equal(torch.get_rng_state(), state)
