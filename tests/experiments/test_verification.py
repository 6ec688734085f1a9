"""Published results are held against the weights: what does not follow from them is found."""

import copy
import dataclasses
import json

import numpy as np
import pandas as pd
import pytest
from safetensors.numpy import load_file, save_file

from tnlib.experiments import verification
from tnlib.experiments.controls import shrink
from tnlib.experiments.experiment import Experiment
from tnlib.experiments.files import sha256_of
from tnlib.experiments.measurements import measure
from tnlib.experiments.paths import Paths
from tnlib.experiments.retraining import Retraining
from tnlib.experiments.strengths import Case
from tnlib.experiments.tables import bits_path, read_bits, read_table as results_table

pytestmark = pytest.mark.filterwarnings("ignore:the untruncated network is at chance")


@pytest.fixture
def tables(small, tmp_path, monkeypatch):
    """Two published tables of the tiny network."""
    monkeypatch.setattr(verification, "PUBLISHED", tmp_path)
    monkeypatch.setattr(verification, "load_dataset", lambda name, root=None: small)
    return [measure(experiment, "vanilla", small, progress=False) for experiment in ("shrink", "truncation")]


def test_a_sample_is_spread_over_the_tables_and_agrees(tables):
    checks = verification.verify(7)
    assert sorted(sum(check.table == path.name for check in checks) for path in tables) == [3, 4]
    assert len({(check.table, check.key) for check in checks}) == 7
    assert all(check.different == 0 and check.images == 60 and check.deviation < 1e-8 for check in checks)
    assert {check.key for check in verification.verify(7, seed=1)} != {check.key for check in checks}


def test_more_cells_than_there_are_is_all_of_them(tables):
    rows = sum((read_bits(path, {"test": 60})["test"][1]).shape[0] for path in tables)
    assert len(verification.verify(10_000)) == rows


def test_only_the_network_that_is_named_is_verified(tables):
    assert len(verification.verify(4, model="vanilla", dataset="small")) == 4
    with pytest.raises(FileNotFoundError, match="there is no table of resnet50 on small in "):
        verification.verify(4, model="resnet50", dataset="small")


def test_bits_that_do_not_follow_from_the_weights_are_found(tables):
    """Another untruncated network: every cell's bits, stored as differences from it, are turned over with it."""
    path = tables[0]
    stored = load_file(bits_path(path))
    untruncated = np.unpackbits(stored["test.untruncated"], count=60)
    untruncated[:9] ^= 1
    save_file(stored | {"test.untruncated": np.packbits(untruncated)}, bits_path(path))
    card = json.loads(path.with_suffix(".json").read_text())
    path.with_suffix(".json").write_text(json.dumps(card | {"bits_sha256": sha256_of(bits_path(path))}))
    checks = verification.verify(4)
    assert [check.different for check in checks if check.table == path.name] == [9, 9]
    assert [check.different for check in checks if check.table != path.name] == [0, 0]


@pytest.mark.parametrize("column, off", [("norm_kept", 0.01), ("norm_kept", np.nan), ("relative_error", 0.01), ("parameters", 1)])
def test_numbers_that_do_not_follow_from_the_weights_are_found(tables, column, off):
    path = tables[1]
    table = pd.read_csv(path)
    table[column] += off
    table.to_csv(path, index=False)
    card = json.loads(path.with_suffix(".json").read_text())
    path.with_suffix(".json").write_text(json.dumps(card | {"sha256": sha256_of(path)}))
    for check in verification.verify(6):
        assert (check.deviation > verification.DEVIATION) == (check.table == path.name) and check.different == 0


def test_a_table_of_other_weights_or_of_cells_no_longer_made_is_refused(tables, monkeypatch):
    card = tables[0].with_suffix(".json")
    content = card.read_text()
    card.write_text(json.dumps(json.loads(content) | {"weights": "0" * 64}))
    with pytest.raises(ValueError, match="was measured on weights 0000000000000000….*measure it again"):
        verification.verify(2)
    card.write_text(content)
    shorter = Experiment(lambda its: shrink(its.model, (0.123,)), ("layer", "norm_kept"), weighed=False)
    monkeypatch.setitem(verification.EXPERIMENTS, "shrink", shorter)
    with pytest.raises(ValueError, match="has cells that the experiment no longer makes .test layer=conv"):
        verification.verify(2)


def test_a_table_that_was_made_with_other_parameters_is_refused(tables):
    card = tables[1].with_suffix(".json")
    content = json.loads(card.read_text())
    assert content["parameters"] == {"train_images": {"number": 180, "seed": 5}}
    card.write_text(json.dumps(content | {"parameters": {"train_images": {"number": 90, "seed": 5}}}))
    with pytest.raises(ValueError, match="was made with other parameters than the experiment has now .train_images.: measure it"):
        verification.verify(2)


def test_a_table_of_another_version_is_refused(tables):
    card = tables[1].with_suffix(".json")
    card.write_text(json.dumps(json.loads(card.read_text()) | {"version": 0}))
    with pytest.raises(ValueError, match="is of version 0 of the experiment, which is at 1: measure it again"):
        verification.verify(2)


def test_a_re_training_is_verified_where_it_starts_and_made_anew_for_an_epoch(tables, small, monkeypatch):
    assert verification.verify_retraining() is None
    entry = verification.EXPERIMENTS["retraining"]
    monkeypatch.setitem(verification.EXPERIMENTS, "retraining", Experiment(None, entry.key, runs=lambda its: Retraining(
        its.name, its.model, its.dataset, its.seed, epochs=2, cases=(Case("OUT,KW", 0.5),), whole=("continued",))))
    path = measure("retraining", "vanilla", small, progress=False)
    with monkeypatch.context() as without:  # a table of the runs that had ended when it was stopped
        without.setattr(verification, "read_table", lambda path: results_table(path).query("arm != 'free'"))
        assert verification.verify_retraining() is None
    with monkeypatch.context() as deep:  # an epoch of which takes an hour without a GPU
        deep.setattr(verification, "too_large", lambda model, dataset: True)
        assert verification.verify_retraining() is None
    found = verification.verify_retraining()
    assert found.key == "test cut=OUT,KW strength=0.5 arm=free epoch=1" and found.found == found.published and found.agrees
    checks = [check for check in verification.verify(10_000) if check.table == path.name]
    assert sorted(check.key.rsplit(" ", 2)[1:] for check in checks) == [
        ["arm=continued", "epoch=0"], ["arm=free", "epoch=0"], ["arm=kept", "epoch=0"], ["arm=noise", "epoch=0"]]
    assert all(check.different == 0 for check in checks)
    assert not verification.Retrained("", "", 0.80, 0.74).agrees and verification.Retrained("", "", 0.80, 0.76).agrees


def test_paths_begin_and_end_where_the_runs_did(tables, small, monkeypatch):
    assert verification.verify_paths() == []
    plan = lambda its: Retraining(its.name, its.model, its.dataset, its.seed, epochs=1, cases=(Case("OUT,KW", 0.5),),
                                  whole=("continued", "reordered"), arms=("free",))
    for name, runs in (("retraining", plan), ("paths", lambda its: Paths(plan(its)))):
        monkeypatch.setitem(verification.EXPERIMENTS, name, Experiment(None, verification.EXPERIMENTS[name].key, runs=runs))
    runs, paths = (measure(name, "vanilla", small, progress=False) for name in ("retraining", "paths"))
    ends = verification.verify_paths(model="vanilla", dataset="small")
    assert [end.key for end in ends] == [f"cut={cut} strength={strength} arm={arm} position={position}" for cut, strength, arm in (
        ("none", "1", "reordered"), ("OUT,KW", "0.5", "free")) for position in (0, 1)]
    assert all(end.table == paths.name and end.images == 60 and end.different == 0 for end in ends)
    answers = verification.read_answers
    monkeypatch.setattr(verification, "read_answers", lambda path: answers(path).assign(  # other runs than the paths lie between
        **{"answers": [~row for row in answers(path)["answers"]]} if path == runs else {}))
    assert [end.different for end in verification.verify_paths()] == [60] * 4
    assert paths.name not in {check.table for check in verification.verify(10_000)}
    card = paths.with_suffix(".json")
    card.write_text(json.dumps(json.loads(card.read_text()) | {"weights": "0" * 64}))
    with pytest.raises(ValueError, match="paths-.* was measured on weights 0000000000000000"):
        verification.verify(2)


def test_another_copy_of_the_data_is_named(tables, small):
    checks = verification.verify(2)
    assert verification.other_copies(checks) == []
    for path in tables:
        card = path.with_suffix(".json")
        card.write_text(json.dumps(json.loads(card.read_text()) | {"fingerprint": "other"}))
    (words,) = verification.other_copies(checks)
    assert words.startswith("small: another copy") and "60 of the 60 test images" in words


def test_nothing_published_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(verification, "PUBLISHED", tmp_path)
    with pytest.raises(FileNotFoundError, match="nothing to verify: .*results$"):
        verification.verify(3)


def test_what_is_not_published_is_told_what_is():
    with pytest.raises(FileNotFoundError, match="no table of vanila on cifar10 in .*, which has those of .*resnet50 on cifar100.*, vanilla on cifar10"):
        verification.verify(3, model="vanila", dataset="cifar10")


@pytest.mark.filterwarnings("ignore")
def test_with_other_training_images_numbers_that_follow_from_them_are_not_compared(small, tmp_path, monkeypatch):
    """As with the official CIFAR-10: some training pixels differ, and so by a little what follows from them; the answers do not."""
    other = copy.copy(small)
    other.train_images, other.fingerprint = 255 - small.train_images, "other"
    copies = {"same": small, "other": other}
    monkeypatch.setattr(verification, "PUBLISHED", tmp_path)
    for experiment in ("data-aware", "truncation"):
        measure(experiment, "vanilla", small, progress=False)
    for which, dataset in copies.items():
        monkeypatch.setattr(verification, "load_dataset", lambda name, root=None: dataset)
        found = {check.table.split("-vanilla")[0]: check.deviation for check in verification.verify(2)}
        assert found["truncation"] <= verification.DEVIATION and found["data-aware"] <= verification.DEVIATION, which
    monkeypatch.setattr(verification._Table, "_deviation", lambda self, row, about: abs(about["norm_kept"] - self.table.loc[row, "norm_kept"]))
    assert max(check.deviation for check in verification.verify(100) if check.table.startswith("data-aware")) > verification.DEVIATION, "it would have been off"


def test_a_table_that_is_not_about_the_images_that_are_verified_is_refused(tables, small, monkeypatch):
    entry = verification.EXPERIMENTS["gauges"]
    monkeypatch.setitem(verification.EXPERIMENTS, "gauges", dataclasses.replace(entry, images=30))
    path = measure("gauges", "vanilla", small, progress=False)
    with pytest.raises(ValueError, match=f"{path.name} is about other images than those that are verified"):
        verification.verify(3)
    monkeypatch.setattr(verification, "IMAGES", 30)
    assert all(check.different == 0 for check in verification.verify(30) if check.table == path.name)
