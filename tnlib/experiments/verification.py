"""Whether published results follow from published weights: some cells evaluated anew, held against the stored bits."""

import random
from dataclasses import dataclass

import numpy as np

from .datasets import load_dataset
from .evaluation import split_arrays
from .files import PUBLISHED
from .measurements import EXPERIMENTS, cells_of, read_bits, read_table
from .replacements import Replacements
from .sweep import sweep
from .weights import load_model, read_card

IMAGES = 500  # of the test images, class-balanced, and the same for every copy of the data set
TIES = 2e-4  # of the images: logits within rounding of each other may fall either way


@dataclass(frozen=True)
class Check:
    """A published cell evaluated anew: its table, key, images, and how many of them are answered otherwise."""

    table: str
    key: str
    images: int
    different: int


def published_tables() -> list:
    """The published tables of results, by name."""
    return sorted((PUBLISHED / "results").glob("*.csv"))


def verify(sample: int, seed: int = 0, data=None) -> list[Check]:
    """Evaluate `sample` published cells anew (all where there are fewer), spread over the tables, and compare the bits.

    Only on 500 fixed test images. Raises `FileNotFoundError` where a data set is not there, and `ValueError` for a
    damaged file, or one that was made from other weights or another data set than are published.
    """
    tables = published_tables()
    if not tables:
        raise FileNotFoundError(f"nothing to verify: there is no table in {PUBLISHED / 'results'}")
    chosen: dict = {path: [] for path in tables}
    generator = random.Random(seed)
    places = {path: generator.sample(rows, len(rows)) for path in tables
              if (rows := list(np.flatnonzero(read_table(path)["split"] == "test")))}
    while sum(map(len, chosen.values())) < sample and any(places.values()):  # a cell of each table in turn
        for path, left in places.items():
            if left and sum(map(len, chosen.values())) < sample:
                chosen[path].append(int(left.pop()))
    return [check for path, rows in chosen.items() if rows for check in _checks(path, rows, data)]


def _checks(path, rows, data):
    card = read_card(path)
    entry = EXPERIMENTS[card["experiment"]]
    dataset = load_dataset(card["dataset"], data)
    network = load_model(card["model"], card["dataset"], card["seed"])
    images = dataset.subset(min(IMAGES, len(dataset.test_labels) - dataset.num_differing_test))
    table = read_table(path)
    wanted = {entry.key_of("test", labels): row for row, labels in table.loc[rows].iterrows()}
    cells = cells_of(entry, network, dataset, card["seed"])

    def generate():
        for labels, kernels in cells:
            if (key := entry.key_of("test", labels)) in wanted:
                yield {"key": key}, kernels

    sizes = {split: len(split_arrays(dataset, split)[1]) for split in entry.splits}
    _, right = read_bits(path, sizes)["test"]
    places = np.flatnonzero(table["split"] == "test")
    for labels, found in sweep(network, dataset, Replacements(cells.kernels, len(wanted), generate), images=images,
                               progress=False):
        stored = right[np.searchsorted(places, wanted[labels["key"]])][images]
        yield Check(path.name, labels["key"], len(images), int((stored != found.correct).sum()))
