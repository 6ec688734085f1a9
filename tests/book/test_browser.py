"""The pages opened from their files in headless Chromium, the network cut off."""

import io

import numpy as np
import pytest
from PIL import Image
from sphinx_external_toc.parsing import parse_toc_yaml

from tnlib.experiments.files import ROOT

from .conftest import patient_context

pytestmark = pytest.mark.browser
PAGES = list(parse_toc_yaml(ROOT / "_toc.yml"))


@pytest.fixture(params=[(1280, 900), (390, 844)], ids=["wide", "phone"])
def tab(browser, request):
    """A tab without a network that collects what goes wrong in it."""
    width, height = request.param
    context = patient_context(browser, viewport={"width": width, "height": height}, offline=True)
    tab = context.new_page()
    tab.problems = []
    tab.on("console", lambda message: tab.problems.append(message.text) if message.type == "error" else None)
    tab.on("pageerror", lambda error: tab.problems.append(str(error)))
    tab.on("requestfailed", lambda asked: tab.problems.append(f"failed: {asked.url}"))
    yield tab
    context.close()


@pytest.mark.parametrize("page", PAGES)
def test_page_loads_whole_without_a_network(site, tab, page):
    tab.goto((site / f"{page}.html").as_uri(), wait_until="load")
    source = (site / f"{page}.html").read_text(encoding="utf-8")
    if 'class="math' in source:
        tab.wait_for_function("document.querySelectorAll('mjx-container').length == "
                              "document.querySelectorAll('.math').length", timeout=30_000)
        assert tab.evaluate("document.querySelector('mjx-container').getBoundingClientRect().height") > 5
        assert not tab.evaluate("document.querySelectorAll('mjx-merror').length")
    if page == "book/gallery":  # its pictures are fetched where they are seen, a chapter's at once: it may be printed
        tab.evaluate("for (const image of document.images) image.loading = 'eager'")
        tab.wait_for_function("[...document.images].every(image => image.complete)")
    for image in tab.query_selector_all("main img"):
        assert image.evaluate("image => image.complete && image.naturalWidth > 0"), image.get_attribute("src")
    width, window = tab.evaluate("[document.documentElement.scrollWidth, window.innerWidth]")
    assert width <= window, "the page is wider than the window"
    assert not tab.problems


def test_pictures_of_the_gallery_are_fetched_where_they_are_seen_and_their_place_is_kept(site, tab):
    tab.goto((site / "book/gallery.html").as_uri(), wait_until="load")
    # How far ahead Chromium fetches hangs on the network: from 1,250 pixels to the 8,000 where there is none.
    there = """where => [...document.images].filter(image => image.checkVisibility() && where(image.getBoundingClientRect().top - innerHeight))
        .map(image => image.naturalWidth > 0)"""
    tab.wait_for_function(f"(near => near.length > 0 && near.every(fetched => fetched))(({there})(top => top < 1000))")
    far = tab.evaluate(f"({there})(top => top > 9000)")
    assert len(far) > 10 and not any(far)
    height = "document.querySelector('main').scrollHeight"
    before = tab.evaluate(height)
    tab.evaluate("for (const image of document.images) image.loading = 'eager'")
    tab.wait_for_function("[...document.images].every(image => image.complete)")
    assert tab.evaluate(height) == pytest.approx(before, rel=0.005)


def test_the_parameters_open_by_a_click(site, tab):
    tab.goto((site / "book/02_spectra.html").as_uri())
    box = tab.locator(".admonition", has_text="Parameters of this page").first
    rows = box.locator("table")
    assert not rows.is_visible()
    box.locator(".admonition-title").click()
    rows.wait_for(state="visible")
    assert not tab.problems


def test_code_is_copied_by_a_click(site, tab):
    tab.context.grant_permissions(["clipboard-read", "clipboard-write"])
    tab.goto((site / "book/01_formalism.html").as_uri())
    block = tab.locator("div.highlight:visible").first
    block.hover()
    block.locator("button.copybtn").click()
    tab.wait_for_function("document.querySelector('button.copybtn.success') !== null")
    assert tab.evaluate("navigator.clipboard.readText()").strip() == block.locator("pre").inner_text().strip()
    assert not tab.problems


def test_a_figure_of_one_column_fits_every_window(site, tab):
    tab.goto((site / "book/08_scorecard.html").as_uri())
    frame = tab.locator("#scorecard-numbers .figure-picture")
    assert frame.evaluate("frame => frame.scrollWidth - frame.clientWidth") == 0
    width = frame.locator("img.only-light").bounding_box()["width"]
    assert 300 < width <= 86 / 25.4 * 96 + 1


def test_a_figure_that_goes_on_to_the_side_has_a_shadow_there(site, tab):
    """And none at its end, or where all of it is seen."""
    tab.goto((site / "book/02_spectra.html").as_uri())
    figure = tab.locator(".figure-picture").first
    figure.scroll_into_view_if_needed()
    beyond = figure.evaluate("figure => figure.scrollWidth - figure.clientWidth")
    assert (beyond > 0) == (tab.viewport_size["width"] < 600)

    def ends():
        pixels = np.asarray(Image.open(io.BytesIO(figure.screenshot())).convert("L"), dtype=float)
        return [np.median(pixels[:, column]) < 250 for column in (1, -2)]

    assert ends() == [False, beyond > 0]
    figure.evaluate("figure => { figure.scrollLeft = figure.scrollWidth }")
    assert ends() == [beyond > 0, False]
