"""Errors and truncations that know what a layer sees: weighted by the second moment Σ of the patches of its inputs.

‖conv(x, K)‖² summed over the inputs x is tr(KΣKᵀ) with K as the matrix (OUT, IN·KH·KW), so errors of features follow
from the kernel and Σ alone. Source: arXiv 2511.04494.
"""

import math
from functools import cache

import torch

from ..tensors.cuts import Cut
from ..tensors.gram import lower_gram
from ..tensors.network import patches
from .evaluation import split_arrays, watch
from .growing import GrowingFactors
from .replacements import Replacements, chosen_layers, chosen_ranks, dense, nonzero

OUT = Cut.parse("OUT")


def patch_moments(model, dataset, split="train", images=None, layers=None, batch_size=50) -> dict[str, torch.Tensor]:
    """Layer → Σ, the mean of p pᵀ over all patches p of the layer's inputs: (IN·KH·KW, IN·KH·KW), float64, uncentred.

    Zeros of padding are part of a patch, as the convolution sees them; before bias and batch norm. `split`
    as in `evaluate`, `images`: indices into the split (None: all). Layers with groups are left out, having one Σ a
    group. Raises `ValueError` when one of these is named in `layers`, and for a padding other than zeros.
    """
    modules = {layer: model.get_submodule(layer) for layer in chosen_layers(model, layers)}
    for layer, module in modules.items():
        if (module.groups > 1 and layers is not None) or module.padding_mode != "zeros":
            raise ValueError(f"{layer!r} has groups={module.groups} and padding_mode={module.padding_mode!r}: its patches "
                             "have no one second moment with zeros of padding")
    modules = {layer: module for layer, module in modules.items() if module.groups == 1}
    sums, counts = {}, dict.fromkeys(modules, 0)

    def add(layer, image, _):
        module = modules[layer]
        patch = patches(image, module.kernel_size, module.stride, module.padding, module.dilation)
        matrix = patch.permute(1, 2, 3, 0, 4, 5).flatten(3).flatten(0, 2)       # [IN·KH·KW, N·H'·W']
        if layer not in sums:
            sums[layer] = torch.zeros(len(matrix), len(matrix), dtype=torch.float64, device=matrix.device)
        sums[layer] += lower_gram(matrix)
        counts[layer] += matrix.shape[1]

    pixels = split_arrays(dataset, split)[0]
    pixels = pixels if images is None else pixels[images]
    watch(model, modules, add, pixels, batch_size)
    return {layer: (total.tril() + total.tril(-1).T) / counts[layer] for layer, total in sums.items()}


def data_aware_error(kernel: torch.Tensor, approximation: torch.Tensor, moment: torch.Tensor) -> float:
    """‖conv(x, K − K')‖ / ‖conv(x, K)‖ over inputs x with second moment Σ of patches: √(tr(ΔΣΔᵀ)/tr(KΣKᵀ))."""
    return (_power(kernel.double() - approximation.double(), moment) / _power(kernel, moment)).sqrt().item()


def _power(kernel, moment):
    """tr(KΣKᵀ)."""
    matrix = kernel.double().flatten(1)
    return ((matrix @ moment) * matrix).sum().clamp(min=0)


def with_data_aware_error(replacements: Replacements, moments: dict[str, torch.Tensor]) -> Replacements:
    """The same cells with a label `data_aware_error`, where one layer is replaced and its Σ is in `moments`."""
    whole = cache(lambda layer: _power(replacements.kernels[layer], moments[layer]))  # the same for all of its cells

    def known(labels, kernels):
        for layer, kernel in kernels.items() if len(kernels) == 1 else ():
            if layer in moments:
                lost = replacements.kernels[layer].double() - dense(kernel).double()
                error = (_power(lost, moments[layer]) / whole(layer)).sqrt().item()
                labels = labels | {"data_aware_error": error}
        return labels, kernels

    def generate(*wanted):
        return (cell and known(*cell) for cell in replacements.generate(*wanted))

    return Replacements(replacements.kernels, len(replacements), generate, replacements.asks)


def data_aware_truncations(model, moments: dict[str, torch.Tensor], layers=None, ranks=None) -> Replacements:
    """Each layer alone truncated at the cut OUT so that the data-aware error is least: the SVD of KΣ^½, undone by Σ^−½.

    (KΣ^½)ᵣ Σ^−½ = UᵣUᵣᵀK with U the left singular vectors of KΣ^½, that is the eigenvectors of KΣKᵀ; so no inverse is
    needed, and what K does to patches that never occur is kept as far as Uᵣ allows. `ranks` as in `chosen_ranks`;
    `layers`: None for all in `moments`. Labels: `layer, cut, rank, max_rank, norm_kept, relative_error,
    data_aware_error, parameters`.
    """
    kernels = chosen_layers(model, list(moments) if layers is None else layers)
    if missing := kernels.keys() - moments.keys():
        raise ValueError(f"moments has no second moment of {', '.join(map(repr, sorted(missing)))}")
    places = {(layer, OUT.name): OUT.max_rank(kernel.shape) for layer, kernel in nonzero(kernels).items()}
    plan = chosen_ranks(ranks, {place: most for place, most in places.items() if most > 1})

    def generate():
        for (layer, cut), at in plan.items():
            kernel = kernels[layer]
            matrix = kernel.double().flatten(1)                                 # [OUT, IN·KH·KW]
            vectors = torch.linalg.eigh(matrix @ moments[layer] @ matrix.T)[1].flip(1)
            rows = vectors.T @ matrix
            for k, rank in enumerate(at, start=1):
                factors = vectors[:, :rank], rows[:rank]
                truncated = (factors[0] @ factors[1]).view(kernel.shape)
                kept = (truncated.norm() / kernel.double().norm()).item()
                labels = {"layer": layer, "cut": cut, "rank": rank, "max_rank": places[layer, cut], "norm_kept": kept,
                          "relative_error": math.sqrt(max(0.0, 1 - kept**2)),   # UᵣUᵣᵀ is a projection
                          "data_aware_error": data_aware_error(kernel, truncated, moments[layer]),
                          "parameters": rank * sum(OUT.dimensions(kernel.shape))}
                factors = tuple(factor.to(kernel.dtype) for factor in factors)
                yield labels, {layer: GrowingFactors(tuple(kernel.shape), factors, OUT, tuple(at[:k]))}

    return Replacements(kernels, sum(map(len, plan.values())), generate)
