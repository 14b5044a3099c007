"""Averaged weights in checkpoints: kept where they can be, and never lost in silence."""

import numpy as np
import pytest
import torch

import rmsprop
from rmsprop.checkpoint import from_numpy, load, of, restore, save, to_numpy, to_torch


def stepped(dtype=torch.float32, **options):
    p = torch.nn.Parameter(torch.tensor([1.0, -2.0, 3.0], dtype=dtype))
    optimizer = rmsprop.torch.RMSprop([("w", p)], lr=0.1, **options)
    for t in range(4):
        p.grad = torch.full_like(p, t - 1.0)
        optimizer.step()
    return p, optimizer


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_resumed_run_has_the_same_bits(tmp_path, dtype):
    p, first = stepped(dtype, momentum=0.9, centered=True, averaging=3)
    save(tmp_path / "x.safetensors", first)
    q = torch.nn.Parameter(p.detach().clone())
    second = rmsprop.torch.RMSprop([("w", q)])
    restore(second, load(tmp_path / "x.safetensors"))
    assert second.param_groups[0]["averaging"] == 3
    for each, optimizer in ((p, first), (q, second)):
        each.grad = torch.ones_like(each)
        optimizer.step()
    assert torch.equal(first.state[p]["weight_avg"], second.state[q]["weight_avg"])


def test_a_changed_average_is_noticed(tmp_path):
    _, optimizer = stepped(averaging=True)
    checkpoint = of(optimizer)
    checkpoint.state["w"]["weight_avg"][1] = np.nan
    with pytest.raises(ValueError, match="w: weight_avg has 1 numbers that are not finite"):
        save(tmp_path / "x.safetensors", checkpoint)


def test_between_torch_and_numpy():
    p, optimizer = stepped(averaging=2.0)
    w = p.detach().numpy().copy()
    ours = rmsprop.RMSprop({"w": w})
    restore(ours, of(optimizer))
    saved = ours.state_dict()
    assert saved["averaging"] == 2
    np.testing.assert_array_equal(saved["state"]["params['w']"]["weight_avg"], optimizer.state[p]["weight_avg"])
    back = from_numpy(saved)
    assert back.averaging == 2
    assert to_numpy(back)["state"].keys() == saved["state"].keys()
    _, without = stepped()
    restore(without, back)
    np.testing.assert_array_equal(next(iter(without.state.values()))["weight_avg"], back.state["w"]["weight_avg"])


def test_others_are_told_that_it_is_left_out():
    _, optimizer = stepped(averaging=True)
    with pytest.warns(
        UserWarning, match=r"weight_avg is left out: torch.optim.RMSprop keeps no average of the weights"
    ):
        found = to_torch(of(optimizer), "torch")
    assert "weight_avg" not in found["state"][0]
    assert "averaging" not in found["param_groups"][0]


def test_names_groups_and_rules_may_change():
    _, optimizer = stepped(averaging=True)
    checkpoint = of(optimizer).renamed({"w": "kernel"}).replace(lr=0.5).regrouped([["kernel"]])
    assert checkpoint.groups[0].averaging == 8
    assert checkpoint.mapped(lambda _, x: -x).state["kernel"]["weight_avg"].shape == (3,)


def test_a_checkpoint_without_one_leaves_the_option_alone():
    _, plain = stepped()
    p, ours = stepped(averaging=True)
    restore(ours, of(plain))
    p.grad = torch.ones(3)
    before = p.detach().clone()
    ours.step()
    expected = before + 9 / 13 * (p.detach() - before)
    torch.testing.assert_close(ours.state[p]["weight_avg"], expected)


def test_an_average_that_is_off_is_not_kept():
    _, optimizer = stepped(averaging=True)
    optimizer.param_groups[0]["averaging"] = False
    assert "weight_avg" not in of(optimizer).state["w"]
