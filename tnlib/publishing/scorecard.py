"""The scorecard: every claim on every pair of network and data set, from the published tables, and how it is shown.

Only what is published counts, so that the page and `tnlib claims` say the same on every machine.
"""

import dataclasses

import numpy as np
import pandas as pd

from ..experiments.statistics import Interval, percentile_interval
from .claim_tests import (DEEP, SHALLOW, arm_at, compression_gains, correlation_compression, deeper_in_blocks, deeper_layers,
                          deficit_in, harmless_truncations, minima, more_effective, reached, recovered, same_minimum,
                          share_of_curves, specificity)
from .claims import (INCONCLUSIVE, NOT_REPRODUCED, NOT_TESTED, PARTLY, READINGS, REPRODUCED, Part, Verdict, corrected,
                     least_accuracy, number_text, overall, read_claims, reason_of, worst)
from .evidence import Incomplete, Pair

PAIRS = (("vanilla", "cifar10"), ("vanilla", "cifar100"), ("resnet50", "cifar10"), ("resnet50", "cifar100"))
WIDTHS = {"constant width": "vanilla-constant", "reversed width": "vanilla-reversed"}
NUMBER_COLUMNS = ("claim", "model", "dataset", "number", "kind", "role", "value", "low", "high", "check_low",
                  "check_high", "networks", "comparisons", "threshold", "bound", "p", "adjusted_p", "verdict")
SYMBOLS = {REPRODUCED: "✓", PARTLY: "½", NOT_REPRODUCED: "✗", INCONCLUSIVE: "?", NOT_TESTED: "–"}
TITLES = {"vanilla": "vanilla", "resnet50": "ResNet-50", "cifar10": "CIFAR-10", "cifar100": "CIFAR-100"}
# What the verdicts are also asked at: claim → threshold → values, the file's own among them.
AROUND = {
    "1a": {"lambda_star": (0.02, 0.05, 0.10, 0.20), "share_of_cells": (0.25, 0.5, 0.75),
           "cuts_per_layer": (1, 2, 3, 4)},
    "1b": {"vanilla_difference": (0.01, 0.02, 0.03, 0.05), "resnet50_tau": (0.1, 0.2, 0.3, 0.5)},
    "2": {"ratio": (1.05, 1.1, 1.25, 1.5), "median_deficit": (0.05, 0.10, 0.15, 0.20), "least_max_rank": (2, 8, 32)},
    "3": {"epochs": (1, 3, 5), "margin_points": (0.5, 1, 2), "share_of_cases": (0.25, 0.5, 0.75)},
    "4": {"training_loss_ratio": (1.05, 1.10, 1.20), "test_loss_difference": (0.01, 0.03, 0.10),
          "barrier_points": (1, 2, 5), "share_of_cases": (0.25, 0.5, 0.75)},
    "5": {"points": (0.5, 1, 2), "at_least_budgets": (1, 2, 3)},
}


# ---- the tests on a pair -------------------------------------------------------------------------------------------

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
            beside += [recovered(runs, asked, "free", epoch) for epoch in claim["shown_for"]["epochs"]
                       if epoch != asked["epochs"] and epoch <= last]
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
            for other, words in (("norm", "one norm kept for all"), ("data-aware", "a choice by the data-aware error")):
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
    return Verdict(claim["id"], pair.model, pair.dataset, verdict, reason, parts,
                   tables=tuple(dict.fromkeys(find.tables)), missing=tuple(dict.fromkeys(find.missing)))


def settled(claims: dict, pair: Pair, verdicts: dict[str, Verdict]) -> dict[str, Verdict]:
    """The verdicts of `judge` on all claims, by id, after the check of the pair's accuracy and Holm's correction."""
    least = least_accuracy(pair.model, pair.dataset, claims)
    if pair.accuracies and (low := min(pair.accuracies.values())) < least:
        reason = f"a network answers {100 * low:.1f} % right, below the {100 * least:g} % that a verdict takes"
        return {id: dataclasses.replace(verdict, verdict=NOT_TESTED, reason=reason, missing=())
                for id, verdict in verdicts.items()}
    return dict(zip(verdicts, corrected(list(verdicts.values()))))


# ---- the whole scorecard -------------------------------------------------------------------------------------------

@dataclasses.dataclass
class Scorecard:
    """All verdicts, and the tables that show them. `.pairs`: what they were read from; `.claims`: `read_claims()`."""

    claims: dict
    pairs: list[Pair]
    verdicts: list[Verdict]

    def of(self, claim: str) -> list[Verdict]:
        """The verdicts on one claim, pair by pair."""
        return [verdict for verdict in self.verdicts if verdict.claim == claim]

    def overall(self, claim: str) -> str:
        """The verdict on a claim over its pairs."""
        return overall([verdict.verdict for verdict in self.of(claim)])

    def summary(self) -> pd.DataFrame:
        """One row a claim: its verdict on each pair, with the number of networks, and overall; in words, with a symbol."""
        networks = lambda v: "" if v.verdict == NOT_TESTED else f" (n\u00a0=\u00a0{' or '.join(map(str, v.networks))})"
        rows = []
        for id, claim in self.claims["claims"].items():
            found = self.of(id)
            rows.append({"claim": id, "what it says": claim["claim"]}
                        | {pair_text(v.model, v.dataset): label(v) + networks(v) for v in found}
                        | {"overall": sign(self.overall(id))})
        return pd.DataFrame(rows)

    def reasons(self) -> pd.DataFrame:
        """Why: `claim`, the pair, `verdict, rows` (the result files, as links to download)`, why`; equals together."""
        groups: dict[tuple, list[Verdict]] = {}  # what belongs to a claim alone first
        for v in sorted(self.verdicts, key=lambda v: list(self.claims["claims"]).index(v.claim)):
            apart = v.claim if v.tables or v.missing else ""
            groups.setdefault((pair_text(v.model, v.dataset), v.words, v.reason, apart), []).append(v)
        ordered = sorted(groups.items(), key=lambda group: not group[0][-1])
        return pd.DataFrame([{"claim": ", ".join(v.claim for v in found), "network, data": pair,
                              "verdict": label(found[0]), "rows": files_text(found), "why": reason}
                             for (pair, _, reason, _), found in ordered])

    def numbers(self, claim: str | None = None) -> pd.DataFrame:
        """One row a number behind the verdicts, of one claim or of all: `NUMBER_COLUMNS`; no interval for one network.

        `role`: "decides", "beside", or "reduced" where the claim is not tested. `verdict`: what the number alone says.
        """
        rows = []
        for v in self.verdicts if claim is None else self.of(claim):
            for role, parts in (("reduced" if v.verdict == NOT_TESTED else "decides", v.parts), ("beside", v.beside)):
                for part in parts:
                    at, check = part.interval, part.check or Interval(np.nan, np.nan, np.nan, 0)
                    rows.append({"claim": v.claim, "model": v.model, "dataset": v.dataset, "number": part.name,
                                 "kind": part.kind, "role": role, "value": at.estimate, "low": at.low, "high": at.high,
                                 "check_low": check.low, "check_high": check.high, "networks": at.n,
                                 "comparisons": part.comparisons,
                                 "threshold": part.threshold, "bound": part.bound, "p": part.p,
                                 "adjusted_p": v.adjusted if role == "decides" else None, "verdict": part.verdict})
            if not v.parts:
                rows.append({"claim": v.claim, "model": v.model, "dataset": v.dataset, "number": "none yet", "kind": "",
                             "role": "reduced", "networks": 0, "comparisons": 0, "verdict": NOT_TESTED})
        return pd.DataFrame(rows, columns=NUMBER_COLUMNS)

    def shown(self, claim: str) -> pd.DataFrame:
        """`numbers` of a claim as texts, for a page."""
        return in_words(self.numbers(claim))

    def sensitivity(self) -> pd.DataFrame:
        """How verdicts move with their thresholds: `claim, threshold, value, model, dataset, verdict, fixed`.

        One threshold is changed at a time; `fixed`: whether the value is the claims file's. What is not tested is left
        out.
        """
        rows = []
        for pair in self.pairs:
            own = {id: judge(claim, pair) for id, claim in self.claims["claims"].items()}
            for id, thresholds in AROUND.items():
                claim = self.claims["claims"][id]
                for name, value in ((name, value) for name, values in thresholds.items() for value in values
                                    if own[id].verdict != NOT_TESTED and _asked_of(name, pair.model)):
                    changed = judge(claim, pair, claim["thresholds"] | {name: value})
                    rows.append({"claim": id, "threshold": name, "value": value, "model": pair.model,
                                 "dataset": pair.dataset, "fixed": value == claim["thresholds"][name],
                                 "verdict": settled(self.claims, pair, own | {id: changed})[id].verdict})
        return pd.DataFrame(rows, columns=["claim", "threshold", "value", "model", "dataset", "verdict", "fixed"])


def _asked_of(threshold, model):
    """Whether a threshold is asked of this network: some have the name of one in front."""
    return not threshold.startswith(tuple(TITLES)) or threshold.startswith(model)


def scorecard() -> Scorecard:
    """Evaluate book/claims.yml on everything that is published.

    Raises `ValueError` for a damaged or altered file.
    """
    claims, pairs, verdicts = read_claims(), [Pair(*names) for names in PAIRS], []
    for pair in pairs:
        own = {id: judge(claim, pair) for id, claim in claims["claims"].items()}
        first = claims["claims"]["1a"]
        readings = {reading: settled(claims, pair, own | {"1a": judge(first, pair, reading=reading)})["1a"].verdict
                    for reading in first["shown_for"]["readings_of_ten_percent"]}
        for verdict in settled(claims, pair, own).values():
            if verdict.parts:
                find = _Finder()
                beside = _beside(claims["claims"][verdict.claim], pair, find)
                tables = tuple(dict.fromkeys((*verdict.tables, *find.tables)))
                verdict = dataclasses.replace(verdict, beside=beside, tables=tables)
            if verdict.claim == "1a":
                verdict = dataclasses.replace(verdict, readings=readings)
            verdicts.append(_checked(verdict, pair, claims))
    return Scorecard(claims, pairs, verdicts)


def _checked(verdict: Verdict, pair: Pair, claims: dict) -> Verdict:
    """With the bootstrap's intervals at the first numbers, where they come from answers to images, and all are there."""
    try:
        return _bootstrapped(verdict, pair, claims)
    except Incomplete:
        return verdict


def _bootstrapped(verdict, pair, claims):
    asked = claims["claims"][verdict.claim]["thresholds"]
    kinds = [part.kind for part in verdict.parts]
    match verdict.claim, kinds:
        case "1a", ["share", *_]:
            stars, layers = pair.stars_drawn
            fine = reached(stars, asked["lambda_star"])
            enough = [fine[..., layers == layer].sum(-1) >= asked["cuts_per_layer"] for layer in np.unique(layers)]
            drawn = [fine.mean((1, 2)), np.mean(enough, axis=(0, 2))]
        case "1b", ["difference", *_]:
            stars, layers = pair.stars_drawn
            drawn = [(stars[..., layers == DEEP].mean(-1) - stars[..., layers == SHALLOW].mean(-1)).mean(1)]
        case "2", ["ratio", *_]:
            drawn = [pair.ratios_drawn()]
        case "3", ["share"]:
            drawn = [pair.recoveries_drawn(asked["epochs"], asked["margin_points"])]
        case "5", ["points", *_]:
            budgets = tuple(asked["of_budgets"])
            drawn = [*pair.gains_drawn(budgets, "fraction"), *pair.gains_drawn(budgets, "narrower")]
        case _:
            return verdict
    checked = [dataclasses.replace(part, check=percentile_interval(part.interval.estimate, values))
               for part, values in zip(verdict.parts, drawn)]
    return dataclasses.replace(verdict, parts=(*checked, *verdict.parts[len(checked):]))


# ---- in words ------------------------------------------------------------------------------------------------------

def label(verdict: Verdict) -> str:
    """A verdict with its symbol; *reduced* where there are numbers and no verdict."""
    reduced = " (numbers reduced)" if verdict.verdict == NOT_TESTED and verdict.parts else ""
    return f"{sign(verdict.verdict)}{verdict.words[len(verdict.verdict):]}{reduced}"


def sign(verdict: str) -> str:
    """A word of `VERDICTS` behind its symbol, on one line with it."""
    return f"{SYMBOLS[verdict]}\u00a0{verdict}"


def pair_text(model: str, dataset: str) -> str:
    """Such as "ResNet-50, CIFAR-10"."""
    return f"{TITLES.get(model, model)}, {TITLES.get(dataset, dataset)}"


def in_words(numbers: pd.DataFrame) -> pd.DataFrame:
    """The rows of `Scorecard.numbers` as the page and the command show them, column by column a text."""
    rows = []
    for row in numbers.itertuples():
        text = lambda value: number_text(row.kind, value)
        span = lambda low, high: "–" if pd.isna(low) else f"{text(low)} to {text(high)}"
        asked, judged = pd.notna(row.threshold), pd.notna(row.verdict)
        rows.append({
            "network, data": pair_text(row.model, row.dataset), "number": row.number,
            "value": text(row.value) if row.networks else "–",
            "95 % interval": "one network" if row.networks == 1 else span(row.low, row.high),
            "bootstrap": span(row.check_low, row.check_high), "n": row.networks, "compared": row.comparisons or "–",
            "asked": "–" if not asked else "above 0" if row.kind == "sign" else f"≥ {text(row.threshold)}",
            "refuted below": text(row.bound) if asked and row.kind != "sign" else "–",
            "taken alone": (sign(row.verdict) if judged else "beside")
            + (" (reduced)" if row.role == "reduced" and row.networks else "")})
    texts = pd.DataFrame(rows)
    return texts.loc[:, (texts != "–").any()]  # no column of dashes alone


def files_text(verdicts: list[Verdict]) -> str:
    """The result files behind verdicts: tables as links to download, for a page; weights by name."""
    groups: dict[str, list[str]] = {}
    for name in dict.fromkeys(name for verdict in verdicts for name in verdict.tables):
        stem, _, seed = name.rsplit(".", 1)[0].rpartition("-")
        link = f"{{download}}`{seed} </results/{name}>`" if name.endswith(".csv") else f"`{seed}`"
        groups.setdefault(stem if name.endswith(".csv") else f"weights {stem}", []).append(link)
    return "; ".join(f"{stem} {' '.join(links)}" for stem, links in groups.items()) or "–"
