import re

import numpy as np
import pandas as pd
import pytest

import rmsprop
from rmsprop import DIALECTS, Rule
from rmsprop.training.report import formula, render
from rmsprop.training.result import summary

from ..page import Page

n = 80
rng = np.random.default_rng(0)
A = rng.normal(size=n)
EVIL = "<script>alert('$x$')</script>"


def page_of(target, **options):
    frame = pd.DataFrame({EVIL: A, "city": rng.choice(["Ulm & Bonn", None], n)})
    model = rmsprop.fit(frame, pd.Series(target, name=f"y {EVIL}"), epochs=3, hidden=(4,), **options)
    text = render(model)
    return model, text, Page(text)


@pytest.mark.parametrize("target", [A, np.where(A > 0, EVIL, "b & c")], ids=["regression", "classification"])
def test_self_contained_escaped_and_well_formed(target):
    _, text, page = page_of(target)
    assert page.open == []
    assert page.tags.count("svg") == (5 if target is A else 4)
    assert "script" not in page.tags
    assert all(link.startswith("#") for link in page.links)
    assert not re.findall(r"@import|url\((?!#)", text)
    ids = re.findall(r' id="([^"]+)"', text)
    used = {link[1:] for link in page.links}
    assert used <= set(ids)
    assert EVIL in page.text
    assert not re.search("#0[1-5]0[1-5]0[1-6]", text)  # every stand-in has become a colour of the page


def test_it_says_what_the_run_was():
    model, _, page = page_of(np.where(A > 0, "plus", "minus"), dialect="graves", seed=11)
    text = " ".join(page.text.split())
    for part in (
        "64 to train on, 16 held out",
        "each class in proportion",
        "never trained on",
        "1 of numbers, 1 of texts",
    ):
        assert part in text
    for part in ("dialect graves", "lr 0.0001", "β (beta) 0.95", "μ (momentum) 0.9", "seed 11", "torch 2."):
        assert part in text
    assert f"{100 * model.result['test_score']:.2f}%" in text
    confusion = np.array(model.result["confusion"])
    assert confusion.sum() == 16
    assert confusion.trace() / 16 == model.result["test_score"]


def test_it_shows_how_the_steps_of_each_layer_went():
    model, text, page = page_of(A, epsilon=10.0)
    words = " ".join(page.text.split())
    for part in ("Effective step size", "Update-to-weight ratio", "layer 2: 4 → 1", "a rule of thumb, no more"):
        assert part in words
    assert "from the first epoch on: most gradients are so small that epsilon (10)" in words
    assert "var(--series-1)" in text
    model.layers = []  # as of a run of an older version
    assert "Effective step size" not in render(model)


def test_numbers_that_no_axis_can_show_are_left_out():
    model = rmsprop.fit(A[:, None], A, epochs=2, hidden=(4,), init="zeros")
    assert "nothing to show: no weight has moved" in render(model)
    model.layers[0] |= {"update_to_weight": 0.5, "step_size_10": None, "step_size_50": None, "step_size_90": None}
    assert "nothing to show" not in render(model)


def test_many_classes_get_a_list_instead_of_a_table():
    target = np.array([f"class {i}" for i in range(40)] * 4)
    model = rmsprop.fit({"a": rng.normal(size=160)}, target, epochs=1, hidden=(4,), test_size=0.5)
    assert model.result["confusion"] is None
    assert "the classes most often missed" in render(model)


def test_formulas():
    assert formula(Rule()) == ["v ← β v + (1 − β) g²", "u = g / √(v + ε)", "w ← w − lr u"]
    assert "u = g / (√v + ε)" in formula(DIALECTS["torch"].rule)
    assert formula(DIALECTS["graves"].rule)[-2:] == ["b ← μ b + lr u", "w ← w − b"]
    assert "u = g / max(√v̂, ε)" in formula(DIALECTS["heavyball"].rule)
    assert "u ← u limited to ±1.0" in formula(Rule(clip=1))
    assert len({tuple(formula(row.rule)) for row in DIALECTS.values()}) >= 6


def test_the_closing_table(tmp_path):
    model, _, _ = page_of(np.where(A > 0, "plus", "minus"), init="zeros", out=tmp_path / "run")
    lines = summary(model).splitlines()
    assert lines[0].startswith("test accuracy     ")
    assert "of 16 held-out rows" in lines[0]
    assert "always the most frequent class" in lines[0]
    assert "torch.optim.RMSprop's" in lines[2]
    assert str(tmp_path / "run") in lines[3]
    assert lines[4].startswith("init=zeros: every hidden unit computes the same")
