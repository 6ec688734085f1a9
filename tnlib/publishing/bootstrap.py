"""The check of a claim's numbers: networks and images drawn anew, a hundred times, and what is harmless chosen anew each time."""

import dataclasses

import numpy as np

from ..experiments.drops import counts_drawn, harmless, one_point
from ..experiments.statistics import crossed_bootstrap, percentile_interval
from ..experiments.tables import read_bits
from ..experiments.weights import read_card
from .claim_tests import DEEP, SHALLOW, arm_at, reached
from .claims import Verdict
from .evidence import Incomplete, Pair, once, path_of

REPLICATES = 100  # a check and no more: its ends are good to a tenth of their distance
HOPELESS = 5.0  # points: no draw of images makes such a drop harmless, nor any that is further down the same curve


def checked(verdict: Verdict, pair: Pair, claims: dict) -> Verdict:
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
            stars, layers = stars_drawn(pair)
            fine = reached(stars, asked["lambda_star"])
            enough = [fine[..., layers == layer].sum(-1) >= asked["cuts_per_layer"] for layer in np.unique(layers)]
            drawn = [fine.mean((1, 2)), np.mean(enough, axis=(0, 2))]
        case "1b", ["difference", *_]:
            stars, layers = stars_drawn(pair)
            drawn = [(stars[..., layers == DEEP].mean(-1) - stars[..., layers == SHALLOW].mean(-1)).mean(1)]
        case "2", ["ratio", *_]:
            drawn = [ratios_drawn(pair)]
        case "3", ["share"]:
            drawn = [recoveries_drawn(pair, asked["epochs"], asked["margin_points"])]
        case "5", ["points", *_]:
            budgets = tuple(asked["of_budgets"])
            drawn = [*gains_drawn(pair, budgets, "fraction"), *gains_drawn(pair, budgets, "narrower")]
        case _:
            return verdict
    checked = [dataclasses.replace(part, check=percentile_interval(part.interval.estimate, values))
               for part, values in zip(verdict.parts, drawn)]
    return dataclasses.replace(verdict, parts=(*checked, *verdict.parts[len(checked):]))


@once
def points_drawn(pair: Pair, experiment: str) -> dict[int, dict[tuple, list]]:
    """Seed → (layer, cut) → `one_point` in every replicate of the images, for each draw of the curve."""
    cells, _ = pair.cells(experiment)
    found = {}
    for seed, rows in cells.assign(draw=cells.get("draw", 0)).groupby("seed"):
        untruncated, correct = _test_bits(path_of(experiment, pair.model, pair.dataset, seed))
        times = crossed_bootstrap(1, len(untruncated), REPLICATES)[1].astype(np.float32)  # once, as `counts_drawn` takes them
        found[seed] = {}
        for (layer, cut, _), curve in rows.sort_values("rank", ascending=False).groupby(["layer", "cut", "draw"]):
            hopeless = (curve["accuracy_drop"] >= HOPELESS).to_numpy()
            curve = curve.iloc[:int(hopeless.argmax()) + 1 if hopeless.any() else len(curve)]
            of = counts_drawn(untruncated, correct[curve["place"]], times)
            fine = harmless(of["lost"], of["gained"], of["images"]).T
            found[seed].setdefault((layer, cut), []).append(one_point(
                curve["rank"], curve["max_rank"].iloc[0], curve["norm_kept"], curve["relative_error"], fine))
    return found


def stars_drawn(pair: Pair) -> tuple[np.ndarray, np.ndarray]:
    """λ* in every replicate of the crossed bootstrap, (replicates, networks, curves), and the layer of each curve."""
    points = list(points_drawn(pair, "truncation").values())
    stars = np.array([[of[curve][0].lambda_star for curve in points[0]] for of in points])
    return _networks_drawn(stars), np.array([layer for layer, _ in points[0]])


def ratios_drawn(pair: Pair) -> np.ndarray:
    """Claim 2's mean ratio of ε*, geometric over curves and over networks, in every replicate: (replicates,)."""
    truncated, noise = points_drawn(pair, "truncation"), points_drawn(pair, "noise")
    of_networks = [np.mean([np.log(truncated[seed][curve][0].epsilon_star)
                            - np.mean([np.log(draw.epsilon_star) for draw in draws], axis=0)
                            for curve, draws in noise[seed].items() if curve in truncated[seed]], axis=0)
                   for seed in noise if seed in truncated]
    return np.exp(_networks_drawn(np.array(of_networks)).mean(1))


def recoveries_drawn(pair: Pair, epochs: int, margin: float) -> np.ndarray:
    """Claim 3's share of re-trained cases within the margin, mean over networks, in every replicate: (replicates,)."""
    (runs, _), _ = pair.retrained(epochs)
    of_networks = []
    for seed, rows in arm_at(runs, "free", epochs).groupby(level="seed"):
        untruncated, correct = _test_bits(path_of("retraining", pair.model, pair.dataset, seed))
        of = counts_drawn(untruncated, correct[rows["place"]], crossed_bootstrap(1, len(untruncated), REPLICATES)[1])
        of_networks.append(harmless(of["lost"], of["gained"], of["images"], margin).mean(0))
    return _networks_drawn(np.array(of_networks)).mean(1)


def gains_drawn(pair: Pair, budgets: tuple[float, ...], other: str) -> list[np.ndarray]:
    """Claim 5's advantage of ranks chosen by map over the arm `other` at each budget, mean over networks, in every replicate."""
    rows, _ = pair.compressed(budgets)
    of_budgets = {budget: [] for budget in budgets}
    for seed, of in rows[rows["epoch"] == rows["epoch"].max()].groupby("seed"):
        untruncated, correct = _test_bits(path_of("compression", pair.model, pair.dataset, seed))
        _, times = crossed_bootstrap(1, len(untruncated), REPLICATES)
        places = of.set_index(["arm", "budget"])["place"]
        for budget in budgets:
            ahead = correct[places["map", budget]].astype(float) - correct[places[other, budget]]
            of_budgets[budget].append(100 * times @ ahead / len(untruncated))
    return [_networks_drawn(np.array(drawn)).mean(1) for drawn in of_budgets.values()]


def _networks_drawn(values) -> np.ndarray:
    """(networks, ..., replicates) → (replicates, networks, ...): in each replicate the networks that are drawn."""
    places, _ = crossed_bootstrap(len(values), 1, values.shape[-1])
    return np.moveaxis(values, -1, 0)[np.arange(len(places))[:, None], places]


def _test_bits(path):
    images = {split: of["images"] for split, of in read_card(path)["untruncated"].items()}
    return read_bits(path, images)["test"]
