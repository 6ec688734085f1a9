"""Measuring: the cells or runs of an experiment that are missing, kept one by one, and in the end written as a table."""

import multiprocessing
import signal
import sys
import time
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, ProcessPoolExecutor, ThreadPoolExecutor, wait
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import torch
from tqdm import tqdm

from .allocator import keep_freed_memory
from .catalogue import experiment_called
from .compression import Compression
from .dataset import Dataset
from .datasets import load_dataset
from .evaluation import default_device, evaluate, split_arrays
from .experiment import Subject, too_large
from .files import PUBLISHED, RUNS
from .networks import network as network_called
from .provenance import now, provenance
from .replacements import Replacements
from .retraining import Retraining
from .store import Store, StoreError, alone
from .sweep import sweep
from .tables import UNTRUNCATED, has_card, read_cells, write_table
from .training import as_trained_on, training_precision
from .truncations import show_untruncated
from .weights import check_trained_on, find_weights, load_model, read_card, stem


def measure(experiment: str, model: str, dataset: Dataset | str, seed: int = 0, folder=None, executor=None,
            progress: bool = True, complete: bool = False) -> Path:
    """Measure all cells of `experiment` on a trained network, and return the path of the table.

    What is found is kept in runs/results/<name>.sqlite within a second; of a sweep that is a group of cells, up to 64 of one layer, on
    part of the images. When it is killed, under a minute of a sweep is lost, or the run of training that was under way. A call that
    finds something goes on from there, and ends in the same table and bits as one that was never stopped; what was begun on a GPU is
    ended in the same form without one, where a deep network is otherwise measured at fewer cells. They go to `folder`, by default
    runs/results/. While another process measures the same, this one waits, says so, and then goes on from what is there.
    `executor` as in `sweep`; where an experiment's rows are runs, its workers each take one, with one thread. Where Ctrl-C or an error
    stops it, a table of what was found is left (but never in the place of a whole one), whose card says what is `missing`: how many
    cells, or which runs; where one of these fails, the others are made all the same. `complete`: only what the published table lacks is
    made, and its rows are kept. Raises `ValueError`, `FileNotFoundError` or `StoreError` with what to do, and `RuntimeError` where a
    worker of the executor has ended.
    """
    entry = experiment_called(experiment)
    dataset = dataset if isinstance(dataset, Dataset) else load_dataset(dataset)
    dataset = as_trained_on(dataset, network_called(model))
    network = load_model(model, dataset.name, seed)
    card = read_card(find_weights(model, dataset.name, seed))
    check_trained_on(dataset, card)
    name = f"{experiment}-{stem(model, dataset.name, seed)}"
    begun = Store.begun(kept := RUNS / "results" / f"{name}.sqlite")
    if complete and begun is None:
        begun = read_card(_published_table(name))
    whole = begun is not None and "reduced" not in begun  # what a GPU began is ended in the same form wherever
    reduced = entry.reducible and too_large(network, dataset.name) and not whole
    subject = Subject(model, network, dataset, seed, reduced)
    if executor is None:
        network.to(default_device())
    if entry.runs:
        subject = subject.for_runs()
    entry = entry.on(subject)
    identity = {"experiment": experiment, "version": entry.version, "model": model, "dataset": dataset.name, "seed": seed,
                "weights": card["sha256"],
                "fingerprint": dataset.fingerprint, "core_fingerprint": dataset.core_fingerprint}
    if dataset.name == "shapes":
        # Fewer cells than elsewhere, and fewer images (None: all), also behind the data-aware error.
        identity["quick"] = {"images": entry.images}
    if subject.reduced:
        identity["reduced"] = True  # fewer cells than on a machine with a GPU
    if entry.runs and isinstance(plan := entry.runs(subject), (Retraining, Compression)):
        identity["training_precision"] = training_precision(plan.recipe)  # of all arms one: they are compared
    identity["parameters"] = entry.parameters(subject)
    path = Path(folder or RUNS / "results") / f"{name}.csv"
    published = _published(entry, subject, name, identity) if complete else None
    with alone(kept, progress):
        store = Store(kept, identity)
        if published:
            _take_over(store, *published)
        missing, results = (_missing_runs if entry.runs else _missing_cells)(entry, subject, store, executor, progress)
        if progress and not missing:
            tqdm.write(f"{name}: all of it is there already", file=sys.stderr)
        if missing:
            call, begun = store.begin({"started": now(), **_circumstances(entry, executor)}), time.perf_counter()
            in_all = missing + len(store.places())
            try:
                with store.adding() as add:
                    for together in results:
                        add(*((place["key"], place["place"], place["labels"], found.correct, found.loss)
                              for place, found in together))
            except StoreError:
                raise
            except (KeyboardInterrupt, FileNotFoundError, ValueError, RuntimeError) as error:
                part, done = not has_card(path) or "missing" in read_card(path), store.places()
                lacking = _lacking(entry, subject, done) if entry.runs else in_all - len(done)
                if part and lacking and any(UNTRUNCATED not in key for key in done):
                    write_table(entry, store, path, identity | {"missing": lacking}, dataset)
                if isinstance(error, BrokenExecutor):
                    raise RuntimeError(f"a worker of the executor has ended ({error}): out of memory? What was found until then is kept; the "
                                       "same command goes on from there") from None
                raise
            store.end(call, seconds=round(time.perf_counter() - begun, 1))
        return write_table(entry, store, path, identity, dataset)


def _published(entry, subject, name, identity):
    """The cells and the calls that the published table of this measurement has, as a store takes them.

    Raises `ValueError` where there is none, it was made in another way, or holds other rows.
    """
    card = read_card(path := _published_table(name))
    if other := [what for what in {**identity, "reduced": None} if card.get(what) != identity.get(what)]:
        raise ValueError(f"{name} cannot be completed here, as the published table is of other " + "; ".join(
            f"{what}: {card.get(what)} there, {identity.get(what)} here" for what in other))
    values = lambda labels: tuple(labels.get(name) for name in ("split", *entry.key))  # 1 in a table may be 1.0 in a key
    known = {values(labels): (_key(entry, labels), place) for place, labels in enumerate(_rows(entry, subject))}
    rows = read_cells(path)
    if unknown := [labels for labels, *_ in rows if values(labels) not in known]:
        raise ValueError(f"{path} has a row that this experiment does not make: {_key(entry, unknown[0])}")
    return [(*known[values(row[0])], *row) for row in rows], card["calls"]


def _published_table(name):
    """Where the published table of this name is; `ValueError` where there is none."""
    if not has_card(path := PUBLISHED / "results" / f"{name}.csv"):
        raise ValueError(f"{name} cannot be completed: it is not published; measure all of it")
    return path


def _rows(entry, subject):
    """The labels of all rows as far as they tell them apart, in the order of the table; of the untruncated network the split alone."""
    for split in entry.splits:
        yield {"split": split}
        if entry.runs:
            plan = entry.runs(subject)
            yield from ({"split": split} | labels for run in plan.runs() for labels in plan.keys(*run))
        else:
            yield from ({"split": split} | labels for _, cells in entry.parts(subject, weighed=False) for labels, _ in cells)


def _key(entry, labels) -> str:
    split = labels["split"]
    return entry.key_of(split, labels) if len(labels) > 1 else f"{split} {UNTRUNCATED}"


def _take_over(store, cells, calls):
    """Put published cells into the store, unless that was done before. Raises `ValueError` where it holds runs of one's own."""
    begun = store.calls()
    if begun[:len(calls)] == calls:
        return
    if begun or store.places():
        raise ValueError(f"{store.path} holds runs of your own: move it away to complete the published table")
    store.take_over(cells, calls)


def _circumstances(entry, executor) -> dict:
    """What a card says of the machine. An executor's workers have one thread each; they sweep on the CPU, and train on what
    there is."""
    about = provenance(default_device() if executor is None or entry.runs else "cpu")
    if executor is not None:
        about |= {"threads": 1, "workers": getattr(executor, "_max_workers", None)}
    return about


@contextmanager
def processes(count: int):
    """An executor of so many processes for `measure`, which keep freed memory; None for 0. What they are at ends when an error
    leaves the block: a run takes an hour, and the error would be seen only then. Told to terminate, this process stops as at
    Ctrl-C."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        if not count:
            yield None
            return
        # Fresh processes: a forked one would wait for threads that it does not have.
        with ProcessPoolExecutor(count, multiprocessing.get_context("spawn"), keep_freed_memory) as executor:
            try:
                yield executor
            except BaseException:
                for process in multiprocessing.active_children():
                    process.terminate()
                raise
    finally:
        signal.signal(signal.SIGTERM, before)


def _missing_cells(entry, subject, store, executor, progress):
    """How many cells are missing, and an iterator that evaluates them: lists of ({"key", "place", "labels"}, evaluation),
    of what is kept together."""
    parts, done, jobs, place = entry.parts(subject), store.places(), [], 0
    for split in entry.splits:
        key = f"{split} {UNTRUNCATED}"
        if key not in done:
            whole = [({"key": key, "place": place, "labels": {"split": split}}, {})]
            jobs.append((split, subject.model, Replacements({}, 1, lambda whole=whole: iter(whole))))
        place += 1
        for swept, cells in parts:
            if (left := _missing(entry, cells, split, done, place)).count:
                jobs.append((split, swept, left))
            place += len(cells)

    def results():
        for split, swept, left in jobs:
            images = entry.chosen_images(subject.dataset, split)
            for place, found in sweep(swept, subject.dataset, left, executor, split=split, images=images,
                                      progress=progress, units=store):
                yield [(place, found)]
                if progress and place["key"] == f"{split} {UNTRUNCATED}":
                    labels = split_arrays(subject.dataset, split)[1]
                    show_untruncated(found, labels if images is None else labels[images])

    return sum(left.count for _, _, left in jobs), results()


def _missing(entry, cells: Replacements, split: str, done: dict[str, int], first: int) -> Replacements:
    """The cells whose key is not in `done`, each with its key and its place, which counts from `first`."""
    def generate():
        for place, labels, kernels in cells.where(lambda labels: entry.key_of(split, labels) not in done):
            yield {"key": entry.key_of(split, labels), "place": first + place, "labels": {"split": split} | labels}, kernels

    there = sum(first <= place < first + len(cells) for place in done.values())
    return Replacements(cells.kernels, len(cells) - there, generate)


def _missing_runs(entry, subject, store, executor, progress):
    """The same of an experiment's runs: each is done whole, and its rows are there when it has ended."""
    (split,), plan, done = entry.splits, entry.runs(subject), store.places()
    keys = _run_keys(entry, plan)
    places = {key: place for place, key in enumerate((key for of_run in keys.values() for key in of_run), start=1)}
    missing = [run for run, of_run in keys.items() if not done.keys() >= set(of_run)]

    def results():
        if f"{split} {UNTRUNCATED}" not in done:
            whole = evaluate(subject.model, subject.dataset)
            yield [({"key": f"{split} {UNTRUNCATED}", "place": 0, "labels": {"split": split}}, whole)]
        failed = []
        for made in tqdm(_made(plan, missing, executor), total=len(missing), unit="run", disable=not progress):
            try:
                rows = made()
            except (FileNotFoundError, ValueError, RuntimeError) as error:  # the others are made all the same
                failed.append(error)
                continue
            keyed = [(entry.key_of(split, labels), labels, found) for labels, found in rows]
            yield [({"key": key, "place": places[key], "labels": {"split": split} | labels}, found)
                   for key, labels, found in keyed]
        if failed:
            raise failed[0]

    return len(missing), results()


def _made(plan, runs, executor):
    """For each run that has ended, as it ends, a function that returns its rows or raises what it raised."""
    if executor is None:
        for run in runs:
            yield partial(_run_whole, plan, run, None)
        return
    preparing = ThreadPoolExecutor(1)  # one run after another; it takes minutes, and meanwhile those that are prepared are made
    prepared = {preparing.submit(plan.prepared, *run): run for run in runs}
    waiting = set(prepared)
    try:
        while waiting:
            ended, waiting = wait(waiting, return_when=FIRST_COMPLETED)
            for future in ended:
                if future not in prepared or future.exception() is not None:
                    yield future.result
                    continue
                try:
                    waiting.add(executor.submit(_run_whole, future.result(), prepared[future], 1))
                except RuntimeError as error:  # a broken pool takes no more; those under way may end yet
                    yield partial(_raise, error)
    finally:
        preparing.shutdown(wait=False, cancel_futures=True)
        for future in waiting:
            future.cancel()


def _raise(error):
    raise error


def _run_keys(entry, plan) -> dict[tuple, list[str]]:
    """The keys of the rows of every run."""
    (split,) = entry.splits
    return {run: [entry.key_of(split, labels) for labels in plan.keys(*run)] for run in plan.runs()}


def _lacking(entry, subject, done) -> list[str]:
    """The last rows of the runs that are not there, where at least one is."""
    keys = _run_keys(entry, entry.runs(subject)).values()
    lacking = [of_run[-1] for of_run in keys if not done.keys() >= set(of_run)]
    return lacking if len(lacking) < len(keys) else []


def _run_whole(plan, run, threads):
    if threads:
        torch.set_num_threads(threads)  # an executor's workers share the cores
    return list(plan.run(*run))


