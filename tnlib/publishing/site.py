"""From executed notebooks to pages: a staging folder that Jupyter Book renders."""

import json
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import yaml

from ..experiments.files import PUBLISHED, ROOT, write_json
from .citation import citation
from .generated import SiteError, fill
from .jobs import Job
from .section import digest
from .sphinx_extension import FIGURES


def stage_book(jobs: list[Job], stage: Path) -> None:
    """Put the book's sources and the executed notebooks into `stage`; `jobs` must hold every section.

    What is generated stands in the pages in place of its marks. Raises `SiteError`.
    """
    _check_unique(jobs)
    executed = {job.section.path: _page(job) for job in jobs}
    wanted = {Path("_config.yml"): _yaml(_config()), Path("_toc.yml"): ROOT / "_toc.yml"}
    for path in sorted((ROOT / "book").rglob("*")):
        if path.is_file() and (path.suffix != ".ipynb" or path in executed) and \
                not {".ipynb_checkpoints", "_static"} & set(path.parts):
            wanted[path.relative_to(ROOT)] = (_with_banner(fill(path.read_text(encoding="utf-8"), jobs), jobs).encode()
                                              if path.suffix == ".md" else executed.get(path, path))
    wanted |= _static() | _results() | _figures(jobs) | _committed(jobs)
    _lay_out(wanted, stage)


def _with_banner(text: str, jobs: list[Job]) -> str:
    """A page's text, and below its title, where the book is not the published one, that it is not."""
    changes = {f"`{name} = {value!r}`": None for job in jobs for name, value in job.record["changed"].items()}
    banner = (f"```{{warning}}\nThis is not the published book: it was made with {', '.join(changes)}. "
              "What the text says in words alone was written for the published one.\n```\n")
    return _below_title(text, banner) if changes else text


def _below_title(text: str, banner: str) -> str:
    return re.sub(r"^# .*\n", lambda title: f"{title[0]}\n{banner}", text, count=1, flags=re.MULTILINE)


def _page(job: Job, alone: bool = False) -> Path | bytes:
    """The executed notebook. The warning that it is not the published page, which its parameters print, stands below its title:
    before anything that the text concludes. `alone`: what other chapters show is called by its name, as there is no number of it."""
    notebook, as_it_is = nbformat.read(job.executed, as_version=4), not alone
    for output in (output for cell in notebook.cells for output in cell.get("outputs", [])):
        shown = output.get("data", {}).get("text/markdown", "")
        if warning := re.match(r"```\{warning\}\n.*?\n```\n", shown, re.DOTALL):
            output["data"]["text/markdown"] = shown[warning.end():]
            notebook.cells[0].source, as_it_is = _below_title(notebook.cells[0].source, warning[0]), False
    own = {path.stem for path in (job.folder / "figures").glob("*.csv")}
    for cell in notebook.cells if alone else []:
        if cell.cell_type == "markdown":
            cell.source = re.sub(r"\{numref\}`([a-z0-9-]+)`", lambda number: number[0] if number[1] in own else f"*{number[1]}* of the whole book", cell.source)
    return job.executed if as_it_is else nbformat.writes(notebook).encode()


def stage_page(job: Job, stage: Path) -> None:
    """Put one executed notebook into `stage`, as a book of one chapter."""
    config = _config(path_to_book="book")
    # The page's references to the rest of the book lead nowhere here, and that is no error.
    config["sphinx"]["config"]["suppress_warnings"] = ["myst.xref_missing", "ref.ref", "ref.numref", "ref.doc", "toc"]
    # The bibliography comes along: without its page, no key that the chapter cites would be known.
    toc = {"format": "jb-book", "root": job.section.path.stem, "chapters": [{"file": "bibliography"}]}
    wanted = {Path("_config.yml"): _yaml(config), Path("_toc.yml"): _yaml(toc),
              Path(job.section.path.name): _page(job, alone=True), Path("bibliography.md"): ROOT / "book" / "bibliography.md",
              Path("book/references.bib"): ROOT / "book" / "references.bib"}
    wanted |= _static() | _results() | _figures([job]) | _committed([job])
    wanted |= {Path(path.name): path for path in sorted((ROOT / "book").glob("*.yml"))}  # what a page lets download
    _lay_out(wanted, stage)


def render(stage: Path, output: Path, say=print) -> Path:
    """Render `stage` into `output`/_build/html, if anything there has changed, and return the first page's path.

    Any warning stops it. Raises `SiteError` with Jupyter Book's own words.
    """
    html = output / "_build" / "html"
    record = output / "_build" / "rendered.json"
    made_of = digest([*sorted(path for path in stage.rglob("*") if path.is_file()), ROOT / "CITATION.cff",
                      *sorted(Path(__file__).parent.glob("*.py"))])  # the Sphinx extension and what it imports
    try:
        if json.loads(record.read_text(encoding="utf-8"))["stage"] == made_of and (html / "index.html").is_file():
            say("pages: up to date")
            return html / "index.html"
    except (OSError, ValueError, KeyError):
        pass
    say("pages: rendering")
    record.unlink(missing_ok=True)
    jupyter_book(stage, output, "html")
    write_json(record, {"stage": made_of})
    return html / "index.html"


def jupyter_book(stage: Path, output: Path, builder: str) -> None:
    """Render `stage` into `output`/_build/`builder`. Raises `SiteError` with Jupyter Book's words on any warning."""
    command = [sys.executable, "-c", "from jupyter_book.cli.main import main; main()", "build", str(stage),
               "--path-output", str(output), "--builder", builder,
               "-W", "--keep-going", "--all"]  # all: a page read anew is never stale
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode or not (output / "_build" / builder / "index.html").is_file():
        words = [line for line in (done.stdout + done.stderr).splitlines()
                 if re.search(r"WARNING|ERROR|Error|error:", line)] or done.stderr.splitlines()[-20:]
        raise SiteError("Jupyter Book did not render the pages:\n  " + "\n  ".join(words))


def _config(path_to_book="") -> dict:
    """_config.yml and what CITATION.cff says: the authors, and where an address is known, the buttons that need it."""
    config = yaml.safe_load((ROOT / "_config.yml").read_text(encoding="utf-8"))
    cited = citation()
    config["author"] = ", ".join(cited.authors)
    if cited.repository:
        config["repository"] = {"url": cited.repository, "branch": "HEAD", "path_to_book": path_to_book}
        config["launch_buttons"] = {"binderhub_url": "https://mybinder.org", "notebook_interface": "jupyterlab"}
        config["html"]["use_repository_button"] = True
    return config


def _yaml(content: dict) -> bytes:
    return yaml.safe_dump(content, sort_keys=False, allow_unicode=True).encode()


def _committed(jobs: list[Job]) -> dict[Path, Path]:
    """The notebooks as they are committed, which the pages offer to download instead of the executed ones."""
    return {Path("committed") / job.section.path.name: job.section.path for job in jobs}


def _static() -> dict[Path, Path]:
    """Jupyter Book takes style sheets from the folder _static at the top."""
    return {Path("_static") / path.name: path for path in sorted((ROOT / "book" / "_static").glob("*"))}


def _results() -> dict[Path, Path]:
    """The published tables: results/ beside the pages, of which a page may also say {download}`rows </results/….csv>`."""
    paths = sorted((PUBLISHED / "results").glob("*.csv"))
    return {folder / path.name: path for folder in (Path("results"), Path("extra/results")) for path in paths}


def _figures(jobs: list[Job]) -> dict[Path, Path]:
    """The files of the figures: figures/ beside the pages."""
    return {FIGURES / path.name: path for job in jobs for path in sorted((job.folder / "figures").glob("*"))}


def _check_unique(jobs: list[Job]) -> None:
    """The same label twice would build, and references to it would silently go to the last one."""
    owners: dict[str, str] = {}
    for job in jobs:
        for path in sorted((job.folder / "figures").glob("*.csv")):
            if path.stem in owners:
                raise SiteError(f"the figure or table {path.stem!r} is made twice: "
                                f"in {owners[path.stem]} and in {job.section.name}")
            owners[path.stem] = job.section.name


def _lay_out(wanted: dict[Path, Path | bytes], stage: Path) -> None:
    """Make `stage` hold just these files, given as paths or as contents.

    What is the same keeps its time, so that Sphinx reads only what changed.
    """
    stage.mkdir(parents=True, exist_ok=True)
    for path in sorted(stage.rglob("*")):
        if path.is_file() and path.relative_to(stage) not in wanted:
            path.unlink()
    for name, source in wanted.items():
        target, content = stage / name, source if isinstance(source, bytes) else source.read_bytes()
        if not target.is_file() or target.read_bytes() != content:
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(content)
