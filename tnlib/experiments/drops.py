"""Accuracy drops of one network, paired on its images, and how far down a curve they are harmless.

A cell is one truncated network evaluated on the images of its untruncated one; a curve is the cells of one
(layer, cut) down the rank grid. Accuracy drops and their bounds are in percentage points, accuracies are fractions.
"""

import dataclasses
import math
import warnings
import zlib
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import special

MARGIN = 1.0  # points: a drop whose upper bound is not above it is harmless
LEVEL = 0.95


# ---- per-image bits ----------------------------------------------------------------------------------------------

def counts(before, after) -> dict:
    """What per-image correctness says of cells: `images, correct, lost, gained, accuracy, accuracy_drop`.

    `before`: bool (images,), of the untruncated network; `after`: bool (..., images), of one cell or many, and then
    every value but `images` is an array (...). `lost` are right before and wrong after, `gained` the reverse,
    `accuracy` is a fraction and `accuracy_drop` in points. Raises `ValueError` for anything but such bits.
    """
    before, after = check_bits(before, "before"), check_bits(after, "after")
    if before.ndim != 1 or after.shape[-1] != before.size:
        raise ValueError(f"before and after must be bits of the same images, (images,) and (..., images), "
                         f"got {before.shape} and {after.shape}")
    lost, gained, correct = (bits.sum(-1) for bits in (before & ~after, ~before & after, after))
    return {"images": before.size, "correct": correct, "lost": lost, "gained": gained,
            "accuracy": correct / before.size, "accuracy_drop": 100 * (lost - gained) / before.size}


def counts_drawn(before, after, times) -> dict:
    """`counts`' `images, lost, gained` where the images are drawn anew: the last two are arrays (..., replicates).

    `before` and `after` as in `counts`; `times`: how often each image is drawn, (replicates, images).
    """
    times = np.asarray(times)
    counts(before, after)  # refuses what are no bits of the same images
    before, after = np.asarray(before), np.asarray(after)
    if times.ndim != 2 or times.shape[1] != before.size:
        raise ValueError(f"times must be (replicates, {before.size}), for so many images, got {times.shape}")
    drawn = times.astype(np.float32, copy=False)  # whole numbers far below 2²⁴: exact, and a fast product
    lost, gained = ((bits.astype(np.float32) @ drawn.T).astype(np.int64) for bits in (before & ~after, ~before & after))
    return {"images": before.size, "lost": lost, "gained": gained}


def pack_difference(correct, baseline) -> bytes:
    """Bits of one cell, bool (images,), as the compressed difference from the untruncated network's.

    Some 300 bytes for 10,000 images of which 2 % changed, 760 where 10 % did; 1,250 without compression.
    """
    correct, baseline = check_bits(correct, "correct"), check_bits(baseline, "baseline")
    if correct.ndim != 1 or correct.shape != baseline.shape:
        raise ValueError(f"correct and baseline must both be (images,), got {correct.shape} and {baseline.shape}")
    return zlib.compress(np.packbits(correct ^ baseline).tobytes(), 9)


def unpack_difference(packed: bytes, baseline) -> np.ndarray:
    """The inverse of `pack_difference`: bool (images,). Raises `ValueError` for damaged bytes and other lengths."""
    baseline = check_bits(baseline, "baseline")
    try:
        difference = np.frombuffer(zlib.decompress(packed), dtype=np.uint8)
    except zlib.error as error:
        raise ValueError(f"the packed bits are damaged: {error}") from None
    if baseline.ndim != 1 or len(difference) != math.ceil(baseline.size / 8):
        raise ValueError(f"the packed bits are of {8 * len(difference) - 7} to {8 * len(difference)} images, "
                         f"baseline has the shape {baseline.shape}")
    return np.unpackbits(difference, count=baseline.size).astype(bool) ^ baseline


def check_bits(bits, name: str) -> np.ndarray:
    """Return `bits` as an array if they are bools, at least one and along at least one axis."""
    bits = np.asarray(bits)
    if bits.dtype != bool or not bits.ndim or not bits.size:
        raise ValueError(f"{name} must hold one bool an image, got {bits.dtype} of shape {bits.shape}")
    return bits


# ---- the paired accuracy drop of one network ---------------------------------------------------------------------

def score_interval(lost, gained, images, level: float = LEVEL) -> tuple[np.ndarray, np.ndarray]:
    """The two-sided score interval (low, high) of the accuracy drop D = 100·(lost − gained)/images, in points.

    Whole numbers or arrays of one shape, of which any may be a single number. All D that the score test does not
    reject: of the methods for paired proportions the one that needs the changed images only. About the images, for
    this network; it says nothing about seeds. Raises `ValueError` for counts that cannot be.
    Source: Tango, Statistics in Medicine 17 (1998) 891.
    """
    lost, gained, images = _paired_counts(lost, gained, images)
    critical = -special.ndtri((1 - check_level(level)) / 2)
    difference = (lost - gained) / images

    def solve(end, target):  # the score falls as the hypothesis grows, so bisection finds where it is `target`
        low, high = np.minimum(difference, end), np.maximum(difference, end)
        for _ in range(55):
            middle = (low + high) / 2
            above = _score(middle, lost, gained, images) > target
            low, high = np.where(above, middle, low), np.where(above, high, middle)
        return 100 * (low + high) / 2

    return solve(-1.0, critical), solve(1.0, -critical)


def harmless(lost, gained, images, margin: float = MARGIN) -> np.ndarray:
    """Whether the one-sided 95 % upper bound of the accuracy drop is at most `margin` points; "this network".

    The score test of non-inferiority at `margin`, which is the same without searching for the bound.
    """
    return _score(margin / 100, *_paired_counts(lost, gained, images)) <= -special.ndtri(LEVEL)


def _score(difference, lost, gained, images):
    """Tango's z of the hypothesis p(lost) − p(gained) = difference; McNemar's (without correction) at 0."""
    b = (2 * images - lost + gained) * difference - lost - gained
    c = -gained * difference * (1 - difference)
    p_gained = (np.sqrt(np.maximum(b * b - 8 * images * c, 0)) - b) / (4 * images)  # the likeliest under the hypothesis
    deviation = np.asarray(lost - gained - images * difference)
    variance = np.asarray(images * (2 * p_gained + difference * (1 - difference)))
    certain = np.where(deviation == 0, 0.0, np.copysign(np.inf, deviation))  # a hypothesis that leaves no chance
    return np.divide(deviation, np.sqrt(np.maximum(variance, 0)), out=certain, where=variance > 0)


def _paired_counts(lost, gained, images):
    arrays = [np.asarray(values, dtype=float) for values in (lost, gained, images)]
    shapes = [array.shape for array in arrays]
    if len({shape for shape in shapes if shape}) > 1 or not all(array.size for array in arrays):
        raise ValueError(f"lost, gained and images must be numbers or arrays of one shape, not empty, got {shapes}")
    lost, gained, images = arrays
    wrong = ~((lost >= 0) & (gained >= 0) & (images >= 1) & (lost + gained <= images))
    for array in arrays:
        wrong = wrong | (array != np.floor(array))
    if wrong.any():
        first = [values.ravel()[wrong.argmax()] for values in np.broadcast_arrays(*arrays)]
        raise ValueError("lost and gained must be whole numbers of at least 0, together at most images; "
                         "got lost {:g}, gained {:g}, images {:g}".format(*first))
    return arrays


def check_level(level: float) -> float:
    """Return `level` if it is a confidence level."""
    if not 0 < level < 1:
        raise ValueError(f"level must be above 0 and below 1, got {level!r}")
    return level


def barrier(position, accuracy) -> float:
    """The most that accuracy, a fraction, falls below the straight line between a path's ends, in points; at least 0.

    `position`, `accuracy`: (steps,), positions ascending. Source: Entezari et al., ICLR 2022 (there of the loss).
    """
    position, accuracy = np.asarray(position, dtype=float), np.asarray(accuracy, dtype=float)
    if position.ndim != 1 or position.shape != accuracy.shape or len(position) < 2 or not (np.diff(position) > 0).all():
        raise ValueError(f"position and accuracy must be (steps,), positions ascending, got {position} and {accuracy}")
    return float(100 * (np.interp(position, position[[0, -1]], accuracy[[0, -1]]) - accuracy).max())


# ---- losses, and the one-point rank of a curve -------------------------------------------------------------------

def norm_loss(norm_kept):
    """λ = 1 − ν."""
    return 1 - np.asarray(norm_kept)


def as_norm_loss(loss, reading: str):
    """The λ at which a truncation's `loss`, read as "lambda", "w" or "epsilon", is reached: ν² = 1 − w = 1 − ε².

    w, the discarded weight, is the truncation error of the tensor-network field.

    10 % read as w is λ 0.051, read as ε it is λ 0.005. Raises `ValueError` for another reading, or loss outside [0, 1].
    """
    loss = np.asarray(loss, dtype=float)
    if not ((loss >= 0) & (loss <= 1)).all():
        raise ValueError(f"loss must be from 0 to 1, got {loss}")
    match reading:
        case "lambda":
            return loss
        case "w":
            return 1 - np.sqrt(1 - loss)
        case "epsilon":
            return 1 - np.sqrt(1 - loss**2)
    raise ValueError(f"unknown reading {reading!r}: it takes 'lambda', 'w' or 'epsilon'")


@dataclass(frozen=True)
class OnePoint:
    """Where a curve stops being harmless; numbers, or arrays when several sets of harmless steps were given.

    `one_point_rank`: the last rank before the first that is not harmless, and `next_rank` that one.
    `lambda_star`, `epsilon_reached`: the largest loss and error on the way to it; `lambda_next`, `epsilon_next`:
    those of `next_rank`: (star or reached, next) is the grid's bracket. `epsilon_star`: what ratios take.
    `censored`: "none", or "below" the grid's first step (nothing is harmless: `one_point_rank` is max_rank,
    `lambda_star` and `epsilon_reached` are 0, as at full rank, and `epsilon_star` is half of that step's ε), or
    "above" its last (all are: `next_rank` is 0, what belongs to it NaN, and `epsilon_star` is the last step's ε).
    """

    one_point_rank: np.ndarray
    next_rank: np.ndarray
    lambda_star: np.ndarray
    lambda_next: np.ndarray
    epsilon_star: np.ndarray
    epsilon_reached: np.ndarray
    epsilon_next: np.ndarray
    censored: np.ndarray


def one_point(ranks, max_rank, norm_kept, relative_error, harmless) -> OnePoint:
    """λ*, ε* and the one-point rank of one curve, from the first step below full rank down to the last.

    `ranks`, `norm_kept`, `relative_error`: (steps,), ranks descending, all below `max_rank`; a curve without ranks,
    such as a shrink's, has its ν for them and 1 for `max_rank`. `harmless`: bool (..., steps), so that one call serves
    all replicates of a bootstrap. Harmless steps below a harmful one do not count: curves are not monotone. Between the
    last harmless step and the next, ε* is their geometric middle. Raises `ValueError` for other shapes or orders.
    """
    ranks, nu, epsilon = (np.asarray(values) for values in (ranks, norm_kept, relative_error))
    harmless = np.asarray(harmless)
    if ranks.ndim != 1 or not ranks.size or not ranks.shape == nu.shape == epsilon.shape == harmless.shape[-1:]:
        raise ValueError("ranks, norm_kept and relative_error must be (steps,) and harmless (..., steps), not empty, "
                         f"got {ranks.shape}, {nu.shape}, {epsilon.shape} and {harmless.shape}")
    if harmless.dtype != bool or not (np.diff(ranks, prepend=max_rank) < 0).all() or not ranks[-1] > 0:
        raise ValueError(f"harmless must be bool and ranks must descend from below {max_rank} to above 0, "
                         f"got {harmless.dtype} and {ranks.tolist()}")
    if not (np.isfinite(nu).all() and np.isfinite(epsilon).all() and (epsilon >= 0).all()):
        raise ValueError(f"norm_kept must be finite and relative_error at least 0, "
                         f"got {nu.tolist()} and {epsilon.tolist()}")
    steps = np.logical_and.accumulate(harmless, axis=-1).sum(-1)  # before the first that is not harmless
    at_step = lambda first, values: np.append(first, values)[steps]
    at_next = lambda values, last: np.append(values, last)[steps]
    reached, following = at_step(0, np.maximum.accumulate(epsilon)), at_next(epsilon, np.nan)
    below, above = steps == 0, steps == len(ranks)
    return OnePoint(
        one_point_rank=at_step(max_rank, ranks), next_rank=at_next(ranks, 0),
        lambda_star=at_step(0, np.maximum.accumulate(np.maximum(norm_loss(nu), 0))),
        lambda_next=at_next(norm_loss(nu), np.nan),
        epsilon_star=np.select([below, above], [following / 2, reached], np.sqrt(reached * following))[()],
        epsilon_reached=reached, epsilon_next=following,
        censored=np.select([below, above], ["below", "above"], "none")[()])


def one_points(cells: pd.DataFrame, by=("layer", "cut")) -> pd.DataFrame:
    """`one_point` of every curve in a table of cells: one row for each value of the columns `by`, in their order.

    `cells` has `rank, max_rank, norm_kept, relative_error, images, lost, gained`; a rank twice in one curve, as where
    `by` lacks a seed or a draw, raises `ValueError`.
    """
    if len(cells) and not harmless(0, 0, fewest := cells["images"].min()):
        warnings.warn(f"{fewest} images cannot show that a drop is below {MARGIN:g} point, even where no answer is lost (268 can): "
                      "nothing counts as harmless", stacklevel=2)
    fine = harmless(cells["lost"], cells["gained"], cells["images"]) if len(cells) else []
    ordered = cells.assign(harmless=fine).sort_values("rank", ascending=False)
    ranks, most, nu, epsilon, fine = (ordered[name].to_numpy() for name in ("rank", "max_rank", "norm_kept", "relative_error", "harmless"))
    rows = []
    for key, curve in ordered.groupby(list(by) if len(by) > 1 else by[0], sort=False, observed=True).indices.items():  # places in `ordered`
        found = one_point(ranks[curve], most[curve[0]], nu[curve], epsilon[curve], fine[curve])
        rows.append(dict(zip(by, key if len(by) > 1 else (key,))) | {name: value.item() for name, value in vars(found).items()})
    columns = [*by, *(field.name for field in dataclasses.fields(OnePoint))]  # of no curve, too
    return pd.DataFrame(rows, columns=columns).sort_values(list(by), ignore_index=True)


def harmless_error_ratios(cells: pd.DataFrame, noise: pd.DataFrame) -> pd.DataFrame:
    """ε* of each curve of truncations over that of its matched noise: one row for each seed, layer and cut that both tables have.

    Columns: `seed, layer, cut, epsilon_star`, `noise_epsilon_star` (the geometric mean over draws), `ratio`. Above 1 a
    truncation may be larger than noise of the same norm and error before it does harm. `cells` and `noise` as in
    `one_points`, `noise` with a column `draw`.
    """
    by = ["seed", "layer", "cut"]
    truncated = one_points(cells, by)[[*by, "epsilon_star"]]
    drawn = one_points(noise, (*by, "draw"))
    drawn = np.exp(np.log(drawn["epsilon_star"]).groupby([drawn[name] for name in by], sort=False).mean())
    both = truncated.merge(drawn.rename("noise_epsilon_star").reset_index(), on=by)
    return both.assign(ratio=both["epsilon_star"] / both["noise_epsilon_star"])
