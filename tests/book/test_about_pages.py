"""The pages about the book itself, as they are rendered: the way of the data, all parameters, and how it was made."""

import html
import re

import pytest
from sphinx_external_toc.parsing import parse_toc_yaml

from tnlib.experiments.files import ROOT
from tnlib.publishing.jobs import sections

ABOUT = ("trained_networks", "how_it_works", "how_to_rerun", "status")


def read(site, page):
    return (site / f"book/{page}.html").read_text(encoding="utf-8")


def tables(text):
    """The tables that were generated, each as rows of texts."""
    found = re.findall(r'<table class="[^"]*generated.*?</table>', text, re.S)
    rows = [re.findall(r"<tr.*?</tr>", table, re.S) for table in found]
    plain = lambda cell: " ".join(html.unescape(re.sub(r"<[^>]+>", "", cell)).split())
    return [[[plain(cell) for cell in re.findall(r"<t[hd].*?</t[hd]>", row, re.S)] for row in table] for table in rows]


def test_the_pages_stand_before_the_bibliography_and_the_first_page_leads_to_them(site):
    pages = [page.removeprefix("book/") for page in parse_toc_yaml(ROOT / "_toc.yml")]
    assert [page for page in pages if page in ABOUT] == list(ABOUT) and pages[-1] == "bibliography"
    assert all(f'href="{page}.html"' in read(site, "index") for page in ABOUT)


def test_the_way_of_the_data_is_a_list_of_as_many_steps_as_the_page_says(site):
    text = read(site, "how_it_works")
    (flow,) = re.findall(r'<div class="flow[^>]*>\s*<ol.*?</ol>', text, re.S)
    steps = re.findall(r"<li><p><strong>(.*?)</strong>", flow)
    assert len(steps) == flow.count("<li>") == 12 and "in twelve steps" in text
    assert steps[0] == "Data set" and steps[-1] == "Book"
    assert flow.count('<code class="docutils literal') >= len(steps), "each says which module or folder"


@pytest.mark.parametrize("page", ABOUT)
def test_every_mark_is_filled_in(site, page):
    source = (ROOT / "book" / f"{page}.md").read_text(encoding="utf-8")
    text = read(site, page)
    assert len(tables(text)) >= len(re.findall("^% generated", source, re.M)) > 0 and "% generated" not in text


def test_every_parameter_is_in_the_table(site):
    (head, *rows), *_ = tables(read(site, "how_to_rerun"))
    assert head == ["section", "name", "type", "default", "meaning"]
    assert [row[:2] for row in rows] == [[name, p] for name, section in sections().items() for p in section.parameters]


def test_the_status_is_that_of_every_notebook(site):
    (_, *rows), machines = tables(read(site, "status"))
    assert [row[0] for row in rows] == list(sections())
    assert len({row[2] == "published" for row in rows}) == 1, "all of the published book, or none"
    for _, duration, _, started, commit, shown in rows:
        assert re.fullmatch(r"(\d+ min )?\d+ s", duration) and re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d", started)
        assert re.match(r"[0-9a-f]{10}|unknown", commit) and shown.startswith(("up to date", "as it last ran"))
    assert "torch" in machines[1][1] and "jupyter-book" in machines[1][1]
