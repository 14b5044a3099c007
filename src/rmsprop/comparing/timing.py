"""What one step of an optimizer costs on the real model, and what a step of training many replicas will."""

from statistics import median
from time import perf_counter

from rmsprop.comparing.candidates import Candidate
from rmsprop.comparing.problem import Problem
from rmsprop.comparing.replicas import Replicas, trained
from rmsprop.comparing.seeding import seeded

WARM_UP, STEPS = 3, 30


def step_seconds(problem: Problem, candidate: Candidate, lr: float, seed: int) -> float:
    """The median time of a step on the model's own parameters, with the gradients of one batch.

    Averaging and whatever else the optimizer does after a step is in it; forward and backward passes are not.
    """
    model, rows = problem.start(seed), problem.order(seed)[0]
    with seeded(seed):
        problem.loss(model(problem.train.inputs[rows]), problem.train.targets[rows]).backward()  # type: ignore[no-untyped-call]
    optimizer = candidate.optimizer(list(trained(model)), lr)
    times = []
    for _ in range(WARM_UP + STEPS):
        start = perf_counter()
        optimizer.step()
        times.append(perf_counter() - start)
    return median(times[WARM_UP:])


def guess(problem: Problem, seeds: list[int], lrs: int) -> float:
    """About how many seconds a candidate will take: from one step of the replicas of one learning rate."""
    replicas = Replicas(problem, [problem.start(seed) for seed in seeds])
    rows = problem.order(seeds[0])[0].repeat(len(seeds), 1)
    for _ in range(2):  # the first one warms up
        start = perf_counter()
        losses, _ = replicas.scores(problem.train.inputs[rows], problem.train.targets[rows], shared=False)
        losses.sum().backward()  # type: ignore[no-untyped-call]
    return (perf_counter() - start) * lrs * problem.steps
