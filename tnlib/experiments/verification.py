"""Whether published results follow from published weights: some cells evaluated anew, held against the stored bits."""

import random
from dataclasses import dataclass
from functools import cache, partial

import numpy as np

from .datasets import load_dataset
from .evaluation import split_arrays
from .files import PUBLISHED
from .measurements import EXPERIMENTS, cells_of, read_bits, read_table
from .sweep import sweep
from .weights import find_weights, load_model, read_card

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
    damaged file, or a table that was made from other weights than are published, or has cells that are no longer made.
    """
    load = cache(partial(load_dataset, root=data))
    tables = published_tables()
    if not tables:
        raise FileNotFoundError(f"nothing to verify: there is no table in {PUBLISHED / 'results'}")
    chosen: dict = {path: [] for path in tables}
    generator = random.Random(seed)
    places = {path: generator.sample(rows, len(rows)) for path in tables
              if (rows := list(np.flatnonzero(read_table(path)["split"] == "test")))}
    order = generator.sample(list(places), len(places))
    while sum(map(len, chosen.values())) < sample and any(places.values()):  # a cell of each table in turn
        for path in order:
            if (left := places[path]) and sum(map(len, chosen.values())) < sample:
                chosen[path].append(int(left.pop()))
    return [check for path, rows in chosen.items() if rows for check in _checks(path, rows, load)]


def other_copies(checks: list[Check], data=None) -> list[str]:
    """Of which data sets another copy is here than the tables were made from, and what that leaves, in words."""
    cards = {card["dataset"]: card for card in (read_card(PUBLISHED / "results" / check.table) for check in checks)}
    words = []
    for name, card in cards.items():
        dataset = load_dataset(name, data)
        if dataset.fingerprint != card["fingerprint"]:
            images = len(dataset.test_labels)
            words.append(f"{name}: another copy than the published results saw; {images - dataset.num_differing_test:,} "
                         f"of the {images:,} test images are the same, and only such images were used")
    return words


def _checks(path, rows, load):
    card = read_card(path)
    entry = EXPERIMENTS[card["experiment"]]
    dataset = load(card["dataset"])
    weights = read_card(find_weights(card["model"], card["dataset"], card["seed"]))["sha256"]
    if card["weights"] != weights:
        raise ValueError(f"{path} was measured on weights {card['weights'][:16]}…, and those published are "
                         f"{weights[:16]}…: measure it again")
    network = load_model(card["model"], card["dataset"], card["seed"])
    images = dataset.subset(min(IMAGES, len(dataset.test_labels) - dataset.num_differing_test))
    table = read_table(path)
    wanted = {entry.key_of("test", labels): row for row, labels in table.loc[rows].iterrows()}
    there = cells_of(entry, network, dataset, card["seed"], weighed=False)
    cells = [({"key": entry.key_of("test", labels)}, kernels)
             for _, labels, kernels in there.where(lambda labels: entry.key_of("test", labels) in wanted)]
    if gone := wanted.keys() - {labels["key"] for labels, _ in cells}:
        raise ValueError(f"{path} has cells that {card['experiment']!r} no longer makes ({', '.join(sorted(gone))}): "
                         "measure it again")
    sizes = {split: len(split_arrays(dataset, split)[1]) for split in entry.splits}
    _, right = read_bits(path, sizes)["test"]
    places = np.flatnonzero(table["split"] == "test")
    for labels, found in sweep(network, dataset, cells, images=images, progress=False):
        stored = right[np.searchsorted(places, wanted[labels["key"]])][images]
        yield Check(path.name, labels["key"], len(images), int((stored != found.correct).sum()))
