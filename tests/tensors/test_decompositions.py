"""The decompositions against pyttb, tensorly, quimb, tltorch, torch, and what must hold for any kernel."""

import numpy as np
import pytest
import pyttb
import quimb.tensor as qtn
import tensorly
import torch
from decompositions_cases import (
    BAD, DECOMPOSITIONS, FITTED, NETWORKS, OF_RANK_1, SHAPE, SMALL, THIN, decomposed, error, gaussian, of_rank)
from hypothesis import given, strategies as st
from network_cases import SETTINGS
from tensorly.decomposition import partial_tucker
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

import tnlib
from tnlib.tensors.factors import KernelFactors
from tnlib.tensors.network import multiply_adds

with tensorly.backend_context("numpy"):  # its import makes torch the backend of all
    import tltorch

MODES = ("OUT", "IN", "KH", "KW")
DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
TOLERANCE = {torch.float64: 1e-11, torch.float32: 3e-4}  # the ring's fit leaves cores that cancel a few digits
every = pytest.mark.parametrize("name", DECOMPOSITIONS)
by_svd = pytest.mark.parametrize("name", [name for name in DECOMPOSITIONS if name not in FITTED])
every_setting = pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
shapes, seeds = st.tuples(*[st.integers(1, n) for n in (6, 6, 4, 4)]), st.integers(0, 2**32 - 1)
pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")


def tails(kernel, ranks):
    """The norms² that each single-mode truncation discards, relative to the kernel's."""
    values = [tnlib.singular_values(kernel, mode) for mode in MODES]
    return [(s[rank:].square().sum() / s.square().sum()).item() for s, rank in zip(values, ranks)]


# ---- the convolution, factor by factor ---------------------------------------------------------------------------

@every
@every_setting
def test_convolution_by_factors_is_torchs_with_the_rebuilt_kernel(name, settings):
    image, factors = gaussian((2, 5, 9, 11), 1), decomposed(name)
    found, expected = factors.conv2d(image, **settings), F.conv2d(image, factors.to_kernel(), **settings)
    assert found.shape == expected.shape
    assert (found - expected).abs().max() < 1e-11 * expected.abs().max()


@pytest.mark.parametrize("make", OF_RANK_1.values(), ids=OF_RANK_1)
@pytest.mark.parametrize("shape", THIN.values(), ids=THIN)
@pytest.mark.parametrize("settings", [{"stride": 2, "padding": 1}, {"padding": "same", "dilation": 2}], ids=str)
def test_convolution_by_factors_of_thin_kernels(make, shape, settings):
    factors, image = make(gaussian(shape)), gaussian((2, shape[1], 7, 8), 1)
    torch.testing.assert_close(factors.conv2d(image, **settings), F.conv2d(image, factors.to_kernel(), **settings))
    assert factors.conv2d(image[:0], **settings).shape[1:] == factors.conv2d(image, **settings).shape[1:]


@pytest.mark.parametrize("make", SMALL.values(), ids=SMALL)
def test_convolution_never_forms_the_dense_kernel(make, monkeypatch):
    kernel, image, seen = gaussian((48, 40, 3, 3)), gaussian((1, 40, 6, 6), 1), []
    factors = make(kernel)
    expected = F.conv2d(image, factors.to_kernel(), padding=1)
    convolve = F.conv2d

    def spy(image, weight, *arguments, **keywords):
        seen.append(weight.numel())
        return convolve(image, weight, *arguments, **keywords)

    def never(self):
        raise AssertionError("the dense kernel was formed")

    monkeypatch.setattr(F, "conv2d", spy)
    monkeypatch.setattr(type(factors), "to_kernel", never)
    found = factors.conv2d(image, padding=1)
    torch.testing.assert_close(found, expected)
    assert len(seen) >= 2 and sum(seen) <= factors.num_parameters < kernel.numel()


TLTORCH = {
    "hosvd": lambda f: tltorch.factorized_tensors.TuckerTensor(f.core, list(f.matrices)),
    "cp": lambda f: tltorch.factorized_tensors.CPTensor(f.factors[0].new_ones(f.factors[0].shape[1]), list(f.factors)),
    "train": lambda f: tltorch.factorized_tensors.TTTensor(list(f.factors)),
}


@pytest.mark.parametrize("name", TLTORCH)
@pytest.mark.parametrize("settings", [{}, {"stride": 2, "padding": 1}, {"stride": (3, 2), "padding": (1, 4)},
                                      {"padding": (2, 0), "dilation": (1, 3)}], ids=str)
def test_convolution_by_factors_is_tltorchs(name, settings):
    """Its layer is given the pairs itself: its `from_conv` would keep the first stride only."""
    factors, image = decomposed(name), gaussian((2, 5, 9, 11), 1)
    with tensorly.backend_context("pytorch"):
        layer = tltorch.FactorizedConv(5, 6, (3, 2), factorization=TLTORCH[name](factors), dtype=torch.float64,
                                       implementation="factorized", **settings)
        expected = layer(image)
    torch.testing.assert_close(factors.conv2d(image, **settings), expected)


# ---- counts ------------------------------------------------------------------------------------------------------

@every
def test_number_of_parameters(name):
    factors = decomposed(name)
    assert factors.num_parameters == DECOMPOSITIONS[name][1] == sum(factor.numel() for factor in factors.factors)


@every
@every_setting
def test_multiply_adds_are_half_of_what_torch_counts(name, settings):
    factors = decomposed(name)  # before the counter: a fit would count too
    with FlopCounterMode(display=False) as counter:
        factors.conv2d(gaussian((1, 5, 9, 11)), **settings)
    assert factors.multiply_adds((9, 11), **settings) == counter.get_total_flops() / 2


def test_multiply_adds_by_hand():
    kernel, pixels = gaussian((16, 8, 3, 3)), 10 * 10
    count = lambda factors: factors.multiply_adds(10, padding=1)
    assert count(tnlib.hosvd(kernel, (5, 4, 2, 2))) == pixels * (8 * 4 + 4 * 3 * 2 + 4 * 2 * 3 * 2 + 5 * 4 * 4 + 16 * 5)
    assert count(tnlib.cp(kernel, 7)) == pixels * 7 * (8 + 3 + 3 + 16)
    assert count(tnlib.tensor_train(kernel, (4, 5, 6))) == pixels * (8 * 4 + 4 * 3 * 5 + 5 * 3 * 6 + 6 * 16)
    ring = tnlib.tensor_ring(kernel, (2, 3, 3, 3), max_iterations=2)
    assert count(ring) == pixels * 2 * (8 * 3 + 3 * 3 * 3 + 3 * 3 * 3 + 3 * 16)
    assert count(tnlib.separable(kernel)) == pixels * 16 * 8 * (3 + 3)
    assert count(tnlib.depthwise_separable(kernel)) == pixels * 8 * (9 + 16)
    assert count(tnlib.factorize(kernel, "OUT", 3)) == pixels * 3 * (8 * 9 + 16)
    assert count(tnlib.factorize(kernel, "OUT,IN", 3)) == pixels * 8 * 3 * (9 + 16)
    assert multiply_adds(kernel, 10, padding=1) == pixels * 16 * 8 * 9


# ---- the kernels they rebuild ------------------------------------------------------------------------------------

@pytest.mark.parametrize("name", NETWORKS)
def test_kernel_is_quimbs_contraction_of_the_network(name):
    factors = decomposed(name)
    tensors = [qtn.Tensor(factor.numpy(), inds=tuple(indices))
               for factor, indices in zip(factors.factors, NETWORKS[name].split(","), strict=True)]
    network = qtn.TensorNetwork(tensors)
    expected = network.contract(output_inds=tuple("oihw")).transpose(*"oihw").data
    np.testing.assert_allclose(factors.to_kernel(), expected, atol=1e-10)


FULL = {
    "hosvd": tnlib.hosvd, "hosvd-sequential": lambda k: tnlib.hosvd(k, sequential=True),
    "train": lambda k: tnlib.tensor_train(k, full_train_ranks(k.shape)),
    "ring": lambda k: tnlib.tensor_ring(k, (1, *full_train_ranks(k.shape))),
    "cp": lambda k: tnlib.cp(k, k.numel() // max(k.shape)),
}


def full_train_ranks(shape):
    out, into, height, width = shape
    first = min(into, height * width * out)
    second = min(first * height, width * out)
    return first, second, min(second * width, out)


@pytest.mark.parametrize("make", FULL.values(), ids=FULL)
@given(shape=shapes, seed=seeds)
def test_full_rank_rebuilds(make, shape, seed):
    kernel = gaussian(shape, seed)
    assert error(kernel, make(kernel)) < (1e-6 if make in (FULL["cp"], FULL["ring"]) else 1e-12)


@pytest.mark.parametrize("make", OF_RANK_1.values(), ids=OF_RANK_1)
@given(shape=shapes, seed=seeds)
def test_an_outer_product_is_rebuilt_from_rank_1(make, shape, seed):
    kernel = of_rank(1, shape, seed % 1000)
    assert error(kernel, make(kernel)) < 1e-6


@pytest.mark.parametrize("make", [
    lambda k: tnlib.hosvd(k, (2, 2, 2, 2)), lambda k: tnlib.cp(k, 2), lambda k: tnlib.tensor_train(k, (2, 2, 2))],
    ids=["hosvd", "cp", "train"])
def test_a_sum_of_two_outer_products_is_rebuilt_from_rank_2(make):
    kernel = of_rank(2, (7, 6, 3, 3))
    assert error(kernel, make(kernel)) < 1e-5


@pytest.mark.parametrize("make", [tnlib.separable, tnlib.depthwise_separable, lambda k: tnlib.hosvd(k, (1,) * 4),
                                  lambda k: tnlib.tensor_train(k, (1,) * 3)],
                         ids=["separable", "depthwise-separable", "hosvd", "train"])
def test_a_zero_kernel_stays_zero(make):
    assert not make(torch.zeros(SHAPE)).to_kernel().any()


# ---- the higher-order SVD ----------------------------------------------------------------------------------------

@pytest.mark.parametrize("sequential", [False, True], ids=["at-once", "sequential"])
@pytest.mark.parametrize("shape, ranks", [(SHAPE, (4, 3, 2, 1)), (SHAPE, (2, 5, 3, 2)), ((12, 8, 3, 3), (6, 4, 2, 2))],
                         ids=str)
def test_hosvd_is_pyttbs(shape, ranks, sequential):
    kernel = gaussian(shape)
    theirs = pyttb.hosvd(pyttb.tensor(kernel.numpy()), 1e-9, verbosity=0, ranks=np.array(ranks), sequential=sequential)
    found = tnlib.hosvd(kernel, ranks, sequential)
    np.testing.assert_allclose(found.to_kernel(), theirs.full().data, atol=1e-10)
    for ours, matrix in zip(found.matrices, theirs.factor_matrices):  # columns up to their sign
        np.testing.assert_allclose(ours @ ours.T, matrix @ matrix.T, atol=1e-10)


def test_hosvd_is_tensorlys_without_iterations():
    kernel = gaussian()
    theirs, _ = partial_tucker(kernel.numpy(), rank=[4, 3, 2, 1], modes=[0, 1, 2, 3], n_iter_max=0)
    expected = tensorly.tucker_to_tensor(theirs)
    np.testing.assert_allclose(tnlib.hosvd(kernel, (4, 3, 2, 1)).to_kernel(), expected, atol=1e-10)


@pytest.mark.parametrize("shape", [SHAPE, (12, 8, 3, 3), (40, 3, 3, 3), (6, 4, 1, 1)], ids=str)
def test_identities_of_the_full_hosvd(shape):
    """Figure 4: mode matrices are orthogonal; the core's matrix at a mode obeys GGᵀ = diag(s²)."""
    kernel = gaussian(shape)
    full = tnlib.hosvd(kernel)
    for mode, u, s in zip(MODES, full.matrices, full.singular_values):
        torch.testing.assert_close(u.T @ u, torch.eye(u.shape[1], dtype=u.dtype))
        if u.shape[0] == u.shape[1]:
            torch.testing.assert_close(u @ u.T, torch.eye(len(u), dtype=u.dtype))
        torch.testing.assert_close(s, tnlib.singular_values(kernel, mode), rtol=0, atol=1e-6)
        core = tnlib.Cut.parse(mode).matricize(full.core)
        torch.testing.assert_close(core @ core.T, torch.diag(s.square()), rtol=0, atol=1e-10)
        isometry = core / s[:, None]
        torch.testing.assert_close(isometry @ isometry.T, torch.eye(len(s), dtype=s.dtype), rtol=0, atol=1e-8)
    assert full.core.norm().item() == pytest.approx(kernel.norm().item())
    assert full.factors == (full.core, *full.matrices)


@given(shape=shapes, seed=seeds, data=st.data())
def test_error_of_hosvd_lies_between_the_largest_and_the_sum_of_the_tails(shape, seed, data):
    kernel = gaussian(shape, seed)
    ranks = [data.draw(st.integers(1, tnlib.Cut.parse(mode).max_rank(shape))) for mode in MODES]
    discarded, found = tails(kernel, ranks), error(kernel, tnlib.hosvd(kernel, ranks)) ** 2
    assert max(discarded) - 1e-12 <= found <= sum(discarded) + 1e-12
    core = tnlib.hosvd(kernel, ranks).core  # a projection: ν² + ε² = 1
    assert found + (core.norm() / kernel.norm()).item() ** 2 == pytest.approx(1, abs=1e-10)


@given(shape=shapes, seed=seeds, data=st.data())
def test_error_of_sequential_hosvd_is_the_sum_of_its_own_tails(shape, seed, data):
    kernel, ranks, size = gaussian(shape, seed), [], list(shape)
    for n, mode in enumerate(MODES):
        ranks.append(data.draw(st.integers(1, tnlib.Cut.parse(mode).max_rank(size))))
        size[n] = ranks[n]
    found = tnlib.hosvd(kernel, ranks, sequential=True)
    own = sum(s[rank:].square().sum() for s, rank in zip(found.singular_values, ranks)) / kernel.square().sum()
    assert error(kernel, found) ** 2 == pytest.approx(own.item(), abs=1e-10)
    assert max(tails(kernel, ranks)) - 1e-12 <= own <= sum(tails(kernel, ranks)) + 1e-12


@given(shape=shapes, seed=seeds, data=st.data())
def test_error_of_hosvd_never_rises_with_a_rank(shape, seed, data):
    kernel, mode = gaussian(shape, seed), data.draw(st.integers(0, 3))
    ranks = [data.draw(st.integers(1, tnlib.Cut.parse(name).max_rank(shape))) for name in MODES]
    errors = []
    for rank in range(1, tnlib.Cut.parse(MODES[mode]).max_rank(shape) + 1):
        ranks[mode] = rank
        errors.append(error(kernel, tnlib.hosvd(kernel, ranks)))
    assert all(after <= before + 1e-12 for before, after in zip(errors, errors[1:]))


# ---- the tensor train --------------------------------------------------------------------------------------------

@pytest.mark.parametrize("ranks", [(3, 4, 5), (1, 1, 1), (5, 12, 6), (2, 6, 3)], ids=str)
def test_tensor_train_is_tensorlys(ranks):
    kernel = gaussian()
    theirs = tensorly.decomposition.tensor_train(kernel.permute(1, 2, 3, 0).numpy(), [1, *ranks, 1])
    found = tnlib.tensor_train(kernel, ranks)
    assert [tuple(core.shape) for core in found.factors] == [core.shape for core in theirs.factors]
    expected = np.moveaxis(tensorly.tt_to_tensor(theirs), -1, 0)
    np.testing.assert_allclose(found.to_kernel(), expected, atol=1e-10)


@pytest.mark.parametrize("bond", [1, 2, 3, 5])
def test_tensor_train_is_quimbs_matrix_product_state(bond):
    kernel = gaussian((6, 5, 5, 5)).permute(1, 2, 3, 0)
    theirs = qtn.MatrixProductState.from_dense(kernel.numpy(), dims=kernel.shape, max_bond=bond, cutoff=0.0)
    found = tnlib.tensor_train(kernel.permute(3, 0, 1, 2), (bond,) * 3).to_kernel().permute(1, 2, 3, 0)
    np.testing.assert_allclose(found, theirs.to_dense().reshape(kernel.shape), atol=1e-10)


@given(shape=shapes, seed=seeds, data=st.data())
def test_error_of_tensor_train_lies_between_the_largest_and_the_sum_of_the_tails(shape, seed, data):
    """The bonds are the cuts IN, then IN and KH (the complement of OUT,KW), then OUT."""
    kernel, ranks = gaussian(shape, seed), []
    full = full_train_ranks(shape)
    for mode, most, right in zip((1, 2, 3), full, (full[0], shape[3] * shape[0], shape[0])):
        ranks.append(data.draw(st.integers(1, min((ranks[-1] if ranks else 1) * shape[mode], right, most))))
    values = [tnlib.singular_values(kernel, cut) for cut in ("IN", "OUT,KW", "OUT")]
    discarded = [(s[rank:].square().sum() / s.square().sum()).item() for s, rank in zip(values, ranks)]
    found = tnlib.tensor_train(kernel, ranks)
    assert max(discarded) - 1e-12 <= error(kernel, found) ** 2 <= sum(discarded) + 1e-12
    for core in found.factors[:3]:  # isometries from the left
        matrix = core.flatten(0, 1)
        torch.testing.assert_close(matrix.T @ matrix, torch.eye(matrix.shape[1], dtype=matrix.dtype))


@given(shape=shapes, seed=seeds)
def test_error_of_tensor_train_never_rises_with_its_last_bond(shape, seed):
    kernel, (first, second, last) = gaussian(shape, seed), full_train_ranks(shape)
    errors = [error(kernel, tnlib.tensor_train(kernel, (first, second, rank))) for rank in range(1, last + 1)]
    assert all(after <= before + 1e-12 for before, after in zip(errors, errors[1:]))
    assert errors[-1] < 1e-12


# ---- the structured kernels --------------------------------------------------------------------------------------

@pytest.mark.parametrize("shape", [SHAPE, (4, 3, 3, 3), (5, 4, 1, 3), (3, 1, 5, 5)], ids=str)
def test_separable_is_the_rank_1_truncation_of_each_filter(shape):
    kernel = gaussian(shape)
    u, s, vh = np.linalg.svd(kernel.numpy())
    expected = s[..., 0, None, None] * u[..., :, :1] * vh[..., :1, :]
    np.testing.assert_allclose(tnlib.separable(kernel).to_kernel(), expected, atol=1e-10)


@pytest.mark.parametrize("shape", [SHAPE, (4, 3, 3, 3), (5, 4, 1, 3), (3, 1, 5, 5)], ids=str)
def test_depthwise_separable_is_the_rank_1_truncation_of_each_input_channel(shape):
    kernel = gaussian(shape)
    found = tnlib.depthwise_separable(kernel).to_kernel()
    for channel in range(shape[1]):
        one = kernel[:, channel:channel + 1]
        torch.testing.assert_close(found[:, channel:channel + 1], tnlib.truncate(one, "OUT", 1))


# ---- dtype, device, gradients ------------------------------------------------------------------------------------

@every
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_results_keep_dtype_and_device(name, dtype, device):
    kernel, image = gaussian(dtype=dtype).to(device), gaussian((2, 5, 8, 9), 1, dtype).to(device)
    factors = decomposed(name, dtype) if device == "cpu" else DECOMPOSITIONS[name][0](kernel)
    assert isinstance(factors, KernelFactors) and isinstance(factors.factors, tuple) and factors.shape == SHAPE
    for result in (*factors.factors, factors.to_kernel(), factors.conv2d(image)):
        assert result.dtype == dtype and result.device == kernel.device
    expected = F.conv2d(image, factors.to_kernel(), padding=2, dilation=2)
    found = factors.conv2d(image, padding=2, dilation=2)
    assert (found - expected).abs().max() < TOLERANCE[dtype] * expected.abs().max()


@by_svd
def test_gradients_go_through_the_decomposition(name):
    """Well-conditioned as long as the singular values are distinct, which a Gaussian kernel's are."""
    kernel = gaussian().requires_grad_()
    image = gaussian((1, 5, 3, 3), 1)
    projection = gaussian((1, 6, 1, 2), 2)  # of the output: one number, not the whole Jacobian
    function = lambda k: (DECOMPOSITIONS[name][0](k).conv2d(image) * projection).sum()
    assert torch.autograd.gradcheck(function, kernel)


@every
def test_gradients_reach_factors_and_image(name):
    factors, image = DECOMPOSITIONS[name][0](gaussian()), gaussian((1, 5, 4, 4), 1).requires_grad_()
    for factor in factors.factors:
        factor.requires_grad_()
    leaves = (*factors.factors, image)
    found = torch.autograd.grad(factors.conv2d(image, padding=1).square().sum(), leaves)
    expected = torch.autograd.grad(F.conv2d(image, factors.to_kernel(), padding=1).square().sum(), leaves)
    for ours, theirs in zip(found, expected):
        torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-8)


@every
def test_kernel_is_left_as_it_was(name):
    kernel = gaussian()
    DECOMPOSITIONS[name][0](kernel)
    assert torch.equal(kernel, gaussian())


# ---- bad input ---------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("call, error, message", BAD.values(), ids=BAD)
def test_bad_input_is_named(call, error, message):
    with pytest.raises(error, match=message):
        call()
