"""The tensor networks of a kernel (Figure 3), and the higher-order SVD (Figure 4).

Tucker, tensor train and the structured kernels come from singular value decompositions in float64, and gradients flow
through them where the singular values are distinct and not zero. For CP and the tensor ring see `fits`.
"""

from dataclasses import dataclass

import torch

from .checks import check_kernel, check_length, check_rank, rank_name
from .cuts import MODES, Cut, svd
from .factors import KernelFactors, Step, cast_like

CHAIN_MODES = ("IN", "KH", "KW", "OUT")  # the image comes in at IN, and the features leave at OUT


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
    nothing is iterated (no HOOI). Raises `ValueError` for a rank above its mode's max_rank, `TypeError` for one that is no whole number, and
    as `Cut.matricize` does for what is no kernel.
    Source: Figures 3 and 4; De Lathauwer et al. 2000; sequential: Vannieuwenhoven et al. 2012.
    """
    check_kernel(kernel)
    if ranks is not None:
        check_length(ranks, MODES)
    core, matrices, values = kernel.double(), [], []
    for n, mode in enumerate(MODES):
        source = core if sequential else kernel
        rank = max_rank = Cut.parse(mode).max_rank(source.shape)
        if ranks is not None:
            rank = check_rank(ranks[n], max_rank, rank_name(n, f"of the mode {mode}", kernel))
        u, s, _ = svd(source, mode)
        matrices.append(u[:, :rank])                                            # [mode, r]
        values.append(s)
        core = _project(core, matrices[n], n)
    return TuckerFactors(tuple(kernel.shape), cast_like(kernel, core, *matrices), cast_like(kernel, *values))


def _project(core, matrix, mode):
    """core ×ₙ Uᵀ"""
    return torch.tensordot(core, matrix, ([mode], [0])).movedim(-1, mode)


# ---- the tensor train --------------------------------------------------------------------------------------------

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
    the ones before it leave: r_k ≤ min(r_{k−1}·mode, product of the modes after), `TypeError` for one that is no whole number, and
    as `Cut.matricize` does for what is no kernel. Source: Figure 3; Oseledets 2011.
    """
    check_kernel(kernel)
    check_length(ranks, [f"after {mode}" for mode in CHAIN_MODES[:3]])
    rest, bond, cores = kernel.double().permute(1, 2, 3, 0), 1, []              # [IN, KH, KW, OUT]
    for k, mode in enumerate(CHAIN_MODES[:3]):
        matrix = rest.reshape(bond * kernel.shape[MODES.index(mode)], -1)       # [bond·mode, modes after]
        rank = check_rank(ranks[k], min(matrix.shape), rank_name(k, f"of the bond after {mode}", kernel))
        u, s, vh = torch.linalg.svd(matrix, full_matrices=False)
        cores.append(u[:, :rank].reshape(bond, -1, rank))                       # [bond, mode, r]
        rest, bond = s[:rank, None] * vh[:rank], rank
    return ChainFactors(tuple(kernel.shape), cast_like(kernel, *cores, rest[:, :, None]))


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

    OUT·IN·(KH + KW) parameters. Its convolution holds OUT·IN channels at once. Raises as `Cut.matricize` does for what is no kernel.
    Source: Figure 3 (spatially separable).
    """
    check_kernel(kernel)
    vertical, horizontal = _rank_one(kernel)                                    # [OUT, IN, KH], [OUT, IN, KW]
    return SeparableFactors(tuple(kernel.shape), cast_like(kernel, vertical, horizontal))


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

    IN·(OUT + KH·KW) parameters. Raises as `Cut.matricize` does for what is no kernel. Source: Figure 3.
    """
    check_kernel(kernel)
    pointwise, depthwise = _rank_one(kernel.transpose(0, 1).flatten(2))         # [IN, OUT], [IN, KH·KW]
    depthwise = depthwise.unflatten(1, kernel.shape[2:])
    return DepthwiseSeparableFactors(tuple(kernel.shape), cast_like(kernel, pointwise.T, depthwise))


def _rank_one(matrices):
    """Of each matrix (…, rows, columns) the leading singular vectors, each times √s₁: (…, rows) and (…, columns)."""
    u, s, vh = torch.linalg.svd(matrices.double(), full_matrices=False)
    root = s[..., :1].sqrt()
    return u[..., 0] * root, vh[..., 0, :] * root
