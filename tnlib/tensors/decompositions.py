"""The tensor networks of a kernel (Figure 3), and the higher-order SVD (Figure 4).

Tucker, tensor train and the structured kernels come from singular value decompositions in float64, and gradients flow
through them where the singular values are distinct and not zero. CP and the tensor ring are fitted by alternating least
squares: no gradient goes through the fit, and the factors that come out have none until they are asked to.
"""

import itertools
import math
import numbers
from dataclasses import dataclass, replace

import numpy as np
import tensorly
import torch
from tensorly.decomposition import parafac, tensor_ring_als

from .checks import check_count, check_kernel, check_rank
from .cuts import MODES, Cut, relative_error, svd
from .factors import KernelFactors, Step

CHAIN_MODES = ("IN", "KH", "KW", "OUT")  # the image comes in at IN, and the features leave at OUT
CP_RIDGE = 1e-14  # of the squared norm: keeps the least squares solvable when a component is not needed


# ---- Tucker and the higher-order SVD -----------------------------------------------------------------------------

@dataclass(frozen=True)
class TuckerFactors(KernelFactors):
    """A core (r_OUT, r_IN, r_KH, r_KW) and four mode matrices (mode, r) with UᵀU = 1; `.factors` is all five.

    `.singular_values`: of each mode's matrix as it was decomposed, so without truncation of the modes before it unless
    sequential; in the order OUT, IN, KH, KW, each (max_rank,).
    """

    singular_values: tuple[torch.Tensor, ...]

    @property
    def core(self) -> torch.Tensor:
        return self.factors[0]

    @property
    def matrices(self) -> tuple[torch.Tensor, ...]:
        return self.factors[1:]

    def to_kernel(self) -> torch.Tensor:
        return torch.einsum("abcd,oa,ib,hc,wd->oihw", *self.factors)

    def steps(self) -> list[Step]:
        core, u_out, u_in, u_kh, u_kw = self.factors
        r_in, r_kh = core.shape[1:3]
        return [Step(u_in.T[:, :, None, None]),                                 # IN → b
                Step(u_kh.T[:, None, :, None], ("KH",), copies=r_in),           # b → b·c
                Step(u_kw.T[:, None, None, :], ("KW",), copies=r_in * r_kh),    # b·c → b·c·d
                Step(core.flatten(1)[:, :, None, None]),                        # b·c·d → a
                Step(u_out[:, :, None, None])]                                  # a → OUT


def hosvd(kernel: torch.Tensor, ranks=None, sequential: bool = False) -> TuckerFactors:
    """The kernel as core and orthogonal mode matrices, by an SVD of each single-mode matrix: a Tucker decomposition.

    `ranks`: four, in the order OUT, IN, KH, KW; none: full, and then the core's matrix at a mode n obeys
    GₙGₙᵀ = diag(sₙ²), so that Gₙ divided by sₙ is an isometry, and UₙUₙᵀ = 1 where n is no longer than its max_rank.
    `sequential`: truncate each mode before the next is decomposed; the squared error is then the sum of the squares of
    all discarded `.singular_values`, otherwise at most that. Either error is at most twice the least of these ranks;
    nothing is iterated (no HOOI). Raises `ValueError` for a rank above its mode's max_rank.
    Source: Figures 3 and 4; De Lathauwer et al. 2000; sequential: Vannieuwenhoven et al. 2012.
    """
    check_kernel(kernel)
    if ranks is not None:
        _check_length(ranks, MODES)
    core, matrices, values = kernel.double(), [], []
    for n, mode in enumerate(MODES):
        source = core if sequential else kernel
        rank = max_rank = Cut.parse(mode).max_rank(source.shape)
        if ranks is not None:
            rank = check_rank(ranks[n], max_rank, _named(n, f"of the mode {mode}", kernel))
        u, s, _ = svd(source, mode)
        matrices.append(u[:, :rank])                                            # [mode, r]
        values.append(s)
        core = _project(core, matrices[n], n)
    return TuckerFactors(tuple(kernel.shape), _cast(kernel, core, *matrices), _cast(kernel, *values))


def _project(core, matrix, mode):
    """core ×ₙ Uᵀ"""
    return torch.tensordot(core, matrix, ([mode], [0])).movedim(-1, mode)


# ---- tensor train and tensor ring --------------------------------------------------------------------------------

@dataclass(frozen=True)
class ChainFactors(KernelFactors):
    """Four cores (bond, mode, next bond) for IN, KH, KW, OUT, the last bond being the first; 1 in a tensor train."""

    def to_kernel(self) -> torch.Tensor:
        return torch.einsum("aib,bhc,cwd,doa->oihw", *self.factors)

    def steps(self) -> list[Step]:
        first, vertical, horizontal, last = self.factors
        closing = first.shape[0]  # its values are carried along as blocks of channels until the last core closes them
        return [Step(first.permute(0, 2, 1).flatten(0, 1)[:, :, None, None]),                      # IN → a·b
                Step(vertical.permute(2, 0, 1)[:, :, :, None], ("KH",), copies=closing),           # a·b → a·c
                Step(horizontal.permute(2, 0, 1)[:, :, None, :], ("KW",), copies=closing),         # a·c → a·d
                Step(last.permute(1, 2, 0).flatten(1)[:, :, None, None])]                          # a·d → OUT


def tensor_train(kernel: torch.Tensor, ranks) -> ChainFactors:
    """The kernel as a chain of cores (1, IN, r₁), (r₁, KH, r₂), (r₂, KW, r₃), (r₃, OUT, 1), by successive SVDs.

    `ranks`: the three inner bonds r₁, r₂, r₃. The first three cores are isometries from their left; the squared error
    is the sum of the squares of the singular values discarded on the way. Raises `ValueError` for a bond above what
    the ones before it leave: r_k ≤ min(r_{k−1}·mode, product of the modes after). Source: Figure 3; Oseledets 2011.
    """
    check_kernel(kernel)
    _check_length(ranks, [f"after {mode}" for mode in CHAIN_MODES[:3]])
    rest, bond, cores = kernel.double().permute(1, 2, 3, 0), 1, []              # [IN, KH, KW, OUT]
    for k, mode in enumerate(CHAIN_MODES[:3]):
        matrix = rest.reshape(bond * kernel.shape[MODES.index(mode)], -1)       # [bond·mode, modes after]
        rank = check_rank(ranks[k], min(matrix.shape), _named(k, f"of the bond after {mode}", kernel))
        u, s, vh = torch.linalg.svd(matrix, full_matrices=False)
        cores.append(u[:, :rank].reshape(bond, -1, rank))                       # [bond, mode, r]
        rest, bond = s[:rank, None] * vh[:rank], rank
    return ChainFactors(tuple(kernel.shape), _cast(kernel, *cores, rest[:, :, None]))


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
    they are singular. No gradient. Raises `ValueError` for a zero kernel.
    Source: Figure 3; Zhao et al. 2016, `tensorly.decomposition.tensor_ring_als`.
    """
    check_kernel(kernel)
    _check_length(ranks, ["closing", *(f"after {mode}" for mode in CHAIN_MODES[:3])])
    sizes = [kernel.shape[MODES.index(mode)] for mode in CHAIN_MODES]
    names = [_named(k, f"of the bond {CHAIN_MODES[k - 1]}–{CHAIN_MODES[k]}", kernel) for k in range(4)]
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
    same seed gives the same factors, and more starts never a larger error. An iteration that lowers the
    relative error by less than `tolerance` is the last. No gradient. A nearest kernel of a given rank need not exist:
    look at `.largest_component_norm`. Raises `ValueError` for a zero kernel and for a rank above the product of all
    modes but the longest, which is exact for any kernel. Source: Figure 3; `tensorly.decomposition.parafac`.
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


def _best_start(kind, kernel, fit, terms, seed, starts, max_iterations, tolerance):
    """The fit with the least error among the starts; `terms` gives the norms of what the kernel is the sum of."""
    for name, value, least in (("seed", seed, 0), ("starts", starts, 1), ("max_iterations", max_iterations, 1)):
        check_count(value, name, least)
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
        factors = _cast(kernel, *(factor * norm.to(factor) ** (1 / 4) for factor in factors))
        fitted = kind(tuple(kernel.shape), factors, tuple(errors[1:]), math.nan, converged, largest)
        # Anew from what is returned: near zero the fit's own sums of squares have lost half of their digits.
        error = float(relative_error(kernel.double(), fitted.to_kernel().double()))
        found.append(replace(fitted, relative_error=error))
    return min(found, key=lambda fitted: fitted.relative_error)


# ---- the structured kernels --------------------------------------------------------------------------------------

@dataclass(frozen=True)
class SeparableFactors(KernelFactors):
    """K[o,i,h,w] = vertical[o,i,h] · horizontal[o,i,w]. `.factors`: (OUT, IN, KH) and (OUT, IN, KW)."""

    def to_kernel(self) -> torch.Tensor:
        return torch.einsum("oih,oiw->oihw", *self.factors)

    def steps(self) -> list[Step]:
        vertical, horizontal = self.factors
        out, into = vertical.shape[:2]
        vertical = vertical.transpose(0, 1).flatten(0, 1)                       # [IN·OUT, KH]
        return [Step(vertical[:, None, :, None], ("KH",), groups=into, swap=True),  # IN → IN·OUT, leaving as OUT·IN
                Step(horizontal[:, :, None, :], ("KW",), groups=out)]           # OUT·IN → OUT


def separable(kernel: torch.Tensor) -> SeparableFactors:
    """The nearest kernel whose every filter is an outer product of a column and a row: a rank-1 SVD of each (OUT, IN).

    OUT·IN·(KH + KW) parameters. Its convolution holds OUT·IN channels at once. Source: Figure 3 (spatially separable).
    """
    check_kernel(kernel)
    vertical, horizontal = _rank_one(kernel)                                    # [OUT, IN, KH], [OUT, IN, KW]
    return SeparableFactors(tuple(kernel.shape), _cast(kernel, vertical, horizontal))


@dataclass(frozen=True)
class DepthwiseSeparableFactors(KernelFactors):
    """K[o,i,h,w] = pointwise[o,i] · depthwise[i,h,w]. `.factors`: pointwise (OUT, IN), depthwise (IN, KH, KW)."""

    def to_kernel(self) -> torch.Tensor:
        return torch.einsum("oi,ihw->oihw", *self.factors)

    def steps(self) -> list[Step]:
        pointwise, depthwise = self.factors
        return [Step(depthwise[:, None], ("KH", "KW"), groups=len(depthwise)),  # IN → IN
                Step(pointwise[:, :, None, None])]                              # IN → OUT


def depthwise_separable(kernel: torch.Tensor) -> DepthwiseSeparableFactors:
    """The nearest kernel with one filter per input channel, then a 1×1 convolution: a rank-1 SVD of each IN slice.

    IN·(OUT + KH·KW) parameters. Source: Figure 3.
    """
    check_kernel(kernel)
    pointwise, depthwise = _rank_one(kernel.transpose(0, 1).flatten(2))         # [IN, OUT], [IN, KH·KW]
    depthwise = depthwise.unflatten(1, kernel.shape[2:])
    return DepthwiseSeparableFactors(tuple(kernel.shape), _cast(kernel, pointwise.T, depthwise))


def _rank_one(matrices):
    """Of each matrix (…, rows, columns) the leading singular vectors, each times √s₁: (…, rows) and (…, columns)."""
    u, s, vh = torch.linalg.svd(matrices.double(), full_matrices=False)
    root = s[..., :1].sqrt()
    return u[..., 0] * root, vh[..., 0, :] * root


# ---- arguments and results ---------------------------------------------------------------------------------------

def _check_length(ranks, names):
    if not isinstance(ranks, (tuple, list)) or len(ranks) != len(names):
        raise ValueError(f"ranks must be {len(names)} whole numbers ({', '.join(names)}), got {ranks!r}")


def _named(position, what, kernel):
    return f"ranks[{position}] ({what} of a kernel {tuple(kernel.shape)})"


def _cast(kernel, *tensors):
    """The tensors with the kernel's dtype and device."""
    return tuple(tensor.to(kernel).contiguous() for tensor in tensors)
