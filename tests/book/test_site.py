"""The rendered pages: all there, whole, and readable without a network."""

import html
import re
from functools import cache
from html.parser import HTMLParser
from urllib.parse import unquote, urlsplit

import nbformat
import pytest
from sphinx_external_toc.parsing import parse_toc_yaml

from tnlib.experiments.files import PUBLISHED, ROOT
from tnlib.experiments.tables import read_table
from tnlib.publishing.building import BUILD
from tnlib.publishing.jobs import sections
from tnlib.publishing.site import render, stage_page

PAGES = list(parse_toc_yaml(ROOT / "_toc.yml"))
every_page = pytest.mark.parametrize("page", PAGES)


class Page(HTMLParser):
    """What a page refers to, its anchors, its images."""

    def __init__(self, text):
        super().__init__()
        self.links, self.resources, self.ids, self.images = [], [], set(), []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        if attributes.get("id"):
            self.ids.add(attributes["id"])
        if tag == "a" and attributes.get("href"):
            self.links.append(attributes["href"])
        if tag in ("script", "img", "iframe") and attributes.get("src"):
            self.resources.append(attributes["src"])
        if tag == "link" and attributes.get("rel") != "canonical" and attributes.get("href"):
            self.resources.append(attributes["href"])
        if tag == "img":
            self.images.append(attributes)


@cache
def anchors(path):
    """The anchors of a finished page."""
    return Page(path.read_text(encoding="utf-8")).ids


def read(site, page):
    return (site / f"{page}.html").read_text(encoding="utf-8")


@every_page
def test_page_is_there_with_its_title(site, page):
    text = read(site, page)
    assert re.search(r"<h1>\S", text) and "</html>" in text


def test_the_first_page_leads_to_the_book(site):
    assert PAGES[0] in (site / "index.html").read_text()


@every_page
def test_nothing_comes_from_elsewhere_and_every_file_is_there(site, page):
    folder = (site / f"{page}.html").parent
    for address in Page(read(site, page)).resources:
        parts = urlsplit(address)
        assert parts.scheme in ("", "data") and not parts.netloc, f"{page} fetches {address}"
        assert parts.scheme == "data" or (folder / unquote(parts.path)).is_file(), f"{page} lacks {address}"


@every_page
def test_a_page_is_light_without_its_pictures(site, page):
    """The HTML file without the images inside of it; scripts and styles are the same for all pages and come once."""
    without = re.sub(r"data:image/[^\"')]+|<svg.*?</svg>", "", read(site, page), flags=re.S)
    assert len(without.encode()) < 1_500_000


@every_page
def test_what_jupyter_book_brings_is_on(site, page):
    resources = " ".join(Page(read(site, page)).resources)
    assert all(script in resources for script in ("copybutton.js", "clipboard.min.js", "sphinx-design.min.css"))


@every_page
def test_no_reference_is_broken(site, page):
    text = read(site, page)
    parsed = Page(text)
    folder = (site / f"{page}.html").parent
    for link in parsed.links:
        parts = urlsplit(link)
        if parts.scheme or parts.netloc:
            continue
        target = (folder / unquote(parts.path)).resolve() if parts.path else site / f"{page}.html"
        assert target.is_file(), f"{page}: {link} leads nowhere"
        if parts.fragment and target.suffix == ".html":
            assert unquote(parts.fragment) in (anchors(target) if parts.path else parsed.ids), f"{page}: {link} has no such anchor"
    for leftover in ("{numref}", "{glue:", "{cite}", "{ref}", 'class="problematic"', "???"):
        assert leftover not in text, f"{page} shows {leftover}"
    assert "Traceback (most recent call last)" not in text and "Warning:" not in text


@every_page
def test_negative_numbers_have_a_minus_sign(site, page):
    """In what is read; in code and formulas a hyphen is right."""
    hidden = r"<(script|style|pre|code|svg)\b.*?</\1>|<(span|div) class=\"math.*?</\2>"
    words = html.unescape(re.sub(r"<[^>]+>", " ", re.sub(hidden, " ", read(site, page), flags=re.S)))
    assert not re.findall(r"[^\n]*(?<![^\s(\[:])-\d[^\n]*", words)


@pytest.mark.parametrize("section", sections().values(), ids=lambda section: section.name)
def test_every_figure_and_table_of_the_notebook_is_on_its_page(site, section):
    sources = "\n".join(cell.source for cell in nbformat.read(section.path, as_version=4).cells
                        if cell.cell_type == "code")
    made = set(re.findall(r'nb\.(?:figure|table)\(\w+, "([a-z0-9-]+)"', sources))
    assert made
    text = read(site, section.path.relative_to(ROOT).with_suffix(""))
    parsed = Page(text)
    assert made <= parsed.ids
    assert len(re.findall(r'class="caption-number">(?:Fig\.|Table)', text)) == len(made)
    alts = [image.get("alt", "") for image in parsed.images if image["src"].startswith("../figures/")]
    assert len(alts) == 2 * len(re.findall(r"nb\.figure\(", sources)), "one picture for each theme"
    assert all(len(alt.split()) >= 5 for alt in alts)
    assert text.count('<summary>Cite</summary>') == len(made)


@pytest.mark.parametrize("section", sections().values(), ids=lambda section: section.name)
def test_a_chapter_offers_its_committed_notebook(site, section):
    page = section.path.relative_to(ROOT).with_suffix("")
    offered = [link for link in Page(read(site, page)).links if link.endswith(".ipynb") and "_sources" in link]
    assert offered and all(((site / page).parent / link).read_bytes() == section.path.read_bytes() for link in offered)


@pytest.mark.shapes
@pytest.mark.parametrize("name", sections())
def test_a_section_renders_alone(shapes_jobs, name, tmp_path):
    """What `tnlib run` makes: one chapter, with its figures, its references and its banner."""
    stage_page(shapes_jobs[name], tmp_path / "stage")
    page = render(tmp_path / "stage", tmp_path, say=lambda words: None)
    text = read(page.parent, shapes_jobs[name].section.path.stem)
    parsed = Page(text)
    assert text.count("This is not the published page") == 1
    chapter = text[text.index("<h1>"):]
    assert chapter.index("This is not the published page") < chapter.index("<em>"), "before its question, and what is concluded"
    assert any(link.startswith("bibliography.html#") for link in parsed.links)
    for image in parsed.images:
        assert (page.parent / image["src"]).is_file()


@pytest.mark.published
def test_the_readme_shows_the_figure_of_the_published_book():
    shown = re.findall(r"\]\(published/figures/([a-z0-9-]+)\.svg\)", (ROOT / "README.md").read_text(encoding="utf-8"))
    assert shown
    for id in shown:
        made = list((BUILD / "executed").glob(f"*/figures/{id}.svg"))
        assert [path.read_bytes() for path in made] == [(PUBLISHED / "figures" / f"{id}.svg").read_bytes()]


@pytest.mark.published
def test_the_controls_of_the_second_data_set_are_those_of_its_tables(site):
    text = " ".join(html.unescape(re.sub(r"<[^>]+>", "", read(site, "book/06_controls"))).split())
    (networks,) = re.search(r"has the same for a second data set \((\d+) networks on CIFAR-100\)", text).groups()
    (share,) = re.search(r"Against matched noise it does less harm in \d+ % \(on a second data set in (\d+) %\)", text).groups()
    shares = []
    for path in (PUBLISHED / "results").glob("controls-vanilla-cifar100-s*.csv"):
        drops = read_table(path).pivot_table(index=["layer", "cut", "rank"], columns="kind", values="accuracy_drop")
        telling = drops[drops[["truncation", "noise"]].max(axis=1) > 1]
        shares.append((telling["truncation"] < telling["noise"]).mean())
    assert int(networks) == len(shares) and share == f"{100 * sum(shares) / len(shares):.0f}"
