"""Results made by hand, whose rankings can be told in the head."""

from torch.optim import SGD, Adam

from rmsprop.comparing.candidates import Candidate
from rmsprop.comparing.curves import Curves
from rmsprop.comparing.sweep import Result

INF = float("inf")
CANDIDATES = {
    c.name: c
    for c in (
        Candidate("adam", "torch Adam", Adam),
        Candidate("sgd", "plain", SGD),
        Candidate("heavy", "with momentum", lambda p, lr: SGD(p, lr, momentum=0.9), averaging=True),
        Candidate("whole", "all rows a step", SGD, full_batch=True),
        Candidate("absent", "not here", Adam, package="no_such_package"),
    )
}


def result(
    name, tests, finals=None, lrs=None, problem="hills", decay=False, paths=None, error=None, steps=None, start=2.0
):
    """A result whose first learning rate has the lowest validation loss unless `finals` say otherwise.

    `tests` are the scores at the best learning rate, one a seed; `finals` the final validation losses by learning rate,
    0.9 times the mean of the tests for the best; `paths` the validation losses of each seed at the best learning rate.
    """
    seeds = list(range(len(tests)))
    finals = finals or [0.9 * sum(tests) / len(tests)]
    lrs = lrs or [10.0 ** (i - len(finals)) for i in range(len(finals))]
    best = finals.index(min(finals))
    steps = steps or [10, 20, 30, 40]
    valid = [[[start, *[final] * (len(steps) - 1)] for _ in seeds] for final in finals]
    test = [[final if final == INF else 5 * final for _ in seeds] for final in finals]
    test[best] = list(tests)
    if paths:
        valid[best] = paths
    errors = None if error is None else [[error] * len(seeds) for _ in lrs]
    spike = [[1.5] * len(seeds) for _ in lrs]
    curves = Curves(lrs, seeds, steps, valid, valid, test, spike, errors)
    return Result(problem, name, decay, curves, 1.0, 0.001)
