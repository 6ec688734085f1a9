"""What makes a verdict on a claim: a number, its interval, its threshold.

Thresholds come from book/claims.yml; what that file leaves open is decided here, once, and tested:

- *The bound of refutation* is the file's own where it names one (claim 2: a ratio of 1). For a share it is half of the
  share asked for: a quarter, below which it is not even "partly". For a difference or a deficit it is 0, no effect.
- *reproduced*: the estimate reaches the threshold and the whole interval lies above the bound. *partly* (shares only):
  the interval lies above the bound, the estimate below the threshold. *not reproduced*: the whole interval lies below
  the bound. *inconclusive*: anything else: the interval straddles the bound, or lies above it with an effect smaller
  than was asked for.
- Where a test has several parts, all are needed: the claim has the verdict of the worst.
- One network says nothing on others: its verdict is *inconclusive*, whatever its numbers (but for a sign, below).
- A share comes in steps of one cell. Where all networks have the same, its standard error is that of one network a step
  off, 1 / (cells of all networks), and not 0, with which two networks would refute a claim beyond all doubt.
- Where a sign is asked for, it is that of the mean, of one network too; the other sign is *inconclusive*.
- Where a number has only not to be below a bound, its mean decides, and an interval below the bound refutes.
- Holm's correction makes a verdict *inconclusive* where the adjusted p exceeds α, and never better.
"""

import dataclasses
import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import scipy
import yaml

from ..experiments.drops import LEVEL
from ..experiments.files import ROOT
from ..experiments.statistics import Interval, holm, student_interval

CLAIMS, AMENDMENTS = ROOT / "book" / "claims.yml", ROOT / "book" / "claims-amendments.yml"
REPRODUCED, PARTLY, NOT_REPRODUCED, INCONCLUSIVE, NOT_TESTED = VERDICTS = (
    "reproduced", "partly", "not reproduced", "inconclusive", "not tested")
WORST_FIRST = (NOT_TESTED, NOT_REPRODUCED, INCONCLUSIVE, PARTLY, REPRODUCED)
ALPHA = 1 - LEVEL
NEEDED = 3  # pairs of the four with the same verdict, for one over all of them
READINGS = {"lambda": "λ", "w": "w", "epsilon": "ε"}  # of "10 %", see `as_norm_loss`


def read_claims() -> dict:
    """book/claims.yml, its list `claims` as a dict by id. Raises `ValueError` for a file that is no YAML."""
    try:
        claims = yaml.load(CLAIMS.read_text(encoding="utf-8"), getattr(yaml, "CSafeLoader", yaml.SafeLoader))  # in C where it was built: each figure asks
    except yaml.YAMLError as error:
        raise ValueError(f"{CLAIMS} is not valid YAML: {error}") from None
    try:
        return claims | {"claims": {claim["id"]: claim for claim in claims["claims"]}}
    except (TypeError, KeyError) as error:
        raise ValueError(f"{CLAIMS} has no list of claims, each with an id: {type(error).__name__}: {error}") from None


def least_accuracy(model: str, dataset: str, claims: dict | None = None) -> float:
    """What a network must reach on the test images for a verdict, a fraction; 0 where nothing is asked.

    `claims`: as `read_claims` gives them, which is where they are taken from if None.
    """
    return (claims or read_claims())["verdicts"]["least_accuracy"].get(model, {}).get(dataset, 0)


# ---- one number against its threshold ----------------------------------------------------------------------------

@dataclass(frozen=True)
class Part:
    """One statistic of a test: `.values`, one a network, of what `.name` says, from `.comparisons` cells or cases.

    `.kind`: "share" (a fraction of cells or cases), "ratio" (averaged as a geometric mean), "difference" (of λ*),
    "deficit" (of entropy, as a fraction), "correlation" (Kendall's τ), "points" (of accuracy), "not below" (points that have only not to be
    below the bound), or "sign" (a difference of which only the sign is asked for, in networks beside the pair's own). Without a `.threshold` it is shown beside, and judged by nobody.
    `.bound`: the bound of refutation. `.check`: the interval of a bootstrap crossed over networks and images.
    """

    name: str
    values: tuple[float, ...]
    kind: str
    threshold: float | None = None
    bound: float | None = None
    comparisons: int = 0
    check: Interval | None = None

    @cached_property
    def interval(self) -> Interval:
        """Mean over networks and Student's t interval: of the logarithms for a ratio, within 0 and 1 for a share, and
        with a width also where all shares are the same."""
        if self.kind == "ratio":
            found = student_interval(np.log(self.values))
            return Interval(*(math.exp(end) for end in (found.estimate, found.low, found.high)), found.n)
        found = student_interval(self.values)
        if self.kind != "share" or found.n == 1:
            return found
        half = max(found.high - found.estimate, self._step * scipy.stats.t.isf(ALPHA / 2, found.n - 1))
        return Interval(found.estimate, max(found.estimate - half, 0.0), min(found.estimate + half, 1.0), found.n)

    @property
    def alike(self) -> bool:
        """Whether it is a share that is the same in all of several networks: interval and p are then a convention."""
        return self.kind == "share" and len(set(self.values)) == 1 < len(self.values)

    @property
    def _step(self) -> float:
        """The standard error of a share that is the same in all networks, as if one differed by one cell; else 0."""
        return 1 / self.comparisons if self.alike else 0.0

    @cached_property
    def p(self) -> float | None:
        """Two-sided p of the t test against the bound; none for a sign, for what has only not to be below it and is not refuted, for one
        network, or where nothing is asked."""
        if self.bound is None or self.kind == "sign" or len(self.values) < 2 or (
                self.kind == "not below" and self.verdict != NOT_REPRODUCED):
            return None
        values, bound = np.array(self.values), self.bound
        if self.kind == "ratio":
            values, bound = np.log(values), math.log(bound)
        if self.alike:
            return float(2 * scipy.stats.t.sf(abs(values[0] - bound) / self._step, len(values) - 1))
        if np.ptp(values) == 0:  # t is infinite, or 0/0 at the bound
            return 1.0 if values[0] == bound else 0.0
        return float(scipy.stats.ttest_1samp(values, bound).pvalue)

    def text(self, value: float) -> str:
        """A number of this kind, such as one end of the interval, for people."""
        return number_text(self.kind, value)

    @property
    def span(self) -> str:
        """The interval, for people."""
        at = self.interval
        return "one network" if at.n == 1 else f"{self.text(at.low)} to {self.text(at.high)}"

    @property
    def words(self) -> str:
        """Its name, value and interval, and whether that is the one of a share that is the same in all networks."""
        alike = ", all networks alike" if self.alike else ""
        return f"{self.name}: {self.text(self.interval.estimate)} ({self.span}{alike})"

    @cached_property
    def verdict(self) -> str | None:
        """What this number alone says, by the rules at the top of the module; None where nothing is asked of it."""
        return None if self.threshold is None else decide(self.interval, self.threshold, self.bound, self.kind)


def number_text(kind: str, value: float) -> str:
    """A number of a `Part` of this kind, for people; none is −0."""
    return {"share": f"{100 * value:z.0f} %", "deficit": f"{100 * value:z.1f} %", "ratio": f"{value:.2f}",
            "correlation": f"{value:z.2f}",
            "points": f"{value:z.1f}", "not below": f"{value:z.2f}"}.get(kind, f"{value:z.3f}")


def decide(interval: Interval, threshold: float, bound: float, kind: str = "difference") -> str:
    """The verdict on one number: see the rules at the top of the module. `kind` as in `Part`."""
    if kind == "sign":  # without an interval the other sign refutes nothing: it leaves depth and width together
        return REPRODUCED if interval.estimate > bound else INCONCLUSIVE
    if interval.n == 1:
        return INCONCLUSIVE
    if kind == "not below":
        return NOT_REPRODUCED if interval.high < bound else REPRODUCED if interval.estimate >= bound else INCONCLUSIVE
    at_bound = kind == "share"  # a quarter is "partly"; a ratio of 1 is refuted
    if interval.high < bound or (interval.high == bound and not at_bound):
        return NOT_REPRODUCED
    if interval.low > bound or (interval.low == bound and at_bound):
        if interval.estimate >= threshold:
            return REPRODUCED
        if kind == "share":
            return PARTLY
    return INCONCLUSIVE


def share_part(name: str, asked: float, values, comparisons: int) -> Part:
    """A share of which `asked` is asked for; half of that is its bound of refutation."""
    return Part(name, tuple(values), "share", asked, asked / 2, comparisons)


# ---- from parts to a verdict ----------------------------------------------------------------------------------------

@dataclass(frozen=True)
class Verdict:
    """What is found of one claim on one pair of network and data set.

    `.parts`: the statistics that decide, the leading one first; `.beside`: what is shown without a say, the controls.
    `.verdict` is one of `VERDICTS`, after Holm's correction (`.adjusted`), and `.reason` says why. Where it is "not
    tested", `.missing` says what would test it, and the numbers there are, if any, are *reduced*. `.readings`: claim
    1a's verdict for each reading of "10 %". `.tables`: the names of the result files. `.interim`: whether fewer of the
    pair's own networks are measured than were agreed on; of controls, such as training without weight decay, there may be fewer.
    `.but`: what one has to know who reads the verdict alone, in few words.
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
    interim: bool = False
    but: str = ""

    @property
    def p(self) -> float | None:
        return joint_p(self.parts)

    @property
    def networks(self) -> list[int]:
        """On how many networks the numbers that decide are measured; not all on as many."""
        return sorted({part.interval.n for part in self.parts if part.verdict is not None})

    @property
    def words(self) -> str:
        """The verdict, and with its readings where they differ."""
        if len(set(self.readings.values())) < 2:
            return self.verdict
        found: dict[str, list[str]] = {}
        for reading, verdict in self.readings.items():
            found.setdefault(verdict, []).append(READINGS[reading])
        return "; ".join(f"{verdict} (10 % read as {' or '.join(read)})" for verdict, read in found.items())


def worst(parts: tuple[Part, ...]) -> str:
    """The verdict of several parts: all that are judged are needed."""
    found = [part.verdict for part in parts if part.verdict is not None]
    return min(found, key=WORST_FIRST.index, default=NOT_TESTED)


def joint_p(parts: tuple[Part, ...]) -> float | None:
    """The p of a test whose parts are all needed.

    The largest one, and None where one of them, being of one network, has none (a sign, or what has only not to be below a bound, needs none); where parts refute,
    any of which would do, the smallest of theirs times the number of parts that might (Bonferroni).
    """
    tested = [part for part in parts if part.p is not None]
    refuting = [part.p for part in tested if part.verdict == NOT_REPRODUCED]
    if refuting:
        might = sum(part.verdict is not None and part.kind != "sign" and len(part.values) > 1 for part in parts)
        return min(1.0, might * min(refuting))
    if any(part.p is None for part in parts if part.verdict is not None and part.kind not in ("sign", "not below")):
        return None
    return max((part.p for part in tested), default=None)


def corrected(verdicts: list[Verdict]) -> list[Verdict]:
    """The verdicts of one pair's primary tests after Holm's correction, those that could not be made counted in."""
    with_p = [verdict for verdict in verdicts if verdict.verdict != NOT_TESTED and verdict.p is not None]
    if not with_p:
        return verdicts
    adjusted = {id(verdict): float(p) for verdict, p in zip(with_p, holm([v.p for v in with_p], tests=len(verdicts)))}
    found = []
    for verdict in verdicts:
        p = adjusted.get(id(verdict))
        if p is not None and p > ALPHA and verdict.verdict != INCONCLUSIVE:
            decided = next(part for part in verdict.parts if part.verdict == verdict.verdict)
            verdict = dataclasses.replace(verdict, verdict=INCONCLUSIVE, reason=(
                f"{decided.words}: {verdict.verdict} if it stood alone, but one of {len(verdicts)} tests, and "
                f"after Holm's correction p is {p:.2g}"))
        found.append(dataclasses.replace(verdict, adjusted=p))
    return found


def overall(verdicts: list[str]) -> str:
    """One claim over its four pairs: what at least `NEEDED` of them say; with fewer verdicts than that, "not tested"."""
    if sum(verdict != NOT_TESTED for verdict in verdicts) < NEEDED:
        return NOT_TESTED
    return next((word for word in (REPRODUCED, NOT_REPRODUCED) if verdicts.count(word) >= NEEDED), INCONCLUSIVE)


def reason_of(parts: tuple[Part, ...], verdict: str) -> str:
    """Why the parts lead to `verdict`: those that decide, with their numbers, and how they lie to their marks."""
    deciding = [part for part in parts if part.verdict == verdict]
    if verdict == REPRODUCED and len(deciding) > 1:
        return f"{deciding[0].words}: this and the others reach their thresholds"
    return "; ".join(f"{part.words}: {_place(part)}" for part in deciding)


def _place(part: Part) -> str:
    """How a number lies to its marks, in words."""
    bound, threshold = part.text(part.bound), part.text(part.threshold)
    if part.verdict == REPRODUCED:
        return "reaches the threshold"
    if part.verdict == PARTLY:
        return f"above the bound of refutation, {bound}, but below the {threshold} asked for"
    if part.verdict == NOT_REPRODUCED:
        return f"below the bound of refutation, {bound}"
    if part.kind == "sign":
        return "not the sign of the published network, so depth and width are not told apart"
    if part.interval.n == 1:
        return "nothing follows for others"
    if part.interval.low > part.bound:
        return f"above the bound of refutation, {bound}, but smaller than the {threshold} asked for"
    return f"the interval straddles the bound of refutation, {bound}"
