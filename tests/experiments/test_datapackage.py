"""The description of the published tables fits them."""

import json
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor

import frictionless
import pytest

from tnlib.experiments import catalogue, datapackage
from tnlib.experiments.catalogue import EXPERIMENTS
from tnlib.experiments.datapackage import COLUMNS, describe_results
from tnlib.experiments.files import PUBLISHED
from tnlib.experiments.measurements import measure
from tnlib.experiments.strengths import CASES
from tnlib.experiments.tables import read_table
from tnlib.experiments.weights import read_card


def package(folder):
    return json.loads((folder / "datapackage.json").read_text(encoding="utf-8"))


def test_every_published_table_is_described_and_fits():
    resources = {resource["path"] for resource in package(PUBLISHED)["resources"]}
    assert resources == {f"results/{path.name}" for path in (PUBLISHED / "results").glob("*.csv")}
    report = frictionless.validate(PUBLISHED / "datapackage.json")  # columns, types, sizes and hashes
    assert report.valid, report.flatten(["name", "type", "message"])
    for name in resources:
        table = read_table(PUBLISHED / name)
        truncated = table[table["arm"] != "narrower"] if "arm" in table else table  # what is narrower has no norm of the kernels
        assert not truncated.isna().any().any() and set(table.columns[table.isna().any()]) <= {"level", "norm_kept", "relative_error"}
        assert says_whether_training_images_were_looked_at(PUBLISHED / name)


def says_whether_training_images_were_looked_at(path):
    card = read_card(path)
    needed = "data_aware_error" in read_table(path) or card["experiment"] in ("controls", "batch-norm")
    return ("train_images" in card["parameters"]) == needed


def test_a_table_that_its_description_does_not_fit_is_found(small, tmp_path):
    path = measure("shrink", "vanilla", small, progress=False)
    described = describe_results(tmp_path)
    assert frictionless.validate(described).valid
    path.write_text(path.read_text().replace("conv1", "conv9", 1))
    assert [error[0] for error in frictionless.validate(described).flatten(["type"])] == ["hash-count"]


def test_a_table_whose_card_is_about_to_be_written_is_left_out(small, tmp_path):
    path = measure("shrink", "vanilla", small, progress=False)
    path.with_name("noise-vanilla-small-s0.csv").write_text(path.read_text())
    assert [resource["name"] for resource in package(describe_results(tmp_path).parent)["resources"]] == [path.stem]


def test_a_column_that_is_not_described_is_named_and_nothing_is_written(small, tmp_path):
    path = measure("shrink", "vanilla", small, progress=False)
    path.write_text(path.read_text().replace("accuracy_drop", "acuracy_drop", 1))
    with pytest.raises(ValueError, match=f"{path.name} has columns that .* does not describe: acuracy_drop;"):
        describe_results(tmp_path)
    assert not (tmp_path / "datapackage.json").exists()


@pytest.mark.filterwarnings("ignore:the untruncated network is at chance")
@pytest.mark.parametrize("experiment", [name for name in EXPERIMENTS if name not in (
    "batch-norm", "retraining-statistics", "compression")])  # for which see test_batch_norm.py and test_compression.py
def test_every_experiment_has_described_columns(small, tmp_path, monkeypatch, experiment):
    monkeypatch.setattr(catalogue, "listed_cases", lambda model, cases=CASES: cases[:1])  # more re-trainings have no other columns
    if experiment == "paths":
        measure("retraining", "vanilla", small, progress=False)
    path = measure(experiment, "vanilla", small, progress=False)
    assert says_whether_training_images_were_looked_at(path)
    for resource in package(describe_results(tmp_path).parent)["resources"]:
        assert {field["name"] for field in resource["schema"]["fields"]} <= COLUMNS.keys()


def test_the_readme_beside_the_results_names_every_experiment():
    text = (PUBLISHED / "README.md").read_text(encoding="utf-8")
    for name in EXPERIMENTS:
        assert f"| `{name}` |" in text


def test_of_two_that_describe_at_once_none_loses_a_table(small, tmp_path, monkeypatch):
    """While one has listed the tables and not yet written, another adds one and describes it."""
    paths = [measure(name, "vanilla", small, folder=tmp_path / "results", progress=False) for name in ("shrink", "joint")]
    away = tmp_path / "away"
    away.mkdir()
    for path in (paths[1], paths[1].with_suffix(".json")):
        path.rename(away / path.name)
    listed, added, resource = threading.Event(), threading.Event(), datapackage._resource

    def slowly(folder, path):
        if not listed.is_set():
            listed.set()
            added.wait(1)  # the other waits for this one, or is done within it
        return resource(folder, path)

    monkeypatch.setattr(datapackage, "_resource", slowly)
    with ThreadPoolExecutor(1) as other:
        first = other.submit(describe_results, tmp_path)
        assert listed.wait(60)
        for path in away.iterdir():
            path.rename(tmp_path / "results" / path.name)
        describe_results(tmp_path)
        added.set()
        first.result()
    assert len(package(tmp_path)["resources"]) == 2


def test_what_is_published_is_described_as_it_would_be_now(tmp_path, monkeypatch):
    """Or a column of another meaning, or a changed word, would not reach those who read the tables."""
    monkeypatch.setattr(datapackage, "RUNS", tmp_path / "none")
    shutil.copytree(PUBLISHED / "results", tmp_path / "results")
    assert package(describe_results(tmp_path).parent) == package(PUBLISHED)
