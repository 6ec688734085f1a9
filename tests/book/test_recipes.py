"""The recipes of the page "How it works", tried: the code that stands there is taken from the page and run."""

import dataclasses
import datetime
import re
import textwrap
import warnings

import click
import nbformat
import numpy as np
import pandas as pd
import pytest
import yaml

import tnlib
from tnlib.cli import main
from tnlib.experiments import catalogue, controls, networks
from tnlib.experiments.datapackage import COLUMNS
from tnlib.experiments.evaluation import evaluate
from tnlib.experiments.files import ROOT
from tnlib.experiments.measurements import measure
from tnlib.experiments.tables import read_table
from tnlib.experiments.training import train
from tnlib.experiments.weights import load_model
from tnlib.publishing import claim_tests, claims, judging, scorecard
from tnlib.publishing.evidence import Pair
from tnlib.publishing.jobs import Job, Section, sections
from tnlib.publishing.parameters import parameters_cell, parse_value
from tnlib.publishing.running import run

from ..experiments.conftest import small  # noqa: F401  a fixture
from . import test_notebooks

TEXTS = {path.stem: path.read_text(encoding="utf-8") for path in (
    ROOT / "book" / "how_it_works.md", ROOT / "book" / "how_to_rerun.md", ROOT / "README.md")}


def blocks(title, language):
    """The blocks of code of one section of the page, in order."""
    (section,) = re.findall(rf"^## {title}$(.*?)(?=^## |\Z)", TEXTS["how_it_works"], re.M | re.S)
    return re.findall(rf"^```{language}\n(.*?)^```$", section, re.M | re.S)


def entry(text, module):
    """What a line of a dict, as it stands on the page, adds to it: (name, value)."""
    ((name, value),) = eval(f"{{{text}}}", dict(vars(module))).items()
    return name, value


def defined(text, module, name):
    """The function `name` that a block defines where it is put into a module."""
    namespace = dict(vars(module))
    exec(text, namespace)
    return namespace[name]


# ---- add a figure --------------------------------------------------------------------------------------------------------

def test_add_a_figure(tmp_path):
    (code,) = blocks("Add a figure", "python")
    first, *_ = [cell.source for cell in nbformat.read(sections()["spectra"].path, as_version=4).cells
                 if cell.cell_type == "code"]
    declared = parameters_cell(nbformat.read(sections()["spectra"].path, as_version=4))
    sources = (first, declared, 'nb.parameters("spectra");', code)
    cells = [nbformat.v4.new_code_cell(source, id=f"c{k}") for k, source in enumerate(sources)]
    cells[1].metadata["tags"] = ["parameters"]
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=kernel), tmp_path / "spectra.ipynb")
    job = Job(Section("spectra", tmp_path / "spectra.ipynb"), {}, tmp_path / "out")
    run([job], lambda words: None)
    made = job.folder / "figures"
    assert (made / "my-entropies.svg").is_file() and len(pd.read_csv(made / "my-entropies.csv")) == 4 * 7
    label = nbformat.read(job.executed, as_version=4).cells[-1].metadata["mystnb"]
    assert label["figure"]["name"] == "my-entropies"
    entropy = pd.read_csv(made / "my-entropies.csv").pivot(index="layer", columns="cut", values="entropy")
    rises = entropy.loc["conv4"] - entropy.loc["conv1"] > 1
    assert set(rises.index[rises]) == {"OUT", "IN", "OUT,KW", "OUT,KH"}, "what the figure's alternative text says"


# ---- add a measurement ---------------------------------------------------------------------------------------------------

@pytest.mark.filterwarnings("ignore:the untruncated network is at chance")
def test_add_a_measurement(small, tmp_path, monkeypatch):  # noqa: F811
    generator, text = blocks("Add a measurement", "python")
    monkeypatch.setattr(catalogue, "rounded", defined(generator, controls, "rounded"), raising=False)
    name, experiment = entry(text, catalogue)
    monkeypatch.setitem(catalogue.EXPERIMENTS, name, experiment)
    table = read_table(measure(name, "vanilla", small, progress=False))
    assert len(table) == 4 * 5 and not table.duplicated(["layer", "bits"]).any()
    network = load_model("vanilla", "small")
    for row in table[table["bits"] == 3].itertuples():
        kernel = tnlib.conv_kernels(network)[row.layer].numpy()
        levels = np.linspace(-1, 1, 2 ** 3 - 1) * np.abs(kernel).max()
        nearest = levels[np.abs(kernel[..., None] - levels).argmin(-1)]
        assert row.relative_error == pytest.approx(np.linalg.norm(kernel - nearest) / np.linalg.norm(kernel), rel=1e-5)
        rounded = load_model("vanilla", "small")
        rounded.get_submodule(row.layer).weight.data = rounded.get_submodule(row.layer).weight.new_tensor(nearest)
        assert row.correct == evaluate(rounded, small).correct.sum()
    assert set(table) - COLUMNS.keys() == {"bits"}, "the page says which column is to be described"
    assert callable(test_notebooks.shown_anyway), "the page names it"


# ---- add a claim ---------------------------------------------------------------------------------------------------------

def test_add_an_amendment():
    (text,) = blocks("Add a claim", "yaml")
    (amendment,) = yaml.safe_load(text)
    dates = [there["date"] for there in yaml.safe_load(claims.AMENDMENTS.read_text(encoding="utf-8"))]
    assert dates == sorted(dates), "a new one goes below what stands there"
    assert isinstance(amendment["date"], datetime.date) and amendment["claim"] in claims.read_claims()["claims"]
    assert amendment.keys() == {"date", "claim", "change", "reason"}


def test_add_a_number_beside_a_claim(monkeypatch):
    function, line = blocks("Add a claim", "python")
    typical_loss = defined(function, claim_tests, "typical_loss")
    (points, _), beside = Pair("vanilla", "cifar10").points(), []
    exec(textwrap.dedent(line), {"typical_loss": typical_loss, "points": points, "beside": beside})
    (part,) = beside
    assert part.verdict is None and part.p is None and part.comparisons == len(points)
    assert part.values == tuple(np.median(rows["lambda_star"]) for _, rows in points.groupby("seed"))
    assert part.words.startswith("median λ* of the cells: ")
    for module, name in ((judging, "_beside"), (judging, "_parts"), (scorecard, "PAIRS"), (claims, "read_claims")):  # which the page names
        assert hasattr(module, name)


# ---- add a network -------------------------------------------------------------------------------------------------------

def test_add_a_network(small, tmp_path, monkeypatch):  # noqa: F811
    (text,) = blocks("Add a network", "python")
    name, network = entry(text, networks)
    monkeypatch.setitem(networks.NETWORKS, name, network)
    recipe = dataclasses.replace(network.smaller["shapes"][1], epochs=1)
    train(name, small, recipe=recipe, folder=tmp_path / "weights", progress=False)
    kernels = tnlib.conv_kernels(load_model(name, "small"))
    assert [tuple(kernel.shape) for kernel in kernels.values()] == [
        (16, 3, 3, 3), (32, 16, 3, 3), (64, 32, 3, 3), (128, 64, 3, 3)]


# ---- what both pages name ------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("page", TEXTS)
def test_commands_on_the_page_are_there_with_their_options(page):
    code = "\n".join(re.findall(r"^```bash\n(.*?)^```$", TEXTS[page], re.M | re.S))
    lines = re.findall(r"^tnlib (.*?)(?: +#.*)?$", code, re.M)
    assert len(lines) >= 5
    for line in lines:
        group, words = main, line.split()
        while isinstance(command := group.commands[words.pop(0)], click.Group):
            group = command
        context = command.make_context(command.name, words)
        given = {name: parse_value(value) for name, value in context.params.get("given", ())}
        section = context.params.get("section")
        known = [sections()[section]] if section else sections().values()
        assert all(any(name in each.parameters for each in known) for name in given), line


@pytest.mark.parametrize("page", ["how_to_rerun", "README"])
def test_the_sweep_of_a_network_of_ones_own_runs_as_it_stands_on_the_page(page):
    (code,) = re.findall(r"^```python\n(import tnlib, .*?)^```$", TEXTS[page], re.M | re.S)
    names = {"test_images": np.random.RandomState(0).randint(0, 256, (20, 8, 8, 3), dtype=np.uint8), "test_labels": np.arange(20) % 10}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "the untruncated network is at chance")
        exec(code, names)
    assert len(names["table"]) == 4 and set(names["table"]["cut"]) == {"OUT,KW"}


def test_all_experiments_are_named_where_they_are_looked_for():
    for name in catalogue.EXPERIMENTS:
        assert name in TEXTS["README"] and name in main.commands["measure"].help


@pytest.mark.parametrize("page", ["how_it_works", "how_to_rerun"])
def test_files_on_the_page_are_there(page):
    named = set(re.findall(r"`((?:\w+/)+(?:[\w.-]+)?)`", TEXTS[page]))
    made = {name for name in named if name.startswith(("runs/", "_build/", "figures/", "site/"))}
    assert named - made and [name for name in named - made
                             if not (ROOT / name).exists() and not (ROOT / "tnlib" / name).exists()] == []
    tree = "\n".join(re.findall(r"^```text\n(.*?)^```$", TEXTS[page], re.M | re.S))
    for name in re.findall(r"^ *([\w.]+/?)  ", tree, re.M):
        assert name in ("runs/", "_build/") or any((ROOT / where / name).exists() for where in ("", "published", "tnlib"))
