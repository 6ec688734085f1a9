"""A Sphinx extension: each figure in both themes, its files below it, hyphens as they should be, a bibliography with the names
by which its entries are cited, what pages do without, and no unrun sources."""

import html
import re
import shutil
from functools import cache, cached_property
from pathlib import Path

from docutils import nodes
from pybtex.plugin import register_plugin
from pybtex.style.formatting.plain import Style as PlainStyle
from pybtex.style.labels import BaseLabelStyle
from sphinx.domains.std import StandardDomain
from sphinx.transforms.post_transforms import SphinxPostTransform

from .cards import about_sources, bibtex, read_cards, sentence

FIGURES = Path("extra") / "figures"  # below the stage; on the site figures/, beside results/
NAME = re.compile(r"(CIFAR-100?|ResNet-50)")
NEGATIVE = re.compile(r"(?<![^\s(\[:])-(?=\d)")  # a hyphen before a number, at the beginning of a word


def setup(app):
    if (Path(app.srcdir) / "pyproject.toml").exists():
        # Not a Sphinx error: those come with two tracebacks.
        raise SystemExit("This folder holds the book's sources, whose notebooks have no outputs: the pages would be "
                         "empty. Run `make book` (or, where tnlib is installed, `tnlib build`) instead.")
    register_plugin("pybtex.style.formatting", "cited", _AsCited)
    app.add_domain(_ReferencesToPagesReadOnce, override=True)
    app.add_post_transform(_Hyphens)
    app.connect("doctree-read", _add_files, priority=400)  # before Sphinx copies the pictures that it finds
    app.connect("html-page-context", _without_thebe, priority=900)
    app.connect("html-page-context", _bibliography_is_a_list)
    app.connect("build-finished", _offer_committed_notebooks)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}


def _add_files(app, doctree):
    """Show the very files of a figure instead of a copy, and below each figure and table a line on its files."""
    up = "../" * app.env.docname.count("/")
    cards = read_cards([Path(app.srcdir) / FIGURES])
    for node in list(doctree.findall(lambda node: isinstance(node, (nodes.figure, nodes.table)))):
        card = next((cards[id] for id in node["ids"] if id in cards), None)
        if card is None:
            continue
        for image in list(node.findall(nodes.image)):
            image.parent.replace(image, _raw(_picture(card, up)))
        place = node.parent.index(node) + 1
        node.parent.insert(place, nodes.container("", *_line(card, up), classes=["figure-line"]))


def _raw(text):
    return nodes.raw("", text, format="html")


def _picture(card: dict, up: str) -> str:
    """The picture, as wide as in print; a click opens it alone."""
    return f'<div class="figure-picture width-{card["width_mm"]}"><a href="{up}figures/{card["id"]}.svg">{images(card, up, card["alt"])}</a></div>'


def images(card: dict, up: str, alt: str, loading: str = "eager") -> str:
    """A figure's picture in both themes, of which the page shows one, as HTML; its place is kept until it is there.

    `loading`: "lazy" where a browser is to fetch it only when it comes near to what is seen; it would be missing on paper.
    """
    size = f'width="{card["width_mm"]}" height="{card["height_mm"]}"' if "height_mm" in card else ""  # of an earlier version's page
    return "".join(f'<img class="only-{theme}" src="{up}figures/{card["id"]}{name}" alt="{html.escape(alt, quote=True)}" loading="{loading}" {size}>'
                   for theme, name in (("light", ".svg"), ("dark", ".dark.svg")))


def _line(card: dict, up: str) -> list[nodes.Node]:
    """Download, cite, made from."""
    return [_raw(f'<p>{downloads(card, up)}</p><details><summary>Cite</summary>'),
            *(nodes.literal_block(text, text, language=language)  # with its source, or Sphinx does not make it one to copy
              for text, language in ((sentence(card), "text"), (bibtex(card), "bibtex"))),
            _raw(f"</details><details><summary>Made from</summary>{_made_from(card, up)}</details>")]


def downloads(card: dict, up: str) -> str:
    """Links to a figure's files, as HTML."""
    return "Download " + " · ".join(f'<a href="{up}figures/{name}" download>{Path(name).suffix[1:].upper()}</a>'
                                    for name in card["files"])


def _made_from(card: dict, up: str) -> str:
    """What is behind a figure, as HTML; published tables as links."""
    lines = [html.escape(line) for line in about_sources(card)]
    for source in card["sources"]:
        if source["file"].startswith("published/results/"):
            link = f'<a href="{up}results/{Path(source["file"]).name}">{source["file"]}</a>'
            lines = [line.replace(f"{source['file']} ", f"{link} ") for line in lines]
    items = "".join(f"<li>{line}</li>" for line in (*lines, f'<a href="{up}figures/{card["id"]}.json">the whole card</a>'))
    return f"<ul>{items}</ul>"


class _ReferencesToPagesReadOnce(StandardDomain):
    """Sphinx unpickles the whole page that a figure is on for each of the references to it, which takes as long as all else."""

    @cached_property
    def _pages(self):
        return _PagesReadOnce(self.env)

    def resolve_xref(self, env, fromdocname, builder, typ, *what):
        return super().resolve_xref(self._pages if typ == "numref" else env, fromdocname, builder, typ, *what)


class _PagesReadOnce:
    """A build environment that gives the same page each time, for those who change nothing in it."""

    def __init__(self, env):
        self._env, self.get_doctree = env, cache(env.get_doctree)

    def __getattr__(self, name):
        return getattr(self._env, name)


class _Hyphens(SphinxPostTransform):
    """No line breaks behind the hyphen of a name; and negative numbers, which Python writes with one, have a minus sign."""

    default_priority = 900  # when glued numbers have taken their places

    def run(self):
        for text in list(self.document.findall(nodes.Text)):
            if isinstance(text.parent, (nodes.literal, nodes.math, nodes.FixedTextElement)):  # code and formulas
                continue
            parts = NAME.split(NEGATIVE.sub("−", text))
            if parts != [text]:
                text.parent.replace(text, [nodes.inline("", part, classes=["unbroken"]) if NAME.fullmatch(part) else nodes.Text(part)
                                           for part in parts if part])


class _AuthorsAndYear(BaseLabelStyle):
    """As the text cites an entry: Kim et al., 2016."""

    def format_labels(self, sorted_entries):
        for entry in sorted_entries:
            names = [" ".join(map(str, (*person.rich_prelast_names, *person.rich_last_names))) for person in entry.persons["author"]]
            yield f"{names[0] if len(names) == 1 else ' and '.join(names) if len(names) == 2 else f'{names[0]} et al.'}, {entry.fields['year']}"


class _AsCited(PlainStyle):
    default_label_style = _AuthorsAndYear


def _without_thebe(app, pagename, templatename, context, doctree):
    """Thebe, which Jupyter Book always loads, runs code on a server; declared twice, it also fails in every browser."""
    def is_thebe(script):
        return "thebe" in str(script) or "THEBE" in getattr(script, "attributes", {}).get("body", "")

    context["script_files"] = [script for script in context["script_files"] if not is_thebe(script)]


def _bibliography_is_a_list(app, pagename, templatename, context, doctree):
    """Sphinx gives the entries of a list a role that no list may hold, and that is deprecated."""
    if "body" in context:
        context["body"] = context["body"].replace('role="doc-biblioentry"', 'role="listitem"')


def _offer_committed_notebooks(app, error):
    """The theme's download button leads to a page's source, here an executed notebook: put the committed one there."""
    for notebook in Path(app.srcdir, "committed").glob("*.ipynb"):
        for offered in Path(app.outdir, "_sources").rglob(notebook.name):
            shutil.copyfile(notebook, offered)
