"""The experiments: by name, which cells of which networks are evaluated on which images, or which runs are made."""

import copy
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch

from .batch_norm import Reestimation
from .compression import BUDGETS, Compression
from .controls import controls, in_gauges, matched_noise, shrink
from .data_aware import data_aware_truncations, patch_moments, with_data_aware_error
from .datasets import Dataset, balanced_indices, balanced_sample
from .evaluation import default_device, split_arrays
from .factorizations import cp_truncations, multi_mode_truncations, ring_truncations, train_truncations
from .networks import Recipe, conv_kernels
from .replacements import Replacements, joined, labelled
from .retraining import Paths, Retraining, Starts
from .strengths import CASES, OTHER_CASES, Case
from .truncations import cut_truncations, joint_truncations
from .weights import find_weights, read_card

TRAIN_IMAGES, TRAIN_SEED = 5000, 5  # unaugmented training images behind the data-aware error and mean outputs
QUICK_IMAGES, QUICK_TRAIN_IMAGES = 500, 500  # on the data set for trying
QUICK_TRAINED, QUICK_EVALUATED = 1500, 500  # training images there: those of a re-training, and those it is evaluated on
QUICK = (0.1, 0.3, 0.5, 0.8)  # fractions of the largest rank there
QUICK_BUDGETS = (0.25,)
LONG, QUICK_LONG = 20, 2  # epochs of the one case that is re-trained longer
CONTROL_CUTS, CONTROL_RANKS = ("OUT", "IN", "KW", "OUT,IN", "OUT,KW"), (0.2, 0.4, 0.6)
QUICK_CONTROL_RANKS, QUICK_GAUGE_RANKS = (0.3,), (0.2, 0.6)
CONTROL_IMAGES = 5000
REDUCED_CONTROL_RANKS = (0.2,)  # where there is no GPU, of a deep network, at the cuts of a reduced sweep
MANY_LAYERS = 20  # from so many on, networks are fitted, and controls made, at an early, a middle and a late kernel only
# Such a network is truncated to these fractions of the largest rank, and evaluated on so many images: minutes on a GPU.
DEEP_RANKS, DEEP_IMAGES = (0.05, 0.1, 0.2, 0.3, 0.45, 0.6, 0.75, 0.9), 5000
REDUCED_CUTS = ("OUT", "OUT,KW", "OUT,IN")  # where there is no GPU: hours instead of days
REDUCED_IMAGES = 1000  # there, of runs: those evaluated, and those that statistics are estimated on where re-trainings start
REESTIMATED_CUTS, REESTIMATED_LEVELS = ("OUT", "IN", "OUT,KW", "OUT,IN"), (0.2, 0.4, 0.6, 0.8)


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
        few = copy.copy(self.dataset)
        if self.quick:
            trained = balanced_sample(few.train_labels, min(QUICK_TRAINED, len(few.train_labels)), TRAIN_SEED)
            few.train_images, few.train_labels = few.train_images[trained], few.train_labels[trained]
            few.train_differs = few.train_differs[trained]
        evaluated = few.subset(min(QUICK_IMAGES if self.quick else REDUCED_IMAGES, len(few.test_labels)))
        few.test_images, few.test_labels = few.test_images[evaluated], few.test_labels[evaluated]
        return replace(self, dataset=few)

    def moments(self, layers=None) -> dict[str, torch.Tensor]:
        """Layer → Σ, see `patch_moments`, of those of `layers` (None: of the model) that have one."""
        whole = [layer for layer in layers or conv_kernels(self.model) if self.model.get_submodule(layer).groups == 1]
        return {} if not whole else patch_moments(self.model, self.dataset, images=self.train_images, layers=whole)


@dataclass(frozen=True)
class Experiment:
    """`.cells(subject, **settings)`: what is replaced, or, where other networks are swept, a list of (network, what is
    replaced in it). `.settings(subject)`: what cells are made with and the columns of the table do not say.

    `.key`: what tells its cells apart. `.splits`, `.images`: on which images they are evaluated, so many class-balanced
    ones (None: all). `.weighed`: whether a row also has the data-aware error; `.train_images`: whether the subject's
    training images are looked at for anything else. Where a row is not a cell of a sweep, `.runs(subject)` takes the
    place of `.cells`: something with `.runs()`, `.keys(*run)`, `.prepared(*run)`, `.run(*run)` and `.parameters()` as
    `Retraining` has them; a run is done whole or not at all. `.reducible`: whether a `too_large` network has fewer cells.
    """

    cells: Callable[..., Replacements | list] | None
    key: tuple[str, ...]
    splits: tuple[str, ...] = ("test",)
    version: int = 1
    weighed: bool = True
    images: int | None = None
    runs: Callable[[Subject], Retraining | Paths | Starts | Reestimation | Compression] | None = None
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


def is_deep(model: torch.nn.Module) -> bool:
    """Whether a network has so many convolutions that not all of them can be fitted."""
    return len(conv_kernels(model)) >= MANY_LAYERS


def rank_fractions(model: torch.nn.Module) -> tuple[float, ...] | None:
    """The fractions of the largest rank to which a network's kernels are truncated one at a time, by an amendment to the
    claims; None: the ranks of `rank_grid`."""
    return DEEP_RANKS if is_deep(model) else None


def listed_cases(model: torch.nn.Module, cases: tuple[Case, ...] = CASES) -> tuple[Case, ...]:
    """The cases of re-training that were listed beforehand for a network; for a deep one without CP, which takes hours of
    such kernels (an amendment to the claims)."""
    return tuple(case for case in cases if case.cut != "CP" or not is_deep(model))


def too_large(model: torch.nn.Module, dataset: Dataset) -> bool:
    """Whether a network is measured in a reduced form: a deep one, on real images, without a GPU."""
    return is_deep(model) and dataset.name != "shapes" and default_device().type == "cpu"


def _truncations(its: Subject, layers=None) -> Replacements:
    if not its.reduced:
        return cut_truncations(its.model, layers, ranks=QUICK if its.quick else rank_fractions(its.model))
    spatial, pointwise = its.layers
    return joined([cut_truncations(its.model, layers, cuts, DEEP_RANKS)
                   for layers, cuts in ((spatial, REDUCED_CUTS), (pointwise, ["OUT"])) if layers])


def _beside(its: Subject) -> list[str] | None:
    """The layers at which noise and shrinking stand beside truncations (None: all): of a deep network those of a reduced
    sweep or, where all is truncated, those whose kernels are larger than 1×1."""
    if not its.deep:
        return None
    spatial, pointwise = its.layers
    return spatial + pointwise * its.reduced


def _controls(its: Subject, **given):
    """Without a GPU, of a deep network at fewer cuts and ranks, and mean outputs of the same layers alone."""
    if its.reduced:
        return controls(its.model, its.dataset, its.train_images, REDUCED_CUTS, REDUCED_CONTROL_RANKS, layers=its.sampled,
                        constant=its.sampled, **given)
    return controls(its.model, its.dataset, its.train_images, CONTROL_CUTS, QUICK_CONTROL_RANKS if its.quick else CONTROL_RANKS,
                    layers=its.sampled, **given)


def _gauges(its: Subject, **given):
    """Without a GPU, of a deep network at the cut whose rows batch norm scales, and the ranks of such a network."""
    if its.reduced:
        return in_gauges(its.model, ("OUT",), DEEP_RANKS, layers=its.sampled, **given)
    return in_gauges(its.model, CONTROL_CUTS, QUICK_GAUGE_RANKS if its.quick else None, layers=its.sampled, **given)


def _joint(its: Subject):
    if its.deep and not its.quick:
        return joined([labelled(joint_truncations(its.model, REESTIMATED_CUTS, common, DEEP_RANKS), layers="all")
                       for common in ("fraction", "error")])
    first, *rest = conv_kernels(its.model)
    levels = QUICK if its.quick else None
    return joined([labelled(joint_truncations(its.model, common=common, levels=levels, layers=layers), layers=name)
                   for common in ("fraction", "error") for name, layers in (("all", None), ("all but the first", rest))
                   if layers is None or layers])


def _of_cp(its: Subject) -> dict:
    most = {"starts": 1, "svd_starts": 1, "max_iterations": 40} if its.deep else {
        "starts": 2, "svd_starts": 2, "max_iterations": 100}
    less = {"ranks": (1, 4, 16, 64), "starts": 1, "svd_starts": 0, "max_iterations": 15} if its.quick else {}
    return {"seed": its.seed} | most | less


def _of_ring(its: Subject) -> dict:
    less = {"ranks": (1, 2, 4, 8), "max_iterations": 10} if its.quick else {}
    return {"seed": its.seed, "starts": 1, "max_iterations": 60} | less


def _one_layer_cases(its: Subject) -> tuple[Case, ...]:
    layers = its.sampled or conv_kernels(its.model)
    return tuple(replace(case, layer=layer) for layer in layers for case in listed_cases(its.model))


def _retraining(its: Subject, **options) -> Retraining:
    less = {"cases": listed_cases(its.model), "spectra": its.sampled}
    if its.quick:
        less = {"epochs": 1, "cases": (Case("OUT,KW", 0.5),), "evaluated": QUICK_EVALUATED}
        options |= {"cases": options["cases"][-1:]} if "cases" in options else {}
    return Retraining(its.name, its.model, its.dataset, its.seed, **less | options)


def _table(experiment: str, its: Subject, whose: str) -> Path:
    """The table of another experiment on the same network; `FileNotFoundError` says `whose` it is and what makes it."""
    from .tables import find_table  # which knows the experiments
    if (path := find_table(experiment, its.name, its.dataset.name, its.seed)) is None:
        raise FileNotFoundError(f"there is no table of the {experiment} of {its.name} on {its.dataset.name}, seed {its.seed}, {whose}: "
                                f"tnlib measure {experiment} {its.name} {its.dataset.name} --seed {its.seed}")
    return path


def _starts(its: Subject) -> Starts:
    from .tables import read_table
    begun = read_table(_table("retraining", its, "whose networks these are")).query("cut != 'none' and epoch == 0")
    levels = {(cut, strength): level for cut, strength, level in zip(begun["cut"], begun["strength"], begun["level"])}
    return Starts(_retraining(its, **{"evaluated": REDUCED_IMAGES} if its.reduced else {}), levels)


def _compression(its: Subject) -> Compression:
    from .tables import read_table
    path = _table("truncation", its, "by which ranks are chosen")
    return Compression(_retraining(its), read_table(path).query("split == 'validation'"), read_card(path)["sha256"],
                       QUICK_BUDGETS if its.quick else BUDGETS)


EXPERIMENTS = {
    "truncation": Experiment(_truncations, ("layer", "cut", "rank"), ("test", "validation"), reducible=True),
    "noise": Experiment(
        lambda its, **given: matched_noise(_truncations(its, _beside(its)), **given), ("layer", "cut", "rank", "draw"),
        settings=lambda its: {"draws": 5 if its.seed == 0 and not (its.quick or its.deep) else 1, "seed": its.seed},
        reducible=True),
    "shrink": Experiment(lambda its: shrink(its.model, layers=_beside(its)), ("layer", "norm_kept"), weighed=False,
                         reducible=True),
    "joint": Experiment(_joint, ("layers", "cut", "common", "level"), version=2, weighed=False),
    "data-aware": Experiment(lambda its: data_aware_truncations(its.model, its.moments(its.sampled)),
                             ("layer", "cut", "rank"), weighed=False,  # it has that error from the start
                             train_images=True),
    "multi-mode": Experiment(
        lambda its: multi_mode_truncations(its.model, *[QUICK] * its.quick, layers=its.sampled),
        ("layer", "rank_out", "rank_in")),
    "train": Experiment(
        lambda its: train_truncations(its.model, *[QUICK] * its.quick, layers=its.sampled),
        ("layer", "rank_1", "rank_2", "rank_3")),
    "cp": Experiment(lambda its, **given: cp_truncations(its.model, layers=its.sampled, **given), ("layer", "rank"),
                     settings=_of_cp),
    "ring": Experiment(lambda its, **given: ring_truncations(its.model, layers=its.sampled, **given), ("layer", "rank"),
                       settings=_of_ring),
    "controls": Experiment(_controls, ("kind", "layer", "cut", "rank"), images=CONTROL_IMAGES,
                           settings=lambda its: {"seed": its.seed}, weighed=False, train_images=True, reducible=True),
    "gauges": Experiment(_gauges, ("gauge", "layer", "cut", "rank"), images=CONTROL_IMAGES,
                         settings=lambda its: {"seed": its.seed, "spread": 1.0}, weighed=False, reducible=True),
    "memory": Experiment(lambda its: cut_truncations(its.model, cuts=CONTROL_CUTS), ("layer", "cut", "rank"), ("train",),
                         weighed=False),
    "retraining": Experiment(None, ("cut", "strength", "arm", "epoch"), runs=_retraining),
    "retraining-long": Experiment(
        None, ("cut", "strength", "arm", "epoch"),
        runs=lambda its: _retraining(its, epochs=QUICK_LONG if its.quick else LONG, cases=(Case("OUT,KW", 0.5),),
                                     whole=("continued",), arms=("free",))),
    "retraining-cuts": Experiment(
        None, ("cut", "strength", "arm", "epoch"),
        runs=lambda its: _retraining(its, cases=listed_cases(its.model, OTHER_CASES), whole=("continued",))),
    "retraining-layers": Experiment(
        None, ("truncated", "cut", "strength", "arm", "epoch"),
        runs=lambda its: _retraining(its, cases=_one_layer_cases(its), whole=("continued",))),
    "retraining-statistics": Experiment(None, ("cut", "strength", "arm", "statistics"), runs=_starts, reducible=True),
    "batch-norm": Experiment(
        None, ("cut", "level", "statistics"),
        runs=lambda its: Reestimation(its.model, its.dataset, its.train_images, REESTIMATED_CUTS, REESTIMATED_LEVELS,
                                      its.recipe),
        train_images=True, reducible=True),
    "paths": Experiment(None, ("cut", "strength", "arm", "position"), runs=lambda its: Paths(_retraining(its))),
    "compression": Experiment(None, ("arm", "budget", "epoch"), runs=_compression),
}


def experiment_called(name: str) -> Experiment:
    """The entry of `EXPERIMENTS`; `ValueError` names what there is."""
    if name not in EXPERIMENTS:
        raise ValueError(f"unknown experiment {name!r}: it takes {', '.join(map(repr, EXPERIMENTS))}")
    return EXPERIMENTS[name]
