"""Re-training: how far a case truncates, what its arms start from and may become, and runs that are resumed."""

import copy
import dataclasses
import json
import signal
import sqlite3
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing
from functools import partial

import numpy as np
import pytest
import torch

from tnlib import CUTS, conv_kernels, evaluate, norm_kept, relative_error, singular_values
from tnlib.experiments import catalogue, measurements, retraining, training
from tnlib.experiments.catalogue import EXPERIMENTS
from tnlib.experiments.datapackage import COLUMNS
from tnlib.experiments.datasets import load_dataset
from tnlib.experiments.evaluation import to_unit_floats
from tnlib.experiments.experiment import Experiment, Subject
from tnlib.experiments.files import write_json
from tnlib.experiments.measurements import measure
from tnlib.experiments.paths import Paths
from tnlib.experiments.retraining import Retraining, with_noise, with_rank_kept
from tnlib.experiments.store import StoreError
from tnlib.experiments.replacements import with_kernels
from tnlib.experiments.strengths import CP_FRACTIONS, Case, error_for_accuracy, kernels_at_error, truncated_to
from tnlib.experiments.tables import bits_path, read_spectra, read_table
from tnlib.experiments.weights import find_weights, load_model, read_card

pytestmark = pytest.mark.filterwarnings("ignore:the untruncated network is at chance")

OUT = Case("OUT", 0.5)


@pytest.fixture
def model(small):
    return load_model("vanilla", "small")


@pytest.fixture
def plan(small, model):
    return Retraining("vanilla", model, small, 0, epochs=2, cases=(OUT,), evaluated=40)


# ---- how far a case truncates ------------------------------------------------------------------------------------

def test_the_error_is_the_one_whose_accuracy_is_nearest():
    level, reached = error_for_accuracy(lambda error: 0.9 - 0.8 * error, 0.5, 0.9)
    assert reached and level == pytest.approx(0.5, abs=1e-3)
    step = lambda error: 0.9 if error < 0.3 else 0.4  # of the two ends 0.4 is nearer to 0.5 …
    level, reached = error_for_accuracy(step, 0.5, 0.9)
    assert reached and 0.3 <= level < 0.301
    level, _ = error_for_accuracy(step, 0.7, 0.9)  # … and 0.9 to 0.7
    assert 0.299 < level < 0.3
    assert error_for_accuracy(lambda error: 0.6, 0.5, 0.9) == (0.999, False)


@pytest.mark.parametrize("cut", ["OUT", "IN", "OUT,KW"])
def test_each_layer_has_the_lowest_rank_within_the_error(model, cut):
    kernels = conv_kernels(model)
    factors = kernels_at_error(kernels, cut)(0.45)
    for layer, kernel in kernels.items():
        values = singular_values(kernel.double(), cut)
        errors = [(values[rank:].square().sum() / values.square().sum()).sqrt() for rank in range(len(values) + 1)]
        rank = next(rank for rank, error in enumerate(errors) if error <= 0.45)
        if layer in factors:
            assert factors[layer].factors[0].shape[1] == rank
            assert relative_error(kernel, factors[layer].to_kernel()) == pytest.approx(errors[rank].item(), abs=1e-6)
        else:
            assert rank == len(values)
    assert kernels_at_error(kernels, cut)(0.0) == {}


def test_cp_has_the_lowest_rank_of_its_grid_within_the_error(model):
    kernels = {layer: kernel for layer, kernel in conv_kernels(model).items() if layer in ("conv1", "conv3")}
    at = kernels_at_error(kernels, "CP")
    for layer, fit in at(0.6).items():
        parameters = {max(1, round(fraction * kernels[layer].numel() / sum(kernels[layer].shape))) for fraction in CP_FRACTIONS}
        assert fit.factors[0].shape[1] in parameters and fit.relative_error <= 0.6
        assert fit.num_parameters > at(0.9)[layer].num_parameters and at(0.9)[layer].relative_error > 0.6
    best = at(1e-9)["conv3"]
    assert best.relative_error > 1e-9 and best.num_parameters == pytest.approx(0.64 * kernels["conv3"].numel(), rel=0.05)


def test_labels_of_a_case_are_of_all_convolutions(model, small):
    factors, labels = truncated_to(model, small, OUT)
    truncated, whole = with_kernels(model, factors), conv_kernels(model)
    flat = lambda kernels: torch.cat([kernel.flatten() for kernel in kernels.values()]).double()
    assert labels["norm_kept"] == pytest.approx(norm_kept(flat(whole)[:, None, None, None],
                                                          flat(conv_kernels(truncated))[:, None, None, None]).item(), abs=1e-6)
    assert labels["norm_kept"] ** 2 + labels["relative_error"] ** 2 == pytest.approx(1, abs=1e-6)
    ranks = dict(zip(whole, labels["ranks"].split()))
    for layer, kernel in whole.items():
        if layer in factors:
            assert int(ranks[layer]) == torch.linalg.matrix_rank(conv_kernels(truncated)[layer].flatten(1), rtol=1e-4)
        else:
            assert ranks[layer] == "-" and torch.equal(conv_kernels(truncated)[layer], kernel)
    again, same = truncated_to(model, small, OUT, labels["level"])
    assert again.keys() == factors.keys() and same["ranks"] == labels["ranks"], "a known level is not looked for"


def test_a_layer_can_be_truncated_alone(model, small):
    alone = Case("OUT,KW", 0.5, "conv3")
    factors, labels = truncated_to(model, small, alone, 0.6)
    (factor,), kernel = factors.values(), conv_kernels(model)["conv3"]
    assert list(factors) == ["conv3"] and labels["ranks"] == str(factor.factors[0].shape[1])
    assert labels["relative_error"] == pytest.approx(relative_error(kernel, factor.to_kernel()).item(), abs=1e-6)
    assert labels["parameters"] == factor.num_parameters < kernel.numel() and labels["relative_error"] <= 0.6
    together, _ = truncated_to(model, small, Case("OUT,KW", 0.5), 0.6)
    assert torch.equal(together["conv3"].to_kernel(), factor.to_kernel())
    with pytest.raises(ValueError, match="unknown layer 'conv9': the model's convolutions are 'conv1', 'conv2'"):
        truncated_to(model, small, Case("OUT", 0.5, "conv9"))


def test_together_the_experiments_truncate_at_every_cut_to_both_strengths_and_each_layer_alone(model, small):
    subject = Subject("vanilla", model, small, 0)
    core, cuts, layers = (EXPERIMENTS[name].runs(subject).cases for name in ("retraining", "retraining-cuts", "retraining-layers"))
    assert sorted((case.cut, case.strength) for case in core + cuts) == sorted(
        (cut, strength) for cut in (*(cut.name for cut in CUTS), "CP") for strength in (0.5, 0.1))
    assert [case.layer for case in layers] == [layer for layer in conv_kernels(model) for _ in core]
    assert {dataclasses.replace(case, layer=None) for case in layers} == set(core)
    deep = [EXPERIMENTS[name].runs(dataclasses.replace(subject, model=many_layers())).cases
            for name in ("retraining", "retraining-cuts", "retraining-layers")]
    assert [len(cases) for cases in deep] == [4, 10, 3 * 4] and all(case.cut != "CP" for cases in deep for case in cases)


def many_layers():
    return torch.nn.Sequential(*(torch.nn.Conv2d(3, 3, 3) for _ in range(20)))


def test_a_table_of_layers_truncated_alone_names_them(small, tmp_path, monkeypatch):
    entry = EXPERIMENTS["retraining-layers"]
    monkeypatch.setitem(EXPERIMENTS, "retraining-layers", Experiment(None, entry.key, runs=lambda its: Retraining(
        its.name, its.model, its.dataset, its.seed, epochs=1, cases=(Case("OUT", 0.5, "conv2"), Case("OUT", 0.5, "conv4")),
        whole=("continued",), arms=("free",), evaluated=40)))
    path = measure("retraining-layers", "vanilla", small, folder=tmp_path / "alone", progress=False)
    table = read_table(path)
    assert list(zip(table["truncated"], table["arm"], table["epoch"])) == [
        (layer, arm, epoch) for layer, arm in (("none", "continued"), ("conv2", "free"), ("conv4", "free")) for epoch in (0, 1)]
    assert set(read_spectra(path).groupby("truncated")["layer"].nunique()) == {4}
    assert len(set((tmp_path / "retrained").glob("*conv*-free.safetensors"))) == 2
    assert set(table.columns) <= set(COLUMNS), "and its columns are described"


# ---- what the arms start from, and what they may become ----------------------------------------------------------

def ranks(model, layers):
    return [int(torch.linalg.matrix_rank(conv_kernels(model)[layer].flatten(1), rtol=1e-4)) for layer in layers]


@pytest.mark.parametrize("cut", ["OUT", "OUT,KW", "CP"])
def test_the_rank_is_kept_through_the_factors_and_grows_back_without(model, small, plan, cut):
    factors = kernels_at_error(conv_kernels(model), cut)(0.5)
    before = {layer: factor.to_kernel() for layer, factor in factors.items()}
    kept, free = with_rank_kept(model, factors), with_kernels(model, factors)
    assert len(factors) >= 3
    for layer, kernel in conv_kernels(kept).items():
        torch.testing.assert_close(kernel, conv_kernels(free)[layer], atol=1e-6, rtol=1e-5)
    trained = dict(kept.named_parameters())
    for layer, factor in factors.items():
        found = [trained[f"{layer}.parametrizations.weight.original{k}"] for k in range(len(factor.factors))]
        assert f"{layer}.weight" not in trained
        norms = torch.stack([part.norm(dim=0 if part.shape[1] == factor.factors[0].shape[1] else 1) for part in found])
        torch.testing.assert_close(norms, norms[:1].expand_as(norms), atol=1e-5, rtol=1e-4)  # √S on every side
    for module in (kept, free):
        for epoch in range(2):
            plan.training(module, "free")(epoch)
    for layer, factor in factors.items():
        rank = factor.factors[0].shape[1]
        if cut != "CP":
            spectra = [singular_values(conv_kernels(module)[layer].double(), cut) for module in (kept, free)]
            beyond = [float(values[rank:].norm() / values.norm()) for values in spectra]
            assert beyond[0] < 1e-6 < 1e-5 < beyond[1]
        assert relative_error(before[layer], conv_kernels(kept)[layer]) > 1e-4, "the factors are trained …"
        assert torch.equal(factor.to_kernel(), before[layer]), "… and those of the next arm are not"


def test_noise_has_the_truncations_norm_error_and_overlap(model):
    factors = kernels_at_error(conv_kernels(model), "OUT,KW")(0.5)
    noisy = conv_kernels(with_noise(model, factors, seed=0))
    for layer, kernel in conv_kernels(model).items():
        if layer not in factors:
            assert torch.equal(noisy[layer], kernel)
            continue
        truncated = factors[layer].to_kernel()
        for measure_of in (norm_kept, relative_error):
            assert measure_of(kernel, noisy[layer]).item() == pytest.approx(measure_of(kernel, truncated).item(), abs=1e-5)
        assert relative_error(truncated, noisy[layer]) > 0.1
    assert not torch.equal(noisy["conv4"], conv_kernels(with_noise(model, factors, seed=1))["conv4"])


def test_runs_begin_where_they_should_and_see_the_same_batches(plan, model, small, monkeypatch):
    seen = {}
    for case, arm in plan.runs():
        batches = []
        with monkeypatch.context() as patch:
            original = training.augment
            patch.setattr(training, "augment", lambda images, *rest: batches.append(images.sum().item()) or
                          original(images, *rest))
            rows = list(plan.run(case, arm))
        seen[arm] = batches
        assert [labels["epoch"] for labels, _ in rows] == [0, 1, 2]
        assert [{name: labels[name] for name in key} for key, (labels, _) in zip(plan.keys(case, arm), rows)] == \
            plan.keys(case, arm)
        module, _ = plan.start(case, arm)
        start = evaluate(module, small)
        assert (rows[0][1].correct == start.correct).all() and rows[0][1].loss == pytest.approx(start.loss)
        assert rows[2][0]["train_loss"] != rows[0][0]["train_loss"]
        if arm == "scratch":
            whole = model.state_dict()
            assert torch.equal(module.normalize.mean, whole["normalize.mean"])
            assert not torch.equal(module.conv2.weight, whole["conv2.weight"])
    assert len({tuple(batches) for arm, batches in seen.items() if arm != "reordered"}) == 1
    assert seen["reordered"] != seen["free"] and len(seen) == 6


def test_the_recipe_is_the_networks_own_but_shorter_and_slower(plan):
    assert (plan.recipe.epochs, plan.recipe.peak_lr, plan.recipe.batch_size) == (2, 0.02, 128)
    assert plan.recipe.weight_decay == 5e-4


# ---- the paths ---------------------------------------------------------------------------------------------------

def test_a_path_goes_straight_from_one_end_to_the_other(plan, small, model):
    paths = Paths(plan)
    with pytest.raises(FileNotFoundError, match="continued.safetensors is not there.*measure retraining of this network on this"):
        list(paths.run(OUT, "free"))
    ends = {arm: list(plan.run(case, arm))[-1] for case, arm in ((None, "continued"), (OUT, "free"))}
    rows = list(paths.run(OUT, "free"))
    assert [labels["position"] for labels, _ in rows] == [k / 10 for k in range(11)]
    for row, arm in ((rows[0], "continued"), (rows[-1], "free")):
        assert row[0]["train_loss"] == pytest.approx(ends[arm][0]["train_loss"], rel=1e-4)
        assert (row[1].correct == ends[arm][1].correct).all()
    start, end = (paths._weights(case, arm) for case, arm in ((None, "continued"), (OUT, "free")))
    model.load_state_dict({name: 0.7 * start[name] + 0.3 * end[name] for name in start})
    assert rows[3][1].loss == pytest.approx(evaluate(model, small).loss, rel=1e-4)
    norm = lambda weights: np.sqrt(sum(float(tensor.double().square().sum()) for tensor in weights.values()))
    assert rows[0][0]["distance"] == pytest.approx(norm({name: end[name] - start[name] for name in start}) / norm(start))


def test_ends_that_are_damaged_or_of_other_weights_are_refused(plan, small, tmp_path):
    for case, arm in ((None, "continued"), (OUT, "free")):
        list(plan.run(case, arm))
    path = plan.last_weights(OUT, "free")
    content = path.read_bytes()
    for damaged, words in ((content[:-1] + bytes([content[-1] ^ 1]), "its sha256 is another"), (content[:50], "cannot be read")):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=f"free.safetensors .*{words}"):
            list(Paths(plan).run(OUT, "free"))
    path.write_bytes(content)
    faster = Retraining("vanilla", plan.model, small, 0, epochs=2, cases=(OUT,), evaluated=40)
    faster.recipe = dataclasses.replace(plan.recipe, peak_lr=0.05)
    with pytest.raises(ValueError, match="is where a run ended that was made in another way"):
        faster.read_last_weights(OUT, "free")
    other = Retraining("vanilla", plan.model, small, 0, epochs=2, cases=(OUT,), evaluated=40)
    card = find_weights("vanilla", "small").with_suffix(".json")
    write_json(card, read_card(card) | {"sha256": "0" * 64})
    with pytest.raises(ValueError, match="is where a run ended that began in other weights than 0000000000000000…"):
        other.read_last_weights(OUT, "free")


# ---- measuring: stopped, killed, and by several workers ----------------------------------------------------------

@pytest.fixture
def short(monkeypatch):
    """The experiment with one case and two epochs."""
    entry = EXPERIMENTS["retraining"]
    monkeypatch.setitem(EXPERIMENTS, "retraining", Experiment(None, entry.key, runs=lambda its: Retraining(
        its.name, its.model, its.dataset, its.seed, epochs=2, cases=(OUT,), evaluated=40)))


def test_a_stopped_measurement_goes_on_with_the_run_that_it_was_in(short, small, tmp_path, monkeypatch):
    whole = measure("retraining", "vanilla", small, folder=tmp_path / "whole", progress=False)
    table = read_table(whole)
    assert len(table) == 18 and not table.isna().any().any()
    spectra = read_spectra(whole)
    assert spectra.groupby(["cut", "arm", "epoch", "layer"]).ngroups == 18 * 4
    start = spectra[(spectra["arm"] == "free") & (spectra["epoch"] == 0) & (spectra["layer"] == "conv4")]
    rank = int(start["ranks"].iloc[0].split()[3])
    assert len(start) == 7 and (start["value"] > 1e-4 * start["value"].max()).sum() == rank
    (tmp_path / "results" / "retraining-vanilla-small-s0.sqlite").unlink()
    calls, run = [], Retraining.run

    def stop_in_the_fourth(self, *of):
        calls.append(of)
        for k, row in enumerate(run(self, *of)):
            if len(calls) == 4 and k == 2:
                raise KeyboardInterrupt
            yield row

    monkeypatch.setattr(Retraining, "run", stop_in_the_fourth)
    with pytest.raises(KeyboardInterrupt):
        measure("retraining", "vanilla", small, folder=tmp_path / "again", progress=False)
    path = tmp_path / "again" / "retraining-vanilla-small-s0.csv"
    assert len(read_table(path)) == 9 and set(read_table(path)["arm"]) == {"continued", "reordered", "scratch"}
    assert read_card(path)["missing"] == [f"test cut=OUT strength=0.5 arm={arm} epoch=2" for arm in ("free", "noise", "kept")]
    monkeypatch.setattr(catalogue, "FOLDERS", (tmp_path / "none", tmp_path / "again"))
    assert catalogue.find_table("retraining", "vanilla", "small", 0) is None, "what was cut off is to go on"
    with monkeypatch.context() as elsewhere, pytest.raises(StoreError, match='"training_precision": "bfloat16"'):
        elsewhere.setattr(measurements, "training_precision", lambda recipe: "bfloat16")
        measure("retraining", "vanilla", small, folder=tmp_path / "again", progress=False)
    again = measure("retraining", "vanilla", small, folder=tmp_path / "again", progress=False)
    assert len(calls) == 7 and calls[3] == calls[4], "six runs, of which one was begun twice"
    assert again.read_bytes() == whole.read_bytes() and bits_path(again).read_bytes() == bits_path(whole).read_bytes()
    assert catalogue.find_table("retraining", "vanilla", "small", 0) == again
    assert "missing" not in read_card(again) and "float" in read_card(again)["training_precision"]
    (tmp_path / "results" / "retraining-vanilla-small-s0.sqlite").unlink()
    calls.clear()
    with pytest.raises(KeyboardInterrupt):
        measure("retraining", "vanilla", small, folder=tmp_path / "again", progress=False)
    assert again.read_bytes() == whole.read_bytes() and "missing" not in read_card(again), "a whole table stays"
    again.with_suffix(".json").unlink()                                         # as a kill between the two leaves it
    assert catalogue.find_table("retraining", "vanilla", "small", 0) is None
    (tmp_path / "results" / "retraining-vanilla-small-s0.sqlite").unlink()
    calls.clear()
    with pytest.raises(KeyboardInterrupt):
        measure("retraining", "vanilla", small, folder=tmp_path / "again", progress=False)
    assert len(read_card(again)["missing"]) == 3


def test_a_published_table_is_completed_with_the_runs_that_it_lacks(short, small, tmp_path, monkeypatch):
    """In the same files as if all had been made in one call; and what is there is not made again."""
    whole = measure("retraining", "vanilla", small, folder=tmp_path / "whole", progress=False)
    kept = tmp_path / "results" / "retraining-vanilla-small-s0.sqlite"
    kept.unlink()
    monkeypatch.setattr(measurements, "PUBLISHED", tmp_path / "published")
    with monkeypatch.context() as before:
        before.setattr(Retraining, "runs", lambda self: [(None, "continued"), (OUT, "free")])
        published = measure("retraining", "vanilla", small, folder=tmp_path / "published" / "results", progress=False)
    assert set(read_table(published)["arm"]) == {"continued", "free"}
    complete = partial(measure, "retraining", "vanilla", small, folder=tmp_path / "completed", progress=False, complete=True)
    kept.rename(tmp_path / "kept")
    made, run = [], Retraining.run

    def stop_after_two(self, *of):
        made.append(of)
        if len(made) == 3:
            raise KeyboardInterrupt
        yield from run(self, *of)

    monkeypatch.setattr(Retraining, "run", stop_after_two)
    with pytest.raises(KeyboardInterrupt):
        complete()
    found = complete()
    assert len(made) == 5 and set(made) == {(None, "reordered"), (None, "scratch"), (OUT, "noise"), (OUT, "kept")}
    assert found.read_bytes() == whole.read_bytes() and bits_path(found).read_bytes() == bits_path(whole).read_bytes()
    first, *since = read_card(found)["calls"]
    assert [first] == read_card(published)["calls"] and len(since) == 2 and since[0]["started"] >= first["started"]
    assert complete() == found and len(made) == 5, "nothing is missing any more"


def test_what_cannot_be_completed_is_refused_before_anything_is_made(short, small, tmp_path, monkeypatch):
    monkeypatch.setattr(measurements, "PUBLISHED", tmp_path / "published")
    complete = partial(measure, "retraining", "vanilla", small, progress=False, complete=True)
    with pytest.raises(ValueError, match="retraining-vanilla-small-s0 cannot be completed: it is not published; measure all of it"):
        complete()
    monkeypatch.setattr(Retraining, "runs", lambda self: [(None, "continued"), (None, "scratch")])
    published = measure("retraining", "vanilla", small, folder=tmp_path / "published" / "results", progress=False)
    kept = tmp_path / "results" / "retraining-vanilla-small-s0.sqlite"
    complete()  # these very runs are kept already
    with closing(sqlite3.connect(kept)) as database, database:
        database.execute("UPDATE calls SET content = ?", (json.dumps({"started": "another day"}),))
    with pytest.raises(ValueError, match="retraining-vanilla-small-s0.sqlite holds runs of your own: move it away to complete"):
        complete()
    kept.unlink()
    monkeypatch.setattr(Retraining, "runs", lambda self: [(None, "continued")])
    with pytest.raises(ValueError, match="has a row that this experiment does not make: test cut=none strength=1 arm=scratch epoch=0"):
        complete()
    with monkeypatch.context() as elsewhere:
        elsewhere.setattr(measurements, "training_precision", lambda recipe: "bfloat16")
        with pytest.raises(ValueError, match="cannot be completed here, as the published table is of other training_precision: .*there, bfloat16 here"):
            complete()
    published.write_text(published.read_text().replace("scratch", "Scratch", 1))
    with pytest.raises(ValueError, match="is corrupt or was altered"):
        complete()
    assert not kept.exists(), "nothing is left that a later call would have to be told to move away"


def test_a_run_that_cannot_be_made_does_not_stop_the_others(short, small, tmp_path, monkeypatch):
    start = Retraining.start

    def diverging(self, case, arm):
        if arm == "scratch":
            raise ValueError("training diverged")
        return start(self, case, arm)

    monkeypatch.setattr(Retraining, "start", diverging)
    with pytest.raises(ValueError, match="training diverged"):
        measure("retraining", "vanilla", small, progress=False)
    table = tmp_path / "results" / "retraining-vanilla-small-s0.csv"
    assert set(read_table(table)["arm"]) == {"continued", "reordered", "free", "noise", "kept"}
    assert read_card(table)["missing"] == ["test cut=none strength=1.0 arm=scratch epoch=2"]


def test_a_run_that_cannot_be_prepared_for_a_worker_does_not_stop_the_others(short, small, tmp_path, monkeypatch):
    prepared = Retraining.prepared

    def failing(self, case, arm, level=None):
        if arm == "scratch":
            raise RuntimeError("linalg.eigh: failed to converge")
        return prepared(self, case, arm, level)

    monkeypatch.setattr(Retraining, "prepared", failing)
    with ThreadPoolExecutor(1) as executor, pytest.raises(RuntimeError, match="failed to converge"):
        measure("retraining", "vanilla", small, executor=executor, progress=False)
    table = tmp_path / "results" / "retraining-vanilla-small-s0.csv"
    assert set(read_table(table)["arm"]) == {"continued", "reordered", "free", "noise", "kept"}
    assert read_card(table)["missing"] == ["test cut=none strength=1.0 arm=scratch epoch=2"]


class Breaking(ThreadPoolExecutor):
    """As a pool of processes of which one ends while it is at its second run."""

    runs = 0

    def submit(self, *work):
        self.runs += 1
        if self.runs == 1:
            return super().submit(*work)
        raise BrokenProcessPool("a process was terminated abruptly")


def test_what_was_found_when_a_worker_ends_is_kept_and_it_is_said_how_to_go_on(short, small, tmp_path):
    with Breaking(1) as executor, pytest.raises(RuntimeError, match="was terminated abruptly.*: out of memory.*the same command goes on from there"):
        measure("retraining", "vanilla", small, executor=executor, progress=False)
    table = tmp_path / "results" / "retraining-vanilla-small-s0.csv"
    assert set(read_table(table)["arm"]) == {"continued"} and len(read_card(table)["missing"]) == 5
    measure("retraining", "vanilla", small, progress=False)
    assert "missing" not in read_card(table)


def test_several_workers_end_in_the_same_table(short, small, tmp_path, monkeypatch):
    alone = measure("retraining", "vanilla", small, folder=tmp_path / "alone", progress=False)
    (tmp_path / "results" / "retraining-vanilla-small-s0.sqlite").unlink()
    backwards = lambda futures, **_: (sorted(wait(futures).done, key=id, reverse=True), set())
    monkeypatch.setattr(measurements, "wait", backwards)  # they end in another order than they were begun in
    with ThreadPoolExecutor(1) as executor:
        together = measure("retraining", "vanilla", small, folder=tmp_path / "together", executor=executor, progress=False)
    assert together.read_bytes() == alone.read_bytes() and bits_path(together).read_bytes() == bits_path(alone).read_bytes()


SCRIPT = """
import sys
from pathlib import Path
from tnlib.experiments import measurements, retraining, store, weights
from tnlib.experiments.catalogue import EXPERIMENTS
from tnlib.experiments.experiment import Experiment
from tnlib.experiments.retraining import Retraining
from tnlib.experiments.strengths import Case
measurements.RUNS = retraining.RUNS = Path(sys.argv[1])
store.TOGETHER_SECONDS = 0.01
weights.FOLDERS = (Path(sys.argv[2]),)
EXPERIMENTS["retraining"] = Experiment(None, EXPERIMENTS["retraining"].key, runs=lambda its: Retraining(
    its.name, its.model, its.dataset, its.seed, epochs=2, cases=(Case("OUT", 0.5),), evaluated=40))
measurements.measure("retraining", "vanilla", sys.argv[3], progress=False)
"""


def test_a_killed_measurement_goes_on_from_the_last_finished_run(short, small, tmp_path, monkeypatch):
    data = tmp_path / "small.npz"
    train = np.concatenate([small.train_images, small.validation_images]), np.concatenate(
        [small.train_labels, small.validation_labels])
    np.savez(data, test_images=small.test_images, test_labels=small.test_labels, train_images=train[0], train_labels=train[1])
    card = find_weights("vanilla", "small").with_suffix(".json")  # of a network trained on that file
    write_json(card, read_card(card) | {"core_fingerprint": load_dataset(data).core_fingerprint})

    def run(folder):
        for module in (measurements, retraining):
            monkeypatch.setattr(module, "RUNS", tmp_path / folder)
        measure("retraining", "vanilla", str(data), progress=False)

    run("whole")
    killed = subprocess.Popen([sys.executable, "-c", SCRIPT, str(tmp_path / "killed"), str(tmp_path / "weights"), str(data)],
                              stderr=subprocess.DEVNULL)
    kept = tmp_path / "killed" / "results" / "retraining-vanilla-small-s0.sqlite"
    while killed.poll() is None and len(_keys(kept)) < 1 + 2 * 3:  # the untruncated network and two runs
        time.sleep(0.02)
    killed.send_signal(signal.SIGKILL)
    before = _keys(kept)
    assert killed.wait() == -signal.SIGKILL and 7 <= len(before) < 19, "killed on the way"
    run("killed")
    assert _keys(kept)[:len(before)] == before and len(_keys(kept)) == 19, "what was kept is not made again"
    for name in ("retraining-vanilla-small-s0.csv", "retraining-vanilla-small-s0.bits.safetensors"):
        assert (tmp_path / "killed" / "results" / name).read_bytes() == (tmp_path / "whole" / "results" / name).read_bytes()


def _keys(path):
    if not path.exists():
        return []
    with sqlite3.connect(path) as database:
        try:
            return database.execute("SELECT rowid, key FROM cells ORDER BY rowid").fetchall()
        except sqlite3.OperationalError:  # not made yet
            return []


def test_how_far_a_case_truncates_is_found_on_held_out_images_alone(model, small):
    """Whatever the test images are: here such as the network answers all right, as it does the held-out ones, or none."""
    def level(**changed):
        data = copy.copy(small)
        vars(data).update({"validation_labels": answers(model, small.validation_images)} | changed)
        return truncated_to(model, data, OUT)[1]["level"]

    found, others = level(), 255 - small.test_images
    assert 0 < found == level(test_images=others, test_labels=answers(model, others)) == level(test_labels=(answers(model, small.test_images) + 1) % 3)
    assert found != level(validation_labels=(answers(model, small.validation_images) + 1) % 3)


def answers(model, images):
    with torch.no_grad():
        return model(to_unit_floats(torch.from_numpy(images))).argmax(1).numpy()


def test_fresh_weights_see_images_as_the_network_does(plan, model):
    """The fixture's network has the constants that every network begins with: others tell whether they are taken over."""
    model.normalize.mean.fill_(0.3), model.normalize.std.fill_(0.7)
    fresh = plan.fresh()
    assert torch.equal(fresh.normalize.mean, model.normalize.mean) and torch.equal(fresh.normalize.std, model.normalize.std)
    assert not torch.equal(fresh.conv2.weight, model.conv2.weight)


def test_noise_of_two_cases_has_two_directions(model):
    """Of one seed, too: else what one draw does is counted several times."""
    kernels = conv_kernels(model)

    def direction(cut, error):
        noise = conv_kernels(with_noise(model, kernels_at_error(kernels, cut)(error), 0))["conv4"].double()
        kernel = kernels["conv4"].double()
        rest = noise - (noise * kernel).sum() / kernel.square().sum() * kernel
        return rest / rest.norm()

    for other in (("OUT", 0.7), ("OUT,KW", 0.5)):
        assert abs((direction("OUT", 0.5) * direction(*other)).sum()) < 0.3
