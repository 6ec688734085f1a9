"""CITATION.cff: valid, read whole, and the one place from which the book has its authors and its address."""

import json
import re
import tomllib
from pathlib import Path

import jsonschema
import nbformat
import pytest
import yaml

from tnlib.experiments.files import ROOT
from tnlib.publishing import site
from tnlib.publishing.citation import citation
from tnlib.publishing.jobs import Job, find_section
from tnlib.publishing.site import render, stage_book, stage_page

ADDRESS = "https://github.com/someone/tnlib"


def edited(folder, **changes):
    """A copy of CITATION.cff with other entries; None takes one away."""
    said = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8")) | changes
    path = folder / "CITATION.cff"
    path.write_text(yaml.safe_dump({key: value for key, value in said.items() if value is not None}), encoding="utf-8")
    return path


def test_the_file_is_valid():
    schema = json.loads((Path(__file__).parent / "cff-1.2.0" / "schema.json").read_text(encoding="utf-8"))
    said = yaml.load((ROOT / "CITATION.cff").read_text(encoding="utf-8"), yaml.BaseLoader)  # dates stay texts
    jsonschema.Draft7Validator(schema, format_checker=jsonschema.FormatChecker()).validate(said)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.Draft7Validator(schema).validate(said | {"authors": []})


def test_what_the_file_says_is_read():
    cited = citation()
    assert cited.title.startswith("tnlib") and cited.authors and re.fullmatch(r"\d{4}-\d\d-\d\d", cited.date)
    assert cited.version == tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert cited.paper.authors == ("Sukhbinder Singh", "Saeed S. Jahromi", "Román Orús")
    assert cited.paper.bibtex_author == "Singh, Sukhbinder and Jahromi, Saeed S. and Orús, Román"
    assert cited.paper.arxiv == "2403.14379"
    assert cited.paper.title == "Tensor network compressibility of convolutional models"


def test_people_and_organisations_are_named(tmp_path):
    ludwig = {"given-names": "Ludwig", "name-particle": "van", "family-names": "Beethoven"}
    cited = citation(edited(tmp_path, authors=[ludwig, {"name": "The Book Club"}]))
    assert cited.authors == ("Ludwig van Beethoven", "The Book Club")
    assert cited.bibtex_author == "van Beethoven, Ludwig and {The Book Club}"


def test_the_address_is_read_and_one_that_makes_no_button_is_refused(tmp_path):
    assert citation(edited(tmp_path, **{"repository-code": None})).repository is None
    assert citation(edited(tmp_path, **{"repository-code": ADDRESS + "/"})).repository == ADDRESS
    with pytest.raises(ValueError, match="repository-code is 'https://example.org/x'.*github.com"):
        citation(edited(tmp_path, **{"repository-code": "https://example.org/x"}))
    for broken, words in (("title: [", "CITATION.cff is not valid YAML"), ("[]", "does not have the form of a CITATION.cff")):
        (tmp_path / "CITATION.cff").write_text(broken)
        with pytest.raises(ValueError, match=words):
            citation(tmp_path / "CITATION.cff")
    with pytest.raises(ValueError, match="CITATION.cff lacks 'version'"):
        citation(edited(tmp_path, version=None))


@pytest.fixture
def cited(monkeypatch, tmp_path):
    """Lets the book read an edited CITATION.cff."""
    def use(**changes):
        path = edited(tmp_path, **changes)
        monkeypatch.setattr(site, "citation", lambda: citation(path))
    return use


def test_without_an_address_no_button_needs_one(cited, tmp_path):
    cited(authors=[{"name": "The Book Club"}], **{"repository-code": None})
    stage_book([], tmp_path / "stage")
    config = yaml.safe_load((tmp_path / "stage" / "_config.yml").read_text(encoding="utf-8"))
    assert config["author"] == "The Book Club" and not {"repository", "launch_buttons"} & set(config)
    assert not any(config["html"][f"use_{which}_button"] for which in ("repository", "issues", "edit_page"))


def test_with_an_address_a_chapter_has_its_buttons(cited, tmp_path):
    cited(authors=[{"name": "The Book Club"}], **{"repository-code": ADDRESS})
    stage_book([], tmp_path / "book" / "stage")
    config = yaml.safe_load((tmp_path / "book" / "stage" / "_config.yml").read_text(encoding="utf-8"))
    assert config["repository"] == {"url": ADDRESS, "branch": "HEAD", "path_to_book": ""}

    job = Job(find_section("formalism"), {}, tmp_path / "executed")
    job.folder.mkdir()
    nbformat.write(nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell("# A chapter")]), job.executed)
    stage_page(job, tmp_path / "stage")
    page = render(tmp_path / "stage", tmp_path, say=lambda words: None).parent / "01_formalism.html"
    text = page.read_text(encoding="utf-8")
    assert "https://mybinder.org/v2/gh/someone/tnlib/HEAD?urlpath=lab/tree/book/01_formalism.ipynb" in text
    assert f'href="{ADDRESS}"' in text and "By The Book Club" in " ".join(text.split())
    offered = re.search(r'href="(_sources/[^"]+\.ipynb)"', text).group(1)
    assert (page.parent / offered).read_bytes() == job.section.path.read_bytes()
