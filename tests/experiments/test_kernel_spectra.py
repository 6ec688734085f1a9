"""Spectra of a network's kernels against numpy and quimb, in every gauge, with their references and their summary."""

import math

import numpy as np
import pandas as pd
import pytest
import quimb.tensor as qtn
import torch
from torch import nn

from tnlib import conv_kernels
from tnlib.experiments import weights
from tnlib.experiments.gauges import balanced, random_gauge
from tnlib.experiments.kernel_spectra import cut_spectra, gaussian_draws, kernel_spectra, network_spectra, summary
from tnlib.experiments.networks import Vanilla
from tnlib.experiments.weights import save_weights
from tnlib.tensors.cuts import CUTS, MODES
from tnlib.tensors.spectra import marchenko_pastur, shuffled_rows

CHANNELS = (6, 32, 30, 4)
LAYERS = ["conv1", "conv2", "conv3", "conv4"]
HEAD = ["layer", "depth", "cut", "gauge", "kind", "sample", "rows", "columns", "max_rank"]
GAUGES = {"trained": lambda model: model, "balanced": balanced, "random": lambda model: random_gauge(model, 4, 0.7)}
every_cut = pytest.mark.parametrize("cut", [cut.name for cut in CUTS])


def vanilla(seed=0, channels=CHANNELS):
    torch.manual_seed(seed)
    return Vanilla(3, channels, hidden=8, image_size=16)


@pytest.fixture(scope="module")
def model():
    return vanilla()


@pytest.fixture(scope="module")
def spectra(model):
    return kernel_spectra(model, samples=3, gauge_seed=4, gauge_spread=0.7)


def by_numpy(kernel, cut):
    """Singular values over their norm, of the matrix that numpy's transposition gives."""
    rows = cut.split(",")
    order = [MODES.index(mode) for mode in rows + [mode for mode in MODES if mode not in rows]]
    array = kernel.detach().double().numpy()
    matrix = array.transpose(order).reshape(np.prod([array.shape[MODES.index(mode)] for mode in rows]), -1)
    values = np.linalg.svd(matrix, compute_uv=False)
    return values / np.linalg.norm(values)


def values_of(table, **where):
    for column, value in where.items():
        table = table[table[column] == value]
    assert table["index"].tolist() == list(range(1, len(table) + 1)), where
    return table["value"].to_numpy()


# ---- the kernels' own spectra ------------------------------------------------------------------------------------

@every_cut
@pytest.mark.parametrize("gauge", GAUGES)
def test_spectra_are_numpys_in_every_gauge(model, spectra, cut, gauge):
    for layer, kernel in conv_kernels(GAUGES[gauge](model)).items():
        found = values_of(spectra, layer=layer, cut=cut, gauge=gauge, kind="kernel")
        np.testing.assert_allclose(found, by_numpy(kernel, cut), atol=1e-7)


def test_some_layers_outside_the_trained_gauge_are_the_same_rows_of_the_whole(model, spectra):
    found = kernel_spectra(model, samples=3, gauge_seed=4, gauge_spread=0.7, layers=["conv2", "conv4"], trained=False)
    expected = spectra[spectra.layer.isin(["conv2", "conv4"]) & (spectra.gauge != "trained")]
    rows = [*HEAD, "index"]
    pd.testing.assert_frame_equal(*(table.sort_values(rows).reset_index(drop=True) for table in (found, expected)))


def test_columns_say_where_a_value_belongs(model, spectra):
    assert list(spectra) == [*HEAD, "index", "value"]
    assert spectra.groupby("layer")["depth"].unique().map(list).to_dict() == {
        layer: [depth] for depth, layer in enumerate(LAYERS, start=1)}
    assert set(spectra["cut"]) == {cut.name for cut in CUTS}
    conv2 = spectra[spectra.layer == "conv2"].groupby("cut")[["rows", "columns", "max_rank"]].first()
    assert conv2.loc["OUT,KW"].tolist() == [96, 18, 18] and conv2.loc["KH"].tolist() == [3, 576, 3]
    for _, spectrum in spectra.groupby(HEAD):
        assert len(spectrum) == spectrum["max_rank"].iloc[0]
        assert np.linalg.norm(spectrum["value"]) == pytest.approx(1)
        assert (spectrum["value"].diff().iloc[1:] <= 1e-12).all()


def test_only_distinct_cuts_are_there():
    found = kernel_spectra(nn.Sequential(nn.Conv2d(4, 8, 1), nn.Conv2d(8, 8, 3, groups=8)), samples=1)
    assert {layer: list(part.unique()) for layer, part in found.groupby("layer")["cut"]} == {
        "0": ["OUT"], "1": ["KW", "KH", "OUT"]}


def test_a_network_without_gauges_has_the_trained_one_only():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.BatchNorm2d(8), nn.Conv2d(8, 4, 3))
    found = kernel_spectra(model, samples=2)
    assert set(found["gauge"]) == {"trained", "none"} and set(found["layer"]) == {"0", "3"}
    np.testing.assert_allclose(values_of(found, layer="3", cut="IN", kind="kernel"), by_numpy(model[3].weight, "IN"))


@pytest.fixture
def three_threads():
    threads = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(threads)


def test_cuts_computed_side_by_side_are_those_of_each_kernel(model, three_threads):
    kernels = conv_kernels(model) | {"pointwise": torch.randn(4, 8, 1, 1)}
    found = cut_spectra(kernels)
    assert list(found) == list(kernels) and list(found["pointwise"]) == ["OUT"]
    for layer in LAYERS:
        assert list(found[layer]) == [cut.name for cut in CUTS]
        for cut, values in found[layer].items():
            np.testing.assert_allclose(values / values.norm(), by_numpy(kernels[layer], cut), atol=1e-6)
    assert torch.get_num_threads() == 3


def test_a_kernel_that_cannot_be_decomposed_stops_and_leaves_the_threads_as_they_were(three_threads):
    with pytest.raises(TypeError, match="float"):
        cut_spectra({"good": torch.randn(4, 4, 3, 3), "bad": torch.ones(4, 4, 3, 3, dtype=torch.int)})
    assert torch.get_num_threads() == 3


def test_the_network_stays_as_it_is(model, spectra):
    fresh = vanilla().state_dict()
    assert all(torch.equal(tensor, fresh[name]) for name, tensor in model.state_dict().items())


# ---- what chance would give --------------------------------------------------------------------------------------

def test_references_and_their_numbers(spectra):
    counts = spectra[spectra["index"] == 1].groupby(["layer", "cut", "gauge", "kind"]).size().unstack(["gauge", "kind"])
    law = counts.pop(("none", "marchenko_pastur"))
    assert {column: set(counts[column]) for column in counts} == {
        ("trained", "kernel"): {1}, ("balanced", "kernel"): {1}, ("random", "kernel"): {1},
        ("none", "gaussian"): {3 * number for number in (62, 6, 2, 10)},  # in the order of the layers, 10,000 over their entries
        ("trained", "shuffled"): {3}, ("balanced", "shuffled"): {3}}
    assert spectra[spectra.kind == "gaussian"].groupby("layer", sort=False)["sample"].nunique().tolist() == [
        3 * math.ceil(10_000 / kernel.numel()) for kernel in conv_kernels(vanilla()).values()]
    # Both sides at least 30: conv2 is (32, 6, 3, 3), conv3 (30, 32, 3, 3), and conv4 (4, 30, 3, 3).
    assert set(law.dropna().index) == {("conv2", "OUT"), ("conv3", "OUT"), ("conv3", "IN"), ("conv3", "OUT,KW"),
                                       ("conv3", "OUT,KH"), ("conv4", "IN")}
    for (layer, cut), rows, columns in [(("conv3", "OUT,KH"), 90, 96), (("conv4", "IN"), 30, 36)]:
        found = values_of(spectra, layer=layer, cut=cut, kind="marchenko_pastur")
        np.testing.assert_allclose(found, marchenko_pastur(rows, columns))


@pytest.mark.parametrize("gauge", ["trained", "balanced"])
def test_shuffled_references_are_of_the_same_gauge(model, spectra, gauge):
    for layer, kernel in conv_kernels(GAUGES[gauge](model)).items():
        for sample in range(3):
            found = values_of(spectra, layer=layer, cut="OUT,KW", gauge=gauge, kind="shuffled", sample=sample)
            expected = by_numpy(shuffled_rows(kernel.double(), sample), "OUT,KW")
            np.testing.assert_allclose(found, expected, atol=1e-7)


@every_cut
def test_gaussian_references_are_those_of_numpys_gaussian_kernels(spectra, cut):
    found = [values_of(spectra, layer="conv2", cut=cut, kind="gaussian", sample=sample) for sample in range(3)]
    assert not np.array_equal(found[0], found[1])
    draws = np.random.RandomState(0).standard_normal((100, 32, 6, 3, 3))
    expected = np.array([by_numpy(torch.from_numpy(draw), cut) for draw in draws])
    assert (abs(np.mean(found, 0) - expected.mean(0)) <= 5 * expected.std(0) / np.sqrt(3)).all()


def test_gaussian_references_depend_on_the_shape_alone(spectra):
    other = kernel_spectra(vanilla(seed=1), samples=2)
    for layer in LAYERS:
        where = dict(layer=layer, cut="IN", kind="gaussian", sample=1)
        np.testing.assert_array_equal(values_of(other, **where), values_of(spectra, **where))
    assert 3 * other[other.kind == "gaussian"]["sample"].nunique() == 2 * spectra[spectra.kind == "gaussian"]["sample"].nunique()


@pytest.mark.parametrize("shape, cut", [((32, 3, 3, 3), "OUT,KH"), ((64, 32, 3, 3), "OUT"), ((64, 64, 1, 1), "OUT")])
def test_by_so_many_draws_chance_is_known_to_a_thousandth(shape, cut):
    """Of the kernels of the networks here: the standard error of the mean entropy, by draws of numpy's."""
    draws = np.random.RandomState(1).standard_normal((100, *shape))
    squares = [by_numpy(torch.from_numpy(draw), cut) ** 2 for draw in draws]
    shares = [-(p * np.log2(p)).sum() / np.log2(len(p)) for p in (s / s.sum() for s in squares)]
    assert np.std(shares) / np.sqrt(gaussian_draws(shape, 5)) < 0.001


# ---- summary -----------------------------------------------------------------------------------------------------

@pytest.fixture(scope="module")
def table(spectra):
    return summary(spectra)


def test_a_row_for_each_spectrum(spectra, table):
    assert list(table)[:len(HEAD)] == HEAD
    assert set(table) - set(HEAD) == {"entropy", "entropy_share", "deficit", "deficit_share", "effective_rank",
                                      "participation_ratio", "rank_90", "rank_99"}
    assert len(table) == (spectra["index"] == 1).sum() and not table.isna().any().any()
    assert list(table["cut"].cat.categories) == [cut.name for cut in CUTS]


@every_cut
def test_summary_against_quimb_and_numpy(model, table, cut):
    for layer, kernel in conv_kernels(model).items():
        row = table[(table.layer == layer) & (table.cut == cut) & (table.gauge == "trained") & (table.kind == "kernel")]
        row = row.iloc[0]
        state = qtn.Tensor((kernel.double() / kernel.double().norm()).numpy(), inds=MODES)
        entropy = state.entropy(cut.split(","))
        p = by_numpy(kernel, cut) ** 2
        assert row["entropy"] == pytest.approx(entropy, abs=1e-6)
        assert row["entropy_share"] == pytest.approx(entropy / np.log2(len(p)), abs=1e-6)
        assert row["effective_rank"] == pytest.approx(2 ** entropy, rel=1e-5)
        assert row["participation_ratio"] == pytest.approx(1 / (p ** 2).sum(), rel=1e-5)
        for share, rank in ((0.90, row["rank_90"]), (0.99, row["rank_99"])):
            assert rank == 1 + (np.sqrt(p.cumsum()) < share).sum()


def test_the_deficit_is_what_is_missing_to_gaussian_kernels(table):
    for (layer, cut), cell in table.groupby(["layer", "cut"], observed=True):
        chance = cell[cell.kind == "gaussian"]["entropy"].mean()
        np.testing.assert_allclose(cell["deficit"], chance - cell["entropy"], atol=1e-12)
        np.testing.assert_allclose(cell["deficit_share"], cell["deficit"] / np.log2(cell["max_rank"]), atol=1e-12)
    gaussian = table[table.kind == "gaussian"].groupby(["layer", "cut"], observed=True)["deficit"].mean()
    np.testing.assert_allclose(gaussian, 0, atol=1e-12)


def test_a_kernel_of_low_rank_has_a_deficit_and_a_random_one_has_none():
    model = vanilla(channels=(6, 16, 16, 4))
    with torch.no_grad():
        model.conv3.weight[:] = torch.outer(torch.randn(16), torch.randn(144)).view(16, 16, 3, 3)
    rows = summary(kernel_spectra(model)).query("gauge == 'trained' and kind == 'kernel' and cut == 'OUT'")
    deficit = rows.set_index("layer")["deficit_share"]
    assert deficit["conv3"] > 0.9 and abs(deficit["conv2"]) < 0.02


# ---- trained networks --------------------------------------------------------------------------------------------

@pytest.fixture
def saved(tmp_path, monkeypatch):
    """Two small trained networks, seeds 0 and 3, in place of the published ones."""
    monkeypatch.setattr(weights, "FOLDERS", (tmp_path / "published", tmp_path / "own"))
    architecture = {"channels": [2, 3, 4, 5], "classes": 3, "hidden": 8, "image_size": 16}
    models = {seed: vanilla(seed, architecture["channels"]) for seed in (0, 3)}
    for seed, network in models.items():
        save_weights(network, tmp_path / "published" / f"vanilla-mine-s{seed}.safetensors",
                     {"model": "vanilla", "dataset": "mine", "seed": seed, "architecture": architecture})
    return models


def test_every_trained_network_is_there_with_its_seed(saved):
    found = network_spectra("vanilla", "mine", samples=2, gauge_seed=1, gauge_spread=0.5)
    assert list(found) == ["seed", *HEAD, "index", "value"] and found.index.is_unique
    assert set(found["seed"]) == {0, 3}
    for seed, model in saved.items():
        expected = kernel_spectra(model, samples=2, gauge_seed=1, gauge_spread=0.5)
        pd.testing.assert_frame_equal(found[found.seed == seed].drop(columns="seed").reset_index(drop=True), expected)


def test_a_summary_keeps_networks_apart(saved):
    found = summary(network_spectra("vanilla", "mine", samples=2))
    assert list(found)[0] == "seed" and (found.groupby("seed").size() == len(found) / 2).all()
    for seed, model in saved.items():
        expected = summary(kernel_spectra(model, samples=2))
        for column in ("entropy", "deficit", "rank_90"):
            np.testing.assert_allclose(found[found.seed == seed][column], expected[column], atol=1e-12)


def test_networks_that_were_not_trained_say_how(saved):
    with pytest.raises(FileNotFoundError, match="tnlib train vanilla yours.npz --seed 0"):
        network_spectra("vanilla", "yours")
