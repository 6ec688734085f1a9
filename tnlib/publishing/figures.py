"""Figures, tables and values of a page: registered where they are made, written with the data behind them."""

import html
import json
import re
from collections.abc import Iterable
from itertools import cycle
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import pandas as pd
from IPython.display import display
from myst_nb import glue

from ..experiments.files import ROOT, atomic_path
from ..experiments.weights import read_card
from .cards import about, check_card, drawn_from, write_card
from .pictures import check_picture, write_pictures
from .section import section

# Okabe and Ito's colours, which the colour-blind can tell apart; a marker and a dash go with each, for print in grey.
BLUE, ORANGE, GREEN, VERMILION, PURPLE, SKY, BLACK, GREY = (
    "#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#000000", "#7F7F7F")
CUT_STYLES = {
    "KW": {"color": SKY, "marker": "<"}, "KH": {"color": BLUE, "marker": "^"},
    "OUT": {"color": BLACK, "marker": "o"}, "IN": {"color": GREY, "marker": "s"},
    "OUT,IN": {"color": ORANGE, "marker": "D"}, "OUT,KW": {"color": VERMILION, "marker": "v"},
    "OUT,KH": {"color": PURPLE, "marker": "P"},
}
LOOKS = ((BLUE, "o", "-"), (ORANGE, "s", "--"), (GREEN, "^", "-."), (VERMILION, "D", ":"), (PURPLE, "v", "-"),
         (SKY, "P", "--"), (BLACK, "X", "-."), (GREY, "*", ":"))


def layer_looks(layers: Iterable[str]) -> dict[str, tuple[str, str, str]]:
    """Layer or stage → (colour, marker, dash), the same in every chapter; after eight they come again."""
    return dict(zip(layers, cycle(LOOKS)))


def figure(fig, id: str, caption: str, alt: str, data: pd.DataFrame, sources: tuple[str, ...],
           claims: tuple[str, ...]) -> None:
    """Show `fig` as a numbered figure, and write its files into figures/: `id`.svg, .pdf, .png, .csv and a card, `id`.json.

    `fig`: `ONE_COLUMN` or `TWO_COLUMNS` wide, no text below 7 points. `id`: lower-case words joined by hyphens, one in
    the book; text refers to it as {numref}`id`. `caption`: Markdown that stands alone; on how many images a source was
    measured is added, where they are not all. `alt`: what is seen, for those who do not see it. `data`: the plotted
    values, tidy; every value that is plotted is in it. `sources`: what it was drawn from, by the names that `results`
    took ("truncation of NAME": of another network than the page's), or "weights" for the page's network itself; none
    where it is drawn by formulas alone. `claims`: the ids in book/claims.yml that it bears on, if any. Raises
    `TypeError` or `ValueError` naming the argument.
    """
    _check_labels(id, caption)
    if not isinstance(fig, plt.Figure):
        raise TypeError(f"figure {id!r}: fig must be a matplotlib Figure, got {type(fig).__name__}")
    if len(alt.split()) < 5 or alt.strip() == caption.strip():
        raise ValueError(f"figure {id!r}: alt must say what is seen, in other words than the caption; got {alt!r}")
    _check_data(id, data)
    check_card(id, sources, claims)
    try:
        check_picture(fig, data)
    except ValueError as error:
        raise ValueError(f"figure {id!r}: {error}") from None
    sources = drawn_from(sources, data)
    caption += _on_fewer_images(sources)
    width, height = (round(25.4 * inches) for inches in fig.get_size_inches())
    folder, card = section.folder / "figures", {"id": id, "kind": "figure", "caption": caption, "alt": alt, "width_mm": width, "height_mm": height}
    files = write_pictures(fig, folder, id, about(card))
    plt.close(fig)  # or Jupyter shows it a second time
    write_card(folder, card, [*files, _write_data(folder, id, data)], sources, claims)
    svg = (folder / f"{id}.svg").read_text(encoding="utf-8")
    display({"image/svg+xml": svg, "text/plain": alt}, raw=True,
            metadata={"tnlib": {"id": id, "caption": caption, "alt": alt}})


def table(frame: pd.DataFrame, id: str, caption: str, sources: tuple[str, ...], claims: tuple[str, ...],
          text: pd.DataFrame | None = None) -> None:
    """Show a numbered table, and write figures/`id`.csv with the values of `frame` as they are, and a card.

    `text`: what the page shows, by default `frame` with numbers to four digits. `sources` and `claims` as in `figure`.
    Raises `TypeError` or `ValueError` naming the argument.
    """
    _check_labels(id, caption)
    _check_data(id, frame)
    check_card(id, sources, claims)
    sources = drawn_from(sources, frame)
    folder, caption = section.folder / "figures", caption + _on_fewer_images(sources)
    write_card(folder, {"id": id, "kind": "table", "caption": caption}, [_write_data(folder, id, frame)], sources, claims)
    shown = frame if text is None else text
    cells = shown.map(lambda entry: f"{entry:.4g}" if isinstance(entry, float) else str(entry))
    words = r"(\W\s)?[^\W\d_]"  # a letter first, or a sign and then a word
    left = [shown[column].map(lambda entry: isinstance(entry, str) and bool(re.match(words, entry))).any()
            for column in shown.columns]
    _show_markdown(f"```{{table}} {caption}\n:name: {id}\n\n{_pipes(cells, left)}\n```",
                   cells.to_html(index=False, border=0) + f"<p>{html.escape(caption)}</p>")


def value(name: str, number: Any) -> None:
    """Let the page's text use a number or a text: {glue:text}`name` or, with a format, {glue:text}`name:.2f`."""
    if hasattr(number, "item"):  # NumPy's and torch's scalars do not print as plain numbers
        number = number.item()
    if not isinstance(number, (bool, int, float, str)):
        raise TypeError(f"value {name!r} must be a number or a text, got {type(number).__name__}")
    glue(name, number, display=False)


def show_parameters(rows: list[dict[str, str]], banner: str | None) -> None:
    """The page's parameters as a folded table, and above it a banner where they are not the published ones."""
    cells = pd.DataFrame(rows)
    markdown = f"```{{admonition}} Parameters of this page\n:class: dropdown tip\n\n{_pipes(cells, [True] * 4)}\n```"
    page = cells.to_html(index=False, border=0)
    if banner:
        markdown = f"```{{warning}}\n{banner}\n```\n\n{markdown}"
        page = f"<p><strong>{html.escape(banner)}</strong></p>{page}"
    _show_markdown(markdown, page)


def _check_labels(id, caption):
    if not re.fullmatch(r"[a-z][a-z0-9]*(-[a-z0-9]+)*", id):
        raise ValueError(f"id must be lower-case words joined by hyphens, got {id!r}")
    if not caption.strip():
        raise ValueError(f"{id!r}: the caption is empty")


def _on_fewer_images(sources: list[dict]) -> str:
    """A sentence for the caption where the tables among `sources`, or some, are about a part of the test images."""
    cards = [read_card(ROOT / source["file"]) for source in sources if source["file"].endswith(".csv")]
    numbers = [card["test_images"]["number"] for card in cards if "test_images" in card]
    if not numbers:
        return ""
    return (f" {'Evaluated' if len(numbers) == len(cards) else 'In part evaluated'} on "
            f"{' or '.join(f'{number:,}' for number in sorted(set(numbers)))} class-balanced test images.")


def _check_data(id, data):
    if not isinstance(data, pd.DataFrame) or data.empty:
        raise TypeError(f"{id!r}: data must be a DataFrame with at least one row, got "
                        f"{'an empty one' if isinstance(data, pd.DataFrame) else type(data).__name__}")


def _write_data(folder: Path, id: str, data: pd.DataFrame) -> str:
    with atomic_path(folder / f"{id}.csv") as temporary:
        data.to_csv(temporary, index=False, float_format="%.9g", lineterminator="\n")
    return f"{id}.csv"


def _pipes(cells: pd.DataFrame, left: list[bool]) -> str:
    """A Markdown table; words to the left, numbers to the right."""
    lines = [list(cells.columns), [":---" if words else "---:" for words in left], *cells.to_numpy().tolist()]
    return "\n".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in lines)


def _show_markdown(markdown: str, page: str) -> None:
    """MyST for the book (which prefers it, see _config.yml), HTML for Jupyter."""
    display({"text/markdown": markdown, "text/html": page, "text/plain": json.dumps(markdown)}, raw=True)
