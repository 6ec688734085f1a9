"""The gallery: every figure and table of the book, with its files and the claims that it bears on."""

from docutils.nodes import make_id

from .cards import read_cards
from .claims import read_claims
from .jobs import Job
from .judging import TITLES
from .sphinx_extension import downloads, images

FILTERS = {"claim": "claim", "network": "model", "data set": "dataset"}  # what the page calls it → the key of a source


def gallery(jobs: list[Job]) -> str:
    """The filters and a card for each figure and table, as MyST; _static/gallery.js makes the filters work."""
    cards = read_cards([job.folder / "figures" for job in jobs])
    items = "\n\n".join(map(_item, cards.values()))
    return f"{_filters(list(cards.values()))}\n\n:::::{{grid}} 1 2 2 2\n:gutter: 3\n:class-container: gallery\n\n{items}\n:::::\n"


def _values(card: dict, kind: str) -> list[str]:
    if kind == "claim":
        return card["claims"]
    return sorted({str(source[FILTERS[kind]]) for source in card["sources"] if FILTERS[kind] in source})


def _class(kind: str, value: str) -> str:
    """The class of the items that have it, as docutils writes classes."""
    return make_id(f"only {kind} {value}")


def _filters(cards: list[dict]) -> str:
    claims = read_claims()["claims"]
    lines = []
    for kind in FILTERS:
        there = {value for card in cards for value in _values(card, kind)}
        ordered = [id for id in claims if id in there] if kind == "claim" else sorted(there, key=lambda value: (len(value), value))
        options = "".join(f'<option value="{_class(kind, value)}">{TITLES.get(value, value)}</option>' for value in ordered)
        id = make_id(f"choose {kind}")
        lines.append(f'<span><label for="{id}">{kind}</label> <select id="{id}" name="{kind}"><option value="">all</option>'
                     f"{options}</select></span>")
    return f'```{{raw}} html\n<form class="gallery-filters" hidden>{" ".join(lines)} <output aria-live="polite"></output></form>\n```'


def _item(card: dict) -> str:
    """One card: picture, number (which leads to its chapter) and caption, claims, files."""
    id, classes = card["id"], " ".join(_class(kind, value) for kind in FILTERS for value in _values(card, kind))
    picture = images(card, "../", alt="", loading="lazy") if card["kind"] == "figure" else ""
    claims = ", ".join(card["claims"])
    bears = f"Bears on claim{'s' if len(card['claims']) > 1 else ''} {claims}." if claims else ""
    shown = f"```{{raw}} html\n<div class=\"thumbnail\">{picture}</div>\n```\n\n" if picture else ""
    return (f"::::{{grid-item-card}}\n:class-card: gallery-item {classes}\n\n{shown}**{{numref}}`{id}`** · {card['caption']}\n\n"
            f"{bears}\n\n```{{raw}} html\n<p>{downloads(card, '../')}</p>\n```\n::::")
