"""The scorecard's page and the first page against the results that they are of."""

import html
import json
import re
from pathlib import Path

import pytest
import yaml

from tnlib.experiments.files import ROOT, sha256_of
from tnlib.publishing.claims import AMENDMENTS, read_claims

from .test_claims import FIXED

PLAIN = str.maketrans("’−", "'-")  # what a page sets in print


def rows_of(page, which):
    """The cells of a rendered table, as texts with plain quotes and hyphens: the one whose opening tag has `which`."""
    table = next(part for part in re.findall(r"<table.*?</table>", page, re.S) if which in part[:part.index(">") + 1])
    cells = [re.findall(r"<t[hd].*?</t[hd]>", row, re.S) for row in re.findall(r"<tr.*?</tr>", table, re.S)]
    return [[" ".join(html.unescape(re.sub(r"<[^>]+>", "", cell)).translate(PLAIN).split()) for cell in row] for row in cells]


def wanted(frame):
    plain = lambda text: re.sub(r"\{download\}`(\w+) <[^>]+>`|`([^`]+)`", r"\1\2", str(text))
    return [[" ".join(plain(cell).translate(PLAIN).split()) for cell in row] for row in [list(frame.columns), *frame.to_numpy().tolist()]]


def test_page_and_first_page_show_the_verdicts_that_the_results_give(site, card):
    """Evaluated anew from claims.yml, which is the one that was fixed, and the published tables."""
    assert sha256_of(ROOT / "book" / "claims.yml") == FIXED
    page = (site / "book/08_scorecard.html").read_text(encoding="utf-8")
    first = (site / "book/index.html").read_text(encoding="utf-8")
    assert rows_of(page, 'id="scorecard-summary"') == wanted(card.summary())
    assert rows_of(first, "scorecard") == wanted(card.summary())


@pytest.mark.parametrize("claim", ["1a", "1b", "2", "3", "4", "5"])
def test_the_numbers_of_a_claim_are_those_of_the_results(site, card, claim):
    page = (site / "book/08_scorecard.html").read_text(encoding="utf-8")
    assert rows_of(page, f'id="scorecard-{claim}"') == wanted(card.shown(claim))
    about = json.loads((site / f"figures/scorecard-{claim}.json").read_text(encoding="utf-8"))
    files = {name for verdict in card.of(claim) for name in verdict.tables}
    assert files and {Path(source["file"]).name for source in about["sources"]} == files, "of this claim alone"


def test_the_rows_behind_a_verdict_can_be_downloaded(site, card):
    page = (site / "book/08_scorecard.html").read_text(encoding="utf-8")
    offered = {name.rsplit("/", 1)[-1] for name in re.findall(r'href="([^"]*_downloads/[^"]+)"', page)}
    assert {name for verdict in card.verdicts for name in verdict.tables if name.endswith(".csv")} <= offered


def test_amendments_are_on_both_pages(site):
    for page in ("book/08_scorecard.html", "book/index.html"):
        text = html.unescape(re.sub(r"<[^>]+>", "", (site / page).read_text(encoding="utf-8")))
        assert "Amendments to claims.yml, which itself is never changed" in text
        for amendment in yaml.safe_load(AMENDMENTS.read_text(encoding="utf-8")):
            assert str(amendment["date"]) in text and amendment["claim"] in read_claims()["claims"]
