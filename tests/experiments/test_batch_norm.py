"""Statistics of batch norm estimated anew, against torch's own training mode; truncations measured with either."""

import copy
import itertools
import sqlite3

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from tnlib import conv_kernels, entanglement_entropy, evaluate, truncate
from tnlib.experiments import catalogue, experiment as experiment_module, measurements, retraining, verification, weights
from tnlib.experiments.batch_norm import AUGMENTATION_SEED, Reestimation, batch_norms, reestimated
from tnlib.experiments.catalogue import EXPERIMENTS
from tnlib.experiments.datapackage import COLUMNS
from tnlib.experiments.dataset import Dataset
from tnlib.experiments.experiment import Subject, too_large
from tnlib.experiments.networks import Recipe, Vanilla
from tnlib.experiments.paths import Paths
from tnlib.experiments.replacements import dense
from tnlib.experiments.resnet import ResNet50, resnet
from tnlib.experiments.retraining import Retraining, Starts
from tnlib.experiments.strengths import Case
from tnlib.experiments.tables import read_answers, read_table
from tnlib.experiments.training import augmented
from tnlib.experiments.truncations import cut_truncations
from tnlib.experiments.weights import read_card
from tnlib.tensors.cuts import distinct_cuts

pytestmark = pytest.mark.filterwarnings("ignore:the untruncated network is at chance")
BLOCKS = {"stem": "s1", "blocks": (1, 1, 1, 1), "width": 4, "image_size": 16}


@pytest.fixture(scope="module", autouse=True)
def few_channels():
    """Blocks end with as many channels as a fourth of ResNet-50's: 512 in the last stage, or most of the time goes into them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(resnet.Bottleneck, "expansion", 1)
        yield


@pytest.fixture(scope="module")
def data():
    random = np.random.RandomState(0)
    image = lambda n: random.randint(0, 256, (n, 16, 16, 3), dtype=np.uint8)
    return Dataset(image(60), np.arange(60) % 3, image(200), np.arange(200) % 3, name="small")


@pytest.fixture(scope="module")
def model(data):
    """Batch norm has scales, shifts and the statistics of some images."""
    torch.manual_seed(0)
    network = ResNet50(3, **BLOCKS)
    for module in batch_norms(network):
        nn.init.uniform_(module.weight, 0.5, 1.5)
        nn.init.normal_(module.bias, std=0.3)
    return reestimated(network, data.test_images)


# ---- the statistics ------------------------------------------------------------------------------------------------

def test_statistics_are_those_that_torch_finds_in_training(model, data):
    """Of one batch: what `momentum = 1` stores in training mode."""
    pixels = data.train_images[:100]
    expected = copy.deepcopy(model)
    for norm in batch_norms(expected):
        norm.momentum = 1.0
    expected.train()(torch.from_numpy(pixels).permute(0, 3, 1, 2) / 255)
    found = reestimated(model, pixels)
    assert len(batch_norms(found)) == 16
    for ours, theirs in zip(batch_norms(found), batch_norms(expected)):
        torch.testing.assert_close(ours.running_mean, theirs.running_mean, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(ours.running_var, theirs.running_var, atol=1e-5, rtol=1e-4)


def test_nothing_else_changes_and_the_network_stays_as_it_is(model, data):
    before = copy.deepcopy(model.state_dict())
    found = reestimated(model, data.train_images)
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in before.items())
    assert not found.training and not any(norm.training for norm in batch_norms(found))
    assert all(torch.equal(p, q) for p, q in zip(found.parameters(), model.parameters()))
    assert [norm.momentum for norm in batch_norms(found)] == [norm.momentum for norm in batch_norms(ResNet50(3, **BLOCKS))]
    assert not torch.equal(found.bn1.running_mean, model.bn1.running_mean)


def test_batches_are_averaged(monkeypatch, data):
    """Of a single batch norm: the mean of the batches' means, and of their variances."""
    monkeypatch.setattr("tnlib.experiments.batch_norm.BATCH", 45)
    model = nn.Sequential(nn.BatchNorm2d(3), nn.Flatten(), nn.LazyLinear(2))
    model(torch.zeros(2, 3, 16, 16))
    found = reestimated(model, data.train_images)[0]  # 180 images: 200 without those held out
    batches = [torch.from_numpy(part).double() / 255 for part in np.split(data.train_images, 4)]
    for ours, statistic in ((found.running_mean, torch.Tensor.mean), (found.running_var, torch.Tensor.var)):
        expected = torch.stack([statistic(batch, (0, 1, 2)) for batch in batches]).mean(0)
        torch.testing.assert_close(ours.double(), expected, atol=1e-5, rtol=1e-4)


def test_a_network_without_batch_norm_is_refused(data):
    with pytest.raises(ValueError, match="Vanilla has no batch norm whose statistics could be estimated anew"):
        reestimated(Vanilla(3, (2, 2, 2, 2), image_size=16), data.train_images)
    with pytest.raises(ValueError, match="Vanilla has no batch norm"):
        Reestimation(Vanilla(3, (2, 2, 2, 2), image_size=16), data, np.arange(5), ("OUT",), (0.5,), Recipe())


def test_truncated_networks_answer_with_either_statistics(model, data):
    chosen = np.arange(0, 150)
    plan = Reestimation(model, data, chosen, ("OUT", "OUT,KW"), (0.3,), Recipe(crop_padding=2))
    seen = augmented(data.train_images[chosen], Recipe(crop_padding=2), AUGMENTATION_SEED)
    assert plan.runs() == [("OUT", 0.3), ("OUT,KW", 0.3), ("none", 1.0)]
    (stored, first), (anew, second) = plan.run("OUT,KW", 0.3)
    assert (stored["statistics"], anew["statistics"]) == ("stored", "re-estimated")
    assert stored["relative_error"] == anew["relative_error"] > 0.1
    network = copy.deepcopy(model)
    for layer, kernel in conv_kernels(model).items():
        most = min(kernel.shape[0] * kernel.shape[3], kernel.shape[1] * kernel.shape[2])
        network.get_submodule(layer).weight.data = truncate(kernel, "OUT,KW", int(np.ceil(0.3 * most)))
    assert first.loss == pytest.approx(evaluate(network, data).loss, rel=1e-3)
    assert second.loss == pytest.approx(evaluate(reestimated(network, seen), data).loss, rel=1e-3)
    assert second.loss != pytest.approx(first.loss, rel=1e-2)
    ((about, untruncated),) = plan.run("none", 1.0)
    assert (about["statistics"], about["norm_kept"], about["relative_error"]) == ("re-estimated", 1, 0)
    assert about["parameters"] == sum(kernel.numel() for kernel in conv_kernels(model).values())
    assert untruncated.loss == pytest.approx(evaluate(reestimated(model, seen), data).loss, rel=1e-6)
    assert untruncated.loss != pytest.approx(evaluate(reestimated(model, data.train_images[chosen]), data).loss, rel=1e-4)
    assert plan.parameters() == {"augmentation": {"crop_padding": 2, "flip": True, "seed": AUGMENTATION_SEED}}


# ---- a deep network without a GPU ------------------------------------------------------------------------------------

@pytest.fixture
def deep(model, data, tmp_path, monkeypatch):
    """`model` as if it were deep, with weights and results in tmp_path."""
    monkeypatch.setattr(experiment_module, "MANY_LAYERS", 10)
    monkeypatch.setattr(experiment_module, "DEEP_IMAGES", 30)
    monkeypatch.setattr(weights, "FOLDERS", (tmp_path / "weights",))
    monkeypatch.setattr(measurements, "RUNS", tmp_path)
    weights.save_weights(model, tmp_path / "weights" / "resnet50-small-s0.safetensors", {
        "model": "resnet50", "dataset": "small", "seed": 0, "architecture": BLOCKS | {"classes": 3},
        "core_fingerprint": data.core_fingerprint})
    return data


def test_a_deep_network_is_measured_in_a_reduced_form(deep, model, monkeypatch):
    monkeypatch.setattr(catalogue, "DEEP_RANKS", (0.5,))
    table = read_table(path := measurements.measure("truncation", "resnet50", deep, progress=False))
    assert read_card(path)["reduced"] is True and read_card(path)["test_images"]["number"] == 30
    assert (table["images"] == 30).all() and set(table["split"]) == {"test"}
    spatial = [layer for layer, kernel in conv_kernels(model).items() if kernel.shape[2:].numel() > 1]
    cuts = table.groupby("layer", sort=False)["cut"].unique()
    assert list(cuts.index) == [*spatial, *[layer for layer in conv_kernels(model) if layer not in spatial][::3]]
    assert all(set(cuts[layer]) == ({"OUT", "OUT,KW", "OUT,IN"} if layer in spatial else {"OUT"}) for layer in cuts.index)
    chosen = deep.subset(30)
    some = Dataset(deep.test_images[chosen], deep.test_labels[chosen])
    row = read_answers(path).query("layer == 'layer3.0.conv2' and cut == 'OUT,KW'").iloc[0]
    network = copy.deepcopy(model)
    kernel = conv_kernels(model)["layer3.0.conv2"]
    network.layer3[0].conv2.weight.data = truncate(kernel, "OUT,KW", row["rank"])
    assert np.array_equal(row["answers"], evaluate(network, some).correct)


def test_a_card_says_reduced_only_where_a_gpu_would_measure_more(deep, tmp_path, monkeypatch):
    monkeypatch.setattr(catalogue, "REESTIMATED_CUTS", ("OUT",))
    monkeypatch.setattr(catalogue, "DEEP_RANKS", (0.5,))
    path = measurements.measure("joint", "resnet50", deep, progress=False)
    here = path.read_bytes()
    assert "reduced" not in read_card(path)
    (tmp_path / "results" / f"{path.stem}.sqlite").unlink()
    monkeypatch.setattr(measurements, "too_large", lambda *given: False)
    assert measurements.measure("joint", "resnet50", deep, progress=False).read_bytes() == here


def test_what_a_gpu_began_is_ended_without_one_in_the_same_form(deep, tmp_path, monkeypatch):
    monkeypatch.setattr(catalogue, "DEEP_RANKS", (0.5,))
    monkeypatch.setattr(measurements, "too_large", lambda *given: False)
    path = measurements.measure("truncation", "resnet50", deep, progress=False)
    whole = path.read_bytes()
    assert "reduced" not in read_card(path) and len(read_table(path)["cut"].unique()) == 7
    with sqlite3.connect(tmp_path / "results" / f"{path.stem}.sqlite") as database:
        assert database.execute("DELETE FROM cells WHERE place > 20").rowcount > 10
    monkeypatch.setattr(measurements, "too_large", lambda *given: True)
    assert measurements.measure("truncation", "resnet50", deep, progress=False).read_bytes() == whole
    assert "reduced" not in read_card(path) and len(read_card(path)["calls"]) == 2


def stopped_after(cells, monkeypatch):
    """A sweep that Ctrl-C stops once, after so many cells."""
    swept, found = measurements.sweep, []

    def stopped(*given, **named):
        for cell in swept(*given, **named):
            yield cell
            found.append(cell)
            if len(found) == cells + 1:  # the first is the untruncated network
                raise KeyboardInterrupt

    monkeypatch.setattr(measurements, "sweep", stopped)


def test_what_a_gpu_published_in_part_is_completed_without_one_in_the_same_form(deep, tmp_path, monkeypatch):
    monkeypatch.setattr(catalogue, "DEEP_RANKS", (0.5,))
    monkeypatch.setattr(measurements, "PUBLISHED", tmp_path / "published")
    monkeypatch.setattr(measurements, "too_large", lambda *given: False)
    stopped_after(10, monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        measurements.measure("noise", "resnet50", deep, folder=tmp_path / "published" / "results", progress=False)
    (tmp_path / "results" / "noise-resnet50-small-s0.sqlite").unlink()
    monkeypatch.setattr(measurements, "too_large", lambda *given: True)
    found = measurements.measure("noise", "resnet50", deep, progress=False, complete=True)
    assert "reduced" not in read_card(found) and len(read_card(found)["calls"]) == 2
    assert len(read_table(found)) == 5 * 7 and len(read_table(found)["cut"].unique()) == 7


def test_what_was_published_without_a_gpu_is_not_completed_in_another_form(deep, tmp_path, monkeypatch):
    monkeypatch.setattr(catalogue, "DEEP_RANKS", (0.5,))
    monkeypatch.setattr(measurements, "PUBLISHED", tmp_path / "published")
    stopped_after(4, monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        measurements.measure("noise", "resnet50", deep, folder=tmp_path / "published" / "results", progress=False)
    (tmp_path / "results" / "noise-resnet50-small-s0.sqlite").unlink()
    monkeypatch.setattr(measurements, "too_large", lambda *given: False)
    with pytest.raises(ValueError, match="cannot be completed here, as the published table is of other reduced: True there, None here"):
        measurements.measure("noise", "resnet50", deep, progress=False, complete=True)


def test_noise_that_is_cut_off_is_of_layers_from_all_depths(deep, model, tmp_path, monkeypatch):
    monkeypatch.setattr(catalogue, "DEEP_RANKS", (0.5,))
    stopped_after(3 * 3, monkeypatch)  # three cuts of three layers
    with pytest.raises(KeyboardInterrupt):
        measurements.measure("noise", "resnet50", deep, progress=False)
    table = read_table(path := tmp_path / "results" / "noise-resnet50-small-s0.csv")
    spatial = [layer for layer, kernel in conv_kernels(model).items() if kernel.shape[2:].numel() > 1]
    assert len(table) == 9 and read_card(path)["missing"] == len(EXPERIMENTS["noise"].parts(
        Subject("resnet50", model, deep, 0, reduced=True), weighed=False)[0][1]) - 9
    assert len(spatial) == 5 and set(table["layer"]) == {spatial[0], spatial[2], spatial[4]}


@pytest.mark.parametrize("count", range(1, 40))
def test_every_beginning_of_an_order_from_all_depths_is_spread_over_them(count):
    """Of n layers that come first no two neighbours are further apart than a share 1/n of the next power of two above all, n
    rounded down to one."""
    order = catalogue._from_all_depths(list(range(count)))
    assert sorted(order) == list(range(count))
    for first in range(1, count + 1):
        gaps = np.diff([*sorted(order[:first]), count])
        assert gaps.max() <= 2 ** (count.bit_length() - first.bit_length() + 1), (first, order)


def test_answers_with_either_statistics_are_verified(deep, tmp_path, monkeypatch):
    monkeypatch.setattr(catalogue, "REESTIMATED_CUTS", ("OUT",))
    monkeypatch.setattr(catalogue, "REESTIMATED_LEVELS", (0.6,))
    monkeypatch.setattr(verification, "PUBLISHED", tmp_path)
    monkeypatch.setattr(verification, "load_dataset", lambda name, root=None: deep)
    measurements.measure("batch-norm", "resnet50", deep, progress=False)
    checks = verification.verify(10)
    assert [(check.key.split()[-1], check.different, check.images) for check in sorted(checks, key=lambda check: check.key)] == [
        ("statistics=re-estimated", 0, 60), ("statistics=stored", 0, 60), ("statistics=re-estimated", 0, 60)]


def test_noise_and_shrink_are_of_the_same_layers(deep, model):
    subject = Subject("resnet50", model, deep, 0, reduced=True)
    cells = {name: EXPERIMENTS[name].parts(subject, weighed=False)[0][1] for name in ("truncation", "shrink", "noise")}
    layers = {name: {labels["layer"] for labels, _ in cells[name]} for name in ("truncation", "shrink")}
    assert layers["truncation"] == layers["shrink"]
    assert len(cells["noise"]) == len(cells["truncation"])


def test_with_a_gpu_every_kernel_of_a_deep_network_is_truncated_at_every_cut(deep, model):
    subject, kernels = Subject("resnet50", model, deep, 0), conv_kernels(model)
    truncated, noise, shrunk = ([labels for labels, _ in EXPERIMENTS[name].parts(subject, weighed=False)[0][1]]
                                for name in ("truncation", "noise", "shrink"))
    ranks = {(layer, cut.name): {max(1, int(np.ceil(fraction * cut.max_rank(kernel.shape) - 1e-9)))
                                 for fraction in (0.05, 0.1, 0.2, 0.3, 0.45, 0.6, 0.75, 0.9)} - {cut.max_rank(kernel.shape)}
             for layer, kernel in kernels.items() for cut in distinct_cuts(kernel.shape)}
    assert sorted((labels["layer"], labels["cut"], labels["rank"]) for labels in truncated) == sorted(
        (*place, rank) for place, of_place in ranks.items() for rank in of_place)
    spatial = {layer for layer, kernel in kernels.items() if kernel.shape[2:].numel() > 1}
    assert {labels["layer"] for labels in noise} == {labels["layer"] for labels in shrunk} == spatial
    assert len(noise) == sum(labels["layer"] in spatial for labels in truncated)


def test_drawn_images_and_shallow_networks_are_measured_whole(model, data, monkeypatch):
    assert not too_large(model, data.name), "17 layers"
    monkeypatch.setattr(experiment_module, "MANY_LAYERS", 10)
    assert too_large(model, data.name) and not too_large(model, "shapes")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert not too_large(model, data.name)


@pytest.mark.parametrize("experiment", ["cp", "tensor-ring", "tensor-train", "multi-mode", "data-aware", "controls", "gauges"])
def test_of_many_layers_what_takes_long_is_done_at_three(model, data, monkeypatch, experiment):
    monkeypatch.setattr(experiment_module, "MANY_LAYERS", 10)
    asked = []
    for _, cells in EXPERIMENTS[experiment].parts(Subject("resnet50", model, data, 0)):
        if cells.asks:  # without the fits
            list(cells.generate(lambda labels: asked.append(labels["layer"])))
        else:
            asked += [labels["layer"] for labels, _ in cells if labels.get("kind") != "mean"]  # of every layer one cell
    assert list(dict.fromkeys(asked)) == ["conv1", "layer2.0.conv2", "layer4.0.conv2"]


def test_without_a_gpu_the_controls_are_fewer_and_of_three_layers(model, data, monkeypatch):
    """Those of a reduced sweep's cuts at one rank, each as with a GPU; and the mean outputs of the same layers."""
    monkeypatch.setattr(experiment_module, "MANY_LAYERS", 10)
    (_, cells), *parts = EXPERIMENTS["controls"].parts(Subject("resnet50", model, data, 0, reduced=True))
    rivals = {tuple(labels[name] for name in ("kind", "layer", "cut", "rank")): kernels for labels, kernels in cells}
    three = ("conv1", "layer2.0.conv2", "layer4.0.conv2")
    assert {key[:3] for key in rivals} == set(itertools.product(
        ("truncation", "noise", "random-rank", "random-error", "smallest", "filters"), three, catalogue.REDUCED_CUTS))
    of_gpu = {tuple(labels[name] for name in ("kind", "layer", "cut", "rank")): kernels for labels, kernels in
              EXPERIMENTS["controls"].parts(Subject("resnet50", model, data, 0))[0][1]}
    for key, kernels in rivals.items():
        assert all(torch.equal(dense(kernel), dense(of_gpu[key][layer])) for layer, kernel in kernels.items())
    (found,) = zip(*(tuple(cells) for _, cells in parts))
    assert [(labels["kind"], labels["layer"]) for labels, _ in found] == [("mean", layer) for layer in three]
    whole = {labels["layer"]: network for network, cells in EXPERIMENTS["controls"].parts(Subject("resnet50", model, data, 0))
             for labels, _ in cells if labels["kind"] == "mean"}
    for (network, _), (labels, kernels) in zip(parts, found):
        layer = labels["layer"]
        assert not kernels[layer].any() and torch.equal(network.get_submodule(layer).bias, whole[layer].get_submodule(layer).bias)


def test_without_a_gpu_the_gauges_are_looked_at_along_one_cut(model, data, monkeypatch):
    """The truncations of the network, and of the one of the same function in which batch norm only shifts."""
    monkeypatch.setattr(experiment_module, "MANY_LAYERS", 10)
    (own, trained), (other, folded) = EXPERIMENTS["gauges"].parts(Subject("resnet50", model, data, 0, reduced=True))
    assert own is model and evaluate(other, data).loss == pytest.approx(evaluate(model, data).loss, rel=1e-4)
    for gauge, network, cells in (("trained", own, trained), ("folded", other, folded)):
        kernels = conv_kernels(network)
        expected = cut_truncations(network, ["conv1", "layer2.0.conv2", "layer4.0.conv2"], ["OUT"], catalogue.DEEP_RANKS)
        for (labels, replaced), (plain, same) in zip(cells, expected, strict=True):
            (layer,) = replaced
            assert labels == plain | {"gauge": gauge, "entropy": entanglement_entropy(kernels[layer], "OUT").item()}
            assert torch.equal(dense(replaced[layer]), dense(same[layer]))


def test_the_data_aware_error_of_a_cell_takes_only_its_layer(model, data):
    every, one = (Subject("resnet50", model, data, 0).moments(layers) for layers in (None, ["layer1.0.conv2"]))
    assert list(every) == list(conv_kernels(model)) and list(one) == ["layer1.0.conv2"]
    assert torch.equal(every["layer1.0.conv2"], one["layer1.0.conv2"])


def test_the_batch_norm_experiment_resumes_run_by_run(deep, monkeypatch):
    monkeypatch.setattr(catalogue, "REESTIMATED_CUTS", ("OUT",))
    monkeypatch.setattr(catalogue, "REESTIMATED_LEVELS", (0.3, 0.6))
    path = measurements.measure("batch-norm", "resnet50", deep, progress=False)
    table = read_table(path)
    assert table[["cut", "level", "statistics"]].values.tolist() == [
        *(["OUT", level, statistics] for level in (0.3, 0.6) for statistics in ("stored", "re-estimated")),
        ["none", 1.0, "re-estimated"]]
    assert set(table.columns) <= COLUMNS.keys()
    content = path.read_bytes()
    monkeypatch.setattr(Reestimation, "run", None)
    assert measurements.measure("batch-norm", "resnet50", deep, progress=False).read_bytes() == content


def test_without_a_gpu_the_batch_norm_experiment_is_on_fewer_test_images_and_as_many_training_images(deep, monkeypatch):
    monkeypatch.setattr(catalogue, "REESTIMATED_CUTS", ("OUT",))
    monkeypatch.setattr(catalogue, "REESTIMATED_LEVELS", (0.3,))
    monkeypatch.setattr(experiment_module, "MANY_LAYERS", 10)
    monkeypatch.setattr(catalogue, "REDUCED_IMAGES", 30)
    monkeypatch.setattr(experiment_module, "REDUCED_IMAGES", 30)
    seen = []
    monkeypatch.setattr("tnlib.experiments.batch_norm.reestimated", lambda network, pixels: seen.append(len(pixels)) or network)
    path = measurements.measure("batch-norm", "resnet50", deep, progress=False)
    card = read_card(path)
    assert read_table(path)["images"].tolist() == [30] * 3 and card["reduced"] and card["test_images"]["number"] == 30
    assert seen == [card["parameters"]["train_images"]["number"]] * 2 and seen[0] > 30


# ---- where re-trainings start ------------------------------------------------------------------------------------------

def test_starts_are_those_of_the_runs_with_other_statistics_and_nothing_trained(model, deep):
    case = Case("OUT", 0.5)
    plan = Retraining("resnet50", model, deep, 0, cases=(case, Case("IN", 0.5)), evaluated=90)
    starts = Starts(plan, {("OUT", 0.5): 0.4})
    assert starts.runs() == [(None, "continued"), (case, "free"), (case, "noise")], "a case that was not re-trained has no start"
    for run in starts.runs():
        ((labels, found),) = starts.run(*run)
        module, about = plan.prepared(*run, level=0.4).start(*run)
        expected = evaluate(reestimated(module, plan.mixed_training_images()), deep)
        assert found.loss == pytest.approx(expected.loss, rel=1e-5) and labels["statistics"] == "re-estimated"
        assert labels.items() >= about.items() and about["level"] == (0.4 if run[0] else 0.0)
        assert found.loss != pytest.approx(evaluate(module, deep).loss, rel=1e-4)
    with pytest.raises(ValueError, match="Sequential has no batch norm"):
        Starts(Retraining("resnet50", nn.Sequential(nn.Conv2d(3, 3, 3)), deep, 0), {})


def test_starts_are_measured_at_the_errors_of_the_re_training_and_without_a_gpu_on_fewer_images(deep, tmp_path, monkeypatch):
    monkeypatch.setattr(catalogue, "FOLDERS", (tmp_path / "none", tmp_path / "results"))
    with pytest.raises(FileNotFoundError, match="no table of the retraining of resnet50 on .*: tnlib measure retraining resnet50"):
        measurements.measure("retraining-statistics", "resnet50", deep, progress=False)
    monkeypatch.setattr(catalogue, "listed_cases", lambda model: (Case("OUT", 0.5), Case("IN", 0.5)))
    begun = pd.DataFrame([{"cut": cut, "strength": strength, "epoch": epoch, "level": level} for cut, strength, level in (
        ("none", 1.0, 0.0), ("OUT", 0.5, 0.4), ("IN", 0.5, 0.5)) for epoch in (0, 1)])
    monkeypatch.setattr(catalogue, "find_table", lambda *of: of)
    monkeypatch.setattr(catalogue, "read_table", lambda of: begun)
    monkeypatch.setattr(experiment_module, "MANY_LAYERS", 10)
    monkeypatch.setattr(catalogue, "REDUCED_IMAGES", 30)
    monkeypatch.setattr(experiment_module, "REDUCED_IMAGES", 30)
    path = measurements.measure("retraining-statistics", "resnet50", deep, progress=False)
    table, card = read_table(path), read_card(path)
    assert table[["cut", "arm", "level", "images"]].values.tolist() == [
        ["none", "continued", 0.0, 30], *([cut, arm, level, 30] for cut, level in (("OUT", 0.4), ("IN", 0.5)) for arm in ("free", "noise"))]
    assert card["reduced"] and card["test_images"]["number"] == 30 and card["parameters"]["evaluated_train_images"]["number"] == 30
    assert set(table.columns) <= COLUMNS.keys()


# ---- paths between re-trained networks -------------------------------------------------------------------------------

def test_on_a_path_the_statistics_are_those_of_every_point(model, deep, tmp_path, monkeypatch):
    monkeypatch.setattr(retraining, "RUNS", tmp_path)
    plan = Retraining("resnet50", model, deep, 0, evaluated=90)
    torch.manual_seed(1)
    ends = {"continued": copy.deepcopy(model), "reordered": copy.deepcopy(model)}
    for arm, network in ends.items():
        for parameter in network.parameters():
            parameter.data += 0.1 * parameter.std() * torch.randn_like(parameter)
        network.bn1.running_mean.fill_(99.0)  # of no use between the ends, and so not used at them either
        plan._keep(network, None, arm)
    rows = list(Paths(plan).run(None, "reordered"))
    some = plan.some_training_images
    mixed = np.random.RandomState(AUGMENTATION_SEED).permutation(len(some.test_labels))
    assert (some.test_labels[:30] == 0).all() and np.bincount(some.test_labels[mixed][:30]).min() > 5, "not class by class"
    seen = augmented(some.test_images[mixed], plan.recipe, AUGMENTATION_SEED)
    assert Paths(plan).parameters()["augmentation"]["crop_padding"] == plan.recipe.crop_padding
    for (labels, found), network in ((rows[0], ends["continued"]), (rows[-1], ends["reordered"])):
        expected = reestimated(network, seen)
        assert found.loss == pytest.approx(evaluate(expected, deep).loss, rel=1e-4)
        assert labels["train_loss"] == pytest.approx(evaluate(expected, some).loss, rel=1e-4)
    vector = lambda network: torch.cat([p.flatten().double() for p in (*network.parameters(), *network.normalize.buffers())])
    start, end = map(vector, ends.values())
    assert rows[5][0]["distance"] == pytest.approx(((end - start).norm() / start.norm()).item())
