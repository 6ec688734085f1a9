"""Truncations of one kernel at one cut, of ascending rank: each is the one before and a few terms more.

A kernel at a cut is Σₖ uₖ∘vₖ, and its convolution Σₖ conv(conv(x, vₖ), uₖ). So what a layer gives at rank r is what it
gave at rank q < r and the terms between; and all conv(x, vₖ) are one convolution, done once for all ranks.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch.nn import functional as F

from ..tensors.cuts import CutFactors
from ..tensors.network import Geometry
from .convolution import APPLY, Convolution, convolve

# For a value of the output. Measured with AVX-512: with 27, in a first layer, adding terms takes longer than the whole
# convolution (1.2 to 2 times), with 288 to 4,608 a tenth to a third of it.
LEAST_MULTIPLICATIONS = 128
FEW_PARAMETERS = 0.4  # of the kernel's. Measured: two convolutions with 0.2 to 0.3 of them take 0.25 to 0.6 of the time
OUT_OF_PLACE = {"none": torch.clone, "relu": torch.relu, "hardtanh": F.hardtanh}


@dataclass(frozen=True)
class GrowingFactors(CutFactors):
    """The factors of a truncation, and the `.ranks` in whose steps it grows: ascending, its own the last.

    The steps are the same whether the lower ranks are evaluated too or not, and with them every rounding.
    """

    ranks: tuple[int, ...]

    def continues(self, other) -> bool:
        """Whether `other` is this truncation at one of the lower ranks."""
        if not isinstance(other, GrowingFactors) or other.cut != self.cut or other.shape != self.shape:
            return False
        steps, rank = len(other.ranks), other.ranks[-1]
        return (steps < len(self.ranks) and other.ranks == self.ranks[:steps]
                and torch.equal(other.factors[0], self.factors[0][:, :rank])
                and torch.equal(other.factors[1], self.factors[1][:rank]))


def continues(cell: dict, before: dict) -> bool:
    """Whether {layer: kernel} replaces the same layer alone as the cell before, by a truncation that continues that one."""
    return len(cell) == 1 and cell.keys() == before.keys() and all(
        isinstance(kernel, GrowingFactors) and kernel.continues(before[layer]) for layer, kernel in cell.items())


def runs(cells: list[dict]) -> Iterator[list[dict]]:
    """`cells` in runs of consecutive ones that each continue the one before."""
    run = cells[:1]
    for before, cell in pairwise(cells):
        if not continues(cell, before):
            yield run
            run = []
        run = [*run, cell]
    yield run


def can_grow(layer: Convolution, kernel) -> bool:
    """Whether `Growing` takes this kernel for the layer, and is faster than one convolution after another.

    It is for neither a kernel in groups, nor a cut with IN on the side of OUT, where each term is as wide as the layer.
    """
    return (isinstance(kernel, GrowingFactors) and layer.geometry[-1] == 1
            and ("IN" in kernel.cut.rows) != ("OUT" in kernel.cut.rows)
            and math.prod(kernel.shape[1:]) >= LEAST_MULTIPLICATIONS)


def few_terms(kernel: GrowingFactors) -> bool:
    """Whether a truncation alone, without those of lower rank, is convolved faster factor by factor than as a kernel."""
    return kernel.num_parameters <= FEW_PARAMETERS * math.prod(kernel.shape)


class Growing:
    """What `layer` gives with the truncations of a run in place of its kernel, one after another.

    For each image the layer is called once for each truncation; after the last, the next call is with another image.
    """

    def __init__(self, layer: Convolution, run: list[GrowingFactors]):
        padding, stride, dilation, _ = layer.geometry
        geometry = Geometry.of(stride, padding, dilation)
        inner, outer = run[-1].steps()
        device, dtype = layer.kernel.device, layer.kernel.dtype
        weight = (outer.weight.to(device).double() * layer.scale.view(-1, 1, 1, 1)).to(dtype)
        self.layer = layer
        self.inner = _Terms(inner.weight.to(device), geometry.along(inner.modes), layer.blocked)
        self.terms = [(slice(first, end), _Terms(weight[:, first:end], geometry.along(outer.modes), layer.blocked))
                      for first, end in pairwise((0, *run[-1].ranks))]
        self.steps = [len(truncation.ranks) for truncation in run]
        self._place = 0

    def __call__(self, image, other=None):
        """(N, IN, H, W), and (N, OUT, H', W') to be added before the activation → (N, OUT, H', W')."""
        if self._place == 0:
            self._inner, self._sum = self.inner(image), None                                 # [N, rank, …]
        before, steps = (0, *self.steps)[self._place:self._place + 2]
        for part, terms in self.terms[before:steps]:
            some = self._inner[:, part].contiguous(memory_format=torch.channels_last)
            self._sum = terms(some, self.layer.bias) if self._sum is None else terms(some, into=self._sum)
        self._place = (self._place + 1) % len(self.steps)
        if other is not None:
            return APPLY[self.layer.activation](self._sum + other, *self.layer.numbers)
        return OUT_OF_PLACE[self.layer.activation](self._sum, *self.layer.numbers)


class _Terms:
    """A convolution with one factor of some terms; `blocked`: with its weight in oneDNN's layout."""

    def __init__(self, weight: torch.Tensor, geometry: Geometry, blocked: bool):
        self.weight = weight.contiguous(memory_format=torch.channels_last)
        self.geometry = geometry.padding, geometry.stride, geometry.dilation, 1
        self.blocked = blocked

    def __call__(self, image, bias=None, into=None):
        """conv(image) + bias; or added to `into`, in place."""
        if not self.blocked:
            output = convolve(image, self.weight, bias, *self.geometry)
            return output if into is None else into.add_(output)
        if not self.weight.is_mkldnn:
            self.weight = torch.ops.mkldnn._reorder_convolution_weight(self.weight, *self.geometry, list(image.shape))
        if into is None:
            return torch.ops.mkldnn._convolution_pointwise(image, self.weight, bias, *self.geometry, "none", [], "")
        return torch.ops.mkldnn._convolution_pointwise_.binary(
            into, image, self.weight, bias, *self.geometry, "add", 1.0, None, [], "")
