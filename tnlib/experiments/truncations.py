"""Truncations along cuts as replacements for `sweep`, of one layer or of all jointly; and the table of a sweep.

Each is an iterable of (labels, {layer: kernel}) whose number is known before any kernel is computed. Labels hold at
least `norm_kept` (ν = ‖K'‖/‖K‖) and `relative_error` (ε = ‖K − K'‖/‖K‖), both of the stored kernel; where several
layers are replaced, ν = √(Σ‖K'‖²/Σ‖K‖²), and ε alike.
"""

import itertools
import math
import sys
import warnings
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pandas as pd
import torch
from tqdm import tqdm

from ..tensors.cuts import CUTS, MODES, Cut, distinct_cuts, singular_values
from ..tensors.spectra import rank_for_error
from .drops import counts
from .evaluation import Evaluation
from .growing import GrowingFactors
from .replacements import (FRACTIONS, Replacements, chosen_cuts, chosen_fractions, chosen_layers, chosen_ranks,
                           nonzero, rank_at)
from .sweep import sweep

ERRORS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8)


# ---- truncation along cuts ---------------------------------------------------------------------------------------

@dataclass(frozen=True)
class Truncator:
    """All truncations of a kernel at a cut, from one eigendecomposition in float64.

    The truncation is the projection UᵣUᵣᵀK onto the leading eigenvectors of KKᵀ, the left singular vectors; where the
    matrix has fewer columns than rows, its transpose takes its place. Several times faster than the SVD.
    """

    kernel: torch.Tensor
    cut: Cut

    @cached_property
    def _wide(self) -> bool:
        rows, columns = self.cut.dimensions(self.kernel.shape)
        return rows <= columns

    @cached_property
    def _decomposition(self):
        """The squared singular values s², descending, U, and UᵀK, whose row k is s_k times a right singular vector."""
        matrix = self.cut.matricize(self.kernel).double()
        matrix = matrix if self._wide else matrix.T
        squares, u = torch.linalg.eigh(matrix @ matrix.T)
        squares, u = squares.flip(0).clamp(min=0), u.flip(1)
        return squares, u.to(self.kernel.dtype), (u.T @ matrix).to(self.kernel.dtype)

    def __call__(self, *ranks: int) -> GrowingFactors:
        """The truncation to the last of `ranks`, ascending, as it grows from one to the next.

        It is the one that `factorize` gives, but for how the singular values are shared out.
        """
        _, u, rest = self._decomposition
        left, right = u[:, :ranks[-1]], rest[:ranks[-1]]
        factors = (left, right) if self._wide else (right.T, left.T)
        return GrowingFactors(tuple(self.kernel.shape), factors, self.cut, ranks)

    def norms(self, rank: int) -> tuple[float, float]:
        """‖K'‖² and ‖K − K'‖²."""
        squares = self._decomposition[0]
        return squares[:rank].sum().item(), squares[rank:].sum().item()

    def parameters(self, rank: int) -> int:
        return rank * sum(self.cut.dimensions(self.kernel.shape))


def cut_truncations(model, layers=None, cuts=CUTS, ranks=None) -> Replacements:
    """Each layer alone truncated at each of its distinct cuts and at each of `ranks` below max_rank.

    Labels: `layer, cut, rank, max_rank, norm_kept, relative_error, parameters`. One decomposition for all ranks of a
    (layer, cut), which come in ascending order, as factors: `sweep` grows each from the one before. Raises `ValueError`
    as `chosen_layers`, `chosen_cuts` and `chosen_ranks` do.
    """
    kernels, cuts = chosen_layers(model, layers), chosen_cuts(cuts)
    places = {(layer, cut.name): cut.max_rank(kernel.shape) for layer, kernel in nonzero(kernels).items()
              for cut in distinct_cuts(kernel.shape, cuts)}
    ranks = chosen_ranks(ranks, places)

    def generate():
        for (layer, cut), at in ranks.items():
            truncator = Truncator(kernels[layer], Cut.parse(cut))
            for k, rank in enumerate(at, start=1):
                labels = {"layer": layer, "cut": cut, "rank": rank, "max_rank": places[layer, cut],
                          **_norms(*truncator.norms(rank)), "parameters": truncator.parameters(rank)}
                yield labels, {layer: truncator(*at[:k])}

    return Replacements(kernels, sum(map(len, ranks.values())), generate)


def joint_truncations(model, cuts=CUTS, common="fraction", levels=None, layers=None) -> Replacements:
    """All of `layers` (None: of the model) truncated at once, at one cut.

    `common` says what the layers have in common, and `levels` its values, between 0 and 1. "fraction": each layer keeps
    this fraction of its max_rank, rounded up (by default `FRACTIONS`). "error": each layer takes the lowest rank whose
    relative error does not exceed the level (by default `ERRORS`). A layer stays as it is where that is its max_rank or
    the cut is trivial for it. Labels: `cut, common, level, norm_kept, relative_error, parameters`, the last three over all layers of the
    model. What comes out alike is there once. Raises `ValueError` for bad choices.
    """
    if common not in ("fraction", "error"):
        raise ValueError(f"common must be 'fraction' or 'error', got {common!r}")
    rank_of = {"fraction": lambda spectrum, level: rank_at(level, len(spectrum)), "error": rank_for_error}[common]
    levels = chosen_fractions({"fraction": FRACTIONS, "error": ERRORS}[common] if levels is None else levels, "levels")
    every = nonzero(chosen_layers(model))
    kernels = {layer: every[layer] for layer in chosen_layers(model, layers) if layer in every}
    plan, seen = [], set()
    for cut in chosen_cuts(cuts):
        spectra = {layer: singular_values(kernel, cut) for layer, kernel in kernels.items()
                   if distinct_cuts(kernel.shape, [cut])}
        for level in levels:
            ranks = {layer: rank for layer, spectrum in spectra.items()
                     if (rank := rank_of(spectrum, level)) < len(spectrum)}
            same = frozenset((layer, _partition(cut, kernels[layer].shape), rank) for layer, rank in ranks.items())
            if ranks and same not in seen:
                seen.add(same)
                plan.append((cut, level, ranks))

    def generate():
        truncators = {}
        for cut, level, ranks in plan:
            truncators = {layer: at for layer, at in truncators.items() if at.cut == cut}  # of one cut at a time
            kept, lost, parameters = 0.0, 0.0, 0
            for layer, kernel in every.items():
                if layer in ranks:
                    at = truncators.setdefault(layer, Truncator(kernel, cut))
                    norms, count = at.norms(ranks[layer]), at.parameters(ranks[layer])
                else:
                    norms, count = (kernel.double().square().sum().item(), 0.0), kernel.numel()
                kept, lost, parameters = kept + norms[0], lost + norms[1], parameters + count
            labels = {"cut": cut.name, "common": common, "level": level, **_norms(kept, lost), "parameters": parameters}
            yield labels, {layer: truncators[layer](rank) for layer, rank in ranks.items()}

    return Replacements(every, len(plan), generate)


def _partition(cut, shape):
    """What two cuts have in common that are one for a kernel of `shape`: the same modes on the side of OUT."""
    side = cut.rows if "OUT" in cut.rows else cut.columns
    return frozenset(mode for mode, size in zip(MODES, shape) if mode in side and size > 1)


def _norms(kept: float, lost: float) -> dict[str, float]:
    """ν and ε of a projection, from ‖K'‖² and ‖K − K'‖², whose sum is ‖K‖²."""
    return {"norm_kept": math.sqrt(kept / (kept + lost)), "relative_error": math.sqrt(lost / (kept + lost))}


# ---- the table ---------------------------------------------------------------------------------------------------

def outcome(evaluation: Evaluation, baseline: Evaluation) -> dict:
    """What a cell's row says of its answers: `counts` of its bits against the untruncated network's, and the `loss`."""
    found = counts(baseline.correct, evaluation.correct)
    return {name: getattr(value, "item", lambda: value)() for name, value in found.items()} | {"loss": evaluation.loss}


def show_untruncated(evaluation: Evaluation, labels: np.ndarray) -> None:
    """Print the untruncated accuracy, and warn when it is not above what guessing the commonest class gives."""
    images, chance = len(labels), np.bincount(labels).max() / len(labels)
    tqdm.write(f"untruncated: {evaluation.accuracy:.2%} of {images:,} images", file=sys.stderr)
    if evaluation.correct.sum() <= images * chance + 2 * math.sqrt(images * chance * (1 - chance)):
        warnings.warn(f"the untruncated network is at chance ({evaluation.accuracy:.1%} right, the commonest class "
                      f"{chance:.1%}): are the weights trained, and is preprocess what they were trained with?",
                      stacklevel=3)


def truncation_sweep(model, dataset, layers=None, cuts=CUTS, ranks=None, executor=None,
                     preprocess=None) -> pd.DataFrame:
    """The accuracy on the test images with each layer alone truncated, at each cut and rank: one row a cell.

    Columns: `layer, cut, rank, max_rank, norm_kept, relative_error, parameters` (of `cut_truncations`, which see for
    `layers`, `cuts` and `ranks`; of the cuts that are the same in a layer, as all of a 1×1 kernel's, the first alone is there, and of its
    ranks those below the largest) and `images, correct, lost, gained, accuracy` (a fraction)`, accuracy_drop` (in percentage points)`, loss`
    (in nats; all of `outcome`).
    `model`, `executor`, `preprocess` as in `sweep`. The untruncated accuracy is shown first. All rows come at once, and none where it
    is stopped: `sweep` gives each as it is found, and `tnlib measure` keeps them. Raises `ValueError` for an
    unknown layer or cut, an empty list, a rank that is not below the max_rank of any cut, and as `sweep` does.
    """
    truncations = cut_truncations(model, layers, cuts, ranks)
    if not len(truncations):
        raise ValueError("nothing to truncate: no chosen cut of a chosen layer has a max_rank above 1")
    cells = Replacements(truncations.kernels, len(truncations) + 1, lambda: itertools.chain([({}, {})], truncations))
    results = sweep(model, dataset, cells, executor, preprocess=preprocess)
    _, baseline = next(results)
    show_untruncated(baseline, dataset.test_labels)
    return pd.DataFrame([labels | outcome(evaluation, baseline) for labels, evaluation in results])
