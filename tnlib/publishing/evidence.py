"""What is published of one network on one data set, as the tables that the claims' tests take."""

import functools
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from ..experiments.catalogue import experiment_called, listed_cases, not_measured, rank_fractions
from ..experiments.drops import harmless_error_ratios, one_points
from ..experiments.files import PUBLISHED, VALUES
from ..experiments.kernel_spectra import network_spectra, summary
from ..experiments.networks import conv_kernels
from ..experiments.replacements import chosen_ranks
from ..experiments.tables import read_table
from ..experiments.weights import load_model, published_networks, read_card, stem
from ..tensors.cuts import distinct_cuts
from .claim_tests import missing_cases
from .depth import places

COUNTED_SEEDS = {"vanilla": range(5)}  # seeds that were agreed on (an amendment to the claims); of other networks all count


class Incomplete(FileNotFoundError):
    """Not all is there that a test needs; `.found`: what there is, in the form in which all would be."""

    def __init__(self, message, found):
        super().__init__(message)
        self.found = found


def once(method):
    """Of the same arguments, compute it once for each pair."""
    def kept(self, *arguments):
        key = method.__name__, *arguments
        if key not in self._found:
            self._found[key] = method(self, *arguments)
        return self._found[key]

    return functools.update_wrapper(kept, method)


class Pair:
    """The published tables of one network on one data set, each read once.

    Every table is (frame, names of its files); `FileNotFoundError` says what is not there and which command makes it.
    """

    def __init__(self, model: str, dataset: str):
        self.model, self.dataset = model, dataset
        self._found = {}

    @functools.cached_property
    def accuracies(self) -> dict[int, float]:
        """Seed → test accuracy of the published networks that count."""
        return _accuracies(self.model, self.dataset)

    @once
    def table(self, experiment: str, model: str | None = None) -> tuple[pd.DataFrame, list[str]]:
        """The test rows of an experiment, of all networks on which it is published."""
        return _published(experiment, model or self.model, self.dataset)

    @once
    def cells(self, experiment: str, model: str | None = None, spatial: bool = True) -> tuple[pd.DataFrame, list[str]]:
        """The rows of "truncation" or "noise" of the 3×3 layers or, if not `spatial`, of all layers.

        Of every network all cells, or `Incomplete`.
        """
        model = model or self.model
        (frame, names), shapes = self.table(experiment, model), _shapes(model, self.dataset, spatial)
        most = {(layer, cut.name): cut.max_rank(shape) for layer, shape in shapes.items() for cut in distinct_cuts(shape)}
        fractions = rank_fractions(_network(model, self.dataset))
        wanted = {(*place, rank) for place, ranks in chosen_ranks(fractions, most).items() for rank in ranks}
        found = frame[frame["layer"].isin(shapes)], names
        for seed, rows in frame.groupby("seed"):
            there = set(rows[["layer", "cut", "rank"]].itertuples(index=False, name=None))
            if lacking := wanted - there:
                reduced = read_card(path_of(experiment, model, self.dataset, seed)).get("reduced")
                what = (f"{len(lacking)} of {len(wanted)} cells are not there, {sorted(lacking)[0]} for one"
                        + " (without a GPU fewer are measured)" * bool(reduced))
                raise Incomplete(str(_missing(experiment, model, self.dataset, seed, what)), found)
        return found

    @once
    def points(self, experiment: str = "truncation", model: str | None = None) -> tuple[pd.DataFrame, list[str]]:
        """`one_points` by seed, layer and cut (and draw)."""
        by = ("seed", "layer", "cut", *(["draw"] if experiment == "noise" else []))
        return _made(lambda frame: one_points(frame, by), lambda: self.cells(experiment, model))

    @once
    def points_of_all_layers(self) -> tuple[pd.DataFrame, list[str]]:
        """`one_points` of all layers, 1×1 among them, by seed, layer and cut, with the kernel's place in the network."""
        return _made(lambda frame: one_points(frame, ("seed", "layer", "cut")).merge(
                         places(_kernels(self.model, self.dataset)), on="layer"),
                     lambda: self.cells("truncation", None, False))

    @once
    def shrunk(self) -> tuple[pd.DataFrame, list[str]]:
        """`one_points` of the shrunk 3×3 kernels, by seed and layer."""
        frame, names = self.table("shrink")
        frame = frame[frame["layer"].isin(_shapes(self.model, self.dataset, True))]
        return one_points(frame.assign(rank=frame["norm_kept"], max_rank=1), ("seed", "layer")), names

    @once
    def ratios(self) -> tuple[pd.DataFrame, list[str]]:
        """`harmless_error_ratios` of truncations and matched noise."""
        return _made(harmless_error_ratios, lambda: self.cells("truncation"), lambda: self.cells("noise"))

    @once
    def deficits(self, model: str | None = None) -> tuple[pd.DataFrame, list[str]]:
        """`summary` of the spectra of the published weights' 3×3 kernels, in the gauges that claim 2 asks for."""
        model = model or self.model
        if not (seeds := _accuracies(model, self.dataset)):
            raise _no_weights(model, self.dataset)
        spectra = network_spectra(model, self.dataset, shuffled=False, layers=_shapes(model, self.dataset, True), trained=False, kept=VALUES)
        return summary(spectra[spectra["seed"].isin(list(seeds))]), [f"{stem(model, self.dataset, seed)}.safetensors" for seed in seeds]

    def retrained(self, epochs: int, paths: bool = False):
        """The rows of "retraining" and, if asked, of "paths" of the networks that have both, up to the epoch needed."""
        runs, names = self.table("retraining")
        along = None
        if paths:
            along, others = self.table("paths")
            both = set(runs["seed"]) & set(along["seed"])
            if not both:
                raise _missing("paths", self.model, self.dataset, int(runs["seed"].min()), "none beside the re-training")
            runs, along, names = runs[runs["seed"].isin(both)], along[along["seed"].isin(both)], names + others
        cases = listed_cases(_network(self.model, self.dataset))
        if lacking := missing_cases(runs, along, epochs, cases):
            seed = min(lacking)
            raise _missing("retraining", self.model, self.dataset, seed, f"seed {seed}: {'; '.join(lacking[seed][:3])}")
        return (runs, along), names

    @once
    def compressed(self, budgets: tuple[float, ...]) -> tuple[pd.DataFrame, list[str]]:
        """The rows of "compression", of each network those that claim 5 asks for among them; those of whole networks where some are not."""
        if self.accuracies and (why := not_measured("compression", _network(self.model, self.dataset))):
            raise FileNotFoundError(f"compression of {self.model} on {self.dataset}: {why}")
        rows, names = self.table("compression")
        wanted = {(arm, budget) for arm in ("map", "fraction", "narrower") for budget in budgets}
        last = rows[rows["epoch"] == rows["epoch"].max()]
        lacking = {seed: wanted - set(last.loc[last["seed"] == seed, ["arm", "budget"]].itertuples(index=False, name=None))
                   for seed in rows["seed"].unique()}
        lacking = {int(seed): of for seed, of in lacking.items() if of}
        if lacking:
            seed, (arm, budget) = min(lacking), min(lacking[min(lacking)])
            missing = _missing("compression", self.model, self.dataset, seed,
                               f"seed {seed}: {len(lacking[seed])} of {len(wanted)} networks are not there, {arm} at {budget:g} for one")
            whole = rows[~rows["seed"].isin(lacking)]
            raise Incomplete(str(missing), (whole, names)) if len(whole) else missing
        return rows, names


def _made(make, *reads):
    """(`make(*frames)`, names) of what `reads` give; where some is incomplete, `Incomplete` with the same of what there is."""
    frames, names, missing = [], [], []
    for read in reads:
        try:
            frame, of = read()
        except Incomplete as error:
            frame, of = error.found
            missing.append(str(error))
        frames.append(frame)
        names = names + of
    found = make(*frames), names
    if missing:
        raise Incomplete("; ".join(missing), found)
    return found


def _accuracies(model, dataset):
    cards = [card for card in published_networks() if (card["model"], card["dataset"]) == (model, dataset)
             and card["seed"] in COUNTED_SEEDS.get(model, [card["seed"]])]
    return {card["seed"]: card["test_accuracy"] for card in sorted(cards, key=lambda card: card["seed"])}


def path_of(experiment, model, dataset, seed) -> Path:
    """Where the published table of an experiment is, or would be."""
    return PUBLISHED / "results" / f"{experiment}-{stem(model, dataset, seed)}.csv"


def _published(experiment, model, dataset):
    if not (seeds := _accuracies(model, dataset)):
        raise _no_weights(model, dataset)
    frames, names = [], []
    for seed in seeds:
        path = path_of(experiment, model, dataset, seed)
        if not path.is_file() or read_card(path)["version"] != experiment_called(experiment).version:
            continue
        weights = read_card(PUBLISHED / "weights" / f"{stem(model, dataset, seed)}.safetensors")["sha256"]
        if read_card(path)["weights"] != weights:
            raise ValueError(f"{path.name} was measured on other weights than are published: measure it again")
        frame = read_table(path).query("split == 'test'")
        frames.append(frame.assign(place=np.arange(len(frame))))
        names.append(path.name)
    if not frames:
        raise _missing(experiment, model, dataset, next(iter(seeds)), "no published results")
    return pd.concat(frames, ignore_index=True), names


@functools.cache
def _network(model, dataset) -> torch.nn.Module:
    """The first of the published networks: layers and shapes are the same for all seeds."""
    return load_model(model, dataset, next(iter(_accuracies(model, dataset))))


def _kernels(model, dataset) -> dict[str, torch.Tensor]:
    """Layer → the first network's kernel, in forward order."""
    return conv_kernels(_network(model, dataset))


def _shapes(model, dataset, spatial=False) -> dict[str, tuple]:
    """Layer → the kernel's shape (OUT, IN, KH, KW); `spatial`: of 3×3 kernels."""
    return {layer: tuple(kernel.shape) for layer, kernel in _kernels(model, dataset).items()
            if not spatial or kernel.shape[2:] == (3, 3)}


def _no_weights(model, dataset) -> FileNotFoundError:
    return FileNotFoundError(f"no published weights of {model} on {dataset}; train them: "
                             f"`tnlib train {model} {dataset} --seed 0 --publish`")


def _missing(experiment, model, dataset, seed, what) -> FileNotFoundError:
    calls = ["retraining", "paths"] if experiment == "paths" else [experiment]  # paths lie between runs of the same machine
    commands = ", then ".join(f"`tnlib measure {call} {model} {dataset} --seed {seed} --publish`" for call in calls)
    return FileNotFoundError(f"{experiment} of {model} on {dataset}: {what}; measure them{' on one machine' * (len(calls) > 1)}: {commands}")
