"""The scorecard: every claim on every pair of network and data set, from the published tables, and how it is shown.

Only what is published counts, so that the page and `tnlib claims` say the same on every machine.
"""

import dataclasses

import numpy as np
import pandas as pd

from ..experiments.statistics import Interval
from .bootstrap import checked
from .claims import (INCONCLUSIVE, NOT_REPRODUCED, NOT_TESTED, PARTLY, REPRODUCED, Verdict, number_text, overall,
                     read_claims)
from .evidence import Pair
from .judging import TITLES, judge, settled, with_controls

PAIRS = (("vanilla", "cifar10"), ("vanilla", "cifar100"), ("resnet50", "cifar10"), ("resnet50", "cifar100"))
NUMBER_COLUMNS = ("claim", "model", "dataset", "number", "kind", "role", "value", "low", "high", "check_low",
                  "check_high", "networks", "alike", "comparisons", "threshold", "bound", "p", "adjusted_p", "verdict")
SYMBOLS = {REPRODUCED: "✓", PARTLY: "½", NOT_REPRODUCED: "✗", INCONCLUSIVE: "?", NOT_TESTED: "–"}
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

        `alike`: whether it is a share that is the same in all networks, so that its interval is a convention.
        `role`: "decides", "beside", or "reduced" where the claim is not tested. `verdict`: what the number alone says.
        """
        rows = []
        for v in self.verdicts if claim is None else self.of(claim):
            for role, parts in (("reduced" if v.verdict == NOT_TESTED else "decides", v.parts), ("beside", v.beside)):
                for part in parts:
                    at, check = part.interval, part.check or Interval(np.nan, np.nan, np.nan, 0)
                    rows.append({"claim": v.claim, "model": v.model, "dataset": v.dataset, "number": part.name,
                                 "kind": part.kind, "role": role, "value": at.estimate, "low": at.low, "high": at.high,
                                 "check_low": check.low, "check_high": check.high, "networks": at.n, "alike": part.alike,
                                 "comparisons": part.comparisons,
                                 "threshold": part.threshold, "bound": part.bound, "p": part.p,
                                 "adjusted_p": v.adjusted if role == "decides" else None, "verdict": part.verdict})
            if not v.parts:
                rows.append({"claim": v.claim, "model": v.model, "dataset": v.dataset, "number": "none yet", "kind": "",
                             "role": "reduced", "networks": 0, "alike": False, "comparisons": 0, "verdict": NOT_TESTED})
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
            verdict = with_controls(verdict, claims["claims"][verdict.claim], pair)
            if verdict.claim == "1a":
                verdict = dataclasses.replace(verdict, readings=readings)
            verdicts.append(checked(verdict, pair, claims))
    return Scorecard(claims, pairs, verdicts)


# ---- in words ------------------------------------------------------------------------------------------------------

def label(verdict: Verdict) -> str:
    """A verdict with its symbol; *reduced* where there are numbers and no verdict, *interim* where networks are to come; and its `but`."""
    reduced = " (numbers reduced)" if verdict.verdict == NOT_TESTED and verdict.parts else " (interim)" if verdict.interim else ""
    return f"{sign(verdict.verdict)}{verdict.words[len(verdict.verdict):]}{reduced}" + (f" ({verdict.but})" if verdict.but else "")


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
            "95 % interval": "one network" if row.networks == 1 else span(row.low, row.high) + " †" * bool(row.alike),
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
