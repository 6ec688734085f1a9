"""The tensor networks of a kernel that are fitted to it (Figure 3): CP and the tensor ring, by alternating least squares.

No gradient goes through a fit, and the factors that come out have none until they are asked to.
"""

import itertools
import math
import numbers
from dataclasses import dataclass, replace

import numpy as np
import tensorly
import torch
from tensorly.decomposition import parafac, tensor_ring_als

from .checks import check_count, check_kernel, check_length, check_rank, check_seed, rank_name
from .cuts import MODES, relative_error, svd
from .decompositions import CHAIN_MODES, ChainFactors
from .factors import KernelFactors, Step, cast_like

CP_RIDGE = 1e-14  # of the squared norm: keeps the least squares solvable when a component is not needed


@dataclass(frozen=True)
class Fit:
    """How the fit that gave a `CPFactors` or a `RingFactors` ended.

    `.errors`: relative error after each iteration of the best start; `.relative_error`: of the factors that came out;
    `.converged`: whether the last iteration lowered it by less than the tolerance, else the iterations were used up;
    `.largest_component_norm`: of one of the terms the kernel is the sum of, relative to the kernel's norm. Far above 1
    the fit is degenerate: its terms grow and cancel (Phan et al. 2020, arXiv 2008.05441).
    """

    errors: tuple[float, ...]
    relative_error: float
    converged: bool
    largest_component_norm: float


def _best_start(kind, kernel, fit, terms, seed, starts, max_iterations, tolerance):
    """The fit with the least error among the starts; `terms` gives the norms of what the kernel is the sum of."""
    check_seed(seed)
    for name, value in (("starts", starts), ("max_iterations", max_iterations)):
        check_count(value, name)
    if isinstance(tolerance, bool) or not isinstance(tolerance, numbers.Real) or not tolerance > 0:
        raise ValueError(f"tolerance must be above 0, got {tolerance!r}")
    kernel = kernel.detach()
    norm = torch.linalg.vector_norm(kernel.double())
    if norm == 0:
        raise ValueError(f"the kernel of shape {tuple(kernel.shape)} is zero: nothing can be fitted to it")
    rng, found = np.random.RandomState(seed), []  # one for all starts: a further one changes none before it
    for _ in range(starts):
        errors = []
        with tensorly.backend_context("pytorch", local_threadsafe=True):
            factors = fit(kernel.double() / norm, rng, lambda _, error: errors.append(float(error)))
        converged = abs(errors[-2] - errors[-1]) < tolerance
        largest = float(terms(factors).max())
        factors = cast_like(kernel, *(factor * norm.to(factor) ** (1 / 4) for factor in factors))
        fitted = kind(tuple(kernel.shape), factors, tuple(errors[1:]), math.nan, converged, largest)
        # Anew from what is returned: near zero the fit's own sums of squares have lost half of their digits.
        error = float(relative_error(kernel.double(), fitted.to_kernel().double()))
        found.append(replace(fitted, relative_error=error))
    return min(found, key=lambda fitted: fitted.relative_error)


# ---- the tensor ring ---------------------------------------------------------------------------------------------

@dataclass(frozen=True)
class RingFactors(Fit, ChainFactors):
    """A fitted `ChainFactors` with its `Fit`. Its terms are the trains at each value of the closing bond.

    The bonds are in the basis that the fit left; in another one of the closing bond the terms have other norms.
    """


def tensor_ring(kernel: torch.Tensor, ranks, seed: int = 0, starts: int = 3, max_iterations: int = 100,
                tolerance: float = 1e-6, normal_equations: bool = False) -> RingFactors:
    """The kernel as a closed chain of cores (r₀, IN, r₁), (r₁, KH, r₂), (r₂, KW, r₃), (r₃, OUT, r₀).

    `ranks`: the closing bond r₀, then the inner r₁, r₂, r₃, none wider than the rest of a core that it ends at. Fitted
    by alternating least squares from `starts` random starts, of which the nearest is returned with its `Fit`; the
    same seed gives the same factors, and more starts never a larger error. `normal_equations` solves the least squares
    by them: some three times faster and as near, but only for bonds that the kernel fills: where fewer would be exact,
    they are singular. No gradient. Raises `ValueError` for a zero kernel, and `TypeError` or `ValueError` as
    `Cut.matricize` does, and for ranks, a seed or numbers out of range.
    Source: Figure 3; Zhao et al. 2016, `tensorly.decomposition.tensor_ring_als`.
    """
    check_kernel(kernel)
    check_length(ranks, ["closing", *(f"after {mode}" for mode in CHAIN_MODES[:3])])
    sizes = [kernel.shape[MODES.index(mode)] for mode in CHAIN_MODES]
    names = [rank_name(k, f"of the bond {CHAIN_MODES[k - 1]}–{CHAIN_MODES[k]}", kernel) for k in range(4)]
    ranks = [check_count(rank, name) for rank, name in zip(ranks, names)]
    for k, rank in enumerate(ranks):  # a wider bond could be narrowed without changing the kernel
        check_rank(rank, min(ranks[k - 1] * sizes[k - 1], sizes[k] * ranks[(k + 1) % 4]), names[k])

    def fit(unit, rng, callback):
        chain = unit.permute(1, 2, 3, 0).cpu()  # the solver that takes any rank has no CUDA version
        return tensor_ring_als(chain, [*ranks, ranks[0]], "normal_eq" if normal_equations else "lstsq", max_iterations,
                               tolerance, rng, callback=callback).factors

    terms = lambda cores: torch.einsum("aib,bhc,cwd,doa->aoihw", *cores).flatten(1).norm(dim=1)
    return _best_start(RingFactors, kernel, fit, terms, seed, starts, max_iterations, tolerance)


# ---- CP ----------------------------------------------------------------------------------------------------------

@dataclass(frozen=True)
class CPFactors(Fit, KernelFactors):
    """A sum of r outer products, with its `Fit`. `.factors`: (OUT, r), (IN, r), (KH, r), (KW, r), columns balanced."""

    def to_kernel(self) -> torch.Tensor:
        out, into, vertical, horizontal = self.factors
        # As one product of two matrices of like size: with all four factors at once, it and its gradient take forty times as long.
        left = torch.einsum("or,hr->ohr", out, vertical).flatten(0, 1)                          # [OUT·KH, r]
        right = torch.einsum("ir,wr->iwr", into, horizontal).flatten(0, 1)                      # [IN·KW, r]
        kernel = (left @ right.T).view(len(out), len(vertical), len(into), len(horizontal))
        return kernel.transpose(1, 2).contiguous()

    def steps(self) -> list[Step]:
        out, into, vertical, horizontal = self.factors
        rank = out.shape[1]
        return [Step(into.T[:, :, None, None]),                                 # IN → r
                Step(vertical.T[:, None, :, None], ("KH",), groups=rank),
                Step(horizontal.T[:, None, None, :], ("KW",), groups=rank),
                Step(out[:, :, None, None])]                                    # r → OUT


def cp(kernel: torch.Tensor, rank: int, seed: int = 0, starts: int = 3, max_iterations: int = 200,
       tolerance: float = 1e-6, svd_starts: int = 0) -> CPFactors:
    """The kernel as a sum of `rank` outer products of four vectors (canonical polyadic), rank·Σ dimensions parameters.

    Fitted by alternating least squares in float64 from `starts` Gaussian starts, and from `svd_starts` more at the
    singular vectors of each mode, filled up with Gaussian columns; the nearest fit is returned with its `Fit`. The
    same seed gives the same factors, and more `svd_starts`, or without them more `starts`, never a larger error (both take their
    columns from one generator, the Gaussian starts first). An iteration that lowers the
    relative error by less than `tolerance` is the last. No gradient. A nearest kernel of a given rank need not exist:
    look at `.largest_component_norm`. Raises `ValueError` for a zero kernel and for a rank above the product of all
    modes but the longest, which is exact for any kernel, `TypeError` for one that is no whole number, and either as `tensor_ring` does.
    Source: Figure 3; `tensorly.decomposition.parafac`.
    """
    check_kernel(kernel)
    bound = kernel.numel() // max(kernel.shape)
    rank = check_rank(rank, bound, f"rank of the CP decomposition of a kernel {tuple(kernel.shape)}")

    check_count(starts, "starts", 0 if check_count(svd_starts, "svd_starts", 0) else 1)
    number = itertools.count()

    def fit(unit, rng, callback):
        # Gaussian, not the library's uniform starts: those are all positive and nearly parallel.
        start = [torch.as_tensor(rng.randn(n, rank) / math.sqrt(n)).to(unit) for n in unit.shape]
        if next(number) >= starts:
            vectors = [svd(unit, mode)[0] for mode in MODES]                    # [mode, max_rank]
            start = [torch.cat([u[:, :rank], columns[:, u.shape[1]:]], dim=1) for u, columns in zip(vectors, start)]
        _, factors = parafac(unit, rank, n_iter_max=max_iterations, init=(unit.new_ones(rank), start), tol=tolerance,
                             l2_reg=CP_RIDGE, callback=callback)
        norms = torch.stack([factor.norm(dim=0) for factor in factors])         # [mode, r]
        share = norms.prod(dim=0) ** 0.25 / norms.where(norms > 0, 1)
        return [factor * part for factor, part in zip(factors, share)]

    terms = lambda factors: torch.stack([factor.norm(dim=0) for factor in factors]).prod(dim=0)
    return _best_start(CPFactors, kernel, fit, terms, seed, starts + svd_starts, max_iterations, tolerance)
