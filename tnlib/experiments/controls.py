"""Controls beside a truncation: another kernel of the same norm and error, and the same kernel made smaller."""

import hashlib

import torch

from .replacements import Replacements, chosen_layers

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
                digest = hashlib.sha256(repr((seed, draw, asked)).encode()).digest()
                generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
                yield labels | {"draw": draw}, {
                    layer: _noise(truncations.kernels[layer], approximation, generator)
                    for layer, approximation in kernels.items()}

    return Replacements(truncations.kernels, draws * len(truncations), generate)


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
