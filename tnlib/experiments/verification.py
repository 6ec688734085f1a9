"""Whether published results follow from published weights: some cells evaluated anew, held against the stored bits."""

import random
from dataclasses import dataclass, replace
from functools import cache, partial

import numpy as np

from .batch_norm import batch_norms
from .catalogue import EXPERIMENTS
from .dataset import balanced_indices, part_of
from .datasets import load_dataset
from .evaluation import evaluate, split_arrays
from .experiment import Subject, too_large
from .files import PUBLISHED
from .networks import network
from .strengths import Case
from .sweep import sweep
from .tables import read_answers, read_bits, read_table
from .training import as_trained_on
from .weights import find_weights, load_model, read_card

IMAGES = 500  # class-balanced, and the same for every copy of the data set
TIES = 2e-4  # of the images: logits within rounding of each other may fall either way
# A training run is another in every digit on another machine: an accuracy after one epoch, on these images, in points.
RETRAINED_POINTS = 5.0
NUMBERS = "norm_kept", "relative_error", "parameters", "network_parameters"  # what a table says of kernels beside answers
CHOICES = "channels", "cuts", "ranks"  # and which they are, where they were chosen
DEVIATION = 1e-5  # of these numbers (of parameters, as a share of them): more than decompositions in float32 explain


@dataclass(frozen=True)
class Check:
    """A published cell evaluated anew: its table, key, images, how many of them are answered otherwise, and by how much the
    table's norm kept, relative error and parameters (as a share of them) are off at most; by infinity where other cuts or ranks
    would be chosen. Of a network that is trained from scratch no image is evaluated; and where kernels or choices follow from training
    images of which another copy is here, answers alone are compared."""

    table: str
    key: str
    images: int
    different: int
    deviation: float = 0.0


@dataclass(frozen=True)
class Retrained:
    """A published re-training made anew for one epoch: its table, key, and both accuracies on the same images."""

    table: str
    key: str
    published: float
    found: float

    @property
    def agrees(self) -> bool:
        return abs(100 * (self.found - self.published)) <= RETRAINED_POINTS


def published_tables(**of) -> list:
    """The published tables of results, by name; `of`: only those whose cards say so, such as `model="vanilla"`."""
    return [path for path in sorted((PUBLISHED / "results").glob("*.csv"))
            if not of or of.items() <= read_card(path).items()]


def verify(sample: int, seed: int = 0, data=None, **of) -> list[Check]:
    """Evaluate `sample` published cells anew (all where there are fewer), spread over the tables, and compare the bits,
    and what the table says of their kernels.

    Only on 500 fixed images of each table's first split. Of a re-training the networks that it starts from; paths begin
    and end in weights that are not published: see `verify_paths`. `of` as in `published_tables`. Raises
    `FileNotFoundError` where there is no table or a data set is not there, and `ValueError` for a damaged file, or a
    table of other weights than are published, or of a version, cells or parameters that the experiment no longer has.
    """
    load = cache(partial(load_dataset, root=data))
    tables = published_tables(**of)
    if not tables:
        there = dict.fromkeys("{model} on {dataset}".format(**read_card(path)) for path in published_tables())
        raise FileNotFoundError(f"nothing to verify: there is no table{' of ' * bool(of)}{' on '.join(of.values())} in "
                                f"{PUBLISHED / 'results'}" + f", which has those of {', '.join(there)}" * bool(there))
    chosen: dict = {path: [] for path in tables}
    generator = random.Random(seed)
    places = {path: generator.sample(rows, len(rows)) for path in tables if (rows := _verifiable(path))}
    for path in chosen.keys() - places.keys():
        _Table(path, load)  # of no cells that could be evaluated anew: then of the right weights and parameters at least
    order = generator.sample(list(places), len(places))
    while sum(map(len, chosen.values())) < sample and any(places.values()):  # a cell of each table in turn
        for path in order:
            if (left := places[path]) and sum(map(len, chosen.values())) < sample:
                chosen[path].append(int(left.pop()))
    return [check for path, rows in chosen.items() if rows for check in _Table(path, load).checks(rows)]


def verify_paths(**of) -> list[Check]:
    """Hold both ends of every published path against the last answers of the runs between which it lies, image by image.

    Without a data set. Paths between networks with batch norm are left out: its statistics are estimated anew there.
    Raises `FileNotFoundError` where the runs are not published, and `ValueError` for a damaged file.
    """
    checks = []
    for path in published_tables(experiment="paths", **of):
        card, runs = read_card(path), path.with_name(path.name.replace("paths", "retraining", 1))
        if batch_norms(load_model(card["model"], card["dataset"], card["seed"])):
            continue
        last = read_answers(runs).groupby(["cut", "strength", "arm"], sort=False)["answers"].last()
        for row in read_answers(path).query("position == 0 or position == 1").itertuples():
            run = ("none", 1.0, "continued") if row.position == 0 else (row.cut, row.strength, row.arm)
            checks.append(Check(path.name, f"cut={row.cut} strength={row.strength:g} arm={row.arm} position={row.position:g}",
                                len(row.answers), int((last[run] != row.answers).sum())))
    return checks


def verify_retraining(data=None, **of) -> Retrained | None:
    """Make one published re-training anew for its first epoch; None where none is published, or none that this machine
    could make in minutes: without a GPU those of a deep network. Raises as `verify` does."""
    for path in published_tables(experiment="retraining", **of):
        if (read_table(path)["arm"] == "free").any():  # some arms may be missing
            table = _Table(path, partial(load_dataset, root=data))
            if not too_large(table.subject.model, table.subject.dataset.name):
                return table.retrained()
    return None


def _verifiable(path) -> list[int]:
    """The rows of a table that can be evaluated anew."""
    table, experiment = read_table(path), EXPERIMENTS[read_card(path)["experiment"]]
    there = table["split"] == experiment.splits[0]
    if experiment.runs:
        there &= (table["epoch"] == 0) | (table["arm"] == "narrower") if "epoch" in table else "statistics" in table
    return list(np.flatnonzero(there))


def other_copies(checks: list[Check], data=None) -> list[str]:
    """Of which data sets another copy is here than the tables were made from, and what that leaves, in words."""
    cards = {card["dataset"]: card for card in (read_card(PUBLISHED / "results" / check.table) for check in checks)}
    words = []
    for name, card in cards.items():
        dataset = load_dataset(name, data)
        if dataset.fingerprint != card["fingerprint"]:
            images = len(dataset.test_labels)
            words.append(f"{name}: another copy than the published results saw; {images - dataset.num_differing_test:,} "
                         f"of the {images:,} test images are the same, and only such were evaluated; where kernels or ranks follow from training images, of "
                         "which a few differ too, answers alone were compared")
    return words


class _Table:
    """A published table, with what it was measured on."""

    def __init__(self, path, load):
        self.path, card = path, read_card(path)
        self.table = read_table(path)
        dataset = as_trained_on(load(card["dataset"]), network(card["model"]))
        weights = read_card(find_weights(card["model"], card["dataset"], card["seed"]))["sha256"]
        if card["weights"] != weights:
            raise ValueError(f"{path} was measured on weights {card['weights'][:16]}…, and those published are "
                             f"{weights[:16]}…: measure it again")
        model = load_model(card["model"], card["dataset"], card["seed"])
        self.subject = Subject(card["model"], model, dataset, card["seed"], reduced=card.get("reduced", False))
        self.entry = EXPERIMENTS[card["experiment"]].on(self.subject)
        if card["version"] != self.entry.version:
            raise ValueError(f"{path} is of version {card['version']} of the experiment, which is at {self.entry.version}: "
                             "measure it again")
        if (made := self.entry.parameters(self.subject)) != card["parameters"]:
            other = [name for name in made.keys() | card["parameters"].keys() if made.get(name) != card["parameters"].get(name)]
            raise ValueError(f"{path} was made with other parameters than the experiment has now ({', '.join(sorted(other))}): "
                             "measure it again")
        # Another copy of the data set has other pixels in some training images, and so others follow from them, by a little.
        self.other_training = dataset.fingerprint != card["fingerprint"] and bool(self.entry.train_images or self.entry.runs)
        self.split = self.entry.splits[0]
        labels = split_arrays(dataset, self.split)[1]
        shared = len(labels) - (dataset.num_differing_test if self.split == "test" else 0)
        number = min(IMAGES, shared)
        self.images = balanced_indices(dataset, self.split, number)
        chosen = self.entry.chosen_images(dataset, self.split)
        self.measured = np.arange(len(labels)) if chosen is None else chosen  # what the table's bits are about
        if not np.isin(self.images, self.measured).all():
            raise ValueError(f"{path} is about other images than those that are verified: measure it again")

    def key(self, row: int) -> str:
        return self.entry.key_of(self.split, self.table.loc[row])

    def stored(self, row: int) -> np.ndarray:
        """The published bits of a row, of the images that are verified."""
        labels = {split: len(split_arrays(self.subject.dataset, split)[1]) for split in self.entry.splits}
        _, right = read_bits(self.path, labels | {self.split: len(self.measured)})[self.split]
        places = np.flatnonzero(self.table["split"] == self.split)
        return right[np.searchsorted(places, row)][np.searchsorted(self.measured, self.images)]

    def checks(self, rows: list[int]) -> list[Check]:
        return [Check(self.path.name, self.key(row), *self._different(row, found), self._deviation(row, about))
                for row, found, about in self._evaluated(rows)]

    def _different(self, row, found) -> tuple[int, int]:
        return (0, 0) if found is None else (len(self.images), int((self.stored(row) != found.correct).sum()))

    def _deviation(self, row, about) -> float:
        if self.other_training:
            return 0.0
        published = self.table.loc[row]
        off = [abs(about[name] - published[name]) / max(1, abs(published[name])) for name in NUMBERS if name in about and name in published]
        if any(about[name] != published[name] for name in CHOICES if name in about and name in published):
            return np.inf
        return float(np.nan_to_num(off, nan=np.inf).max(initial=0))

    def _evaluated(self, rows):
        if not self.entry.runs:
            return self._cells(rows)
        return self._starts(rows) if "epoch" in self.table else self._with_statistics(rows)

    def _cells(self, rows):
        wanted, found = {self.key(row): row for row in rows}, set()
        for swept, there in self.entry.parts(self.subject, weighed=False):
            cells = [(labels | {"key": self.entry.key_of(self.split, labels)}, kernels) for _, labels, kernels in there.where(
                lambda labels: self.entry.key_of(self.split, labels) in wanted)]
            found |= {labels["key"] for labels, _ in cells}
            for labels, evaluation in sweep(swept, self.subject.dataset, cells, split=self.split, images=self.images,
                                            progress=False) if cells else ():
                yield wanted[labels["key"]], evaluation, labels
        if gone := wanted.keys() - found:
            raise ValueError(f"{self.path} has cells that the experiment no longer makes ({', '.join(sorted(gone))}): "
                             "measure it again")

    def _starts(self, rows):
        for row in rows:
            module, about = self._prepared(row).start(*self._run(row))
            fresh = self.table.loc[row, "arm"] == "narrower"
            yield row, None if fresh else evaluate(module, self._some()), about

    def _with_statistics(self, rows):
        plan = self.entry.runs(replace(self.subject, dataset=self._some()))
        for row in rows:
            wanted = self.table.loc[row]
            run = self._run(row) if "arm" in self.table else (wanted["cut"], wanted["level"])
            yield row, *next((found, labels) for labels, found in plan.run(*run) if labels["statistics"] == wanted["statistics"])

    def retrained(self) -> Retrained:
        row = int(np.flatnonzero((self.table["arm"] == "free") & (self.table["epoch"] == 1))[0])
        module, _ = self._prepared(row).start(*self._run(row))
        self._prepared(row).training(module, "free")(0)
        return Retrained(self.path.name, self.key(row), float(self.stored(row).mean()), evaluate(module, self._some()).accuracy)

    def _run(self, row):
        its = self.table.loc[row]
        if "budget" in its:
            return its["arm"], its["budget"]
        return None if its["cut"] == "none" else Case(its["cut"], its["strength"], its.get("truncated")), its["arm"]

    def _prepared(self, row):
        return self.entry.runs(self.subject).prepared(*self._run(row), level=self.table.loc[row, "level"])

    def _some(self):
        return part_of(self.subject.dataset, test=self.images)
