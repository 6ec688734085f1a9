"""The experiments by name: what each replaces in a network, or which runs it makes; and where its tables are."""

from dataclasses import replace
from pathlib import Path

import torch

from .batch_norm import Reestimation
from .compression import BUDGETS, Compression
from .controls import controls, in_gauges, matched_noise, shrink
from .data_aware import data_aware_truncations
from .dataset import as_argument
from .experiment import REDUCED_IMAGES, Experiment, Subject, is_deep
from .factorizations import cp_truncations, multi_mode_truncations, ring_truncations, train_truncations
from .files import PUBLISHED, RUNS
from .networks import conv_kernels
from .paths import Paths
from .replacements import Replacements, joined, labelled
from .retraining import Retraining, Starts
from .strengths import CASES, OTHER_CASES, Case
from .tables import has_card, read_table
from .truncations import cut_truncations, joint_truncations
from .weights import data_name, find_weights, read_card, stem

FOLDERS = (PUBLISHED / "results", RUNS / "results")  # of tables: published ones come first
QUICK = (0.1, 0.3, 0.5, 0.8)  # fractions of the largest rank on the data set for trying
QUICK_EVALUATED = 250  # training images there on which a re-training is evaluated
QUICK_BUDGETS = (0.25,)
LONG, QUICK_LONG = 20, 2  # epochs of the one case that is re-trained longer
CONTROL_CUTS, CONTROL_RANKS = ("OUT", "IN", "KW", "OUT,IN", "OUT,KW"), (0.2, 0.4, 0.6)
QUICK_CONTROL_RANKS, QUICK_GAUGE_RANKS = (0.3,), (0.2, 0.6)
CONTROL_IMAGES = 5000
REDUCED_CONTROL_RANKS = (0.2,)  # where there is no GPU, of a deep network, at the cuts of a reduced sweep
DEEP_RANKS = (0.05, 0.1, 0.2, 0.3, 0.45, 0.6, 0.75, 0.9)  # fractions of the largest rank to which a deep network is truncated
REDUCED_CUTS = ("OUT", "OUT,KW", "OUT,IN")  # where there is no GPU: hours instead of days
REESTIMATED_CUTS, REESTIMATED_LEVELS = ("OUT", "IN", "OUT,KW", "OUT,IN"), (0.2, 0.4, 0.6, 0.8)


def rank_fractions(model: torch.nn.Module) -> tuple[float, ...] | None:
    """The fractions of the largest rank to which a network's kernels are truncated one at a time, by an amendment to the
    claims; None: the ranks of `rank_grid`."""
    return DEEP_RANKS if is_deep(model) else None


def listed_cases(model: torch.nn.Module, cases: tuple[Case, ...] = CASES) -> tuple[Case, ...]:
    """The cases of re-training that were listed beforehand for a network; for a deep one without CP, which takes hours of
    such kernels (an amendment to the claims)."""
    return tuple(case for case in cases if case.cut != "CP" or not is_deep(model))


def _truncations(its: Subject, layers=None) -> Replacements:
    if not its.reduced:
        return cut_truncations(its.model, layers, ranks=QUICK if its.quick else rank_fractions(its.model))
    spatial, pointwise = its.layers
    chosen = [([layer for layer in layers or those if layer in those], cuts)
              for those, cuts in ((spatial, REDUCED_CUTS), (pointwise, ["OUT"]))]
    return joined([cut_truncations(its.model, those, cuts, DEEP_RANKS) for those, cuts in chosen if those])


def _beside(its: Subject) -> list[str] | None:
    """The layers at which noise and shrinking stand beside truncations (None: all): of a deep network those of a reduced
    sweep or, where all is truncated, those whose kernels are larger than 1×1. What takes a CPU hours begins with layers
    from all depths: cut off, it tells of them."""
    if not its.deep:
        return None
    spatial, pointwise = its.layers
    return _from_all_depths(spatial) + _from_all_depths(pointwise) if its.reduced else spatial


def _from_all_depths(layers: list[str]) -> list[str]:
    """The first layer, the one in the middle, those at the quarters, and so on (the van der Corput sequence)."""
    bits = len(layers).bit_length()
    return [layers[k] for k in sorted(range(len(layers)), key=lambda k: f"{k:0{bits}b}"[::-1])]


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
    if (path := find_table(experiment, its.name, its.dataset.name, its.seed)) is None:
        raise FileNotFoundError(f"there is no table of the {experiment} of {its.name} on {its.dataset.name}, seed {its.seed}, {whose}: "
                                f"tnlib measure {experiment} {its.name} {as_argument(its.dataset.name)} --seed {its.seed}")
    return path


def _starts(its: Subject) -> Starts:
    begun = read_table(_table("retraining", its, "whose networks these are")).query("cut != 'none' and epoch == 0")
    levels = {(cut, strength): level for cut, strength, level in zip(begun["cut"], begun["strength"], begun["level"])}
    return Starts(_retraining(its, **{"evaluated": REDUCED_IMAGES} if its.reduced else {}), levels)


def not_measured(experiment: str, model: torch.nn.Module) -> str | None:
    """Why an experiment is not made on a network; None where it is."""
    if experiment == "compression" and is_deep(model):
        return ("no experiment measures it, as the truncations of a deep network, by which ranks are chosen, are not evaluated on "
                "held-out images")
    return None


def _compression(its: Subject) -> Compression:
    if why := not_measured("compression", its.model):
        raise ValueError(f"compression of {its.name}: {why}")
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
    "tensor-train": Experiment(
        lambda its: train_truncations(its.model, *[QUICK] * its.quick, layers=its.sampled),
        ("layer", "rank_1", "rank_2", "rank_3")),
    "cp": Experiment(lambda its, **given: cp_truncations(its.model, layers=its.sampled, **given), ("layer", "rank"),
                     settings=_of_cp),
    "tensor-ring": Experiment(lambda its, **given: ring_truncations(its.model, layers=its.sampled, **given), ("layer", "rank"),
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


def find_table(experiment: str, model: str, dataset: str, seed: int, folders=None) -> Path | None:
    """The table of a measurement: the published one, else your own below runs/ (or the first in `folders`), else None.

    Tables of another version of the experiment, with other cells, do not count, nor do those of other weights, nor your own
    of which runs are missing: what was cut off is to go on. Raises `FileNotFoundError` where there are no weights.
    """
    wanted = {"model": model, "dataset": data_name(dataset), "seed": seed, "version": experiment_called(experiment).version,
              "weights": read_card(find_weights(model, dataset, seed))["sha256"]}
    for folder in folders or FOLDERS:
        path = folder / f"{experiment}-{stem(model, dataset, seed)}.csv"
        card = read_card(path) if has_card(path) else {}
        said = card | {"dataset": data_name(str(card.get("dataset")))}
        if wanted.items() <= said.items() and (folder == PUBLISHED / "results" or "missing" not in card):
            return path
    return None
