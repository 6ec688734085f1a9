"""Measurements: which cells of which networks are evaluated on which images, and what is kept of them.

`measure` fills a `Store` cell by cell and, when all are there, writes <experiment>-<network>.csv (one tidy row a
cell), .bits.safetensors (each image right or wrong, as differences from the untruncated network's) and .json (the card).
"""

import dataclasses
import time
from collections.abc import Callable
from concurrent.futures import as_completed
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from safetensors.numpy import load_file, save_file
from tqdm import tqdm

from .controls import matched_noise, shrink
from .data_aware import data_aware_truncations, patch_moments, with_data_aware_error
from .datasets import Dataset, balanced_sample, load_dataset
from .drops import counts, pack_difference, unpack_difference
from .evaluation import Evaluation, evaluate, split_arrays
from .factorizations import cp_truncations, multi_mode_truncations, ring_truncations, train_truncations
from .files import PUBLISHED, RUNS, atomic_path, sha256_of, write_json
from .networks import conv_kernels
from .provenance import now, provenance
from .replacements import Replacements, joined, labelled
from .retraining import Case, Paths, Retraining
from .store import Store
from .sweep import sweep
from .truncations import cut_truncations, joint_truncations, outcome, show_untruncated
from .weights import find_weights, load_model, read_card, stem

FOLDERS = (PUBLISHED / "results", RUNS / "results")
MOMENT_IMAGES, MOMENT_SEED = 5000, 5  # unaugmented training images behind the data-aware error
QUICK_IMAGES = 500  # on the data set for trying
LONG = 20, 2  # epochs of the one case that is re-trained longer; on the data set for trying
QUICK = (0.1, 0.3, 0.5, 0.8)  # fractions there
SPECTRUM = "spectrum"  # a label that is kept beside the bits, by row and layer, not in the table
UNTRUNCATED = "untruncated"  # the key of the network as it is, in each split
COUNTED = ("images", "correct", "lost", "gained", "accuracy", "accuracy_drop", "loss")


@dataclass(frozen=True)
class Experiment:
    """`.cells(model, moments, seed)`: what is replaced, moments() being Σ by layer; `.key`: what tells its cells apart.

    `.quick`: what is replaced on the data set `shapes`, which is for trying: fewer cells or draws, shorter fits.
    `.weighed`: whether a row also has the data-aware error. Where rows are not truncated networks that are evaluated,
    `.runs(name, model, dataset, seed)` takes the place of `.cells`: something with `.runs()`, `.keys(*run)`,
    `.prepared(*run)` and `.run(*run)` as `Retraining` has them, a run being what is done whole or not at all.
    """

    cells: Callable[..., Replacements] | None
    key: tuple[str, ...]
    splits: tuple[str, ...] = ("test",)
    version: int = 1
    quick: Callable[..., Replacements] | None = None
    weighed: bool = True
    runs: Callable | None = None

    def key_of(self, split: str, labels: dict) -> str:
        return " ".join([split, *(f"{name}={labels[name]}" for name in self.key)])


def _joint(model, moments, seed, levels=None):
    first, *rest = conv_kernels(model)
    return joined([labelled(joint_truncations(model, common=common, levels=levels, layers=layers), layers=name)
                   for common in ("fraction", "error") for name, layers in (("all", None), ("all but the first", rest))
                   if layers is None or layers])


def _retraining(name, model, dataset, seed) -> Retraining:
    if dataset.name == "shapes":
        return Retraining(name, model, dataset, seed, epochs=1, cases=(Case("OUT,KW", 0.5),))
    return Retraining(name, model, dataset, seed)


EXPERIMENTS = {
    "truncation": Experiment(
        lambda model, moments, seed: cut_truncations(model),
        ("layer", "cut", "rank"), ("test", "validation")),
    "noise": Experiment(
        lambda model, moments, seed: matched_noise(cut_truncations(model), 5 if seed == 0 else 1, seed),
        ("layer", "cut", "rank", "draw"),
        quick=lambda model, moments, seed: matched_noise(cut_truncations(model), 1, seed)),
    "shrink": Experiment(
        lambda model, moments, seed: shrink(model),
        ("layer", "norm_kept"), weighed=False),
    "joint": Experiment(
        _joint, ("layers", "cut", "common", "level"), version=2, weighed=False,
        quick=lambda model, moments, seed: _joint(model, moments, seed, QUICK)),
    "data-aware": Experiment(
        lambda model, moments, seed: data_aware_truncations(model, moments()),
        ("layer", "cut", "rank"), weighed=False),  # it has that error from the start
    "multi-mode": Experiment(
        lambda model, moments, seed: multi_mode_truncations(model),
        ("layer", "rank_out", "rank_in"),
        quick=lambda model, moments, seed: multi_mode_truncations(model, QUICK)),
    "train": Experiment(
        lambda model, moments, seed: train_truncations(model),
        ("layer", "rank_1", "rank_2", "rank_3"),
        quick=lambda model, moments, seed: train_truncations(model, QUICK)),
    "cp": Experiment(
        lambda model, moments, seed: cp_truncations(model, seed=seed),
        ("layer", "rank"),
        quick=lambda model, moments, seed: cp_truncations(
            model, (1, 4, 16, 64), seed=seed, starts=1, svd_starts=0, max_iterations=15)),
    "ring": Experiment(
        lambda model, moments, seed: ring_truncations(model, seed=seed),
        ("layer", "rank"),
        quick=lambda model, moments, seed: ring_truncations(model, (1, 2, 4, 8), seed=seed, max_iterations=10)),
    "retraining": Experiment(None, ("cut", "strength", "arm", "epoch"), weighed=False, runs=_retraining),
    "retraining-long": Experiment(
        None, ("cut", "strength", "arm", "epoch"), weighed=False,
        runs=lambda *of: dataclasses.replace(_retraining(*of), epochs=LONG[of[2].name == "shapes"],
                                             cases=(Case("OUT,KW", 0.5),), whole=("continued",), arms=("free",))),
    "paths": Experiment(None, ("cut", "strength", "arm", "position"), weighed=False,
                        runs=lambda *of: Paths(_retraining(*of))),
}


def experiment_called(name: str) -> Experiment:
    """The entry of `EXPERIMENTS`; `ValueError` names what there is."""
    if name not in EXPERIMENTS:
        raise ValueError(f"unknown experiment {name!r}: it takes {', '.join(map(repr, EXPERIMENTS))}")
    return EXPERIMENTS[name]


# ---- measuring ---------------------------------------------------------------------------------------------------

def measure(experiment: str, model: str, dataset: Dataset | str, seed: int = 0, folder=None, executor=None,
            progress: bool = True) -> Path:
    """Measure all cells of `experiment` on a trained network, and return the path of the table.

    What is found is kept cell by cell in runs/results/<name>.sqlite; a call that finds it goes on from there, and ends
    in the same table and bits as one that was never stopped. They go to `folder`, by default runs/results/.
    `executor` as in `sweep`; where an experiment's rows are runs, its workers each take one, with one thread. Raises `ValueError`, `FileNotFoundError` or `StoreError` with what to do.
    """
    entry = experiment_called(experiment)
    dataset = dataset if isinstance(dataset, Dataset) else load_dataset(dataset)
    network = load_model(model, dataset.name, seed)
    name = f"{experiment}-{stem(model, dataset.name, seed)}"
    identity = {"experiment": experiment, "version": entry.version, "model": model, "dataset": dataset.name, "seed": seed,
                "weights": read_card(find_weights(model, dataset.name, seed))["sha256"],
                "fingerprint": dataset.fingerprint, "core_fingerprint": dataset.core_fingerprint}
    if dataset.name == "shapes":
        identity["quick"] = True  # fewer cells than elsewhere, and fewer images behind the data-aware error
    store = Store(RUNS / "results" / f"{name}.sqlite", identity)
    if entry.runs:
        missing, results = _missing_runs(entry, entry.runs(model, network, dataset, seed), network, dataset, store.keys(),
                                         executor, progress)
    else:
        missing, results = _missing_cells(entry, network, dataset, seed, store.keys(), executor, progress)
    if missing:
        call, begun = store.begin({"started": now(), **provenance()}), time.perf_counter()
        for place, found in results:
            store.add(place["key"], place["place"], place["labels"], found.correct, found.loss)
        store.end(call, seconds=round(time.perf_counter() - begun, 1))
    return _export(entry, store, Path(folder or RUNS / "results") / f"{name}.csv", identity, dataset)


def cells_of(entry: Experiment, network, dataset: Dataset, seed: int, weighed: bool = True) -> Replacements:
    """The cells of an experiment on a network; without their data-aware errors, which take long, if not `weighed`."""
    quick = dataset.name == "shapes"

    @cache
    def moments():
        labels = split_arrays(dataset, "train")[1]
        images = balanced_sample(labels, min(QUICK_IMAGES if quick else MOMENT_IMAGES, len(labels)), MOMENT_SEED)
        return patch_moments(network, dataset, images=images)

    cells = (entry.quick if quick and entry.quick else entry.cells)(network, moments, seed)
    return with_data_aware_error(cells, moments()) if weighed and entry.weighed else cells


def _missing_cells(entry, network, dataset, seed, done, executor, progress):
    """How many cells are missing, and an iterator of ({"key", "place", "labels"}, evaluation) that evaluates them."""
    cells = cells_of(entry, network, dataset, seed)
    missing = {split: left for split in entry.splits if (left := _missing(entry, cells, split, done)).count}

    def results():
        for split, left in missing.items():
            for place, found in sweep(network, dataset, left, executor, split=split, progress=progress):
                yield place, found
                if progress and place["key"] == f"{split} {UNTRUNCATED}":
                    show_untruncated(found, split_arrays(dataset, split)[1])

    return sum(left.count for left in missing.values()), results()


def _missing_runs(entry, plan, network, dataset, done, executor, progress):
    """The same of an experiment's runs: each is done whole, and its rows are there when it has ended."""
    (split,) = entry.splits
    keys = {run: [entry.key_of(split, labels) for labels in plan.keys(*run)] for run in plan.runs()}
    places = {key: place for place, key in enumerate((key for of_run in keys.values() for key in of_run), start=1)}
    missing = [run for run, of_run in keys.items() if not done.issuperset(of_run)]

    def results():
        if f"{split} {UNTRUNCATED}" not in done:
            yield {"key": f"{split} {UNTRUNCATED}", "place": 0, "labels": {"split": split}}, evaluate(network, dataset)
        if executor is None:
            ended = (list(plan.run(*run)) for run in missing)
        else:
            ended = (future.result() for future in as_completed(
                [executor.submit(_run_whole, plan.prepared(*run), run) for run in missing]))
        for rows in tqdm(ended, total=len(missing), unit="run", disable=not progress):
            for labels, found in rows:
                key = entry.key_of(split, labels)
                yield {"key": key, "place": places[key], "labels": {"split": split} | labels}, found

    return len(missing), results()


def _run_whole(plan, run):
    torch.set_num_threads(1)  # an executor's workers share the cores
    return list(plan.run(*run))


def _missing(entry: Experiment, cells: Replacements, split: str, done: set[str]) -> Replacements:
    """The untruncated network and then the cells, those whose key is not in `done`; each with its key and its place."""
    untruncated = f"{split} {UNTRUNCATED}"
    first = len(cells) * entry.splits.index(split)

    def generate():
        if untruncated not in done:
            yield {"key": untruncated, "place": first, "labels": {"split": split}}, {}
        for place, labels, kernels in cells.where(lambda labels: entry.key_of(split, labels) not in done):
            key, place = entry.key_of(split, labels), first + 1 + place
            yield {"key": key, "place": place, "labels": {"split": split} | labels}, kernels

    there = sum(key.startswith(f"{split} ") for key in done)
    return Replacements(cells.kernels, len(cells) + 1 - there, generate)


def _export(entry, store, path, identity, dataset) -> Path:
    """Write table, bits and card from the store; each file whole or not at all, the card last."""
    rows, bits, untruncated = [], {}, {}
    for split in entry.splits:
        images = len(split_arrays(dataset, split)[1])
        found = [(key, labels, np.unpackbits(packed, count=images).astype(bool), loss)
                 for key, labels, packed, loss in store.cells() if labels["split"] == split]
        _, _, baseline, loss = next(cell for cell in found if cell[0] == f"{split} {UNTRUNCATED}")
        cells = [cell for cell in found if cell[0] != f"{split} {UNTRUNCATED}"]
        whole = Evaluation(baseline, loss)
        untruncated[split] = outcome(whole, whole)
        right = np.stack([correct for _, _, correct, _ in cells])
        table = pd.DataFrame([{name: value for name, value in labels.items() if name != SPECTRUM}
                              for _, labels, _, _ in cells])
        rows.append(table.assign(**counts(baseline, right), loss=[loss for *_, loss in cells]))
        bits |= {f"{SPECTRUM}.{row}.{layer}": np.array(values, dtype=np.float32)
                 for row, (_, labels, _, _) in enumerate(cells) for layer, values in labels.get(SPECTRUM, {}).items()}
        packed = [pack_difference(correct, baseline) for correct in right]
        bits |= {f"{split}.untruncated": np.packbits(baseline),
                 f"{split}.ends": np.cumsum([len(part) for part in packed], dtype=np.int64),
                 f"{split}.cells": np.frombuffer(b"".join(packed), dtype=np.uint8)}
    table = pd.concat(rows, ignore_index=True)
    what = {name: identity[name] for name in ("model", "dataset", "seed")}
    columns = [*what, *(column for column in table if column not in COUNTED), *COUNTED]
    table = table.assign(**what)[columns]
    with atomic_path(bits_path(path)) as temporary:
        save_file(bits, temporary)
    with atomic_path(path) as temporary:
        table.to_csv(temporary, index=False, float_format="%.9g", lineterminator="\n")
    write_json(path.with_suffix(".json"), identity | {
        "untruncated": untruncated, "rows": len(table), "sha256": sha256_of(path),
        "bits_sha256": sha256_of(bits_path(path)), "calls": store.calls()})
    return path


def bits_path(path: Path) -> Path:
    """Where the per-image bits of a table are."""
    return path.with_suffix(".bits.safetensors")


# ---- reading -----------------------------------------------------------------------------------------------------

def find_table(experiment: str, model: str, dataset: str, seed: int) -> Path | None:
    """The table of a measurement: the published one, else your own below runs/, else None.

    Tables of another version of the experiment, with other cells, do not count.
    """
    version = experiment_called(experiment).version
    for folder in FOLDERS:
        path = folder / f"{experiment}-{stem(model, dataset, seed)}.csv"
        if path.is_file() and read_card(path)["version"] == version:
            return path
    return None


def read_table(path) -> pd.DataFrame:
    """A table of results. Raises `ValueError` when it is not the file that its card describes."""
    path = Path(path)
    _check(path, read_card(path)["sha256"])
    return pd.read_csv(path)


def read_bits(path, images: dict[str, int]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Split → (untruncated [images], cells [rows, images]) of a table, bool; `images`: how many, by split.

    Rows are in the table's order. Raises `ValueError` for a damaged file.
    """
    path = Path(path)
    _check(bits_path(path), read_card(path)["bits_sha256"])
    stored, found = load_file(bits_path(path)), {}
    for split, n in images.items():
        untruncated = np.unpackbits(stored[f"{split}.untruncated"], count=n).astype(bool)
        parts = np.split(stored[f"{split}.cells"], stored[f"{split}.ends"][:-1])
        found[split] = untruncated, np.stack([unpack_difference(part.tobytes(), untruncated) for part in parts])
    return found


def read_spectra(path) -> pd.DataFrame:
    """The singular values that a table's rows have beside them: the table's columns, `layer`, `index` (from 1), `value`.

    One row a value. Raises `ValueError` for a damaged file.
    """
    path = Path(path)
    _check(bits_path(path), read_card(path)["bits_sha256"])
    parts = [pd.DataFrame({"row": int(row), "layer": layer, "index": np.arange(1, len(values) + 1), "value": values})
             for name, values in load_file(bits_path(path)).items() if name.startswith(f"{SPECTRUM}.")
             for _, row, layer in [name.split(".", 2)]]
    return read_table(path).merge(pd.concat(parts), left_index=True, right_on="row").drop(columns="row").reset_index(drop=True)


def _check(path, expected):
    if sha256_of(path) != expected:
        raise ValueError(f"{path} is corrupt or was altered: its sha256 is {sha256_of(path)[:16]}…, its card says "
                         f"{expected[:16]}…; restore it (git checkout) or measure it again")
