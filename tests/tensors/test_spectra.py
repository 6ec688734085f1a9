"""What is read off a spectrum: against quimb, known values, defining properties, and sampled Gaussian matrices."""

import math

import pytest
import quimb.tensor as qtn
import torch
from hypothesis import assume, given, strategies as st

from tnlib.tensors.cuts import CUTS, MODES, norm_kept, relative_error, singular_values, truncate
from tnlib.tensors.spectra import (
    effective_rank, entanglement_entropy, entropy, gaussian_like, marchenko_pastur, participation_ratio, rank_for_error,
    rank_for_norm, shuffled_rows, weights)

every_cut = pytest.mark.parametrize("cut", CUTS, ids=lambda cut: cut.name)
both_dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
# Singular values over several decades, not all zero, in any order and scale.
spectra = st.lists(st.one_of(st.just(0.0), st.floats(1e-6, 1e3)), min_size=1, max_size=20).filter(any).map(
    lambda values: torch.tensor(values, dtype=torch.float64))


def gaussian(shape=(12, 8, 3, 3), seed=0, dtype=torch.float64):
    return torch.randn(tuple(shape), generator=torch.Generator().manual_seed(seed), dtype=dtype)


# ---- entropy, effective rank, participation ratio ----------------------------------------------------------------

@every_cut
def test_entropy_is_quimbs(cut):
    """quimb does not normalise: it is given the kernel over its norm, ours the kernel in any scale."""
    kernel = gaussian()
    state = qtn.Tensor((kernel / kernel.norm()).numpy(), inds=MODES)
    assert entanglement_entropy(1e3 * kernel, cut.name).item() == pytest.approx(state.entropy(list(cut.rows)), abs=1e-9)


def test_the_gradient_of_entropy_has_no_nan_where_a_singular_value_is_zero():
    spectrum = torch.tensor([2.0, 1.0, 0.0], dtype=torch.float64, requires_grad=True)
    entropy(spectrum).backward()
    assert torch.autograd.gradcheck(entropy, torch.tensor([2.0, 1.0, 0.5], dtype=torch.float64, requires_grad=True))
    rest = torch.tensor([2.0, 1.0], dtype=torch.float64, requires_grad=True)
    entropy(rest).backward()
    assert torch.equal(spectrum.grad[:2], rest.grad) and spectrum.grad[2] == 0


KNOWN = {  # singular values -> entropy in bits, participation ratio
    "rank-1": ([5.0], 0, 1),
    "rank-1-of-four": ([3.0, 0, 0, 0], 0, 1),
    "two-equal": ([2.0, 2.0], 1, 2),
    "eight-equal": ([0.1] * 8, 3, 8),
    "six-equal": ([7.0] * 6, math.log2(6), 6),
    "four-equal-of-six": ([7.0] * 4 + [0, 0], 2, 4),
    "three-to-one": ([math.sqrt(3), 1.0], 2 - 0.75 * math.log2(3), 1.6),
    "halves": ([math.sqrt(2), 1.0, 1.0], 1.5, 8 / 3),
}


@pytest.mark.parametrize("values, bits, ratio", KNOWN.values(), ids=KNOWN)
@both_dtypes
def test_known_spectra(values, bits, ratio, dtype):
    spectrum = torch.tensor(values, dtype=dtype)
    accuracy = 1e-6 if dtype == torch.float32 else 1e-14
    found = entropy(spectrum)
    assert found.dtype == dtype and found.ndim == 0 and str(found.item()) != "-0.0"
    assert found.item() == pytest.approx(bits, abs=accuracy)
    assert effective_rank(spectrum).item() == pytest.approx(2 ** bits, rel=2 * accuracy)
    assert participation_ratio(spectrum).item() == pytest.approx(ratio, rel=2 * accuracy)


@pytest.mark.parametrize("kernel", [gaussian().half(), 1e-25 * gaussian().float(), 1e19 * gaussian().float()],
                         ids=["half", "tiny", "huge"])
def test_no_scale_and_no_dtype_overflows(kernel):
    """Squares of these leave the range of their dtype."""
    assert entanglement_entropy(kernel, "OUT").dtype == kernel.dtype
    assert entanglement_entropy(kernel, "OUT").item() == pytest.approx(entanglement_entropy(gaussian(), "OUT").item(), rel=1e-2)
    truncated, kept = truncate(kernel, "OUT", 6), norm_kept(gaussian(), truncate(gaussian(), "OUT", 6)).item()
    assert norm_kept(kernel, truncated).dtype == kernel.dtype and norm_kept(kernel, truncated).item() == pytest.approx(kept, rel=1e-2)
    assert relative_error(kernel, truncated).item() == pytest.approx((1 - kept ** 2) ** 0.5, rel=1e-2)


@given(spectrum=spectra, scale=st.floats(1e-3, 1e3))
def test_bounds_and_independence_of_scale(spectrum, scale):
    nonzero = (spectrum > 0).sum().item()
    assert -1e-12 <= entropy(spectrum) <= math.log2(nonzero) + 1e-9
    assert 1 - 1e-9 <= participation_ratio(spectrum) <= effective_rank(spectrum) * (1 + 1e-9)
    assert effective_rank(spectrum) <= nonzero * (1 + 1e-9)
    for quantity in (entropy, effective_rank, participation_ratio):
        assert quantity(scale * spectrum).item() == pytest.approx(quantity(spectrum).item(), rel=1e-9, abs=1e-9)


@given(spectrum=spectra)
def test_weights_are_a_distribution_of_squares(spectrum):
    p = weights(spectrum)
    assert p.sum().item() == pytest.approx(1) and (p >= 0).all()
    torch.testing.assert_close(p * spectrum.norm() ** 2, spectrum ** 2)


@every_cut
def test_a_product_has_no_entropy_and_an_isometry_has_all(cut):
    shape = (6, 4, 3, 5)
    rows, columns = cut.dimensions(shape)
    product = torch.outer(gaussian((rows, 1, 1, 1)).flatten(), gaussian((columns, 1, 1, 1), 1).flatten())
    isometry = torch.linalg.qr(gaussian((max(rows, columns), min(rows, columns), 1, 1), 2)[:, :, 0, 0])[0]
    isometry = isometry if rows > columns else isometry.T
    assert entanglement_entropy(cut.fold(product, shape), cut).item() == pytest.approx(0, abs=1e-9)
    full = entanglement_entropy(cut.fold(isometry, shape), cut).item()
    assert full == pytest.approx(math.log2(cut.max_rank(shape)), abs=1e-12)


# ---- rank for a share of the norm --------------------------------------------------------------------------------

@given(spectrum=spectra, share=st.floats(0.01, 1))
def test_rank_for_norm_is_the_smallest_that_keeps_it(spectrum, share):
    spectrum = spectrum.sort(descending=True).values
    kept = lambda rank: (spectrum[:rank].norm() / spectrum.norm()).item()
    assume(all(abs(kept(r) - share) > 1e-9 for r in range(1, len(spectrum))))  # exact ties: the known spectra below
    rank = rank_for_norm(spectrum, share)
    assert kept(rank) >= share - 1e-9
    assert rank == 1 or kept(rank - 1) < share


@pytest.mark.parametrize("values, share, rank", [
    ([4.0, 3.0], 0.8, 1), ([4.0, 3.0], 0.81, 2), ([4.0, 3.0], 1, 2), ([4.0, 0.0], 1, 1), ([2.0, 2.0, 1.0], 1, 3),
    ([1.0] * 100, 0.9, 81), ([1.0] * 100, 0.99, 99)], ids=["0.8", "0.81", "all", "rank-1", "three", "flat", "flat-99"])
@both_dtypes
def test_rank_for_norm_of_known_spectra(values, share, rank, dtype):
    """ν is a share of the norm and not of its square: 90 % of a flat spectrum of 100 takes 81 values."""
    assert rank_for_norm(torch.tensor(values, dtype=dtype), share) == rank


@pytest.mark.parametrize("values, error, rank", [
    ([4.0, 3.0], 0.6, 1), ([4.0, 3.0], 0.59, 2), ([4.0, 3.0], 0, 2), ([4.0, 0.0], 0, 1), ([1.0] * 100, 0.1, 99),
    ([1.0] * 100, 0.5, 75)], ids=["0.6", "0.59", "none", "rank-1", "flat-0.1", "flat-0.5"])
@both_dtypes
def test_rank_for_error_of_known_spectra(values, error, rank, dtype):
    """ε² is the share of the squares: half of it leaves a quarter of a flat spectrum out."""
    assert rank_for_error(torch.tensor(values, dtype=dtype), error) == rank


@every_cut
@pytest.mark.parametrize("share", [0.6, 0.9, 0.99])
def test_truncation_at_that_rank_keeps_that_norm(cut, share):
    kernel = gaussian()
    rank = rank_for_norm(singular_values(kernel, cut), share)
    assert norm_kept(kernel, truncate(kernel, cut, rank)) >= share
    assert rank == 1 or norm_kept(kernel, truncate(kernel, cut, rank - 1)) < share


# ---- references: compressible by chance --------------------------------------------------------------------------

@pytest.mark.parametrize("shape", [(12, 8, 3, 3), (5, 7, 1, 1), (4, 1, 3, 5)], ids=str)
@both_dtypes
def test_gaussian_like_has_the_kernels_form_and_norm(shape, dtype):
    kernel = 17 * gaussian(shape, 1, dtype)
    sample = gaussian_like(kernel, seed=3)
    assert sample.shape == kernel.shape and sample.dtype == dtype and sample.device == kernel.device
    assert sample.norm().item() == pytest.approx(kernel.norm().item(), rel=1e-6)
    assert torch.equal(sample, gaussian_like(kernel, seed=3))
    assert not torch.allclose(sample, gaussian_like(kernel, seed=4))


@pytest.mark.parametrize("draw", [torch.rand, torch.randn], ids=["uniform", "normal"])
def test_gaussian_like_is_gaussian_and_independent_of_a_kernel_drawn_with_the_same_seed(draw):
    """Kurtosis 3 and no correlation with the kernel, to within five standard errors of 200,000 entries."""
    kernel = draw(100, 80, 5, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    sample = gaussian_like(kernel, seed=0).flatten()
    z, error = (sample - sample.mean()) / sample.std(), 5 / math.sqrt(sample.numel())
    assert abs((z ** 4).mean() - 3) < error * math.sqrt(96)
    assert abs((z * (kernel.flatten() - kernel.mean()) / kernel.std()).mean()) < error


@both_dtypes
def test_shuffled_rows_keep_each_filters_entries(dtype):
    kernel = gaussian((6, 5, 3, 3), dtype=dtype)
    shuffled = shuffled_rows(kernel, seed=0)
    assert shuffled.shape == kernel.shape and shuffled.dtype == dtype
    assert torch.equal(shuffled.flatten(1).sort(1).values, kernel.flatten(1).sort(1).values)
    assert torch.equal(shuffled, shuffled_rows(kernel, seed=0))
    assert not torch.equal(shuffled, shuffled_rows(kernel, seed=1))


def test_shuffled_rows_go_anywhere_independently():
    """Over many seeds each entry of a filter is as often at each place, and two filters do not move together."""
    drawn = torch.rand(50, 40, 1, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert (shuffled_rows(drawn, seed=0).diff(dim=1) > 0).double().mean() < 0.6  # its own seed would sort the rows
    kernel = torch.arange(4.0).view(1, 2, 1, 2).repeat(2, 1, 1, 1)
    samples = torch.stack([shuffled_rows(kernel, seed) for seed in range(2000)])
    counts = torch.stack([(samples == value).sum(0) for value in range(4)])  # [value, OUT, IN, KH, KW]
    assert (counts - 500).abs().max() < 5 * math.sqrt(2000 * 3 / 16)
    together = (samples[:, 0] == samples[:, 1]).double().mean()
    assert together.item() == pytest.approx(0.25, abs=5 * math.sqrt(3 / 16 / 8000) * 2)


@pytest.mark.parametrize("rows, columns", [(30, 30), (32, 32), (64, 32), (40, 360), (96, 128)], ids=str)
def test_marchenko_pastur_is_the_mean_of_sampled_spectra(rows, columns):
    samples = gaussian((40, rows, columns))
    values = torch.linalg.svdvals(samples)
    expected = (values / values.norm(dim=1, keepdim=True)).mean(0)
    law = marchenko_pastur(rows, columns)
    assert law.shape == (min(rows, columns),) and law.dtype == torch.float64 and (law.diff() < 0).all()
    assert law.norm().item() == pytest.approx(1)
    assert torch.equal(law, marchenko_pastur(columns, rows))
    # In units of the typical value 1/√n: finite matrices differ by less than a tenth from the law for large ones.
    assert (law - expected).abs().max() * math.sqrt(len(law)) < 0.1
    assert (law - expected).norm() < 0.03


def test_marchenko_pastur_has_the_laws_second_moment():
    """Σp² = (1 + rows/columns) / rows for the eigenvalues of the law: its moments are 1 and 1 + ratio."""
    for short, long in ((100, 100), (100, 150), (100, 1000)):
        purity = 1 / participation_ratio(marchenko_pastur(short, long))
        assert purity.item() * short == pytest.approx(1 + short / long, rel=5e-3)


# ---- bad input ---------------------------------------------------------------------------------------------------

K, S = gaussian(), torch.tensor([2.0, 1.0])
BAD = {
    "zero-kernel": (lambda: entanglement_entropy(0 * K, "OUT"), ValueError, "zero kernel"),
    "zero-spectrum": (lambda: participation_ratio(0 * S), ValueError, "all zero"),
    "zero-rank": (lambda: rank_for_norm(0 * S, 0.9), ValueError, "all zero"),
    "share-0": (lambda: rank_for_norm(S, 0), ValueError, "norm_kept must be above 0 and at most 1, got 0"),
    "share-90": (lambda: rank_for_norm(S, 90), ValueError, "at most 1, got 90"),
    "error-1": (lambda: rank_for_error(S, 1), ValueError, "relative_error must be at least 0 and below 1, got 1"),
    "share-nan": (lambda: rank_for_norm(S, math.nan), ValueError, "got nan"),
    "cut": (lambda: entanglement_entropy(K, "SIDE"), ValueError, "unknown cut 'SIDE'"),
    "integers": (lambda: entanglement_entropy(K.to(torch.int8), "OUT"), TypeError, "of 16 bits or more, got torch.int8"),
    "list": (lambda: entanglement_entropy(K.tolist(), "OUT"), TypeError, "must be a torch tensor .* got list"),
    "three-modes": (lambda: entanglement_entropy(K[0], "OUT"), ValueError, r"got shape \(8, 3, 3\)"),
    "gaussian-three-modes": (lambda: gaussian_like(K[0], 0), ValueError, r"got shape \(8, 3, 3\)"),
    "shuffled-integers": (lambda: shuffled_rows(K.long(), 0), TypeError, "floating dtype, .* got torch.int64"),
    "law-29": (lambda: marchenko_pastur(29, 400), ValueError, r"both sides at least 30, got \(29, 400\)"),
    "law-columns": (lambda: marchenko_pastur(400, 9), ValueError, r"at least 30, got \(400, 9\)"),
}


@pytest.mark.parametrize("call, error, message", BAD.values(), ids=BAD)
def test_bad_input_is_named(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_near_the_largest_half_numbers_are_what_they_are_in_double():
    kernel = (6e4 * torch.rand(8, 4, 3, 3, generator=torch.Generator().manual_seed(0))).half()
    for cut in CUTS:
        assert entanglement_entropy(kernel, cut) == pytest.approx(entanglement_entropy(kernel.double(), cut).item(), abs=2e-3)
    assert relative_error(kernel, -kernel) == 2 and relative_error(kernel, -kernel).dtype == torch.float16


@every_cut
def test_the_norm_of_a_truncation_and_its_error_lead_back_to_its_rank(cut):
    kernel = gaussian()
    values = singular_values(kernel, cut)
    for rank in range(1, len(values)):
        truncated = truncate(kernel, cut, rank)
        assert rank_for_norm(values, norm_kept(kernel, truncated).item()) == rank
        assert rank_for_error(values, relative_error(kernel, truncated).item()) == rank
