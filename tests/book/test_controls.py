"""The chapter on controls: its numbers again from the tables, without its code."""

import ast
import re

import nbformat
import numpy as np
import pandas as pd
import pytest
import yaml
from scipy import interpolate

import tnlib
from tnlib import notebook
from tnlib.experiments.catalogue import find_table
from tnlib.experiments.drops import harmless
from tnlib.experiments.files import PUBLISHED, ROOT
from tnlib.experiments.tables import read_table
from tnlib.publishing.building import glued_values
from tnlib.publishing.results import results

KINDS = ("noise", "random-rank", "random-error", "smallest", "filters")


@pytest.fixture(scope="module")
def said(shapes_jobs):
    return glued_values(shapes_jobs["controls"].executed)


def test_each_control_is_beside_its_own_truncation(shapes_jobs, said):
    table = read_table(find_table("controls", "vanilla", "shapes", 0))
    cells = {key: group.set_index("kind") for key, group in table[table.kind != "mean"].groupby(["layer", "cut", "rank"])}
    drops = {key: group["accuracy_drop"] for key, group in cells.items()}
    ratio = lambda key, kind: cells[key].loc[kind, "relative_error"] / cells[key].loc["truncation", "relative_error"]
    of_one_error = {kind: [key for key in cells if abs(ratio(key, kind) - 1) <= 0.1] for kind in ("random-error", "smallest")}
    assert int(said["unlike"]) == 2 * len(cells) - sum(map(len, of_one_error.values())) > 0
    drawn = pd.read_csv(shapes_jobs["controls"].folder / "figures" / "controls-pairs.csv")
    assert len(drawn) == len(KINDS) * len(drops) > 50
    for kind in KINDS:
        counted = [drops[key] for key in of_one_error.get(kind, drops)]
        telling = [found for found in counted if max(found[kind], found["truncation"]) > 1]
        better = [found["truncation"] < found[kind] for found in telling]
        assert float(said[f"better-{kind}"]) == pytest.approx(100 * np.mean(better), abs=1e-6)
        assert float(said[f"gap-{kind}"]) == pytest.approx(np.median([found[kind] - found["truncation"] for found in telling]))
    for row in drawn.itertuples():
        assert row.accuracy_drop == pytest.approx(drops[row.layer, row.cut, row.rank][row.kind], abs=1e-6)
        assert row.accuracy_drop_truncation == pytest.approx(drops[row.layer, row.cut, row.rank]["truncation"], abs=1e-6)


def test_a_constant_layer_leaves_guessing(said):
    means = read_table(find_table("controls", "vanilla", "shapes", 0)).query("kind == 'mean'")
    assert len(means) == 4 and np.allclose(means["accuracy"], 0.1), "a plain chain"
    assert float(said["mean-least"]) == pytest.approx(means["accuracy_drop"].min(), abs=1e-6)


def test_the_gauges_are_those_of_the_table(shapes_jobs, said):
    table = read_table(find_table("gauges", "vanilla", "shapes", 0))
    first = table.groupby(["gauge", "layer", "cut"]).first()
    share = first["entropy"] / np.log2(first["max_rank"])
    change = {gauge: (share[gauge] - share["trained"]).median() for gauge in ("balanced", "random")}
    assert change["random"] < 0 and f"{change['random']:+.2f} in the random gauge" in said["gauge-entropy"]
    assert abs(float(said["gauge-entropy"].strip("'").split()[0]) - change["balanced"]) <= 0.0051
    drawn = pd.read_csv(shapes_jobs["controls"].folder / "figures" / "controls-gauges.csv").set_index(["gauge", "layer", "cut"])
    assert len(drawn) == 3 * 20 and np.allclose(drawn["share"], share.loc[drawn.index], atol=1e-6)


def test_the_deep_network_has_every_rival_at_its_lowest_ranks(shapes_jobs, said):
    """Here it is the page's own network."""
    table = read_table(find_table("controls", "vanilla", "shapes", 0))
    folder = shapes_jobs["controls"].folder / "figures"
    drawn = pd.read_csv(folder / "controls-deep.csv").set_index(["kind", "layer", "cut", "rank"])
    assert np.allclose(drawn.loc["mean"]["accuracy_drop"], table[table.kind == "mean"]["accuracy_drop"], atol=1e-6)
    drawn = drawn.sort_index().drop("mean")
    expected = table[table.kind != "mean"].sort_values("rank").groupby(["kind", "layer", "cut"], as_index=False).first()
    assert len(drawn) == len(expected) == 6 * 4 * 5
    assert np.allclose(drawn.loc[expected.set_index(["kind", "layer", "cut", "rank"]).index, "accuracy_drop"], expected["accuracy_drop"], atol=1e-6)

    cells = {key: group.set_index("kind") for key, group in expected.groupby(["layer", "cut"])}
    for kind in KINDS:
        apart = {key: abs(cell.loc[kind, "relative_error"] / cell.loc["truncation", "relative_error"] - 1) > 0.1 for key, cell in cells.items()}
        drops = [cell.loc[[kind, "truncation"], "accuracy_drop"].tolist() for key, cell in cells.items() if kind != "random-error" or not apart[key]]
        telling = [pair for pair in drops if max(pair) > 1]
        assert said[f"deep-better-{kind}"].strip("'") == f"{sum(own < other for other, own in telling)} of {len(telling)}"
    late = expected[(expected.layer == "conv4") & (expected.kind == "noise")]["accuracy_drop"]
    assert said["deep-late"].strip("'") == "conv4"
    assert said["deep-late-noise"].strip("'") == f"{late.min():.1f} to {late.max():.1f}"


def better_than_pruning(table, model):
    """Of each pair that tells, whether the truncation does less harm, by layer: conv1 to conv4 by hand, and the first linear layer after windows of 2×2.

    Only where it saves as much as filters that were removed do, between the fewest and the most of them.
    """
    own = {layer: kernel[0].numel() for layer, kernel in tnlib.conv_kernels(model).items()}
    reads = {"conv1": 64 * 9, "conv2": 128 * 9, "conv3": 256 * 9, "conv4": 4 * model.linear1.out_features}
    better = {}
    for layer, filters in table[table.kind == "filters"].groupby("layer"):
        full = table[(table.kind == "truncation") & (table.layer == layer)]
        channels = {"conv1": 32, "conv2": 64, "conv3": 128, "conv4": 256}[layer]
        removed = channels - filters["parameters"] / own[layer]
        curve = {saved: drop for saved, drop in zip(removed * (own[layer] + reads[layer]), filters["accuracy_drop"]) if saved > 0}
        line = interpolate.interp1d(list(curve), list(curve.values()), bounds_error=False)
        for row in full.itertuples():
            other, saved = float(line(channels * own[layer] - row.parameters)), channels * own[layer] - row.parameters
            if saved > 0 and np.isfinite(other) and max(other, row.accuracy_drop) > 1:
                better.setdefault(layer, []).append(row.accuracy_drop < other)
    return better


def beside_pruning(table, model):
    """The page's own function."""
    cells = nbformat.read(ROOT / "book" / "06_controls.ipynb", as_version=4).cells
    (source,) = (cell.source for cell in cells if "def beside_pruning" in cell.source)
    (function,) = (node for node in ast.walk(ast.parse(source)) if getattr(node, "name", "") == "beside_pruning")
    namespace = {"nb": notebook, "np": np, "pd": pd, "kernels": tnlib.conv_kernels(model)}
    exec(compile(ast.Module([function], []), "06_controls.ipynb", "exec"), namespace)
    return namespace["beside_pruning"](table, model)


def test_pruning_is_counted_with_what_reads_the_channels(said):
    assert not better_than_pruning(read_table(find_table("controls", "vanilla", "shapes", 0)), tnlib.load_model("vanilla", "shapes")), \
        "there even the fewest filters removed save more than any truncation"
    assert said["whole-filters-telling"] == "0" and {said[name].strip("'") for name in ("whole-filters", "second-whole-filters")} == {"–"}
    table, model = read_table(PUBLISHED / "results" / "controls-vanilla-cifar100-s0.csv"), tnlib.load_model("vanilla", "cifar100")
    found = beside_pruning(table, model).query("accuracy_drop > 1 or accuracy_drop_truncation > 1")
    ours = (found["accuracy_drop_truncation"] < found["accuracy_drop"]).groupby(found["layer"]).agg(["sum", "count"])
    by_hand = {layer: (sum(better), len(better)) for layer, better in better_than_pruning(table, model).items()}
    assert {layer: (row["sum"], row["count"]) for layer, row in ours.iterrows()} == by_hand and len(by_hand) > 1


@pytest.mark.parametrize("dataset, most", [("cifar10", 0.1), ("cifar100", 0.4)])
def test_removing_filters_is_mostly_the_better_way_in_the_published_tables(dataset, most):
    """As chapter 6 says of parameters that are saved in the whole network without training."""
    by_layer = [better_than_pruning(read_table(PUBLISHED / "results" / f"controls-vanilla-{dataset}-s{seed}.csv"), tnlib.load_model("vanilla", dataset, seed)) for seed in range(5)]
    better = [found for of_seed in by_layer for of_layer in of_seed.values() for found in of_layer]
    assert len(better) > 100 and np.mean(better) < most
    last = [found for of_seed in by_layer for found in of_seed["conv4"]]
    assert (np.mean(last) > 0.5) == (dataset == "cifar100"), "but not in every layer of every network"
    tables = pd.concat([read_table(PUBLISHED / "results" / f"controls-vanilla-{dataset}-s{seed}.csv") for seed in range(5)])
    own, other = (tables[tables.kind == kind].set_index(["seed", "layer", "cut", "rank"])["accuracy_drop"] for kind in ("truncation", "filters"))
    pairs = pd.concat([own, other], axis=1, keys=["own", "other"]).dropna().query("own > 1 or other > 1")
    assert len(pairs) > 200 and (pairs["own"] < pairs["other"]).mean() > 0.8, "where the layer alone counts"
    assert (pairs["own"] < pairs["other"]).groupby("layer").mean().idxmin() == "conv1"


@pytest.mark.parametrize("dataset", ["cifar10", "cifar100"])
def test_truncations_without_filters_beside_them_are_those_of_conv1_and_mostly_mild_ones(dataset):
    """Those that save less parameters of the whole network than the fewest filters removed."""
    left = []
    for seed in range(5):
        table, model = read_table(PUBLISHED / "results" / f"controls-vanilla-{dataset}-s{seed}.csv"), tnlib.load_model("vanilla", dataset, seed)
        own = table[table.kind == "truncation"].set_index(["layer", "cut", "rank"])["accuracy_drop"]
        left.append(own.drop(pd.MultiIndex.from_frame(beside_pruning(table, model)[["layer", "cut", "rank"]])))
        assert len(left[-1]["conv1"]) == len(own["conv1"])
    left = pd.concat(left)
    behind = left[left.index.get_level_values("layer") != "conv1"]
    assert len(behind) > 50 and (behind < 1).mean() > 0.7


def test_the_twin_with_shuffled_labels_moved_further_and_has_the_larger_deficit():
    moved = {labels: results("initial-overlap", f"vanilla-{labels}", "cifar10")["overlap"].mean() for labels in ("true-labels", "shuffled-labels")}
    lack = {labels: results("spectrum-summary", f"vanilla-{labels}", "cifar10").groupby("gauge")["deficit_share"].mean()["trained"] for labels in moved}
    assert 0.7 < moved["shuffled-labels"] < moved["true-labels"] < 0.9 and lack["shuffled-labels"] > lack["true-labels"]


def test_the_deep_network_in_another_gauge_is_as_in_its_table(said):
    table = read_table(find_table("gauges", "vanilla", "shapes", 0)).sort_values("rank", ascending=False)
    assert said["deep-gauge-gauge"].strip("'") == "random" and said["deep-gauge-where"].strip("'").startswith("shapes, ")
    shares, stars = {}, {}
    for (gauge, layer, _), curve in table.groupby(["gauge", "layer", "cut"]):
        fine = harmless(curve["lost"], curve["gained"], curve["images"])
        stars.setdefault((gauge, layer), []).append((1 - curve["norm_kept"])[np.logical_and.accumulate(fine)].clip(0).max() if fine[0] else 0)
        shares.setdefault((gauge, layer), []).append(curve["entropy"].iloc[0] / np.log2(curve["max_rank"].iloc[0]))
    layers = ("conv1", "conv2", "conv3", "conv4")
    pairs = re.findall(r"(\d\.\d+) → (?:≥ )?(\d\.\d+)", said["deep-gauge-stars"])
    assert np.array(pairs, dtype=float) == pytest.approx(np.array([[np.median(stars[gauge, layer]) for gauge in ("trained", "random")] for layer in layers]), abs=0.00051)
    changes = [float(change) for change in re.findall(r"[+-]\d\.\d+", said["deep-gauge-entropy"].replace("−", "-"))]
    assert changes == pytest.approx([np.median(shares["random", layer]) - np.median(shares["trained", layer]) for layer in layers], abs=0.00051)


def test_what_is_not_trained_on_a_data_set_is_said(said):
    assert said["count-without"].strip("'") == "no network"
    assert said["decay-words"].strip("'") == "the second is not measured here"


def test_what_the_text_says_was_asked_for_is_what_the_claims_file_asks():
    asked = {claim["id"]: claim["thresholds"] for claim in yaml.safe_load((ROOT / "book" / "claims.yml").read_text())["claims"]}
    assert asked["1a"]["lambda_star"] == asked["2"]["median_deficit"] == 0.10 and asked["2"]["least_max_rank"] == 8
    text = (ROOT / "book" / "06_controls.ipynb").read_text(encoding="utf-8")
    assert "test of claim 2 asks for at least 10 % in both" in text and "found.mean() >= 0.10" in text and "max_rank >= 8" in text
