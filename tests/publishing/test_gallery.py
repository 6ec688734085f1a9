"""The cards and the filters of the gallery, as they are written; tests/book opens the page."""

import re

from tests.publishing.test_cards import CARD
from tnlib.publishing import gallery
from tnlib.publishing.claims import read_claims

CARD = CARD | {"width_mm": 86, "height_mm": 50}


def test_each_card_has_its_caption_and_its_claims():
    one, none = gallery._item(CARD | {"claims": ["1a", "2"]}), gallery._item(CARD | {"claims": []})
    assert CARD["caption"] in one and "Bears on claims 1a, 2." in one and "Bears on claim 1a." in gallery._item(CARD)
    assert CARD["caption"] in none and "Bears on" not in none


def test_all_that_cards_have_can_be_chosen_claims_in_their_order_and_data_sets_by_their_titles():
    claims = list(read_claims()["claims"])
    text = gallery._filters([CARD | {"claims": [id]} for id in reversed(claims)])
    chosen = lambda kind: re.findall(r">([^<]+)</option>", re.search(rf'name="{kind}">.*?</select>', text)[0])
    assert chosen("claim") == ["all", *claims] and chosen("data set") == ["all", "CIFAR-10"] and chosen("network")[0] == "all"
