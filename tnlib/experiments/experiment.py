"""What an experiment is made on, and what it is: which cells are evaluated on which images, or which runs are made."""

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch

from .data_aware import patch_moments, with_data_aware_error
from .dataset import Dataset, balanced_indices, balanced_sample, part_of
from .evaluation import Evaluation, default_device, split_arrays
from .networks import Recipe, conv_kernels
from .replacements import Replacements
from .weights import find_weights, read_card

TRAIN_IMAGES, TRAIN_SEED = 5000, 5  # unaugmented training images behind the data-aware error and mean outputs
QUICK_IMAGES, QUICK_TRAIN_IMAGES = 300, 500  # on the data set for trying: a few more than can tell a drop within a point
QUICK_TRAINED = 750  # training images there, of a re-training
MANY_LAYERS = 20  # from so many on, networks are fitted, and controls made, at an early, a middle and a late kernel only
DEEP_IMAGES = 5000  # on which such a network is evaluated: minutes on a GPU
REDUCED_IMAGES = 1000  # where there is no GPU, of runs: those evaluated, and those that statistics are estimated on where re-trainings start


def is_deep(model: torch.nn.Module) -> bool:
    """Whether a network has so many convolutions that not all of them can be fitted."""
    return len(conv_kernels(model)) >= MANY_LAYERS


def too_large(model: torch.nn.Module, dataset: str) -> bool:
    """Whether to measure a network takes hours, and is done in a reduced form: a deep one, on real images (`dataset`: their name), without
    a GPU."""
    return is_deep(model) and dataset != "shapes" and default_device().type == "cpu"


@dataclass(frozen=True)
class Subject:
    """What an experiment is made on: the network, called `.name`, its data set and its seed.

    `.reduced`: whether fewer cells are measured because there is no GPU; see `too_large`.
    """

    name: str
    model: torch.nn.Module
    dataset: Dataset
    seed: int
    reduced: bool = False

    @property
    def quick(self) -> bool:
        """Whether this is for trying: then cells, draws, images and iterations are fewer."""
        return self.dataset.name == "shapes"

    @property
    def deep(self) -> bool:
        """Whether it has so many layers that not all of them can be fitted."""
        return is_deep(self.model)

    @property
    def layers(self) -> tuple[list[str], list[str]]:
        """The layers of a reduced sweep: all whose kernels are larger than 1×1, and every third of the others."""
        kernels = conv_kernels(self.model)
        spatial = [layer for layer, kernel in kernels.items() if kernel.shape[2:].numel() > 1]
        return spatial, [layer for layer in kernels if layer not in spatial][::3]

    @property
    def sampled(self) -> list[str] | None:
        """The layers that what takes long is done at: all (None) or, of a deep network, an early, a middle and a late one
        of those whose kernels are larger than 1×1."""
        if not self.deep:
            return None
        spatial, _ = self.layers
        return list(dict.fromkeys(spatial[len(spatial) * k // 6] for k in (1, 3, 5) if spatial))

    @cached_property
    def recipe(self) -> Recipe:
        """How the network was trained, by its card."""
        return Recipe(**read_card(find_weights(self.name, self.dataset.name, self.seed)).get("recipe", {}))

    @cached_property
    def train_images(self) -> np.ndarray:
        """Indices of the training images on which layers' inputs and outputs are looked at; class-balanced."""
        labels = split_arrays(self.dataset, "train")[1]
        return balanced_sample(labels, min(QUICK_TRAIN_IMAGES if self.quick else TRAIN_IMAGES, len(labels)), TRAIN_SEED)

    def for_runs(self) -> "Subject":
        """Itself or, for trying, the same with fewer training images and those test images alone that are evaluated; of a
        reduced measurement with the latter alone."""
        if not (self.quick or self.reduced):
            return self
        labels, images = self.dataset.train_labels, len(self.dataset.test_labels)
        trained = balanced_sample(labels, min(QUICK_TRAINED, len(labels)), TRAIN_SEED) if self.quick else None
        evaluated = self.dataset.subset(min(QUICK_IMAGES if self.quick else REDUCED_IMAGES, images))
        return replace(self, dataset=part_of(self.dataset, trained, evaluated))

    def moments(self, layers=None) -> dict[str, torch.Tensor]:
        """Layer → Σ, see `patch_moments`, of those of `layers` (None: of the model) that have one."""
        convolutions = {layer: self.model.get_submodule(layer) for layer in layers or conv_kernels(self.model)}
        whole = [layer for layer, module in convolutions.items() if module.groups == 1 and module.padding_mode == "zeros"]
        return {} if not whole else patch_moments(self.model, self.dataset, images=self.train_images, layers=whole)


class Runs(ABC):
    """The runs behind the rows of an experiment that is no sweep; each is done whole or not at all."""

    @abstractmethod
    def parameters(self) -> dict:
        """What a table of them does not say of how its rows are made."""

    @abstractmethod
    def runs(self) -> list[tuple]:
        """What tells the runs apart, in the order of the table; what follows takes one of these."""

    @abstractmethod
    def keys(self, *run) -> list[dict]:
        """What tells the rows of a run apart."""

    def prepared(self, *run, level: float | None = None) -> "Runs":
        """What a worker is handed that makes this run: all of it, unless something is found once for several runs; `level`: what a
        table says of it."""
        return self

    @abstractmethod
    def run(self, *run) -> Iterator[tuple[dict, Evaluation]]:
        """The rows of a run: (labels, test evaluation), the labels with those of `keys`."""


@dataclass(frozen=True)
class Experiment:
    """`.cells(subject, **settings)`: what is replaced, or, where other networks are swept, a list of (network, what is
    replaced in it). `.settings(subject)`: what cells are made with and the columns of the table do not say.

    `.key`: what tells its cells apart. `.splits`, `.images`: on which images they are evaluated, so many class-balanced
    ones (None: all). `.weighed`: whether a row also has the data-aware error; `.train_images`: whether the subject's
    training images are looked at for anything else. Where a row is not a cell of a sweep, `.runs(subject)` takes the
    place of `.cells`. `.reducible`: whether a `too_large` network has fewer cells.
    """

    cells: Callable[..., Replacements | list] | None
    key: tuple[str, ...]
    splits: tuple[str, ...] = ("test",)
    version: int = 1
    weighed: bool = True
    images: int | None = None
    runs: Callable[[Subject], Runs] | None = None
    settings: Callable[[Subject], dict] = lambda its: {}
    train_images: bool = False
    reducible: bool = False

    def on(self, subject: Subject) -> "Experiment":
        """This experiment as it is made on `subject`: on a deep network on the first split only, and there and for trying on fewer
        images."""
        if subject.quick:
            return replace(self, splits=self.splits[:1] if subject.deep else self.splits, images=min(self.images or QUICK_IMAGES, QUICK_IMAGES))
        if self.runs:
            return replace(self, images=REDUCED_IMAGES) if subject.reduced else self
        return replace(self, splits=self.splits[:1], images=DEEP_IMAGES) if subject.deep else self

    def key_of(self, split: str, labels: dict) -> str:
        return " ".join([split, *(f"{name}={labels[name]}" for name in self.key)])

    def parameters(self, subject: Subject) -> dict:
        """What a table's card says of how its rows are made, beside what its columns do; as JSON has it."""
        found = self.runs(subject).parameters() if self.runs else self.settings(subject)
        if self.train_images or self.weighed and not self.runs:
            found = found | {"train_images": {"number": len(subject.train_images), "seed": TRAIN_SEED}}
        return json.loads(json.dumps(found))

    def parts(self, subject: Subject, weighed: bool = True) -> list[tuple[torch.nn.Module, Replacements]]:
        """(network that is swept, what is replaced in it), one after another; without data-aware errors, which take
        long, if not `weighed`."""
        cells = self.cells(subject, **self.settings(subject))
        if isinstance(cells, list):
            return cells
        if weighed and self.weighed:
            cells = with_data_aware_error(cells, subject.moments(cells.kernels))
        return [(subject.model, cells)]

    def chosen_images(self, dataset: Dataset, split: str) -> np.ndarray | None:
        """Indices of the images of a split that are evaluated; None: all."""
        if self.images is None or len(split_arrays(dataset, split)[1]) <= self.images:
            return None
        return balanced_indices(dataset, split, self.images)
