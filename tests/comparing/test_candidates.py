import numpy as np
import pytest
import torch

from rmsprop.comparing.candidates import CANDIDATES, POINTS, Average, lr_at
from rmsprop.comparing.gains import Gains
from rmsprop.comparing.plan import DEFAULT
from rmsprop.torch import RMSprop
from tests.comparing.small import small


@pytest.mark.parametrize("name", CANDIDATES)
def test_every_candidate_lowers_a_loss_on_its_own_grid(name):
    candidate = CANDIDATES[name]
    if not candidate.installed:
        pytest.skip(f"{candidate.package} is not installed")
    before, after = [], []
    for lr in candidate.grid:
        p = torch.nn.Parameter(torch.tensor([1.0, -2.0]))
        optimizer = candidate.optimizer([p], lr)
        before.append(float(p.detach().square().sum()))
        for _ in range(100):
            optimizer.zero_grad()
            p.square().sum().backward()
            optimizer.step()
        with candidate.evaluating(optimizer):
            after.append(float(p.detach().square().sum()))
    assert min(after) < 0.1 * before[0]


def test_grids_are_equally_long_and_two_a_decade():
    assert [lr_at(k) for k in (-6, -5, -4)] == [0.001, 0.00316, 0.01]
    for candidate in CANDIDATES.values():
        grid = candidate.grid
        assert len(grid) == POINTS
        np.testing.assert_allclose(np.diff(np.log10(grid)), 0.5, atol=0.001)


@pytest.mark.parametrize("steps", [40, 41, 200])
def test_a_full_batch_optimizer_sees_as_many_rows(steps):
    problem = small(steps=steps)
    for candidate in CANDIDATES.values():
        rows = len(problem.train) if candidate.full_batch else problem.batch_size
        seen = candidate.steps(problem) * rows
        assert abs(seen - steps * problem.batch_size) <= (len(problem.train) / 2 if candidate.full_batch else 0)
    assert CANDIDATES["rprop"].steps(small(steps=1)) == 1


def test_the_average_is_swapped_in_and_out():
    p = torch.nn.Parameter(torch.zeros(2))
    optimizer = torch.optim.SGD([p], lr=1.0)
    average = Average(optimizer)
    a = torch.zeros(2)
    for t in range(1, 6):
        p.grad = torch.tensor([-1.0, 1.0 * t])
        optimizer.step()
        a = a + 9 / (t + 8) * (p.detach() - a)
    values = p.detach().clone()
    with average.swapped():
        np.testing.assert_allclose(p.detach(), a, rtol=1e-6)
    assert torch.equal(p.detach(), values)
    with pytest.raises(KeyError), average.swapped():
        raise KeyError
    assert torch.equal(p.detach(), values)


def test_ours_are_ours_and_every_default_is_known():
    p = [torch.nn.Parameter(torch.zeros(2))]
    ours = [c for name, c in CANDIDATES.items() if name.startswith("rmsprop")]
    kinds = {c.name: type(c.optimizer(p, 0.1)) for c in ours}
    assert kinds == {name: Gains if name.endswith("-gains") else RMSprop for name in kinds}
    assert type(CANDIDATES["torch-rmsprop"].optimizer(p, 0.1)) is torch.optim.RMSprop
    assert set(DEFAULT) <= CANDIDATES.keys()
    assert len(set(DEFAULT)) == 12


def test_the_average_of_others_is_that_of_ours():
    ours, theirs = torch.nn.Parameter(torch.zeros(2)), torch.nn.Parameter(torch.zeros(2))
    one, other = RMSprop([ours], averaging=True), RMSprop([theirs])
    average = Average(other)
    for t in range(5):
        for p, optimizer in ((ours, one), (theirs, other)):
            p.grad = torch.tensor([-1.0, 1.0 * t])
            optimizer.step()
    with one.averaged(), average.swapped():
        np.testing.assert_allclose(ours.detach(), theirs.detach(), rtol=1e-6)
