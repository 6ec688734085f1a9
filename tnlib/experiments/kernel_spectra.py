"""Spectra of a network's kernels along every cut, in three gauges, beside what chance would give.

Everything is computed from the weights alone: no data set is needed.
"""

import math
from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from ..tensors.cuts import CUTS, distinct_cuts, singular_values
from ..tensors.network import patches
from ..tensors.spectra import (MARCHENKO_PASTUR_LEAST, effective_rank, entanglement_entropy, entropy, gaussian_like,
                               marchenko_pastur, participation_ratio, rank_for_norm, shuffled_rows)
from .evaluation import watch
from .gauges import factors_in_gauges, gauges
from .known_values import keep, known
from .networks import conv_kernels
from .replacements import chosen_layers
from .weights import load_model, trained_seeds

FEW_ENTRIES = 10_000
COLUMNS = ("seed", "layer", "depth", "cut", "gauge", "kind", "sample", "rows", "columns", "max_rank")


def kernel_spectra(model: torch.nn.Module, samples: int = 5, gauge_seed: int = 0, gauge_spread: float = 1.0,
                   shuffled: bool = True, layers: Collection[str] | None = None, trained: bool = True, in_blocks: bool = False,
                   side_by_side: int | None = None, kept: Path | None = None) -> pd.DataFrame:
    """The singular values of the kernels of `layers` (None: of all) of `model` at every distinct, non-trivial cut: one row a value.

    Columns: `layer, depth` (1 for the first convolution)`, cut, gauge, kind, sample, rows, columns, max_rank, index`
    (from 1) and `value` (s/‖s‖). `gauge` is "trained", "balanced" or "random" (one draw, factors
    exp(`gauge_spread`·Gaussian)), with batch norm "trained" or "folded" (and, `in_blocks`, the further ones of `gauges`), for
    `kind` "kernel"; `kind` is also "shuffled" (of all gauges but random ones) and, with no gauge, "gaussian", each with
    `samples` draws (of a small Gaussian kernel more, see `gaussian_draws`), and "marchenko_pastur" where both sides are at least 30. Without `shuffled` kernels it is done in a third of the time. Without `trained`,
    kernels in that gauge are left out where there is another. `side_by_side` and `kept` as of `cut_spectra`.
    """
    found = []  # (what leads the rows of a spectrum, its values)
    there = gauges(model, gauge_seed, gauge_spread, in_blocks)
    if not trained and len(there) > 1:
        del there["trained"]
    for place, (gauge, network) in enumerate(there.items()):
        asked = chosen_layers(network, layers)
        for depth, (layer, kernel) in enumerate(conv_kernels(network).items(), start=1):
            if layer not in asked:
                continue
            kernel = kernel.float().cpu()  # of float32 kernels the values come from Gram matrices, in a fraction of the time
            draws = samples if shuffled and not gauge.endswith("random") else 0
            spectra = cut_spectra({(gauge, "kernel", 0): kernel} |
                                  {(gauge, "shuffled", n): shuffled_rows(kernel, n) for n in range(draws)}, side_by_side, kept)
            if place == 0:
                gaussian = _gaussian_spectra(kernel.shape, gaussian_draws(kernel.shape, samples), side_by_side, kept)
                spectra |= {("none", "gaussian", n): cuts for n, cuts in gaussian.items()}
                spectra["none", "marchenko_pastur", 0] = {
                    cut.name: marchenko_pastur(*cut.dimensions(kernel.shape)) for cut in distinct_cuts(kernel.shape)
                    if min(cut.dimensions(kernel.shape)) >= MARCHENKO_PASTUR_LEAST}
            for cut in distinct_cuts(kernel.shape):
                sides = *cut.dimensions(kernel.shape), cut.max_rank(kernel.shape)
                found += [((layer, depth, cut.name, *kind, *sides), np.asarray(cuts[cut.name], dtype=float))
                          for kind, cuts in spectra.items() if cut.name in cuts]
    if not found:
        raise ValueError("no kernel of the chosen layers has a cut of max_rank above 1: there is no spectrum")
    heads, values = zip(*found)
    lengths = [len(spectrum) for spectrum in values]
    table = pd.DataFrame(heads, columns=COLUMNS[1:])
    table = table.loc[table.index.repeat(lengths)].reset_index(drop=True)
    table["index"] = np.concatenate([np.arange(1, length + 1) for length in lengths])
    table["value"] = np.concatenate([spectrum / np.linalg.norm(spectrum) for spectrum in values])
    return table


def cut_spectra(kernels: dict, side_by_side: int | None = None, kept: Path | None = None) -> dict[object, dict[str, torch.Tensor]]:
    """The singular values of several kernels: the kernel's name → distinct, non-trivial cut → values, as of
    `singular_values`.

    So many cuts are computed `side_by_side` (None: as many as torch has threads), the largest first, each in one thread:
    several threads that share one decomposition mostly wait for each other. `kept`: a file of those that were computed before,
    to which new ones are added (see `known_values`).
    """
    todo = [(name, cut) for name, kernel in kernels.items() for cut in distinct_cuts(kernel.shape)]
    found = known(kept, kernels, todo) if kept else {}
    largest_first = sorted((job for job in todo if job not in found), key=lambda job: -job[1].max_rank(kernels[job[0]].shape))
    threads = torch.get_num_threads()

    def values(job):
        torch.set_num_threads(1)
        name, cut = job
        return singular_values(kernels[name], cut)

    try:
        with ThreadPoolExecutor(side_by_side or threads) as pool:
            new = dict(zip(largest_first, pool.map(values, largest_first)))
    finally:
        torch.set_num_threads(threads)
    if kept:
        keep(kept, kernels, new)
    found |= new
    spectra = {name: {} for name in kernels}
    for name, cut in todo:
        spectra[name][cut.name] = found[name, cut]
    return spectra


def gaussian_draws(shape, samples: int) -> int:
    """How many Gaussian kernels stand for chance: the fewer entries, the more differs one from another. With `samples` at
    `FEW_ENTRIES` and above, and in inverse proportion below, the mean entropy is known to some 0.1 % of the largest."""
    return samples * math.ceil(max(1, FEW_ENTRIES / math.prod(shape)))


@cache
def _gaussian_spectra(shape, samples, side_by_side, kept) -> dict[int, dict[str, torch.Tensor]]:
    """Spectra of Gaussian kernels depend on the shape alone: one computation for all networks and seeds."""
    ones = torch.ones(shape)
    return cut_spectra({sample: gaussian_like(ones, sample) for sample in range(samples)}, side_by_side, kept)


def network_spectra(model: str, dataset: str, kept: Path | None = None, **options) -> pd.DataFrame:
    """`kernel_spectra` of every trained network `model` on `dataset`, with its `options`, and with a column `seed` in front.

    Raises `FileNotFoundError` where there is none.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # beside the cuts: on a busy machine more threads wait for each other, for minutes
    try:
        frames = [kernel_spectra(load_model(model, dataset, seed), **options, side_by_side=threads, kept=kept).assign(seed=seed)
                  for seed in trained_seeds(model, dataset)]
    finally:
        torch.set_num_threads(threads)
    return pd.concat(frames, ignore_index=True)[[*COLUMNS, "index", "value"]]


def entropies(model: torch.nn.Module) -> dict[str, dict[str, float]]:
    """Layer → cut → entanglement entropy in bits, of the kernels larger than 1×1; a training run notes them."""
    return {layer: {cut.name: round(float(entanglement_entropy(kernel.float().cpu(), cut)), 5)
                    for cut in distinct_cuts(kernel.shape)}
            for layer, kernel in conv_kernels(model).items() if kernel.shape[2:].numel() > 1}


def entropies_without_start(model: torch.nn.Module, start: torch.nn.Module, asked: Collection[str]) -> dict[tuple[str, str, str], float]:
    """(layer, cut, gauge) → entropy in bits of K − ⟨K, K₀⟩K₀/‖K₀‖², for those `asked` of the model's gauges.

    K₀: the kernel of `start`, which is the model before its training, in the gauge of K.
    """
    own, first, found = conv_kernels(model), conv_kernels(start), {}
    for gauge, factors in factors_in_gauges(model).items():
        for layer, factor in factors.items() if gauge in asked else ():
            kernel, before = factor * own[layer], factor * first[layer]
            left = kernel - (kernel * before).sum() / before.square().sum() * before
            found |= {(layer, cut.name, gauge): float(entanglement_entropy(left, cut)) for cut in distinct_cuts(left.shape)}
    return found


def seen_taps(model: torch.nn.Module, image_size: int) -> pd.DataFrame:
    """How much of every kernel larger than 1×1 meets data at all: one row a layer, in forward order.

    Columns: `layer, height, width` (of its input map)`, seen` (the share of the kernel's norm² in taps that see data,
    not only padding, at one position or more) and `met` (the same, each tap weighted by the share of positions at which
    it does). `image_size`: the side of the images, three channels.
    """
    layers = {layer: model.get_submodule(layer) for layer, kernel in conv_kernels(model).items()
              if kernel.shape[2:].numel() > 1}
    sizes = {}
    watch(model, layers, lambda layer, image, _: sizes.update({layer: image.shape[2:]}),
          np.zeros((1, image_size, image_size, 3), np.uint8))
    rows = []
    for layer, (height, width) in sizes.items():
        conv = layers[layer]
        data = patches(torch.ones(1, 1, height, width), conv.kernel_size, conv.stride, conv.padding, conv.dilation)
        met = data[0, 0].double().mean((2, 3))                                                        # [KH, KW]
        power = conv.weight.detach().cpu().double().square().sum((0, 1))                              # [KH, KW]
        rows.append({"layer": layer, "height": height, "width": width,
                     "seen": (power * (met > 0)).sum().item() / power.sum().item(),
                     "met": (power * met).sum().item() / power.sum().item()})
    return pd.DataFrame(rows)


def summary(spectra: pd.DataFrame) -> pd.DataFrame:
    """One row a spectrum: entropy and what follows from the values, and the deficit against Gaussian kernels.

    Takes the rows of `kernel_spectra` or `network_spectra`. Adds `entropy` (bits), `entropy_share` (of log₂
    max_rank), `deficit` (bits below the mean entropy of Gaussian kernels of the same shape), `deficit_share` (of
    log₂ max_rank), `effective_rank`, `participation_ratio`, `rank_90` and `rank_99` (the smallest rank that keeps
    that share of the norm).
    """
    keys = [column for column in COLUMNS if column in spectra]
    rows = []
    for key, group in spectra.groupby(keys, sort=False):
        values = torch.from_numpy(group["value"].to_numpy(copy=True))
        rows.append(dict(zip(keys, key)) | {
            "entropy": float(entropy(values)), "effective_rank": float(effective_rank(values)),
            "participation_ratio": float(participation_ratio(values)),
            "rank_90": rank_for_norm(values, 0.90), "rank_99": rank_for_norm(values, 0.99)})
    table = pd.DataFrame(rows)
    most = np.log2(table["max_rank"])
    chance = table[table["kind"] == "gaussian"].groupby(["layer", "cut"])["entropy"].mean()
    expected = chance.reindex(pd.MultiIndex.from_frame(table[["layer", "cut"]])).to_numpy()
    table["entropy_share"] = table["entropy"] / most
    table["deficit"] = expected - table["entropy"]
    table["deficit_share"] = table["deficit"] / most
    table["cut"] = pd.Categorical(table["cut"], [cut.name for cut in CUTS], ordered=True)
    return table
