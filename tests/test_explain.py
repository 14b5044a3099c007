import subprocess
import sys

import numpy as np
import pytest
import torch

import rmsprop
import rmsprop.torch
from rmsprop import DIALECTS, Rule, dialect, explain, recipes
from rmsprop.rule import OPTIONS


def options(a, b):
    return [difference.option for difference in explain(a, b).differences]


def ratios(a, b):
    return {(move.scale, move.step): move.ratio for move in explain(a, b).moves if not move.dropped}


def weight():
    return torch.nn.Parameter(torch.ones(2))


@pytest.mark.parametrize("name", DIALECTS)
def test_a_rule_does_not_differ_from_itself(name):
    found = explain(name, dialect(name))
    assert found.differences == ()
    assert {move.ratio for move in found.moves} == {1.0}
    assert str(found) == f"{name} and b are the same rule."


@pytest.mark.parametrize("option", OPTIONS)
def test_every_option_is_seen_and_explained(option):
    base = Rule(centered=True, momentum=0.5, weight_decay=0.1)
    other = {
        "epsilon_mode": "outside",
        "centered": False,
        "momentum_form": "ema",
        "decay_mode": "decoupled",
        "nonfinite": "skip",
        "bias_correction": True,
        "nesterov": True,
        "maximize": True,
    }.get(option, 0.25)
    (difference,) = explain(base, base.replace(**{option: other})).differences
    assert difference[:3] == (option, getattr(base, option), other)
    assert len(difference.meaning) > 10


@pytest.mark.parametrize(
    "changed",
    [
        {"momentum_form": "lr_inside"},
        {"decay_mode": "decoupled"},
        {"epsilon": 0.0, "epsilon_mode": "floor"},
        {"beta": 0.0, "initial_square": 3.0},
        {"beta": 0.0, "bias_correction": True},
    ],
)
def test_what_cannot_matter_is_passed_over(changed):
    """And passing over is right: the steps are the same."""
    base = Rule(epsilon=changed.get("epsilon", 1e-3), beta=changed.get("beta", 0.9))
    found = explain(base, base.replace(**changed))
    assert found.differences == ()
    assert {move.ratio for move in found.moves} == {1.0}


def test_the_form_of_what_only_one_has_is_no_difference_of_its_own():
    plain = Rule(epsilon=0.0)
    full = Rule(momentum=0.9, momentum_form="ema", weight_decay=0.1, decay_mode="decoupled", epsilon_mode="outside")
    assert options(plain, full) == ["epsilon", "momentum", "weight_decay"]


def test_bias_correction_of_an_ema_matters_even_without_a_mean_square():
    base = Rule(beta=0.0, momentum=0.9, momentum_form="ema")
    assert options(base, base.replace(bias_correction=True)) == ["bias_correction"]
    assert ratios(base, base.replace(bias_correction=True))[1.0, 1] == pytest.approx(0.1)


def test_the_first_steps_are_what_theory_says():
    corrected = ratios("torch", dialect("torch", bias_correction=True))
    assert corrected[1.0, 1] == pytest.approx(10, rel=1e-6)  # 1 / sqrt(1 - 0.99)
    assert corrected[1e3, 100] == pytest.approx(1 / np.sqrt(1 - 0.99**100), rel=1e-6)
    # tf1's v is still near 1 where Keras's is 0: a gradient of 1e-3 moves lr * g, against lr / sqrt(0.1).
    tf1 = ratios(dialect("tf1", epsilon=0.0), dialect("keras", epsilon=0.0))
    moves = [
        move for move in explain(dialect("tf1", epsilon=0.0), "keras").moves if (move.scale, move.step) == (1e-3, 1)
    ]
    assert moves[0].a == pytest.approx(1e-3 * 1e-3 / np.sqrt(0.9), rel=0.1)
    assert tf1[1e-6, 1] < 1e-5
    assert tf1[1e3, 100] == pytest.approx(1, rel=1e-6)


def test_epsilon_outside_is_not_the_root_of_epsilon_inside():
    """At v = epsilon the two denominators differ by sqrt(2), and nowhere by more."""
    inside = Rule(epsilon=1.0, initial_square=1.0, beta=1 - 1e-9)
    outside = inside.replace(epsilon_mode="outside")
    assert ratios(inside, outside)[1e-3, 1] == pytest.approx(np.sqrt(2), rel=1e-6)


def test_a_drop_of_lr_is_shown_where_its_place_differs():
    outside, inside = dialect("torch", momentum=0.9), dialect("torch", momentum=0.9, momentum_form="lr_inside")
    found = explain(outside, inside)
    assert ratios(outside, inside) == pytest.approx(dict.fromkeys(ratios(outside, inside), 1.0))
    after = {move.step: move.ratio for move in found.moves if move.dropped and move.scale == 1}
    assert 0.1 < after[1] < 0.13 < after[10] < 1
    assert after[100] == pytest.approx(1, rel=1e-2)
    assert not any(move.dropped for move in explain(outside, "keras").moves)
    assert "lr/10, step 10" in str(found)


def test_what_stands_still():
    still = Rule(lr=0.0)
    assert ratios(still, still.replace(beta=0.5)) == dict.fromkeys(ratios(still, "torch"), 1.0)
    assert set(ratios("torch", still).values()) == {float("inf")}
    assert set(ratios(still, "torch").values()) == {0.0}


def test_optimizers_of_every_front_end():
    theirs = torch.optim.RMSprop([weight()], lr=0.02, alpha=0.9, momentum=0.5, weight_decay=0.1, maximize=True)
    rule = dialect("torch", lr=0.02, beta=0.9, momentum=0.5, weight_decay=0.1, maximize=True)
    assert explain(theirs, rule).rules == (rule, rule)
    ours = rmsprop.torch.RMSprop([weight()], lr=torch.tensor(0.25), **recipes.efficientnet)
    assert explain(ours, recipes.efficientnet).rules[0] == recipes.efficientnet.rule.replace(lr=0.25)
    numpy = rmsprop.RMSprop([np.ones(2)], dialect="keras")
    found = explain(theirs, numpy)
    assert found.rules[1] == dialect("keras")
    assert found.names == ("torch's RMSprop", "rmsprop's RMSprop")
    assert explain(ours, numpy).names == ("rmsprop's RMSprop (a)", "rmsprop's RMSprop (b)")


def test_groups_are_one_rule_or_chosen():
    optimizer = torch.optim.RMSprop([{"params": [weight()]}, {"params": [weight()], "lr": 0.5, "alpha": 0.5}], lr=0.1)
    with pytest.raises(ValueError, match="a: its groups differ in lr, beta; expected one of its param_groups"):
        explain(optimizer, "torch")
    assert options(optimizer.param_groups[1], optimizer.param_groups[0]) == ["lr", "beta"]


@pytest.mark.parametrize("wrong", [3, None, {"lr": 0.1}, torch.optim.SGD([weight()], lr=0.1)])
def test_anything_else_is_refused(wrong):
    with pytest.raises(TypeError, match=rf"b: expected a Rule, a name, .* got {type(wrong).__name__}"):
        explain("torch", wrong)


def test_an_unknown_name_is_told_the_right_one():
    with pytest.raises(
        ValueError, match=r"b='efficientnett': expected the name of a dialect or recipe: .* 'efficientnet'"
    ):
        explain("torch", "efficientnett")


def test_it_reads_like_this():
    assert str(explain("torch", dialect("torch", bias_correction=True))).splitlines() == [
        "option           torch  b",
        "bias_correction  False  True  without it the first step has length lr / sqrt(1 - beta) where v starts at 0",
        "",
        "length of the steps of torch / b:",
        "gradients  step 1  step 10  step 100",
        "1e-06      8.48    3.16     1.25",
        "0.001      10      3.23     1.26",
        "1          10      3.23     1.26",
        "1000       10      3.23     1.26",
    ]


def test_torch_is_not_imported():
    script = "import sys, rmsprop; print(rmsprop.explain('torch', 'keras')); assert 'torch' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, check=False).returncode == 0
    script = (
        "import sys, rmsprop\ntry: rmsprop.explain('torch', 3)\nexcept TypeError: assert 'torch' not in sys.modules"
    )
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, check=False).returncode == 0
