"""Paired drops against published intervals, exact enumeration and simulation; one-point ranks against worked curves."""

import math
import warnings

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import stats

from tnlib.experiments.drops import (as_norm_loss, barrier, counts, harmless, harmless_error_ratios,
                                     norm_loss, one_point, one_points, pack_difference, score_interval,
                                     unpack_difference)

# lost, gained, images, level: the interval of (lost − gained)/images as published
PUBLISHED = {
    "Tango 1998, disinfection of lenses": ((0, 1, 44, 0.90), (-0.096, 0.037)),
    "Tango 1998, table with a difference": ((9, 3, 32, 0.95), (-0.027, 0.390)),
    "Agresti and Min 2005": ((16, 8, 86, 0.95), (-0.020, 0.207)),
    "Fagerland, Lydersen and Laake 2014": ((1, 7, 21, 0.95), (-0.517, -0.026)),
    "Tang, Li and Tang 2010": ((3, 1, 14, 0.95), (-0.1670, 0.4327)),
    "Chang et al. 2024": ((25, 2, 102, 0.95), (0.139, 0.321)),
    "R's PropCIs": ((28, 25, 618, 0.90), (-0.0148, 0.0247)),
}


@st.composite
def changed(draw, most=10_000):
    """lost, gained, images that can be."""
    images = draw(st.integers(1, most))
    lost = draw(st.integers(0, images))
    return lost, draw(st.integers(0, images - lost)), images


bits = lambda n: hnp.arrays(bool, n)


# ---- per-image bits ----------------------------------------------------------------------------------------------

def test_counts_of_a_worked_example():
    before = np.array([1, 1, 1, 0, 0, 1, 1, 0], dtype=bool)
    after = np.array([[1, 1, 1, 0, 0, 1, 1, 0], [0, 1, 1, 1, 0, 0, 1, 0], [0, 0, 0, 1, 1, 0, 0, 1]], dtype=bool)
    found = counts(before, after)
    assert found["images"] == 8
    assert found["correct"].tolist() == [5, 4, 3] and found["accuracy"].tolist() == [0.625, 0.5, 0.375]
    assert found["lost"].tolist() == [0, 2, 5] and found["gained"].tolist() == [0, 1, 3]
    assert found["accuracy_drop"].tolist() == [0, 12.5, 25]
    assert {name: value for name, value in counts(before, after[1]).items()} == {
        name: value if name == "images" else value[1] for name, value in found.items()}
    assert pd.DataFrame(found).shape == (3, 6)


@given(before=bits(37), after=bits((4, 37)))
def test_counts_agree_with_each_other(before, after):
    found = counts(before, after)
    np.testing.assert_array_equal(before.sum() - found["lost"] + found["gained"], found["correct"])
    np.testing.assert_allclose(100 * (before.mean() - after.mean(-1)), found["accuracy_drop"], atol=1e-12)
    np.testing.assert_array_equal(found["lost"] + found["gained"], (before != after).sum(-1))


@given(data=st.data(), images=st.integers(1, 70))
def test_packed_bits_come_back(data, images):
    before, after = data.draw(bits(images)), data.draw(bits(images))
    packed = pack_difference(after, before)
    assert isinstance(packed, bytes)
    found = unpack_difference(packed, before)
    assert found.dtype == bool and (found == after).all()


@pytest.mark.parametrize("share, most", [(0.0, 30), (0.01, 200), (0.02, 300), (0.10, 800)])
def test_packed_bits_are_small_where_little_changed(share, most):
    random = np.random.default_rng(1)
    before = random.random(10_000) < 0.9
    after = before ^ (random.random(10_000) < share)
    packed = pack_difference(after, before)
    assert len(packed) <= most and (unpack_difference(packed, before) == after).all()


def test_bad_bits_are_refused():
    right = np.ones(9, dtype=bool)
    for wrong in (np.ones(9, dtype=int), np.ones(0, dtype=bool), np.bool_(True)):
        with pytest.raises(ValueError, match="before must hold one bool an image, got"):
            counts(wrong, right)
        with pytest.raises(ValueError, match="correct must hold one bool an image"):
            pack_difference(wrong, right)
    with pytest.raises(ValueError, match=r"bits of the same images.*got \(9,\) and \(2, 8\)"):
        counts(right, np.ones((2, 8), dtype=bool))
    with pytest.raises(ValueError, match=r"correct and baseline must both be \(images,\), got \(9,\) and \(8,\)"):
        pack_difference(right, right[1:])


def test_damaged_bits_are_refused():
    random = np.random.default_rng(0)
    before, after = random.random((2, 500)) < 0.5
    packed = pack_difference(after, before)
    for place in (1, len(packed) // 2, len(packed) - 1):
        with pytest.raises(ValueError, match="the packed bits are damaged"):
            unpack_difference(packed[:place] + bytes([packed[place] ^ 4]) + packed[place + 1:], before)
    with pytest.raises(ValueError, match="damaged"):
        unpack_difference(packed[:-3], before)
    with pytest.raises(ValueError, match=r"of 497 to 504 images, baseline has the shape \(400,\)"):
        unpack_difference(packed, before[:400])


# ---- the paired accuracy drop ------------------------------------------------------------------------------------

def upper_bound(lost, gained, images):
    """The one-sided 95 % bound of the drop, in points: 5 % in each tail."""
    return score_interval(lost, gained, images, 0.9)[1]


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_intervals(name):
    (lost, gained, images, level), published = PUBLISHED[name]
    digits = 4 if "2010" in name or "PropCIs" in name else 3
    assert tuple(round(float(end) / 100, digits) for end in score_interval(lost, gained, images, level)) == published


@pytest.mark.parametrize("images", [1, 30, 10_000])
def test_without_a_changed_image_the_ends_are_wilsons(images):
    z2 = stats.norm.isf(0.025) ** 2
    low, high = score_interval(0, 0, images)
    assert high == pytest.approx(100 * z2 / (images + z2), rel=1e-9) and low == pytest.approx(-high)
    wilson = stats.binomtest(0, images).proportion_ci(0.90, method="wilson").high
    assert upper_bound(0, 0, images) == pytest.approx(100 * wilson, rel=1e-9)


@given(changed())
def test_the_ends_are_where_a_constrained_fit_rejects(case):
    lost, gained, images = case
    low, high = score_interval(lost, gained, images)
    assert -100 <= low <= 100 * (lost - gained) / images + 1e-9 <= high + 2e-9 <= 100 + 2e-9
    mirrored = score_interval(gained, lost, images)
    np.testing.assert_allclose([low, high], [-mirrored[1], -mirrored[0]], atol=1e-6)
    for end, sign in ((low, 1), (high, -1)):
        d = end / 100
        if 1e-3 < abs(d) < 0.999 and images > 1:  # the constrained likelihood by search, not by Tango's quadratic
            grid = np.linspace(max(0, -d), (1 - d) / 2, 200_001)[1:-1]
            fit = (lost * np.log(grid + d) + gained * np.log(grid)
                   + (images - lost - gained) * np.log1p(-2 * grid - d))
            p_gained = grid[fit.argmax()] if lost + gained else max(0, -d)
            z = (lost - gained - images * d) / math.sqrt(images * (2 * p_gained + d * (1 - d)))
            assert z == pytest.approx(sign * stats.norm.isf(0.025), rel=2e-2)


@given(changed(), st.sampled_from([0.5, 1.0, 2.0]))
def test_harmless_is_the_bound_at_most_the_margin(case, margin):
    bound = upper_bound(*case)
    if abs(bound - margin) > 1e-9:
        assert bool(harmless(*case, margin=margin)) == (bound <= margin)


def test_harmless_on_a_test_set():
    # With 10,000 images: a drop of 0.6 points by 160 lost and 100 gained has the bound 0.87, by 360 and 300 1.02.
    assert harmless([160, 360, 0, 100, 80], [100, 300, 0, 0, 0], 10_000).tolist() == [True, False, True, False, True]
    wald = 0.6 + stats.norm.isf(0.05) * np.sqrt(np.array([260, 660]) - 60**2 / 10_000) / 100  # near, for so many images
    np.testing.assert_allclose(upper_bound([160, 360], [100, 300], 10_000), wald, atol=0.005)
    assert not harmless(0, 0, 200) and harmless(0, 0, 300)  # few images prove little
    assert harmless(300, 0, 10_000, margin=4) and not harmless(300, 0, 10_000)


def test_columns_go_in_as_they_are():
    table = pd.DataFrame({"lost": [5, 40, 0], "gained": [3, 2, 9], "images": [100, 900, 50]}, index=[7, 3, 5])
    low, high = score_interval(table["lost"], table["gained"], table["images"])
    for row, (lost, gained, images) in enumerate(table.itertuples(index=False)):
        assert (low[row], high[row]) == pytest.approx(score_interval(lost, gained, images))
    table["harmless"] = harmless(table["lost"], table["gained"], table["images"])
    assert table["harmless"].dtype == bool
    assert upper_bound(np.zeros((2, 3)), 1, 500).shape == (2, 3)


@pytest.mark.parametrize("p_lost, p_gained", [(0.02, 0.01), (0.01, 0.01), (0.08, 0.03), (0.02, 0.0)])
def test_coverage_by_exact_enumeration(p_lost, p_gained):
    """All outcomes of 200 images with their probabilities: the bound is above the true drop in about 95 % of them."""
    images = 200
    lost, gained = np.mgrid[:60, :60].reshape(2, -1)
    lost, gained = lost[lost + gained <= images], gained[lost + gained <= images]
    outcomes = np.stack([lost, gained, images - lost - gained], axis=-1)
    probability = stats.multinomial.pmf(outcomes, images, [p_lost, p_gained, 1 - p_lost - p_gained])
    assert probability.sum() == pytest.approx(1, abs=1e-6)
    drop = 100 * (p_lost - p_gained)
    covered = probability[upper_bound(lost, gained, images) >= drop].sum()
    assert 0.93 <= covered <= 0.99
    low, high = score_interval(lost, gained, images)
    assert 0.93 <= probability[(low <= drop) & (drop <= high)].sum() <= 0.985


def test_a_drop_of_one_point_passes_for_harmless_as_often_as_it_may():
    """Simulated on 10,000 images at the margin itself: 5 % are called harmless, though McNemar's pairs are few."""
    random = np.random.default_rng(0)
    for p_lost, p_gained in ((0.03, 0.02), (0.015, 0.005), (0.11, 0.10)):
        lost, gained, _ = random.multinomial(10_000, [p_lost, p_gained, 1 - p_lost - p_gained], size=20_000).T
        assert harmless(lost, gained, 10_000).mean() == pytest.approx(0.05, abs=0.008)


@pytest.mark.parametrize("lost, gained, images, message", [
    (-1, 0, 10, "got lost -1, gained 0, images 10"),
    (6, 5, 10, "together at most images; got lost 6, gained 5, images 10"),
    ([1, 11], [0, 0], 10, "got lost 11, gained 0, images 10"),
    (0.5, 0, 10, "whole numbers of at least 0"),
    (0, 0, 0, "got lost 0, gained 0, images 0"),
    (math.nan, 0, 10, "got lost nan"),
    ([1, 2], [1, 2, 3], 10, r"arrays of one shape, not empty, got \[\(2,\), \(3,\), \(\)\]"),
    ([], [], 10, "not empty"),
])
def test_impossible_counts_are_refused(lost, gained, images, message):
    for function in (score_interval, harmless):
        with pytest.raises(ValueError, match=message):
            function(lost, gained, images)


def test_impossible_levels_are_refused():
    for level in (0, 1, 95):
        with pytest.raises(ValueError, match=f"level must be above 0 and below 1, got {level}"):
            score_interval(1, 1, 10, level)


# ---- losses ------------------------------------------------------------------------------------------------------

def test_losses_stand_beside_each_other_as_the_claims_say():
    for loss, error in ((0.05, 0.31), (0.10, 0.44), (0.20, 0.60)):
        assert round(math.sqrt(1 - (1 - loss)**2), 2) == error
        assert as_norm_loss(math.sqrt(1 - (1 - loss)**2), "epsilon") == pytest.approx(loss)
    assert round(float(as_norm_loss(0.10, "w")), 3) == 0.051 and round(float(as_norm_loss(0.10, "epsilon")), 3) == 0.005
    assert as_norm_loss([0.1, 0.2], "lambda").tolist() == [0.1, 0.2]
    np.testing.assert_allclose(norm_loss(pd.Series([1.0, 0.9])), [0, 0.1])
    with pytest.raises(ValueError, match="unknown reading 'norm': it takes 'lambda', 'w' or 'epsilon'"):
        as_norm_loss(0.1, "norm")
    with pytest.raises(ValueError, match="loss must be from 0 to 1, got 10"):
        as_norm_loss(10, "w")


# ---- the one-point rank of a curve -------------------------------------------------------------------------------

RANKS, MAX_RANK = [24, 16, 8, 4, 1], 32
NU = np.array([0.99, 0.95, 0.8, 0.6, 0.3])
EPSILON = np.sqrt(1 - NU**2)
curve = lambda *steps: one_point(RANKS, MAX_RANK, NU, EPSILON, np.array(steps, dtype=bool))


def test_the_curve_stops_before_its_first_harmful_rank():
    found = curve(1, 1, 0, 0, 0)
    assert (found.one_point_rank, found.next_rank, found.censored) == (16, 8, "none")
    assert (found.lambda_star, found.lambda_next) == pytest.approx((0.05, 0.2))
    assert (found.epsilon_reached, found.epsilon_next) == pytest.approx((EPSILON[1], 0.6))
    assert found.epsilon_star == pytest.approx(math.sqrt(EPSILON[1] * 0.6))
    assert curve(1, 1, 0, 1, 1) == found  # it is harmless again further down: that does not count


def test_a_curve_harmful_from_its_first_step():
    found = curve(0, 1, 1, 0, 0)
    assert (found.one_point_rank, found.next_rank, found.censored) == (32, 24, "below")
    assert (found.lambda_star, found.lambda_next, found.epsilon_reached) == pytest.approx((0, 0.01, 0))
    assert found.epsilon_star == pytest.approx(EPSILON[0] / 2) and found.epsilon_next == pytest.approx(EPSILON[0])


def test_a_curve_harmless_to_its_end():
    found = curve(1, 1, 1, 1, 1)
    assert (found.one_point_rank, found.next_rank, found.censored) == (1, 0, "above")
    assert found.lambda_star == pytest.approx(0.7) and found.epsilon_star == found.epsilon_reached == EPSILON[-1]
    assert math.isnan(found.lambda_next) and math.isnan(found.epsilon_next)


def test_the_largest_loss_counts_where_losses_are_not_monotone():
    found = one_point([5, 4, 3], 6, [1.02, 0.7, 0.8], [0.2, 0.7, 0.6], [True, True, True])
    assert (found.one_point_rank, found.lambda_star, found.epsilon_star) == pytest.approx((3, 0.3, 0.7))
    found = one_point([5, 4, 3], 6, [1.02, 0.7, 0.8], [0.2, 0.7, 0.6], [True, False, True])
    assert (found.one_point_rank, found.lambda_star) == (5, 0)  # a norm that grew is no loss


@given(hnp.arrays(bool, (6, 2, 5)))
def test_many_replicates_are_one_call(steps):
    together = one_point(RANKS, MAX_RANK, NU, EPSILON, steps)
    for place in np.ndindex(6, 2):
        for name, value in vars(one_point(RANKS, MAX_RANK, NU, EPSILON, steps[place])).items():
            np.testing.assert_array_equal(value, getattr(together, name)[place])


@given(hnp.arrays(bool, 5), st.lists(st.floats(0.01, 0.99), min_size=5, max_size=5, unique=True))
def test_epsilon_star_lies_in_its_bracket(steps, norms):
    nu = np.sort(norms)[::-1]
    found = one_point(RANKS, MAX_RANK, nu, np.sqrt(1 - nu**2), steps)
    assert found.epsilon_reached <= found.epsilon_star
    assert found.censored == "above" or found.epsilon_star <= found.epsilon_next
    assert found.epsilon_reached**2 == pytest.approx(1 - (1 - found.lambda_star)**2)


def test_a_shrink_has_no_ranks():
    nu = np.array([0.95, 0.9, 0.7])
    found = one_point(nu, 1, nu, 1 - nu, [True, True, False])
    assert found.one_point_rank == 0.9 and found.lambda_star == pytest.approx(0.1)
    assert found.epsilon_star == pytest.approx(math.sqrt(0.1 * 0.3))


@pytest.mark.parametrize("arguments, message", [
    (([4, 8], 9, [0.9, 0.8], [0.1, 0.2], [True, True]), "ranks must descend from below 9"),
    (([8, 4], 8, [0.9, 0.8], [0.1, 0.2], [True, True]), r"from below 8 to above 0, got bool and \[8, 4\]"),
    (([8, 8], 9, [0.9, 0.8], [0.1, 0.2], [True, True]), "ranks must descend"),
    (([8, 0], 9, [0.9, 0.8], [0.1, 0.2], [True, True]), "above 0"),
    (([8, 4], 9, [0.9, 0.8], [0.1, 0.2], [1, 1]), "harmless must be bool"),
    (([8, 4], 9, [0.9], [0.1, 0.2], [True, True]), r"got \(2,\), \(1,\), \(2,\) and \(2,\)"),
    (([8, 4], 9, [0.9, 0.8], [0.1, 0.2], [True]), r"and \(1,\)"),
    (([], 9, [], [], []), "not empty"),
    (([8, 4], 9, [0.9, math.nan], [0.1, 0.2], [True, True]), "norm_kept must be finite"),
    (([8, 4], 9, [0.9, 0.8], [0.1, -0.2], [True, True]), "relative_error at least 0"),
])
def test_bad_curves_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        one_point(*arguments)


def table_of(*curves):
    """Cells of curves (layer, cut, lost at each of RANKS), of 10,000 images each, in a shuffled order."""
    rows = [dict(layer=layer, cut=cut, rank=rank, max_rank=MAX_RANK, norm_kept=nu, relative_error=error,
                 images=10_000, lost=lost, gained=0)
            for layer, cut, losses in curves for rank, nu, error, lost in zip(RANKS, NU, EPSILON, losses)]
    return pd.DataFrame(rows).sample(frac=1, random_state=0)


def test_a_table_of_curves():
    cells = table_of(("conv2", "OUT", (10, 20, 30, 500, 60)), ("conv1", "KW", (200, 0, 0, 0, 0)),
                     ("conv1", "OUT", (0, 0, 0, 0, 0)))
    found = one_points(cells)
    assert found[["layer", "cut", "one_point_rank", "censored"]].values.tolist() == [
        ["conv1", "KW", 32, "below"], ["conv1", "OUT", 1, "above"], ["conv2", "OUT", 8, "none"]]
    np.testing.assert_allclose(found["lambda_star"], [0, 0.7, 0.2])
    assert found["epsilon_star"].dtype == found["lambda_next"].dtype == float and found["next_rank"].dtype == int
    both = pd.concat([cells.assign(seed=0), cells.assign(seed=1)])
    assert one_points(both, ["seed", "layer", "cut"]).shape == (6, 11)
    with pytest.raises(ValueError, match="ranks must descend"):
        one_points(both)


def test_a_table_of_no_curve_has_the_same_columns():
    cells = table_of(("conv1", "OUT", (0, 0, 0, 0, 0)))
    none = one_points(cells.iloc[:0])
    assert none.empty and list(none) == list(one_points(cells))


def test_ratios_to_matched_noise_are_over_the_geometric_mean_of_its_draws():
    cells = table_of(("conv1", "OUT", (0, 0, 500, 500, 500)), ("conv2", "OUT", (0, 0, 0, 0, 0))).assign(seed=3)
    draws = [(0, 500, 500, 500, 500), (0, 0, 0, 500, 500)]
    noise = pd.concat([table_of(("conv1", "OUT", lost)).assign(seed=3, draw=k) for k, lost in enumerate(draws)])
    found = harmless_error_ratios(cells, noise)
    assert found[["seed", "layer", "cut"]].values.tolist() == [[3, "conv1", "OUT"]]  # conv2 has no noise
    middle = lambda k: math.sqrt(EPSILON[k] * EPSILON[k + 1])                   # of the bracket after step k
    assert found["epsilon_star"][0] == pytest.approx(middle(1))
    assert found["noise_epsilon_star"][0] == pytest.approx(math.sqrt(middle(0) * middle(2)))
    assert found["ratio"][0] == pytest.approx(middle(1) / math.sqrt(middle(0) * middle(2)))


# ---- paths -------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("accuracy, height", [
    ([0.8, 0.8, 0.8], 0), ([0.8, 0.7, 0.8], 10), ([0.8, 0.85, 0.9], 0), ([0.8, 0.9, 0.9], 0), ([0.9, 0.8, 0.8], 5)])
def test_a_barrier_is_below_the_line_between_the_ends(accuracy, height):
    assert barrier([0, 0.5, 1], accuracy) == pytest.approx(height)


@pytest.mark.parametrize("position, accuracy", [([0, 1, 0.5], [1, 1, 1]), ([0, 1], [1, 1, 1]), ([0], [1])])
def test_a_path_has_two_ends_and_goes_one_way(position, accuracy):
    with pytest.raises(ValueError, match="positions ascending"):
        barrier(position, accuracy)


def test_so_few_images_that_nothing_can_be_shown_to_be_harmless_are_warned_of():
    cells = table_of(("conv1", "OUT", (0, 0, 0, 0, 0)))
    for images, few in ((267, True), (268, False)):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            found = one_points(cells.assign(images=images))
        assert (found["censored"] == ("below" if few else "above")).all()
        assert [f"{images} images cannot show" in str(warning.message) for warning in caught] == [True] * few
