import numpy as np
import pytest
import torch

from rmsprop.fit import DEFAULTS
from rmsprop.training.loop import Data, DivergedError, State, evaluate, outputs, score_of, train
from rmsprop.training.network import build
from rmsprop.training.race import optimizer_for
from rmsprop.training.run import load_checkpoint, save_checkpoint
from rmsprop.training.settings import Settings

generator = torch.Generator().manual_seed(0)
X = torch.randn(50, 4, generator=generator)
DATA = Data(X[:40], (X[:40, 0] > 0).long(), X[40:], (X[40:, 0] > 0).long())


class StopHereError(Exception):
    pass


def fresh(**options):
    settings = Settings.of(**{**DEFAULTS, "epochs": 3, "batch_size": 16, "hidden": (8,), **options})
    network = build(4, settings.hidden, 2, settings.init, settings.seed)
    return State(network, optimizer_for(network, settings)), settings


def never(state):
    pass


def bits(state):
    return [p.detach().numpy().copy() for p in state.network.parameters()]


OPTIONS = [
    {},
    {"momentum": 0.9},
    {"dialect": "graves"},
    {"centered": True, "dialect": "keras"},
    {"dialect": "tf1"},
    {"dialect": "heavyball"},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_stopped_after_any_batch_and_resumed_gives_the_same_bits(options, tmp_path):
    whole, settings = fresh(**options)
    train(whole, DATA, settings, never)
    assert [row["epoch"] for row in whole.history] == [1, 2, 3]
    for stop in (2, 6) if options else range(1, 10):
        calls = iter(range(1, 100))

        def tick(state, calls=calls, stop=stop):
            if next(calls) == stop:
                save_checkpoint(tmp_path, state, "this run")
                raise StopHereError

        with pytest.raises(StopHereError):
            train(fresh(**options)[0], DATA, settings, tick)
        state, _ = fresh(**options)
        load_checkpoint(tmp_path, state, "this run")
        train(state, DATA, settings, never)
        assert state.layers == whole.layers
        for a, b in zip(bits(state), bits(whole), strict=True):
            np.testing.assert_array_equal(a, b)
        for a, b in zip(state.history, whole.history, strict=True):
            assert (a["train_loss"], a["test_loss"], a["test_score"]) == (
                b["train_loss"],
                b["test_loss"],
                b["test_score"],
            )


def test_a_batch_is_what_the_rule_says():
    """One full batch by hand: w - lr g / sqrt((1 - beta) g^2 + epsilon)."""
    state, settings = fresh(epochs=1, batch_size=40, hidden=())
    w = bits(state)[0]
    loss = torch.nn.functional.cross_entropy(state.network(DATA.x), DATA.y)
    (g,) = torch.autograd.grad(loss, state.network[0].weight)
    train(state, DATA, settings, never)
    g = g.double().numpy()
    np.testing.assert_allclose(bits(state)[0], w - 0.001 * g / np.sqrt(0.1 * g**2 + 1e-7), rtol=1e-6)
    assert state.history[0]["train_loss"] == pytest.approx(loss.item(), rel=1e-6)


@pytest.mark.parametrize(
    ("cooldown", "expected"),
    [(0, [1] * 6), (0.5, [1, 1, 1, 1, 2 / 3, 1 / 3]), (1, [1, 5 / 6, 4 / 6, 3 / 6, 2 / 6, 1 / 6])],
)
def test_the_step_size_falls_to_0_over_the_cooldown(cooldown, expected):
    state, settings = fresh(cooldown=cooldown, epochs=2)
    seen, step = [], state.optimizer.step

    def spy():
        seen.append(state.optimizer.param_groups[0]["lr"])
        step()

    state.optimizer.step = spy
    train(state, DATA, settings, never)
    np.testing.assert_allclose(seen, 0.001 * np.array(expected), rtol=1e-12)


def test_every_row_is_seen_once_an_epoch_in_another_order_each_time():
    seen = []

    class Spy(torch.nn.Sequential):
        def forward(self, x):
            if torch.is_grad_enabled():
                seen.extend(x[:, 0].tolist())
            return super().forward(x)

    state, settings = fresh()
    state.network = Spy(*state.network)
    train(state, DATA, settings, never)
    orders = [tuple(seen[i : i + 40]) for i in (0, 40, 80)]
    assert len(set(orders)) == 3
    assert all(sorted(order) == sorted(DATA.x[:, 0].tolist()) for order in orders)


def test_a_loss_that_is_not_finite_stops():
    state, settings = fresh(lr=1e38, batch_size=20)
    with pytest.raises(DivergedError, match=r"loss became (nan|inf) in epoch 1, batch 2"):
        train(state, DATA, settings, never)
    assert state.history == []


def test_scores():
    assert score_of(torch.tensor([[1.0, 0], [0, 1], [0, 1]]), torch.tensor([0, 1, 0])) == pytest.approx(2 / 3)
    y = torch.tensor([1.0, 2, 3])
    assert score_of(y[:, None], y) == 1
    assert score_of(torch.full((3, 1), 2.0), y) == 0
    assert score_of(torch.tensor([[1.0], [2], [5]]), y) == pytest.approx(1 - 4 / 2)


def test_evaluation_in_pieces_is_evaluation(monkeypatch):
    state, _ = fresh()
    whole = outputs(state.network, DATA.x), evaluate(state.network, DATA.x, DATA.y)
    monkeypatch.setattr("rmsprop.training.loop.CHUNK", 7)
    np.testing.assert_allclose(outputs(state.network, DATA.x), whole[0], rtol=1e-5, atol=1e-7)
    assert evaluate(state.network, DATA.x, DATA.y) == pytest.approx(whole[1], rel=1e-5)
