"""The numbers that a page shows, by the name of what was measured."""

import glob
import os
from functools import cache, partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from ..experiments.catalogue import EXPERIMENTS as MEASUREMENTS, find_table, not_measured
from ..experiments.dataset import as_argument
from ..experiments.datasets import load_dataset
from ..experiments.experiment import too_large
from ..experiments.files import PUBLISHED, RUNS, VALUES
from ..experiments.kernel_spectra import entropies, entropies_without_start, network_spectra, summary
from ..experiments.measurements import measure as measure_table
from ..experiments.networks import conv_kernels, network
from ..experiments.tables import read_answers, read_spectra, read_table
from ..experiments.training import as_trained_on
from ..experiments.weights import check_trained_on, find_weights, initial_model, load_model, read_card, stem, trained_seeds
from .claim_tests import ASKED_GAUGES
from .scorecard import Scorecard
from .scorecard import scorecard as evaluate_claims
from .section import OUTPUT_VARIABLE, section

_spectra = cache(partial(network_spectra, kept=VALUES))  # a page asks for the spectra and for their summary: one computation

CARD_COLUMNS = ("seed", "parameters", "test_accuracy", "test_loss", "train_accuracy", "train_loss", "sha256")


def _cards(model: str, dataset: str) -> list[dict]:
    """Those of all trained networks, in the order of their seeds."""
    return [read_card(find_weights(model, dataset, seed)) for seed in trained_seeds(model, dataset)]


def _networks(model: str, dataset: str) -> pd.DataFrame:
    return pd.DataFrame([{name: card[name] for name in CARD_COLUMNS} | {name: card["architecture"].get(name) for name in ("stem", "image_size", "classes")}
                         for card in _cards(model, dataset)])


def _training(model: str, dataset: str) -> pd.DataFrame:
    rows = []
    for card in _cards(model, dataset):
        if "initial_entropy" in card:
            epochs = {0: card["initial_entropy"]} | {row["epoch"]: row["entropy"] for row in card["history"]}
        else:
            epochs = {0: entropies(initial_model(card)), card["recipe"]["epochs"]: entropies(load_model(model, dataset, card["seed"]))}
        rows += [{"seed": card["seed"], "epoch": epoch, "layer": layer, "cut": cut, "entropy": bits}
                 for epoch, found in epochs.items() for layer, cuts in found.items() for cut, bits in cuts.items()]
    return pd.DataFrame(rows)


def _initial_overlap(model: str, dataset: str) -> pd.DataFrame:
    rows = []
    for card in _cards(model, dataset):
        first = conv_kernels(initial_model(card))
        rows += [{"seed": card["seed"], "layer": layer, "overlap": torch.cosine_similarity(
                      kernel.double().flatten(), first[layer].double().flatten(), dim=0).item()}
                 for layer, kernel in conv_kernels(load_model(model, dataset, card["seed"])).items()]
    return pd.DataFrame(rows)


def _without_start(model: str, dataset: str) -> pd.DataFrame:
    """The kernels' rows of "spectrum-summary" in `ASKED_GAUGES`, with the entropies of `entropies_without_start`."""
    bits = {}
    for card in _cards(model, dataset):
        found = entropies_without_start(load_model(model, dataset, card["seed"]), initial_model(card), ASKED_GAUGES)
        bits |= {(card["seed"], *place): entropy for place, entropy in found.items()}
    columns = ["seed", "layer", "cut", "gauge", "kind", "max_rank", "entropy", "deficit", "deficit_share"]
    rows = summary(_spectra(model, dataset, shuffled=False, trained=False)).query("kind == 'kernel' and gauge in @ASKED_GAUGES")[columns]
    entropy = np.array([bits[key] for key in zip(*(rows[name] for name in columns[:4]))])
    deficit = rows["deficit"] + rows["entropy"] - entropy
    return rows.assign(entropy=entropy, deficit=deficit, deficit_share=deficit / np.log2(rows["max_rank"]))


def _measured(experiment: str, model: str, dataset: str, measure: bool = True, read=read_table) -> pd.DataFrame:
    """The tables of all networks that are measured; where none is, the first is measured here and kept, but for one that takes hours.

    Under the profile `full`, all networks are measured here, and what is published is not looked at.
    """
    seeds, anew = trained_seeds(model, dataset), section.values.get("profile") == "full"
    tables = [path for seed in seeds if (path := _table(experiment, model, dataset, seed))]
    if not tables and (not measure or section.of_the_book):
        raise FileNotFoundError(f"no results of {experiment!r} for {model} on {dataset}; measure them with: "
                                f"tnlib measure {experiment} {model} {dataset} --seed {seeds[0]}" + " --publish" * section.of_the_book)
    if not tables and not anew and too_large(trained := load_model(model, dataset, seeds[0]), dataset):  # a page would be silent meanwhile
        if why := not_measured(experiment, trained):
            raise FileNotFoundError(f"{experiment} of {model} on {dataset}: {why}")
        raise FileNotFoundError(f"no results of {experiment!r} for {model} on {dataset}, and on a CPU they take hours: measure them first, which shows "
                                f"how far it is and goes on where it was cut off, with: tnlib measure {experiment} {model} {as_argument(dataset)} --seed {seeds[0]}")
    if measure and anew or not tables:
        shown = OUTPUT_VARIABLE not in os.environ  # a page has no use for a progress bar
        tables = [measure_table(experiment, model, dataset, seed, progress=shown) for seed in (seeds if anew else seeds[:1])]
    return pd.concat(map(read, tables), ignore_index=True)


def _table(experiment, model, dataset, seed) -> Path | None:
    """`find_table`; on a page of the book only what is published, under the profile `full` only what was measured here."""
    own = [RUNS / "results"] if section.values.get("profile") == "full" else None
    path = find_table(experiment, model, dataset, seed, own)
    return None if path and section.of_the_book and path.parent != PUBLISHED / "results" else path


def _recipe(model: str, dataset: str) -> pd.DataFrame:
    return pd.DataFrame([{"seed": card["seed"], **card["recipe"]} for card in _cards(model, dataset)])


def _read_recipe(path) -> pd.DataFrame:
    card = read_card(path)
    given = card["parameters"]
    return pd.DataFrame([{"seed": card["seed"], **given["recipe"], "bisection_steps": given.get("bisection_steps"),
                          "evaluated_train_images": given["evaluated_train_images"]["number"]}])


EXPERIMENTS = {
    **{name: partial(_measured, name) for name in MEASUREMENTS},
    "retraining-spectra": partial(_measured, "retraining", read=read_spectra),
    **{f"{name}-answers": partial(_measured, name, read=read_answers) for name in ("retraining", "retraining-cuts", "retraining-layers", "compression")},
    **{f"{name}-recipe": partial(_measured, name, read=_read_recipe) for name in ("retraining", "compression")},
    "recipe": _recipe,
    "networks": _networks,
    "training": _training,
    "initial-overlap": _initial_overlap,
    "spectrum-summary-without-start": _without_start,
    "spectra": lambda *networks, **options: _spectra(*networks, **_hashable(options)).copy(),
    "spectrum-summary": lambda *networks, **options: summary(_spectra(*networks, **_hashable(options))),
}


def _hashable(options: dict) -> dict:  # for the cache
    return {name: tuple(value) if isinstance(value, (list, set)) else value for name, value in options.items()}


def results(experiment: str, model: str, dataset: str, **options) -> pd.DataFrame:
    """The results of `experiment` for all trained networks `model` on `dataset`, tidy.

    "truncation", "noise", "shrink" and the other measurements of tnlib.experiments.catalogue: their published tables,
    else your own; where there is none, one network is measured, which needs the data set, and kept below runs/ (with
    `measure=False`, and of a deep network without a GPU, which takes hours: `FileNotFoundError`). "retraining-spectra": the singular values after every epoch of "retraining";
    "retraining-answers": its table with the bits of every row, `answers` (so too "retraining-cuts-answers",
    "retraining-layers-answers" and "compression-answers"); "retraining-recipe": how its networks were trained on, by its card (so too
    "compression-recipe"); "recipe": how they
    were trained, by theirs. "networks": one row a network, what its card says of it. "training": the entropies of its
    kernels before training and after each epoch (none where the card is older). "initial-overlap": the cosine between each
    kernel and what it was before training. "spectra" and "spectrum-summary": computed here from the weights, see
    `network_spectra` (which takes the options) and `summary` in tnlib.experiments.kernel_spectra.
    "spectrum-summary-without-start": the latter in the balanced or folded gauge, of what is left of each kernel without its part
    along what it was before training. A page whose parameters
    are all the published ones is given what is published, and nothing of runs/. Raises `ValueError` for an unknown
    experiment, and for an .npz file with other images than those that the networks of its name were trained on.
    """
    if experiment not in EXPERIMENTS:
        raise ValueError(f"unknown experiment {experiment!r}: it takes {', '.join(map(repr, EXPERIMENTS))}")
    if section.of_the_book and find_weights(model, dataset, trained_seeds(model, dataset)[0]).parent != PUBLISHED / "weights":
        raise FileNotFoundError(f"no published weights of {model} on {dataset}: pages of the book look at no others")
    if str(dataset).endswith(".npz"):
        for seed in trained_seeds(model, dataset):
            check_trained_on(_as_trained_on(model, dataset), read_card(find_weights(model, dataset, seed)))
    if (measured := _measured_as(experiment)) in MEASUREMENTS:
        section.ask(pattern := f"{measured}-{glob.escape(stem(model, dataset, 0).removesuffix('0'))}*.json")
    frame = EXPERIMENTS[experiment](model, dataset, **options)
    if measured in MEASUREMENTS:
        section.ask(pattern)  # again, with what was measured for it
    section.note(source(experiment, model), _files(experiment, model, dataset))
    return frame


@cache
def _as_trained_on(model: str, path: str):
    return as_trained_on(load_dataset(path), network(model))


def _files(experiment: str, model: str, dataset: str) -> list[Path]:
    """The tables or the weights that `results` has just read."""
    measured = _measured_as(experiment)
    find = partial(_table, measured) if measured in MEASUREMENTS else find_weights
    return [path for seed in trained_seeds(model, dataset) if (path := find(model, dataset, seed))]


def _measured_as(experiment: str) -> str:
    return experiment.removesuffix("-spectra").removesuffix("-answers").removesuffix("-recipe")


def scorecard() -> Scorecard:
    """The verdicts on all claims, from everything that is published; see `Scorecard`.

    A figure's source is "scorecard" or, where it shows one claim, "scorecard of ID".
    """
    found = evaluate_claims()
    for verdict in found.verdicts:
        files = [PUBLISHED / ("results" if name.endswith(".csv") else "weights") / name for name in verdict.tables]
        for what in ("scorecard", f"scorecard of {verdict.claim}"):
            section.note(what, files)
    return found


def measured(experiment: str, model: str, datasets, **options) -> pd.DataFrame:
    """`results` on several data sets, one below the other, with the column `dataset` as they are named in `datasets`."""
    return pd.concat([results(experiment, model, name, **options).assign(dataset=name) for name in datasets],
                     ignore_index=True)


def available(experiment: str, model: str, datasets) -> list[str]:
    """Those of `datasets` on which there are `results` of `experiment`: nothing is measured for it."""
    def there(name):
        try:
            results(experiment, model, name, **({"measure": False} if _measured_as(experiment) in MEASUREMENTS else {}))
        except FileNotFoundError:  # not trained on this data set, or not measured
            return False
        return True

    return [name for name in datasets if there(name)]


def second_network(deep: str, model: str, datasets, *experiments: str) -> tuple[str, list[str]]:
    """The network `deep` and those of `datasets` on which all these `experiments` are there; where they are on none, as may be on data of
    your own, the page's `model` and all of `datasets`."""
    there = [name for name in datasets if all(available(experiment, deep, [name]) for experiment in experiments)]
    return (deep, there) if there else (model, list(datasets))


def source(what: str, model: str) -> str:
    """How figures call results of a network as their source: by the network, where that is another than the page's."""
    return what if model == section.values.get("model", model) else f"{what} of {model}"
