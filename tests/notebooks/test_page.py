import base64
import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from rmsprop.notebooks import learn, lessons, starts
from rmsprop.notebooks.page import page

KEPT = Path(__file__).parents[2] / "docs" / "tutorial.html"


@pytest.fixture(scope="module")
def html():
    return page()


def text(html):
    return " ".join(re.sub(r"<[^>]*>", "", re.sub(r"<style>.*?</style>", "", html, flags=re.DOTALL)).split())


def test_all_sections_and_pictures_are_there(html):
    headings = re.findall(r"<h2[^>]*>(\d+)\. ", html)
    assert headings == [str(i) for i in range(1, 11)]
    pictures = re.findall(r'<img alt="([^"]+)" src="data:image/png;base64,([^"]+)">', html)
    assert len(pictures) == html.count("<img") == 10
    assert all(base64.b64decode(data).startswith(b"\x89PNG") for _, data in pictures)
    assert "the walks; loss above the lowest" in dict(pictures)


def test_it_needs_neither_marimo_nor_a_network(html):
    assert "<marimo" not in html
    assert "<script" not in html
    assert not re.search(r"(src|href)=.?(http|//|\.)", html)
    assert "learning rate lr: <b>0.1</b>" in html
    assert "optimizers: <b>SGD, Rprop, RMSprop, tutorial, RMSprop, tf1, Adam</b>" in html


def test_numbers_are_those_of_the_lessons(html):
    said = text(html)
    assert f"steps lead to x = {lessons.descend(0.1)[-1]:.3g}." in said
    assert "the very first step is 1 / √(1 − beta) = 3.16 times lr" in said
    assert "-0.5 -1 nan" in said
    assert f"leads to x = {lessons.wrong_way(0.1)[-1]:.3g}." in said
    same, kaiming = starts.train("same"), starts.train("kaiming")
    assert f"same 2.3 {same.losses[-1]:.3g} {same.accuracy:.1%} 1 huge" in said
    assert f"{kaiming.accuracy:.1%} 32 zeros" in said
    assert f"{np.log(10):.3f}, the loss of a network that knows nothing" in said


def test_the_page_kept_in_the_docs_is_this_one_but_for_the_numbers(html):
    kept = KEPT.read_text()
    assert len(kept) < 2_000_000
    kept, fresh = (re.sub(r"-?\d[\d.]*(e[+-]?\d+)?", "#", text(page)) for page in (kept, html))
    assert kept == fresh, "make it anew: rmsprop learn --export docs/tutorial.html --force"


def everywhere(sliders, name, cell):
    """(value, what the cell says) for every value of a slider."""
    slider = sliders.run()[1][name]
    for value in slider.steps:
        yield value, text(cell.run(**{name: SimpleNamespace(value=value, steps=slider.steps)})[0].text)


def test_half_a_step_is_right_at_every_epsilon():
    for value, said in everywhere(learn.epsilons, "epsilon", learn.small_gradients):
        found = re.search(r"needs a gradient of (\S+) inside the root and of (\S+) outside", said)
        np.testing.assert_allclose([float(x) for x in found.groups()], [(value / 3) ** 0.5, value], rtol=0.02)


def test_two_lines_says_who_is_behind_at_every_unit():
    for unit, said in everywhere(learn.units, "unit", learn.two_lines):
        off = lessons.two_lines(lambda p, u=unit: lessons.Descent(p, 1 / lessons.steepest(u)), unit)[-1]
        behind = f"too small: after 300 steps weight 1 is still {off[0]:.2g} off" in said
        level = f"enough for the others too: after 300 steps all four are within {off.max():.2g}." in said
        assert (behind, level) == ((True, False) if off[0] > 0.01 else (False, True)), unit
