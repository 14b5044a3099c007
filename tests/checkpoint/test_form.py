import numpy as np
import pytest

import rmsprop
from rmsprop import RMSprop, Rule
from rmsprop.checkpoint import LIBRARIES, Checkpoint, Group, arguments, from_numpy, from_torch, of, to_numpy
from rmsprop.checkpoint.libraries import rule_of
from rmsprop.checkpoint.slots import square_avg, variance
from tests.checkpoint.problem import LR, gradient, start


def checkpoint(**options):
    optimizer = RMSprop(start(), lr=LR, **options)
    optimizer.step(gradient(0))
    return of(optimizer)


def test_renaming():
    found = checkpoint()
    assert found.renamed({"w": "kernel"}).names == ("kernel", "b")
    assert list(found.renamed(str.upper).state) == ["W", "B"]
    with pytest.raises(ValueError, match=r"\['u'\] are not here; expected some of \['w', 'b'\]"):
        found.renamed({"u": "v"})
    with pytest.raises(ValueError, match="two parameters would have one name"):
        found.renamed({"w": "b"})


def test_regrouping():
    found = checkpoint()
    assert [group.names for group in found.regrouped([["b"], ["w"]]).groups] == [("b",), ("w",)]
    with pytest.raises(ValueError, match=r"lacks \['c'\] and has \['b'\]"):
        found.regrouped([["w"], ["c"]])
    with pytest.raises(ValueError, match=r"lacks \[\] and has \[\]"):
        found.regrouped([["w", "b"], ["b"]])


def test_one_rule_or_none():
    groups = tuple(Group(Rule(lr=lr), (name,)) for lr, name in ((0.1, "w"), (0.2, "b")))
    several = Checkpoint(groups, checkpoint().state)
    with pytest.raises(ValueError, match="2 rules: expected one for all parameters; the groups differ in lr"):
        several.rule  # noqa: B018
    with pytest.raises(ValueError, match="the groups differ in lr"):
        to_numpy(several)
    assert several.replace(lr=0.3).rule.lr == 0.3
    with pytest.raises(ValueError, match=r"alpha=0.9: no such option; expected one of lr, beta"):
        several.replace(alpha=0.9)


def test_faults_of_the_whole():
    state = checkpoint().state
    assert Checkpoint((Group(Rule(), ("w",)),), state).faults() == ["b: state without a rule"]
    assert Checkpoint((Group(Rule(), ("w", "b")), Group(Rule(), ("b",))), state).faults() == ["b: in several groups"]


def test_other_state_dicts_are_refused():
    with pytest.raises(ValueError, match=r"\['etas'.*\] are no options of Rule: expected an RMSprop's"):
        from_numpy({"format": 1, "rule": {"lr": 0.1, "etas": (0.5, 1.2)}, "state": {}})
    with pytest.raises(ValueError, match="expected format=1"):
        from_numpy({"format": 2})


def test_centered_forms_belong_to_each_other():
    entry = checkpoint(centered=True).state["w"]
    theirs = {"square_avg": square_avg(entry), "grad_avg": entry["grad_avg"]}
    np.testing.assert_allclose(variance(theirs), entry["variance"], rtol=1e-5)
    both = {**entry, "square_avg": square_avg(entry)}
    np.testing.assert_array_equal(variance(both), entry["variance"])
    both["square_avg"] = both["square_avg"] * 2  # another library has moved it on
    np.testing.assert_allclose(variance(both), both["square_avg"] - both["grad_avg"] ** 2, rtol=1e-6)
    cancelled = {"square_avg": np.ones(1), "grad_avg": np.full(1, 2.0)}
    np.testing.assert_array_equal(variance(cancelled), [0.0])


#: Rules, and what they are called elsewhere.
ARGUMENTS = {
    "keras": {
        "rho": 0.8,
        "learning_rate": 0.1,
        "epsilon": 1e-7,
        "momentum": 0.9,
        "weight_decay": 0.2,
        "centered": True,
    },
    "timm": {"alpha": 0.8, "lr": 0.1, "lr_in_momentum": False, "decoupled_decay": True, "weight_decay": 0.2},
    "optax": {"decay": 0.8, "learning_rate": 0.1, "eps": 1e-3, "eps_in_sqrt": False, "nesterov": True, "momentum": 0.9},
    "torch": {"alpha": 0.8, "lr": 0.1, "eps": 1e-3, "maximize": True, "momentum": 0.9},
    "tf1": {"decay": 0.8, "learning_rate": 0.1, "momentum": 0.9, "epsilon": 1e-3},
    "sb3": {"alpha": 0.8, "lr": 0.1, "eps": 1e-3, "momentum": 0.9},
    "rmsprop": {"alpha": 0.8, "epsilon_mode": "both", "clip": 1.0, "decoupled_weight_decay": True, "weight_decay": 0.1},
}


@pytest.mark.parametrize("library", ARGUMENTS)
def test_options_go_there_and_back(library):
    rule, _ = rule_of(library, ARGUMENTS[library], {})
    again = arguments(rule, library)
    assert again.items() >= ARGUMENTS[library].items()
    assert rule_of(library, again, {}) == (rule, [])
    assert rule_of(library, {}, again)[0] == rule


@pytest.mark.parametrize("library", LIBRARIES)
def test_a_librarys_own_rule_has_arguments(library):
    assert arguments(LIBRARIES[library].home, library)


def test_arguments_of_ours_make_our_optimizer():
    import torch

    p = torch.nn.Parameter(torch.ones(2))
    options = arguments(rmsprop.dialect("graves", clip=1.0), "rmsprop")
    assert from_torch(rmsprop.torch.RMSprop([p], **options).state_dict()).rule == rmsprop.dialect("graves", clip=1.0)


def test_arguments_do_not_convert_buffers():
    with pytest.raises(ValueError, match=r"torch.optim.RMSprop cannot have momentum_form='lr_inside'"):
        arguments(Rule(momentum=0.9, momentum_form="lr_inside", epsilon_mode="outside"), "torch")
    with pytest.raises(ValueError, match="library='jax': expected one of"):
        arguments(Rule(), "jax")


def test_flags_that_no_rule_has_are_refused_by_name():
    with pytest.raises(ValueError, match="caution=True: no rule here has this option of timm's RMSpropTF"):
        rule_of("timm", {"caution": True}, {})
    assert rule_of("timm", {"caution": False, "corrected_weight_decay": False, "foreach": None}, {})[1] == []
    assert "caution=True" in rule_of("timm", {"caution": True}, {}, strict=False)[1][0]
