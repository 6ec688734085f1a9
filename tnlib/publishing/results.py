"""The numbers that a page shows, by the name of what was measured."""

import glob
import os
import re
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
from .claims import least_accuracy
from .scorecard import Scorecard
from .scorecard import scorecard as evaluate_claims
from .section import OUTPUT_VARIABLE, section

_spectra = cache(partial(network_spectra, kept=VALUES))  # a page asks for the spectra and for their summary: one computation

CARD_COLUMNS = ("seed", "parameters", "test_accuracy", "test_loss", "train_accuracy", "train_loss", "sha256")


def _networks(model: str, dataset: str) -> pd.DataFrame:
    cards = [read_card(find_weights(model, dataset, seed)) for seed in trained_seeds(model, dataset)]
    return pd.DataFrame([{name: card[name] for name in CARD_COLUMNS} | {name: card["architecture"].get(name) for name in ("stem", "image_size")}
                         for card in cards])


def _training(model: str, dataset: str) -> pd.DataFrame:
    rows = []
    for seed in trained_seeds(model, dataset):
        card = read_card(find_weights(model, dataset, seed))
        if "initial_entropy" in card:
            epochs = {0: card["initial_entropy"]} | {row["epoch"]: row["entropy"] for row in card["history"]}
        else:
            epochs = {0: entropies(initial_model(card)), card["recipe"]["epochs"]: entropies(load_model(model, dataset, seed))}
        rows += [{"seed": seed, "epoch": epoch, "layer": layer, "cut": cut, "entropy": bits}
                 for epoch, found in epochs.items() for layer, cuts in found.items() for cut, bits in cuts.items()]
    return pd.DataFrame(rows)


def _initial_overlap(model: str, dataset: str) -> pd.DataFrame:
    rows = []
    for seed in trained_seeds(model, dataset):
        first = conv_kernels(initial_model(read_card(find_weights(model, dataset, seed))))
        rows += [{"seed": seed, "layer": layer, "overlap": torch.cosine_similarity(
                      kernel.double().flatten(), first[layer].double().flatten(), dim=0).item()}
                 for layer, kernel in conv_kernels(load_model(model, dataset, seed)).items()]
    return pd.DataFrame(rows)


def _without_start(model: str, dataset: str) -> pd.DataFrame:
    """The kernels' rows of "spectrum-summary" in `ASKED_GAUGES`, with the entropies of `entropies_without_start`."""
    bits = {}
    for seed in trained_seeds(model, dataset):
        start = initial_model(read_card(find_weights(model, dataset, seed)))
        bits |= {(seed, *place): entropy for place, entropy in entropies_without_start(load_model(model, dataset, seed), start, ASKED_GAUGES).items()}
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
    cards = [read_card(find_weights(model, dataset, seed)) for seed in trained_seeds(model, dataset)]
    return pd.DataFrame([{"seed": card["seed"], **card["recipe"]} for card in cards])


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
    of = "" if model == section.values.get("model", model) else f" of {model}"  # another network than the page's
    section.note(experiment + of, _files(experiment, model, dataset))
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


def about_networks(model: str, dataset: str, seeds=None) -> str:
    """What a caption says of the networks `model` on `dataset` (those of `seeds`; None: all): "first layer of stride 2, 10 epochs,
    83.6 % right, n = 1, reduced". Reduced are networks of which one is less accurate than a verdict takes."""
    found = results("networks", model, dataset)
    found = found[found["seed"].isin(found["seed"] if seeds is None else list(seeds))]
    stems = [f"first layer of stride {stem.removeprefix('s')}" for stem in found["stem"].dropna().unique()]
    recipes = results("recipe", model, dataset)
    epochs = [f"{epochs} epochs" for epochs in recipes[recipes["seed"].isin(found["seed"])]["epochs"].unique()]
    reduced = ["reduced"] * bool(found["test_accuracy"].min() < least_accuracy(model, dataset))
    return ", ".join([*stems, *epochs, f"{100 * found['test_accuracy'].mean():.1f} % right", f"n = {len(found)}", *reduced])


def stand_in(shown: str, model: str) -> str:
    """What a section on a second network says where there is none, and the page's own `model` is shown again; else nothing."""
    return (f"There is no other network here than {shown}: this section shows it again, and what its text concludes is of the "
            "network of the published book.") if shown == model else ""


def titles(*datasets: str) -> dict[str, str]:
    """Name → what a page calls a data set, each once, in their order."""
    return {name: re.sub(r"^cifar(?=\d+$)", "CIFAR-", name.split("/")[-1]) for name in datasets}
