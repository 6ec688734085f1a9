"""How this work is cited and where it is kept: read from CITATION.cff, the one place that says it."""

import re
from dataclasses import dataclass

import yaml

from ..experiments.files import ROOT

HOSTS = ("github.com", "gitlab.com", "bitbucket.org")  # those for which the book's theme makes buttons


@dataclass(frozen=True)
class Reference:
    """The paper that this work reproduces."""

    title: str
    authors: tuple[str, ...]
    bibtex_author: str
    arxiv: str


@dataclass(frozen=True)
class Citation:
    """This work. `repository` is its address without a slash at the end, or None while it has none."""

    title: str
    authors: tuple[str, ...]
    bibtex_author: str  # BibTeX would take the last word of an organisation for a family name: it stands in braces
    version: str
    date: str
    repository: str | None
    paper: Reference


def citation(path=ROOT / "CITATION.cff") -> Citation:
    """What CITATION.cff says. Raises `ValueError` that names the file and what it lacks."""
    try:
        said = yaml.load(path.read_text(encoding="utf-8"), getattr(yaml, "CSafeLoader", yaml.SafeLoader))  # in C where it was built: each figure asks
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is not valid YAML: {error}") from None
    try:
        paper = said["references"][0]
        arxiv = next(known["value"].removeprefix("arXiv:") for known in paper["identifiers"]
                     if known["value"].startswith("arXiv:"))
        return Citation(said["title"], _names(said), _bibtex(said), str(said["version"]), str(said["date-released"]),
                        _repository(said, path),
                        Reference(paper["title"], _names(paper), _bibtex(paper), arxiv))
    except (TypeError, AttributeError) as error:  # a text or a list where there must be a mapping, or the other way round
        raise ValueError(f"{path} does not have the form of a CITATION.cff: {error}") from error
    except (KeyError, IndexError, StopIteration) as error:
        raise ValueError(f"{path} lacks {error if error.args else 'an arXiv identifier of the paper'}") from error


def _names(work) -> tuple[str, ...]:
    return tuple(author.get("name") or " ".join(filter(None, (author.get("given-names"), _family(author))))
                 for author in work["authors"])


def _bibtex(work) -> str:
    return " and ".join(f"{{{author['name']}}}" if "name" in author else
                        ", ".join(filter(None, (_family(author), author.get("name-suffix"), author.get("given-names"))))
                        for author in work["authors"])


def _family(author) -> str:
    return " ".join(filter(None, (author.get("name-particle"), author.get("family-names"))))


def _repository(said, path) -> str | None:
    address = said.get("repository-code")
    if address is None:
        return None
    if not re.fullmatch(rf"https://({'|'.join(map(re.escape, HOSTS))})/[^/]+/[^/]+/?", address):
        raise ValueError(f"{path}: repository-code is {address!r}; it takes https://HOST/OWNER/NAME with a host of "
                         f"{', '.join(HOSTS)}")
    return address.rstrip("/")
