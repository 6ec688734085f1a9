"""What holds for all tests: reproducible properties, few threads, and what a test needs that not every machine has."""

import os
import pickle
import shutil

import pytest
import torch
from filelock import FileLock
from hypothesis import settings

from tnlib.experiments.datasets import CIFAR, find_files
from tnlib.publishing.scorecard import scorecard

settings.register_profile("tnlib", deadline=None, derandomize=True, max_examples=30, database=None)
settings.load_profile("tnlib")
torch.set_num_threads(1)  # small tensors: more threads only wait for each other, and tests run several at once
os.environ["OMP_NUM_THREADS"] = "1"  # for what the tests start

CI = bool(os.environ.get("CI"))
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


def cifar_is_there() -> bool:
    return all(find_files(name) for name in CIFAR)


def pytest_collection_modifyitems(config, items):
    """Deselect, and so count, what needs what is not there; CIFAR and Chromium must be there in CI."""
    site = os.environ.get("TNLIB_SITE")
    there = {"cifar": cifar_is_there(), "browser": CHROMIUM, "published": site, "shapes": not site}
    without = [item for item in items if any(item.get_closest_marker(marker) for marker in there if not there[marker])]
    if CI and not (there["cifar"] and there["browser"]):
        raise pytest.UsageError("CI must run the tests that need CIFAR and a browser: set TNLIB_DATA, install Chromium")
    if without:
        config.hook.pytest_deselected(items=without)
        items[:] = [item for item in items if item not in without]


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item):
    torch.manual_seed(0)  # weights that a fixture or a test draws are the same whatever ran before


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_call(item):
    torch.manual_seed(0)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """Several workers: one of them takes all tests of a file that share a page or a browser, and all of the scorecard's."""
    from xdist.scheduler import LoadScopeScheduling

    class SharingByFile(LoadScopeScheduling):
        def _split_scope(self, nodeid):
            file = nodeid.split("::")[0]
            if "scorecard" in file:
                return "the scorecard"
            return file if file.startswith("tests/book/") else nodeid

    return SharingByFile(config, log)


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session, exitstatus):
    """In CI a skipped test is a failure."""
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if CI and exitstatus == 0 and reporter and reporter.stats.get("skipped"):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


@pytest.fixture(scope="session")
def shared(tmp_path_factory):
    """A folder of this run of the tests, the same in all of its processes: what one has built there, the others find."""
    own = tmp_path_factory.getbasetemp()
    return own.parent if "PYTEST_XDIST_WORKER" in os.environ else own


@pytest.fixture(scope="session")
def card(shared):
    """The scorecard of what is published: half a minute and more of spectra, once for all processes."""
    kept = shared / "scorecard.pickle"
    with FileLock(kept.with_suffix(".lock")):
        if not kept.exists():
            kept.write_bytes(pickle.dumps(scorecard()))
    return pickle.loads(kept.read_bytes())


@pytest.fixture
def no_data(monkeypatch, tmp_path):
    """A machine without any data set: TNLIB_DATA not set, an empty cache and home."""
    monkeypatch.delenv("TNLIB_DATA", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "home").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    return tmp_path
