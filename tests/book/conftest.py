"""The book itself: its notebooks executed with the `shapes` profile, and the site rendered from them, once."""

import os
from pathlib import Path

import pytest
from playwright.sync_api import sync_playwright

from tnlib.publishing.running import Job, run, section_values, sections
from tnlib.publishing.site import render, stage_book

from ..conftest import CHROMIUM


@pytest.fixture(scope="session")
def shapes_jobs(tmp_path_factory):
    """Every section of the book, executed with the `shapes` profile: name → job."""
    folder = tmp_path_factory.mktemp("shapes")
    jobs = {name: Job(section, section_values(section, "shapes", {}), folder / name)
            for name, section in sections().items()}
    run(list(jobs.values()))
    return jobs


@pytest.fixture(scope="session")
def stage(request, tmp_path_factory):
    """What the pages are rendered from: the book that TNLIB_SITE names, else the book of the `shapes` profile."""
    if os.environ.get("TNLIB_SITE"):
        return Path(os.environ["TNLIB_SITE"]).parent / "stage"
    jobs = request.getfixturevalue("shapes_jobs")
    stage = tmp_path_factory.mktemp("site") / "stage"
    stage_book(list(jobs.values()), stage)
    return stage


@pytest.fixture(scope="session")
def site(stage):
    """The folder of the rendered pages."""
    if os.environ.get("TNLIB_SITE"):
        return Path(os.environ["TNLIB_SITE"])
    return render(stage, stage.parent).parent


@pytest.fixture(scope="session")
def browser():
    """Headless Chromium."""
    os.environ.setdefault("PLAYWRIGHT_SKIP_VALIDATE_HOST_REQUIREMENTS", "1")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()
