"""The description of the published tables fits them."""

import json

import pytest

from tnlib.experiments.datapackage import COLUMNS, describe_results
from tnlib.experiments.files import PUBLISHED, sha256_of
from tnlib.experiments.measurements import EXPERIMENTS, measure, read_table

KINDS = {"string": "OUSTV", "integer": "iu", "number": "f", "boolean": "b"}


def package(folder):
    return json.loads((folder / "datapackage.json").read_text(encoding="utf-8"))


def test_every_published_table_is_described_and_fits():
    resources = {resource["path"]: resource for resource in package(PUBLISHED)["resources"]}
    assert resources.keys() == {f"results/{path.name}" for path in (PUBLISHED / "results").glob("*.csv")}
    for name, resource in resources.items():
        table = read_table(PUBLISHED / name)
        assert [field["name"] for field in resource["schema"]["fields"]] == list(table)
        assert resource["hash"] == f"sha256:{sha256_of(PUBLISHED / name)}"
        for field in resource["schema"]["fields"]:
            kind = table[field["name"]].dtype.kind
            assert kind in KINDS[field["type"]] or (field["type"] == "number" and kind == "i"), (name, field["name"])
            assert not table[field["name"]].isna().any()


@pytest.mark.filterwarnings("ignore:the untruncated network is at chance")
@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_every_experiment_has_described_columns(small, tmp_path, experiment):
    measure(experiment, "vanilla", small, progress=False)
    (resource,) = package(describe_results(tmp_path).parent)["resources"]
    assert {field["name"] for field in resource["schema"]["fields"]} <= COLUMNS.keys()


def test_the_readme_beside_the_results_names_every_experiment():
    text = (PUBLISHED / "README.md").read_text(encoding="utf-8")
    for name in EXPERIMENTS:
        assert f"| `{name}` |" in text
