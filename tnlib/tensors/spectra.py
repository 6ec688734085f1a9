"""What a cut's singular values say, and what they would be by chance.

The functions of a spectrum take singular values in any scale, 1-D: p = s² / Σs² are the weights of the kernel's
Schmidt decomposition at the cut, when the kernel is read as a quantum state of two parts.
"""

import math

import torch

from .checks import check_kernel
from .cuts import singular_values

MARCHENKO_PASTUR_LEAST = 30  # a law for large matrices; below this both sides are too short to use it


def weights(spectrum: torch.Tensor) -> torch.Tensor:
    """p = s² / Σs², shape (max_rank,), in float64: squares leave a smaller dtype's range. Raises `ValueError` for a
    spectrum of zeros."""
    squares = spectrum.double().square()
    if not squares.sum() > 0:
        raise ValueError("the singular values are all zero: a zero kernel has no normalised spectrum")
    return squares / squares.sum()


def entropy(spectrum: torch.Tensor) -> torch.Tensor:
    """H = −Σ p log₂ p in bits, 0-dimensional: from 0 (rank 1) to log₂ max_rank (all values equal)."""
    p = weights(spectrum)
    p = p[p > 0]  # 0 · log 0 is 0, but its gradient is NaN
    bits = -torch.special.xlogy(p, p).sum() / math.log(2) + 0.0  # + 0.0: no negative zero
    return bits.to(spectrum.dtype)


def effective_rank(spectrum: torch.Tensor) -> torch.Tensor:
    """2^H, 0-dimensional. With p ∝ s² and bits; Roy and Vetterli's effective rank takes p ∝ s."""
    return torch.exp2(entropy(spectrum))


def participation_ratio(spectrum: torch.Tensor) -> torch.Tensor:
    """1 / Σp², 0-dimensional: the number of values that carry the weight, never above the effective rank."""
    return (1 / weights(spectrum).square().sum()).to(spectrum.dtype)


def rank_for_norm(spectrum: torch.Tensor, norm_kept: float) -> int:
    """The smallest rank whose truncation keeps at least `norm_kept` of the Frobenius norm (ν, not ν²)."""
    if not 0 < norm_kept <= 1:
        raise ValueError(f"norm_kept must be above 0 and at most 1, got {norm_kept}")
    kept = weights(spectrum).cumsum(0)                                           # ν², by the ranks 1, 2, … max_rank
    return min(int((kept < (norm_kept * (1 - 1e-12)) ** 2).sum()) + 1, len(spectrum))


def rank_for_error(spectrum: torch.Tensor, relative_error: float) -> int:
    """The smallest rank whose truncation has at most this relative error: ε² is the weight that is left out."""
    if not 0 <= relative_error < 1:
        raise ValueError(f"relative_error must be at least 0 and below 1, got {relative_error}")
    left_out = weights(spectrum).flip(0).cumsum(0).flip(0)[1:]         # by the ranks 1, 2, … max_rank − 1
    return int((left_out > relative_error**2 * (1 + 1e-12)).sum()) + 1


def entanglement_entropy(kernel: torch.Tensor, cut) -> torch.Tensor:
    """The entropy −Σ p log₂ p of the kernel at `cut`, p = s²/Σs², in bits, a 0-dimensional tensor.

    The kernel is read as the amplitudes of a normalised state; its scale does not matter. Raises `ValueError` for a
    zero kernel, and as `singular_values` does. Source: the paper's entanglement-like correlations.
    """
    check_kernel(kernel)
    wide = kernel.float() if kernel.dtype.itemsize < 4 else kernel  # a half's largest number is below many a norm
    return entropy(singular_values(wide, cut)).to(kernel.dtype)


# ---- compressible by chance --------------------------------------------------------------------------------------

def _generator(seed: int) -> torch.Generator:
    # Offset, so that a kernel drawn with the same seed is not its own reference.
    return torch.Generator().manual_seed(314159265 + seed)


def gaussian_like(kernel: torch.Tensor, seed: int) -> torch.Tensor:
    """A kernel of independent Gaussian entries with the shape, norm, dtype and device of `kernel`."""
    check_kernel(kernel)
    sample = torch.randn(kernel.shape, generator=_generator(seed), dtype=torch.float64)
    sample *= torch.linalg.vector_norm(kernel.double()).cpu() / torch.linalg.vector_norm(sample)
    return sample.to(kernel)


def shuffled_rows(kernel: torch.Tensor, seed: int) -> torch.Tensor:
    """The kernel's own entries shuffled within each OUT row: every filter keeps its entries and so its norm."""
    check_kernel(kernel)
    flat = kernel.flatten(1)
    keys = torch.rand(flat.shape, generator=_generator(seed), dtype=torch.float64)
    return flat.gather(1, keys.argsort(1).to(kernel.device)).view(kernel.shape)


def marchenko_pastur(rows: int, columns: int) -> torch.Tensor:
    """Expected normalised singular values (s / ‖s‖, descending, float64) of a large Gaussian (rows, columns) matrix.

    Quantiles of the Marchenko–Pastur law at (k + ½) / min(rows, columns). Raises `ValueError` when a side is below
    30, where the law for large matrices says little. Source: Marchenko and Pastur 1967.
    """
    short, long = sorted((rows, columns))
    if short < MARCHENKO_PASTUR_LEAST:
        raise ValueError(f"the Marchenko–Pastur law needs both sides at least {MARCHENKO_PASTUR_LEAST}, "
                         f"got ({rows}, {columns})")
    ratio = short / long
    low, high = (1 - math.sqrt(ratio)) ** 2, (1 + math.sqrt(ratio)) ** 2
    # x = middle + half·cos t takes the square roots at the edges away; the density is then smooth in t.
    t = torch.linspace(0, math.pi, 20001, dtype=torch.float64)
    x = (low + high) / 2 - (high - low) / 2 * torch.cos(t)
    density = ((high - low) / 2 * torch.sin(t)) ** 2 / (2 * math.pi * ratio * x.clamp(min=1e-300))
    cumulative = torch.cat([density.new_zeros(1), torch.cumulative_trapezoid(density, t)])
    quantiles = (torch.arange(short, dtype=torch.float64) + 0.5) / short * cumulative[-1]
    index = torch.searchsorted(cumulative, quantiles).clamp(1, len(t) - 1)
    step = (quantiles - cumulative[index - 1]) / (cumulative[index] - cumulative[index - 1])
    values = (x[index - 1] + step * (x[index] - x[index - 1])).sqrt().flip(0)
    return values / torch.linalg.vector_norm(values)
