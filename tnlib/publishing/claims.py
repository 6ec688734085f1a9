"""The tests of the claims: each statistic from tables of results, and the verdict that it leads to.

Thresholds come from book/claims.yml; what that file leaves open is decided here, once, and tested:

- *The bound of refutation* is the file's own where it names one (claim 2: a ratio of 1). For a share it is half of the share
  asked for: a quarter, below which it is not even "partly". For a difference or a deficit it is 0, no effect.
- *reproduced*: the estimate reaches the threshold and the whole interval lies above the bound. *partly* (shares only): the
  interval lies above the bound, the estimate below the threshold. *not reproduced*: the whole interval lies below the bound.
  *inconclusive*: anything else: the interval straddles the bound, or lies above it with an effect smaller than was asked for.
- Where a test has several parts, all are needed: the claim has the verdict of the worst.
- One network says nothing on others: its verdict is *inconclusive*, whatever its numbers.
- Holm's correction makes a verdict *inconclusive* where the adjusted p exceeds α, and never better.
"""

import dataclasses
import math
from dataclasses import dataclass

import numpy as np
import pandas as pd
import yaml
from scipy import stats

from ..experiments.drops import LEVEL, as_norm_loss, harmless
from ..experiments.files import ROOT
from ..experiments.retraining import CASES
from ..experiments.statistics import Interval, holm, student_interval

CLAIMS, AMENDMENTS = ROOT / "book" / "claims.yml", ROOT / "book" / "claims-amendments.yml"
REPRODUCED, PARTLY, NOT_REPRODUCED, INCONCLUSIVE, NOT_TESTED = VERDICTS = (
    "reproduced", "partly", "not reproduced", "inconclusive", "not tested")
WORST_FIRST = (NOT_TESTED, NOT_REPRODUCED, INCONCLUSIVE, PARTLY, REPRODUCED)
ALPHA = 1 - LEVEL
SHALLOW, DEEP = "conv2", "conv4"  # claim 1b's layers 2 and 4 of the vanilla network


def read_claims() -> dict:
    """book/claims.yml, its list `claims` as a dict by id."""
    claims = yaml.safe_load(CLAIMS.read_text(encoding="utf-8"))
    return claims | {"claims": {claim["id"]: claim for claim in claims["claims"]}}


def read_amendments() -> list[dict]:
    """The dated amendments to the claims: `date, claim, change, reason` each."""
    return yaml.safe_load(AMENDMENTS.read_text(encoding="utf-8"))


# ---- one number against its threshold ----------------------------------------------------------------------------

@dataclass(frozen=True)
class Part:
    """One statistic of a test: `.values`, one a network, of what `.name` says, from `.comparisons` cells or cases in all.

    `.kind`: "share" (a fraction of cells or cases), "ratio" (averaged as a geometric mean), "difference" (of λ*, of shares),
    "points" (of accuracy), or "sign" (a difference of which only the sign is asked for, in networks beside the pair's own).
    Without a `.threshold` it is shown beside, and judged by nobody. `.bound`: the bound of refutation. `.check`: the interval
    of a bootstrap crossed over networks and images.
    """

    name: str
    values: tuple[float, ...]
    kind: str
    threshold: float | None = None
    bound: float | None = None
    comparisons: int = 0
    check: Interval | None = None

    @property
    def interval(self) -> Interval:
        """The mean over networks and Student's t interval: of the logarithms for a ratio, within 0 and 1 for a share."""
        if self.kind == "ratio":
            found = student_interval(np.log(self.values))
            return Interval(*(math.exp(end) for end in (found.estimate, found.low, found.high)), found.n)
        found = student_interval(self.values)
        if self.kind != "share" or found.n == 1:
            return found
        return Interval(found.estimate, max(found.low, 0.0), min(found.high, 1.0), found.n)

    @property
    def p(self) -> float | None:
        """Two-sided p of the t test against the bound; none for a sign, for one network, or where nothing is asked."""
        if self.bound is None or self.kind == "sign" or len(self.values) < 2:
            return None
        values, bound = np.array(self.values), self.bound
        if self.kind == "ratio":
            values, bound = np.log(values), math.log(bound)
        if np.ptp(values) == 0:  # no spread: t is infinite, or 0/0 at the bound
            return 1.0 if values[0] == bound else 0.0
        return float(stats.ttest_1samp(values, bound).pvalue)

    @property
    def verdict(self) -> str | None:
        """What this number alone says, by the rules at the top of the module; None where nothing is asked of it."""
        return None if self.threshold is None else decide(self.interval, self.threshold, self.bound, self.kind)


def decide(interval: Interval, threshold: float, bound: float, kind: str = "difference") -> str:
    """The verdict on one number: see the rules at the top of the module. `kind` as in `Part`."""
    if kind == "sign":  # no interval is asked for, and the other sign refutes nothing: it leaves depth and width together
        return REPRODUCED if interval.estimate > bound else INCONCLUSIVE
    if interval.n == 1:
        return INCONCLUSIVE
    at_bound = kind == "share"  # a quarter is "partly"; a ratio of 1 is refuted
    if interval.high < bound or (interval.high == bound and not at_bound):
        return NOT_REPRODUCED
    if interval.low > bound or (interval.low == bound and at_bound):
        if interval.estimate >= threshold:
            return REPRODUCED
        if kind == "share":
            return PARTLY
    return INCONCLUSIVE


def _share(name, asked, values, comparisons) -> Part:
    return Part(name, tuple(values), "share", asked, asked / 2, comparisons)


# ---- the tests ---------------------------------------------------------------------------------------------------

def harmless_truncations(points: pd.DataFrame, thresholds: dict, reading: str = "lambda") -> tuple[Part, ...]:
    """Claim 1a: the share of cells whose λ* reaches the threshold, and that of layers with enough such cuts.

    `points`: `one_points` by seed, layer and cut. `reading`: of the threshold, as in `as_norm_loss`.
    """
    reached = points["lambda_star"] >= as_norm_loss(thresholds["lambda_star"], reading)
    cuts = reached.groupby([points["seed"], points["layer"]]).sum()
    layers = (cuts >= thresholds["cuts_per_layer"]).groupby(level="seed").mean()
    return (_share(f"cells with λ* of at least {as_norm_loss(thresholds['lambda_star'], reading):.2g}",
                   thresholds["share_of_cells"], reached.groupby(points["seed"]).mean(), len(points)),
            _share(f"layers with at least {thresholds['cuts_per_layer']} such cuts",
                   thresholds["share_of_layers"], layers, len(cuts)))


def share_of_curves(name: str, points: pd.DataFrame, loss: float) -> Part:
    """A control of claim 1a: the share of curves whose λ* reaches `loss`, for each network (all its draws together)."""
    reached = points["lambda_star"] >= loss
    return Part(name, tuple(reached.groupby(points["seed"]).mean()), "share", comparisons=len(points))


def depth_differences(points: pd.DataFrame) -> pd.Series:
    """Mean over cuts of λ*(layer 4) − λ*(layer 2), by seed."""
    means = points.groupby(["seed", "layer"])["lambda_star"].mean().unstack()
    return means[DEEP] - means[SHALLOW]


def deeper_layers(points: pd.DataFrame | None, others: dict[str, pd.DataFrame], thresholds: dict) -> tuple[Part, ...]:
    """Claim 1b, vanilla: the difference of λ* between layers 4 and 2, and its sign in the networks `others` of other widths."""
    parts = [] if points is None else [Part(
        "λ* of layer 4 − layer 2, mean over cuts", tuple(depth_differences(points)), "difference",
        thresholds["vanilla_difference"], thresholds["vanilla_interval_above"], _in_both_layers(points))]
    if thresholds["same_sign_in_other_widths"]:
        parts += [Part(f"its sign in {name}", tuple(depth_differences(found)), "sign", 0.0, 0.0, _in_both_layers(found))
                  for name, found in others.items()]
    return tuple(parts)


def _in_both_layers(points):
    return int(points["layer"].isin([SHALLOW, DEEP]).sum())


def correlation_compression(ratios, deficits, without_decay, thresholds: dict) -> tuple[Part, ...]:
    """Claim 2: (i) ε* over that of matched noise, (ii) the entropy deficit, (iii) the same without weight decay.

    `ratios`: `harmless_error_ratios`. `deficits`, `without_decay`: `summary` of spectra; the kernels in the balanced gauge at
    cuts of a large enough rank are taken. A table may be None: its part is left out.
    """
    parts = []
    if ratios is not None:
        means = np.exp(np.log(ratios["ratio"]).groupby(ratios["seed"]).mean())
        parts.append(Part("(i) ε* of truncations over ε* of matched noise", tuple(means), "ratio", thresholds["ratio"],
                          thresholds["refuted_if_upper_bound_at_most"], len(ratios)))
    for name, table in (("(ii) median entropy deficit", deficits), ("(iii) the same without weight decay", without_decay)):
        if table is not None:
            values, cells = _median_deficits(table, "balanced", thresholds)
            parts.append(Part(name, values, "deficit", thresholds["median_deficit"], 0.0, cells))
    return tuple(parts)


def deficit_in(gauge: str, deficits: pd.DataFrame, thresholds: dict) -> Part:
    """A control of claim 2: the median deficit in another gauge."""
    values, cells = _median_deficits(deficits, gauge, thresholds)
    return Part(f"median entropy deficit in a {gauge} gauge", values, "deficit", comparisons=cells)


def _median_deficits(table, gauge, thresholds):
    chosen = table[(table["gauge"] == gauge) & (table["kind"] == "kernel") & (table["max_rank"] >= thresholds["least_max_rank"])]
    return tuple(chosen.groupby("seed")["deficit_share"].median()), len(chosen)


def arm_at(runs: pd.DataFrame, arm: str, epoch: int) -> pd.DataFrame:
    """The rows of an arm after `epoch`, by (seed, cut, strength) or, for runs without a truncation, by seed."""
    rows = runs[(runs["arm"] == arm) & (runs["epoch"] == epoch)]
    by = ["seed"] if (rows["cut"] == "none").all() else ["seed", "cut", "strength"]
    return rows.set_index(by).sort_index()


def recovered(runs: pd.DataFrame, thresholds: dict, arm: str = "free", epoch: int | None = None) -> Part:
    """Claim 3: the share of cases that are not inferior to the untruncated network after `epoch` (default: the last allowed).

    At that one epoch, not at the best up to it, which would be chosen on the test images. `runs`: the rows of
    "retraining". Of another arm than "free", or after another epoch, the number stands beside and is not judged.
    """
    last = thresholds["epochs"]
    rows = arm_at(runs, arm, last if epoch is None else epoch)
    good = pd.Series(harmless(rows["lost"], rows["gained"], rows["images"], thresholds["margin_points"]), rows.index)
    share = _share(f"cases within {thresholds['margin_points']:g} point of the untruncated network after {last} epochs",
                   thresholds["share_of_cases"], good.groupby(level="seed").mean(), len(good))
    if arm == "free" and epoch is None:
        return share
    return dataclasses.replace(share, name=f"{arm}, after {last if epoch is None else epoch} epochs", threshold=None, bound=None)


def specificity(runs: pd.DataFrame, thresholds: dict, asked: float) -> Part:
    """Claim 3's verdict of its own: accuracy of the truncated minus that of the matched-noise network, points, mean over cases."""
    free, noise = (arm_at(runs, arm, thresholds["epochs"])["accuracy"] for arm in ("free", "noise"))
    return Part("truncated − matched noise after the same epochs", tuple((100 * (free - noise)).groupby(level="seed").mean()),
                "points", asked, 0.0, len(free))


def barrier(path: pd.DataFrame) -> float:
    """Points of accuracy by which a path dips below the straight line between its ends; at least 0.

    `path`: rows with `position` from 0 to 1 and `accuracy`, a fraction.
    """
    path = path.sort_values("position")
    accuracy, position = path["accuracy"].to_numpy(), path["position"].to_numpy()
    return float(100 * (accuracy[0] + position * (accuracy[-1] - accuracy[0]) - accuracy).max())


def minima(runs: pd.DataFrame, paths: pd.DataFrame, arm: str = "free") -> pd.DataFrame:
    """What claim 4 compares, by (seed, cut, strength): `ratio` of the last training losses to the continued run's,
    `difference` of the last test losses, `barrier` between them and `reference` between two continued runs, both in points."""
    last = runs["epoch"].max()
    ours, continued = arm_at(runs, arm, last), arm_at(runs, "continued", last)
    found = pd.DataFrame({"ratio": ours["train_loss"].div(continued["train_loss"], level="seed"),
                          "difference": ours["loss"].sub(continued["loss"], level="seed")})
    own = {key: barrier(path) for key, path in paths[paths["arm"] == "free"].groupby(["seed", "cut", "strength"])}
    between = {seed: barrier(path) for seed, path in paths[paths["arm"] == "reordered"].groupby("seed")}
    return found.assign(barrier=[own[key] for key in found.index],
                        reference=[between[seed] for seed in found.index.get_level_values("seed")])


def same_minimum(runs: pd.DataFrame, paths: pd.DataFrame, thresholds: dict) -> tuple[Part, ...]:
    """Claim 4: the share of cases that end where training alone would have led; then each of the three conditions alone.

    `runs`, `paths`: the rows of "retraining" and "paths".
    """
    found = minima(runs, paths)
    allowed = np.maximum(thresholds["barrier_points"], found["reference"]) \
        if thresholds["or_barrier_between_two_continued_runs"] else thresholds["barrier_points"]
    good = {"training loss": found["ratio"] <= thresholds["training_loss_ratio"],
            "test loss": found["difference"] <= thresholds["test_loss_difference"], "barrier": found["barrier"] <= allowed}
    every = pd.DataFrame(good).all(axis=1)
    return (_share("cases that end no worse than the untruncated network trained on", thresholds["share_of_cases"],
                   every.groupby(level="seed").mean(), len(found)),
            *(Part(f"of which by {name} alone", tuple(each.groupby(level="seed").mean()), "share", comparisons=len(found))
              for name, each in good.items()))


def missing_cases(runs: pd.DataFrame, paths: pd.DataFrame | None, epochs: int) -> list[str]:
    """Which of the cases listed beforehand a network lacks, in words; `epochs`: the last one needed."""
    lacking = []
    for seed, rows in runs.groupby("seed"):
        there = set(rows.loc[rows["epoch"] == epochs, ["cut", "strength", "arm"]].itertuples(index=False, name=None))
        wanted = {(case.cut, case.strength, arm) for case in CASES for arm in ("free", "noise")} | {("none", 1.0, "continued")}
        lacking += [f"seed {seed}: no {arm} of {cut} at {strength:g} after {epochs} epochs"
                    for cut, strength, arm in sorted(wanted - there)]
        if paths is not None:
            there = set(paths.loc[paths["seed"] == seed, ["cut", "strength"]].itertuples(index=False, name=None))
            lacking += [f"seed {seed}: no path of {cut} at {strength:g}" for cut, strength in
                        sorted(({(case.cut, case.strength) for case in CASES} | {("none", 1.0)}) - there)]
    return lacking


# ---- from parts to a verdict ----------------------------------------------------------------------------------------

@dataclass(frozen=True)
class Verdict:
    """What is found of one claim on one pair of network and data set.

    `.parts`: the statistics that decide, the leading one first; `.beside`: what is shown without a say, controls among it.
    `.verdict` is one of `VERDICTS`, after Holm's correction (`.adjusted`), `.reason` says why. Where it is "not tested",
    `.missing` says what would test it, and the numbers there are, if any, are *reduced*. `.readings`: claim 1a's verdict
    for each reading of "10 %". `.networks`: seeds behind the leading number. `.tables`: the names of the result files.
    """

    claim: str
    model: str
    dataset: str
    verdict: str
    reason: str
    parts: tuple[Part, ...] = ()
    beside: tuple[Part, ...] = ()
    adjusted: float | None = None
    readings: dict[str, str] = dataclasses.field(default_factory=dict)
    tables: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()

    @property
    def p(self) -> float | None:
        return joint_p(self.parts)

    @property
    def words(self) -> str:
        """The verdict, and with its readings where they differ."""
        if len(set(self.readings.values())) < 2:
            return self.verdict
        names = {"lambda": "λ", "w": "w", "epsilon": "ε"}
        return "; ".join(f"{verdict} (10 % read as {names[reading]})" for reading, verdict in self.readings.items())


def worst(parts: tuple[Part, ...]) -> str:
    """The verdict of several parts, all of which are needed."""
    return min((part.verdict for part in parts), key=WORST_FIRST.index, default=NOT_TESTED)


def joint_p(parts: tuple[Part, ...]) -> float | None:
    """The p of a test whose parts are all needed.

    The largest one; where parts refute, any of which would do, the smallest of theirs times the number of parts (Bonferroni).
    """
    tested = [part for part in parts if part.p is not None]
    refuting = [part.p for part in tested if part.verdict == NOT_REPRODUCED]
    if refuting:
        return min(1.0, len(tested) * min(refuting))
    return max((part.p for part in tested), default=None)


def corrected(verdicts: list[Verdict]) -> list[Verdict]:
    """The verdicts of one pair's primary tests after Holm's correction, those that could not be made counted with the rest."""
    with_p = [verdict for verdict in verdicts if verdict.verdict != NOT_TESTED and verdict.p is not None]
    if not with_p:
        return verdicts
    adjusted = {id(verdict): float(p) for verdict, p in zip(with_p, holm([v.p for v in with_p], tests=len(verdicts)))}
    found = []
    for verdict in verdicts:
        p = adjusted.get(id(verdict))
        if p is not None and p > ALPHA and verdict.verdict != INCONCLUSIVE:
            verdict = dataclasses.replace(verdict, verdict=INCONCLUSIVE, reason=(
                f"{verdict.verdict} by its own interval, but among {len(verdicts)} tests p is {p:.2g} after Holm's correction"))
        found.append(dataclasses.replace(verdict, adjusted=p))
    return found


def overall(verdicts: list[str], needed: int = 3) -> str:
    """One claim over its pairs: what at least `needed` of them say; with fewer verdicts than that, "not tested"."""
    if sum(verdict != NOT_TESTED for verdict in verdicts) < needed:
        return NOT_TESTED
    return next((word for word in (REPRODUCED, NOT_REPRODUCED) if verdicts.count(word) >= needed), INCONCLUSIVE)


def reason_of(parts: tuple[Part, ...], verdict: str) -> str:
    """Why the parts lead to `verdict`, naming the part that decides."""
    deciding = next(part for part in parts if part.verdict == verdict)
    if verdict == REPRODUCED:
        return "all thresholds are met, and every interval lies above the bound of refutation"
    if verdict == PARTLY:
        return f"{deciding.name}: the interval lies above {deciding.bound:g}, the estimate below {deciding.threshold:g}"
    if verdict == NOT_REPRODUCED:
        return f"{deciding.name}: the whole interval lies below the bound of refutation, {deciding.bound:g}"
    if deciding.kind == "sign":
        return f"{deciding.name} is the other one: depth and width are not told apart"
    if deciding.interval.n == 1:
        return "one network, which says nothing on others"
    if deciding.interval.low > deciding.bound:
        return (f"{deciding.name}: above the bound of refutation, {deciding.bound:g}, but smaller than the "
                f"{deciding.threshold:g} asked for")
    return f"{deciding.name}: the interval straddles the bound of refutation, {deciding.bound:g}"
