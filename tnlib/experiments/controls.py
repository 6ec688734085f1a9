"""Controls beside a truncation: kernels and networks that lose as much otherwise, or that are the same otherwise.

Each asks of a truncation that does no harm whether it is the truncation that is harmless. Matched noise: or any change
of this norm and error? Shrink: or any loss of norm? A random subspace: or any subspace of this rank, or of this error?
The smallest singular values kept: or any part of the spectrum? Filters removed: or as many parameters less, whichever?
Mean output: or is the layer not needed at all? Gauges: is what is said of norm and spectrum one of the function?
"""

import copy
import hashlib
from functools import cache

import torch
from torch import nn

from ..tensors.cuts import CUTS, Cut
from ..tensors.spectra import entanglement_entropy
from .evaluation import split_arrays, watch
from .gauges import gauges
from .replacements import Replacements, chosen_layers, compared, dense, joined, labelled
from .truncations import cut_truncations

MEASURED = {"norm_kept", "relative_error"}  # labels that say what came out, not what was asked for
SHRINK = (0.98, *(k / 20 for k in range(19, 0, -1)))


def matched_noise(truncations: Replacements, draws: int = 5, seed: int = 0) -> Replacements:
    """For each cell of `truncations`, `draws` kernels of the same norm, error and overlap, in a random direction.

    K'' = ν²K + νε‖K‖G with G Gaussian, made orthogonal to K, of unit norm; layer by layer where several are replaced.
    Labels: those of the truncation and `draw`. A draw depends on `seed`, the draw's number and what was truncated how,
    not on the order of the cells. (Of an approximation that is no projection: the same three numbers are kept.)
    """
    def generate():
        for labels, kernels in truncations:
            labels = {key: value for key, value in labels.items() if key != "data_aware_error"}  # the noise has another
            asked = sorted((key, value) for key, value in labels.items() if key not in MEASURED)
            for draw in range(draws):
                generator = _generator(repr((seed, draw, asked)))
                yield labels | {"draw": draw}, {
                    layer: _noise(truncations.kernels[layer], dense(approximation), generator)
                    for layer, approximation in kernels.items()}

    return Replacements(truncations.kernels, draws * len(truncations), generate)


def _generator(name: str) -> torch.Generator:
    """Random numbers that depend on `name` and nothing else."""
    return torch.Generator().manual_seed(int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") >> 1)


def _noise(kernel, approximation, generator):
    unit = kernel.double() / kernel.double().norm()
    overlap = (approximation.double() * unit).sum()                             # ν²‖K‖ of a projection
    rest = (approximation.double().square().sum() - overlap.square()).clamp(min=0).sqrt()  # and νε‖K‖
    direction = torch.randn(kernel.shape, generator=generator, dtype=torch.float64).to(unit)
    direction -= (direction * unit).sum() * unit
    return (overlap * unit + rest * direction / direction.norm()).to(kernel.dtype)


def shrink(model, values=SHRINK, layers=None) -> Replacements:
    """νK for each of `values` of ν and each layer alone. Labels: `layer, norm_kept` (ν)`, relative_error` (|1 − ν|)."""
    kernels = chosen_layers(model, layers)

    def generate():
        for layer, kernel in kernels.items():
            for value in values:
                yield {"layer": layer, "norm_kept": value, "relative_error": abs(1 - value)}, {layer: value * kernel}

    return Replacements(kernels, len(kernels) * len(values), generate)


# ---- other kernels of the same rank, error or number of parameters ------------------------------------------------

def random_subspace(truncations: Replacements, match: str, seed: int = 0) -> Replacements:
    """For each truncation the projection QᵣQᵣᵀK of the cut's smaller side onto a random subspace in place of the best.

    Q is Haar-distributed, one for each (layer, cut) and `seed`, so that subspaces of one cut are nested. `match`:
    "rank": r is the truncation's; "error": the r whose error is nearest to the truncation's. Labels: those of the
    truncation, with `norm_kept`, `relative_error` and `parameters` of this kernel. Raises `ValueError` for another
    `match`.
    """
    if match not in ("rank", "error"):
        raise ValueError(f"match must be 'rank' or 'error', got {match!r}")
    return _along_cuts(truncations, lambda matrix, truncated, labels: _projected(
        matrix, _haar(len(matrix), f"{seed} {labels['layer']} {labels['cut']}").to(matrix), labels, match))


def _haar(size: int, name: str) -> torch.Tensor:
    """An orthogonal matrix (size, size), uniformly distributed, drawn by `name`; float64."""
    q, r = torch.linalg.qr(torch.randn(size, size, generator=_generator(name), dtype=torch.float64))
    return q * r.diagonal().sign()  # without the signs a QR is not uniform


def _projected(matrix, q, labels, match):
    rows = q.T @ matrix                                                         # [smaller, larger]
    rank = labels["rank"]
    if match == "error":
        kept = rows.square().sum(1).cumsum(0) / matrix.square().sum()
        rank = 1 + int(((1 - kept).clamp(min=0).sqrt() - labels["relative_error"]).abs().argmin())
    return q[:, :rank] @ rows[:rank], rank * sum(matrix.shape)


def smallest_kept(truncations: Replacements) -> Replacements:
    """For each truncation the kernel without its *largest* singular values, as far as makes the error the same.

    The leading values are removed whole, and the first that is not removed in part. Labels as of `random_subspace`.
    """
    def without_largest(matrix, truncated, labels):
        u, s, vh = torch.linalg.svd(matrix, full_matrices=False)
        budget = (matrix - truncated).square().sum()                            # of squared singular values
        left = budget - (s.square().cumsum(0) - s.square())                     # of it before each value
        removed = torch.minimum(left.clamp(min=0).sqrt(), s)
        return (u * (s - removed)) @ vh, int((removed < s).sum()) * sum(matrix.shape)

    return _along_cuts(truncations, without_largest)


def filters_removed(truncations: Replacements) -> Replacements:
    """For each truncation the kernel with whole filters (OUT rows) zero, those of least norm, at as many parameters.

    So many filters stay as their entries are at most the truncation's parameters, at least one; biases stay. Labels as
    of `random_subspace`.
    """
    kernels = truncations.kernels

    def generate():
        for labels, cell in truncations:
            (layer,) = cell
            kernel = kernels[layer]
            stay = min(len(kernel), max(1, labels["parameters"] // kernel[0].numel()))
            chosen = kernel.flatten(1).double().norm(dim=1).argsort(descending=True, stable=True)[:stay]
            pruned = torch.zeros_like(kernel)
            pruned[chosen] = kernel[chosen]
            yield labels | compared(kernel, pruned) | {"parameters": stay * kernel[0].numel()}, {layer: pruned}

    return Replacements(kernels, len(truncations), generate)


def _along_cuts(truncations: Replacements, make) -> Replacements:
    """For each truncation another kernel: `make(matrix, truncated, labels)`, matrices of its cut whose rows are the
    smaller side, gives its matrix and number of parameters."""
    kernels = truncations.kernels

    def generate():
        for labels, cell in truncations:
            ((layer, truncated),) = cell.items()
            kernel, cut = kernels[layer], Cut.parse(labels["cut"])
            rows, columns = cut.dimensions(kernel.shape)
            wide = rows <= columns
            matrix, short = (cut.matricize(x.double()) if wide else cut.matricize(x.double()).T
                             for x in (kernel, dense(truncated)))
            other, parameters = make(matrix, short, labels)
            other = cut.fold(other if wide else other.T, kernel.shape)
            yield labels | compared(kernel, other) | {"parameters": parameters}, {layer: other.to(kernel.dtype)}

    return Replacements(kernels, len(truncations), generate)


# ---- the layer without its input, and the same function in other gauges --------------------------------------------

def mean_outputs(model: nn.Module, dataset, images, layers=None) -> list[tuple[nn.Module, Replacements]]:
    """For each of `layers` (None: of all) a network in which its bias is its mean output, and the replacement of its kernel by zero.

    So the layer gives every image the same, channel by channel: its mean before the activation over the positions of
    the training images `images`. All other weights are the model's own, not copies. Labels: `layer, cut` ("none")`, rank`
    (0) and the rest as of a truncation.
    """
    kernels, parts = chosen_layers(model, layers), []
    means = _mean_outputs(model, kernels, split_arrays(dataset, "train")[0][images])
    for layer, kernel in kernels.items():
        network = copy.deepcopy(model, {id(own): own for own in (*model.parameters(), *model.buffers())})
        network.get_submodule(layer).bias = nn.Parameter(means[layer].to(kernel))
        labels = {"layer": layer, "cut": "none", "rank": 0, "max_rank": 0, "norm_kept": 0.0, "relative_error": 1.0,
                  "parameters": 0}
        cells = [(labels, {layer: torch.zeros_like(kernel)})]
        parts.append((network, Replacements({layer: kernel}, 1, lambda cells=cells: iter(cells))))
    return parts


def _mean_outputs(model, layers, pixels) -> dict[str, torch.Tensor]:
    """Layer → the mean of its output by channel, (OUT,), float64."""
    sums, counts = {}, {}

    def add(layer, _, output):
        sums[layer] = sums.get(layer, 0) + output.double().sum((0, 2, 3))
        counts[layer] = counts.get(layer, 0) + output[:, 0].numel()

    watch(model, layers, add, pixels)
    return {layer: (total / counts[layer]).clone() for layer, total in sums.items()}


def in_gauges(model: nn.Module, cuts=CUTS, ranks=None, seed: int = 0, layers=None,
              spread: float = 1.0) -> list[tuple[nn.Module, Replacements]]:
    """The truncations of `layers` (None: of all) of `model` in all `gauges` of its function (which take `seed` and
    `spread`): (network, truncations of that network) each.

    Labels: `gauge`, those of `cut_truncations`, and `entropy` of the whole kernel at the cut in that gauge, in bits.
    Raises `ValueError` for a network that has no other gauges than its own.
    """
    networks = gauges(model, seed, spread)
    if len(networks) == 1:
        raise ValueError(f"{type(model).__name__} has no other gauge: it is no plain chain of convolutions and linear "
                         "layers, and no batch norm follows its convolutions")
    return [(network, labelled(_with_entropy(cut_truncations(network, layers, cuts, ranks)), gauge=gauge))
            for gauge, network in networks.items()]


def _with_entropy(truncations: Replacements) -> Replacements:
    bits = cache(lambda layer, cut: entanglement_entropy(truncations.kernels[layer], cut).item())
    return Replacements(truncations.kernels, len(truncations), lambda: (
        (labels | {"entropy": bits(labels["layer"], labels["cut"])}, cell) for labels, cell in truncations))


# ---- all of them ---------------------------------------------------------------------------------------------------

def controls(model: nn.Module, dataset, images, cuts, ranks, seed: int = 0, layers=None,
             constant=None) -> list[tuple[nn.Module, Replacements]]:
    """Truncations of `layers` (None: of all) at `cuts` and `ranks` and every control of theirs: (network, replacements),
    with a label `kind`.

    `kind`: "truncation", "noise" (matched), "random-rank" and "random-error" (`random_subspace`), "smallest"
    (`smallest_kept`), "filters" (`filters_removed`); and of each of the layers `constant` (None: of all, as it is one
    cell), in a network of its own, "mean" (`mean_outputs`, from the training images `images`).
    """
    truncations = cut_truncations(model, layers, cuts, ranks)
    kinds = {"truncation": truncations, "noise": _without(matched_noise(truncations, 1, seed), "draw"),
             "random-rank": random_subspace(truncations, "rank", seed),
             "random-error": random_subspace(truncations, "error", seed),
             "smallest": smallest_kept(truncations), "filters": filters_removed(truncations)}
    means = mean_outputs(model, dataset, images, layers=constant)
    return [(model, joined([labelled(cells, kind=kind) for kind, cells in kinds.items()])),
            *((network, labelled(cells, kind="mean")) for network, cells in means)]


def _without(replacements: Replacements, label: str) -> Replacements:
    return Replacements(replacements.kernels, len(replacements), lambda: (
        ({name: value for name, value in labels.items() if name != label}, cell) for labels, cell in replacements))
