"""The card of a figure or table: what it is, from what it was made, and how it is cited."""

import json
import os
import re
from functools import cache
from pathlib import Path

from ..experiments.files import ROOT, sha256_of, write_json
from .citation import citation
from .section import section

LICENCE = "CC-BY-4.0"
PAPER = "singh2024"  # its key in book/references.bib
WEIGHTS = "weights"  # the source of what is drawn from the page's network itself


def about(card: dict) -> dict[str, str]:
    """What the files of a figure say of themselves."""
    work = citation()
    return {"title": f"{card['id']} ({work.title})", "author": "; ".join(work.authors), "description": card["alt"],
            "licence": LICENCE, "source": f"{work.repository or 'tnlib'} {work.version}, after arXiv:{work.paper.arxiv}"}


def check_card(id: str, sources: tuple[str, ...], claims: tuple[str, ...]) -> None:
    """Raise `ValueError` for a claim that there is not, or a source that the page has not read."""
    from .claims import read_claims  # here, and other modules below: pages are rendered without torch, pandas and scipy, which take seconds to load
    asked = read_claims()["claims"]
    if isinstance(claims, str) or not set(claims) <= set(asked):
        raise ValueError(f"{id!r}: claims must be a tuple of {', '.join(asked)}, got {claims!r}")
    known = set(section.read) | ({WEIGHTS} if {"model", "dataset", "seed"} <= set(section.values) else set())
    if isinstance(sources, str) or not set(sources) <= known:
        raise ValueError(f"{id!r}: sources must be a tuple of what this page has read ({', '.join(sorted(known))}), "
                         f"got {sources!r}")


def drawn_from(sources: tuple[str, ...], data) -> list[dict]:
    """The files behind a figure, each with its sha256: of those that the page has read for `sources`, the ones about the data
    sets that `data` has in its column `dataset`, or about the page's own where it has none."""
    from ..experiments.weights import data_name
    names = data["dataset"].unique() if "dataset" in data else [section.values[name] for name in ("dataset",) if name in section.values]
    shown = {data_name(str(name)) for name in names}
    found = [_source(what, path) for what in sources for path in _files(what)]
    return [source for source in found if not shown or data_name(str(source.get("dataset"))) in shown]


def write_card(folder: Path, card: dict, files: list[str], sources: list[dict], claims: tuple[str, ...]) -> None:
    """Write `card` as `id`.json with its files, its claims, and `drawn_from`."""
    id = card["id"]
    section.made += [id] if id not in section.made else []  # a cell may be run again
    write_json(folder / f"{id}.json", card | {
        "claims": list(claims), "files": files, "section": section.name, "place": section.made.index(id),
        "parameters": section.values, "changed": section.changed, "sources": sources,
        "licence": LICENCE, "versions": _made_with()["versions"], "git_commit": _made_with()["git_commit"]})


def _files(what: str) -> list[Path]:
    if what != WEIGHTS:
        return section.read[what]
    from ..experiments.weights import find_weights
    return [find_weights(*(section.values[name] for name in ("model", "dataset", "seed")))]


def _source(what: str, path: Path) -> dict:
    """A file that was read: results with the weights that they are of, or weights."""
    from ..experiments.weights import read_card
    card = read_card(path)
    return {"what": what, "file": os.path.relpath(path, ROOT), "sha256": sha256_of(path),
            **{name: card[name] for name in ("model", "dataset", "seed", "weights") if name in card}}


@cache
def _made_with() -> dict:
    from ..experiments.provenance import provenance
    return provenance()


def read_cards(folders) -> dict[str, dict]:
    """Id → card of all figures and tables in `folders`, one folder after the other, in the order of a page."""
    cards = [[json.loads(path.read_text(encoding="utf-8")) for path in Path(folder).glob("*.json")] for folder in folders]
    return {card["id"]: card for found in cards for card in sorted(found, key=lambda card: (card["section"], card["place"]))}


def about_sources(card: dict) -> list[str]:
    """What a figure was made from, line by line: results and weights, parameters, code."""
    parameters = ", ".join(f"{name} = {value!r}" for name, value in card["parameters"].items())
    return [*(f"{source['file']} (sha256 {source['sha256'][:12]}…"
              + (f", weights {source['weights'][:12]}…" if "weights" in source else "") + ")" for source in card["sources"]),
            f"parameters of {card['section']}: {parameters}",
            f"commit {card['git_commit'] or 'unknown'}; " + ", ".join(f"{name} {at}" for name, at in card["versions"].items())]


# ---- how it is cited -----------------------------------------------------------------------------------------------

def sentence(card: dict) -> str:
    """A sentence for a caption or a talk. It says computed by and after: it is no figure of the paper's; and with which
    parameters, where it is not the published one."""
    work = citation()
    where = f", {work.repository}" if work.repository else ""
    return (f"Computed by tnlib {work.version} ({card['kind']} {card['id']}{_with(card)}, commit {_commit(card)}{where}), after "
            f"Singh et al., arXiv:{work.paper.arxiv}. CC BY 4.0.")


def bibtex(card: dict) -> str:
    """Two entries: this work, with the figure's id, the version and the commit; and the paper."""
    work = citation()
    where = f"\n  url = {{{work.repository}}}," if work.repository else ""
    ours = (f"@misc{{tnlib-{card['id']},\n  title = {{{work.title}}},\n  author = {{{work.bibtex_author}}},\n  year = {{{work.date[:4]}}},"
            f"{where}\n  note = {{{card['kind'].capitalize()} {card['id']}{_escaped(_with(card))}; version {work.version}, "
            f"commit {_commit(card)}}}\n}}")
    return f"{ours}\n\n{_entry(PAPER)}"


def _with(card):
    changed = ", ".join(f"{name} = {value}" for name, value in card.get("changed", {}).items())
    return f" with {changed}" if changed else ""


def _escaped(text):
    """As LaTeX takes it."""
    return re.sub(r"([_%#&$])", r"\\\1", text)


def _commit(card):
    commit = card["git_commit"] or "unknown"
    return commit[:12] + " and changes" * commit.endswith("+changes")


@cache
def _entry(key: str) -> str:
    """An entry of book/references.bib as it stands there."""
    text = (ROOT / "book" / "references.bib").read_text(encoding="utf-8")
    return re.search(rf"^@\w+{{{key},.*?^}}", text, re.DOTALL | re.MULTILINE).group()
