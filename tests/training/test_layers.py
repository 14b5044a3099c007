import math

import numpy as np
import pytest

import rmsprop
from rmsprop import DIALECTS
from rmsprop.fit import DEFAULTS
from rmsprop.training.charts import shown
from rmsprop.training.layers import (
    COLUMNS,
    MOST,
    STATISTICS,
    about_ratios,
    about_step_sizes,
    by_layer,
    ceiling,
    due,
    records,
)
from rmsprop.training.loop import train
from rmsprop.training.settings import Settings
from tests.training.test_loop import DATA, fresh, never

rng = np.random.default_rng(0)
X = rng.normal(size=(80, 3))
SIGN = np.where(X[:, 0] > 0, "plus", "minus")


def record(epoch=1, share=0.0, **other):
    return dict.fromkeys(COLUMNS, 1.0) | {"epoch": epoch, "layer": "0.weight", "epsilon_share": share} | other


def settings(**options):
    return Settings.of(**DEFAULTS | options)


def test_a_short_training_is_on_record_whole_and_a_long_one_in_part():
    assert [epoch for epoch in range(1, 4) if due(epoch, 3)] == [1, 2, 3]
    assert all(due(epoch, MOST) for epoch in range(1, MOST + 1))
    kept = [epoch for epoch in range(1, 10_001) if due(epoch, 10_000)]
    assert MOST * 0.9 < len(kept) <= MOST + 2
    assert (kept[0], kept[-1]) == (1, 10_000)


def test_the_record_of_an_epoch_is_its_last_step():
    """The numbers are worked out from weights and gradients around the last step, by NumPy."""
    state, options = fresh(epochs=2, cooldown=0)
    seen, step = [], state.optimizer.step

    def spy():
        before = {name: p.detach().double().numpy().copy() for name, p in state.network.named_parameters()}
        step()
        seen.append((before, {name: p.detach().double().numpy() for name, p in state.network.named_parameters()}))

    state.optimizer.step = spy
    train(state, DATA, options, never)
    names = [name for name, _ in state.network.named_parameters()]
    assert [(row["epoch"], row["layer"]) for row in state.layers] == [(e, name) for e in (1, 2) for name in names]
    (before, after), v = seen[-1], state.optimizer.state
    for row, (name, p) in zip(state.layers[4:], state.network.named_parameters(), strict=True):
        mean_square = [np.sqrt(np.mean(x**2)) for x in (after[name] - before[name], after[name], p.grad.numpy())]
        found = [row[key] for key in ("update_rms", "weight_rms", "gradient_rms")]
        np.testing.assert_allclose(found, mean_square, rtol=2e-2)
        assert row["update_to_weight"] == pytest.approx(mean_square[0] / mean_square[1], rel=2e-2)
        size = 0.001 / np.sqrt(v[p]["square_avg"].double().numpy() + 1e-7)
        assert (
            size.min() * 0.98 <= row["step_size_10"] <= row["step_size_50"] <= row["step_size_90"] <= size.max() * 1.02
        )


def test_the_optimizer_gathers_at_the_last_step_only(monkeypatch):
    state, options = fresh(epochs=2)
    asked, watch, step = [], state.optimizer.watch, state.optimizer.step
    monkeypatch.setattr(state.optimizer, "watch", lambda log=None, every=1: asked.append(every) or watch(log, every))
    monkeypatch.setattr(state.optimizer, "step", lambda: asked.append("step") or step())
    train(state, DATA, options, never)
    assert asked == ["step", "step", 1, "step", 0] * 2


def test_what_has_no_size_is_none():
    class Optimizer:
        def stats(self):
            return {
                "0.weight": dict.fromkeys(STATISTICS, 0.5) | {"update_to_weight": math.nan, "step_size_90": math.inf}
            }

    (row,) = records(Optimizer(), 7)
    assert tuple(row) == COLUMNS
    assert (row["epoch"], row["update_to_weight"], row["step_size_90"], row["step_size_10"]) == (7, None, None, 0.5)


def test_layers_are_weight_matrices_with_a_name_to_read():
    model = rmsprop.fit(X, SIGN, epochs=2, hidden=(5, 4))
    layers = by_layer(model)
    assert list(layers) == ["layer 1: 3 → 5", "layer 2: 5 → 4", "layer 3: 4 → 2"]
    assert [row["epoch"] for row in layers["layer 2: 5 → 4"]] == [1, 2]
    assert {row["layer"] for row in layers["layer 2: 5 → 4"]} == {"2.weight"}
    model.layers = []
    assert by_layer(model) == {}


def test_more_layers_than_colours_are_thinned_out():
    layers = {f"layer {i}": [record()] for i in range(1, 34)}
    assert list(shown(layers)) == ["layer 1", "layer 7", "layer 14", "layer 20", "layer 27", "layer 33"]
    few = dict(list(layers.items())[:6])
    assert shown(few) == few


def test_words_about_epsilon():
    layers = {
        "layer 1: 2 → 2": [record(1, 0.9), record(2, 0.9)],
        "layer 2: 2 → 2": [record(1, 0.1), record(2, 0.9)],
        "layer 3: 2 → 2": [record(1, 0.9), record(2, 0.1)],
        "layer 4: 2 → 2": [record(1, 1.0, gradient_rms=0.0), record(2, 1.0, gradient_rms=0.0)],
    }
    still, first, later = about_step_sizes(layers, settings())[2:]
    assert still == "Layer 4: no gradient at all. The weights stay as they began, whatever the step size."
    assert first.startswith("Layer 1, from the first epoch on: most gradients are so small that epsilon (1e-07), not")
    assert "at most 3.16. If the loss has not come down, this is why, and a smaller epsilon" in first
    assert later.startswith("Layer 2 (from epoch 2 on): most gradients")
    assert later.endswith("usual once the loss has come down, for there is little left to learn.")
    assert len(about_step_sizes({"layer 3: 2 → 2": layers["layer 3: 2 → 2"]}, settings())) == 2


def test_words_about_the_cooldown_where_there_is_one():
    for about in (lambda options: about_step_sizes({}, options), about_ratios):
        assert about(settings(cooldown=0.3))[-1].endswith("Over the last 30% lr falls to 0 (cooldown).")
        assert "cooldown" not in " ".join(about(settings(cooldown=0)))
    assert "0.001 a step (dashed) is usual: a rule of thumb, no more" in about_ratios(settings())[0]


@pytest.mark.parametrize("name", DIALECTS)
def test_the_ceiling_is_the_step_of_a_vanishing_gradient(name):
    rule = DIALECTS[name].rule
    if not rule.epsilon:
        assert ceiling(rule) == math.inf
        return
    g, p = 1e-30, np.zeros(1)
    options = {key: getattr(rule, key) for key in ("lr", "beta", "epsilon", "epsilon_mode")}
    rmsprop.RMSprop([p], **options).step([np.array([g])])
    assert -p[0] / g == pytest.approx(ceiling(rule))
