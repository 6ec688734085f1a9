"""The scorecard: every claim on every pair of network and data set, from the published tables, and how it is shown.

Only what is published counts, so that the page and `tnlib claims` say the same on every machine.
"""

import copy
import dataclasses
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd

from ..experiments.drops import counts, harmless, harmless_error_ratios, one_point, one_points
from ..experiments.files import PUBLISHED
from ..experiments.kernel_spectra import network_spectra, summary
from ..experiments.measurements import experiment_called, read_bits, read_table
from ..experiments.networks import NETWORKS, conv_kernels
from ..experiments.replacements import rank_grid
from ..experiments.statistics import Interval, crossed_bootstrap, percentile_interval
from ..experiments.weights import load_model, published_networks, read_card, stem
from ..tensors.cuts import distinct_cuts
from .claims import (DEEP, INCONCLUSIVE, NOT_REPRODUCED, NOT_TESTED, PARTLY, REPRODUCED, SHALLOW, Part, Verdict, arm_at,
                     correlation_compression, corrected, deeper_layers, deficit_in, harmless_truncations, minima,
                     missing_cases, overall, read_claims, reason_of, recovered, same_minimum, share_of_curves, specificity,
                     worst)

PAIRS = (("vanilla", "cifar10"), ("vanilla", "cifar100"), ("resnet50", "cifar10"), ("resnet50", "cifar100"))
WIDTHS = {"constant width": "vanilla-constant", "reversed width": "vanilla-reversed"}
NO_DECAY = "vanilla-no-decay"
REPLICATES = 100  # of the bootstrap, a check and no more: its ends are good to a tenth of their distance
HOPELESS = 5.0  # points: no draw of images makes such a drop harmless, nor any that is further down the same curve
SYMBOLS = {REPRODUCED: "✓", PARTLY: "½", NOT_REPRODUCED: "✗", INCONCLUSIVE: "?", NOT_TESTED: "–"}
TITLES = {"vanilla": "vanilla", "resnet50": "ResNet-50", "cifar10": "CIFAR-10", "cifar100": "CIFAR-100"}
# What the verdicts are also asked at: claim → threshold → values, the file's own among them.
AROUND = {
    "1a": {"lambda_star": (0.02, 0.05, 0.10, 0.20), "share_of_cells": (0.25, 0.5, 0.75), "cuts_per_layer": (1, 2, 3, 4)},
    "1b": {"vanilla_difference": (0.01, 0.02, 0.03, 0.05)},
    "2": {"ratio": (1.05, 1.1, 1.25, 1.5), "median_deficit": (0.05, 0.10, 0.15, 0.20), "least_max_rank": (2, 8, 32)},
    "3": {"epochs": (1, 3, 5), "margin_points": (0.5, 1, 2), "share_of_cases": (0.25, 0.5, 0.75)},
    "4": {"training_loss_ratio": (1.05, 1.10, 1.20), "test_loss_difference": (0.01, 0.03, 0.10), "barrier_points": (1, 2, 5),
          "share_of_cases": (0.25, 0.5, 0.75)},
}


# ---- what is published of a pair -----------------------------------------------------------------------------------

class Pair:
    """The published tables of one network on one data set, each read once.

    Every table is (frame, names of its files); `FileNotFoundError` says what is not there and which command makes it.
    """

    def __init__(self, model: str, dataset: str):
        self.model, self.dataset = model, dataset
        self._read = {}

    @cached_property
    def accuracies(self) -> dict[int, float]:
        """Seed → test accuracy of the published networks."""
        return _accuracies(self.model, self.dataset)

    def table(self, experiment: str, model: str | None = None) -> tuple[pd.DataFrame, list[str]]:
        """The test rows of an experiment, of all networks on which it is published."""
        key = experiment, model or self.model
        if key not in self._read:
            self._read[key] = _published(*key, self.dataset)
        return self._read[key]

    def cells(self, experiment: str, model: str | None = None) -> tuple[pd.DataFrame, list[str]]:
        """The rows of "truncation" or "noise": all cells of every network, or `FileNotFoundError`."""
        frame, names = self.table(experiment, model)
        for seed, rows in frame.groupby("seed"):
            wanted = _cells(model or self.model, self.dataset, seed)
            there = set(rows[["layer", "cut", "rank"]].itertuples(index=False, name=None))
            if lacking := wanted - there:
                raise _missing(experiment, model or self.model, self.dataset, seed,
                               f"{len(lacking)} of {len(wanted)} cells, {sorted(lacking)[0]} for one, are not in the table")
        return frame, names

    def points(self, experiment: str = "truncation", model: str | None = None) -> tuple[pd.DataFrame, list[str]]:
        """`one_points` by seed, layer and cut (and draw)."""
        frame, names = self.cells(experiment, model)
        return one_points(frame, ("seed", "layer", "cut", *(["draw"] if experiment == "noise" else []))), names

    def shrunk(self) -> tuple[pd.DataFrame, list[str]]:
        """`one_points` of the shrunk kernels, by seed and layer."""
        frame, names = self.table("shrink")
        return one_points(frame.assign(rank=frame["norm_kept"], max_rank=1), ("seed", "layer")), names

    def ratios(self) -> tuple[pd.DataFrame, list[str]]:
        """`harmless_error_ratios` of truncations and matched noise."""
        (cells, names), (noise, others) = self.cells("truncation"), self.cells("noise")
        return harmless_error_ratios(cells, noise), names + others

    def deficits(self, model: str | None = None) -> tuple[pd.DataFrame, list[str]]:
        """`summary` of the spectra of the published weights."""
        model = model or self.model
        key = "deficits", model
        if key not in self._read:
            if not (seeds := _accuracies(model, self.dataset)):
                raise FileNotFoundError(f"no published weights of {model} on {self.dataset}: "
                                        f"tnlib train {model} {self.dataset} --seed 0 --publish")
            self._read[key] = (summary(network_spectra(model, self.dataset, shuffled=False)),
                               [f"{stem(model, self.dataset, seed)}.safetensors" for seed in seeds])
        return self._read[key]

    def retrained(self, epochs: int, paths: bool = False):
        """The rows of "retraining" and, if asked, of "paths" of the networks that have both, up to the epoch needed."""
        runs, names = self.table("retraining")
        along = None
        if paths:
            along, others = self.table("paths")
            both = set(runs["seed"]) & set(along["seed"])
            runs, along, names = runs[runs["seed"].isin(both)], along[along["seed"].isin(both)], names + others
        if lacking := missing_cases(runs, along, epochs):
            raise _missing("retraining", self.model, self.dataset, int(runs["seed"].min()), "; ".join(lacking[:3]))
        return (runs, along), names

    @cached_property
    def stars(self) -> tuple[np.ndarray, list[str]]:
        """λ* in every replicate of the crossed bootstrap, (replicates, seeds, curves), and the layer of each curve."""
        cells, _ = self.cells("truncation")
        bits, curves = [], []
        for seed, rows in cells.groupby("seed"):
            untruncated, correct = read_bits(_path("truncation", self.model, self.dataset, seed), self._images(seed))["test"]
            kept, own = [], []
            for (layer, cut), curve in rows.sort_values("rank", ascending=False).groupby(["layer", "cut"], sort=True):
                hopeless = (curve["accuracy_drop"] >= HOPELESS).to_numpy()
                curve = curve.iloc[:int(hopeless.argmax()) + 1 if hopeless.any() else len(curve)]
                own.append((layer, slice(len(kept), len(kept) + len(curve)), curve["rank"].to_numpy(), curve["max_rank"].iloc[0],
                            curve["norm_kept"].to_numpy(), curve["relative_error"].to_numpy()))
                kept += curve["place"].tolist()
            bits.append(np.concatenate([untruncated[None], correct[kept]]))
            curves.append(own)

        def statistic(drawn, seeds):
            found = []
            for array, seed in zip(drawn, seeds):
                of = counts(array[0], array[1:])
                fine = harmless(of["lost"], of["gained"], of["images"])
                found.append([one_point(ranks, most, nu, epsilon, fine[rows]).lambda_star
                              for _, rows, ranks, most, nu, epsilon in curves[seed]])
            return found

        return crossed_bootstrap(bits, statistic, REPLICATES), [layer for layer, *_ in curves[0]]

    def _images(self, seed):
        card = read_card(_path("truncation", self.model, self.dataset, seed))
        return {split: of["images"] for split, of in card["untruncated"].items()}


def _accuracies(model, dataset):
    cards = [card for card in published_networks() if (card["model"], card["dataset"]) == (model, dataset)]
    return {card["seed"]: card["test_accuracy"] for card in sorted(cards, key=lambda card: card["seed"])}


def _path(experiment, model, dataset, seed) -> Path:
    return PUBLISHED / "results" / f"{experiment}-{stem(model, dataset, seed)}.csv"


def _published(experiment, model, dataset):
    frames, names = [], []
    for seed in _accuracies(model, dataset):
        path = _path(experiment, model, dataset, seed)
        if not path.is_file() or read_card(path)["version"] != experiment_called(experiment).version:
            continue
        weights = read_card(PUBLISHED / "weights" / f"{stem(model, dataset, seed)}.safetensors")["sha256"]
        if read_card(path)["weights"] != weights:
            raise ValueError(f"{path.name} was measured on other weights than are published: measure it again")
        frame = read_table(path).query("split == 'test'")
        frames.append(frame.assign(place=np.arange(len(frame))))
        names.append(path.name)
    if not frames:
        raise _missing(experiment, model, dataset, next(iter(_accuracies(model, dataset)), 0), "no published results")
    return pd.concat(frames, ignore_index=True), names


def _cells(model, dataset, seed) -> set[tuple]:
    """(layer, cut, rank) of all cells of the 3×3 layers of a network."""
    return {(layer, cut.name, rank) for layer, kernel in conv_kernels(load_model(model, dataset, seed)).items()
            if tuple(kernel.shape[2:]) == (3, 3) for cut in distinct_cuts(kernel.shape)
            for rank in rank_grid(cut.max_rank(kernel.shape))}


def _missing(experiment, model, dataset, seed, what) -> FileNotFoundError:
    return FileNotFoundError(f"{experiment} of {model} on {dataset}: {what}; measure: "
                             f"tnlib measure {experiment} {model} {dataset} --seed {seed} --publish")


# ---- the tests on a pair -------------------------------------------------------------------------------------------

class _Finder:
    """Calls a pair's methods, and keeps the names of the tables and what is missing."""

    def __init__(self):
        self.tables, self.missing = [], []

    def __call__(self, method, *arguments):
        try:
            frame, names = method(*arguments)
        except FileNotFoundError as error:
            self.missing.append(str(error))
            return None
        self.tables += names
        return frame


def _parts(claim: dict, pair: Pair, thresholds: dict, reading: str, find: _Finder):
    """(what decides, what stands beside) of one claim on a pair, as far as its tables are there."""
    match claim["id"]:
        case "1a":
            points = find(pair.points)
            return () if points is None else harmless_truncations(points, thresholds, reading)
        case "1b":
            points = find(pair.points)
            others = {name: found for name, model in WIDTHS.items() if (found := find(pair.points, "truncation", model)) is not None}
            return deeper_layers(points, others, thresholds)
        case "2":
            return correlation_compression(find(pair.ratios), find(pair.deficits), find(pair.deficits, NO_DECAY), thresholds)
        case "3":
            found = find(pair.retrained, thresholds["epochs"])
            return () if found is None else (recovered(found[0], thresholds),)
        case "4":
            found = find(pair.retrained, _last_epoch(pair), True)
            return () if found is None else same_minimum(*found, thresholds)
    find.missing.append("no experiment measures this yet")
    return ()


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
            if (shrunk := find(pair.shrunk)) is not None:
                beside.append(share_of_curves("layers that may shrink as much", shrunk, asked["lambda_star"]))
            if (noise := find(pair.points, "noise")) is not None:
                beside.append(share_of_curves("cells with matched noise as large", noise, asked["lambda_star"]))
        case "2":
            beside.append(deficit_in("random", find(pair.deficits), asked))
        case "3":
            (runs, _) = find(pair.retrained, asked["epochs"])
            last = runs["epoch"].max()
            beside += [specificity(runs, asked, claim["specificity"]["threshold_points"])]
            beside += [recovered(runs, asked, "free", epoch) for epoch in claim["shown_for"]["epochs"] if epoch <= last]
            beside += [recovered(runs, asked, arm, asked["epochs"]) for arm in ("kept", "noise", "continued", "scratch")
                       if len(arm_at(runs, arm, asked["epochs"]))]
        case "4":
            runs, paths = find(pair.retrained, _last_epoch(pair), True)
            found = minima(runs, paths)
            scratch, continued = (arm_at(runs, arm, runs["epoch"].max())["train_loss"] for arm in ("scratch", "continued"))
            beside += [Part("training loss over the continued network's", _by_seed(found["ratio"]), "ratio", comparisons=len(found)),
                       Part("barrier, points", _by_seed(found["barrier"]), "points", comparisons=len(found)),
                       Part("barrier between two continued networks, points", _by_seed(found["reference"]), "points"),
                       Part("training loss from scratch over the continued network's", tuple(scratch / continued), "ratio")]
    return tuple(beside)


def _by_seed(column):
    return tuple(column.groupby(level="seed").mean())


def judge(claim: dict, pair: Pair, thresholds: dict | None = None, reading: str = "lambda") -> Verdict:
    """One claim on one pair, before Holm's correction; `thresholds` in the place of the claim's own. Controls left out."""
    if pair.model not in NETWORKS or not pair.accuracies:
        why = "is not among this project's networks yet" if pair.model not in NETWORKS else "has no published weights"
        return Verdict(claim["id"], pair.model, pair.dataset, NOT_TESTED, f"{TITLES.get(pair.model, pair.model)} {why}")
    find = _Finder()
    parts = _parts(claim, pair, thresholds or claim["thresholds"], reading, find)
    verdict, reason = (NOT_TESTED, "not all of it is measured") if find.missing else (worst(parts), "")
    return Verdict(claim["id"], pair.model, pair.dataset, verdict, reason or reason_of(parts, verdict), parts,
                   tables=tuple(dict.fromkeys(find.tables)), missing=tuple(dict.fromkeys(find.missing)))


def judge_pair(claims: dict, pair: Pair, changed: dict[str, Verdict] | None = None) -> list[Verdict]:
    """All claims on one pair, after the check of its accuracy and Holm's correction; `changed` in the place of some."""
    verdicts = [(changed or {}).get(id) or judge(claim, pair) for id, claim in claims["claims"].items()]
    least = claims["verdicts"]["least_accuracy"].get(pair.model, {}).get(pair.dataset, 0)
    if pair.accuracies and (low := min(pair.accuracies.values())) < least:
        reason = f"a network answers {100 * low:.1f} % right, below the {100 * least:g} % that a verdict takes"
        return [dataclasses.replace(verdict, verdict=NOT_TESTED, reason=reason, missing=()) for verdict in verdicts]
    return corrected(verdicts)


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

    def summary(self) -> pd.DataFrame:
        """One row a claim: its verdict on each pair, and overall; in words, with a symbol."""
        rows = []
        for id, claim in self.claims["claims"].items():
            found = self.of(id)
            rows.append({"claim": f"{id}. {claim['claim']}"}
                        | {f"{TITLES[v.model]}, {TITLES[v.dataset]}": f"{SYMBOLS[v.verdict]} {v.words}" for v in found}
                        | {"overall": (word := overall([v.verdict for v in found])) and f"{SYMBOLS[word]} {word}"})
        return pd.DataFrame(rows)

    def numbers(self, claim: str | None = None) -> pd.DataFrame:
        """One row a number behind the verdicts, of one claim or of all: `claim, model, dataset, number, role, value, low, high,
        check_low, check_high, networks, comparisons, threshold, bound, p, adjusted_p, verdict`; no interval where n is 1.

        `role`: "decides", "beside", or "reduced" where the claim is not tested. `verdict`: what the number alone says.
        """
        rows = []
        for v in self.verdicts if claim is None else self.of(claim):
            for role, parts in (("reduced" if v.verdict == NOT_TESTED else "decides", v.parts), ("beside", v.beside)):
                for part in parts:
                    at, check = part.interval, part.check or Interval(np.nan, np.nan, np.nan, 0)
                    rows.append({"claim": v.claim, "model": v.model, "dataset": v.dataset, "number": part.name, "kind": part.kind,
                                 "role": role, "value": at.estimate, "low": at.low, "high": at.high, "check_low": check.low,
                                 "check_high": check.high, "networks": at.n, "comparisons": part.comparisons,
                                 "threshold": part.threshold, "bound": part.bound, "p": part.p,
                                 "adjusted_p": v.adjusted if role == "decides" else None, "verdict": part.verdict})
            if not v.parts:
                rows.append({"claim": v.claim, "model": v.model, "dataset": v.dataset, "number": "none yet", "kind": "",
                             "role": "reduced", "networks": 0, "comparisons": 0, "verdict": NOT_TESTED})
        return pd.DataFrame(rows)

    def sensitivity(self) -> pd.DataFrame:
        """How verdicts move with their thresholds: `claim, threshold, value, model, dataset, verdict, fixed`.

        One threshold is changed at a time; `fixed`: whether the value is the claims file's. Pairs without results, and claims
        that cannot be tested, are left out.
        """
        rows = []
        for pair in self.pairs:
            for id, thresholds in AROUND.items():
                claim = self.claims["claims"][id]
                if judge(claim, pair).verdict == NOT_TESTED:
                    continue
                for name, values in thresholds.items():
                    for value in values:
                        changed = copy.deepcopy(claim["thresholds"]) | {name: value}
                        verdicts = judge_pair(self.claims, pair, {id: judge(claim, pair, changed)})
                        rows.append({"claim": id, "threshold": name, "value": value, "model": pair.model, "dataset": pair.dataset,
                                     "verdict": next(v.verdict for v in verdicts if v.claim == id),
                                     "fixed": value == claim["thresholds"][name]})
        return pd.DataFrame(rows, columns=["claim", "threshold", "value", "model", "dataset", "verdict", "fixed"])


def scorecard(check: bool = True) -> Scorecard:
    """Evaluate book/claims.yml on everything that is published; without `check`, no bootstrap.

    Raises `ValueError` for a damaged or altered file.
    """
    claims, pairs, verdicts = read_claims(), [Pair(*names) for names in PAIRS], []
    for pair in pairs:
        judged = judge_pair(claims, pair)
        readings = {}
        for reading in claims["claims"]["1a"]["shown_for"]["readings_of_ten_percent"]:
            read = judge_pair(claims, pair, {"1a": judge(claims["claims"]["1a"], pair, reading=reading)})
            readings[reading] = next(v.verdict for v in read if v.claim == "1a")
        for verdict in judged:
            if verdict.parts and not verdict.missing:
                find = _Finder()
                beside = _beside(claims["claims"][verdict.claim], pair, find)
                verdict = dataclasses.replace(verdict, beside=beside, tables=tuple(dict.fromkeys((*verdict.tables, *find.tables))))
            if verdict.claim == "1a":
                verdict = dataclasses.replace(verdict, readings=readings)
            verdicts.append(_checked(verdict, pair, claims) if check else verdict)
    return Scorecard(claims, pairs, verdicts)


def _checked(verdict: Verdict, pair: Pair, claims: dict) -> Verdict:
    """With the bootstrap's intervals at the numbers that come from the truncations' answers."""
    if verdict.claim not in ("1a", "1b") or not verdict.parts:
        return verdict
    stars, layers = pair.stars
    asked, layers = claims["claims"][verdict.claim]["thresholds"], np.array(layers)
    if verdict.claim == "1a":
        reached = stars >= asked["lambda_star"]
        enough = np.stack([reached[..., layers == layer].sum(-1) >= asked["cuts_per_layer"] for layer in np.unique(layers)], -1)
        drawn = [reached.mean((1, 2)), enough.mean((1, 2))]
    else:
        drawn = [(stars[..., layers == DEEP].mean(-1) - stars[..., layers == SHALLOW].mean(-1)).mean(1)]
    checked = [dataclasses.replace(part, check=percentile_interval(part.interval.estimate, values))
               for part, values in zip(verdict.parts, drawn)]
    return dataclasses.replace(verdict, parts=(*checked, *verdict.parts[len(checked):]))


# ---- in words ------------------------------------------------------------------------------------------------------

def number_text(kind: str, value: float) -> str:
    """A number of a `Part` of this kind, for people."""
    return {"share": f"{100 * value:.0f} %", "deficit": f"{100 * value:.1f} %", "ratio": f"{value:.2f}",
            "points": f"{value:.1f}"}.get(kind, f"{value:.3f}")


def in_words(numbers: pd.DataFrame) -> pd.DataFrame:
    """The rows of `Scorecard.numbers` as the page and the command show them."""
    rows = []
    for row in numbers.itertuples():
        if not row.networks:
            rows.append({"pair": _pair(row), "number": row.number, "value": "–", "95 % interval": "–", "bootstrap": "–", "n": 0,
                         "compared": 0, "asked": "–", "refuted below": "–", "alone": "– not tested"})
            continue
        text = lambda value: number_text(row.kind, value)
        span = lambda low, high: "–" if pd.isna(low) else f"{text(low)} to {text(high)}"
        alone = "beside" if pd.isna(row.verdict) else f"{SYMBOLS[row.verdict]} {row.verdict}"
        rows.append({"pair": _pair(row), "number": row.number, "value": text(row.value),
                     "95 % interval": "one network" if row.networks == 1 else span(row.low, row.high),
                     "bootstrap": span(row.check_low, row.check_high), "n": row.networks, "compared": row.comparisons,
                     "asked": "–" if pd.isna(row.threshold) else ("> 0" if row.kind == "sign" else f"≥ {text(row.threshold)}"),
                     "refuted below": "–" if pd.isna(row.bound) or row.kind == "sign" else text(row.bound),
                     "alone": alone + (", reduced" if row.role == "reduced" else "")})
    return pd.DataFrame(rows)


def _pair(row):
    return f"{TITLES[row.model]}, {TITLES[row.dataset]}"
