"""The rules of the verdicts, and each claim's test on tables whose answer is known."""

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from tests.publishing.claims_cases import (compression_of, deficits_of, paths_of, points_in_blocks_of, points_of, ratios_of,
                                            retraining_of)
from tnlib.experiments.drops import as_norm_loss
from tnlib.experiments.statistics import Interval
from tnlib.experiments.strengths import CASES
from tnlib.publishing import claim_tests as tests
from tnlib.publishing import claims
from tnlib.publishing.claims import Part, Verdict, corrected, decide, joint_p, overall, reason_of, share_part, worst

FILE = claims.read_claims()
ASKED = {id: claim["thresholds"] for id, claim in FILE["claims"].items()}


# ---- rules -------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("estimate, low, high, kind, verdict", [
    (0.60, 0.30, 0.90, "share", "reproduced"),
    (0.50, 0.25, 0.75, "share", "reproduced"),      # at both marks
    (0.60, 0.20, 1.00, "share", "inconclusive"),    # reaches the threshold, and straddles the bound
    (0.40, 0.30, 0.50, "share", "partly"),
    (0.25, 0.25, 0.25, "share", "partly"),
    (0.40, 0.10, 0.70, "share", "inconclusive"),
    (0.10, 0.00, 0.24, "share", "not reproduced"),
    (0.10, 0.00, 0.25, "share", "inconclusive"),    # touches it
    (0.60, 0.30, 0.90, "difference", "reproduced"),
    (0.40, 0.30, 0.50, "difference", "inconclusive"),  # there, and smaller than asked: nothing but a share is "partly"
    (0.20, 0.10, 0.25, "ratio", "not reproduced"),  # "refuted if the upper bound is at most"
    (0.60, 0.25, 0.90, "ratio", "inconclusive"),    # "lower bound above"
    (0.25, 0.00, 0.50, "not below", "reproduced"),  # on average it is not
    (0.24, 0.00, 0.48, "not below", "inconclusive"),
    (0.20, 0.16, 0.24, "not below", "not reproduced"),
])
def test_where_the_interval_lies_is_the_verdict(estimate, low, high, kind, verdict):
    assert decide(Interval(estimate, low, high, 3), 0.5, 0.25, kind) == verdict


def test_the_reason_names_every_number_that_decides():
    wide = Part("wide", (0.9, 1.4, 1.1), "ratio", 1.25, 1.0)
    small = Part("small", (0.080, 0.081, 0.082), "deficit", 0.10, 0.0)
    enough = Part("enough", (0.15, 0.16, 0.15), "deficit", 0.10, 0.0)
    reason = reason_of((wide, enough, small), worst((wide, enough, small)))
    assert "wide: 1.11" in reason and "straddles" in reason
    assert "small: 8.1 %" in reason and "smaller than the 10.0 % asked for" in reason and "enough" not in reason
    assert "others reach" in reason_of((enough, enough), "reproduced")


@pytest.mark.parametrize("estimate", [0.0, 0.3, 1.0])
def test_one_network_is_inconclusive_whatever_it_says(estimate):
    part = share_part("a share", 0.5, [estimate], 28)
    assert part.verdict == "inconclusive" and part.p is None and math.isnan(part.interval.low)
    assert "one network" in reason_of((part,), "inconclusive")


def test_a_claims_file_that_is_no_yaml_is_named(monkeypatch, tmp_path):
    (tmp_path / "claims.yml").write_text("a: [")
    monkeypatch.setattr(claims, "CLAIMS", tmp_path / "claims.yml")
    with pytest.raises(ValueError, match="claims.yml is not valid YAML"):
        claims.read_claims()


def test_a_sign_is_asked_for_without_an_interval_and_refutes_nothing():
    assert Part("its sign", (0.01,), "sign", 0.0, 0.0).verdict == "reproduced"
    assert Part("its sign", (0.03, -0.01), "sign", 0.0, 0.0).verdict == "reproduced"
    other = Part("its sign", (-0.01, -0.02), "sign", 0.0, 0.0)
    assert other.verdict == "inconclusive" and "not told apart" in reason_of((other,), "inconclusive")


def test_the_interval_is_students_and_that_of_a_ratio_is_of_logarithms():
    values = (0.30, 0.35, 0.50)
    half = stats.t.ppf(0.975, 2) * np.std(values, ddof=1) / math.sqrt(3)
    share = share_part("a share", 0.5, values, 84)
    assert share.interval.low == pytest.approx(np.mean(values) - half) and share.interval.n == 3
    assert share_part("a share", 0.5, (0.0, 0.1, 0.3), 84).interval.low == 0, "a share is not below 0"
    ratio = Part("a ratio", (1.0, 1.21), "ratio", 1.25, 1.0)
    assert ratio.interval.estimate == pytest.approx(1.1)
    assert ratio.p == pytest.approx(stats.ttest_1samp(np.log([1.0, 1.21]), 0).pvalue)
    assert share.p == pytest.approx(stats.ttest_1samp(values, 0.25).pvalue)


@pytest.mark.parametrize("share, networks, cases, verdict", [
    (0.0, 3, 84, "not reproduced"), (1.0, 3, 84, "reproduced"),
    (0.0, 2, 10, "inconclusive"), (0.0, 3, 15, "inconclusive"), (0.0, 5, 25, "not reproduced"),
    (1.0, 2, 10, "inconclusive"), (1.0, 3, 15, "reproduced")])
def test_a_share_that_is_the_same_in_all_networks_has_the_error_of_one_of_them_a_cell_off(share, networks, cases, verdict):
    """The standard error is that of a sample in which one network differs by one cell."""
    found = share_part("a share", 0.5, (share,) * networks, cases)
    error = stats.sem([share] * (networks - 1) + [abs(share - networks / cases)])
    half = stats.t.ppf(0.975, networks - 1) * error
    assert found.interval.low == pytest.approx(max(share - half, 0)) and found.interval.high == pytest.approx(min(share + half, 1))
    assert found.p == pytest.approx(2 * stats.t.sf(abs(share - 0.25) / error, networks - 1))
    assert found.verdict == verdict


def test_at_the_bound_p_is_1():
    assert share_part("a share", 0.5, (0.25, 0.25), 56).p == 1


def part(verdict, p=None):
    """A part with this verdict of its own."""
    values = {"reproduced": (0.6, 0.61, 0.62), "partly": (0.4, 0.41, 0.42), "not reproduced": (0.1, 0.11, 0.12),
              "inconclusive": (0.1, 0.3, 0.6)}[verdict]
    made = share_part(verdict, 0.5, values, 3)
    assert made.verdict == verdict
    return made


def test_of_several_parts_the_worst_counts_and_the_largest_p():
    yes, partly, no, unclear = map(part, ("reproduced", "partly", "not reproduced", "inconclusive"))
    assert worst((yes, partly)) == "partly" and worst((partly, unclear)) == "inconclusive"
    assert worst((yes, unclear, no)) == "not reproduced" and worst(()) == "not tested"
    assert joint_p((yes, partly)) == max(yes.p, partly.p)
    assert joint_p((yes, no)) == pytest.approx(2 * no.p), "one part of two would do to refute: Bonferroni"
    sign, single = Part("its sign", (1.0,), "sign", 0.0, 0.0), share_part("of one network", 0.5, (0.9,), 3)
    assert joint_p((sign,)) is None and joint_p((yes, sign)) == yes.p
    assert joint_p((yes, single)) is None and joint_p((no, single)) == no.p, "what one network cannot tell, no other number tells"


def verdict(id, *parts, word=None):
    return Verdict(id, "vanilla", "cifar10", word or worst(parts), "", parts)


def test_holm_counts_the_tests_that_could_not_be_made_and_only_takes_away():
    strong, weak = share_part("s", 0.5, (0.6, 0.601, 0.602), 3), share_part("w", 0.5, (0.6, 0.7, 0.8), 3)
    assert strong.verdict == weak.verdict == "reproduced" and strong.p < 0.001 and 0.01 < weak.p < 0.05
    rest = [verdict(str(k), word="not tested") for k in range(4)]
    first, second, *others = corrected([verdict("a", strong), verdict("b", weak), *rest])
    assert first.verdict == "reproduced" and first.adjusted == pytest.approx(6 * strong.p)
    assert second.verdict == "inconclusive" and second.adjusted == pytest.approx(5 * weak.p) and "Holm" in second.reason
    assert [other.verdict for other in others] == ["not tested"] * 4
    assert corrected([verdict("b", weak)])[0].verdict == "reproduced", "alone it needs no correction"
    unclear = corrected([verdict("c", part("inconclusive")), *rest])[0]
    assert unclear.verdict == "inconclusive" and unclear.adjusted == 1


@pytest.mark.parametrize("words, expected", [
    (["reproduced"] * 3 + ["not reproduced"], "reproduced"),
    (["reproduced"] * 3 + ["not tested"], "reproduced"),
    (["reproduced"] * 2 + ["not tested"] * 2, "not tested"),
    (["reproduced"] * 2 + ["partly"] * 2, "inconclusive"),
    (["not reproduced"] * 3 + ["partly"], "not reproduced"),
])
def test_overall_takes_three_of_four(words, expected):
    assert overall(words) == expected


def test_a_verdict_names_its_readings_where_they_differ():
    same = Verdict("1a", "vanilla", "cifar10", "partly", "", readings=dict.fromkeys(("lambda", "w", "epsilon"), "partly"))
    assert same.words == "partly"
    differ = Verdict("1a", "vanilla", "cifar10", "partly", "", readings={"lambda": "partly", "w": "partly", "epsilon": "reproduced"})
    assert differ.words == "partly (10 % read as λ or w); reproduced (10 % read as ε)"


def test_what_the_code_assumes_of_the_file_stands_in_it():
    """Words of the file that are not numbers in it: α, the pairs needed, what partly means, the readings of ten percent."""
    assert "α = 0.05" in FILE["verdicts"]["multiplicity"] and claims.ALPHA == pytest.approx(0.05)
    assert "at least 3 of the 4 pairs" in FILE["verdicts"]["overall"] and "fewer than three" in FILE["verdicts"]["overall"]
    assert FILE["verdicts"]["partly"] == "a quarter to a half where half is asked for"
    for reading, rounded in FILE["claims"]["1a"]["shown_for"]["readings_of_ten_percent"].items():
        assert as_norm_loss(ASKED["1a"]["lambda_star"], reading) == pytest.approx(rounded, abs=5e-4)


# ---- the tests on tables -----------------------------------------------------------------------------------------

def test_1a_counts_cells_and_layers_at_each_reading():
    points = points_of(lambda seed, layer, k: 0.12 if k < layer else 0.06)  # 1, 2, 3, 4 of 7 cuts reach a tenth
    cells, layers = tests.harmless_truncations(points, ASKED["1a"])
    assert cells.values == (10 / 28,) * 3 and cells.comparisons == 84 and cells.verdict == "partly"
    assert layers.values == (0.5,) * 3 and layers.comparisons == 12 and layers.verdict == "inconclusive"
    cells, layers = tests.harmless_truncations(points, ASKED["1a"], "w")
    assert cells.verdict == layers.verdict == "reproduced"
    assert cells.values == layers.values == (1.0,) * 3, "read as w, a tenth is λ 0.051"
    cells, layers = tests.harmless_truncations(points, ASKED["1a"] | {"lambda_star": 0.2})
    assert worst((cells, layers)) == "not reproduced"


def test_a_kernel_shrunk_to_nine_tenths_has_lost_a_tenth():
    """1 − 0.9 is less than 0.1 in floating point."""
    shrunk = points_of(lambda seed, layer, k: 1 - 0.9)
    assert (shrunk["lambda_star"] < 0.1).all()
    assert tests.share_of_curves("shrunk", shrunk, 0.1).values == (1.0,) * 3
    assert tests.harmless_truncations(shrunk, ASKED["1a"])[0].values == (1.0,) * 3


def test_1b_needs_the_difference_and_the_sign_in_both_other_widths():
    rising = points_of(lambda seed, layer, k: 0.02 * layer + 0.001 * seed * layer)
    flat, falling = points_of(lambda seed, layer, k: 0.05), points_of(lambda seed, layer, k: 0.05 - 0.01 * layer)
    good = tests.deeper_layers(rising, {"constant": rising, "reversed": rising}, ASKED["1b"])
    assert good[0].values == pytest.approx((0.040, 0.042, 0.044)) and worst(good) == "reproduced"
    for other in (flat, falling):
        assert worst(tests.deeper_layers(rising, {"constant": rising, "reversed": other}, ASKED["1b"])) == "inconclusive"
    assert worst(tests.deeper_layers(falling, {"constant": rising, "reversed": rising}, ASKED["1b"])) == "not reproduced"
    small = points_of(lambda seed, layer, k: 0.005 * layer + 1e-4 * seed * layer)
    assert worst(tests.deeper_layers(small, {}, ASKED["1b"])) == "inconclusive", "there, but below 0.03"


def test_1b_of_resnet50_needs_the_order_among_kernels_alike_and_within_stages():
    asked = ASKED["1b"]
    rising = tests.deeper_in_blocks(points_in_blocks_of(lambda seed, depth, stage, block: 0.001 * depth), asked)
    assert [part.values for part in rising] == [(1.0,) * 3] * 2 and worst(rising) == "reproduced"
    assert [part.comparisons for part in rising] == [3 * 48] * 2, "a layer counts once, whatever its cuts"
    by_stage = tests.deeper_in_blocks(points_in_blocks_of(lambda seed, depth, stage, block: 0.01 * stage - 0.001 * block), asked)
    assert by_stage[0].verdict == "reproduced" and by_stage[1].values == (-1.0,) * 3 and worst(by_stage) == "not reproduced"
    flat = tests.deeper_in_blocks(points_in_blocks_of(lambda seed, depth, stage, block: 0.05), asked)
    assert [part.values for part in flat] == [(0.0,) * 3] * 2 and worst(flat) == "not reproduced"


def test_1b_of_resnet50_counts_pairs_of_kernels_alike_and_no_others():
    """Against a count of all pairs by hand, of λ* drawn at random, without ties."""
    drawn = np.random.default_rng(0).random(200)
    points = points_in_blocks_of(lambda seed, depth, stage, block: drawn[depth + 50 * seed])
    for part, alike in zip(tests.deeper_in_blocks(points, ASKED["1b"]), (["size", "position"], ["size", "position", "stage"])):
        for seed, found in enumerate(part.values):
            layers = points[points.seed == seed].drop_duplicates("layer")
            signs = [np.sign((a.lambda_star - b.lambda_star) * (a.depth - b.depth))
                     for (_, a), (_, b) in itertools.combinations(layers.iterrows(), 2) if (a[alike] == b[alike]).all()]
            assert found == pytest.approx(np.mean(signs))


def test_2_takes_geometric_means_and_medians_of_the_right_cells_and_needs_all_three():
    parts = tests.correlation_compression(ratios_of(1.3, 1.31, 1.32), deficits_of(0.15), deficits_of(0.12), ASKED["2"])
    assert parts[0].values == pytest.approx((1.3, 1.31, 1.32)) and parts[1].values == pytest.approx((0.15, 0.151, 0.152))
    assert worst(parts) == "reproduced" and [p.comparisons for p in parts] == [6, 6, 6]
    assert worst(tests.correlation_compression(ratios_of(0.9, 0.91, 0.92), deficits_of(0.15), deficits_of(0.12),
                                               ASKED["2"])) == "not reproduced"
    assert worst(tests.correlation_compression(ratios_of(1.1, 1.11, 1.12), deficits_of(0.15), deficits_of(0.12),
                                               ASKED["2"])) == "inconclusive"
    assert worst(tests.correlation_compression(ratios_of(1.3, 1.31, 1.32), deficits_of(0.15), deficits_of(-0.05),
                                               ASKED["2"])) == "not reproduced"
    assert len(tests.correlation_compression(None, deficits_of(0.15), None, ASKED["2"])) == 1
    assert tests.deficit_in("random", deficits_of(0.3, "random"), ASKED["2"]).values == pytest.approx((0.3, 0.301, 0.302))
    with_batch_norm = deficits_of(0.15).replace({"gauge": {"balanced": "folded"}}).query("gauge != 'random'")
    (part,) = tests.correlation_compression(None, with_batch_norm, None, ASKED["2"])
    assert part.values == pytest.approx((0.15, 0.151, 0.152)), "with batch norm, the gauge in which it is folded in"


def test_3_is_judged_after_the_third_epoch():
    asked = ASKED["3"]
    assert tests.recovered(retraining_of(5), asked).values == (1.0,) * 3
    assert tests.recovered(retraining_of(2, seeds=5), asked).verdict == "partly"
    assert tests.recovered(retraining_of(0, seeds=5), asked).verdict == "not reproduced"
    late = retraining_of(3, slow=(0,))
    assert tests.recovered(late, asked).values == (0.4,) * 3
    after = tests.recovered(late, asked, "free", 5)
    assert after.values == (0.6,) * 3 and after.verdict is None, "shown, and not judged"
    assert tests.recovered(late, asked | {"epochs": 5}).verdict == "reproduced"
    assert tests.recovered(late, asked | {"margin_points": 0.1}).values == (0.0,) * 3


def test_specificity_is_truncated_minus_noise():
    asked = FILE["claims"]["3"]["specificity"]["threshold_points"]
    assert tests.specificity(retraining_of(5), ASKED["3"], asked).values == pytest.approx((2.0,) * 3)
    assert tests.specificity(retraining_of(5), ASKED["3"], asked).verdict == "reproduced"
    assert tests.specificity(retraining_of(5, noise_behind=-0.01), ASKED["3"], asked).verdict == "not reproduced"


@pytest.mark.parametrize("runs, paths, word", [
    ({"recovering": 5}, {"dip": 1.0}, "reproduced"),
    ({"recovering": 2}, {"dip": 1.0}, "partly"),                                # three train to twice the loss
    ({"recovering": 5}, {"dip": 3.0}, "not reproduced"),
    ({"recovering": 5}, {"dip": 3.0, "reference": 4.0}, "reproduced"),          # no higher than between continued runs
    ({"recovering": 5, "train_loss": 0.34}, {"dip": 1.0}, "not reproduced"),
    ({"recovering": 5, "loss": 0.53}, {"dip": 1.0}, "not reproduced"),
])
def test_4_needs_losses_and_barrier(runs, paths, word):
    share, *alone = tests.same_minimum(retraining_of(**runs, seeds=5), paths_of(**paths, seeds=5), ASKED["4"])
    assert share.verdict == word and share.comparisons == 25
    assert share.values == tuple(np.min([part.values for part in alone], axis=0)) and all(p.verdict is None for p in alone)


def test_a_case_that_is_not_there_is_named():
    runs, paths = retraining_of(5), paths_of(1.0)
    assert tests.missing_cases(runs, paths, 5) == {}
    lacking = runs[~((runs["seed"] == 1) & (runs["cut"] == "CP") & (runs["arm"] == "noise"))]
    assert tests.missing_cases(lacking, paths, 3, [case for case in CASES if case.cut != "CP"]) == {}
    assert tests.missing_cases(lacking, paths, 3) == {1: ["no noise of CP at 0.5 after 3 epochs"]}
    assert tests.missing_cases(runs, paths[paths["cut"] != "IN"], 5) == {k: ["no path of IN at 0.5"] for k in range(3)}
    assert tests.missing_cases(retraining_of(5, epochs=2), None, 3)[0][0].endswith("after 3 epochs")
    assert tests.missing_cases(runs[runs["arm"] != "continued"], None, 3) == {k: ["no continued of none at 1 after 3 epochs"] for k in range(3)}


@pytest.mark.parametrize("kind, value, text", [("points", -0.004, "0.0"), ("points", -0.06, "-0.1"), ("difference", -0.0001, "0.000"),
                                               ("correlation", -0.001, "0.00"), ("share", 0.114, "11 %"), ("deficit", -0.0001, "0.0 %")])
def test_numbers_are_rounded_without_a_negative_zero(kind, value, text):
    assert claims.number_text(kind, value) == text


# ---- claim 5 -----------------------------------------------------------------------------------------------------

def test_5_needs_two_budgets_of_three_and_no_narrower_network_above():
    judged = lambda *gains, **others: tests.more_effective(compression_of(*gains, **others), ASKED["5"])
    good = judged((0.2, 1.5, 3.0), (-4.0, 0.0, 1.0))
    assert worst(good) == "reproduced", "the third budget does not count, neither against one fraction nor against the narrower network"
    assert [part.values for part in good[:3]] == [pytest.approx((at, at + 0.1, at + 0.2)) for at in (0.2, 1.5, 3.0)]
    assert [part.threshold for part in good] == [None, 1, 1, None, 0.0, 0.0] and joint_p(good) == max(part.p for part in good[1:3])
    assert worst(judged((0.2, 0.5, 3.0), (1.0, 1.0, 1.0))) == "inconclusive", "a second budget is ahead, but by less than a point"
    assert worst(judged((-2.0, -1.0, 3.0), (1.0, 1.0, 1.0))) == "not reproduced", "of two budgets that are needed one is behind"
    assert worst(judged((2.0, 2.5, 3.0), (9.0, -4.0, 1.0))) == "not reproduced", "the narrower network is above at a budget that counts"
    assert worst(judged((2.0, 2.5, 3.0), (9.0, -0.15, 1.0))) == "inconclusive", "or not surely so"
    assert worst(judged((2.0, 2.5, 3.0), (9.0, 9.0, 9.0), seeds=1)) == "inconclusive"


def test_the_budgets_that_count_are_those_of_the_largest_advantage_however_sure_it_is():
    """As the amendment has it: at an eighth the advantage is the largest on average, and is not sure; the network there is far behind."""
    rows = compression_of((1.2, 3.0, 5.0), (1.0, 1.0, -5.0))
    unsure = (rows["budget"] == 0.125) & (rows["epoch"] == 5) & (rows["arm"] == "fraction")
    rows.loc[unsure, "accuracy"] = rows.loc[unsure, "seed"].map({0: 0.79, 1: 0.75, 2: 0.69})
    parts = tests.more_effective(rows, ASKED["5"])
    assert [part.threshold for part in parts] == [None, 1, 1, None, 0.0, 0.0]
    assert parts[2].verdict == "inconclusive" and worst(parts) == "not reproduced"


def test_a_narrower_network_that_is_not_above_needs_no_p():
    parts = tests.more_effective(compression_of((2.0, 2.5, 3.0), (1.0, 1.0, 1.0)), ASKED["5"])
    assert [part.kind for part in parts if part.p is None and part.threshold is not None] == ["not below"] * 2
    refuted = tests.more_effective(compression_of((2.0, 2.5, 3.0), (1.0, -3.0, 1.0)), ASKED["5"])
    (part,) = [part for part in refuted if part.verdict == "not reproduced"]
    assert part.p == pytest.approx(stats.ttest_1samp((-3.0, -2.9, -2.8), 0).pvalue) and joint_p(refuted) == pytest.approx(4 * part.p)
