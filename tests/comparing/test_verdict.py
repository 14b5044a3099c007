import re
from math import log

import pytest

from rmsprop.comparing import figures
from rmsprop.comparing.pairs import paired
from rmsprop.comparing.ranking import rank
from rmsprop.comparing.table import LEGEND, numbers, text
from rmsprop.comparing.verdict import standing, verdict

from .results import CANDIDATES, INF, result

A = [0.30, 0.32, 0.28, 0.31, 0.29]
NEAR = [0.31, 0.31, 0.30, 0.30, 0.30]
FAR = [0.42, 0.43, 0.38, 0.41, 0.46]
NOISY = [0.31, 0.60, 0.28, 0.55, 0.30]


def of(*results):
    return verdict(rank(results, CANDIDATES))


def test_a_clear_winner():
    found = of(result("sgd", FAR), result("heavy", A, [0.4, 0.2, 0.4]))
    p = paired([log(x) for x in FAR], [log(x) for x in A]).p
    assert (found.use, found.lr, found.notes) == ("heavy", 0.01, [])
    assert found.sentence == (
        "Use heavy with lr 0.01 on hills: its test loss of 0.3000 is 29% below that of sgd "
        f"(lower with 5 of 5 seeds, {figures.chance(p)})."
    )


def test_the_rival_is_adam_where_that_is_worse():
    worse = [x * 1.3 for x in FAR]
    assert "below that of adam (" in of(result("sgd", FAR), result("heavy", A), result("adam", worse)).sentence


def test_of_those_that_cannot_be_told_apart_the_simplest_is_used():
    found = of(result("sgd", NEAR), result("adam", A), result("heavy", FAR))
    assert found.use == "sgd"
    assert re.fullmatch(
        r"Use sgd with lr 0\.1 on hills: its test loss of 0\.3040 cannot be told from that of adam \(adam's was lower "
        r"with 3 of 5 seeds, p = 0\.\d+\), and of these it keeps the fewest numbers for each weight \(0, adam 2\)\.",
        found.sentence,
    )


def test_the_best_is_used_where_it_is_the_simplest_too():
    found = of(result("sgd", A), result("adam", NEAR), result("heavy", FAR))
    assert found.use == "sgd"
    assert "is 29% below that of heavy" in found.sentence
    assert found.sentence.endswith("; adam cannot be told from it.")
    assert "is the lowest, but adam cannot be told from it" in of(result("sgd", A), result("adam", NEAR)).sentence


def test_noise_is_no_tie():
    found = of(result("adam", A), result("sgd", NOISY))
    assert found.use == "adam"
    assert found.sentence.endswith("is the lowest, but the differences may be chance.")
    assert found.notes == [
        "Not decided: sgd, neither clearly worse than the best nor within 10% of it: more seeds would tell."
    ]


def test_one_that_is_lower_with_nearly_every_seed_is_not_worse():
    found = rank([result("adam", [1.0] * 20), result("sgd", [0.135] * 19 + [54.6])], CANDIDATES)
    row = found[0].rows[1]
    assert row.versus.p < 0.001
    assert standing(row) == "open"


def test_a_difference_too_small_to_matter_is_none_however_sure():
    found = rank([result("adam", A), result("sgd", [1.005 * x + 1e-5 * i for i, x in enumerate(A)])], CANDIDATES)
    row = found[0].rows[1]
    assert row.versus.p < 1e-4
    assert standing(row) == "near"
    assert verdict(found).sentence.startswith(
        "Use sgd with lr 0.1 on hills: its test loss of 0.3015 is within 2% of that of adam (adam's was lower "
        "with 5 of 5 seeds, p < 0.001), and of these it keeps the fewest"
    )


def test_all_that_are_as_good_are_told():
    near = [1.01 * x + 1e-5 * i for i, x in enumerate(A)]
    found = of(result("adam", A), result("sgd", NEAR), result("heavy", near))
    assert "; adam" not in found.sentence
    assert "p = " in found.sentence
    assert "and of these and heavy, as good too, it keeps the fewest" in found.sentence
    found = of(result("sgd", A), result("adam", NEAR), result("heavy", near), result("whole", near))
    assert found.sentence.endswith(
        "is the lowest, but adam cannot be told from it, and heavy and whole are within 2% of it."
    )


@pytest.mark.parametrize(("seeds", "words"), [(1, "one seed"), (2, "2 seeds")])
def test_few_seeds_say_nothing(seeds, words):
    found = of(result("adam", A[:seeds]), result("sgd", FAR[:seeds]))
    assert found.use is found.lr is None
    assert f"with {words} nothing can be said about how sure that is: try at least 3" in found.sentence
    assert found.sentence.startswith("adam has the lowest test loss")
    both = of(*(result(n, x[:seeds], problem=p) for p in ("hills", "lakes") for n, x in (("adam", A), ("sgd", FAR))))
    assert both.use is None
    assert f"with {words} nothing can be said" in both.sentence


def test_three_seeds_are_enough_for_a_verdict():
    assert of(result("adam", A[:3]), result("sgd", FAR[:3])).use == "adam"


def test_one_optimizer_has_no_rival():
    assert of(result("adam", A)).sentence == (
        "adam has a test loss of 0.3000 with lr 0.1 on hills; there is nothing to compare it with."
    )


def test_all_diverged():
    found = of(result("adam", A, [INF]), result("sgd", A, [INF]))
    assert found.use is None
    assert found.sentence.startswith("No optimizer can be recommended on hills")
    assert len(found.notes) == 2


def test_what_else_must_be_known():
    found = of(result("adam", A, [0.1, 0.5]), result("sgd", FAR, [0.5, 0.2]), result("heavy", A, [INF]))
    assert found.use == "adam"
    assert found.notes == [
        "adam is best with the smallest learning rate tried, 0.01: smaller ones may be better.",
        "sgd is best with the largest learning rate tried, 0.1: larger ones may be better.",
        "heavy diverged with 5 of 5 seeds at its best learning rate, 0.1.",
    ]


def test_negative_losses():
    found = of(result("adam", [-3.0, -3.1, -2.9]), result("sgd", [-2.0, -2.2, -1.7]))
    assert (
        "its test loss of -3.000 is below that of sgd by 0.21 of the way from the start (lower with 3 of 3 seeds"
        in found.sentence
    )


@pytest.mark.parametrize(
    ("best", "other", "start"),
    [
        ([0.0, 0.0, 0.0], [0.25, 0.55, 0.3], 2.0),
        ([-101.0, -100.0, -99.0], [-75.0, -1.0, 25.0], 2.0),
        ([-3.0, -3.1, -2.9], [-2.9, -3.2, -2.7], -5.0),  # the start is lower: there is nothing to measure by
    ],
)
def test_a_best_loss_that_is_not_positive_has_no_tie_by_noise(best, other, start):
    found = of(result("adam", best, start=start), result("sgd", other, start=start))
    assert found.use == "adam"
    assert found.notes[0].startswith("Not decided: sgd, neither")


def test_negative_losses_that_are_close_are_as_good():
    found = of(result("adam", [-3.0, -3.1, -2.9]), result("sgd", [-2.9, -3.2, -2.7]))
    assert found.use == "sgd"  # 0.07 of a way of 5
    assert "cannot be told from that of adam" in found.sentence


def test_several_problems():
    found = of(
        *(result("adam", FAR, problem=p) for p in ("hills", "lakes")),
        result("heavy", A),
        result("heavy", [x * 0.95 for x in FAR], problem="lakes"),
        result("sgd", NEAR),
        result("heavy", [-1.0] * 5, problem="minus"),
    )
    assert found.use == "heavy"
    assert found.lr == 0.1
    assert found.sentence.startswith(
        "Use heavy over these 2 problems: in the geometric mean its test loss is 18% below that of adam"
    )
    assert (
        "; it is 0.824 times adam's, 0.95 at worst (on lakes), and 0.824 and at worst 0.950 with one" in found.sentence
    )
    assert found.notes == [
        "Not tried on every problem, and left out: sgd.",
        "Left out, since its losses have no ratio: minus.",
    ]


def test_no_one_learning_rate_for_all():
    found = of(
        *(result("adam", FAR, problem=p) for p in ("hills", "lakes")),
        result("heavy", A, [0.1, INF]),
        result("heavy", A, [INF, 0.1], problem="lakes"),
    )
    assert found.use == "heavy"
    assert found.sentence.endswith("and it diverged with one learning rate for all, 0.01.")


def test_several_problems_of_which_nothing_can_be_said():
    lost = [result("adam", A, problem=p, finals=[INF]) for p in ("hills", "lakes")]
    assert of(*lost).sentence.startswith("Nothing can be said over all problems")
    spread = of(
        *(
            result(n, A, f, problem=p)
            for n, p, f in (
                ("adam", "hills", None),
                ("sgd", "hills", [INF]),
                ("adam", "lakes", [INF]),
                ("sgd", "lakes", None),
            )
        )
    )
    assert spread.sentence.startswith("No optimizer can be recommended over these 2 problems")
    assert verdict([]).sentence == "Nothing was compared."


def test_table_fits_the_width_and_loses_nothing():
    found = rank([result("adam", A, [0.3, 0.2], error=0.1), result("heavy", FAR), result("sgd", A, [INF])], CANDIDATES)
    cells = [cell for row in found[0].rows for cell in numbers(row).values()]
    for width in (None, 200, 72, 40):
        shown = text(found, width)
        words = " ".join(shown.split())
        assert all(cell in words for cell in cells)
        assert " ".join(LEGEND.split()) in words
        assert width is None or max(map(len, shown.splitlines())) <= width
    assert shown.count("optimizer  ") > text(found).count("optimizer  ") == 1
    assert "diverged 5/5" in shown


def test_figures():
    assert [figures.loss(x) for x in (0.0313, 2, 1234.5, INF, None)] == ["0.03130", "2.000", "1234", "diverged", "–"]
    assert [figures.percent(x) for x in (0.031, 0.256, 11, -0.02)] == ["3.1%", "26%", "12 times", "-2.0%"]
    assert [figures.chance(p) for p in (0.0321, 0.0001)] == ["p = 0.032", "p < 0.001"]
    names = list("abcdef")
    assert [figures.names(names[:n]) for n in (0, 1, 2, 3, 6)] == [
        "",
        "a",
        "a and b",
        "a, b and c",
        "a, b, c and 3 others",
    ]
