"""The exact versions that are installed: all that is needed has one, and each is for every Python that the project is for."""

import tomllib
from importlib.metadata import distributions
from pathlib import Path

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

import tnlib

ROOT = Path(tnlib.__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
PINS = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines() if not line.startswith("#"))
PINNED = {canonicalize_name(name): version for name, version in PINS.items()}


def test_all_that_the_project_asks_for_has_an_exact_version_in_its_range():
    asked = [Requirement(text) for text in (*PROJECT["dependencies"], *sum(PROJECT["optional-dependencies"].values(), []))]
    assert len(asked) > 30
    for requirement in asked:
        assert requirement.specifier.contains(PINNED[canonicalize_name(requirement.name)]), requirement


def test_each_is_for_the_first_release_of_the_oldest_python():
    (oldest,) = SpecifierSet(PROJECT["requires-python"])
    there = {canonicalize_name(found.name): found for found in distributions()}
    found = {name: there[name].metadata.get("Requires-Python") for name, version in PINNED.items()
             if name in there and there[name].version == version}
    assert len(found) > 100
    newer = {name: asked for name, asked in found.items() if asked and not SpecifierSet(asked).contains(f"{oldest.version}.0")}
    assert not newer, "pin an older release of these"
