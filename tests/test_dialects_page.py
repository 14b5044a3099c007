"""The tables of docs/dialects.md are what `DIALECTS` and `RECIPES` hold.

`python -m tests.test_dialects_page` prints them.
"""

import re
from pathlib import Path

import pytest

from rmsprop import DIALECTS, Rule, dialect
from rmsprop.recipes import RECIPES

PAGE = Path(__file__).parent.parent / "docs" / "dialects.md"
BUFFERS = {"lr_inside": "b = μb + lr·u, move b", "lr_outside": "b = μb + u, move lr·b"}
BUFFERS["ema"] = "b = μb + (1 − μ)u, move lr·b / (1 − μᵗ)"


def denominator(rule):
    square, e = ("var" if rule.centered else "v"), f"{rule.epsilon:g}"
    if not rule.epsilon:
        return f"√{square}"
    inside, outside = f"√({square} + {e})", f"√{square} + {e}"
    both, floor = f"√({square} + {e}) + {e}", f"max(√{square}, {e})"
    return {"inside": inside, "outside": outside, "both": both, "floor": floor}[rule.epsilon_mode]


def dialect_rows():
    yield "| dialect | divides by | v starts at | buffer, with momentum | read in | note |"
    yield "|---|---|---|---|---|---|"
    for name, row in DIALECTS.items():
        rule = row.rule
        cells = (name, denominator(rule), f"{rule.initial_square:g}", BUFFERS[rule.momentum_form], row.source, row.note)
        yield f"| {' | '.join(cells)} |"


def schedule(recipe):
    s = recipe.schedule
    if s.end == 1:
        return "to 0 over the run"
    if s.factor == 1:
        return ""
    return f"×{s.factor:g} every {s.every:g} {s.unit}" + f", warm-up {s.warmup:g}" * (s.warmup > 0)


def recipe_rows():
    names = ("recipe", "lr", "beta", "divides by", "v starts at", "momentum", "decay", "schedule", "batch", "clip norm")
    yield f"| {' | '.join(names)} | average | read in |"
    yield "|" + "---|" * 12
    for name, recipe in RECIPES.items():
        rule = recipe.rule
        numbers = (rule.initial_square, rule.momentum, rule.weight_decay)
        outside = (recipe.batch_size, recipe.clip_norm, recipe.weight_average)
        cells = [name, f"{rule.lr:g}", f"{rule.beta:g}", denominator(rule), *(f"{x:g}" for x in numbers)]
        cells += [schedule(recipe), *("" if x is None else f"{x:g}" for x in outside), recipe.source]
        yield f"| {' | '.join(cells)} |"


@pytest.mark.parametrize("rows", [dialect_rows, recipe_rows])
def test_the_page_has_the_tables_as_they_are(rows):
    assert "\n".join(rows()) in PAGE.read_text()


def test_every_recipe_that_is_not_certain_says_why():
    for name, recipe in RECIPES.items():
        if recipe.unverified:
            (line,) = re.findall(rf"^- `{name}`: (.*)$", PAGE.read_text(), re.MULTILINE)
            assert line == f"{', '.join(recipe.unverified)}. {recipe.note}"


def test_every_call_that_stands_for_another_library_makes_a_rule():
    calls = re.findall(r"\| `((?:dialect|Rule)\(.*\))` \|", PAGE.read_text())
    assert len(calls) > 8
    for call in calls:
        assert isinstance(eval(call, {"dialect": dialect, "Rule": Rule}), Rule), call


if __name__ == "__main__":
    print("\n".join(["", *dialect_rows(), "", *recipe_rows(), ""]))
    for name, recipe in RECIPES.items():
        if recipe.unverified:
            print(f"- `{name}`: {', '.join(recipe.unverified)}. {recipe.note}")
