"""Citing from the pages, opened from their files in headless Chromium with the network cut off, by clicks and by keys."""

import json
import re

import pandas as pd
import pypdf
import pytest

from tnlib.experiments.files import ROOT
from tnlib.publishing import gallery
from tnlib.publishing.cards import bibtex, sentence

from .conftest import patient_context

pytestmark = pytest.mark.browser


@pytest.fixture
def tab(browser, tmp_path):
    """A tab without a network, which may write to the clipboard and download; `problems` are what goes wrong in it."""
    context = patient_context(browser, viewport={"width": 1280, "height": 900}, offline=True, accept_downloads=True,
                              permissions=["clipboard-read", "clipboard-write"])
    tab = context.new_page()
    tab.problems = []
    tab.on("pageerror", lambda error: tab.problems.append(str(error)))
    left = lambda asked: asked.is_navigation_request() or asked.failure == "net::ERR_ABORTED"  # a picture that a page still waited for
    tab.on("requestfailed", lambda asked: left(asked) or tab.problems.append(f"failed: {asked.url}"))
    yield tab
    assert not tab.problems
    context.close()


@pytest.fixture(scope="module")
def cards(site):
    """Id → card of every figure and table on the site."""
    return {path.stem: json.loads(path.read_text()) for path in (site / "figures").glob("*.json")}


def test_the_gallery_holds_every_figure_and_table_with_its_files(site, tab, cards):
    tab.goto((site / "book/gallery.html").as_uri())
    items = tab.locator(".gallery-item")
    assert items.count() == len(cards)
    text = tab.locator("main").inner_html()
    for id, card in cards.items():
        assert f'#{id}"' in text, f"no way from the gallery to {id}"
        for name in card["files"]:
            assert f'href="../figures/{name}"' in text and (site / "figures" / name).is_file()
    numbers = re.findall(r"(Fig\. \d+|Table \d+)", tab.locator("main").inner_text())
    assert len(set(numbers)) == len(cards)


@pytest.mark.parametrize("name, value, key", [("claim", "2", None), ("network", "vanilla", "model"), ("data set", "shapes", "dataset")])
def test_filters_show_what_was_asked_for(site, tab, cards, name, value, key):
    if key == "dataset" and not any(value == source.get(key) for card in cards.values() for source in card["sources"]):
        value = "cifar10"  # the published book
    tab.goto((site / "book/gallery.html").as_uri())
    tab.get_by_label(name, exact=True).select_option(f"only-{name.replace(' ', '-')}-{value}")
    shown = tab.locator(".gallery-item:visible")
    wanted = [id for id, card in cards.items() if (value in card["claims"] if key is None else
                                                   any(source.get(key) == value for source in card["sources"]))]
    assert shown.count() == len(wanted) and 0 < len(wanted) < len(cards)
    assert tab.get_by_text(f"{len(wanted)} of {len(cards)} shown").is_visible()
    tab.reload()  # the address holds the choice
    assert tab.locator(".gallery-item:visible").count() == len(wanted)


def test_a_figure_is_cited_by_clicks(site, tab, cards):
    tab.goto((site / "book/02_spectra.html").as_uri())
    line = tab.locator(".figure-line").first
    id = re.search(r"figures/([a-z0-9-]+)\.svg", line.inner_html())[1]
    cite = line.locator("details", has_text="Cite")
    assert not cite.locator("pre").first.is_visible()
    cite.locator("summary").focus()
    tab.keyboard.press("Enter")
    for block, words in zip(cite.locator("div.highlight").all(), (sentence(cards[id]), bibtex(cards[id])), strict=True):
        block.hover()
        block.locator("button.copybtn").click()
        tab.wait_for_timeout(200)
        assert tab.evaluate("navigator.clipboard.readText()").strip() == words.strip()
    made = line.locator("details", has_text="Made from")
    made.locator("summary").click()
    assert cards[id]["sources"][0]["sha256"][:12] in made.inner_text()


@pytest.mark.parametrize("kind", ["svg", "pdf", "png", "csv"])
def test_a_click_leads_to_the_file(site, tab, kind):
    """It is downloaded, or, where a browser takes no downloads from file://, shown."""
    tab.goto((site / "book/02_spectra.html").as_uri())
    link = tab.locator(".figure-line").first.get_by_role("link", name=kind.upper(), exact=True)
    file = site / "figures" / link.get_attribute("href").rsplit("/", 1)[1]
    downloads = []
    tab.on("download", lambda download: downloads.append(download))
    link.click()
    tab.wait_for_timeout(1500)
    if downloads:
        assert downloads[0].suggested_filename == file.name and downloads[0].path().read_bytes() == file.read_bytes()
    else:
        assert tab.url == file.as_uri()
    assert file.stat().st_size > 100


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_each_theme_shows_its_own_picture_without_a_box(site, tab, theme):
    tab.add_init_script(f"localStorage.setItem('mode', '{theme}'); localStorage.setItem('theme', '{theme}')")
    for page in ("book/02_spectra.html", "book/gallery.html"):
        tab.goto((site / page).as_uri())
        assert tab.evaluate("document.documentElement.dataset.theme") == theme
        shown = tab.locator("main img:visible")
        names = [image.get_attribute("src") for image in shown.all()]
        assert names and all(name.endswith(".dark.svg") == (theme == "dark") for name in names)
        for image in shown.all()[:3]:
            assert image.evaluate("image => getComputedStyle(image).backgroundColor") == "rgba(0, 0, 0, 0)"


def test_captions_alternatives_and_data_are_complete(cards):
    assert cards
    for id, card in cards.items():
        assert card["caption"] and card["licence"] == "CC-BY-4.0"
        if card["kind"] == "figure":
            words = lambda text: re.findall(r"\w+", text.lower())
            assert len(words(card["alt"])) >= 8, f"{id}: the alternative text says too little"
            assert words(card["alt"])[:6] != words(card["caption"])[:6] and card["alt"] not in card["caption"], id


def test_every_table_of_numbers_can_be_read(site, cards):
    for card in cards.values():
        assert len(pd.read_csv(site / "figures" / f"{card['id']}.csv"))


def test_no_pdf_of_a_figure_holds_a_type_3_font(site, cards):
    for card in cards.values():
        for name in card["files"]:
            if name.endswith(".pdf"):
                page = pypdf.PdfReader(site / "figures" / name).pages[0]
                fonts = page["/Resources"].get("/Font", {})
                assert fonts and all(font.get_object()["/Subtype"] != "/Type3" for font in fonts.values()), name
                assert any(abs(float(page.mediabox.width) / 72 * 25.4 - width) < 0.5 for width in (86, 178)), name


def test_the_concordance_names_every_figure_of_the_paper_that_we_know_of():
    text = (ROOT / "book" / "concordance.md").read_text(encoding="utf-8")
    for number in range(1, 6):
        assert f"| Figure {number} |" in text
    assert "were not available to us" in text


def test_what_can_be_chosen_stands_in_one_order_for_every_process():
    """Or the page would be another one with each build, and all be rendered again: the order of a set is a process's own."""
    names = [f"network-{letter}" for letter in "hcafbged"]
    cards = [{"claims": [], "sources": [{"model": name} for name in names]}]
    assert re.findall(r">(network-.)<", gallery._filters(cards)) == sorted(names)
