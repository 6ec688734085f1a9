"""How far a truncation brings the accuracy down, and the truncation that brings it so far.

A case truncates all layers at once, or one of them alone, until (accuracy − 1/C) is a given share, its strength, of the
untruncated network's, by one relative error ε common to the layers, found by bisection on the held-out images.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import torch
from torch import nn

from ..tensors.cuts import CUTS, Cut, CutFactors, factorize, singular_values
from ..tensors.fits import cp
from ..tensors.factors import KernelFactors
from ..tensors.spectra import rank_for_error
from .dataset import Dataset
from .evaluation import evaluate
from .replacements import chosen_layers, with_kernels

STEPS = 10  # of the bisection: ε to a thousandth
CP_FRACTIONS = (0.01, 0.02, 0.04, 0.06, 0.08, 0.11, 0.16, 0.22, 0.32, 0.45, 0.64)  # of the kernel's parameters
CP_ITERATIONS = 40


@dataclass(frozen=True)
class Case:
    """Layers truncated at `cut` ("CP": as sums of outer products) until accuracy is brought to `strength`: all of them at
    once, or `layer` alone."""

    cut: str
    strength: float
    layer: str | None = None


AGGRESSIVE = (0.5, 0.1)  # the strengths that the claims call so
CASES = (Case("OUT", 0.5), Case("OUT,KW", 0.5), Case("OUT,KW", 0.1), Case("IN", 0.5), Case("CP", 0.5))
OTHER_CASES = tuple(case for cut in (*(cut.name for cut in CUTS), "CP") for strength in AGGRESSIVE
                    if (case := Case(cut, strength)) not in CASES)


def kernels_at_error(kernels: dict[str, torch.Tensor], cut: str) -> Callable[[float], dict[str, KernelFactors]]:
    """error → layer → factors: each kernel at the lowest rank whose relative error at `cut` is at most `error`.

    Layers where that is the largest rank are left out. "CP": at the lowest of the ranks that take `CP_FRACTIONS` of the
    kernel's parameters, each fitted from one start; the highest of them where none is that near.
    """
    if cut == "CP":
        ranks = {layer: sorted({max(1, round(fraction * kernel.numel() / sum(kernel.shape))) for fraction in CP_FRACTIONS})
                 for layer, kernel in kernels.items() if kernel.shape[2:].numel() > 1}
        fit = cache(lambda layer, rank: cp(kernels[layer], rank, starts=1, max_iterations=CP_ITERATIONS))

        def nearest(layer, error):
            fits = (fit(layer, rank) for rank in ranks[layer])
            return next((found for found in fits if found.relative_error <= error), None) or fit(layer, ranks[layer][-1])

        return lambda error: {layer: nearest(layer, error) for layer in ranks}
    spectra = {layer: singular_values(kernel.double(), cut) for layer, kernel in kernels.items()}
    whole = cache(lambda layer: factorize(kernels[layer], cut, len(spectra[layer])).factors)  # of which each rank takes a part
    at_rank = lambda layer, rank: CutFactors(tuple(kernels[layer].shape), (whole(layer)[0][:, :rank], whole(layer)[1][:rank]),
                                             Cut.parse(cut))
    return lambda error: {layer: at_rank(layer, rank) for layer, spectrum in spectra.items()
                          if (rank := rank_for_error(spectrum, error)) < len(spectrum)}


def error_for_accuracy(accuracy: Callable[[float], float], target: float, whole: float) -> tuple[float, bool]:
    """The ε at which `accuracy(ε)`, which falls from `whole`, is nearest to `target`, and whether it falls so far.

    By bisection; where even ε = 0.999 (rank 1) leaves more than `target`, 0.999 and False.
    """
    low, high, before = 0.0, 0.999, whole
    if (after := accuracy(high)) > target:
        return high, False
    for _ in range(STEPS):
        middle = (low + high) / 2
        if (found := accuracy(middle)) > target:
            low, before = middle, found
        else:
            high, after = middle, found
    return (low if before - target < target - after else high), True


def truncated_to(model: nn.Module, dataset: Dataset, case: Case,
                 level: float | None = None) -> tuple[dict[str, KernelFactors], dict]:
    """Layer → factors of a case, found on the held-out images (or at the ε `level`, where that is known), and its labels.

    Labels: `level` (ε common to the case's layers), `reached` (whether accuracy falls so far at all), `ranks`, and over
    these layers `norm_kept`, `relative_error` and `parameters`. Raises `ValueError` for a layer that there is not.
    """
    kernels = chosen_layers(model, case.layer)
    at = kernels_at_error(kernels, case.cut)
    chance = 1 / len(dataset.classes)
    accuracy = lambda error: evaluate(with_kernels(model, at(error)), dataset, split="validation").accuracy
    reached = True
    if level is None:
        whole = evaluate(model, dataset, split="validation").accuracy
        level, reached = error_for_accuracy(accuracy, chance + case.strength * (whole - chance), whole)
        level = round(level, 4)  # as the table has it, so that the table's ε leads to the same ranks
    factors = at(level)
    ranks = " ".join(str(factors[layer].factors[0].shape[1]) if layer in factors else "-" for layer in kernels)
    return factors, {"level": level, "reached": reached, "ranks": ranks, **norms_and_parameters(kernels, factors)}


def norms_and_parameters(kernels: dict[str, torch.Tensor], factors: dict[str, KernelFactors]) -> dict:
    """The labels `norm_kept`, `relative_error` and `parameters` of all `kernels` together, some of them as factors."""
    kept = lost = total = 0.0
    for layer, kernel in kernels.items():
        approximation = factors[layer].to_kernel() if layer in factors else kernel
        kept += approximation.double().square().sum().item()
        lost += (kernel - approximation).double().square().sum().item()
        total += kernel.double().square().sum().item()
    return {"norm_kept": (kept / total) ** 0.5, "relative_error": (lost / total) ** 0.5,
            "parameters": sum(factors[layer].num_parameters if layer in factors else kernel.numel()
                              for layer, kernel in kernels.items())}
