"""Batch norm after a change of kernels: the same network with statistics of its own, nothing else trained.

Truncated kernels give other means and variances than those that batch norm has stored. What a re-training wins back may
be only that; so accuracy is compared before and after they are estimated anew.
"""

import copy
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from .dataset import Dataset
from .evaluation import Evaluation, evaluate, exact_float32, split_arrays, to_unit_floats
from .experiment import Runs
from .networks import Recipe, conv_kernels
from .replacements import with_kernels
from .training import augmented
from .truncations import joint_truncations

BATCH = 500  # images whose statistics are averaged
AUGMENTATION_SEED = 17  # of the crops and flips of the images that statistics are estimated on


def batch_norms(model: nn.Module) -> list[nn.modules.batchnorm._BatchNorm]:
    """The layers of `model` that normalise with stored statistics."""
    return [module for module in model.modules()
            if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_var is not None]


def some_batch_norms(model: nn.Module) -> list[nn.modules.batchnorm._BatchNorm]:
    """The same; `ValueError` where there are none."""
    if not (norms := batch_norms(model)):
        raise ValueError(f"{type(model).__name__} has no batch norm whose statistics could be estimated anew")
    return norms


def reestimated(model: nn.Module, images: np.ndarray) -> nn.Module:
    """A copy of `model` in eval mode whose batch norms have the statistics of `images` (uint8, (N, H, W, 3)).

    The mean of those of batches of 500, each seen through the batch norms before it as in training. Raises `ValueError`
    for a network without batch norm.
    """
    copied = copy.deepcopy(model).eval()
    norms = some_batch_norms(copied)
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the mean of all batches
        norm.train()
    device = next(copied.parameters()).device
    with torch.no_grad(), exact_float32():
        for part in np.array_split(images, max(1, len(images) // BATCH)):  # all but alike: they weigh the same
            copied(to_unit_floats(torch.from_numpy(part).to(device)))
    for norm, momentum in zip(norms, momenta):
        norm.momentum = momentum
    return copied.eval()


def augmentation(recipe: Recipe) -> dict:
    """What a card says of how images were augmented for their statistics."""
    return {"augmentation": {"crop_padding": recipe.crop_padding, "flip": recipe.flip, "seed": AUGMENTATION_SEED}}


@dataclass
class Reestimation(Runs):
    """All layers of `model` truncated to one of `levels` of the largest rank at one of `cuts`: answers with the stored
    statistics of batch norm, and with those of the training images `images` (indices), augmented as `recipe` says. Last
    the untruncated network with the latter, at the cut "none": what they do to it is not the truncation's doing."""

    model: nn.Module
    dataset: Dataset
    images: np.ndarray
    cuts: tuple[str, ...]
    levels: tuple[float, ...]
    recipe: Recipe  # that of the network's training: without its crops and flips the statistics are others

    def __post_init__(self):
        some_batch_norms(self.model)

    def parameters(self) -> dict:
        """What a table of it does not say of how it was made, beside which images these are."""
        return augmentation(self.recipe)

    def runs(self) -> list[tuple[str, float]]:
        return [*((cut, level) for cut in self.cuts for level in self.levels), ("none", 1.0)]

    def keys(self, cut: str, level: float) -> list[dict]:
        """What tells the rows of a run apart."""
        return [{"cut": cut, "level": level, "statistics": statistics} for statistics in ("stored", "re-estimated")
                if (cut, statistics) != ("none", "stored")]  # the untruncated network as it is, which all are held against

    def run(self, cut: str, level: float) -> Iterator[tuple[dict, Evaluation]]:
        """(labels, test evaluation) with either statistics. Labels: those of `keys` and of `joint_truncations`."""
        about, kernels = self._truncation(cut, level)
        truncated = with_kernels(self.model, kernels)
        pixels = augmented(split_arrays(self.dataset, "train")[0][self.images], self.recipe, AUGMENTATION_SEED)
        for key in self.keys(cut, level):
            network = truncated if key["statistics"] == "stored" else reestimated(truncated, pixels)
            yield about | key, evaluate(network, self.dataset)

    def _truncation(self, cut, level):
        if cut != "none":
            (truncation,) = joint_truncations(self.model, cut, "fraction", level)
            return truncation
        whole = sum(kernel.numel() for kernel in conv_kernels(self.model).values())
        return {"cut": cut, "common": "fraction", "level": level, "norm_kept": 1.0, "relative_error": 0.0, "parameters": whole}, {}
