"""From executed notebooks to pages: a staging folder that Jupyter Book renders."""

import hashlib
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import yaml

from ..experiments.files import PUBLISHED, ROOT, write_json
from .citation import citation
from .running import Job


class SiteError(RuntimeError):
    """Jupyter Book did not render the pages."""


def stage_book(jobs: list[Job], stage: Path) -> None:
    """Put the book's sources and the executed notebooks into `stage`; `jobs` must hold every section."""
    executed = {job.section.path: job.executed for job in jobs}
    wanted = {Path("_config.yml"): _write_yaml(stage.parent / "sources" / "_config.yml", _config()),
              Path("_toc.yml"): ROOT / "_toc.yml"}
    for path in sorted((ROOT / "book").rglob("*")):
        if path.is_file() and (path.suffix != ".ipynb" or path in executed) and \
                not {".ipynb_checkpoints", "_static"} & set(path.parts):
            wanted[path.relative_to(ROOT)] = executed.get(path, path)
    wanted |= _static() | _results() | _committed(jobs)
    for job in jobs:
        for path in sorted((job.folder / "figures").glob("*")):
            wanted[Path("figures") / path.name] = path
    _check_unique(jobs)
    _lay_out(wanted, stage)


def stage_page(job: Job, stage: Path) -> None:
    """Put one executed notebook into `stage`, as a book of one chapter."""
    config = _config(path_to_book="book")
    # The page's references to the rest of the book lead nowhere here, and that is no error.
    config["sphinx"]["config"]["suppress_warnings"] = ["myst.xref_missing", "ref.ref", "ref.numref", "ref.doc", "toc"]
    # The bibliography comes along: without its page, no key that the chapter cites would be known.
    toc = {"format": "jb-book", "root": job.section.path.stem, "chapters": [{"file": "bibliography"}]}
    made = stage.parent / "sources"
    wanted = {Path("_config.yml"): _write_yaml(made / "_config.yml", config),
              Path("_toc.yml"): _write_yaml(made / "_toc.yml", toc),
              Path(job.section.path.name): job.executed, Path("bibliography.md"): ROOT / "book" / "bibliography.md",
              Path("book/references.bib"): ROOT / "book" / "references.bib"} | _static() | _results() | _committed([job])
    wanted |= {Path(path.name): path for path in sorted((ROOT / "book").glob("*.yml"))}  # what a page lets download
    _lay_out(wanted, stage)


def render(stage: Path, output: Path, say=print) -> Path:
    """Render `stage` into `output`/_build/html, if anything there has changed, and return the first page's path.

    Any warning stops it. Raises `SiteError` with Jupyter Book's own words.
    """
    html = output / "_build" / "html"
    record = output / "_build" / "rendered.json"
    digest = _digest(stage)
    try:
        if json.loads(record.read_text(encoding="utf-8"))["stage"] == digest and (html / "index.html").is_file():
            say("pages: up to date")
            return html / "index.html"
    except (OSError, ValueError, KeyError):
        pass
    say("pages: rendering")
    record.unlink(missing_ok=True)
    jupyter_book(stage, output, "html")
    write_json(record, {"stage": digest})
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


def _write_yaml(path: Path, content: dict) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(content, sort_keys=False, allow_unicode=True), encoding="utf-8")
    return path


def _committed(jobs: list[Job]) -> dict[Path, Path]:
    """The notebooks as they are committed, which the pages offer to download instead of the executed ones."""
    return {Path("committed") / job.section.path.name: job.section.path for job in jobs}


def _static() -> dict[Path, Path]:
    """Jupyter Book takes style sheets from the folder _static at the top."""
    return {Path("_static") / path.name: path for path in sorted((ROOT / "book" / "_static").glob("*"))}


def _results() -> dict[Path, Path]:
    """The published tables, of which a page may offer one to download: {download}`rows </results/….csv>`."""
    return {Path("results") / path.name: path for path in sorted((PUBLISHED / "results").glob("*.csv"))}


def _check_unique(jobs: list[Job]) -> None:
    """The same label twice would build, and references to it would silently go to the last one."""
    owners: dict[str, str] = {}
    for job in jobs:
        for path in sorted((job.folder / "figures").glob("*.csv")):
            if path.stem in owners:
                raise SiteError(f"the figure or table {path.stem!r} is made twice: "
                                f"in {owners[path.stem]} and in {job.section.name}")
            owners[path.stem] = job.section.name


def _lay_out(wanted: dict[Path, Path], stage: Path) -> None:
    """Make `stage` hold just these files; what is the same keeps its time, so that Sphinx reads only what changed."""
    stage.mkdir(parents=True, exist_ok=True)
    for path in sorted(stage.rglob("*")):
        if path.is_file() and path.relative_to(stage) not in wanted:
            path.unlink()
    for name, source in wanted.items():
        target = stage / name
        if not target.is_file() or target.read_bytes() != source.read_bytes():
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, target)


def _digest(stage: Path) -> str:
    digest = hashlib.sha256()
    for path in sorted(path for path in stage.rglob("*") if path.is_file()):
        digest.update(f"{path.relative_to(stage)}\0".encode() + path.read_bytes())
    digest.update((Path(__file__).with_name("sphinx_extension.py")).read_bytes())
    return digest.hexdigest()
