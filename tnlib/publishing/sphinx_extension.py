"""A Sphinx extension: the sources, whose notebooks have no outputs, are not what is to be rendered."""

from pathlib import Path


def setup(app):
    if (Path(app.srcdir) / "pyproject.toml").exists():
        # Not a Sphinx error: those come with two tracebacks.
        raise SystemExit("This folder holds the book's sources, whose notebooks have no outputs: the pages would be "
                         "empty. Run `make book` (or, where tnlib is installed, `tnlib build`) instead.")
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
