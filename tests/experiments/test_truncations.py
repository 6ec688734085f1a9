"""Generators of replacements against the definitions they state, and the table of a truncation sweep."""

import logging
import math

import numpy as np
import pytest
import torch
from torch import nn

from tests.experiments.sweep_cases import model_and_data, swapped
from tnlib import (CUTS, Cut, Dataset, conv_kernels, factorize, norm_kept, relative_error, sweep, truncate,
                   truncation_sweep)
from tnlib.experiments.controls import SHRINK, matched_noise, shrink
from tnlib.experiments.data_aware import (data_aware_error, data_aware_truncations, patch_moments,
                                          with_data_aware_error)
from tnlib.experiments.factorizations import cp_truncations
from tnlib.experiments.replacements import dense, rank_grid
from tnlib.experiments.truncations import cut_truncations, joint_truncations, outcome
from tnlib.tensors.cuts import distinct_cuts


class Small(nn.Module):
    """A 3×3, a 1×1, a depthwise and a strided kernel; correlated, so that their singular values fall off."""

    def __init__(self):
        super().__init__()
        self.first, self.point = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 12, 1)
        self.depthwise, self.last = nn.Conv2d(12, 12, 3, groups=12), nn.Conv2d(12, 10, 3, stride=2, padding="valid")

    def forward(self, image):
        x = self.depthwise(self.point(self.first(image).relu()).relu())
        return self.last(x).mean((2, 3))


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(3)
    return Small().eval()


@pytest.fixture(scope="module")
def dataset(model):
    random = np.random.RandomState(0)
    pixels = random.randint(0, 256, (60, 12, 12, 3)).astype(np.uint8)
    return Dataset(pixels, random.permutation(np.arange(60) % 10), pixels[:40], np.arange(40) % 10)


def check_norms(model, cells, exact=True):
    """norm_kept and relative_error of the labels against the kernels, over the layers of a joint cell together."""
    kernels = conv_kernels(model)
    for labels, replaced in cells:
        pairs = [(kernels[layer].double(), dense(replaced.get(layer, kernels[layer])).double())
                 for layer in (replaced if "layer" in labels else kernels)]
        whole = sum(kernel.square().sum() for kernel, _ in pairs)
        kept = (sum(other.square().sum() for _, other in pairs) / whole).sqrt().item()
        lost = (sum((kernel - other).square().sum() for kernel, other in pairs) / whole).sqrt().item()
        assert labels["norm_kept"] == pytest.approx(kept, abs=1e-6)
        assert labels["relative_error"] == pytest.approx(lost, abs=1e-5)
        if exact:
            assert kept**2 + lost**2 == pytest.approx(1, abs=1e-5)


# ---- along cuts --------------------------------------------------------------------------------------------------

def test_every_distinct_cut_and_rank_once_and_as_truncate_gives_it(model):
    cells = cut_truncations(model)
    found = [(labels["layer"], labels["cut"], labels["rank"]) for labels, _ in cells]
    expected = [(layer, cut.name, rank) for layer, kernel in conv_kernels(model).items()
                for cut in distinct_cuts(kernel.shape) for rank in rank_grid(cut.max_rank(kernel.shape))]
    assert found == expected and len(cells) == len(found)
    assert {cut for layer, cut, _ in found if layer == "point"} == {"OUT"}
    check_norms(model, cells)
    for labels, replaced in cells:
        (layer, factors), = replaced.items()
        kernel, original = factors.to_kernel(), conv_kernels(model)[layer]
        torch.testing.assert_close(kernel, truncate(original, labels["cut"], labels["rank"]), atol=1e-6, rtol=1e-5)
        assert kernel.dtype == original.dtype and labels["max_rank"] == Cut.parse(labels["cut"]).max_rank(kernel.shape)
        assert labels["parameters"] == factors.num_parameters


def test_one_decomposition_for_all_ranks(model, monkeypatch):
    count, eigh = [], torch.linalg.eigh
    monkeypatch.setattr(torch.linalg, "eigh", lambda matrix: count.append(1) or eigh(matrix))
    assert len(list(cut_truncations(model, "last", ["OUT", "KH"]))) > 8 and len(count) == 2


def test_a_cut_that_equals_another_is_taken_where_it_is_asked_for_alone(model):
    assert {labels["cut"] for labels, _ in cut_truncations(model, "point", ["OUT,KW"])} == {"OUT,KW"}


@pytest.mark.parametrize("max_rank", [2, 3, 9, 12, 13, 27, 64, 96, 384, 1536])
def test_the_default_grid(max_rank):
    grid = rank_grid(max_rank)
    assert grid == sorted(set(grid)) and grid[0] == 1 and grid[-1] < max_rank
    assert len(grid) == max_rank - 1 if max_rank <= 12 else 10 <= len(grid) <= 14


def ranks_of(model, ranks, cut="OUT,KW", layer="last"):
    return [labels["rank"] for labels, _ in cut_truncations(model, layer, [cut], ranks)]


def test_ranks_are_ints_or_fractions(model):
    most = Cut.parse("OUT,KW").max_rank(conv_kernels(model)["last"].shape)
    assert most == 30
    assert ranks_of(model, [5, 1, 5]) == [1, 5]
    assert ranks_of(model, [0.5, 0.001, 0.7, 0.51]) == [1, 15, 16, 21]  # 0.7 · 30 is 21, not a little more
    assert ranks_of(model, 0.5) == [15] and ranks_of(model, np.int64(3)) == [3]


def test_a_rank_too_high_for_some_cuts_is_left_out_there_and_logged(model, caplog):
    with caplog.at_level(logging.INFO):
        found = [(labels["cut"], labels["rank"]) for labels, _ in cut_truncations(model, "last", ["KW", "OUT"], [2, 5])]
    assert found == [("KW", 2), ("OUT", 2), ("OUT", 5)]
    assert "rank 5 is left out where it is not below max_rank: last KW" in caplog.text


BAD = {
    "unknown layer": ({"layers": ["conv1"]}, "unknown layer 'conv1': the model's convolutions are 'first', 'point'"),
    "no layers": ({"layers": []}, "layers is empty"),
    "unknown cut": ({"cuts": ["OUT,HK"]}, "unknown cut 'OUT,HK'"),
    "no cuts": ({"cuts": []}, "cuts is empty"),
    "cuts None": ({"cuts": None}, "cuts must hold cuts or their names, got None"),
    "a number of layers": ({"layers": 5}, "layers must hold names of layers, or None for all, got 5"),
    "no ranks": ({"ranks": []}, "ranks is empty"),
    "rank 0": ({"ranks": [0]}, "ranks takes whole numbers from 1 and fractions strictly between 0 and 1, got 0"),
    "1.0": ({"ranks": [1.0]}, "got 1.0"),
    "2.5": ({"ranks": [2.5]}, "got 2.5"),
    "nan": ({"ranks": [math.nan]}, "got nan"),
    "True": ({"ranks": [True]}, "got True"),
    "text": ({"ranks": ["3"]}, "got '3'"),
    "a word": ({"ranks": "half"}, "ranks must hold ranks or fractions, or None for the default grid, got 'half'"),
    "a tensor": ({"ranks": torch.tensor(3)}, r"ranks must hold ranks or fractions, or None for the default grid, got tensor\(3\)"),
    "a number of numpy's": ({"ranks": np.bool_(True)}, "ranks must hold ranks or fractions"),
    "too high": ({"ranks": [2, 31]}, "rank 31 truncates nothing: it must be below the max_rank .* at most 30 here"),
    "full": ({"ranks": [0.99], "cuts": ["KW"]}, "rank 0.99 truncates nothing"),
    "trivial": ({"layers": ["point"], "cuts": ["KW"]}, "nothing to truncate"),
    "trivial, at a rank": ({"layers": ["point"], "cuts": ["KW"], "ranks": [2]}, "nothing to truncate"),
}


@pytest.mark.parametrize("arguments, message", BAD.values(), ids=BAD)
def test_bad_input(model, dataset, arguments, message):
    with pytest.raises((ValueError, TypeError), match=message):
        truncation_sweep(model, dataset, **arguments)


def test_ranks_are_taken_from_arrays_and_tensors(model):
    listed = [labels for labels, _ in cut_truncations(model, ranks=[1, 2])]
    assert listed == [labels for labels, _ in cut_truncations(model, ranks=torch.tensor([1, 2]))]
    assert listed == [labels for labels, _ in cut_truncations(model, ranks=np.array([1, 2]))]


def test_a_zero_kernel_has_nothing_to_truncate_and_is_logged(caplog):
    caplog.set_level("INFO")
    zeroed = Small()
    zeroed.last.weight.data.zero_()
    assert {labels["layer"] for labels, _ in cut_truncations(zeroed)} == {"first", "point", "depthwise"}
    assert "layer last is left out: its kernel is zero" in caplog.text


# ---- joint -------------------------------------------------------------------------------------------------------

def test_joint_truncations(model):
    cells = joint_truncations(model, levels=[0.3, 0.9])
    kernels, found = conv_kernels(model), list(cells)
    assert len(found) == len(cells) and {labels["cut"] for labels, _ in found} == {cut.name for cut in CUTS}
    check_norms(model, found)
    for labels, replaced in found:
        cut, total = Cut.parse(labels["cut"]), 0
        for layer, kernel in kernels.items():
            most = cut.max_rank(kernel.shape)
            rank = max(1, math.ceil(round(labels["level"] * most, 9)))
            assert (layer in replaced) == (rank < most)
            total += rank * sum(cut.dimensions(kernel.shape)) if rank < most else kernel.numel()
            if layer in replaced:
                torch.testing.assert_close(dense(replaced[layer]), truncate(kernel, cut, rank), atol=1e-6, rtol=1e-5)
        assert labels["parameters"] == total


def test_joint_truncations_that_are_alike_are_there_once():
    points = nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1))
    assert [labels["cut"] for labels, _ in joint_truncations(points, levels=[0.5, 0.4, 0.2])] == ["OUT"] * 2
    assert len(joint_truncations(nn.Sequential(nn.Conv2d(3, 8, 3)), ["KW"], levels=[0.4, 0.5, 0.6, 0.7, 0.9])) == 1


def test_joint_truncations_of_one_error_take_the_lowest_rank_that_keeps_to_it(model):
    kernels, cells = conv_kernels(model), joint_truncations(model, common="error", levels=[0.25, 0.6])
    found = list(cells)
    assert len(found) == len(cells) > 7
    check_norms(model, found)
    for labels, replaced in found:
        cut = Cut.parse(labels["cut"])
        for layer, kernel in kernels.items():
            errors = [relative_error(kernel, truncate(kernel, cut, rank)) for rank in range(1, cut.max_rank(kernel.shape))]
            allowed = [rank for rank, error in enumerate(errors, 1) if error <= labels["level"] + 1e-6]
            assert (layer in replaced) == bool(allowed)
            if allowed:
                torch.testing.assert_close(dense(replaced[layer]), truncate(kernel, cut, allowed[0]), atol=1e-6, rtol=1e-5)


def test_joint_truncations_of_some_layers_count_the_others_as_they_are(model):
    (labels, replaced), = joint_truncations(model, ["OUT"], levels=[0.5], layers=["last"])
    kernels = conv_kernels(model)
    assert set(replaced) == {"last"}
    squares = {layer: kernel.square().sum().item() for layer, kernel in kernels.items()}
    lost = (kernels["last"] - dense(replaced["last"])).square().sum().item()
    assert labels["relative_error"] == pytest.approx(math.sqrt(lost / sum(squares.values())), rel=1e-4)
    factors = factorize(kernels["last"], "OUT", math.ceil(len(kernels["last"]) / 2)).num_parameters
    assert labels["parameters"] == factors + sum(kernel.numel() for layer, kernel in kernels.items() if layer != "last")


def test_joint_truncations_refuse_other_things_in_common(model):
    with pytest.raises(ValueError, match="common must be 'fraction' or 'error', got 'rank'"):
        joint_truncations(model, common="rank")
    with pytest.raises(ValueError, match="strictly between 0 and 1"):
        joint_truncations(model, common="error", levels=[1.5])


# ---- controls ----------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("make", [
    lambda model: cut_truncations(model, ["first", "last"], ranks=[1, 0.5]),
    lambda model: joint_truncations(model, ["OUT"], levels=[0.3]),
    lambda model: cp_truncations(model, [2], ["last"], max_iterations=5)], ids=["cuts", "joint", "cp"])
def test_matched_noise_has_the_norm_the_error_and_the_overlap(model, make):
    truncations = make(model)
    noise = matched_noise(truncations, draws=2, seed=1)
    cells, kernels = list(noise), conv_kernels(model)
    assert len(cells) == len(noise) == 2 * len(truncations)
    for k, (labels, truncated) in enumerate(truncations):
        for draw in range(2):
            noise_labels, replaced = cells[2 * k + draw]
            assert noise_labels == labels | {"draw": draw} and replaced.keys() == truncated.keys()
            for layer, other in replaced.items():
                kernel, cut = kernels[layer].double(), dense(truncated[layer]).double()
                overlap = lambda a, b: (a * b).sum() / a.square().sum()
                for measure in (norm_kept, relative_error, overlap):
                    found, expected = measure(kernel, other.double()), measure(kernel, cut)
                    assert found.item() == pytest.approx(expected.item(), abs=1e-5)
                assert relative_error(cut, other.double()) > 0.1  # in another direction
        first, second = (cells[2 * k + draw][1] for draw in range(2))
        assert all(not torch.equal(first[layer], second[layer]) for layer in first)


def test_matched_noise_of_a_truncation_is_the_formula(model):
    (labels, replaced), = matched_noise(cut_truncations(model, "last", ["OUT"], [3]), 1)
    kernel, other = conv_kernels(model)["last"].double(), replaced["last"].double()
    nu, epsilon = labels["norm_kept"], labels["relative_error"]
    direction = (other - nu**2 * kernel) / (nu * epsilon * kernel.norm())
    assert direction.norm().item() == pytest.approx(1, abs=1e-5)
    assert (direction * kernel).sum().item() == pytest.approx(0, abs=1e-5)


def test_a_draw_does_not_depend_on_the_other_cells(model):
    one = {labels["rank"]: cell["last"] for labels, cell in matched_noise(
        cut_truncations(model, "last", ["OUT"], [2, 5]), 1)}
    (_, alone), = matched_noise(cut_truncations(model, "last", ["OUT"], [5]), 1)
    (_, other), = matched_noise(cut_truncations(model, "last", ["OUT"], [5]), 1, seed=1)
    assert torch.equal(alone["last"], one[5]) and not torch.equal(alone["last"], other["last"])


def test_shrink(model):
    cells = list(shrink(model, layers=["first", "last"]))
    assert len(SHRINK) == 20 and len(cells) == len(shrink(model, layers=["first", "last"])) == 40
    check_norms(model, cells, exact=False)
    assert {0.95, 0.9, 0.8} <= set(SHRINK) and 1 not in SHRINK


# ---- data-aware --------------------------------------------------------------------------------------------------

@pytest.fixture(scope="module")
def moments(model, dataset):
    return patch_moments(model, dataset, batch_size=7)


def inputs_of(model, dataset, layer):
    seen = []
    hook = model.get_submodule(layer).register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    with torch.no_grad():
        model(torch.from_numpy(dataset.train_images).permute(0, 3, 1, 2) / 255)
    hook.remove()
    return seen[0].double()


def convolved(model, layer, image, kernel):
    module = model.get_submodule(layer)
    return torch.nn.functional.conv2d(image, kernel.double(), None, module.stride, module.padding, module.dilation)


def test_the_data_aware_error_agrees_with_convolving(model, dataset, moments):
    assert list(moments) == ["first", "point", "last"]  # one Σ a group has the depthwise layer
    for layer, moment in moments.items():
        kernel, image = conv_kernels(model)[layer], inputs_of(model, dataset, layer)
        assert moment.shape == (kernel[0].numel(),) * 2 and moment.dtype == torch.float64
        torch.testing.assert_close(moment, moment.T)
        for seed in range(2):
            other = kernel + torch.randn(kernel.shape, generator=torch.Generator().manual_seed(seed))
            expected = convolved(model, layer, image, kernel - other).norm() / convolved(
                model, layer, image, kernel).norm()
            assert data_aware_error(kernel, other, moment) == pytest.approx(expected.item(), rel=1e-5)


def test_no_kernel_of_the_rank_has_a_lower_data_aware_error(model, moments):
    generator = torch.Generator().manual_seed(0)
    for labels, replaced in data_aware_truncations(model, moments, ranks=[1, 3]):
        layer, rank = labels["layer"], labels["rank"]
        kernel, found = conv_kernels(model)[layer].double(), dense(replaced[layer]).double()
        assert torch.linalg.matrix_rank(found.flatten(1), rtol=1e-5) == rank
        assert labels["data_aware_error"] == pytest.approx(
            data_aware_error(kernel, found, moments[layer]), abs=1e-6)
        assert labels["data_aware_error"] <= data_aware_error(kernel, truncate(kernel, "OUT", rank), moments[layer])
        u, s, vh = torch.linalg.svd(found.flatten(1), full_matrices=False)
        for size in (1e-3, 1e-2, 0.1, 1):  # kernels of the same rank, near and far
            draw = lambda *shape: size * torch.randn(shape, generator=generator, dtype=torch.float64)
            left, right = u[:, :rank] * s[:rank] + draw(len(u), rank), vh[:rank] + draw(rank, vh.shape[1])
            other = (left @ right).view(kernel.shape)
            assert data_aware_error(kernel, other, moments[layer]) >= labels["data_aware_error"] - 1e-6


def test_it_is_the_svd_weighted_by_the_root_and_undone_by_its_inverse(model, moments):
    kernel, moment = conv_kernels(model)["first"].double(), moments["first"]
    values, vectors = torch.linalg.eigh(moment)
    root = vectors * values.clamp(min=1e-12).sqrt() @ vectors.T
    u, s, vh = torch.linalg.svd(kernel.flatten(1) @ root, full_matrices=False)
    expected = (u[:, :4] * s[:4] @ vh[:4]) @ torch.linalg.inv(root)
    (_, replaced), = data_aware_truncations(model, moments, "first", [4])
    torch.testing.assert_close(dense(replaced["first"]).flatten(1).double(), expected, atol=1e-5, rtol=1e-4)


def test_data_without_correlations_gives_the_plain_truncation(model):
    kernel = conv_kernels(model)["last"]
    (labels, replaced), = data_aware_truncations(model, {"last": torch.eye(108, dtype=torch.float64)}, ranks=[4])
    torch.testing.assert_close(dense(replaced["last"]), truncate(kernel, "OUT", 4), atol=1e-5, rtol=1e-4)
    assert labels["data_aware_error"] == pytest.approx(labels["relative_error"], abs=1e-6)


def test_the_data_aware_error_is_added_where_it_is_known(model, moments):
    cells = with_data_aware_error(cut_truncations(model, ["depthwise", "last"], ranks=[2]), moments)
    for labels, replaced in cells:
        (layer, kernel), = replaced.items()
        assert labels.get("data_aware_error") == (None if layer == "depthwise" else data_aware_error(
            conv_kernels(model)["last"], dense(kernel), moments["last"]))
    assert len(cells) == len(list(cells))
    assert all("data_aware_error" not in labels for labels, _ in matched_noise(cells, 1))


def test_second_moments_that_there_are_not(model, dataset, moments):
    with pytest.raises(ValueError, match="'depthwise' has groups=12"):
        patch_moments(model, dataset, layers=["depthwise"])
    with pytest.raises(ValueError, match="moments has no second moment of 'depthwise'"):
        data_aware_truncations(model, moments, "depthwise")
    chosen = patch_moments(model, dataset, "test", images=[3, 4], layers=["first"])
    assert list(chosen) == ["first"] and not model.training


def test_images_that_there_are_not_leave_no_hook_behind(model, dataset):
    with pytest.raises(ValueError, match="has no train images"):
        patch_moments(model, Dataset(dataset.test_images, dataset.test_labels))
    assert not any(module._forward_pre_hooks for module in model.modules())


# ---- the table ---------------------------------------------------------------------------------------------------

def test_the_table_of_a_truncation_sweep(capsys):
    model, dataset = model_and_data("vanilla")
    table = truncation_sweep(model, dataset, ["conv2", "conv4"], ["OUT", "KH"], [1, 0.5])
    assert list(table) == ["layer", "cut", "rank", "max_rank", "norm_kept", "relative_error", "parameters", "images",
                           "correct", "lost", "gained", "accuracy", "accuracy_drop", "loss"]
    assert "untruncated: 100.00% of 200 images" in capsys.readouterr().err and len(table) == 8
    for row in table.itertuples():
        kernel = truncate(conv_kernels(model)[row.layer], row.cut, row.rank)
        expected = swapped(model, dataset, {row.layer: kernel})
        assert (row.images, row.correct) == (200, expected.correct.sum())
        assert (row.lost, row.gained) == (200 - row.correct, 0)
        assert row.accuracy == row.correct / 200 and row.accuracy_drop == pytest.approx(100 * (1 - row.accuracy))
        assert row.loss == pytest.approx(expected.loss, rel=1e-4)


def test_counts_against_the_baseline():
    evaluation = lambda *right: type("", (), {"correct": np.array(right, dtype=bool), "loss": 0.5,
                                              "accuracy": float(np.mean(right))})
    assert outcome(evaluation(1, 0, 0, 1, 1), evaluation(1, 1, 1, 0, 1)) == {
        "images": 5, "correct": 3, "lost": 2, "gained": 1, "accuracy": 0.6, "accuracy_drop": 20.0, "loss": 0.5}


def test_a_network_at_chance_is_warned_of(model, dataset):
    with pytest.warns(UserWarning, match="the untruncated network is at chance"):
        truncation_sweep(model, dataset, "point", ranks=[1])


def test_generators_go_through_the_sweep_as_they_are(model, dataset):
    cells = joint_truncations(model, ["OUT"], levels=[0.5])
    (labels, evaluation), = sweep(model, dataset, cells, progress=False)
    assert np.array_equal(evaluation.correct, swapped(model, dataset, next(iter(cells))[1]).correct)
