"""Kernels as tensor networks: the generators against the decompositions they name, and those against tensorly's."""

import math

import numpy as np
import pytest
import tensorly
import torch
from tensorly.decomposition import tensor_ring_als

from tests.experiments.test_truncations import Small, check_norms
from tnlib import Cut, conv_kernels, cp, hosvd, relative_error, tensor_ring, tensor_train, truncate
from tnlib.experiments import factorizations
from tnlib.experiments.data_aware import with_data_aware_error
from tnlib.experiments.factorizations import (CP_RANKS, RING_RANKS, cp_truncations, multi_mode_truncations,
                                              ring_truncations, train_truncations)
from tnlib.experiments.networks import Vanilla


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(3)
    return Small().eval()


def chain(kernel):
    """The kernel in the order of a chain's modes: IN, KH, KW, OUT."""
    return kernel.double().permute(1, 2, 3, 0)


def test_multi_mode_truncations(model):
    cells = multi_mode_truncations(model, [0.25, 0.5])
    assert len(list(cells)) == len(cells) and {labels["layer"] for labels, _ in cells} == {"first", "last"}
    check_norms(model, cells)
    for labels, replaced in cells:
        kernel = conv_kernels(model)[labels["layer"]]
        ranks = labels["rank_out"], labels["rank_in"], 3, 3
        torch.testing.assert_close(replaced[labels["layer"]], hosvd(kernel, ranks).to_kernel(), atol=1e-6, rtol=1e-5)
        out, into = labels["rank_out"], labels["rank_in"]
        assert labels["parameters"] == out * into * 9 + out * len(kernel) + into * kernel.shape[1]


def test_train_truncations(model):
    cells = train_truncations(model, [0.2, 0.5])
    assert len(list(cells)) == len(cells)
    assert {labels["layer"] for labels, _ in cells} == {"first", "depthwise", "last"}, "not of the 1×1 kernel"
    check_norms(model, cells)
    for labels, replaced in cells:
        kernel = conv_kernels(model)[labels["layer"]]
        ranks = [labels["rank_1"], labels["rank_2"], labels["rank_3"]]
        train = tensor_train(kernel, ranks)
        torch.testing.assert_close(replaced[labels["layer"]], train.to_kernel(), atol=1e-6, rtol=1e-5)
        assert labels["parameters"] == train.num_parameters
        theirs = tensorly.decomposition.tensor_train(chain(kernel).numpy(), [1, *ranks, 1]).to_tensor()
        np.testing.assert_allclose(chain(replaced[labels["layer"]]), theirs, atol=1e-6)


def test_bonds_are_cut_to_one_error_and_no_train_is_there_twice(model):
    for labels, replaced in train_truncations(model, [0.05, 0.2, 0.5, 0.9], ["first", "last"]):
        kernel, error, left = conv_kernels(model)[labels["layer"]].double(), labels["bond_error"], 1
        for k, (cut, size) in enumerate((("IN", kernel.shape[1]), ("OUT,KW", 3), ("OUT", 3)), 1):
            rank, most = labels[f"rank_{k}"], min(left * size, Cut.parse(cut).max_rank(kernel.shape))
            at = lambda r: relative_error(kernel, truncate(kernel, cut, r))
            assert at(rank) <= error or rank == most
            assert rank == 1 or at(rank - 1) > error
            left = rank
        assert labels["relative_error"] <= math.sqrt(3) * error + 1e-6
    found = [labels["bond_error"] for labels, _ in train_truncations(model, [0.9, 0.901, 0.1, 1e-9], "last")]
    assert found == [0.9, 0.1], "0.901 cuts as 0.9 does, and 1e-9 is exact"


def test_cp_truncations(model):
    cells = cp_truncations(model, [1, 4], ["first", "point", "last"], max_iterations=20)
    assert [(labels["layer"], labels["rank"]) for labels, _ in cells] == [
        ("first", 1), ("first", 4), ("last", 1), ("last", 4)]
    check_norms(model, cells)  # each fit ends in a least squares: a projection
    for labels, replaced in cells:
        kernel = conv_kernels(model)[labels["layer"]]
        fitted = cp(kernel, labels["rank"], 0, 2, 20, svd_starts=2)
        assert torch.equal(replaced[labels["layer"]], fitted.to_kernel())
        assert labels["parameters"] == labels["rank"] * sum(kernel.shape)
        assert labels["fit"] == 1 - fitted.relative_error
        assert labels["largest_component_norm"] == fitted.largest_component_norm
        assert labels["converged"] == fitted.converged


def test_starts_at_singular_vectors_are_further_starts(model):
    kernel = conv_kernels(model)["last"].double()
    errors = [cp(kernel, 5, 0, 2, 10, svd_starts=k).relative_error for k in (0, 1, 2)]
    assert errors == sorted(errors, reverse=True)
    low = torch.einsum("o,i,h,w->oihw", *(torch.randn(n, dtype=torch.float64) for n in kernel.shape))
    assert cp(low, 1, 0, 1, 2, svd_starts=1).relative_error < 1e-6  # of rank 1 the singular vectors are the answer


def test_ring_truncations(model):
    cells = ring_truncations(model, [1, 3], ["first", "point", "last"], seed=5, max_iterations=8)
    assert [(labels["layer"], labels["rank"]) for labels, _ in cells] == [
        ("first", 1), ("first", 3), ("last", 1), ("last", 3)]
    check_norms(model, cells)
    for labels, replaced in cells:
        kernel, rank = conv_kernels(model)[labels["layer"]], labels["rank"]
        fitted = tensor_ring(kernel, [rank] * 4, 5, 1, 8, normal_equations=True)
        assert torch.equal(replaced[labels["layer"]], fitted.to_kernel()), "the same seed, the same kernel"
        assert labels["parameters"] == fitted.num_parameters == rank**2 * sum(kernel.shape)
        assert labels["fit"] == 1 - fitted.relative_error and labels["converged"] == fitted.converged
        assert labels["largest_component_norm"] == fitted.largest_component_norm
        theirs = tensor_ring_als(tensorly.tensor(chain(kernel).numpy()), [rank] * 5, n_iter_max=8, tol=1e-6,
                                 random_state=np.random.RandomState(5)).to_tensor()
        np.testing.assert_allclose(chain(replaced[labels["layer"]]), theirs, atol=1e-5)
    other, = ring_truncations(model, [3], "last", seed=6, max_iterations=8)
    assert not torch.equal(other[1]["last"], replaced["last"])


def test_a_ring_is_smaller_than_the_kernel(model):
    most = {labels["layer"]: labels["max_rank"] for labels, _ in ring_truncations(model, [1], max_iterations=1)}
    for layer, rank in most.items():
        kernel = conv_kernels(model)[layer]
        assert (rank - 1)**2 * sum(kernel.shape) < kernel.numel() <= rank**2 * sum(kernel.shape)


@pytest.mark.parametrize("make, grid", [(cp_truncations, CP_RANKS), (ring_truncations, RING_RANKS)], ids=["cp", "ring"])
def test_the_ranks_of_a_fit(make, grid):
    network = Vanilla(10)
    asked = {layer: [rank for rank in grid if rank < most] for layer, most in
             ({layer: kernel.numel() // max(kernel.shape) for layer, kernel in conv_kernels(network).items()}
              if make is cp_truncations else
              {layer: math.ceil(math.sqrt(kernel.numel() / sum(kernel.shape)))
               for layer, kernel in conv_kernels(network).items()}).items()}
    assert len(make(network)) == sum(map(len, asked.values())) and len(asked["conv4"]) == len(grid)
    assert len(make(network, layers=["conv1"])) == len(asked["conv1"]) < len(grid)


@pytest.mark.parametrize("make", [cp_truncations, ring_truncations], ids=["cp", "ring"])
def test_only_what_is_wanted_is_fitted(model, make, monkeypatch):
    fitted = []
    for name in ("cp", "tensor_ring"):
        fit = getattr(factorizations, name)
        monkeypatch.setattr(factorizations, name, lambda *arguments, fit=fit, **options: (
            fitted.append(1), fit(*arguments, **options))[1])
    moments = {layer: torch.eye(kernel[0].numel()).double() for layer, kernel in conv_kernels(model).items()}
    cells = with_data_aware_error(make(model, [1, 2, 3], ["first", "last"], max_iterations=2), moments)
    (place, labels, kernels), = cells.where(lambda labels: (labels["layer"], labels["rank"]) == ("last", 2))
    assert len(fitted) == 1 and place == 4
    same, replaced = list(cells)[4]
    assert same == labels and torch.equal(kernels["last"], replaced["last"]) and "data_aware_error" in labels


BAD = {
    "error 1": (train_truncations, {"errors": [0.5, 1.0]}, "strictly between 0 and 1"),
    "no error": (train_truncations, {"errors": []}, "strictly between 0 and 1"),
    "a rank for an error": (train_truncations, {"errors": [2]}, "strictly between 0 and 1"),
    "unknown layer": (train_truncations, {"layers": "conv1"}, "unknown layer 'conv1'"),
    "ring too large": (ring_truncations, {"ranks": [2, 7]}, "rank 7 truncates nothing"),
    "ring of rank 0": (ring_truncations, {"ranks": [0]}, "whole numbers from 1"),
    "CP too large": (cp_truncations, {"ranks": [200]}, "rank 200 truncates nothing"),
}


@pytest.mark.parametrize("make, arguments, message", BAD.values(), ids=BAD)
def test_bad_input(model, make, arguments, message):
    with pytest.raises(ValueError, match=message):
        make(model, **arguments)
