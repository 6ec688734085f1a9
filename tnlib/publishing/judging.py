"""A claim on a pair of network and data set: what is read for it, its verdict, and what stands beside."""

import dataclasses

from .claim_tests import (WITHOUT_DECAY, arm_at, compression_gains, correlation_compression, deeper_in_blocks, deeper_layers,
                          deficit_in, harmless_truncations, minima, more_effective, recovered, same_minimum,
                          share_of_curves, specificity)
from .claims import NOT_REPRODUCED, NOT_TESTED, READINGS, Part, Verdict, corrected, least_accuracy, reason_of, worst
from .evidence import COUNTED_SEEDS, Incomplete, Pair

WIDTHS = {"constant width": "vanilla-constant", "reversed width": "vanilla-reversed"}
UNTRUNCATED_FAILS = "nor does the untruncated network"
TITLES = {"vanilla": "vanilla", "resnet50": "ResNet-50", "cifar10": "CIFAR-10", "cifar100": "CIFAR-100"}


class _Finder:
    """Calls a pair's methods, and keeps the names of the tables and what is missing."""

    def __init__(self):
        self.tables, self.missing = [], []

    def __call__(self, method, *arguments):
        try:
            frame, names = method(*arguments)
        except Incomplete as error:
            self.missing.append(str(error))
            frame, names = error.found
        except FileNotFoundError as error:
            self.missing.append(str(error))
            return None
        self.tables += names
        return frame


def _parts(claim: dict, pair: Pair, thresholds: dict, reading: str, find: _Finder):
    """What decides one claim on a pair, as far as its tables are there."""
    match claim["id"]:
        case "1a":
            points = find(pair.points)
            return () if points is None else harmless_truncations(points, thresholds, reading)
        case "1b" if pair.model == "resnet50":
            points = find(pair.points_of_all_layers)
            return () if points is None else deeper_in_blocks(points, thresholds)
        case "1b":
            points = find(pair.points)
            others = {name: find(pair.points, "truncation", model) for name, model in WIDTHS.items()}
            others = {name: found for name, found in others.items() if found is not None}
            return deeper_layers(points, others, thresholds)
        case "2":
            return correlation_compression(find(pair.ratios), find(pair.deficits),
                                           find(pair.deficits, f"{pair.model}-no-decay"), thresholds)
        case "3":
            found = find(pair.retrained, thresholds["epochs"])
            return () if found is None else (recovered(found[0], thresholds),)
        case "4":
            found = find(pair.retrained, _last_epoch(pair), True)
            return () if found is None else same_minimum(*found, thresholds)
        case "5":
            rows = find(pair.compressed, tuple(thresholds["of_budgets"]))
            return () if rows is None else more_effective(rows, thresholds)
    raise ValueError(f"claim {claim['id']!r} has no test")


def _last_epoch(pair):
    try:
        return int(pair.table("retraining")[0]["epoch"].max())
    except FileNotFoundError:
        return 0


def _beside(claim: dict, pair: Pair, find: _Finder) -> tuple[Part, ...]:
    """The controls, and what the claims file wants shown; none of it decides."""
    asked, beside = claim["thresholds"], []
    match claim["id"]:
        case "1a":
            points, shown = find(pair.points), claim["shown_for"]
            for reading, loss in [*(("lambda", loss) for loss in shown["lambda_star"]),
                                  *((reading, asked["lambda_star"]) for reading in shown["readings_of_ten_percent"])]:
                if (reading, loss) != ("lambda", asked["lambda_star"]):
                    name = "" if reading == "lambda" else f", {100 * loss:g} % read as {READINGS[reading]}"
                    beside += [dataclasses.replace(part, name=part.name + name, threshold=None, bound=None)
                               for part in harmless_truncations(points, asked | {"lambda_star": loss}, reading)]
            if (shrunk := find(pair.shrunk)) is not None:
                beside.append(share_of_curves("layers that may shrink as much", shrunk, asked["lambda_star"]))
            if (noise := find(pair.points, "noise")) is not None:
                beside.append(share_of_curves("cells with matched noise as large", noise, asked["lambda_star"]))
        case "2":
            deficits = find(pair.deficits)
            if deficits is not None and (deficits["gauge"] == "random").any():  # with batch norm there is none
                beside.append(deficit_in("random", deficits, asked))
        case "3":
            (runs, _) = find(pair.retrained, asked["epochs"])
            last = runs["epoch"].max()
            beside += [specificity(runs, asked, claim["specificity"]["threshold_points"])]
            beside += [recovered(runs, asked, arm, epoch) for epoch in claim["shown_for"]["epochs"] for arm in ("free", "noise")
                       if epoch != asked["epochs"] and epoch <= last and len(arm_at(runs, arm, epoch))]
            beside += [recovered(runs, asked, arm, asked["epochs"]) for arm in ("kept", "noise", "continued", "scratch")
                       if len(arm_at(runs, arm, asked["epochs"]))]
        case "4":
            runs, paths = find(pair.retrained, _last_epoch(pair), True)
            found = minima(runs, paths)
            last, cases = runs["epoch"].max(), {"comparisons": len(found)}
            scratch, continued = (arm_at(runs, arm, last)["train_loss"] for arm in ("scratch", "continued"))
            beside += [Part("training loss over the continued network's", _by_seed(found["ratio"]), "ratio", **cases),
                       Part("the same from scratch", tuple((scratch / continued).dropna()), "ratio"),
                       Part("test loss minus the continued one's", _by_seed(found["difference"]), "difference", **cases),
                       Part("barrier, points", _by_seed(found["barrier"]), "points", **cases),
                       Part("barrier between two continued networks, points", _by_seed(found["reference"]), "points")]
        case "5":
            rows = find(pair.compressed, tuple(asked["of_budgets"]))
            for other, words in (("norm", "one norm kept for all"), ("data-aware", "a choice by the data-aware error"),
                                 ("fraction-inner", "one rank fraction, the first layer whole")):
                if other in set(rows["arm"]):
                    beside += [Part(f"ranks by map − {words}, at {budget:g} of the parameters", tuple(gains), "points", comparisons=len(gains))
                               for budget, gains in compression_gains(rows, other).groupby(level="budget", sort=False)]
    return tuple(part for part in beside if part.values)  # a run that stands beside may not be measured yet


def _by_seed(column):
    return tuple(column.groupby(level="seed").mean())


def judge(claim: dict, pair: Pair, thresholds: dict | None = None, reading: str = "lambda") -> Verdict:
    """One claim on one pair, before Holm's correction and without controls; `thresholds` instead of the claim's own."""
    if not pair.accuracies:
        return Verdict(claim["id"], pair.model, pair.dataset, NOT_TESTED,
                       f"{TITLES.get(pair.model, pair.model)} has no published weights")
    find = _Finder()
    parts = _parts(claim, pair, thresholds or claim["thresholds"], reading, find)
    verdict = NOT_TESTED if find.missing else worst(parts)
    reason = "; ".join(dict.fromkeys(find.missing)) or reason_of(parts, verdict)
    own = [part.interval.n for part in parts if part.verdict is not None and part.kind != "sign" and part.name != WITHOUT_DECAY]
    return Verdict(claim["id"], pair.model, pair.dataset, verdict, reason, parts,
                   tables=tuple(dict.fromkeys(find.tables)), missing=tuple(dict.fromkeys(find.missing)),
                   interim=verdict != NOT_TESTED and min(own, default=0) < len(COUNTED_SEEDS.get(pair.model, ())))


def settled(claims: dict, pair: Pair, verdicts: dict[str, Verdict]) -> dict[str, Verdict]:
    """The verdicts of `judge` on all claims, by id, after the check of the pair's accuracy and Holm's correction."""
    least = least_accuracy(pair.model, pair.dataset, claims)
    if pair.accuracies and (low := min(pair.accuracies.values())) < least:
        reason = f"a network answers {100 * low:.1f} % right, below the {100 * least:g} % that a verdict takes"
        return {id: dataclasses.replace(verdict, verdict=NOT_TESTED, reason=reason, missing=())
                for id, verdict in verdicts.items()}
    return dict(zip(verdicts, corrected(list(verdicts.values()))))


def with_controls(verdict: Verdict, claim: dict, pair: Pair) -> Verdict:
    """A verdict with what the claims file wants shown beside it, where there is a number at all; and with its `but`."""
    if not verdict.parts:
        return verdict
    find = _Finder()
    beside = _beside(claim, pair, find)
    verdict = dataclasses.replace(verdict, beside=beside, tables=tuple(dict.fromkeys((*verdict.tables, *find.tables))))
    continued = next((part for part in beside if claim["id"] == "3" and part.name.startswith("continued")), None)
    if verdict.verdict != NOT_REPRODUCED or continued is None:
        return verdict
    # A truncated network cannot be asked for more than training on does to the untruncated one.
    fails = continued.interval.estimate < claim["thresholds"]["share_of_cases"]
    return dataclasses.replace(verdict, but=UNTRUNCATED_FAILS if fails else "", reason=f"{verdict.reason}; of the untruncated networks, {continued.words}")
