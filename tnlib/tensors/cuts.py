"""The seven cuts of a kernel: matricisation, truncation, and the two factors of a truncation (Figure 5)."""

import math
import numbers
import reprlib
from dataclasses import dataclass

import torch

from .checks import check_kernel, check_rank
from .factors import KernelFactors, Step
from .gram import lower_gram

MODES = ("OUT", "IN", "KH", "KW")


@dataclass(frozen=True)
class Cut:
    """A bipartition of a kernel's modes, named by its rows.

    `.name` such as "OUT,KW"; `.rows` and `.columns`, tuples of modes in the order OUT, IN, KH, KW. Source: Figure 5.
    """

    rows: tuple[str, ...]

    def __post_init__(self):
        if not (isinstance(self.rows, tuple) and 0 < len(self.rows) < len(MODES)
                and self.rows == tuple(mode for mode in MODES if mode in self.rows)):
            raise ValueError(f"rows must be a tuple of one to three of {', '.join(MODES)}, in this order, got {self.rows!r}")

    @classmethod
    def parse(cls, name) -> "Cut":
        """The cut called `name`, e.g. "OUT,KW" (in any order of its modes); a `Cut` is returned as it is.

        Raises `ValueError` naming the seven cuts.
        """
        if isinstance(name, Cut):
            return name
        modes = sorted(mode.strip() for mode in name.split(",")) if isinstance(name, str) else []
        for cut in CUTS:
            if modes == sorted(cut.rows):
                return cut
        same = [cut.name for cut in CUTS if modes == sorted(cut.columns)]
        hint = f" ({name!r} is the same bipartition as {same[0]!r})" if same else ""
        raise ValueError(f"unknown cut {name!r}: it takes one of {', '.join(repr(cut.name) for cut in CUTS)}{hint}")

    @property
    def name(self) -> str:
        return ",".join(self.rows)

    @property
    def columns(self) -> tuple[str, ...]:
        return tuple(mode for mode in MODES if mode not in self.rows)

    def matricize(self, kernel: torch.Tensor) -> torch.Tensor:
        """The kernel (OUT, IN, KH, KW) as the matrix (rows, columns) of this cut.

        Modes of the rows in the order OUT, IN, KH, KW, then those of the columns. Raises `TypeError` or `ValueError`
        for anything but a kernel.
        """
        check_kernel(kernel)
        order = [MODES.index(mode) for mode in self.rows + self.columns]
        return kernel.permute(order).reshape(self.dimensions(kernel.shape))

    def fold(self, matrix: torch.Tensor, shape) -> torch.Tensor:
        """The inverse of `matricize`: the matrix (rows, columns) as a kernel of `shape` (OUT, IN, KH, KW).

        Raises `ValueError` when the matrix does not have this cut's form for that shape, `TypeError` where it is no tensor.
        """
        if not isinstance(matrix, torch.Tensor):
            raise TypeError(f"matrix must be a torch tensor {self.dimensions(shape)}, got {type(matrix).__name__}")
        if tuple(matrix.shape) != self.dimensions(shape):
            raise ValueError(f"a kernel of shape {tuple(shape)} has a matrix {self.dimensions(shape)} at the cut "
                             f"{self.name}, got {tuple(matrix.shape)}")
        order = [MODES.index(mode) for mode in self.rows + self.columns]
        back = [order.index(mode) for mode in range(4)]
        return matrix.reshape([shape[mode] for mode in order]).permute(back).contiguous()

    def dimensions(self, shape) -> tuple[int, int]:
        """(rows, columns) of this cut's matrix for a kernel of `shape` (OUT, IN, KH, KW). Raises `TypeError` for a tensor in the shape's
        place, and `ValueError` for what is no such shape."""
        if isinstance(shape, torch.Tensor):
            raise TypeError(f"a shape (OUT, IN, KH, KW) is asked for, got a tensor of shape {tuple(shape.shape)}: give its .shape")
        sizes = tuple(shape) if isinstance(shape, (tuple, list)) else ()                     # a torch.Size is a tuple
        if len(sizes) != 4 or not all(isinstance(size, numbers.Integral) and size > 0 for size in sizes):
            raise ValueError(f"a kernel's shape has four modes (OUT, IN, KH, KW) of positive size, got {reprlib.repr(shape)}")
        rows = math.prod(shape[MODES.index(mode)] for mode in self.rows)
        return rows, math.prod(shape) // rows

    def max_rank(self, shape) -> int:
        """min(rows, columns) of this cut's matrix for a kernel of `shape`. Raises as `dimensions` does."""
        return min(self.dimensions(shape))


CUTS = tuple(Cut(tuple(name.split(","))) for name in ("KW", "KH", "OUT", "IN", "OUT,IN", "OUT,KW", "OUT,KH"))


def distinct_cuts(shape, cuts=CUTS) -> list[Cut]:
    """Those of `cuts` that, for a kernel of `shape`, are neither trivial (max_rank 1) nor equal to one before them.

    Modes of size 1 do not count: without them, cuts that are the same bipartition or its complement are one.
    """
    long_modes = {mode for mode, size in zip(MODES, shape, strict=True) if size > 1}
    seen, distinct = set(), []
    for cut in cuts:
        rows = frozenset(cut.rows) & long_modes
        if cut.max_rank(shape) > 1 and rows not in seen:
            seen |= {rows, frozenset(long_modes - rows)}
            distinct.append(cut)
    return distinct


def svd(kernel: torch.Tensor, cut) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """U (rows, max_rank), S (max_rank,) and Vᵀ (max_rank, columns) of a cut's matrix, in float64."""
    return torch.linalg.svd(Cut.parse(cut).matricize(kernel).double(), full_matrices=False)


def singular_values(kernel: torch.Tensor, cut) -> torch.Tensor:
    """The singular values of the kernel's matrix at `cut`: shape (max_rank,), descending, the kernel's dtype.

    Computed in float64, from the Gram matrix of the smaller side, which is faster and accurate to 1e-7 of the largest
    value; of a float64 kernel only where the matrix is at least twice as long as wide. Raises as `Cut.parse` and `Cut.matricize` do,
    and `ValueError` where a value is beyond the kernel's dtype.
    Source: Figures 4 (single-mode cuts) and 5.
    """
    matrix = Cut.parse(cut).matricize(kernel).double()
    rows, columns = matrix.shape
    if kernel.dtype == torch.float64 and max(rows, columns) < 2 * min(rows, columns):
        return torch.linalg.svdvals(matrix)
    gram = lower_gram(matrix if rows < columns else matrix.T)
    values = torch.linalg.eigvalsh(gram).flip(0).clamp(min=0).sqrt()
    if values[0] > torch.finfo(kernel.dtype).max:
        raise ValueError(f"the largest singular value of the kernel, {values[0].item():.4g}, is above what {kernel.dtype} can hold: take kernel.float()")
    return values.to(kernel.dtype)


def truncate(kernel: torch.Tensor, cut, rank: int) -> torch.Tensor:
    """The kernel rebuilt from the `rank` largest singular values at `cut`: same shape, dtype and device.

    The nearest kernel of that rank in the Frobenius norm (Eckart and Young 1936). Raises as `factorize` does.
    Source: the paper's truncations along the cuts of Figure 5.
    """
    factors = factorize(kernel, cut, rank)
    with torch.autocast(kernel.device.type, enabled=False):  # the kernel's dtype is kept
        return factors.to_kernel()


def factorize(kernel: torch.Tensor, cut, rank: int) -> "CutFactors":
    """The truncation of the kernel at `cut` as its two factors, each with √S: a `CutFactors`.

    Raises `ValueError` when `rank` is not from 1 to the cut's max_rank, `TypeError` where it is no whole number, and as `Cut.parse` and
    `Cut.matricize` do. Source: the paper's cuts of Figure 5.
    """
    cut = Cut.parse(cut)
    check_kernel(kernel)
    rank = check_rank(rank, cut.max_rank(kernel.shape), f"rank at the cut {cut.name} of a kernel {tuple(kernel.shape)}")
    u, s, vh = svd(kernel, cut)
    root = s[:rank].sqrt()
    factors = u[:, :rank] * root, root[:, None] * vh[:rank]
    return CutFactors(tuple(kernel.shape), tuple(factor.to(kernel.dtype) for factor in factors), cut)


@dataclass(frozen=True)
class CutFactors(KernelFactors):
    """A kernel of rank r at a cut. `.factors`: (rows, r) and (r, columns), rank · (rows + columns) parameters."""

    cut: Cut

    def to_kernel(self) -> torch.Tensor:
        """The dense kernel (OUT, IN, KH, KW)."""
        left, right = self.factors
        return self.cut.fold(left @ right, self.shape)

    def steps(self) -> list[Step]:
        """The factor without OUT, applied first, then the one with OUT; each spatial mode lies in one of them."""
        left, right = self.factors
        outer, inner = (left, right.T) if "OUT" in self.cut.rows else (right.T, left)          # [modes, r] each
        outer_modes, inner_modes = self.cut.rows, self.cut.columns
        if "OUT" in inner_modes:
            outer_modes, inner_modes = inner_modes, outer_modes
        size = lambda modes, mode: self.shape[MODES.index(mode)] if mode in modes else 1
        inner = inner.T.reshape(-1, *(size(inner_modes, mode) for mode in MODES[1:]))        # [r, IN or 1, KH, KW]
        outer = outer.reshape(*(size(outer_modes, mode) for mode in MODES), -1)              # [OUT, IN or 1, KH, KW, r]
        outer = outer.permute(0, 1, 4, 2, 3).flatten(1, 2)                                   # [OUT, IN·r or r, KH, KW]
        copies = size(outer_modes, "IN")  # then every input channel is filtered by the same r small kernels
        return [Step(inner, inner_modes, copies=copies), Step(outer, outer_modes)]


def relative_error(kernel: torch.Tensor, approximation: torch.Tensor) -> torch.Tensor:
    """ε = ‖K − K'‖ / ‖K‖ in the Frobenius norm, a 0-dimensional tensor of the kernel's dtype.

    Raises `ValueError` when the shapes or devices differ or the kernel is zero, and as `Cut.matricize` does for what is no kernel.
    """
    approximation = _alike(kernel, approximation)
    return _ratio(kernel.double() - approximation.double(), kernel)


def norm_kept(kernel: torch.Tensor, approximation: torch.Tensor) -> torch.Tensor:
    """ν = ‖K'‖ / ‖K‖ in the Frobenius norm, a 0-dimensional tensor of the kernel's dtype; ν² + ε² = 1 for a truncation.

    Raises as `relative_error` does.
    """
    return _ratio(_alike(kernel, approximation), kernel)


def _alike(kernel, approximation):
    check_kernel(kernel)
    check_kernel(approximation, "approximation")
    if kernel.shape != approximation.shape:
        raise ValueError(f"kernel and approximation must have the same shape, got {tuple(kernel.shape)} "
                         f"and {tuple(approximation.shape)}")
    if kernel.device != approximation.device:
        raise ValueError(f"kernel and approximation must be on one device, got {kernel.device} and {approximation.device}")
    return approximation


def _ratio(part, kernel):
    norm = torch.linalg.vector_norm(kernel, dtype=torch.float64)  # squares, and differences, leave a smaller dtype's range
    if norm == 0:
        raise ValueError(f"the kernel of shape {tuple(kernel.shape)} is zero: nothing is relative to it")
    return (torch.linalg.vector_norm(part, dtype=torch.float64) / norm).to(kernel.dtype)
