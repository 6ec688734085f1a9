"""The book itself: its notebooks executed with the `shapes` profile, and the site rendered from them, once."""

import contextlib
import io
import os
from pathlib import Path

import matplotlib.pyplot as plt
import nbformat
import pytest
from click.testing import CliRunner
from filelock import FileLock
from papermill.cli import papermill as papermill_command
from playwright.sync_api import sync_playwright

from tnlib import notebook
from tnlib.publishing import figures
from tnlib.publishing.building import FIRST_TO_MEASURE, in_order
from tnlib.publishing.jobs import Job, section_values, sections
from tnlib.publishing.kernels import forked_kernels
from tnlib.publishing.parameters import changed
from tnlib.publishing.running import run
from tnlib.publishing.section import open_section
from tnlib.publishing.site import render, stage_book

from ..conftest import CHROMIUM


@pytest.fixture(scope="session")
def shapes_jobs(shared):
    """Every section of the book, executed with the `shapes` profile: name → job."""
    jobs = {name: Job(section, section_values(section, "shapes", {}), shared / "shapes" / name)
            for name, section in sections().items()}
    with FileLock(shared / "shapes.lock"):
        run(in_order(list(jobs.values()), FIRST_TO_MEASURE))  # but what another process has run already
    return jobs


@pytest.fixture(scope="session")
def stage(request, shared):
    """What the pages are rendered from: the book that TNLIB_SITE names, else the book of the `shapes` profile."""
    if os.environ.get("TNLIB_SITE"):
        return Path(os.environ["TNLIB_SITE"]).parent / "stage"
    jobs, stage = request.getfixturevalue("shapes_jobs"), shared / "site" / "stage"
    with FileLock(shared / "stage.lock"):
        stage_book(list(jobs.values()), stage)  # what is there already is left as it is
    return stage


@pytest.fixture(scope="session")
def site(stage):
    """The folder of the rendered pages."""
    if os.environ.get("TNLIB_SITE"):
        return Path(os.environ["TNLIB_SITE"])
    with FileLock(stage.parent.parent / "render.lock"):
        return render(stage, stage.parent).parent


@pytest.fixture
def papermill(tmp_path, monkeypatch):
    """Papermill's command, in `tmp_path`: the name of a section and further words → its exit status, and what stopped it."""
    monkeypatch.chdir(tmp_path)

    def command(section, *words):
        with forked_kernels():
            result = CliRunner().invoke(papermill_command, [str(sections()[section].path), "out.ipynb", *words, "--no-progress-bar"])
        return result.exit_code, str(result.exception)

    return command


def no_pictures(fig, folder, id, about):
    """In place of `write_pictures`: an empty file."""
    folder.mkdir(exist_ok=True)
    (folder / f"{id}.svg").write_text("")
    return [f"{id}.svg"]


@pytest.fixture
def cells_run_here(monkeypatch, tmp_path):
    """Runs a chapter's cells in this process, into `tmp_path`: its section's name and parameters → captions of its figures and
    tables, and values of its text. Pictures are looked at as ever, but not written: that is most of the time."""
    captions, said = {}, {}
    for name in ("name", "folder", "values", "changed", "read", "asked", "made", "of_the_book"):  # which `open_section` sets
        monkeypatch.setattr(figures.section, name, getattr(figures.section, name))
    monkeypatch.setenv("TNLIB_OUTPUT", str(tmp_path))
    monkeypatch.setattr(notebook, "parameters", lambda section: None)
    monkeypatch.setattr(notebook, "value", lambda name, number: said.update({name: number}))
    monkeypatch.setattr(figures, "write_pictures", no_pictures)
    for kind in ("figure", "table"):
        made = getattr(figures, kind)
        monkeypatch.setattr(notebook, kind, lambda what, id, caption, *rest, made=made, **options: (
            captions.update({id: caption}), made(what, id, caption, *rest, **options)))

    def run_cells(name, profile="published", **given):
        section, namespace = sections()[name], {}
        values = section_values(section, profile, given)
        with contextlib.redirect_stdout(io.StringIO()), plt.rc_context():
            open_section(name, name, values, changed(section.parameters, values))
            for cell in nbformat.read(section.path, as_version=4).cells:
                if cell.cell_type == "code":
                    exec(compile(cell.source, cell.id, "exec"), namespace)
                if "parameters" in cell.metadata.get("tags", []):
                    namespace |= values
        return captions, said

    return run_cells


@pytest.fixture(scope="session")
def browser():
    """Headless Chromium."""
    os.environ.setdefault("PLAYWRIGHT_SKIP_VALIDATE_HOST_REQUIREMENTS", "1")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


def patient_context(browser, **options):
    """A context of `browser` whose pages are waited for as long as a machine takes whose cores are busy."""
    context = browser.new_context(**options)
    context.set_default_timeout(180_000)
    return context
