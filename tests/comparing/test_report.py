import re
from html import unescape
from types import SimpleNamespace

import pytest

from rmsprop.comparing.charts import marks
from rmsprop.comparing.overall import summarize
from rmsprop.comparing.plan import Plan
from rmsprop.comparing.ranking import rank
from rmsprop.comparing.report import render
from rmsprop.comparing.running import Job
from rmsprop.comparing.table import numbers, overall_numbers
from rmsprop.comparing.verdict import verdict

from ..page import Page
from .results import CANDIDATES, INF, result

A, B = [0.30, 0.32, 0.28, 0.31, 0.29], [0.42, 0.43, 0.38, 0.41, 0.46]
EVIL = "<script>alert('$x$')</script>&\\frac"


def page_of(results, candidates=CANDIDATES, abouts=None, how=None):
    rankings = rank(results, candidates)
    text = render(rankings, abouts or {}, how)
    return rankings, text, Page(text)


def several():
    return [
        result(n, x, f, problem=p)
        for p in ("hills", "lakes")
        for n, x, f in (("adam", A, [0.5, 0.2, 9]), ("heavy", B, [0.3, 0.4, INF]), ("sgd", A, [INF]))
    ]


def tables(text):
    return [
        [
            [unescape(re.sub(r"<[^>]+>", "", cell)) for cell in re.findall(r"<t[hd]>(.*?)</t[hd]>", row)]
            for row in re.findall(r"<tr.*?>(.*?)</tr>", table, re.DOTALL)
        ]
        for table in re.findall(r'<table class="numbers">(.*?)</table>', text, re.DOTALL)
    ]


@pytest.mark.parametrize(
    "results",
    [
        several(),
        [result("adam", A)],
        [result("adam", [0.1], steps=[1])],
        [result("adam", A, [INF]), result("sgd", A, [INF])],
        [result("adam", [-3.0, -3.1], [-3.0, 5.0, INF]), result("sgd", [-2.0, -2.2])],
        [result("adam", [0.0, 0.0], [0.0]), result("sgd", [0.0, 0.0], [0.0], paths=[[0.0] * 4] * 2)],
    ],
    ids=["several", "one", "one seed, one step", "all diverged", "negative", "zero"],
)
def test_self_contained_and_well_formed(results):
    rankings, text, page = page_of(results)
    assert page.open == []
    assert "script" not in page.tags
    assert all(link.startswith("#") for link in page.links)
    assert not re.findall(r"@import|url\((?!#)", text)
    ids = re.findall(r' id="([^"]+)"', text)
    assert len(ids) == len(set(ids)) or {link[1:] for link in page.links} <= set(ids)
    assert not re.search("#0[1-5]0[1-5]0[1-6]", text)  # every stand-in has become a colour of the page
    assert text.count("<h2>Sensitivity to the learning rate</h2>") == len(rankings)
    assert not re.search(r"\b(nan|inf|None)\b", page.text)


def test_every_number_of_the_tables_is_the_rows():
    rankings, text, page = page_of(several())
    overall, ratios, *found = tables(text)
    for ranking, table in zip(rankings, found, strict=True):
        for row, cells in zip(ranking.rows, table[1:], strict=True):
            assert cells == [numbers(row)[heading] for heading in table[0]]
    summary = summarize(rankings)
    assert overall[1:] == [[overall_numbers(row)[h] for h in overall[0]] for row in summary.rows]
    assert ratios[1] == ["adam", "1.00", "1.00"]
    assert ratios[3] == ["sgd", "diverged", "diverged"]
    words = " ".join(page.text.split())
    for found in (verdict(rankings), *(verdict([ranking]) for ranking in rankings)):
        assert found.sentence in words
        assert found.notes
        assert all(note in words for note in found.notes)
    assert all(ranking.note in words for ranking in rankings)


def test_it_says_how_it_was_done():
    how = {"Settings": {"seeds": "0 to 4", "nothing": ""}, "Versions": {"torch": "2.x"}}
    _, _, page = page_of(several(), abouts={"hills": "quite steep"}, how=how)
    words = " ".join(page.text.split())
    for part in ("quite steep", "Settings seeds 0 to 4", "Versions torch 2.x", "2 problems, 3 optimizers, 5 seeds"):
        assert part in words
    assert "with 1 to 3 learning rates" in words
    assert "the same batches in the same order, but for Rprop: it sees all rows in every step" in words
    assert "nothing" not in re.findall(r"<th>(.*?)</th>", words)
    assert "adam torch Adam" in words  # what each optimizer is


@pytest.mark.parametrize(
    ("lrs", "words"),
    [
        (None, "8 for each optimizer, two a decade; up to 3 more where the best is the first or last"),
        ((0.01, 0.1), "0.01, 0.1"),
    ],
)
def test_settings_tell_the_learning_rates(lrs, words):
    plan = Plan(("adam",), lrs, seeds=5, steps=None, batch_size=None, decay=False)
    how = Job(SimpleNamespace(about="hills"), plan, None, 1, shown=False)._how({"threads": 1})
    assert how["learning rates"] == words


@pytest.mark.parametrize(
    ("names", "words"),
    [(("adam",), "falling linearly to 0"), (("adam", "rprop"), "falling linearly to 0; none for rprop")],
)
def test_settings_tell_the_schedule(names, words):
    plan = Plan(names, None, seeds=5, steps=None, batch_size=None, decay=True)
    how = Job(SimpleNamespace(about="hills"), plan, None, 1, shown=False)._how({"threads": 1})
    assert how["schedule"] == words


def test_everything_is_escaped():
    evil = {EVIL: CANDIDATES["adam"].__class__(EVIL, f"about {EVIL}", CANDIDATES["adam"].make)}
    results = [result(EVIL, x, problem=f"{p} {EVIL}") for p, x in (("hills", A), ("lakes", B))]
    _, text, page = page_of(results, evil, {f"hills {EVIL}": EVIL}, {f"head {EVIL}": {f"name {EVIL}": f"value {EVIL}"}})
    assert "<script" not in text
    for part in ("hills", "about", "head", "name", "value"):
        assert f"{part} {EVIL}" in page.text


def test_lines_of_many_optimizers_differ():
    looks = {(mark.stand_in, mark.dashes) for mark in marks([str(n) for n in range(24)]).values()}
    assert len(looks) == 24
    cast = {f"o{n}": CANDIDATES["sgd"] for n in range(18)}
    _, text, _ = page_of([result(name, [x + n / 100 for x in A]) for n, name in enumerate(cast)], cast)
    keys = re.findall(r'<svg class="key".*?stroke: (.*?)".*?stroke-dasharray="(.*?)"', text)
    assert len(set(keys)) == 18
    assert len(keys) == 36  # in the table and under the drawings


def test_a_line_leaves_the_drawing_at_the_top_where_it_diverged():
    def top(last):
        _, text, _ = page_of([result("adam", A, [0.2, last], [0.01, 0.1])])
        line = re.findall(r'<path d="([^"]*)"[^>]*?style="[^"]*series-1[^"]*"', text)[-1]
        return min(float(y) for y in re.findall(r"[ML] \S+ (\S+)", line))

    assert top(INF) < 0 < top(0.3)
