"""The book on paper: all its pages as one, printed by Chromium."""

import re
import shutil
import subprocess
import tempfile
from pathlib import Path

from ..experiments.files import atomic_path
from .site import SiteError, jupyter_book

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome", "msedge")
PATIENCE = 900  # seconds: a browser that hangs ends


def print_book(stage: Path, output: Path, say=print) -> Path:
    """Print the book that lies in `stage` to `output`. Raises `SiteError` where it cannot be rendered or printed."""
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        raise SiteError(f"printing needs Chromium or Chrome, and none of {', '.join(BROWSERS)} is on the PATH")
    if not (stage / "_config.yml").is_file():
        raise SiteError("the book is not built yet: run `tnlib build` first")
    say("pages: rendering as one")
    with tempfile.TemporaryDirectory(prefix="tnlib-") as folder:
        jupyter_book(stage, Path(folder), "singlehtml")
        page = _one_page(Path(folder) / "_build" / "singlehtml")
        say(f"pages: printing with {Path(browser).name}")
        with atomic_path(output) as made:
            # The virtual time is MathJax's, to typeset all formulas before anything is printed. The page is ours and
            # from this disk, so that it needs no sandbox, which is not to be had in containers.
            command = [browser, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={folder}/browser",
                       "--virtual-time-budget=600000", "--no-pdf-header-footer", "--generate-pdf-document-outline",
                       f"--print-to-pdf={made}", page.as_uri()]
            try:
                done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)
            except subprocess.TimeoutExpired as error:
                raise SiteError(f"the browser did not print the book within {PATIENCE} s") from error
            if done.returncode or not made.read_bytes().startswith(b"%PDF"):
                raise SiteError("the browser did not print the book:\n  " + "\n  ".join(done.stderr.splitlines()[-10:]))
    return output


def _one_page(folder: Path) -> Path:
    """Mend Sphinx's single page: it lies one folder deeper than its links say, and its chapters share names.

    Names that Sphinx gives by itself (id1, id2, ...) are those of every chapter; only the bibliography's are linked to.
    """
    text = (folder / "book" / "index.html").read_text(encoding="utf-8")
    text = re.sub(r'href="book/index\.html#(id\d+)"', r'href="#cited-\1"', text)
    text = re.sub(r'(<div class="citation" id=")(id\d+)"', r'\1cited-\2"', text)
    text = text.replace('href="book/index.html#', 'href="#')
    text = text.replace('src="../figures/', 'src="figures/')
    # Links to files that do not come with the paper.
    text = re.sub(r'(<a [^>]*)href="(_downloads|\.\./figures|\.\./results)/[^"]*"', r"\1", text)
    page = folder / "index.html"
    page.write_text(text, encoding="utf-8")
    return page
