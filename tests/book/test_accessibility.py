"""An axe scan of every page as it is served, everything unfolded: light and dark, at a desk's width and a phone's."""

import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import pytest
from axe_playwright_python.sync_playwright import Axe
from sphinx_external_toc.parsing import parse_toc_yaml

from tnlib.experiments.files import ROOT

from .conftest import patient_context

pytestmark = [pytest.mark.browser, pytest.mark.published]
PAGES = list(parse_toc_yaml(ROOT / "_toc.yml"))
# What is folded is scanned as well; without motion, so that no text is caught half faded in. Of the thousands of words in code, whose colours
# are those of their class, the longest of each class (one letter is not judged): they would be nearly all of the time.
UNFOLD = """() => {
    document.head.insertAdjacentHTML("beforeend",
        "<style>*, ::before, ::after { transition: none !important; animation: none !important; }</style>");
    document.querySelectorAll("details").forEach(details => details.open = true);
    document.querySelectorAll(".toggle-hidden").forEach(hidden => hidden.classList.remove("toggle-hidden"));
    const longest = {}, words = document.querySelectorAll(".highlight pre span[class]"), length = word => word ? word.textContent.length : 0;
    words.forEach(word => { if (length(word) > length(longest[word.className])) longest[word.className] = word; });
    words.forEach(word => { if (word !== longest[word.className]) word.replaceWith(...word.childNodes); });
}"""


@pytest.fixture(scope="module")
def address(site):
    """The site, served."""
    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *words):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=site)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture
def tab(browser, request):
    context = patient_context(browser, viewport=request.param, color_scheme="light")
    yield context.new_page()
    context.close()


wide = pytest.mark.parametrize("tab", [{"width": 1280, "height": 900}], indirect=True, ids=["wide"])
phone = pytest.mark.parametrize("tab", [{"width": 390, "height": 844}], indirect=True, ids=["phone"])
every_page = pytest.mark.parametrize("page", PAGES)


def unfolded(tab, address, page):
    tab.goto(f"{address}/{page}.html", wait_until="load")
    tab.evaluate(UNFOLD)
    return tab


def findings(tab, **options):
    """What is serious or critical, an element a line."""
    found = Axe().run(tab, options={"resultTypes": ["violations"]} | options).response["violations"]
    return [f"{rule['id']}: {node['target']}: {node['failureSummary']}" for rule in found
            if rule["impact"] in ("serious", "critical") for node in rule["nodes"]]


@wide
@every_page
def test_light_and_dark(address, tab, page):
    unfolded(tab, address, page)
    assert findings(tab) == []
    tab.evaluate("document.documentElement.dataset.theme = 'dark'")
    assert findings(tab, runOnly=["color-contrast"]) == []  # nothing else depends on the theme


@phone
@every_page
def test_on_a_phone(address, tab, page):
    unfolded(tab, address, page)
    assert findings(tab, rules={"color-contrast": {"enabled": False}}) == []  # as at a desk, and slow


@wide
def test_the_scan_sees_what_is_wrong(address, tab):
    unfolded(tab, address, PAGES[0])
    tab.evaluate("""const hardly = "style='color: #999; background: #bbb'";
        document.querySelector("article").insertAdjacentHTML("beforeend", `<img src='_static/file.png'><p ${hardly}>hardly to be read</p>
        <div class='highlight'><pre><span class='n'>one</span> <span class='odd' ${hardly}>y</span> <span class='odd' ${hardly}>other</span></pre></div>`)""")
    tab.evaluate(UNFOLD)
    found = findings(tab)
    assert {finding.split(":")[0] for finding in found} == {"image-alt", "color-contrast"}
    assert len(found) == 3, "the image, the paragraph, and of the two words one"
