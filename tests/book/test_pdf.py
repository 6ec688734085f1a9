"""The book on paper: whole, searchable, linked, its figures drawn and not rastered."""

import html
import re
from unicodedata import normalize

import pytest
from pypdf import PdfReader
from sphinx_external_toc.parsing import parse_toc_yaml

from tnlib.experiments.files import ROOT
from tnlib.publishing.printing import print_book
from tnlib.publishing.site import SiteError

from .conftest import patient_context

PAGES = list(parse_toc_yaml(ROOT / "_toc.yml"))
LARGE = 64  # pixels: a picture, not an icon


def titles(outline):
    """Of an outline, in its order, whatever the level."""
    return [title for entry in outline for title in (titles(entry) if isinstance(entry, list) else [entry.title])]


def plain(text):
    """Its letters and digits: spaces, ligatures and dashes differ on paper."""
    return re.sub(r"[\W_]+", "", normalize("NFKC", html.unescape(re.sub(r"<[^>]+>", "", text))))


@pytest.fixture(scope="module")
def chapters(site):
    """Page → its HTML."""
    return {page: (site / f"{page}.html").read_text(encoding="utf-8") for page in PAGES}


@pytest.fixture(scope="module")
def book(stage, tmp_path_factory):
    return PdfReader(print_book(stage, tmp_path_factory.mktemp("pdf") / "book.pdf", lambda words: None))


@pytest.fixture(scope="module")
def texts(book):
    return [page.extract_text() for page in book.pages]


@pytest.mark.browser
@pytest.mark.published
def test_every_chapter_is_there_and_in_the_outline(book, texts, chapters):
    text, outline = plain("".join(texts)), {plain(title) for title in titles(book.outline)}
    for page, source in chapters.items():
        headings = [plain(re.sub(r'<a class="headerlink".*?</a>', "", found))
                    for found in re.findall(r"<h[12]>(.*?)</h[12]>", source.split('<article class="bd-article"')[1])]
        assert headings and set(headings) <= outline and all(heading in text for heading in headings), page
        captions = re.findall(r'class="caption-number">(?:Fig\.|Table) \d+ </span><span class="caption-text">([^<]{30,60})',
                              source)
        assert all(plain(caption) in text for caption in captions), page
    assert "mjx" not in text and "\\(" not in "".join(texts), "a formula is shown as it is written"


@pytest.mark.browser
@pytest.mark.published
def test_a_heading_that_begins_a_page_is_once_in_the_outline(browser, site, tmp_path):
    """Chromium would paint what stands out of its line on the page before too, and then name it twice."""
    tab = patient_context(browser, java_script_enabled=False).new_page()
    tab.goto((site / "book" / "index.html").as_uri())
    tab.locator("article").evaluate("""article => article.innerHTML = [2, 3, 4].map(level => `
        <div style="height: 235mm; break-inside: avoid">A page's worth</div><h${level}>Heading ${level}</h${level}><p>Text</p>
    `).join("")""")
    tab.pdf(path=tmp_path / "page.pdf", outline=True, tagged=True, prefer_css_page_size=True)
    tab.context.close()
    made, headings = PdfReader(tmp_path / "page.pdf"), [f"Heading {level}" for level in (2, 3, 4)]
    assert [page.extract_text().split("\n")[1] for page in made.pages[-3:]] == headings  # after the page's number
    assert titles(made.outline)[-3:] == headings


@pytest.mark.browser
@pytest.mark.published
def test_pages_are_numbered_and_none_is_empty(texts):
    for number, text in enumerate(texts, start=1):
        assert re.search(rf"\b{number}\s*$", text) or re.match(rf"\s*{number}\b", text), f"page {number} has no number"
        assert len(plain(text)) > 40, f"page {number} is all but empty"


@pytest.mark.browser
@pytest.mark.published
def test_links_inside_lead_somewhere(book, chapters):
    known, inside = book.named_destinations, 0
    for page in book.pages:
        for link in page.get("/Annots", []):
            link = link.get_object()
            target = link.get("/A", {}).get("/URI", "")
            assert not target.startswith("file:"), target
            if "/Dest" in link:
                inside += 1
                assert not isinstance(link["/Dest"], str) or link["/Dest"].lstrip("/") in {k.lstrip("/") for k in known}
    assert inside > len(chapters)


@pytest.mark.browser
@pytest.mark.published
def test_every_font_is_embedded(book):
    fonts = {}
    for page in book.pages:
        fonts |= {font.get("/BaseFont", name): font for name, font in
                  ((name, font.get_object()) for name, font in page["/Resources"].get("/Font", {}).items())}
    assert fonts
    for name, font in fonts.items():
        if font["/Subtype"] != "/Type3":  # that one is made of drawings in the file
            font = font["/DescendantFonts"][0].get_object() if "/DescendantFonts" in font else font
            assert {"/FontFile", "/FontFile2", "/FontFile3"} & set(font["/FontDescriptor"]), f"{name} is not embedded"


@pytest.mark.browser
@pytest.mark.published
def test_figures_are_drawn_and_only_photographs_and_heat_maps_are_pictures(book, texts, stage, chapters):
    numbers = {number: id for source in chapters.values() for id, number in
               re.findall(r'<figure [^>]*id="([a-z0-9-]+)".*?class="caption-number">Fig\. (\d+) ', source, re.S)}
    pictures = {number for number, id in numbers.items()
                if "<image" in (stage / "extra" / "figures" / f"{id}.svg").read_text(encoding="utf-8")}
    assert numbers and pictures < set(numbers)
    for text, page in zip(texts, book.pages):
        large = [image for image in images(page["/Resources"]) if min(image["/Width"], image["/Height"]) > LARGE]
        assert not large or pictures & set(re.findall(r"Fig\. (\d+)", text)), f"a rastered figure on: {text[:200]}"


def images(resources, seen=frozenset()):
    """The pictures that a page draws, those inside of groups as well."""
    for thing in resources.get("/XObject", {}).values():
        thing = thing.get_object()
        if thing["/Subtype"] == "/Image":
            yield thing
        elif "/Resources" in thing and id(thing) not in seen:
            yield from images(thing["/Resources"], seen | {id(thing)})


def test_what_is_missing_is_named(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SiteError, match="needs Chromium or Chrome.*google-chrome"):
        print_book(tmp_path, tmp_path / "book.pdf")
    browser = tmp_path / "chromium"
    browser.write_text("#!/bin/sh\nexit 1\n")
    browser.chmod(0o755)
    with pytest.raises(SiteError, match="tnlib build"):
        print_book(tmp_path, tmp_path / "book.pdf")
