"""Intervals, bootstraps, rank correlations and permutation tests on data whose answer is known or enumerated."""

import itertools
import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from tnlib.experiments.drops import counts, counts_drawn, harmless
from tnlib.experiments.statistics import (crossed_bootstrap, curve_bootstrap, curves_at, holm, informative, kendall,
                                          kendall_difference, layer_permutation_test, percentile_interval,
                                          student_interval)

numbers = st.floats(-100, 100, allow_subnormal=False)


# ---- intervals over seeds ----------------------------------------------------------------------------------------

@pytest.mark.parametrize("n, half_width", [(3, 2.5), (5, 1.2)])
def test_the_half_widths_that_the_claims_state(n, half_width):
    values = np.arange(n) * 3.0
    found = student_interval(values)
    assert (found.estimate, found.n) == (values.mean(), n)
    assert round((found.high - found.estimate) / values.std(ddof=1), 1) == half_width
    assert found.high - found.estimate == pytest.approx(found.estimate - found.low)


@given(st.lists(numbers, min_size=2, max_size=6), st.sampled_from([0.9, 0.95]), st.floats(-100, 100))
def test_the_interval_holds_the_means_that_a_t_test_keeps(values, level, mean):
    if np.std(values) > 1e-3:
        found = student_interval(values, level)
        p = stats.ttest_1samp(values, mean).pvalue
        if abs(p - (1 - level)) > 1e-9:
            assert (found.low <= mean <= found.high) == (p > 1 - level)


def test_one_seed_says_nothing_about_seeds():
    found = student_interval([0.3])
    assert (found.estimate, found.n) == (0.3, 1) and math.isnan(found.low) and math.isnan(found.high)
    assert student_interval([0.3, 0.3]).low == student_interval([0.3, 0.3]).high == 0.3


@pytest.mark.parametrize("values", [[], [1, math.nan], [math.inf, 1], [[1, 2]]])
def test_values_that_are_no_statistics_of_seeds_are_refused(values):
    with pytest.raises(ValueError, match="values must be finite numbers, one a seed"):
        student_interval(values)


def test_percentile_interval():
    found = percentile_interval(0.4, [*np.linspace(0, 1, 101), math.nan], 0.9)
    assert (found.estimate, found.n) == (0.4, 101) and (found.low, found.high) == pytest.approx((0.05, 0.95))
    for replicates in ([], [math.nan], [[1.0, 2.0]]):
        with pytest.raises(ValueError, match="replicates must be numbers"):
            percentile_interval(0.4, replicates)


# ---- the bootstrap over networks and images ------------------------------------------------------------------------

def test_images_and_networks_are_drawn_with_replacement():
    networks, times = crossed_bootstrap(4, 64, replicates=300, seed=1)
    assert networks.shape == (300, 4) and times.shape == (300, 64) and (times.sum(1) == 64).all()
    # Each image and each network is drawn as often as any other, and some twice.
    assert stats.chisquare(times.sum(0)).pvalue > 0.001 and times.max() > 1
    assert stats.chisquare(np.bincount(networks.ravel(), minlength=4)).pvalue > 0.001
    assert any(len(set(row)) < 4 for row in networks.tolist())
    again, other = crossed_bootstrap(4, 64, 300, seed=1), crossed_bootstrap(4, 64, 300, seed=2)
    assert all(np.array_equal(one, two) for one, two in zip((networks, times), again))
    assert not any(np.array_equal(one, two) for one, two in zip((networks, times), other))


def test_tables_of_several_networks_have_the_same_draws():
    """Tables that are read one after another are drawn alike: images whatever the networks, networks whatever the images."""
    assert np.array_equal(crossed_bootstrap(1, 64, 20)[1], crossed_bootstrap(5, 64, 20)[1])
    assert np.array_equal(crossed_bootstrap(5, 1, 20)[0], crossed_bootstrap(5, 64, 20)[0])
    for numbers in ((0, 5, 5), (5, 0, 5), (5, 5, 0)):
        with pytest.raises(ValueError, match="must be at least 1, got {}, {} and {}".format(*numbers)):
            crossed_bootstrap(*numbers)


def test_counts_are_those_of_the_images_drawn():
    random = np.random.default_rng(3)
    before, after = random.random(50) < 0.8, random.random((4, 50)) < 0.7
    _, times = crossed_bootstrap(1, 50, replicates=7)
    found = counts_drawn(before, after, times)
    for replicate, many in enumerate(times):
        images = np.repeat(np.arange(50), many)
        expected = counts(before[images], after[:, images])
        for name in ("lost", "gained"):
            assert found[name][:, replicate].tolist() == expected[name].tolist()
    assert found["images"] == 50
    with pytest.raises(ValueError, match=r"times must be \(replicates, 50\)"):
        counts_drawn(before, after, times[:, :40])
    with pytest.raises(ValueError, match="must hold one bool an image"):
        counts_drawn(before.astype(int), after, times)


def test_spread_over_images_is_the_binomials():
    """A bootstrapped accuracy drop has the variance of the paired difference, (lost + gained − net²/n)/n²."""
    random = np.random.default_rng(0)
    before = random.random(2000) < 0.85
    after = before ^ (random.random(2000) < 0.05)
    found = counts(before, after)
    net = found["lost"] - found["gained"]
    expected = 100 * math.sqrt(found["lost"] + found["gained"] - net**2 / 2000) / 2000
    drawn = counts_drawn(before, after, crossed_bootstrap(1, 2000, replicates=2000)[1])
    values = 100 * (drawn["lost"] - drawn["gained"]) / 2000
    assert values.mean() == pytest.approx(found["accuracy_drop"], abs=4 * expected / math.sqrt(2000))
    assert values.std() == pytest.approx(expected, rel=0.08)


def test_spread_over_networks_is_that_of_their_mean():
    """Its variance is (n−1)/n · s²/n."""
    accuracies = np.array([0.2, 0.5, 0.6, 0.9])
    values = accuracies[crossed_bootstrap(4, 1, replicates=2000)[0]].mean(1)
    assert values.mean() == pytest.approx(0.55, abs=0.012) and values.std() == pytest.approx(accuracies.std() / 2, rel=0.08)


def test_a_step_that_is_just_harmless_is_so_in_some_replicates_only():
    images = 10_000
    lost = lambda many: np.arange(images) >= many
    drawn = counts_drawn(lost(0), np.stack([lost(5), lost(83)]), crossed_bootstrap(1, images, replicates=400)[1])
    fine = harmless(drawn["lost"], drawn["gained"], images)  # 83 lost of 10,000 is just harmless
    assert harmless(83, 0, images) and fine[0].all() and 0.3 < fine[1].mean() < 0.7


# ---- which cells a rank correlation takes -------------------------------------------------------------------------

def test_informative_cells():
    cells = pd.DataFrame([
        # rank, max_rank, correct, lost, gained, taken: of 1,000 images, ten classes, 850 right untruncated
        (4, 8, 500, 360, 10, True),
        (8, 8, 500, 360, 10, False),     # full rank
        (1, 1, 500, 360, 10, False),     # a trivial cut
        (4, 8, 840, 20, 10, False),      # 1 point below the ceiling
        (4, 8, 839, 21, 10, True),
        (4, 8, 870, 0, 20, False),       # above it
        (4, 8, 110, 740, 0, False),      # 1 point above chance
        (4, 8, 111, 739, 0, True),
        (4, 8, 60, 790, 0, False),       # below chance
    ], columns=["rank", "max_rank", "correct", "lost", "gained", "taken"], index=range(20, 29)).assign(images=1000)
    found = informative(cells, classes=10)
    assert found.tolist() == cells["taken"].tolist() and found.index.equals(cells.index)
    assert informative(cells, classes=100).tolist() == [True, False, False, False, True, False, True, True, True]
    assert informative(cells, classes=10, margin=50).sum() == 0


# ---- Kendall's τ -------------------------------------------------------------------------------------------------

def by_pairs(cells, x, y, within=()):
    """τ-b by its definition: a loop over all pairs of rows."""
    score = free_x = free_y = 0
    rows = cells.to_dict("records")
    for a, b in itertools.combinations(rows, 2):
        if all(a[column] == b[column] for column in within):
            in_x, in_y = np.sign(a[x] - b[x]), np.sign(a[y] - b[y])
            score, free_x, free_y = score + in_x * in_y, free_x + abs(in_x), free_y + abs(in_y)
    return score / math.sqrt(free_x * free_y) if free_x and free_y else math.nan


tables = st.lists(st.tuples(*[st.integers(0, 4)] * 3, st.sampled_from("ab"), st.sampled_from("cd")), min_size=1,
                  max_size=14).map(lambda rows: pd.DataFrame(rows, columns=["x", "z", "y", "layer", "cut"]))


@given(tables)
def test_tau_is_that_of_the_pairs_within_strata(cells):
    same = lambda ours, theirs: ours == pytest.approx(theirs, abs=1e-12, nan_ok=True)
    assert same(kendall(cells, "x", "y"), by_pairs(cells, "x", "y"))
    for within in (["layer"], ["layer", "cut"]):
        assert same(kendall(cells, "x", "y", within), by_pairs(cells, "x", "y", within))
    expected = by_pairs(cells, "x", "y", ["cut"]) - by_pairs(cells, "z", "y", ["cut"])
    assert same(kendall_difference(cells, "x", "z", "y", ["cut"]), expected)


@given(tables)
def test_tau_of_all_pairs_is_scipys(cells):
    if len(cells) > 1:
        theirs = stats.kendalltau(cells["x"], cells["y"]).statistic
        assert kendall(cells, "x", "y") == pytest.approx(theirs, nan_ok=True)
    else:
        assert math.isnan(kendall(cells, "x", "y"))


@pytest.mark.parametrize("size", (59, 60, 61, 150))
def test_tau_of_strata_of_every_size(size):
    """Few cells are compared pair by pair, many by scipy: one τ, ties included, and alone or beside a small stratum."""
    random = np.random.default_rng(size)
    cells = pd.DataFrame(random.integers(0, 12, size=(size + 5, 2)), columns=["x", "y"])
    cells["layer"] = ["large"] * size + ["small"] * 5
    assert kendall(cells, "x", "y", ["layer"]) == pytest.approx(by_pairs(cells, "x", "y", ["layer"]), abs=1e-12)
    assert kendall(cells, "x", "y") == pytest.approx(stats.kendalltau(cells["x"], cells["y"]).statistic, abs=1e-12)


def test_strata_undo_simpsons_paradox():
    cells = pd.DataFrame({"x": [1, 2, 3, 11, 12, 13], "y": [13, 12, 11, 23, 22, 21], "layer": list("aaabbb")})
    assert kendall(cells, "x", "y") == pytest.approx(3 / 15) and kendall(cells, "x", "y", ["layer"]) == -1


def test_tau_takes_numbers_only():
    for cells in (pd.DataFrame({"x": [1, math.nan], "y": [1, 2]}), pd.DataFrame({"x": [], "y": []})):
        with pytest.raises(ValueError, match=f"x and y must be columns of numbers.*got {len(cells)} rows"):
            kendall(cells, "x", "y")


# ---- the bootstrap over seeds and curves ---------------------------------------------------------------------------

def curves_table(seeds=3, layers=4, cuts=3, steps=5, noise=0.0):
    """Cells with their row number; y rises with x within a curve, but for noise, and z is noise alone."""
    index = pd.MultiIndex.from_product([range(seeds), range(layers), list("ABCDEFG")[:cuts], range(1, steps + 1)],
                                       names=["seed", "layer", "cut", "rank"])
    cells = index.to_frame(index=False)
    random = np.random.default_rng(3)
    y, z = -cells["rank"] + noise * random.normal(size=len(cells)), random.normal(size=len(cells))
    return cells.assign(row=range(len(cells)), x=-cells["rank"], y=y, z=z)


def test_whole_curves_are_drawn_and_the_same_for_all_seeds():
    cells = curves_table().sample(frac=1, random_state=1)
    origin = cells.set_index("row")
    seen = []

    def look(table):
        assert len(table) == len(cells) and sorted(table["seed"].unique()) == [0, 1, 2]
        drawn = []
        for _, part in table.groupby("seed"):
            whole = part["row"].map(origin["seed"])
            assert whole.nunique() == 1  # one original seed
            curves = part.groupby(["layer", "cut"])
            assert all((curve["row"].value_counts().value_counts().size == 1) and curve["rank"].nunique() == 5
                       for _, curve in curves)  # all of a curve's cells, each as often
            drawn.append((curves.size() // 5).to_dict())
            seen.append(whole.iloc[0])
        assert drawn[0] == drawn[1] == drawn[2] and sum(drawn[0].values()) == 12
        return [drawn[0].get((layer, cut), 0) for layer in range(4) for cut in "ABC"]

    times = curve_bootstrap(cells, look, replicates=150)
    assert times.shape == (150, 12) and stats.chisquare(times.sum(0)).pvalue > 0.001
    assert stats.chisquare(np.bincount(seen, minlength=3)).pvalue > 0.001


def test_curves_that_some_seeds_lack():
    cells = curves_table()
    cells = cells[(cells["seed"] == 0) | (cells["layer"] > 1)]
    sizes = curve_bootstrap(cells, len, replicates=50)
    assert sizes.min() >= 5 and len(set(sizes.tolist())) > 5


def test_tau_and_a_paired_difference_with_intervals():
    cells = curves_table(noise=1.0)
    tau = lambda table: kendall(table, "x", "y", ["seed"])
    difference = lambda table: kendall_difference(table, "x", "z", "y", ["seed"])
    other = lambda table: kendall(table, "z", "y", ["seed"])
    values = curve_bootstrap(cells, lambda table: (tau(table), difference(table), other(table)), 80)
    assert values.shape == (80, 3)
    np.testing.assert_allclose(values[:, 1], values[:, 0] - values[:, 2])  # the same replicates
    for column, statistic in enumerate((tau, difference)):
        found = percentile_interval(statistic(cells), values[:, column])
        assert 0 < found.low < found.estimate < found.high <= 1.5
    np.testing.assert_array_equal(values[:, 0], curve_bootstrap(cells, tau, 80))
    assert (values[:, 0] != curve_bootstrap(cells, tau, 80, seed=1)).any()


def test_a_table_without_curves_is_refused():
    cells = curves_table()
    for cells, lacking in ((cells.drop(columns="cut"), r"lacking: \['cut'\]"), (cells[:0], "rows: 0")):
        with pytest.raises(ValueError, match=lacking):
            curve_bootstrap(cells, len)


# ---- curves at common places ---------------------------------------------------------------------------------------

def test_curves_are_read_off_straight_lines_where_they_reach():
    cells = pd.DataFrame([dict(seed=0, layer=layer, cut="OUT", share=share, drop=drop, error=-drop)
                          for layer, curve in {"a": [(0.6, 2), (0.2, 10)], "b": [(0.3, 4), (0.5, 8)]}.items() for share, drop in curve])
    found = curves_at(cells, "share", (0.25, 0.5, 0.9), ["drop", "error"])
    assert list(found) == ["seed", "layer", "cut", "share", "drop", "error"]
    assert found[["layer", "share"]].values.tolist() == [["a", 0.25], ["a", 0.5], ["b", 0.5]]  # nothing reaches 0.9
    np.testing.assert_allclose(found["drop"], [9, 4, 8])
    np.testing.assert_allclose(found["error"], [-9, -4, -8])
    assert curves_at(cells, "share", (0.9,), ["drop"]).empty


# ---- the permutation of layers -------------------------------------------------------------------------------------

def depth_table(values, kinds=None):
    """One cell a (layer, cut): `values[layer]` is a list, one for each cut; x is the layer's depth."""
    return pd.DataFrame([dict(layer=f"conv{depth}", depth=depth, cut=cut, y=y, kind=(kinds or "aaaaaaaa")[depth])
                         for depth, row in enumerate(values) for cut, y in zip("ABCD", row)])


def test_exact_p_by_hand():
    # Four layers in perfect order: of 24 permutations one has τ = 1, and one τ = −1.
    cells = depth_table([[1, 2], [3, 4], [5, 6], [7, 8]])
    assert layer_permutation_test(cells, "depth", "y", alternative="greater") == pytest.approx(1 / 24)
    assert layer_permutation_test(cells, "depth", "y") == pytest.approx(2 / 24)
    cells["y"] = -cells["y"]
    assert layer_permutation_test(cells, "depth", "y", alternative="greater") == 1
    # The library's p takes eight cells for independent ones.
    assert stats.kendalltau(cells["depth"], cells["y"]).pvalue < 0.003


def test_layers_exchange_within_strata_only():
    # Two kinds of three layers each: 36 permutations, of which one has all pairs within kinds in order.
    cells = depth_table([[5], [1], [6], [2], [7], [3]], kinds="ababab")
    assert kendall(cells, "depth", "y", ["kind"]) == 1
    assert layer_permutation_test(cells, "depth", "y", ["kind"], alternative="greater") == pytest.approx(1 / 36)
    alone = depth_table([[5], [1]], kinds="ab")  # no layer to exchange with, and no pair
    assert math.isnan(layer_permutation_test(alone, "depth", "y", ["kind"]))


@given(st.lists(st.lists(st.integers(0, 3), min_size=2, max_size=2), min_size=4, max_size=4),
       st.lists(st.lists(st.integers(0, 3), min_size=2, max_size=2), min_size=4, max_size=4))
def test_exact_p_is_the_enumerations(errors, drops):
    """x differs from cut to cut: layers exchange all their x, cut by cut, and pairs are within a cut."""
    cells = depth_table(drops)
    cells["x"] = np.ravel(errors)
    taus = []
    for order in itertools.permutations(range(4)):
        cells["permuted"] = np.ravel([errors[layer] for layer in order])
        taus.append(by_pairs(cells, "permuted", "y", ["cut"]))
    observed = by_pairs(cells, "x", "y", ["cut"])
    expected = math.nan if math.isnan(observed) else np.mean(np.abs(taus) >= abs(observed) - 1e-12)
    found = layer_permutation_test(cells, "x", "y", ["cut"], match=["cut"])
    assert found == pytest.approx(expected, nan_ok=True)


def test_random_permutations_come_near_the_exact_p():
    random = np.random.default_rng(5)
    cells = depth_table(random.normal(size=(6, 3)) + 0.25 * np.arange(6)[:, None])
    exact = layer_permutation_test(cells, "depth", "y", permutations=720)
    drawn = layer_permutation_test(cells, "depth", "y", permutations=719)
    assert 0.02 < exact < 0.6 and drawn == pytest.approx(exact, abs=4 * math.sqrt(exact * (1 - exact) / 719))
    assert drawn * 720 == pytest.approx(round(drawn * 720)) and drawn >= 1 / 720
    assert drawn == layer_permutation_test(cells, "depth", "y", permutations=719)


def test_it_holds_its_level_where_the_librarys_p_does_not():
    """No effect of depth, but cells of one layer alike: of 120 tables about 5 % may reject."""
    random = np.random.default_rng(0)
    ours, librarys = [], []
    for _ in range(120):
        cells = depth_table(random.normal(size=(5, 1)) + 0.1 * random.normal(size=(5, 4)))
        ours.append(layer_permutation_test(cells, "depth", "y"))
        librarys.append(stats.kendalltau(cells["depth"], cells["y"]).pvalue)
    assert np.mean(np.array(ours) <= 0.05) <= 0.11 < 0.3 < np.mean(np.array(librarys) <= 0.05)


def test_tables_in_which_layers_cannot_exchange_are_refused():
    cells = depth_table([[1, 2], [3, 4], [5, 6]])
    cells["x"] = range(6)
    with pytest.raises(ValueError, match="x has several values for one layer: name in match"):
        layer_permutation_test(cells, "x", "y")
    with pytest.raises(ValueError, match=r"a layer must have one value in each of \['cut'\]: name in match"):
        layer_permutation_test(cells, "depth", "y", ["cut"])
    with pytest.raises(ValueError, match=r"the same cells, and these have not: \['conv0', 'conv1', 'conv2'\]"):
        layer_permutation_test(cells[:-1], "x", "y", ["cut"], match=["cut"])
    with pytest.raises(ValueError, match="unknown alternative 'less'"):
        layer_permutation_test(cells, "depth", "y", alternative="less")


# ---- Holm ----------------------------------------------------------------------------------------------------------

def test_holm_on_a_worked_example():
    # R: p.adjust(c(0.01, 0.04, 0.03, 0.005), "holm") is 0.03 0.06 0.06 0.02.
    np.testing.assert_allclose(holm([0.01, 0.04, 0.03, 0.005]), [0.03, 0.06, 0.06, 0.02])
    np.testing.assert_allclose(holm([0.01, 0.04], tests=6), [0.06, 0.20])
    assert holm([0.9, 0.8]).tolist() == [1, 1]


@given(st.lists(st.floats(0, 1), min_size=1, max_size=7), st.integers(0, 3), st.sampled_from([0.01, 0.05, 0.3]))
def test_holm_rejects_what_stepping_down_rejects(p_values, untested, alpha):
    tests = len(p_values) + untested
    rejected, order = set(), np.argsort(p_values, kind="stable")
    for step, place in enumerate(order):
        if p_values[place] * (tests - step) > alpha:
            break
        rejected.add(int(place))
    adjusted = holm(p_values, tests)
    assert set(np.flatnonzero(adjusted <= alpha)) == rejected and (adjusted >= p_values).all()


@pytest.mark.parametrize("p_values, tests", [([], None), ([0.1, 1.2], None), ([math.nan], None), ([0.1] * 7, 6)])
def test_impossible_p_values_are_refused(p_values, tests):
    with pytest.raises(ValueError, match="p_values must be from 0 to 1, at least one and at most"):
        holm(p_values, tests)
