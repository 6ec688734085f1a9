"""The seven cuts against quimb, tensorly, torch and what must hold for any kernel."""

import itertools

import numpy as np
import pytest
import quimb.tensor as qtn
import tensorly
import torch
from hypothesis import given, strategies as st
from tensorly.decomposition import partial_tucker
from torch.nn import functional as F

from tnlib.tensors.cuts import (
    CUTS, MODES, Cut, distinct_cuts, factorize, norm_kept, relative_error, singular_values, truncate)

SHAPE = (12, 8, 3, 3)
every_cut = pytest.mark.parametrize("cut", CUTS, ids=lambda cut: cut.name)
two_mode = pytest.mark.parametrize("cut", [cut for cut in CUTS if len(cut.rows) == 2], ids=lambda cut: cut.name)
single_mode = pytest.mark.parametrize("cut", [cut for cut in CUTS if len(cut.rows) == 1], ids=lambda cut: cut.name)
cuts, seeds = st.sampled_from(CUTS), st.integers(0, 2**32 - 1)
shapes = st.tuples(st.integers(1, 9), st.integers(1, 9), st.integers(1, 5), st.integers(1, 5))


def gaussian(shape=SHAPE, seed=0, dtype=torch.float64):
    return torch.randn(tuple(shape), generator=torch.Generator().manual_seed(seed), dtype=dtype)


def quimb_tensor(kernel):
    return qtn.Tensor(kernel.numpy(), inds=MODES)


# ---- the cuts themselves -----------------------------------------------------------------------------------------

def test_seven_cuts_are_all_bipartitions_of_four_modes():
    assert [cut.name for cut in CUTS] == ["KW", "KH", "OUT", "IN", "OUT,IN", "OUT,KW", "OUT,KH"]
    found = {frozenset([frozenset(cut.rows), frozenset(cut.columns)]) for cut in CUTS}
    every = {frozenset([frozenset(rows), frozenset(MODES) - frozenset(rows)])
             for size in (1, 2, 3) for rows in itertools.combinations(MODES, size)}
    assert found == every


@pytest.mark.parametrize("written, name", [("OUT,KW", "OUT,KW"), ("KW,OUT", "OUT,KW"), (" KH , OUT ", "OUT,KH"),
                                           ("IN", "IN"), (CUTS[4], "OUT,IN")], ids=str)
def test_parse(written, name):
    assert Cut.parse(written).name == name


@every_cut
def test_matrix_entries_lie_where_numpy_puts_them(cut):
    """Modes in the order OUT, IN, KH, KW, rows first: by numpy's index arithmetic, entry by entry."""
    kernel = gaussian((3, 4, 2, 5))
    matrix = cut.matricize(kernel)
    for index in np.ndindex(*kernel.shape):
        where = dict(zip(MODES, index))
        size = dict(zip(MODES, kernel.shape))
        row, column = (np.ravel_multi_index([where[m] for m in modes], [size[m] for m in modes])
                       for modes in (cut.rows, cut.columns))
        assert matrix[row, column] == kernel[index]


@given(shape=shapes, cut=cuts, seed=seeds)
def test_fold_undoes_matricize_exactly(shape, cut, seed):
    kernel = gaussian(shape, seed, torch.float32)
    matrix = cut.matricize(kernel)
    assert matrix.shape == cut.dimensions(shape) and min(matrix.shape) == cut.max_rank(shape)
    assert torch.equal(cut.fold(matrix, shape), kernel)


@pytest.mark.parametrize("shape, names", [
    ((64, 32, 3, 3), ["KW", "KH", "OUT", "IN", "OUT,IN", "OUT,KW", "OUT,KH"]),
    ((64, 32, 1, 1), ["OUT"]),
    ((64, 1, 3, 3), ["KW", "KH", "OUT"]),        # depthwise
    ((1, 32, 3, 3), ["KW", "KH", "IN"]),
    ((64, 32, 1, 5), ["KW", "OUT", "IN"]),
    ((64, 1, 1, 1), []),
    ((1, 1, 1, 1), []),
], ids=["3x3", "1x1", "depthwise", "one-filter", "1x5", "one-mode", "scalar"])
def test_distinct_cuts(shape, names):
    assert [cut.name for cut in distinct_cuts(shape)] == names


@given(shape=shapes)
def test_cuts_left_out_say_nothing_new(shape):
    """Every other cut is trivial, or its spectrum is that of a distinct cut."""
    kernel, distinct = gaussian(shape), distinct_cuts(shape)
    known = [singular_values(kernel, cut) for cut in distinct]
    for cut in set(CUTS) - set(distinct):
        mine = singular_values(kernel, cut)
        assert cut.max_rank(shape) == 1 or any(len(s) == len(mine) and torch.allclose(s, mine) for s in known)


# ---- singular values ---------------------------------------------------------------------------------------------

@every_cut
@pytest.mark.parametrize("shape", [SHAPE, (5, 40, 2, 3), (7, 6, 1, 1), (9, 1, 3, 3)], ids=str)
def test_singular_values_are_quimbs(cut, shape):
    kernel = gaussian(shape)
    expected = quimb_tensor(kernel).singular_values(list(cut.rows))
    found = singular_values(kernel, cut.name)
    assert found.shape == (cut.max_rank(shape),)
    np.testing.assert_allclose(found, expected, atol=1e-10)


def decaying(rows, columns, decades):
    """A (rows, columns, 1, 1) kernel with known singular values, from 1 down over `decades`."""
    left, right = (torch.linalg.qr(gaussian((n, min(rows, columns), 1, 1), n)[:, :, 0, 0])[0] for n in (rows, columns))
    values = torch.logspace(0, -decades, min(rows, columns), dtype=torch.float64)
    return (left * values @ right.T)[:, :, None, None], values


@pytest.mark.parametrize("rows, columns, decades", [
    (64, 576, 0), (64, 576, 14), (200, 1800, 14), (1100, 1300, 14), (576, 64, 14), (3, 20_000, 3), (20_000, 3, 12), (256, 256, 14)])
def test_gram_path_is_accurate_to_1e_7_of_the_largest(rows, columns, decades):
    kernel, values = decaying(rows, columns, decades)
    found = singular_values(kernel, "OUT")
    assert (found - torch.linalg.svdvals(kernel[:, :, 0, 0])).abs().max() < 1e-7 * found[0]
    assert (found - values).abs().max() < 1e-7
    assert (found >= 0).all() and (found.diff() <= 0).all()


@every_cut
@pytest.mark.parametrize("group", ["rows", "columns"])
def test_orthogonal_maps_of_one_group_leave_the_spectrum(cut, group):
    kernel = gaussian()
    matrix = cut.matricize(kernel)
    side = matrix.shape[group == "columns"]
    turn = torch.linalg.qr(gaussian((side, side, 1, 1), 1)[:, :, 0, 0])[0]
    turned = cut.fold(turn @ matrix if group == "rows" else matrix @ turn, SHAPE)
    assert not torch.allclose(turned, kernel)
    assert torch.allclose(singular_values(turned, cut), singular_values(kernel, cut), atol=1e-7)


# ---- truncation --------------------------------------------------------------------------------------------------

@two_mode
@pytest.mark.parametrize("rank", [1, 4, 8])
def test_two_mode_truncation_is_quimbs_split(cut, rank):
    kernel = gaussian()
    split = quimb_tensor(kernel).split(list(cut.rows), max_bond=rank, cutoff=0.0)
    expected = split.contract().transpose(*MODES).data
    np.testing.assert_allclose(truncate(kernel, cut, rank), expected, atol=1e-10)


@single_mode
@pytest.mark.parametrize("rank", [1, 2])
def test_single_mode_truncation_is_tensorlys_hosvd_of_one_mode(cut, rank):
    kernel = gaussian()
    mode = MODES.index(cut.name)
    (core, factors), _ = partial_tucker(kernel.numpy(), rank=[rank], modes=[mode], n_iter_max=0)
    expected = tensorly.tenalg.mode_dot(core, factors[0], mode)
    np.testing.assert_allclose(truncate(kernel, cut, rank), expected, atol=1e-10)


@given(shape=shapes, cut=cuts, seed=seeds, data=st.data())
def test_squares_of_norm_kept_and_error_sum_to_one(shape, cut, seed, data):
    kernel = gaussian(shape, seed)
    rank = data.draw(st.integers(1, cut.max_rank(shape)))
    short = truncate(kernel, cut, rank)
    s = singular_values(kernel, cut)
    assert norm_kept(kernel, short) ** 2 + relative_error(kernel, short) ** 2 == pytest.approx(1, abs=1e-10)
    assert norm_kept(kernel, short) == pytest.approx((s[:rank].norm() / s.norm()).item(), abs=1e-10)
    assert torch.linalg.matrix_rank(cut.matricize(short)) <= rank


@given(shape=shapes, cut=cuts, seed=seeds)
def test_error_falls_with_rank_and_full_rank_rebuilds(shape, cut, seed):
    kernel = gaussian(shape, seed)
    errors = [relative_error(kernel, truncate(kernel, cut, r)).item() for r in range(1, cut.max_rank(shape) + 1)]
    assert all(after < before for before, after in zip(errors, errors[1:]))
    assert errors[-1] < 1e-12


@given(cut=cuts, seed=seeds, rank=st.integers(1, 3), warm=st.booleans())
def test_no_random_matrix_of_the_rank_does_better(cut, seed, rank, warm):
    """A random column space, and one close to the best, each with the best coefficients for it."""
    kernel = gaussian((6, 5, 3, 3))
    matrix = cut.matricize(kernel)
    space = gaussian((len(matrix), rank, 1, 1), seed)[:, :, 0, 0]
    if warm:
        space = torch.linalg.svd(matrix)[0][:, :rank] + 0.05 * space
    rival = cut.fold(space @ torch.linalg.lstsq(space, matrix).solution, kernel.shape)
    best = relative_error(kernel, truncate(kernel, cut, rank))
    assert best <= relative_error(kernel, rival) + 1e-12


@every_cut
def test_gradients_of_truncation_and_spectrum_are_those_of_finite_differences(cut):
    """Well-conditioned as long as the singular values are distinct, which a Gaussian kernel's are."""
    kernel = gaussian((3, 2, 3, 2)).requires_grad_()
    assert torch.autograd.gradcheck(lambda k: truncate(k, cut, 2), kernel)
    assert torch.autograd.gradcheck(lambda k: singular_values(k, cut), kernel)


# ---- the factors and their convolution ---------------------------------------------------------------------------

CONVOLUTIONS = {
    "plain": {}, "same": {"padding": 1}, "strided": {"stride": 2, "padding": 1}, "dilated": {"dilation": 2},
    "pairs": {"stride": (1, 2), "padding": (2, 0), "dilation": (2, 1)},
    "all": {"stride": (3, 2), "padding": (1, 4), "dilation": (1, 3)}}
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5}


@every_cut
@pytest.mark.parametrize("settings", CONVOLUTIONS.values(), ids=CONVOLUTIONS)
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_convolution_by_factors_is_torchs_with_the_rebuilt_kernel(cut, settings, dtype):
    kernel, image = gaussian((6, 4, 3, 2), dtype=dtype), gaussian((2, 4, 11, 13), 1, dtype)
    short = factorize(kernel, cut, 2)
    found, expected = short.conv2d(image, **settings), F.conv2d(image, short.to_kernel(), **settings)
    assert found.dtype == dtype and found.shape == expected.shape
    assert (found - expected).abs().max() < TOLERANCE[dtype] * expected.abs().max()


@every_cut
@pytest.mark.parametrize("shape", [(4, 1, 3, 3), (1, 5, 3, 3), (6, 4, 1, 1), (6, 4, 1, 3)], ids=str)
def test_convolution_by_factors_of_thin_kernels(cut, shape):
    kernel, image = gaussian(shape), gaussian((2, shape[1], 7, 8), 1)
    short = factorize(kernel, cut, 1)
    torch.testing.assert_close(short.conv2d(image, padding=1), F.conv2d(image, short.to_kernel(), padding=1))


@every_cut
def test_number_of_parameters(cut):
    short = factorize(gaussian(), cut, 2)
    rows, columns = cut.matricize(gaussian()).shape
    assert short.num_parameters == 2 * (rows + columns) == sum(factor.numel() for factor in short.factors)
    assert [tuple(factor.shape) for factor in short.factors] == [(rows, 2), (2, columns)]


@every_cut
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_results_keep_the_dtype(cut, dtype):
    kernel = gaussian(dtype=dtype)
    short = factorize(kernel, cut, 2)
    for result in (*short.factors, short.to_kernel(), truncate(kernel, cut, 2), singular_values(kernel, cut)):
        assert result.dtype == dtype and result.device == kernel.device
    assert torch.equal(short.to_kernel(), truncate(kernel, cut, 2))


@pytest.mark.parametrize("device", ["cpu", *(["cuda"] if torch.cuda.is_available() else [])])
def test_results_keep_the_device(device):
    kernel = gaussian().to(device)
    for cut in CUTS:
        for result in (truncate(kernel, cut, 2), singular_values(kernel, cut), *factorize(kernel, cut, 2).factors):
            assert result.device == kernel.device


@every_cut
def test_gradients_reach_factors_and_image(cut):
    short = factorize(gaussian((3, 2, 3, 2)), cut, 2)
    for factor in short.factors:
        factor.requires_grad_()
    image = gaussian((1, 2, 4, 4), 1).requires_grad_()
    short.conv2d(image, padding=1).square().sum().backward()
    by_factors = [tensor.grad.clone() for tensor in (*short.factors, image)]
    for tensor in (*short.factors, image):
        tensor.grad = None
    F.conv2d(image, short.to_kernel(), padding=1).square().sum().backward()
    for found, tensor in zip(by_factors, (*short.factors, image)):
        torch.testing.assert_close(found, tensor.grad)


# ---- bad input ---------------------------------------------------------------------------------------------------

K = gaussian()
NAN = torch.where(gaussian() > 2, float("nan"), gaussian())
BAD = {
    "tensor-for-shape": (lambda: Cut.parse("OUT").max_rank(K), TypeError, r"a shape .* is asked for, got a tensor of shape \(12, 8, 3, 3\): give its .shape"),
    "three-modes": (lambda: singular_values(K[0], "OUT"), ValueError, r"kernel must have four .*\(8, 3, 3\)"),
    "empty": (lambda: singular_values(K[:0], "OUT"), ValueError, r"non-empty .*\(0, 8, 3, 3\)"),
    "integers": (lambda: truncate(K.long(), "OUT", 1), TypeError, r"floating dtype, of 16 bits or more, got torch.int64"),
    "eight-bits": (lambda: singular_values(K.to(torch.float8_e4m3fn), "OUT"), TypeError, "of 16 bits or more, got torch.float8_e4m3fn"),
    "device": (lambda: truncate(K.to("meta"), "OUT", 1), ValueError, "kernel must be on the CPU or on CUDA, .* got the device meta"),
    "sparse": (lambda: singular_values(K.to_sparse(), "OUT"), TypeError, r"must be a dense tensor, got one of layout torch.sparse_coo with shape \(12, 8, 3, 3\)"),
    "beyond-half": (lambda: singular_values(torch.full((12, 8, 3, 3), 6e4).half(), "OUT"), ValueError, r"1.764e\+06, is above what torch.float16 can hold: take kernel.float"),
    "numpy": (lambda: truncate(K.numpy(), "OUT", 1), TypeError, "must be a torch tensor .* got ndarray"),
    "nan": (lambda: singular_values(NAN, "OUT"), ValueError, "NaN or infinity"),
    "infinity": (lambda: truncate(K / 0, "OUT", 1), ValueError, "NaN or infinity"),
    "rank-0": (lambda: truncate(K, "OUT,KW", 0), ValueError, "rank at the cut OUT,KW .* from 1 to 24, got 0"),
    "rank-negative": (lambda: truncate(K, "OUT", -1), ValueError, "from 1 to 12, got -1"),
    "rank-above": (lambda: factorize(K, "KW", 4), ValueError, "from 1 to 3, got 4"),
    "rank-true": (lambda: truncate(K, "OUT", True), TypeError, "whole number from 1 to 12, got True"),
    "rank-2.0": (lambda: truncate(K, "OUT", 2.0), TypeError, "whole number from 1 to 12, got 2.0"),
    "cut-unknown": (lambda: singular_values(K, "OUT,KX"), ValueError, "unknown cut 'OUT,KX': it takes one of 'KW'"),
    "cut-number": (lambda: truncate(K, 3, 1), ValueError, "unknown cut 3"),
    "cut-none": (lambda: Cut.parse(None), ValueError, "unknown cut None"),
    "cut-empty": (lambda: Cut.parse(""), ValueError, "unknown cut ''"),
    "cut-complement": (lambda: Cut.parse("KH,KW"), ValueError, "same bipartition as 'OUT,IN'"),
    "rows-order": (lambda: Cut(("KW", "OUT")), ValueError, r"one to three of OUT, IN, KH, KW, in this order, got \('KW', 'OUT'\)"),
    "rows-unknown": (lambda: Cut(("FOO",)), ValueError, "rows must be a tuple of one to three"),
    "rows-text": (lambda: Cut("OUT,KW"), ValueError, "rows must be a tuple of one to three .* got 'OUT,KW'"),
    "rows-all": (lambda: Cut(("OUT", "IN", "KH", "KW")), ValueError, "rows must be a tuple of one to three"),
    "size-0": (lambda: CUTS[2].max_rank((0, 3, 3, 3)), ValueError, r"four modes .* of positive size, got \(0, 3, 3, 3\)"),
    "cut-repeated": (lambda: Cut.parse("OUT,OUT"), ValueError, "unknown cut 'OUT,OUT'"),
    "error-numpy": (lambda: relative_error(K.numpy(), K), TypeError, "kernel must be a torch tensor .* got ndarray"),
    "shapes": (lambda: relative_error(K, K[:3]), ValueError, r"same shape, got \(12, 8, 3, 3\) and \(3, 8, 3, 3\)"),
    "huge": (lambda: relative_error(K.double() * 1e155, K.double()), ValueError, r"kernel has .*e\+15\d for its largest entry, and its squares leave the range of float64: divide"),
    "tiny": (lambda: singular_values(K.double() * 1e-162, "OUT"), ValueError, "kernel has .*e-16. for its largest entry"),
    "approximation": (lambda: norm_kept(K, NAN), ValueError, "approximation .* holds NaN"),
    "zero-error": (lambda: relative_error(0 * K, K), ValueError, "is zero"),
    "zero-norm": (lambda: norm_kept(0 * K, K), ValueError, "is zero"),
    "fold": (lambda: CUTS[2].fold(K[0, 0], SHAPE), ValueError, r"\(12, 72\) at the cut OUT, got \(3, 3\)"),
    "fold-matrix": (lambda: CUTS[2].fold([[1.0]], SHAPE), TypeError, r"matrix must be a torch tensor \(12, 72\), got list"),
    "shape-no-tuple": (lambda: CUTS[2].max_rank(9), ValueError, "four modes .* of positive size, got 9"),
    "shape-of-floats": (lambda: CUTS[2].max_rank((9, 1, 3.0, 3)), ValueError, r"got \(9, 1, 3.0, 3\)"),
    "fold-shape": (lambda: CUTS[2].fold(K[0, 0], (9, 1)), ValueError, r"four modes .* got \(9, 1\)"),
    "image-channels": (lambda: factorize(K, "OUT", 1).conv2d(K[:, :3]), ValueError, r"\(N, 8, H, W\), got \(12, 3, 3"),
    "image-modes": (lambda: factorize(K, "OUT", 1).conv2d(K[0]), ValueError, r"\(N, 8, H, W\), got \(8, 3, 3\)"),
    "image-dtype": (lambda: factorize(K, "OUT", 1).conv2d(K.float()), TypeError, "dtype torch.float64, got .*float32"),
    "image-numpy": (lambda: factorize(K, "OUT", 1).conv2d([K]), TypeError, "image must be a torch tensor .* got list"),
    "stride-0": (lambda: factorize(K, "OUT", 1).conv2d(K, stride=0), ValueError, "stride must be .* at least 1"),
    "padding": (lambda: factorize(K, "OUT", 1).conv2d(K, padding=-1), ValueError, "padding must be .* got -1"),
    "dilation": (lambda: factorize(K, "OUT", 1).conv2d(K, dilation=1.5), ValueError, "dilation must be .* got 1.5"),
}


@pytest.mark.parametrize("call, error, message", BAD.values(), ids=BAD)
def test_bad_input_is_named(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_an_unknown_cut_is_told_all_seven():
    with pytest.raises(ValueError) as raised:
        Cut.parse("HEIGHT")
    assert all(repr(cut.name) in str(raised.value) for cut in CUTS)


def test_a_truncation_keeps_its_dtype_also_where_the_caller_computes_in_another():
    with torch.autocast("cpu", dtype=torch.bfloat16):
        whole = truncate(K.float(), "OUT", 12)
    assert whole.dtype == torch.float32 and torch.allclose(whole, K.float(), atol=1e-5)
