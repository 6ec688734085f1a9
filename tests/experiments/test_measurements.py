"""Measurements: the same table whether interrupted or not, and every number from the bits."""

import dataclasses
import hashlib
import json
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing
from importlib.metadata import version

import numpy as np
import pytest
from pandas.testing import assert_frame_equal
from torch import nn

from tnlib.experiments import catalogue, datasets, measurements, store, weights, workers
from tnlib.experiments import experiment as experiment_module, sweep as sweep_module
from tnlib.experiments.controls import shrink
from tnlib.experiments.evaluation import evaluate
from tnlib.experiments.experiment import Experiment, Subject
from tnlib.experiments.measurements import measure, processes
from tnlib.experiments.networks import NETWORKS
from tnlib.experiments.replacements import dense
from tnlib.experiments.tables import bits_path, read_answers, read_bits, read_spectra, read_table
from tnlib.experiments.training import as_trained_on
from tnlib.experiments.truncations import cut_truncations
from tnlib.experiments.weights import read_card


pytestmark = pytest.mark.filterwarnings("ignore:the untruncated network is at chance")


@pytest.mark.parametrize("experiment", ["truncation", "noise", "joint", "data-aware", "multi-mode", "tensor-train", "tensor-ring",
                                        "controls", "gauges"])
def test_every_number_of_the_table_follows_from_its_bits(small, experiment, tmp_path):
    path = measure(experiment, "vanilla", small, progress=False)
    table, card = read_table(path), json.loads(path.with_suffix(".json").read_text())
    assert path == tmp_path / "results" / f"{experiment}-vanilla-small-s0.csv" and card["rows"] == len(table) > 0
    entry = catalogue.EXPERIMENTS[experiment]
    assert list(dict.fromkeys(table.split)) == list(entry.splits)
    images = {"test": 60, "validation": 20}
    bits = read_bits(path, {split: images[split] for split in entry.splits})
    network = weights.load_model("vanilla", "small")
    for split, (untruncated, right) in bits.items():
        rows = table[table.split == split]
        assert np.array_equal(untruncated, evaluate(network, small, split=split).correct)
        assert card["untruncated"][split]["accuracy"] == untruncated.mean()
        assert np.array_equal(rows["correct"], right.sum(1)) and set(rows["images"]) == {images[split]}
        assert np.array_equal(rows["lost"], (untruncated & ~right).sum(1))
        assert np.array_equal(rows["gained"], (~untruncated & right).sum(1))
        assert np.allclose(rows["accuracy_drop"], 100 * (untruncated.mean() - right.mean(1)), atol=1e-7)
    assert not table.duplicated(["split", *entry.key]).any() and not table.isna().any().any()


def test_the_answers_are_those_of_the_truncated_network(small):
    path = measure("truncation", "vanilla", small, progress=False)
    table, (_, right) = read_table(path), read_bits(path, {"test": 60})["test"]
    for (labels, kernels), found, row in zip(cut_truncations(weights.load_model("vanilla", "small")), right,
                                             table[table.split == "test"].itertuples()):
        assert (row.layer, row.cut, row.rank) == (labels["layer"], labels["cut"], labels["rank"])
        network = weights.load_model("vanilla", "small")
        for layer, kernel in kernels.items():
            network.get_submodule(layer).weight.data = dense(kernel)
        plain = evaluate(network, small)
        assert np.array_equal(plain.correct, found) and row.loss == pytest.approx(plain.loss, rel=1e-5)


def test_on_fewer_images_the_card_says_which(small, monkeypatch):
    entry = catalogue.EXPERIMENTS["gauges"]
    monkeypatch.setitem(catalogue.EXPERIMENTS, "gauges", dataclasses.replace(entry, images=30))
    path = measure("gauges", "vanilla", small, progress=False)
    table, chosen = read_table(path), small.subset(30)
    assert set(table["images"]) == {30} and set(table["gauge"]) == {"trained", "balanced", "random"}
    assert json.loads(path.with_suffix(".json").read_text())["test_images"] == {
        "number": 30, "seed": 0, "sha256": hashlib.sha256(chosen.astype("<i8").tobytes()).hexdigest()}
    untruncated, right = read_bits(path, {"test": 30})["test"]
    network = weights.load_model("vanilla", "small")
    assert np.array_equal(untruncated, evaluate(network, small).correct[chosen])
    (_, kernels), *_ = cut_truncations(network, cuts=catalogue.CONTROL_CUTS)
    for layer, kernel in kernels.items():
        network.get_submodule(layer).weight.data = dense(kernel)
    assert np.array_equal(right[0], evaluate(network, small).correct[chosen])


def test_answers_stand_beside_the_rows_that_they_are_of(small):
    path = measure("truncation", "vanilla", small, progress=False)
    table = read_answers(path)
    assert table.drop(columns="answers").equals(read_table(path))
    assert [len(answers) for answers in table["answers"]] == table["images"].tolist()
    assert set(zip(table["split"], table["images"])) == {("test", 60), ("validation", 20)}
    assert [answers.sum() for answers in table["answers"]] == table["correct"].tolist()


def test_a_stopped_measurement_goes_on_and_ends_alike(small, tmp_path, monkeypatch):
    whole = measure("truncation", "vanilla", small, folder=tmp_path / "whole", progress=False)
    (tmp_path / "results" / "truncation-vanilla-small-s0.sqlite").unlink()
    evaluated, swept = [], measurements.sweep

    def stop_after_30(*given, **named):
        for place, found in swept(*given, **named):
            if len(evaluated) == 30:
                raise KeyboardInterrupt
            evaluated.append(place["key"])
            yield place, found

    monkeypatch.setattr(measurements, "sweep", stop_after_30)
    with pytest.raises(KeyboardInterrupt):
        measure("truncation", "vanilla", small, folder=tmp_path / "again", progress=False)
    part = tmp_path / "again" / whole.name
    assert_frame_equal(read_table(part), read_table(whole)[:29], check_dtype=False)
    assert read_card(part)["missing"] == len(read_table(whole)) + 2 - 30
    monkeypatch.setattr(catalogue, "FOLDERS", (tmp_path / "none", tmp_path / "again"))
    assert catalogue.find_table("truncation", "vanilla", "small", 0) is None, "what was cut off is to go on"
    evaluated.append("the stop")
    again = measure("truncation", "vanilla", small, folder=tmp_path / "again", progress=False)
    assert len(evaluated) == len(set(evaluated)) == len(read_table(whole)) + 3, "no cell twice"
    assert catalogue.find_table("truncation", "vanilla", "small", 0) == again and "missing" not in read_card(again)
    first, second = json.loads(again.with_suffix(".json").read_text())["calls"]
    assert "seconds" not in first and second["seconds"] > 0 and first["versions"]["torch"] == version("torch")
    assert again.read_bytes() == whole.read_bytes() and bits_path(again).read_bytes() == bits_path(whole).read_bytes()


@pytest.mark.parametrize("experiment, share", [("truncation", 0.3), ("truncation", 0.7), ("controls", 0.9)])  # in both splits; of several networks
def test_a_published_table_is_completed_with_the_cells_that_it_lacks(small, tmp_path, monkeypatch, experiment, share):
    """By one who has nothing but the published files; in the same files as if all had been found in one call."""
    whole = measure(experiment, "vanilla", small, folder=tmp_path / "whole", progress=False)
    (kept := tmp_path / "results" / f"{whole.stem}.sqlite").unlink()
    monkeypatch.setattr(measurements, "PUBLISHED", tmp_path / "published")
    swept, evaluated = measurements.sweep, []

    def stopped(*given, **named):
        for place, found in swept(*given, **named):
            evaluated.append(place["key"])
            yield place, found
            if len(evaluated) == round(share * len(read_table(whole))):
                raise ValueError("no more time")

    monkeypatch.setattr(measurements, "sweep", stopped)
    with pytest.raises(ValueError, match="no more time"):
        measure(experiment, "vanilla", small, folder=tmp_path / "published" / "results", progress=False)
    kept.unlink()
    found = measure(experiment, "vanilla", small, folder=tmp_path / "completed", progress=False, complete=True)
    assert len(evaluated) == len(set(evaluated)) == len(read_table(whole)) + len(read_table(whole)["split"].unique()), "no cell twice"
    assert found.read_bytes() == whole.read_bytes() and bits_path(found).read_bytes() == bits_path(whole).read_bytes()
    assert len(read_card(found)["calls"]) == 2 and "missing" not in read_card(found)


def test_where_nothing_is_missing_it_is_said(small, tmp_path, capfd):
    first = measure("shrink", "vanilla", small, folder=tmp_path / "first")
    assert "already" not in capfd.readouterr().err
    again = measure("shrink", "vanilla", small, folder=tmp_path / "again")
    assert "shrink-vanilla-small-s0: all of it is there already" in capfd.readouterr().err
    assert again.read_bytes() == first.read_bytes()


def test_a_measurement_that_is_stopped_before_its_first_cell_leaves_no_table(small, tmp_path, monkeypatch):
    def stopped(model, dataset, cells, *given, **named):
        yield from swept(model, dataset, cells, *given, **named) if len(cells) == 1 else stop()

    def stop():
        raise KeyboardInterrupt

    swept = measurements.sweep
    monkeypatch.setattr(measurements, "sweep", stopped)
    with pytest.raises(KeyboardInterrupt):
        measure("truncation", "vanilla", small, folder=tmp_path / "again", progress=False)
    assert not (tmp_path / "again").exists() and (tmp_path / "results" / "truncation-vanilla-small-s0.sqlite").exists()


def test_a_measurement_that_is_stopped_within_a_group_of_cells_ends_alike(small, tmp_path, monkeypatch):
    monkeypatch.setattr(sweep_module, "KEPT_BYTES", 1)
    monkeypatch.setattr(workers, "UNIT_IMAGES", 32)  # of the 60 images
    whole = measure("noise", "vanilla", small, folder=tmp_path / "whole", progress=False)
    (kept := tmp_path / "results" / "noise-vanilla-small-s0.sqlite").unlink()
    added, add_parts = [], store.Store.add_parts

    def stopping(self, *unit):
        add_parts(self, *unit)
        added.append(unit)
        if len(added) == 5:  # the first of the two units of a group
            raise KeyboardInterrupt

    monkeypatch.setattr(store.Store, "add_parts", stopping)
    with pytest.raises(KeyboardInterrupt):
        measure("noise", "vanilla", small, folder=tmp_path / "again", progress=False)
    with closing(sqlite3.connect(kept)) as database:
        assert database.execute("SELECT DISTINCT first, last FROM parts").fetchall() == [(0, 32)]
    again = measure("noise", "vanilla", small, folder=tmp_path / "again", progress=False)
    assert again.read_bytes() == whole.read_bytes() and bits_path(again).read_bytes() == bits_path(whole).read_bytes()
    assert len({(json.dumps(cells), images.start) for cells, images, *_ in added}) == len(added), "no unit twice"


def test_of_two_that_measure_the_same_one_does_and_the_other_waits(small, monkeypatch, capfd):
    at_work, swept, evaluated = threading.Event(), measurements.sweep, []

    def slowly(*given, **named):
        for place, found in swept(*given, **named):
            at_work.set()
            time.sleep(0.01)
            evaluated.append(place["key"])
            yield place, found

    monkeypatch.setattr(measurements, "sweep", slowly)
    with ThreadPoolExecutor(1) as other:
        first = other.submit(measure, "shrink", "vanilla", small, folder=None, progress=False)
        assert at_work.wait(60)
        path = measure("shrink", "vanilla", small)
    assert path == first.result() and len(evaluated) == len(set(evaluated)) == len(read_table(path)) + 1
    assert "shrink-vanilla-small-s0: waits for another process that makes it" in capfd.readouterr().err


def test_a_folder_that_cannot_be_written_is_named(small, tmp_path):
    (tmp_path / "results").write_text("not a folder")
    with pytest.raises(store.StoreError, match=f"results cannot be kept in {tmp_path}/results: .*File exists"):
        measure("shrink", "vanilla", small, progress=False)


def test_a_measurement_that_was_begun_with_other_settings_is_not_gone_on_with(small, monkeypatch):
    entry = catalogue.EXPERIMENTS["noise"]
    measure("noise", "vanilla", small, progress=False)
    monkeypatch.setitem(catalogue.EXPERIMENTS, "noise", dataclasses.replace(entry, settings=lambda its: {"draws": 6, "seed": 0}))
    with pytest.raises(store.StoreError, match='holds results of another measurement:\n.*"draws": 5.*\n.*"draws": 6'):
        measure("noise", "vanilla", small, progress=False)


def test_answers_to_another_number_of_images_are_not_taken_for_these(small, monkeypatch):
    before = (path := measure("shrink", "vanilla", small, progress=False)).read_bytes()
    monkeypatch.setitem(catalogue.EXPERIMENTS, "shrink", dataclasses.replace(catalogue.EXPERIMENTS["shrink"], images=30))
    with pytest.raises(ValueError, match="shrink-vanilla-small-s0.sqlite holds answers to another number of test images than the 30 that"):
        measure("shrink", "vanilla", small, progress=False)
    assert path.read_bytes() == before


def test_the_card_says_with_what_a_table_was_made(small):
    """And that is what the cells are made with."""
    network = weights.load_model("vanilla", "small")
    subject = Subject("vanilla", network, small, 0)
    given = {name: catalogue.EXPERIMENTS[name].parameters(subject) for name in ("noise", "gauges", "cp", "retraining")}
    card = measure("noise", "vanilla", small, progress=False).with_suffix(".json")
    assert json.loads(card.read_text())["parameters"] == given["noise"]
    assert given["noise"] == {"draws": 5, "seed": 0, "train_images": {"number": 180, "seed": 5}}
    assert given["gauges"] == {"seed": 0, "spread": 1.0}
    assert given["cp"].keys() == {"seed", "starts", "svd_starts", "max_iterations", "train_images"}
    recipe = given["retraining"]["recipe"]
    assert (recipe["epochs"], recipe["peak_lr"], recipe["batch_size"]) == (5, 0.02, 128)
    assert given["retraining"]["evaluated_train_images"] == {"number": 180, "seed": 13}
    assert given["retraining"]["seeds"] == {"batches": 500, "reordered": 600, "fresh": 10000, "noise": 0}
    taken = []
    entry = dataclasses.replace(catalogue.EXPERIMENTS["noise"], cells=lambda its, **settings: taken.append(settings) or (
        catalogue.EXPERIMENTS["noise"].cells(its, **settings)))
    entry.parts(subject, weighed=False)
    assert taken == [{"draws": 5, "seed": 0}]


SCRIPT = """
import sys
from pathlib import Path
from tnlib.experiments import measurements, store
from tnlib.experiments.catalogue import EXPERIMENTS
from tnlib.experiments.controls import shrink
from tnlib.experiments.experiment import Experiment
measurements.RUNS, store.TOGETHER_SECONDS = Path(sys.argv[1]), 0.01
EXPERIMENTS["shrink"] = Experiment(lambda its: shrink(its.model, (0.9, 0.5, 0.1)), ("layer", "norm_kept"), weighed=False)
measurements.measure("shrink", "vanilla", "shapes", progress=False)
"""


def test_a_killed_measurement_goes_on_and_ends_alike(tmp_path, monkeypatch):
    monkeypatch.setitem(catalogue.EXPERIMENTS, "shrink", Experiment(
        lambda its: shrink(its.model, (0.9, 0.5, 0.1)), ("layer", "norm_kept"), weighed=False))

    def run(folder):
        monkeypatch.setattr(measurements, "RUNS", tmp_path / folder)
        measure("shrink", "vanilla", "shapes", progress=False)

    run("whole")
    killed = subprocess.Popen([sys.executable, "-c", SCRIPT, str(tmp_path / "killed")], stderr=subprocess.DEVNULL)
    kept = tmp_path / "killed" / "results" / "shrink-vanilla-shapes-s0.sqlite"
    while killed.poll() is None and len(_keys(kept)) < 3:
        time.sleep(0.02)
    killed.send_signal(signal.SIGKILL)
    before = _keys(kept)
    assert killed.wait() == -signal.SIGKILL and 3 <= len(before) < 13, "killed on the way"
    run("killed")
    assert _keys(kept)[:len(before)] == before and len(_keys(kept)) == 13, "what was kept is not made again"
    for name in ("shrink-vanilla-shapes-s0.csv", "shrink-vanilla-shapes-s0.bits.safetensors"):
        assert (tmp_path / "killed" / "results" / name).read_bytes() == (tmp_path / "whole" / "results" / name).read_bytes()


def _keys(path):
    if not path.exists():
        return []
    with sqlite3.connect(path) as database:
        try:
            return database.execute("SELECT rowid, key FROM cells ORDER BY rowid").fetchall()
        except sqlite3.OperationalError:  # not made yet
            return []


def test_altered_results_are_refused(small):
    path = measure("shrink", "vanilla", small, progress=False)
    for altered, reader in ((path, read_table), (bits_path(path), lambda _: read_bits(path, {"test": 60}))):
        content = altered.read_bytes()
        altered.write_bytes(content[:-2] + b"9\n")
        with pytest.raises(ValueError, match=f"{altered} is corrupt or was altered"):
            reader(path)
        altered.unlink()
        with pytest.raises(FileNotFoundError, match=f"{altered} is not there; restore it" if altered != path else str(path)):
            reader(path)
        altered.write_bytes(content)
        reader(path)


def test_for_trying_fewer_images_are_evaluated():
    shapes = datasets.load_dataset("shapes")
    subject = Subject("vanilla", weights.load_model("vanilla", "shapes"), shapes, 0)
    entry = catalogue.EXPERIMENTS["truncation"].on(subject)
    assert np.array_equal(entry.chosen_images(shapes, "test"), shapes.subset(300))
    assert entry.splits == ("test", "validation") and catalogue.EXPERIMENTS["memory"].on(subject).splits == ("train",)
    assert catalogue.EXPERIMENTS["controls"].on(subject).images == 300
    assert catalogue.EXPERIMENTS["retraining"].on(subject).images == 300


def test_what_is_evaluated_on_training_images_says_nothing_of_test_images(tmp_path, monkeypatch):
    monkeypatch.setattr(measurements, "RUNS", tmp_path)
    monkeypatch.setattr(experiment_module, "QUICK_IMAGES", 20)
    few = dataclasses.replace(catalogue.EXPERIMENTS["memory"], cells=lambda its: cut_truncations(its.model, ["conv1"], ["KW"]))
    monkeypatch.setitem(catalogue.EXPERIMENTS, "memory", few)
    path = measure("memory", "vanilla", datasets.load_dataset("shapes"), folder=tmp_path, progress=False)
    assert set(read_table(path)["split"]) == {"train"} and set(read_table(path)["images"]) == {20}
    assert "test_images" not in json.loads(path.with_suffix(".json").read_text())


def test_for_trying_runs_are_on_fewer_images():
    shapes = datasets.load_dataset("shapes")
    subject = Subject("vanilla", weights.load_model("vanilla", "shapes"), shapes, 0)
    few = subject.for_runs().dataset
    assert np.array_equal(few.test_images, shapes.test_images[shapes.subset(300)])  # those of every other experiment
    assert np.array_equal(few.test_labels, shapes.test_labels[shapes.subset(300)])
    assert np.bincount(few.train_labels).tolist() == [75] * 10
    assert np.array_equal(few.validation_images, shapes.validation_images)
    assert len(shapes.train_labels) == 7200 and len(shapes.test_labels) == 2000  # itself untouched
    other = dataclasses.replace(subject, dataset=datasets.Dataset(shapes.test_images, shapes.test_labels))
    assert other.for_runs() is other  # a data set that is not for trying


def test_another_data_set_than_the_networks_own_is_refused(small, tmp_path):
    other = datasets.Dataset(small.test_images, small.test_labels[::-1].copy(), name="small")
    with pytest.raises(ValueError, match="is not the data set that vanilla-small-s0 was trained on"):
        measure("shrink", "vanilla", other)
    assert not (tmp_path / "results").exists()


def test_a_network_of_fewer_images_is_measured_on_those_and_their_labels(small, monkeypatch):
    entry = dataclasses.replace(NETWORKS["vanilla"], images=24, shuffled=True)
    monkeypatch.setitem(NETWORKS, "vanilla", entry)
    path = measure("memory", "vanilla", small, progress=False)
    assert set(read_table(path)["images"]) == {24}
    untruncated, _ = read_bits(path, {"train": 24})["train"]
    own = evaluate(weights.load_model("vanilla", "small"), as_trained_on(small, entry), split="train")
    assert np.array_equal(untruncated, own.correct)


def test_a_table_of_other_weights_is_not_found(small, tmp_path, monkeypatch):
    monkeypatch.setattr(catalogue, "FOLDERS", (tmp_path / "results",))
    path = measure("shrink", "vanilla", small, progress=False)
    assert catalogue.find_table("shrink", "vanilla", "small", 0) == path
    card = weights.find_weights("vanilla", "small").with_suffix(".json")
    card.write_text(json.dumps(json.loads(card.read_text()) | {"sha256": "0" * 64}))  # as if trained again
    assert catalogue.find_table("shrink", "vanilla", "small", 0) is None


def test_an_unknown_experiment_names_what_there_is():
    with pytest.raises(ValueError, match="unknown experiment 'truncate': it takes 'truncation', 'noise'"):
        measure("truncate", "vanilla", "shapes")


def test_shrink_is_the_kernel_times_its_norm(small):
    path = measure("shrink", "vanilla", small, progress=False)
    table = read_table(path)
    assert len(table) == 4 * 20 and table.groupby("layer").size().eq(20).all()
    assert np.allclose(table.relative_error, 1 - table.norm_kept)


def test_an_error_ends_what_worker_processes_are_at():
    with pytest.raises(ValueError, match="a run failed"), processes(1) as executor:
        under_way = executor.submit(time.sleep, 3600)
        while not under_way.running():
            time.sleep(0.01)
        raise ValueError("a run failed")
    assert isinstance(under_way.exception(timeout=60), BrokenProcessPool)


def test_no_worker_processes_are_no_executor():
    with processes(0) as executor:
        assert executor is None


@pytest.mark.parametrize("count", [0, 1])
def test_to_terminate_a_measurement_is_to_interrupt_it(count):
    """So a table of the runs that have ended is left, as at Ctrl-C."""
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt), processes(count):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(10)
    assert signal.getsignal(signal.SIGTERM) == before


WAITING = """
import os, time
from tnlib.experiments.measurements import processes

if __name__ == "__main__":
    with processes(1) as executor:
        print(executor.submit(os.getpid).result(), flush=True)
        executor.submit(time.sleep, 600).result()
"""


def test_workers_end_when_the_measurement_is_terminated(tmp_path):
    (tmp_path / "waiting.py").write_text(WAITING)
    parent = subprocess.Popen([sys.executable, str(tmp_path / "waiting.py")], stdout=subprocess.PIPE,
                              stderr=subprocess.DEVNULL, text=True)
    worker = int(parent.stdout.readline())
    parent.terminate()
    assert parent.wait(60) != 0
    with pytest.raises(ProcessLookupError):  # the parent has waited for its end
        os.kill(worker, 0)


def test_layers_whose_patches_have_no_one_second_moment_are_left_out(small):
    model = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1, padding_mode="reflect"), nn.ReLU(), nn.Conv2d(4, 4, 3, padding=1, groups=2), nn.Conv2d(4, 5, 3))
    assert Subject("own", model, small, 0).moments().keys() == {"3"}


def test_altered_spectra_are_refused(small):
    path = measure("shrink", "vanilla", small, progress=False)
    bits_path(path).write_bytes(bits_path(path).read_bytes()[:-1] + b"9")
    with pytest.raises(ValueError, match=f"{bits_path(path)} is corrupt or was altered"):
        read_spectra(path)
