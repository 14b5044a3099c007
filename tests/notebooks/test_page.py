import base64
import re
from pathlib import Path

import numpy as np
import pytest

from rmsprop.notebooks import lessons, starts
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
