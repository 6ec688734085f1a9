"""Cards and citations of figures: `tnlib cite`, and what stands below a figure."""

import json
import re
from dataclasses import replace

import pytest
from click.testing import CliRunner
from pybtex.database import parse_string

from tnlib.cli import main
from tnlib.publishing import building, cards
from tnlib.publishing.citation import citation
from tnlib.publishing.jobs import sections

SOURCE = {"what": "truncation", "file": "published/results/truncation-vanilla-cifar10-s0.csv", "sha256": "ab" * 32, "model": "vanilla",
          "dataset": "cifar10", "seed": 0, "weights": "cd" * 32}
CARD = {"id": "truncation-map", "kind": "figure", "caption": "A *map*.", "alt": "Numbers in a grid of cells.", "claims": ["1a"],
        "files": [f"truncation-map.{kind}" for kind in ("svg", "pdf", "png", "csv")], "section": "truncations", "place": 1,
        "parameters": {"model": "vanilla", "rank": 3}, "sources": [SOURCE], "licence": "CC-BY-4.0", "versions": {"torch": "2.13.0"},
        "git_commit": "0123456789abcdef0123456789abcdef01234567"}


def test_the_sentence_says_computed_by_and_after():
    words = cards.sentence(CARD)
    assert words.startswith("Computed by tnlib ") and "after Singh et al., arXiv:2403.14379" in words
    assert "figure truncation-map" in words and "commit 0123456789ab" in words and citation().version in words
    assert not re.search(r"[Ff]igure \d", words)


def test_what_is_not_the_published_figure_says_so():
    card = CARD | {"changed": {"rank": 5, "dataset": "shapes"}, "git_commit": CARD["git_commit"] + "+changes"}
    ours = parse_string(cards.bibtex(card), "bibtex").entries["tnlib-truncation-map"]
    for words in (cards.sentence(card), ours.fields["note"]):
        assert "truncation-map with rank = 5, dataset = shapes" in words and "commit 0123456789ab and changes" in words
    assert " with " not in cards.sentence(CARD | {"changed": {}}) and "changes" not in cards.sentence(CARD)


def test_what_latex_reads_otherwise_is_escaped_in_bibtex():
    card = CARD | {"changed": {"dataset": "/home/me/my_data 100%.npz", "without_decay": "a&b #1 $"}}
    note = parse_string(cards.bibtex(card), "bibtex").entries["tnlib-truncation-map"].fields["note"]
    assert r"my\_data 100\%.npz" in note and not re.search(r"(?<!\\)[_%&#$]", note)


def test_bibtex_has_this_work_with_figure_version_and_commit_and_the_paper():
    entries = parse_string(cards.bibtex(CARD), "bibtex").entries
    ours, paper = entries["tnlib-truncation-map"], entries["singh2024"]
    assert [str(person).strip("{}") for person in ours.persons["author"]] == list(citation().authors)
    for word in ("truncation-map", citation().version, "0123456789ab"):
        assert word in ours.fields["note"]
    assert "2403.14379" in paper.fields["note"] and len(paper.persons["author"]) == 3


def test_an_address_appears_where_there_is_one(monkeypatch):
    from dataclasses import replace
    assert "https" not in cards.sentence(CARD) and "url" not in parse_string(cards.bibtex(CARD), "bibtex").entries["tnlib-truncation-map"].fields
    known = replace(citation(), repository="https://github.com/someone/tnlib")
    monkeypatch.setattr(cards, "citation", lambda: known)
    assert known.repository in cards.sentence(CARD)
    assert parse_string(cards.bibtex(CARD), "bibtex").entries["tnlib-truncation-map"].fields["url"] == known.repository


@pytest.fixture
def built(monkeypatch, tmp_path):
    """A built book of two figures."""
    folder = tmp_path / "executed" / "truncations" / "figures"
    folder.mkdir(parents=True)
    other = CARD | {"id": "a-later-one", "place": 2, "files": ["a-later-one.csv"], "kind": "table"}
    for card in (CARD, other):
        (folder / f"{card['id']}.json").write_text(json.dumps(card))
        for name in card["files"]:
            (folder / name).write_text(name)
    monkeypatch.setattr(building, "EXECUTED", tmp_path / "executed")
    assert "truncations" in sections()


def test_cite_lists_prints_and_copies(built, tmp_path):
    run = lambda *words: CliRunner().invoke(main, ["cite", *words])
    assert run("--list").output.split() == ["truncation-map", "a-later-one"]
    found = run("truncation-map", "--files", str(tmp_path / "here"))
    for words in (CARD["caption"], cards.sentence(CARD), cards.bibtex(CARD), SOURCE["file"], "rank = 3", "torch 2.13.0"):
        assert words in found.output
    assert {path.name for path in (tmp_path / "here").iterdir()} == {*CARD["files"], "truncation-map.json"}


@pytest.mark.parametrize("words, message", [
    (("truncation-mpa",), "did you mean truncation-map"), (("zzzz",), "`tnlib cite --list` names them all"), ((), "name a FIGURE"),
    (("truncation-map", "--list"), "name a FIGURE")])
def test_what_cite_cannot_find_it_says(built, words, message):
    found = CliRunner().invoke(main, ["cite", *words])
    assert found.exit_code != 0 and message in found.output and "Traceback" not in found.output


def test_before_the_book_is_built_cite_says_how(monkeypatch, tmp_path):
    monkeypatch.setattr(building, "EXECUTED", tmp_path)
    found = CliRunner().invoke(main, ["cite", "--list"])
    assert found.exit_code == 1 and "tnlib build" in found.output


def test_the_year_in_bibtex_is_that_of_the_version(monkeypatch):
    monkeypatch.setattr(cards, "citation", lambda dated=replace(citation(), date="2031-02-03"): dated)
    assert parse_string(cards.bibtex(CARD), "bibtex").entries["tnlib-truncation-map"].fields["year"] == "2031"


def test_what_a_figure_was_made_from_names_files_weights_parameters_and_commit():
    source, parameters, made_with = cards.about_sources(CARD | {"sources": [SOURCE]})
    assert "sha256 abababababab…" in source and "weights cdcdcdcdcdcd…" in source
    assert parameters == "parameters of truncations: model = 'vanilla', rank = 3"
    assert CARD["git_commit"] in made_with and "torch 2.13.0" in made_with


def test_cards_come_in_the_order_of_the_page(tmp_path):
    places = {"a-last": 3, "b-first": 0, "c-third": 2, "d-second": 1}
    for id, place in places.items():
        (tmp_path / f"{id}.json").write_text(json.dumps(CARD | {"id": id, "place": place}))
    assert list(cards.read_cards([tmp_path])) == ["b-first", "d-second", "c-third", "a-last"]
