"""Results by name, of one data set or of several."""

import fnmatch
import json
import shutil

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.numpy import load_file

from tnlib.experiments import catalogue, weights
from tnlib.experiments.catalogue import find_table
from tnlib.experiments.datasets import load_dataset
from tnlib.experiments.drops import one_points
from tnlib.experiments.gauges import balanced
from tnlib.experiments.networks import NETWORKS, conv_kernels, network
from tnlib.experiments.tables import read_table
from tnlib.experiments.weights import find_weights, initial_model, load_model, read_card, trained_seeds
from tnlib.publishing import results
from tnlib.publishing.results import available, measured, second_network, source
from tnlib.publishing.section import OpenSection
from tnlib.tensors.cuts import CUTS


def test_several_data_sets_below_each_other_under_their_own_names(monkeypatch):
    monkeypatch.setitem(results.EXPERIMENTS, "shrink", lambda model, dataset, times=1: pd.DataFrame(
        {"dataset": [f"fingerprint of {dataset}"], "seed": [len(dataset) * times]}))
    found = measured("shrink", "vanilla", ["shapes", "cifar10"], times=2)
    assert found.to_dict("list") == {"dataset": ["shapes", "cifar10"], "seed": [12, 14]}


def test_the_recipe_of_re_training_is_the_first_one_but_shorter_and_slower():
    first, again = (results.results(name, "vanilla", "cifar10").iloc[0] for name in ("recipe", "retraining-recipe"))
    assert first["peak_lr"] == NETWORKS["vanilla"].recipe.peak_lr > again["peak_lr"]
    assert first["epochs"] > again["epochs"]
    for name in ("batch_size", "momentum", "weight_decay", "label_smoothing", "clip_norm", "crop_padding", "flip"):
        assert first[name] == again[name]


def test_kernels_overlap_with_what_they_were_before_training():
    """By numpy, from the file; before training they are those of a network that is built anew with the seed."""
    table = results.results("initial-overlap", "vanilla", "shapes")
    path = find_weights("vanilla", "shapes")
    torch.manual_seed(0)
    before = network("vanilla").build(**read_card(path)["architecture"]).state_dict()
    after = load_file(path)
    assert list(table.layer) == ["conv1", "conv2", "conv3", "conv4"]
    for layer, overlap in zip(table.layer, table.overlap):
        a, b = after[f"{layer}.weight"].ravel(), before[f"{layer}.weight"].numpy().ravel()
        assert overlap == pytest.approx(a @ b / np.sqrt(a @ a * (b @ b)), abs=1e-5)
    assert (table.overlap > 0.1).all() and (table.overlap < 0.999).all()


def test_what_a_kernel_is_without_its_start_has_the_entropy_that_numpy_finds():
    """In the balanced gauge, whose factors are read off the kernels: by elements, and not by filters."""
    table = results.results("spectrum-summary-without-start", "vanilla", "shapes").set_index(["layer", "cut"])
    model = load_model("vanilla", "shapes")
    whole = results.results("spectrum-summary", "vanilla", "shapes").query("kind == 'kernel' and gauge == 'balanced'").set_index(["layer", "cut"])
    assert set(table.index) == set(whole.index) and set(table["gauge"]) == {"balanced"}
    start, changed = initial_model(read_card(find_weights("vanilla", "shapes"))), 0
    for (layer, kernel), own, first in zip(conv_kernels(balanced(model)).items(), conv_kernels(model).values(), conv_kernels(start).values()):
        kernel, first = (x.detach().double().numpy().ravel() for x in (kernel, first * kernel / own))
        left = (kernel - kernel @ first / (first @ first) * first).reshape(own.shape)
        assert left.ravel() @ first == pytest.approx(0, abs=1e-6)
        for cut, matrix in (("OUT", left.reshape(len(left), -1)), ("OUT,IN", left.reshape(len(left) * left.shape[1], -1))):
            p = np.linalg.svd(matrix, compute_uv=False) ** 2
            p /= p.sum()
            row, before = table.loc[layer, cut], whole.loc[layer, cut]
            assert row["entropy"] == pytest.approx(-(p * np.log2(p)).sum(), abs=1e-4)
            assert row["deficit"] + row["entropy"] == pytest.approx(before["deficit"] + before["entropy"])
            assert row["deficit_share"] == pytest.approx(row["deficit"] / np.log2(row["max_rank"]))
            changed += abs(row["entropy"] - before["entropy"]) > 1e-3
    assert changed


def test_an_unknown_experiment_names_what_there_is():
    with pytest.raises(ValueError, match="unknown experiment 'retrain': it takes .*'retraining-answers'"):
        results.results("retrain", "vanilla", "shapes")


def test_a_page_of_the_book_is_given_only_what_is_published(monkeypatch, tmp_path):
    published = find_table("shrink", "vanilla", "cifar10", 0)
    for suffix in (".csv", ".json"):
        shutil.copy(published.with_suffix(suffix), tmp_path / f"shrink-vanilla-cifar10-s0{suffix}")
    monkeypatch.setattr(catalogue, "FOLDERS", (tmp_path,))  # as if it were only in runs/
    monkeypatch.setattr(results, "section", OpenSection(of_the_book=True))
    with pytest.raises(FileNotFoundError, match="no results of 'shrink' for vanilla on cifar10; measure them with"):
        results.results("shrink", "vanilla", "cifar10")
    monkeypatch.setattr(results, "section", OpenSection())
    assert len(results.results("shrink", "vanilla", "cifar10")) == len(read_table(published))

    save_own = weights.FOLDERS[0] / "vanilla-cifar10-s0.safetensors"
    for suffix in (".safetensors", ".json"):
        shutil.copy(save_own.with_suffix(suffix), tmp_path / f"vanilla-cifar10-s0{suffix}")
    monkeypatch.setattr(weights, "FOLDERS", (tmp_path / "none", tmp_path))
    assert results.results("networks", "vanilla", "cifar10")["seed"].tolist() == [0]
    monkeypatch.setattr(results, "section", OpenSection(of_the_book=True))
    with pytest.raises(FileNotFoundError, match="no published weights of vanilla on cifar10"):
        results.results("networks", "vanilla", "cifar10")


def test_the_profile_full_measures_every_network_anew_and_reads_nothing_published(monkeypatch, tmp_path):
    asked, published = [], find_table("shrink", "vanilla", "cifar10", 0)

    def anew(experiment, model, dataset, seed, progress):
        asked.append((experiment, model, dataset, seed))
        path = tmp_path / "results" / f"{experiment}-{model}-{dataset}-s{seed}.csv"
        path.parent.mkdir(exist_ok=True)
        for suffix in (".csv", ".json"):
            shutil.copy(published.with_suffix(suffix), path.with_suffix(suffix))
        return path

    monkeypatch.setattr(results, "measure_table", anew)
    monkeypatch.setattr(results, "RUNS", tmp_path)
    monkeypatch.setattr(results, "section", OpenSection(values={"profile": "full", "model": "vanilla"}))
    found = results.results("shrink", "vanilla", "cifar10")
    seeds = trained_seeds("vanilla", "cifar10")
    assert asked == [("shrink", "vanilla", "cifar10", seed) for seed in seeds]
    assert len(found) == len(seeds) * len(read_table(published))
    assert {path.parent for path in results.section.read["shrink"]} == {tmp_path / "results"}


def test_with_one_own_table_there_nothing_is_measured_to_say_so(monkeypatch, tmp_path):
    published = find_table("shrink", "vanilla", "cifar10", 0)
    (tmp_path / "results").mkdir()
    for suffix in (".csv", ".json"):
        shutil.copy(published.with_suffix(suffix), (tmp_path / "results" / published.name).with_suffix(suffix))
    monkeypatch.setattr(results, "measure_table", lambda *_, **__: pytest.fail("measured"))
    monkeypatch.setattr(results, "RUNS", tmp_path)
    monkeypatch.setattr(results, "section", OpenSection(values={"profile": "full", "model": "vanilla"}))
    assert available("shrink", "vanilla", ["cifar10", "cifar100"]) == ["cifar10"]
    card = (tmp_path / "results" / published.name).with_suffix(".json")
    card.write_text(json.dumps(json.loads(card.read_text()) | {"version": 0}))   # of other cells
    assert available("shrink", "vanilla", ["cifar10"]) == []


def test_a_page_does_not_silently_measure_for_hours(monkeypatch, tmp_path):
    monkeypatch.setattr(results, "measure_table", lambda *_, **__: "measured")
    monkeypatch.setattr(results, "section", OpenSection(values={"profile": "published", "model": "resnet50"}))
    with monkeypatch.context() as slow, pytest.raises(FileNotFoundError, match="no results of 'shrink' for resnet50 on cifar10, and on a CPU they take "
                                                      "hours: .* with: tnlib measure shrink resnet50 cifar10 --seed 0"):
        slow.setattr(torch.cuda, "is_available", lambda: False)
        results.results("shrink", "resnet50", "cifar10")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert results._measured("shrink", "resnet50", "cifar10", read=lambda path: pd.DataFrame({"path": [path]}))["path"].tolist() == ["measured"]


def test_another_file_of_the_same_name_is_not_shown_what_the_first_one_has(monkeypatch, tmp_path):
    """Weights and tables are found by the file's name; what they are about are its images."""
    images, labels = np.random.RandomState(0).randint(0, 256, (2, 40, 16, 16, 3), dtype=np.uint8), np.arange(40) % 10
    for folder, own in zip(("a", "b"), images):
        (tmp_path / folder).mkdir()
        np.savez(tmp_path / folder / "mine.npz", test_images=own, test_labels=labels)
    card = read_card(find_weights("vanilla", "shapes"))
    trained = lambda seed, folder: weights.save_weights(
        weights.load_model("vanilla", "shapes"), tmp_path / f"vanilla-mine-s{seed}.safetensors", card | {
            "dataset": "mine", "seed": seed, "core_fingerprint": load_dataset(tmp_path / folder / "mine.npz").core_fingerprint})
    with monkeypatch.context() as patch:
        trained(0, "a")
        patch.setattr(weights, "FOLDERS", (tmp_path,))
        assert len(results.results("networks", "vanilla", str(tmp_path / "a" / "mine.npz"))) == 1
        with pytest.raises(ValueError, match="is not the data set that vanilla-mine-s0 was trained on"):
            results.results("networks", "vanilla", str(tmp_path / "b" / "mine.npz"))
    trained(1, "b")
    monkeypatch.setattr(weights, "FOLDERS", (tmp_path,))
    with pytest.raises(ValueError, match="is not the data set that vanilla-mine-s1 was trained on"):
        results.results("networks", "vanilla", str(tmp_path / "a" / "mine.npz"))


def test_data_sets_without_results_are_left_out_and_nothing_is_measured(monkeypatch):
    monkeypatch.setattr(results, "measure_table", None)
    monkeypatch.setattr(catalogue, "FOLDERS", catalogue.FOLDERS[:1])  # what is published, whatever is in runs/
    assert available("truncation", "vanilla", ["cifar10", "shapes", "cifar100"]) == ["cifar10", "cifar100"]
    assert available("networks", "resnet50", ["cifar100", "cifar10"]) == ["cifar100", "cifar10"]
    assert available("noise", "resnet50", ["cifar100", "cifar10"]) == ["cifar10"]
    assert available("paths", "resnet50", ["cifar100", "cifar10"]) == []


def test_a_name_with_brackets_is_looked_for_as_it_is(monkeypatch):
    monkeypatch.setattr(results, "section", OpenSection())

    def none(*_, **options):
        raise FileNotFoundError

    monkeypatch.setitem(results.EXPERIMENTS, "shrink", none)
    assert available("shrink", "vanilla", ["my[1]"]) == []
    (pattern,) = results.section.asked
    assert fnmatch.filter(["shrink-vanilla-my[1]-s0.json", "shrink-vanilla-my1-s0.json"], pattern) == ["shrink-vanilla-my[1]-s0.json"]


def test_who_changes_the_spectra_changes_no_summary():
    spectra = results.results("spectra", "vanilla", "shapes", samples=1, shuffled=False)
    before = results.results("spectrum-summary", "vanilla", "shapes", samples=1, shuffled=False)
    spectra["value"] = 1.0
    pd.testing.assert_frame_equal(results.results("spectrum-summary", "vanilla", "shapes", samples=1, shuffled=False), before)


def test_layers_of_the_spectra_are_any_collection_and_misspelt_ones_are_named():
    found = results.results("spectra", "vanilla", "shapes", layers=["conv3"])
    assert set(found["layer"]) == {"conv3"} and found.equals(results.results("spectra", "vanilla", "shapes", layers=("conv3",)))
    with pytest.raises(ValueError, match="unknown layer 'conv9': the model's convolutions are 'conv1', 'conv2'"):
        results.results("spectrum-summary", "vanilla", "shapes", layers=["conv9"])


def test_what_chapter_3_says_of_one_data_set_in_words_holds():
    """How the rise to the last layer is shared, and in which layers shrinking to the same error does less harm."""
    for dataset, low, high in (("cifar10", 0.7, 0.85), ("cifar100", 0.5, 0.6)):
        cells = results.results("truncation", "vanilla", dataset).query("split == 'test'")
        star = one_points(cells, ("seed", "layer", "cut")).groupby("layer")["lambda_star"].mean()
        assert low < (star["conv4"] - star["conv3"]) / (star["conv4"] - star["conv2"]) < high
    cells, shrunk = (results.results(name, "vanilla", "cifar10") for name in ("truncation", "shrink"))
    cells = cells[(cells["split"] == "test") & (cells["accuracy_drop"] > 1)]
    less = {}
    for (layer, seed), found in cells.groupby(["layer", "seed"]):
        curve = shrunk[(shrunk["layer"] == layer) & (shrunk["seed"] == seed)].assign(error=lambda rows: 1 - rows["norm_kept"]).sort_values("error")
        found = found[found["relative_error"] <= curve["error"].max()]
        less.setdefault(layer, []).extend(np.interp(found["relative_error"], curve["error"], curve["accuracy_drop"]) < found["accuracy_drop"])
    assert min(np.mean(less["conv1"]), np.mean(less["conv2"])) > 0.5 and max(np.mean(less["conv3"]), np.mean(less["conv4"])) < 0.15


@pytest.mark.parametrize("dataset", ["cifar10", "cifar100"])
def test_what_chapter_4_says_of_one_term_in_a_deep_network_holds(dataset):
    """It costs much in the early kernel alone, and brings most back there of what the mean output costs."""
    one = results.results("cp", "resnet50", dataset).query("rank == 1").set_index("layer")
    mean = results.results("controls", "resnet50", dataset).query("kind == 'mean'").groupby("layer")["accuracy_drop"].mean()
    early, *later = one.index
    assert one.loc[early, "accuracy_drop"] > 2 * one.loc[later, "accuracy_drop"].max()
    back = (1 - one["accuracy_drop"] / mean).loc[one.index]
    assert back.idxmax() == early and (one["accuracy_drop"] < mean[one.index]).all()


@pytest.mark.parametrize("dataset", ["cifar10", "cifar100"])
def test_in_the_first_layer_cp_does_more_harm_at_one_error_as_chapter_4_says(dataset):
    """Than every Tucker-2 whose error is as large within 0.02, in the mean over the networks, where much is lost."""
    cp, tucker = (results.results(name, "vanilla", dataset).query("layer == 'conv1'").groupby(sizes)[["relative_error", "accuracy_drop"]].mean()
                  for name, sizes in (("cp", ["rank"]), ("multi-mode", ["rank_out", "rank_in"])))
    own = cp.loc[8]
    near = tucker[(tucker["relative_error"] - own["relative_error"]).abs() < 0.02]
    assert len(near) == 3 and own["accuracy_drop"] > 1.4 * near["accuracy_drop"].max()


@pytest.mark.parametrize("dataset", ["cifar10", "cifar100"])
def test_what_chapter_3_says_of_leaving_the_first_layer_alone_holds(dataset):
    """The points that it saves at a loss of a tenth, all layers truncated at once."""
    joint = results.results("joint", "vanilla", dataset)
    drops = {}
    for (which, common, cut, _), line in joint.groupby(["layers", "common", "cut", "seed"]):
        line = line.assign(lost=1 - line["norm_kept"]).sort_values("lost")
        drops.setdefault((which, common, cut), []).append(np.interp(0.1, [0, *line["lost"]], [0, *line["accuracy_drop"]], right=np.nan))
    saved = lambda common, cut: np.mean(drops["all", common, cut]) - np.mean(drops["all but the first", common, cut])
    assert max(saved("fraction", "OUT"), saved("fraction", "IN")) < 9.5 and abs(saved("error", "IN")) < 3.5
    assert min(saved("fraction", cut.name) for cut in CUTS if cut.name not in ("OUT", "IN")) > 17.5
    assert saved("error", "OUT") > 1.5 * max(saved("error", "OUT,KW"), saved("error", "OUT,KH"))


def test_a_second_network_is_shown_where_all_that_is_asked_of_it_is_there(monkeypatch):
    there = {("cp", "resnet50"): ["cifar10", "cifar100"], ("truncation", "resnet50"): ["cifar100"]}
    monkeypatch.setattr(results, "available", lambda experiment, model, datasets: [name for name in datasets if name in there[experiment, model]])
    assert second_network("resnet50", "vanilla", ["cifar10", "cifar100"], "cp") == ("resnet50", ["cifar10", "cifar100"])
    assert second_network("resnet50", "vanilla", ["cifar10", "cifar100"], "cp", "truncation") == ("resnet50", ["cifar100"])
    assert second_network("resnet50", "vanilla", {"mine.npz": "mine"}, "cp") == ("vanilla", ["mine.npz"]), "the page's own stands in"


def test_a_source_names_the_network_where_it_is_another_than_the_pages(monkeypatch):
    monkeypatch.setattr(results, "section", OpenSection(values={"model": "vanilla"}))
    assert source("truncation", "vanilla") == "truncation" and source("truncation", "resnet50") == "truncation of resnet50"
