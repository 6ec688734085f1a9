"""What all generators of replacements share: their form, and the layers, cuts and ranks that they are asked for."""

import copy
import itertools
import logging
import math
import numbers
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Callable

import torch

from ..tensors.checks import check_device
from ..tensors.cuts import CUTS, Cut, norm_kept, relative_error
from ..tensors.factors import KernelFactors
from .networks import conv_kernels

log = logging.getLogger(__name__)

FRACTIONS = (0.01, 0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)  # dense where accuracy falls


@dataclass(frozen=True)
class Replacements:
    """An iterable of `count` (labels, {layer: kernel or its factors}); `.kernels`: the model's own, by layer.

    `.asks`: a cell takes long to compute, and `generate(wanted)` gives None for one whose labels, as far as they are
    known beforehand, `wanted` says no to.
    """

    kernels: dict[str, torch.Tensor]
    count: int
    generate: Callable
    asks: bool = False

    def __len__(self):
        return self.count

    def __iter__(self):
        return iter(self.generate())

    def where(self, wanted: Callable[[dict], bool]):
        """(place, labels, kernels) of the cells whose labels `wanted` says yes to; it reads only what was asked for."""
        for place, cell in enumerate(self.generate(wanted) if self.asks else self.generate()):
            if cell is not None and wanted(cell[0]):
                yield place, *cell


def dense(kernel: torch.Tensor | KernelFactors) -> torch.Tensor:
    """A kernel (OUT, IN, KH, KW) that a replacement gives, or that its factors give."""
    return kernel.to_kernel() if isinstance(kernel, KernelFactors) else kernel


def not_replaceable(model: torch.nn.Module, layers: Iterable[str]) -> dict[str, str]:
    """Layer → why no other kernel can be put into it."""
    owners = Counter(id(parameter) for module in model.modules() for parameter in module._parameters.values())
    refused = {}
    for layer in layers:
        weight = model.get_submodule(layer)._parameters.get("weight")
        if weight is None:
            refused[layer] = ("computes its weight (a parametrisation): make it a plain one first, by torch.nn.utils.parametrize.remove_parametrizations or "
                              "what undoes its kind, or leave the layer out of layers")
        elif owners[id(weight)] > 1:
            refused[layer] = "shares its weight with another module: give it a copy of its own, or leave the layer out of layers"
    return refused


def with_kernels(model: torch.nn.Module, kernels: dict[str, torch.Tensor | KernelFactors]) -> torch.nn.Module:
    """A copy of `model` with these kernels in place of the layers' own."""
    copied = copy.deepcopy(model)
    for layer, kernel in kernels.items():
        copied.get_submodule(layer).weight.data = dense(kernel)
    return copied


def labelled(replacements: Replacements, **labels) -> Replacements:
    """The same cells with further labels, which come first."""
    return Replacements(replacements.kernels, len(replacements),
                        lambda *wanted: (cell and (labels | cell[0], cell[1]) for cell in replacements.generate(*wanted)),
                        replacements.asks)


def joined(parts: list[Replacements]) -> Replacements:
    """The cells of all `parts`, generators for one model and all of one kind, one after another."""
    kernels = {layer: kernel for part in parts for layer, kernel in part.kernels.items()}
    return Replacements(kernels, sum(map(len, parts)), lambda *wanted: itertools.chain.from_iterable(
        part.generate(*wanted) for part in parts), parts[0].asks)


def compared(kernel: torch.Tensor, approximation: torch.Tensor) -> dict[str, float]:
    """The labels `norm_kept` (ν) and `relative_error` (ε) of any approximation."""
    kernel, approximation = kernel.double(), approximation.double()
    return {"norm_kept": norm_kept(kernel, approximation).item(), "relative_error": relative_error(kernel, approximation).item()}


def rank_grid(max_rank: int) -> list[int]:
    """The ranks that are tried where none are given: all below `max_rank` up to 12, else at most 14, 1 among them."""
    if max_rank <= 12:
        return list(range(1, max_rank))
    return sorted({1, *(rank_at(fraction, max_rank) for fraction in FRACTIONS)})


def rank_at(rank, max_rank: int) -> int:
    """The rank asked for at a cut: an int itself, a fraction f strictly between 0 and 1 as max(1, ⌈f·max_rank⌉).

    Raises `ValueError` for anything else.
    """
    if isinstance(rank, numbers.Integral) and not isinstance(rank, bool) and rank >= 1:
        return int(rank)
    if isinstance(rank, numbers.Real) and not isinstance(rank, numbers.Integral) and 0 < rank < 1:
        return max(1, math.ceil(round(rank * max_rank, 9)))  # 0.7 · 10 is 7.000000000000001 in floats
    raise ValueError(f"ranks takes whole numbers from 1 and fractions strictly between 0 and 1, got {rank!r}")


def chosen_fractions(fractions, name: str = "fractions") -> list[float]:
    """The fractions, each strictly between 0 and 1; `ValueError` for others and for none. `name`: of the argument."""
    fractions = [fractions] if isinstance(fractions, numbers.Real) else _several(name, fractions, "fractions")
    if not fractions or any(not isinstance(f, numbers.Real) or isinstance(f, numbers.Integral) or not 0 < f < 1 for f in fractions):
        raise ValueError(f"{name} must lie strictly between 0 and 1, at least one of them, got {fractions!r}")
    return fractions


def chosen_layers(model, layers=None) -> dict[str, torch.Tensor]:
    """Name → kernel of the model's convolutions, or of those in `layers`; `ValueError` for others and for none, `TypeError`
    for what is no collection."""
    kernels = conv_kernels(model)
    if layers is None:
        return kernels
    layers = [layers] if isinstance(layers, str) else _several("layers", layers, "names of layers, or None for all")
    if not layers:
        raise ValueError("layers is empty: name at least one, or give None for all")
    for layer in layers:
        if layer not in kernels:
            raise ValueError(f"unknown layer {layer!r}: the model's convolutions are {', '.join(map(repr, kernels))}")
    return {layer: kernels[layer] for layer in layers}


def nonzero(kernels: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The kernels that are not zero, of which alone something can be truncated; the others are logged."""
    for layer, kernel in kernels.items():
        check_device(kernel.device, f"the kernel of {layer!r}")
        if not kernel.any():
            log.info("layer %s is left out: its kernel is zero", layer)
    return {layer: kernel for layer, kernel in kernels.items() if kernel.any()}


def _several(name, values, takes) -> list:
    if not isinstance(values, Iterable) or isinstance(values, str) or getattr(values, "ndim", 1) != 1:  # an array of no dimension cannot be iterated over
        raise TypeError(f"{name} must hold {takes}, got {values!r}")
    return values.tolist() if isinstance(values, torch.Tensor) else list(values)


def chosen_cuts(cuts) -> list[Cut]:
    """The cuts of `cuts`, which holds `Cut`s or their names; `ValueError` for others and for none, `TypeError` for what is
    no collection."""
    several = [cuts] if isinstance(cuts, (str, Cut)) else _several("cuts", cuts, "cuts or their names")
    cuts = [Cut.parse(cut) for cut in several]
    if not cuts:
        raise ValueError(f"cuts is empty: it takes some of {', '.join(repr(cut.name) for cut in CUTS)}")
    return cuts


def chosen_ranks(ranks, places: dict) -> dict:
    """For each place (a name → its max_rank) the ranks below max_rank to try, ascending; places with none are left out.

    `ranks`: None for `rank_grid`, else ints (ranks) and floats strictly between 0 and 1 (fractions of max_rank, rounded
    up). A rank that is too high for some places is left out there and logged. Raises `ValueError` for an empty list,
    anything else in it, and a rank that is too high everywhere.
    """
    if ranks is None:
        return {place: grid for place, most in places.items() if (grid := rank_grid(most))}
    ranks = [ranks] if isinstance(ranks, numbers.Real) else _several("ranks", ranks, "ranks or fractions, or None for the default grid")
    if not ranks:
        raise ValueError("ranks is empty: give at least one, or None for the default grid")
    if not places:
        return {}
    found = {place: set() for place in places}
    for rank in ranks:
        at = {place: rank_at(rank, most) for place, most in places.items()}
        fits = [place for place, most in places.items() if at[place] < most]
        if not fits:
            raise ValueError(f"rank {rank!r} truncates nothing: it must be below the max_rank of a cut of a layer, "
                             f"which is at most {max(places.values())} here")
        for place in fits:
            found[place].add(at[place])
        if isinstance(rank, numbers.Integral) and len(fits) < len(places):
            log.info("rank %s is left out where it is not below max_rank: %s", rank,
                     ", ".join(" ".join(map(str, place)) for place in places if place not in fits))
    return {place: sorted(values) for place, values in found.items() if values}
