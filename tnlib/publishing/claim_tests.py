"""The tests of the claims, one function each: from tables of results to the numbers that book/claims.yml asks for.

Thresholds are always the file's: `thresholds` is a claim's own, or the same with one changed.
"""

import dataclasses

import numpy as np
import pandas as pd

from ..experiments.drops import as_norm_loss, barrier, harmless
from ..experiments.retraining import CASES
from ..experiments.statistics import kendall
from .claims import Part, share_part

SHALLOW, DEEP = "conv2", "conv4"  # claim 1b's layers 2 and 4 of the vanilla network
ROUNDING = 1e-9  # a kernel shrunk to 0.9 has λ = 1 − 0.9 = 0.09999999999999998
ASKED_GAUGES = ("balanced", "folded")  # in which claim 2 is asked: a network has one of them
WITHOUT_DECAY = "(iii) the same without weight decay"  # a part that other networks decide


def reached(lambda_star, loss: float):
    """Whether λ* is at least `loss`, element by element."""
    return lambda_star >= loss - ROUNDING


def harmless_truncations(points: pd.DataFrame, thresholds: dict, reading: str = "lambda") -> tuple[Part, ...]:
    """Claim 1a: the share of cells whose λ* reaches the threshold, and that of layers with enough such cuts.

    `points`: `one_points` by seed, layer and cut. `reading`: of the threshold, as in `as_norm_loss`.
    """
    loss = as_norm_loss(thresholds["lambda_star"], reading)
    enough = reached(points["lambda_star"], loss)
    cuts = enough.groupby([points["seed"], points["layer"]]).sum()
    layers = (cuts >= thresholds["cuts_per_layer"]).groupby(level="seed").mean()
    return (share_part(f"cells with λ* of at least {loss:.2g}",
                   thresholds["share_of_cells"], enough.groupby(points["seed"]).mean(), len(points)),
            share_part(f"layers with at least {thresholds['cuts_per_layer']} cuts of λ* ≥ {loss:.2g}",
                   thresholds["share_of_layers"], layers, len(cuts)))


def share_of_curves(name: str, points: pd.DataFrame, loss: float) -> Part:
    """A control of claim 1a: the share of curves whose λ* reaches `loss`, for each network (all its draws together)."""
    enough = reached(points["lambda_star"], loss)
    return Part(name, tuple(enough.groupby(points["seed"]).mean()), "share", comparisons=len(points))


def depth_differences(points: pd.DataFrame) -> pd.Series:
    """Mean over cuts of λ*(layer 4) − λ*(layer 2), by seed."""
    means = points.groupby(["seed", "layer"])["lambda_star"].mean().unstack()
    return means[DEEP] - means[SHALLOW]


def deeper_layers(points: pd.DataFrame | None, others: dict[str, pd.DataFrame], thresholds: dict) -> tuple[Part, ...]:
    """Claim 1b, vanilla: λ* of layer 4 minus that of layer 2, and its sign in the networks `others` of other widths."""
    parts = [] if points is None else [Part(
        "λ* of layer 4 − layer 2, mean over cuts", tuple(depth_differences(points)), "difference",
        thresholds["vanilla_difference"], thresholds["vanilla_interval_above"], _in_both_layers(points))]
    if thresholds["same_sign_in_other_widths"]:
        parts += [Part(f"its sign in {name}", tuple(depth_differences(found)), "sign", 0.0, 0.0, _in_both_layers(found))
                  for name, found in others.items()]
    return tuple(parts)


def deeper_in_blocks(points: pd.DataFrame, thresholds: dict) -> tuple[Part, ...]:
    """Claim 1b, ResNet-50: Kendall's τ of λ* and depth among kernels of one size and position in the block; and, of these,
    among those of one stage, whose channels are as many.

    `points`: `one_points` with `depth, size, position, stage`. λ* is a layer's mean over its cuts, as for vanilla: a layer
    counts once.
    """
    alike = ["size", "position"]
    layers = points.groupby(["seed", "layer", "depth", "stage", *alike], observed=True)["lambda_star"].mean().reset_index()

    def taus(within):  # where all λ* are equal τ is not defined, and there is no trend
        return tuple(np.nan_to_num(kendall(found, "lambda_star", "depth", within)) for _, found in layers.groupby("seed"))

    return tuple(Part(f"τ of λ* and depth, {name}", taus(within), "correlation", thresholds["resnet50_tau"],
                      thresholds["resnet50_lower_bound_above"], len(layers))
                 for name, within in (("kernels of one size and position", alike),
                                      ("the same within stages", [*alike, "stage"])))


def _in_both_layers(points):
    return int(points["layer"].isin([SHALLOW, DEEP]).sum())


def correlation_compression(ratios, deficits, without_decay, thresholds: dict) -> tuple[Part, ...]:
    """Claim 2: (i) ε* over that of matched noise, (ii) the entropy deficit, (iii) the same without weight decay.

    `ratios`: `harmless_error_ratios`. `deficits`, `without_decay`: `summary` of spectra; the kernels in the balanced
    gauge, or with batch norm in the folded one, at cuts of a large enough rank are taken. A table may be None: its part is left out.
    """
    parts = []
    if ratios is not None and len(ratios):
        means = np.exp(np.log(ratios["ratio"]).groupby(ratios["seed"]).mean())
        parts.append(Part("(i) ε* of truncations over ε* of matched noise", tuple(means), "ratio", thresholds["ratio"],
                          thresholds["refuted_if_upper_bound_at_most"], len(ratios)))
    for name, table in (("(ii) median entropy deficit", deficits),
                        (WITHOUT_DECAY, without_decay)):
        if table is not None:
            values, cells = _median_deficits(table, ASKED_GAUGES, thresholds)
            parts.append(Part(name, values, "deficit", thresholds["median_deficit"], 0.0, cells))
    return tuple(parts)


def deficit_in(gauge: str, deficits: pd.DataFrame, thresholds: dict) -> Part:
    """A control of claim 2: the median deficit in another gauge."""
    values, cells = _median_deficits(deficits, (gauge,), thresholds)
    return Part(f"median entropy deficit in a {gauge} gauge", values, "deficit", comparisons=cells)


def _median_deficits(table, gauges, thresholds):
    chosen = table[table["gauge"].isin(gauges) & (table["kind"] == "kernel")
                   & (table["max_rank"] >= thresholds["least_max_rank"])]
    return tuple(chosen.groupby("seed")["deficit_share"].median()), len(chosen)


def arm_at(runs: pd.DataFrame, arm: str, epoch: int) -> pd.DataFrame:
    """The rows of an arm after `epoch`, by (seed, cut, strength) or, for runs without a truncation, by seed."""
    rows = runs[(runs["arm"] == arm) & (runs["epoch"] == epoch)]
    by = ["seed"] if (rows["cut"] == "none").all() else ["seed", "cut", "strength"]
    return rows.set_index(by).sort_index()


def recovered(runs: pd.DataFrame, thresholds: dict, arm: str = "free", epoch: int | None = None) -> Part:
    """Claim 3: the share of cases not inferior to the untruncated network after `epoch` (default: the last allowed).

    At that one epoch, not at the best up to it, which would be chosen on the test images. `runs`: the rows of
    "retraining". Of another arm than "free", or after another epoch, the number stands beside and is not judged.
    """
    last = thresholds["epochs"]
    rows = arm_at(runs, arm, last if epoch is None else epoch)
    good = pd.Series(harmless(rows["lost"], rows["gained"], rows["images"], thresholds["margin_points"]), rows.index)
    after = lambda epochs: f"after {epochs} epoch{'s' if epochs > 1 else ''}"
    share = share_part(f"cases within {thresholds['margin_points']:g} point of before {after(last)}",
                       thresholds["share_of_cases"], good.groupby(level="seed").mean(), len(good))
    if arm == "free" and epoch is None:
        return share
    name = f"{arm}, {after(last if epoch is None else epoch)}"
    return dataclasses.replace(share, name=name, threshold=None, bound=None)


def specificity(runs: pd.DataFrame, thresholds: dict, asked: float) -> Part:
    """Claim 3's verdict of its own: accuracy of the truncated minus that of the matched-noise network, in points."""
    free, noise = (arm_at(runs, arm, thresholds["epochs"])["accuracy"] for arm in ("free", "noise"))
    return Part("truncated − matched noise after the same epochs",
                tuple((100 * (free - noise)).groupby(level="seed").mean()), "points", asked, 0.0, len(free))


def _barrier(path: pd.DataFrame) -> float:
    path = path.sort_values("position")
    return barrier(path["position"], path["accuracy"])


def minima(runs: pd.DataFrame, paths: pd.DataFrame) -> pd.DataFrame:
    """What claim 4 compares with the continued run, of the freely re-trained networks, by (seed, cut, strength).

    `ratio` of the last training losses, `difference` of the last test losses, `barrier` on the path between them and
    `reference` on that between two continued runs, both in points.
    """
    last = runs["epoch"].max()
    ours, continued = arm_at(runs, "free", last), arm_at(runs, "continued", last)
    found = pd.DataFrame({"ratio": ours["train_loss"].div(continued["train_loss"], level="seed"),
                          "difference": ours["loss"].sub(continued["loss"], level="seed")})
    own = {key: _barrier(path) for key, path in paths[paths["arm"] == "free"].groupby(["seed", "cut", "strength"])}
    between = {seed: _barrier(path) for seed, path in paths[paths["arm"] == "reordered"].groupby("seed")}
    return found.assign(barrier=[own[key] for key in found.index],
                        reference=[between[seed] for seed in found.index.get_level_values("seed")])


def same_minimum(runs: pd.DataFrame, paths: pd.DataFrame, thresholds: dict) -> tuple[Part, ...]:
    """Claim 4: the share of cases that end where training alone would have led; then by each condition alone.

    `runs`, `paths`: the rows of "retraining" and "paths".
    """
    found = minima(runs, paths)
    allowed = np.maximum(thresholds["barrier_points"], found["reference"]) \
        if thresholds["or_barrier_between_two_continued_runs"] else thresholds["barrier_points"]
    good = {"training loss": found["ratio"] <= thresholds["training_loss_ratio"],
            "test loss": found["difference"] <= thresholds["test_loss_difference"],
            "barrier": found["barrier"] <= allowed}
    every = pd.DataFrame(good).all(axis=1)
    return (share_part("cases that end no worse than the untruncated network trained on", thresholds["share_of_cases"],
                   every.groupby(level="seed").mean(), len(found)),
            *(Part(f"by {name} alone", tuple(each.groupby(level="seed").mean()), "share", comparisons=len(found))
              for name, each in good.items()))


def compression_gains(rows: pd.DataFrame, other: str) -> pd.Series:
    """Accuracy with ranks chosen by maps minus that of the arm `other`, in points, after the last epoch, by (budget, seed)."""
    last = rows[rows["epoch"] == rows["epoch"].max()].set_index(["arm", "budget", "seed"])["accuracy"]
    return 100 * (last["map"] - last[other]).dropna()


def more_effective(rows: pd.DataFrame, thresholds: dict) -> tuple[Part, ...]:
    """Claim 5: at each budget the advantage of ranks chosen by maps over one rank fraction for all; and over a
    narrower dense network, at the budgets that count: the `at_least_budgets` with the largest advantage. The others stand beside.

    `rows`: those of "compression". That two or three of three are taken for being the largest makes no error likelier than α: p is of both tails,
    and an advantage is asked of one.
    """
    def of_budget(name, other, kind, asked, bound):
        gains = compression_gains(rows, other)
        return {budget: Part(f"{name} at {budget:g} of the parameters", tuple(gains[budget]), kind, asked, bound, len(gains[budget]))
                for budget in thresholds["of_budgets"]}

    gains = of_budget("ranks by map − one rank fraction,", "fraction", "points", thresholds["points"], thresholds["lower_bound_above"])
    best = sorted(gains, key=lambda budget: gains[budget].interval.estimate, reverse=True)
    count = best[:thresholds["at_least_budgets"]]
    beside = lambda part: dataclasses.replace(part, threshold=None, bound=None)
    parts = [gains[budget] if budget in count else beside(gains[budget]) for budget in gains]
    if thresholds["not_below_narrower_network"]:
        over = of_budget("ranks by map − a narrower network,", "narrower", "not below", 0.0, 0.0)
        parts += [over[budget] if budget in count else beside(over[budget]) for budget in over]
    return tuple(parts)


def missing_cases(runs: pd.DataFrame, paths: pd.DataFrame | None, epochs: int, cases=CASES) -> dict[int, list[str]]:
    """Seed → which of `cases`, those listed beforehand, a network lacks, in words; `epochs`: the last one needed."""
    lacking = {}
    for seed, rows in runs.groupby("seed"):
        there = set(rows.loc[rows["epoch"] == epochs, ["cut", "strength", "arm"]].itertuples(index=False, name=None))
        wanted = {("none", 1.0, "continued")}
        wanted |= {(case.cut, case.strength, arm) for case in cases for arm in ("free", "noise")}
        words = [f"no {arm} of {cut} at {strength:g} after {epochs} epochs" for cut, strength, arm in sorted(wanted - there)]
        if paths is not None:
            there = set(paths.loc[paths["seed"] == seed, ["cut", "strength"]].itertuples(index=False, name=None))
            words += [f"no path of {cut} at {strength:g}" for cut, strength in
                      sorted(({(case.cut, case.strength) for case in cases} | {("none", 1.0)}) - there)]
        if words:
            lacking[int(seed)] = words
    return lacking
