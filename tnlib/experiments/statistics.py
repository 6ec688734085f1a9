"""Statistics of many cells: intervals over seeds and images, rank correlations that respect layers, several tests.

What is said of one network alone is in `drops`.
"""

import itertools
import math
from dataclasses import dataclass

import numpy as np
import pandas as pd
import scipy  # of which stats is loaded where it is used: that takes a second

from .drops import LEVEL, MARGIN, check_level

FEW = 60  # cells of a stratum whose pairs are looked at one by one


# ---- intervals over seeds, and over seeds and images ----------------------------------------------------------------

@dataclass(frozen=True)
class Interval:
    """`.estimate` between `.low` and `.high`, which are NaN where nothing can be said; `.n`: from how many values."""

    estimate: float
    low: float
    high: float
    n: int


def student_interval(values, level: float = LEVEL) -> Interval:
    """Mean and two-sided Student's t interval of one number a seed: the primary interval.

    A single seed has no interval. Its half-width is 2.5 standard deviations for 3 seeds and 1.2 for 5.
    Raises `ValueError` for no values, or for values that are not finite.
    """
    values = np.asarray(values, dtype=float)
    if values.ndim != 1 or not values.size or not np.isfinite(values).all():
        raise ValueError(f"values must be finite numbers, one a seed, got {values}")
    n, mean = values.size, float(values.mean())
    if n == 1:
        return Interval(mean, math.nan, math.nan, 1)
    half = float(-scipy.special.stdtrit(n - 1, (1 - check_level(level)) / 2) * values.std(ddof=1) / math.sqrt(n))
    return Interval(mean, mean - half, mean + half, n)


def percentile_interval(estimate: float, replicates, level: float = LEVEL) -> Interval:
    """The two-sided interval of a bootstrap: quantiles of (replicates,), but for those where the statistic is NaN."""
    replicates = np.asarray(replicates, dtype=float)
    defined = replicates[~np.isnan(replicates)]
    if replicates.ndim != 1 or not defined.size:
        raise ValueError(f"replicates must be numbers, not all NaN, got an array of shape {replicates.shape}")
    tail = (1 - check_level(level)) / 2
    return Interval(float(estimate), *map(float, np.quantile(defined, [tail, 1 - tail])), defined.size)


def crossed_bootstrap(networks: int, images: int, replicates: int = 1000, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Networks and images drawn anew with replacement: which networks (replicates, networks), and how often each image
    (replicates, images).

    In a replicate all cells of all networks have the same images, see `drops.counts_drawn`; what a statistic selects,
    such as λ*, is to be selected anew. Images do not depend on the number of networks. The check of `student_interval`,
    which does not know that networks share their images, and no more than that: of the spread of n networks it finds
    √((n−1)/n). With one network, images alone are drawn. Raises `ValueError` for numbers below 1.
    """
    if min(networks, images, replicates) < 1:
        raise ValueError(f"networks, images and replicates must be at least 1, got {networks}, {images} and {replicates}")
    of_images, of_networks = np.random.default_rng(seed).spawn(2)
    times = [np.bincount(of_images.integers(images, size=images), minlength=images) for _ in range(replicates)]
    return of_networks.integers(networks, size=(replicates, networks)), np.array(times)


# ---- rank correlation --------------------------------------------------------------------------------------------

def informative(cells: pd.DataFrame, classes: int, margin: float = MARGIN) -> pd.Series:
    """Which cells a rank correlation takes: bool, on the table's index.

    Not full rank (max_rank 1 included), and neither within `margin` points of the untruncated accuracy, the ceiling,
    nor of chance, 1/`classes`, the floor; nor beyond these. Equal cuts are not in a sweep's table to begin with.
    `cells` has `rank, max_rank, images, correct, lost, gained`.
    """
    above_floor = 100 * cells["correct"] / cells["images"] - 100 / classes
    below_ceiling = 100 * (cells["lost"] - cells["gained"]) / cells["images"]
    rounding = 1e-9
    return ((cells["rank"] < cells["max_rank"]) & (above_floor > margin + rounding)
            & (below_ceiling > margin + rounding))


def kendall(cells: pd.DataFrame, x: str, y: str, within=()) -> float:
    """Kendall's τ-b of the columns `x` and `y`: of all pairs of cells, or of pairs equal in the columns `within`.

    τ = (concordant − discordant) / √(pairs not tied in x · pairs not tied in y), summed over strata before dividing:
    a stratum counts by its pairs. NaN where all pairs are tied. Raises `ValueError` for values that are NaN.
    """
    return _tau(*_columns(cells, x, y), _strata(cells, within))


def kendall_difference(cells: pd.DataFrame, x: str, other: str, y: str, within=()) -> float:
    """τ(x, y) − τ(other, y) on the same cells: paired, when a bootstrap draws them."""
    return kendall(cells, x, y, within) - kendall(cells, other, y, within)


def curve_bootstrap(cells: pd.DataFrame, statistic, replicates: int = 1000, seed: int = 0) -> np.ndarray:
    """The values (replicates, ...) of `statistic(table)` with seeds, then whole (layer, cut) curves, drawn anew.

    The same curves are drawn for all seeds of a replicate: seeds share their layers, and curves drawn for each seed
    apart would pass for independent ones. In the drawn table a seed drawn twice is two: `seed` counts draws, so that
    it may be among a statistic's strata. Raises `ValueError` for an empty table or one without `seed, layer, cut`.
    """
    lacking = [column for column in ("seed", "layer", "cut") if column not in cells]
    if lacking or not len(cells):
        raise ValueError("cells must have rows, and the columns seed, layer and cut; "
                         f"lacking: {lacking}, rows: {len(cells)}")
    seeds, curves = (cells.groupby(by, observed=True).ngroup().to_numpy() for by in ("seed", ["layer", "cut"]))
    places = cells.groupby([seeds, curves]).indices
    generator, values = np.random.default_rng(seed), []
    for _ in range(replicates):
        drawn_seeds = generator.integers(seeds.max() + 1, size=seeds.max() + 1)
        drawn_curves = generator.integers(curves.max() + 1, size=curves.max() + 1)
        rows = [np.concatenate([places.get((one, curve), seeds[:0]) for curve in drawn_curves]) for one in drawn_seeds]
        table = cells.iloc[np.concatenate(rows)].assign(seed=np.repeat(np.arange(len(rows)), list(map(len, rows))))
        values.append(statistic(table))
    return np.array(values)


def curves_at(cells: pd.DataFrame, x: str, values, columns) -> pd.DataFrame:
    """Each curve's `columns` at common `values` of the column `x`, on straight lines between two of its cells.

    One row a curve and value, with the columns `seed, layer, cut`, `x` and `columns`; none where the curve does not reach the value.
    Cells of different layers are then compared at one parameter fraction, say, where their rank grids have none in common.
    """
    by, rows = ["seed", "layer", "cut"], []
    for key, curve in cells.groupby(by, sort=False, observed=True):
        curve = curve.sort_values(x)
        at = curve[x].to_numpy()
        rows += [dict(zip(by, key)) | {x: value} | {column: np.interp(value, at, curve[column]) for column in columns}
                 for value in values if at[0] <= value <= at[-1]]
    return pd.DataFrame(rows, columns=[*by, x, *columns])


def layer_permutation_test(cells: pd.DataFrame, x: str, y: str, within=(), match=(), alternative: str = "two-sided",
                           permutations: int = 1999, seed: int = 0) -> float:
    """p of `kendall(cells, x, y, within)` when whole layers exchange their `x` within strata.

    A layer exchanges with those that have its values in the columns `within` that are not in `match`; a cell gets the
    `x` of the other layer's cell with its values in `match`, such as cut, parameter fraction and seed; without any,
    `x` is one value a layer, such as its depth. All permutations where there are no more than `permutations`, else
    that many random ones with the observed one counted. `alternative`: "two-sided" or "greater". No test that takes
    cells for independent, as scipy's: a layer's cells are not. Raises `ValueError` where `x` or a stratum is not so.
    """
    if alternative not in ("two-sided", "greater"):
        raise ValueError(f"unknown alternative {alternative!r}: it takes 'two-sided' or 'greater'")
    (x_values, y_values), groups = _columns(cells, x, y), _strata(cells, within)
    layer = cells.groupby("layer", observed=True).ngroup().to_numpy()
    key = cells.groupby(list(match), observed=True).ngroup().to_numpy() if match else np.zeros_like(layer)
    wide = np.full((layer.max() + 1, key.max() + 1), np.nan)  # x of a layer's cell, NaN where there is none
    wide[layer, key] = x_values
    if (wide[layer, key] != x_values).any():
        raise ValueError(f"{x} has several values for one layer{' and ' + ', '.join(match) if match else ''}: "
                         "name in match what tells its cells apart")
    pools = _pools(cells, layer, wide, [column for column in within if column not in match])
    generator = np.random.default_rng(seed)
    exact = math.prod(math.factorial(len(pool)) for pool in pools) <= permutations
    exchanges = (itertools.product(*map(itertools.permutations, pools)) if exact else
                 ([generator.permutation(pool) for pool in pools] for _ in range(permutations)))
    size = np.abs if alternative == "two-sided" else np.positive
    observed, source, taus = _tau(x_values, y_values, groups), np.arange(len(wide)), []
    for exchange in exchanges:  # layer source[l]'s x goes to layer l
        source[np.concatenate(pools)] = np.concatenate(exchange)
        taus.append(_tau(wide[source[layer], key], y_values, groups))
    if math.isnan(observed):
        return math.nan
    as_large = int((size(taus) >= size(observed) - 1e-12).sum())
    return as_large / len(taus) if exact else (1 + as_large) / (1 + len(taus))


def _pools(cells, layer, wide, apart) -> list[np.ndarray]:
    """The layers that may exchange places: equal in the columns `apart`, and with the same cells."""
    pools = [np.unique(layer[rows]) for rows in _strata(cells, apart)]
    if sum(map(len, pools)) != len(wide):
        raise ValueError(f"a layer must have one value in each of {apart}: name in match what tells its cells apart")
    for pool in pools:
        if (np.isnan(wide[pool]) != np.isnan(wide[pool[0]])).any():
            names = cells["layer"][np.isin(layer, pool)].unique().tolist()
            raise ValueError(f"layers that exchange places must have the same cells, and these have not: {names}")
    return pools


def _columns(cells, x, y):
    values = [cells[column].to_numpy(dtype=float) for column in (x, y)]
    if not len(cells) or any(np.isnan(column).any() for column in values):
        raise ValueError(f"{x} and {y} must be columns of numbers, not empty and without NaN, got {len(cells)} rows")
    return values


def _strata(cells, within) -> list[np.ndarray]:
    """Places of the rows that are equal in the columns `within`, a stratum an array."""
    if not within:
        return [np.arange(len(cells))]
    return list(cells.groupby(list(within), observed=True, dropna=False).indices.values())


def _tau(x, y, groups) -> float:
    score, free_x, free_y = np.sum([_pairs(x[rows], y[rows]) for rows in groups], axis=0)
    return float(score / math.sqrt(free_x * free_y)) if free_x and free_y else math.nan


def _pairs(x, y) -> tuple[float, int, int]:
    """Concordant less discordant pairs, pairs not tied in x, pairs not tied in y."""
    if len(x) <= FEW:  # a call of scipy's takes as long as fifty small strata, and a bootstrap has thousands of them
        in_x, in_y = (np.sign(values[:, None] - values) for values in (x, y))
        return (in_x * in_y).sum() / 2, np.count_nonzero(in_x) // 2, np.count_nonzero(in_y) // 2
    free_x, free_y = _pairs_not_tied(x), _pairs_not_tied(y)
    tau = scipy.stats.kendalltau(x, y).statistic if free_x and free_y else 0
    return tau * math.sqrt(free_x * free_y), free_x, free_y


def _pairs_not_tied(values) -> int:
    ties = np.unique(values, return_counts=True)[1]
    return math.comb(len(values), 2) - int((ties * (ties - 1) // 2).sum())


# ---- several tests -----------------------------------------------------------------------------------------------

def holm(p_values, tests: int | None = None) -> np.ndarray:
    """Holm's adjusted p-values, in the order given: reject where at most α.

    `tests`: how many tests the family has, where not all of them could be made; by default the number of `p_values`.
    Raises `ValueError` for anything but numbers from 0 to 1, and for more of them than tests.
    Source: Holm, Scandinavian Journal of Statistics 6 (1979) 65.
    """
    p = np.asarray(p_values, dtype=float)
    tests = len(p) if tests is None else tests
    if p.ndim != 1 or not p.size or not ((p >= 0) & (p <= 1)).all() or tests < p.size:
        raise ValueError(f"p_values must be from 0 to 1, at least one and at most {tests}, got {p}")
    order = p.argsort(kind="stable")
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(np.maximum.accumulate(p[order] * (tests - np.arange(p.size))), 1)
    return adjusted
