"""A Sphinx extension: what the book's pages do without, and a stop before the sources are rendered as they are."""

import shutil
from pathlib import Path


def setup(app):
    if (Path(app.srcdir) / "pyproject.toml").exists():
        # Not a Sphinx error: those come with two tracebacks.
        raise SystemExit("This folder holds the book's sources, whose notebooks have no outputs: the pages would be "
                         "empty. Run `make book` (or, where tnlib is installed, `tnlib build`) instead.")
    app.connect("html-page-context", _without_thebe, priority=900)
    app.connect("html-page-context", _bibliography_is_a_list)
    app.connect("build-finished", _offer_committed_notebooks)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}


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
