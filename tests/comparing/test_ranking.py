import math

import numpy as np
import pytest
from scipy import stats

from rmsprop.comparing.candidates import CANDIDATES as OURS
from rmsprop.comparing.overall import summarize
from rmsprop.comparing.pairs import holm, paired
from rmsprop.comparing.ranking import numbers_kept, rank

from .results import CANDIDATES, INF, result

A, B = [0.30, 0.32, 0.28, 0.31, 0.29], [0.42, 0.43, 0.38, 0.41, 0.46]


def ranking(*results):
    (found,) = rank(results, CANDIDATES)
    return found


def test_pairs_are_scipys():
    found, peer = paired(B, A), stats.ttest_rel(B, A)
    assert found.p == pytest.approx(peer.pvalue, rel=1e-9)
    assert (found.mean, found.higher, found.seeds) == (pytest.approx(0.12), 5, 5)
    assert paired(A, A).p == 1
    assert paired([2, 3], [1, 2]).p == 0  # the same difference every time
    assert paired([1], [2]) is None


def test_holm_is_the_textbooks():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1, 1]
    assert holm([]) == []


def test_scores_are_of_the_test_rows_at_the_learning_rate_of_the_validation_rows():
    found = ranking(result("sgd", B), result("adam", A, [0.9, 0.25, 0.9], error=0.07))
    best, other = found.rows
    assert [best.name, other.name] == ["adam", "sgd"]
    assert (best.lr, best.edge, best.valid) == (0.01, 0, 0.25)
    assert best.test == pytest.approx(0.30)
    assert best.spread == pytest.approx(np.std(A, ddof=1))
    assert (best.error, best.spike, best.seconds) == (pytest.approx(0.07), 1.5, pytest.approx(0.04))
    assert best.versus is None
    assert best.behind == 0
    assert other.behind == pytest.approx(0.42 / 0.30 - 1)
    assert other.versus.p == pytest.approx(stats.ttest_rel(np.log(B), np.log(A)).pvalue)
    assert other.error is None


def test_p_is_corrected_for_the_number_of_rows():
    others = [result("sgd", B), result("heavy", [x + 0.1 for x in B]), result("whole", [0.31, 0.33, 0.30, 0.29, 0.30])]
    rows = ranking(result("adam", A), *others).rows[1:]
    raw = [stats.ttest_rel(np.log(row.tests), np.log(A)).pvalue for row in rows]
    assert [row.versus.p for row in rows] == pytest.approx(holm(raw))
    assert rows[1].versus.p > raw[1] > 0


def test_the_edge_of_the_grid_is_told():
    rows = ranking(result("adam", A, [0.1, 0.5]), result("sgd", B, [0.5, 0.2]), result("heavy", B)).rows
    assert [row.edge for row in rows] == [-1, 1, 0]  # one learning rate has no edge


def test_steps_to_the_target_are_the_median_over_seeds():
    paths = [[1.0, 0.27, 0.27, 0.27], [1.0, 0.9, 0.27, 0.27], [1.0, 0.9, 0.9, 0.27]]
    slow = [[1.0, 0.27, 0.27, 0.27], [1.0, 0.9, 0.9, 0.9], [1.0, 0.9, 0.9, 0.9]]
    best = result("adam", A[:3], [0.27], paths=paths)
    rows = ranking(result("heavy", [0.1, 0.1, 0.1], [0.27]), best, result("sgd", B[:3], [0.8], paths=slow)).rows
    assert [row.steps_to_target for row in rows] == [20, 30, None]


def test_full_batches_count_as_the_rows_they_see():
    rows = ranking(result("adam", A), result("whole", A, steps=[1, 2])).rows
    assert [row.steps[-1] for row in rows] == [40, 40]
    assert [row.steps_to_target for row in rows] == [20, 40]


def test_the_range_of_learning_rates_is_interpolated_where_axes_are_logarithmic():
    finals = [1.0, 0.5, 0.105, 0.1, 0.44, 0.1]  # the last one is not next to the best
    (row,) = ranking(result("adam", A, finals, [1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0])).rows
    low = 1e-3 * 10 ** -(math.log(0.11 / 0.105) / math.log(0.5 / 0.105))
    high = 1e-2 * 10 ** (math.log(1.1) / math.log(4.4))
    assert (row.lr_range.low, row.lr_range.high) == pytest.approx((low, high))
    assert row.lr_range.decades == pytest.approx(math.log10(high / low))
    assert not row.lr_range.open_low
    assert not row.lr_range.open_high


def test_the_range_ends_at_the_grid_and_before_divergence():
    rows = ranking(result("adam", A, [0.1, 0.105, INF]), result("sgd", B, [0.3, 0.2, 0.4])).rows
    found = rows[0].lr_range
    assert (found.low, found.high, found.open_low, found.open_high) == (0.001, 0.01, True, False)
    assert rows[1].lr_range is None
    assert ranking(result("adam", A)).rows[0].lr_range.decades == 0


@pytest.mark.parametrize(
    ("finals", "start", "target", "words"),
    [
        ([0.1], 2.0, 0.11, "0.1000, plus 10%."),
        ([0.0], 2.0, 0.002, "plus 0.1% of the way back to the 2 of"),
        ([1e-9], 2.0, 0.002, "plus 0.1%"),
        ([-3.0], 2.0, -2.5, "plus 10% of the way back to the 2 of"),
        ([-3.0], -5.0, -3.0, "plus 10%"),
        ([0.1], INF, 0.11, "plus 10%."),
        ([INF], 2.0, None, "every training diverged"),
    ],
)
def test_target(finals, start, target, words):
    found = ranking(result("adam", A, finals, start=start))
    assert found.target == pytest.approx(target, abs=1e-8) if target is not None else found.target is None
    assert words.replace("0.1000", f"{finals[0]:.4g}") in found.note


def test_negative_losses_are_compared_by_their_differences():
    lower, higher = [-3.0, -3.1, -2.9], [-2.0, -2.2, -1.7]
    rows = ranking(result("adam", lower), result("sgd", higher)).rows
    assert [row.behind for row in rows] == pytest.approx([0, (3 - 5.9 / 3) / 5])  # of the way from 2 to -3
    assert rows[1].versus.p == pytest.approx(stats.ttest_rel(higher, lower).pvalue)
    assert rows[1].versus.mean == pytest.approx(1.0333, rel=1e-3)
    crossing = ranking(result("adam", lower, [-3.0, 0.5]), result("sgd", higher, [-2.0, -1.0])).rows[0].lr_range
    part = (-2.5 + 3) / (0.5 + 3)
    assert crossing.high == pytest.approx(0.01 * 10**part)


def test_losses_below_the_start_have_no_way_to_be_a_part_of():
    rows = ranking(result("adam", [-3.0, -3.1], start=-5.0), result("sgd", [-2.0, -2.2], start=-5.0)).rows
    assert rows[1].behind is None
    rows = ranking(result("adam", [0.0, 0.0], start=INF), result("sgd", [0.1, 0.2], start=INF)).rows
    assert rows[1].behind is None


def test_a_result_of_no_candidate_is_named():
    with pytest.raises(ValueError, match="results: of 'other'; candidates has adam, sgd, heavy, whole, absent"):
        rank([result("adam", A), result("other", B)], CANDIDATES)


def test_divergence():
    rows = ranking(
        result("adam", [0.1, math.nan, 0.1], [0.2]), result("sgd", B[:3]), result("heavy", B[:3], [INF])
    ).rows
    assert [row.name for row in rows] == ["sgd", "adam", "heavy"]
    assert [row.diverged for row in rows] == [0, 1, 3]  # a seed that is infinite on validation counts on test rows too
    assert [row.test for row in rows[1:]] == [INF, INF]
    assert all(row.versus is row.spread is row.behind is None for row in rows[1:])
    rows = ranking(result("adam", A, [INF]), result("sgd", A, [INF])).rows
    assert [row.versus for row in rows] == [None, None]


def test_one_seed_has_no_spread():
    rows = ranking(result("adam", [0.1]), result("sgd", [0.2])).rows
    assert all(row.versus is row.spread is None for row in rows)
    assert rows[1].behind == pytest.approx(1)


def test_pairs_are_of_the_same_seeds():
    other = result("sgd", B)
    other.curves.seeds = [4, 3, 2, 1, 9]
    row = ranking(result("adam", A), other).rows[1]
    assert row.versus.seeds == 4
    assert row.versus.mean == pytest.approx(np.mean(np.log(B[:4]) - np.log([A[4], A[3], A[2], A[1]])))


def test_problems_and_schedules_are_kept_apart():
    found = rank([result("adam", A), result("adam", B, problem="lakes"), result("adam", B, decay=True)], CANDIDATES)
    assert [r.problem for r in found] == ["hills", "lakes"]
    assert [row.name for row in found[0].rows] == ["adam", "adam+decay"]
    assert found[0].rows[1].about == "torch Adam; lr falls to 0"
    whole = rank([result("whole", A, decay=True)], CANDIDATES)[0].rows[0]
    assert (whole.name, whole.about) == ("whole", "all rows a step")


def test_numbers_kept_for_each_weight():
    kept = {name: numbers_kept(c) for name, c in CANDIDATES.items()}
    assert kept == {"adam": 2, "sgd": 0, "heavy": 2, "whole": 0, "absent": None}
    assert numbers_kept(OURS["rmsprop"]) == 1
    assert numbers_kept(OURS["rmsprop-corrected-averaged"]) == 2


def test_over_problems():
    half, twice = [x / 2 for x in A], [2.42 * x for x in A]
    found = summarize(
        rank(
            [
                result("adam", A, [0.3, 0.2, 0.9]),
                result("sgd", half, [0.1, 0.8, 0.9]),
                result("heavy", A),
                result("adam", A, [0.3, 0.2, 0.9], problem="lakes"),
                result("sgd", twice, [0.9, 0.25, 0.5], problem="lakes"),
            ],
            CANDIDATES,
        )
    )
    assert found.reference == "adam"
    assert [row.name for row in found.rows] == ["adam", "sgd", "heavy"]
    adam, sgd, heavy = found.rows
    assert (sgd.ratio, sgd.worst, sgd.worst_on) == pytest.approx((1.1, 2.42, "lakes"))
    assert sgd.ratios == pytest.approx({"hills": 0.5, "lakes": 2.42})
    assert (adam.lr, adam.lr_ratio, adam.lr_worst) == pytest.approx((0.01, 1, 1))
    assert sgd.lr == 0.001  # sqrt(0.1 x 0.9) < sqrt(0.8 x 0.25)
    assert sgd.lr_ratio == pytest.approx(math.sqrt(0.5 * 4.5 / 0.3))  # 5 x 0.9 is its test loss there
    assert (heavy.problems, heavy.versus, heavy.behind) == (1, None, None)
    assert sgd.versus.mean == pytest.approx(math.log(1.1))
    assert sgd.behind == pytest.approx(0.1)


def test_over_problems_without_adam_and_without_ratios():
    found = summarize(
        rank(
            [
                result("sgd", A),
                result("heavy", B),
                result("sgd", B, problem="lakes", lrs=[7.0]),
                result("heavy", A, [INF], problem="lakes"),
                result("sgd", [-1.0] * 5, problem="negative"),
                result("sgd", A, [INF], problem="lost"),
            ],
            CANDIDATES,
        )
    )
    assert (found.problems, found.left_out, found.reference) == (["hills", "lakes"], ["negative", "lost"], None)
    sgd, heavy = found.rows
    assert (sgd.ratio, sgd.lr) == (1, None)  # no learning rate in common
    assert (heavy.diverged, heavy.ratio, heavy.worst_on, heavy.lr_ratio) == (True, INF, "lakes", INF)
    assert summarize(rank([result("sgd", A, [INF])], CANDIDATES)).rows == []


def test_divergence_on_one_problem_is_infinite_over_all():
    both = [result(n, x, problem=p) for p in ("hills", "lakes") for n, x in (("adam", A), ("sgd", B))]
    lost = [result("heavy", A), result("heavy", A, [INF], problem="lakes")]
    split = [result("whole", A, [0.1, INF]), result("whole", A, [INF, 0.1], problem="lakes")]
    rows = {row.name: row for row in summarize(rank([*both, *lost, *split], CANDIDATES)).rows}
    assert list(rows)[2:] == ["sgd", "heavy"]
    heavy, whole = rows["heavy"], rows["whole"]
    assert (heavy.ratio, heavy.worst_on, heavy.behind, heavy.versus) == (INF, "lakes", None, None)
    assert (whole.ratio, whole.lr_ratio, whole.lr_worst) == (1, INF, INF)  # no one learning rate is good for both
    assert rows["sgd"].versus.p == pytest.approx(holm([1.0, stats.ttest_rel(np.log(B), np.log(A)).pvalue])[1])


def test_adam_is_the_reference_only_where_it_is_everywhere():
    results = [result("adam", B), result("sgd", A), result("sgd", A, problem="lakes")]
    found = summarize(rank(results, CANDIDATES))
    assert found.reference is None
    assert {row.name: row.ratio for row in found.rows} == pytest.approx({"sgd": 1, "adam": 1.4})
