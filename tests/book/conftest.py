"""The book itself: its notebooks executed with the `shapes` profile, and the site rendered from them, once."""

import os
from pathlib import Path

import pytest
from filelock import FileLock
from playwright.sync_api import sync_playwright

from tnlib.publishing.running import Job, run, section_values, sections
from tnlib.publishing.site import render, stage_book

from ..conftest import CHROMIUM


@pytest.fixture(scope="session")
def shapes_jobs(shared):
    """Every section of the book, executed with the `shapes` profile: name → job."""
    jobs = {name: Job(section, section_values(section, "shapes", {}), shared / "shapes" / name)
            for name, section in sections().items()}
    first = ("truncations", "scorecard", "retraining", "controls")  # those that measure longest, and what others look for
    with FileLock(shared / "shapes.lock"):
        run([jobs[name] for name in dict.fromkeys((*first, *jobs))])  # but what another process has run already
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
