"""What holds for all tests: reproducible properties, few threads, and no CIFAR tests where there is no CIFAR."""

import os
from pathlib import Path

import pytest
import torch
from hypothesis import settings

settings.register_profile("tnlib", deadline=None, derandomize=True, max_examples=30, database=None)
settings.load_profile("tnlib")
torch.set_num_threads(1)  # small tensors: more threads only wait for each other, and tests run several at once


def cifar_is_there() -> bool:
    folder = os.environ.get("TNLIB_DATA")
    return bool(folder) and all((Path(folder) / f"{name}.npz").is_file() for name in ("cifar10", "cifar100"))


def pytest_configure(config):
    config.addinivalue_line("markers", "cifar: needs the real CIFAR data in the folder that TNLIB_DATA names")


def pytest_collection_modifyitems(config, items):
    """Deselect, and so count, the tests of real data where TNLIB_DATA has none: they are not failures to look into."""
    if cifar_is_there():
        return
    without = [item for item in items if item.get_closest_marker("cifar")]
    if without:
        config.hook.pytest_deselected(items=without)
        items[:] = [item for item in items if item not in without]


@pytest.fixture
def no_data(monkeypatch, tmp_path):
    """A machine without any data set: TNLIB_DATA not set, an empty cache and home."""
    monkeypatch.delenv("TNLIB_DATA", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    return tmp_path
