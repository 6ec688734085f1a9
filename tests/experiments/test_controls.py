"""Controls: each is what its name says, and loses as much as the truncation that it stands beside."""

import copy

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from tnlib import Cut, Dataset, conv_kernels, entanglement_entropy, evaluate, norm_kept, relative_error, sweep
from tnlib.experiments.controls import (controls, filters_removed, in_gauges, mean_outputs, random_subspace,
                                        smallest_kept)
from tnlib.experiments.evaluation import to_unit_floats
from tnlib.experiments.networks import NETWORKS, Vanilla
from tnlib.experiments.replacements import Replacements, dense
from tnlib.experiments.truncations import cut_truncations

CUTS = ["OUT", "IN", "KW", "OUT,IN", "OUT,KW"]


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(3)
    network = Vanilla(classes=10, channels=(6, 8, 10, 12), hidden=16, image_size=16).eval()
    for layer in (network.conv1, network.conv2):
        nn.init.uniform_(layer.bias, -0.2, 0.2)
    return network


@pytest.fixture(scope="module")
def dataset():
    random = np.random.RandomState(0)
    pixels = random.randint(0, 256, (80, 16, 16, 3)).astype(np.uint8)
    return Dataset(pixels[:30], np.arange(30) % 10, pixels, np.arange(80) % 10)


@pytest.fixture(scope="module")
def truncations(model):
    return cut_truncations(model, ["conv2", "conv3"], CUTS, [0.2, 0.5])


def pairs(truncations, others):
    """(truncation's labels, its kernel, the control's labels, its kernel, the whole kernel), all there once."""
    found = list(zip(truncations, others, strict=True))
    assert len(found) == len(truncations) == len(others)
    for (labels, cell), (other_labels, other) in found:
        assert other.keys() == cell.keys()
        same = ("layer", "cut", "rank", "max_rank")
        assert [labels[name] for name in same] == [other_labels[name] for name in same]
        ((layer, kernel),) = other.items()
        whole = truncations.kernels[layer]
        assert other_labels["norm_kept"] == pytest.approx(norm_kept(whole, kernel).item(), abs=1e-6)
        assert other_labels["relative_error"] == pytest.approx(relative_error(whole, kernel).item(), abs=1e-6)
        assert kernel.dtype == whole.dtype
        yield labels, cell[layer], other_labels, kernel, whole


def short_rows(kernel, cut):
    """The matrix whose rows are the cut's smaller side."""
    matrix = Cut.parse(cut).matricize(kernel.double())
    return matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T


# ---- a random subspace -------------------------------------------------------------------------------------------

def test_a_random_subspace_of_the_same_rank_is_a_projection_of_that_rank(truncations):
    for labels, _, other_labels, kernel, whole in pairs(truncations, random_subspace(truncations, "rank")):
        before, after = short_rows(whole, labels["cut"]), short_rows(kernel, labels["cut"])
        assert torch.linalg.matrix_rank(after, rtol=1e-5) == labels["rank"]
        torch.testing.assert_close((after * (before - after)).sum(), torch.tensor(0.0, dtype=torch.float64), atol=1e-5,
                                   rtol=0)
        assert other_labels["relative_error"] >= labels["relative_error"] and \
            other_labels["parameters"] == labels["parameters"]


def test_a_random_subspace_of_the_same_error_has_the_nearest_of_all_its_ranks(truncations):
    ranks = {}
    for labels, _, other_labels, kernel, whole in pairs(truncations, random_subspace(truncations, "error")):
        sizes = Cut.parse(labels["cut"]).dimensions(whole.shape)
        rank = other_labels["parameters"] // sum(sizes)
        after = short_rows(kernel, labels["cut"])
        assert torch.linalg.matrix_rank(after, rtol=1e-5) == rank >= labels["rank"]
        ranks[labels["layer"], labels["cut"], labels["rank"]] = rank
        every = Replacements(
            truncations.kernels, min(sizes), lambda: ((labels | {"rank": r, "relative_error": 0.0}, {labels["layer"]: whole})
                                                      for r in range(1, min(sizes) + 1)))
        errors = [found["relative_error"] for found, _ in random_subspace(every, "rank")]
        assert np.all(np.diff(errors) < 0), "subspaces of one cut are nested"
        distance = np.abs(np.array(errors) - labels["relative_error"])
        assert distance[rank - 1] == pytest.approx(distance.min(), abs=1e-9)
    assert len(set(ranks.values())) > 3


def test_a_random_subspace_is_uniform(model):
    """The share of the norm² that r of n random directions keep is r/n in the mean, whatever the kernel."""
    truncation = cut_truncations(model, "conv3", ["OUT"], [4])
    kept = [next(iter(random_subspace(truncation, "rank", seed)))[0]["norm_kept"] ** 2 for seed in range(60)]
    assert np.mean(kept) == pytest.approx(4 / 10, abs=3 * np.std(kept) / np.sqrt(60)) and len(set(kept)) == 60
    assert next(iter(truncation))[0]["norm_kept"] ** 2 > max(kept)


def test_an_unknown_match_is_refused(truncations):
    with pytest.raises(ValueError, match="match must be 'rank' or 'error', got 'norm'"):
        random_subspace(truncations, "norm")


# ---- the smallest kept, filters removed --------------------------------------------------------------------------

def test_the_smallest_kept_lose_the_largest_values_at_the_same_error(truncations):
    for labels, _, other_labels, kernel, whole in pairs(truncations, smallest_kept(truncations)):
        assert other_labels["relative_error"] == pytest.approx(labels["relative_error"], abs=1e-5)
        u, s, vh = np.linalg.svd(short_rows(whole, labels["cut"]).numpy(), full_matrices=False)
        kept = np.diag(u.T @ short_rows(kernel, labels["cut"]).numpy() @ vh.T)
        removed = s - kept
        assert np.allclose(u @ np.diag(kept) @ vh, short_rows(kernel, labels["cut"]).numpy(), atol=1e-5)
        partly = np.flatnonzero((removed > 1e-4) & (kept > 1e-4))
        assert len(partly) <= 1, "one value at most is removed in part"
        gone = np.flatnonzero(kept <= 1e-4)
        assert (gone == np.arange(len(gone))).all() and (not len(partly) or partly[0] == len(gone)), "the leading ones"


def test_filters_of_least_norm_are_removed_at_no_more_parameters(truncations):
    for labels, _, other_labels, kernel, whole in pairs(truncations, filters_removed(truncations)):
        norms = whole.flatten(1).norm(dim=1)
        stay = kernel.flatten(1).any(1)
        assert (kernel[stay] == whole[stay]).all() and norms[stay].min() >= norms[~stay].max()
        assert other_labels["parameters"] == int(stay.sum()) * whole[0].numel()
        assert other_labels["parameters"] <= labels["parameters"] < other_labels["parameters"] + whole[0].numel()


# ---- mean output -------------------------------------------------------------------------------------------------

def test_a_layers_mean_output_takes_its_place(model, dataset):
    images = np.arange(0, 70, 2)
    image = to_unit_floats(torch.from_numpy(dataset.train_images[images]))
    parts = mean_outputs(model, dataset, images)
    assert len(parts) == 4
    for network, cells in parts:
        ((labels, cell),) = cells
        ((layer, kernel),) = cell.items()
        assert not kernel.any() and labels["layer"] == layer and labels["relative_error"] == 1
        x = model.normalize(image)
        for name, conv in model.named_children():
            if not name.startswith("conv"):
                continue
            y = conv(x)
            if name == layer:
                break
            x = F.avg_pool2d(F.relu(y), 2)
        torch.testing.assert_close(network.get_submodule(layer).bias, y.mean((0, 2, 3)), atol=1e-6, rtol=1e-5)
        others = {name: value for name, value in network.state_dict().items() if name != f"{layer}.bias"}
        assert all(torch.equal(value, model.state_dict()[name]) for name, value in others.items())


def test_a_network_in_training_keeps_its_statistics(dataset):
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1), nn.Flatten()).train()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    mean_outputs(network, dataset, np.arange(20))
    assert network.training and all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


# ---- gauges, and all of them -------------------------------------------------------------------------------------

def test_gauges_are_one_function_whose_truncations_differ(model, dataset):
    image = to_unit_floats(torch.from_numpy(dataset.test_images))
    parts = in_gauges(model, ["OUT,KW"], [0.3], seed=1)
    entropies = {}
    for network, cells in parts:
        torch.testing.assert_close(network(image), model(image), atol=1e-4, rtol=1e-3)
        for (labels, cell), (plain, truncated) in zip(cells, cut_truncations(network, cuts=["OUT,KW"], ranks=[0.3])):
            assert labels == {"gauge": labels["gauge"], **plain, "entropy": labels["entropy"]}
            assert torch.equal(dense(cell[plain["layer"]]), dense(truncated[plain["layer"]]))
            whole = conv_kernels(network)[labels["layer"]]
            assert labels["entropy"] == pytest.approx(entanglement_entropy(whole, "OUT,KW").item())
            entropies.setdefault(labels["gauge"], []).append(labels["entropy"])
    assert list(entropies) == ["trained", "balanced", "random"]
    assert np.mean(entropies["random"]) < np.mean(entropies["trained"])


def test_of_a_deep_network_some_layers_are_truncated_and_each_gives_its_mean(dataset):
    """Means of many layers take the memory of their biases, and a sweep answers as the changed network does."""
    deep = NETWORKS["resnet50"].build(classes=10, stem="s2", blocks=(1, 1, 1, 1), width=8).eval()
    (_, truncated), *means = controls(deep, dataset, np.arange(50), ["OUT"], [0.2], layers=["layer2.0.conv2"])
    assert {labels["layer"] for labels, _ in truncated} == {"layer2.0.conv2"}
    assert [labels["layer"] for _, cells in means for labels, _ in cells] == list(conv_kernels(deep))
    owned = {tensor.data_ptr() for tensor in deep.state_dict().values()}
    for changed, cells in means[::6]:
        ((labels, _),) = cells
        new = [name for name, tensor in changed.state_dict().items() if tensor.data_ptr() not in owned]
        assert new == [f"{labels['layer']}.bias"]
        ((_, answers),) = sweep(changed, dataset, cells, progress=False)
        blind = copy.deepcopy(changed)
        nn.init.zeros_(blind.get_submodule(labels["layer"]).weight)
        assert answers.loss == pytest.approx(evaluate(blind, dataset).loss, rel=1e-4)
    assert all(conv.bias is None for conv in deep.modules() if isinstance(conv, nn.Conv2d)), "the model is as it was"


def test_every_truncation_has_every_control(model, dataset):
    parts = controls(model, dataset, np.arange(50), CUTS, [0.2, 0.5], seed=0)
    cells = [(labels["kind"], labels["layer"], labels["cut"], labels["rank"]) for _, part in parts for labels, _ in part]
    assert len(cells) == len(set(cells)) == sum(len(part) for _, part in parts)
    by_kind = {kind: {cell[1:] for cell in cells if cell[0] == kind} for kind, *_ in cells}
    truncated = by_kind.pop("truncation")
    assert by_kind.pop("mean") == {(f"conv{k}", "none", 0) for k in range(1, 5)}
    assert list(by_kind) == ["noise", "random-rank", "random-error", "smallest", "filters"]
    assert all(found == truncated for found in by_kind.values())
    columns = {frozenset(labels) for _, part in parts for labels, _ in part}
    assert len(columns) == 1, "one table"
