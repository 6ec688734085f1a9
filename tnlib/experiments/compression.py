"""Compressing a network to a budget of parameters: which ranks its kernels get, and what training at these ranks makes of it.

Ranks are chosen by the rule of `budgets`, by one of these measures:

- "map": the accuracy drop on held-out images with this kernel alone truncated so far (the maps);
- "norm": the relative error ε, so that every kernel keeps one share of its norm;
- "data-aware": the relative error of what the layer gives, see `data_aware`;
- "fraction": the share of the largest rank that is taken away, at one cut for all: the uniform choice without a measurement;
- "fraction-inner": the same of all layers but the first, which stays whole: its few channels are few parameters, too;
- "map-one-cut", "fraction-inner-one-cut": as "map" and "fraction-inner", but at the one cut of "fraction".

Beside them "narrower" is a dense network with fewer channels, trained from scratch for as many epochs in all.
"""

import dataclasses
import numbers
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
import pandas as pd
from torch import nn

from ..tensors.checks import check_count
from ..tensors.cuts import CUTS, Cut, factorize
from ..tensors.factors import KernelFactors
from ..tensors.network import multiply_adds
from .budgets import Option, by_fraction, by_measurement, by_norm, choose
from .evaluation import Evaluation, default_device, evaluate, watch
from .experiment import Runs
from .networks import Recipe, conv_kernels
from .replacements import chosen_layers, with_kernels
from .retraining import Retraining, with_rank_kept
from .strengths import norms_and_parameters
from .training import Training

BUDGETS = (0.5, 0.25, 0.125)  # of the convolutions' parameters
MEASURED = {"map": "accuracy_drop", "map-one-cut": "accuracy_drop", "data-aware": "data_aware_error"}  # arm → the column of "truncation" that it goes by
ARMS = ("map", "fraction", "norm", "data-aware", "narrower", "map-one-cut", "fraction-inner", "fraction-inner-one-cut")
WIDTHS = 256  # a narrower network's channels are so manieth parts of the network's own


# ---- what it costs besides ----------------------------------------------------------------------------------------

def multiplications(model: nn.Module, kernels: dict, image_size: int) -> int:
    """Multiplications that the convolutions named in `kernels` take for one image (3, S, S), S = `image_size`, those with
    padding's zeros counted: dense where `kernels` has a kernel, and factor by factor where it has factors.

    Raises `ValueError` for an unknown layer and an `image_size` below 1.
    """
    chosen_layers(model, list(kernels))
    check_count(image_size, "image_size")
    total = 0

    def add(layer, image, _):
        nonlocal total
        module, kernel = model.get_submodule(layer), kernels[layer]
        count = kernel.multiply_adds if isinstance(kernel, KernelFactors) else partial(multiply_adds, kernel)
        total += count(tuple(image.shape[2:]), module.stride, module.padding, module.dilation)

    watch(model, kernels, add, np.zeros((1, image_size, image_size, 3), dtype=np.uint8))
    return total


# ---- the runs ------------------------------------------------------------------------------------------------------

@dataclass
class Compression(Runs):
    """The network of `.retraining` compressed to each of `.budgets`, and trained for its epochs on its batches, by its recipe.

    `.cells`: the held-out rows of its table "truncation" (`layer, cut, rank, max_rank`, `accuracy_drop` in points, `data_aware_error`), `.table`
    the sha256 of that. Raises `ValueError` where a layer has none, for a network whose width is no list of channels, and for a budget that is no number
    between 0 and 1.
    """

    retraining: Retraining
    cells: pd.DataFrame
    table: str
    budgets: tuple[float, ...] = BUDGETS

    def __post_init__(self):
        if self.cells.empty:
            raise ValueError(f"the table of {self.retraining.name}'s truncations has no held-out rows, by which ranks are chosen: it is "
                             "measured on test images alone")
        if lacking := [layer for layer in conv_kernels(self.retraining.model) if layer not in set(self.cells["layer"])]:
            raise ValueError(f"the table of {self.retraining.name}'s truncations has no held-out rows of {', '.join(lacking)}: measure it again")
        for budget in self.budgets:
            if not (isinstance(budget, numbers.Real) and 0 < budget < 1):
                raise ValueError(f"a budget must be a share of the parameters above 0 and below 1, got {budget!r}")
        if "channels" not in self.retraining.card["architecture"]:
            raise ValueError(f"{self.retraining.name} cannot be made narrower: its width is no list of channels")

    @property
    def recipe(self) -> Recipe:
        """That of the compressed networks' training."""
        return self.retraining.recipe

    @property
    def longer(self) -> Recipe:
        """That of the narrower network's: the network's own, for as many epochs in all as a compressed one has seen."""
        own = Recipe(**self.retraining.card.get("recipe", {}))
        return dataclasses.replace(own, epochs=own.epochs + self.retraining.epochs)

    def parameters(self) -> dict:
        """What a table of the runs does not say of how they were made; `truncation`: the table that ranks were chosen by."""
        its = self.retraining.parameters()
        return {name: its[name] for name in ("recipe", "evaluated_train_images")} | {
            "narrower_recipe": dataclasses.asdict(self.longer), "truncation": self.table,
            "seeds": {name: its["seeds"][name] for name in ("batches", "fresh")} | {"narrower_batches": self.narrower_batches}}

    @property
    def narrower_batches(self) -> int:
        """The seed of the batches of a narrower network: that of the network's own."""
        return 1000 * self.retraining.seed

    def runs(self) -> list[tuple[str, float]]:
        """(arm, budget) of every network that is trained."""
        return [(arm, budget) for arm in ARMS for budget in self.budgets]

    def keys(self, arm: str, budget: float) -> list[dict]:
        """What tells the rows of a run apart: one an epoch, 0 being before it; of a narrower network the last alone."""
        epochs = range(self.retraining.epochs + 1)
        return [{"arm": arm, "budget": budget, "epoch": epoch} for epoch in (epochs[-1:] if arm == "narrower" else epochs)]

    def run(self, arm: str, budget: float) -> Iterator[tuple[dict, Evaluation]]:
        """Train, and yield (labels, test evaluation). Labels: those of `keys` and `start`, and `train_loss` and
        `train_accuracy` as in a re-training."""
        module, about = self.start(arm, budget)
        training = self.training(module, arm)
        if arm == "narrower":
            for epoch in range(self.longer.epochs):
                training(epoch)
        for key in self.keys(arm, budget):
            if arm != "narrower" and key["epoch"]:
                training(key["epoch"] - 1)
            seen = evaluate(module, self.retraining.some_training_images)
            yield key | about | {"train_loss": seen.loss, "train_accuracy": seen.accuracy}, evaluate(module, self.retraining.dataset)

    def training(self, module: nn.Module, arm: str) -> Training:
        """The training of `module`, which a run starts from."""
        if arm != "narrower":
            return self.retraining.training(module, arm)
        return Training(module, self.retraining.dataset, self.longer, self.narrower_batches, default_device())

    def start(self, arm: str, budget: float) -> tuple[nn.Module, dict]:
        """The network that a run trains, and its labels.

        Labels: `channels`, `cuts` and `ranks`, layer by layer ("-": a kernel as it is), the `level` that they have in common, of all
        kernels together `norm_kept`, `relative_error` and `parameters`, and `network_parameters` with all that is no kernel. Raises `ValueError`
        for an unknown arm, and where nothing fits into the budget.
        """
        model, card = self.retraining.model, self.retraining.card
        kernels = conv_kernels(model)
        if arm == "narrower":
            module, channels = self._narrower(budget)
            return module, {"channels": _listed(channels), "cuts": "-", "ranks": "-",
                            "parameters": _size(conv_kernels(module)), "network_parameters": _size(dict(module.named_parameters()))}
        chosen, level = self.chosen(arm, budget)
        factors = _factors(kernels, chosen)
        about, others = norms_and_parameters(kernels, factors), _size(dict(model.named_parameters())) - _size(kernels)
        return with_rank_kept(model, factors), {
            "channels": _listed(card["architecture"]["channels"]), "cuts": _listed(option.cut or "-" for option in chosen.values()),
            "ranks": _listed(option.rank or "-" for option in chosen.values()), "level": level,
            **about, "network_parameters": about["parameters"] + others}

    def chosen(self, arm: str, budget: float) -> tuple[dict[str, Option], float]:
        """Layer → its option, and the level they have in common, of an arm that compresses. Of one fraction at the cut, of those at which
        the budget can be kept, whose network answers most held-out images right before it is trained. Raises `ValueError` as `start` does."""
        model = self.retraining.model
        kernels = conv_kernels(model)
        most = budget * _size(kernels)
        if arm in MEASURED:
            cells = self.cells
            if arm == "map-one-cut":
                cells = cells[cells["cut"] == self._one_cut(budget).name]
            return choose(by_measurement(kernels, cells, MEASURED[arm]), most)
        if arm == "norm":
            return choose(by_norm(kernels), most)
        if arm not in ("fraction", "fraction-inner", "fraction-inner-one-cut"):
            raise ValueError(f"unknown way to compress {arm!r}: it takes {', '.join(map(repr, ARMS))}")
        found, whole = [], () if arm == "fraction" else tuple(kernels)[:1]
        for cut in [self._one_cut(budget)] if arm == "fraction-inner-one-cut" else CUTS:
            try:
                found.append(choose(by_fraction(kernels, cut, whole), most))
            except ValueError:  # a cut at which rank 1 takes more than the budget
                continue
        if not found:
            raise ValueError(f"at none of the cuts does the network fit into {most:,.0f} parameters: give a larger budget")
        answers = lambda way: evaluate(with_kernels(model, _factors(kernels, way[0])), self.retraining.dataset, split="validation")
        return max(found, key=lambda way: answers(way).accuracy)

    def _one_cut(self, budget) -> Cut:
        """That of one fraction for all layers."""
        uniform, _ = self.chosen("fraction", budget)
        (name,) = {option.cut for option in uniform.values() if option.cut}
        return Cut.parse(name)

    def _narrower(self, budget):
        """The widest network of channels in the network's own proportions whose kernels fit into the budget, with fresh weights."""
        own, size = self.retraining.card["architecture"]["channels"], lambda module: _size(conv_kernels(module))
        of = lambda width: [max(1, round(count * width / WIDTHS)) for count in own]
        most = budget * size(self.retraining.model)
        width = bisect_right(range(1, WIDTHS), most, key=lambda width: size(self.retraining.fresh(channels=of(width))))
        if not width:
            raise ValueError(f"no network of parts of the channels {own} fits into {most:,.0f} parameters: give a larger budget")
        return self.retraining.fresh(channels=of(width)), of(width)


def _factors(kernels, chosen: dict[str, Option]) -> dict[str, KernelFactors]:
    return {layer: factorize(kernels[layer], option.cut, option.rank) for layer, option in chosen.items() if option.cut}


def _size(tensors: dict) -> int:
    return sum(tensor.numel() for tensor in tensors.values())


def _listed(values) -> str:
    return " ".join(map(str, values))
