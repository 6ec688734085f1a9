"""What there is to run: the book's sections, and jobs, each a section with all its parameters' values and a folder of its own."""

import json
import tokenize
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nbformat
import yaml
from sphinx_external_toc.parsing import MalformedError, parse_toc_yaml

from ..experiments.files import ROOT
from .parameters import PROFILES, Parameter, ParameterError, declared, parameters_cell, validate


@dataclass(frozen=True)
class Section:
    """A notebook of the book: book/02_spectra.ipynb is the section `spectra`."""

    name: str
    path: Path

    @property
    def parameters(self) -> dict[str, Parameter]:
        """Raises `ParameterError` for a cell that declares none that can be read."""
        try:
            return declared(parameters_cell(nbformat.read(self.path, as_version=4)))
        except (ValueError, SyntaxError, tokenize.TokenError) as error:
            raise ParameterError(f"{self.path}: its cell of parameters cannot be read: {error}") from None


@dataclass(frozen=True)
class Job:
    """A section to run with all its parameters' `values`, into `folder`.

    It makes the executed notebook, figures/, run.json (`record`, how it ran) and stamp.json (what it was made from).
    """

    section: Section
    values: dict[str, Any]
    folder: Path

    @property
    def executed(self) -> Path:
        return self.folder / self.section.path.name

    @property
    def stopped(self) -> Path:
        """Where a notebook is left that stopped at an error."""
        return self.folder / f"stopped-{self.section.path.name}"

    @property
    def has_run(self) -> bool:
        """Whether it has run to its end, whatever changed since."""
        return (self.folder / "run.json").exists() and (self.folder / "stamp.json").exists()

    @property
    def record(self) -> dict:
        """How it last ran: `started, seconds, git_commit, versions, device, threads, platform, parameters, changed`.

        `changed`: the parameters that were not the published ones. Raises `FileNotFoundError` where it never ran.
        """
        return json.loads((self.folder / "run.json").read_text(encoding="utf-8"))


def sections() -> dict[str, Section]:
    """Name → section, of the notebooks in `_toc.yml`, in its order."""
    try:
        names = parse_toc_yaml(ROOT / "_toc.yml")
    except (MalformedError, yaml.YAMLError) as error:
        raise ParameterError(f"{ROOT / '_toc.yml'} cannot be read: {error}") from None
    paths = [ROOT / f"{name}.ipynb" for name in names]
    found = [path for path in paths if path.is_file()]
    return {path.stem.lstrip("0123456789_"): Section(path.stem.lstrip("0123456789_"), path) for path in found}


def find_section(name: str) -> Section:
    """The section called `name`. Raises `ParameterError` that lists the sections."""
    known = sections()
    if name not in known:
        raise ParameterError(f"unknown section {name!r}: it takes {', '.join(known)}")
    return known[name]


def section_values(section: Section, profile: str, given: dict[str, Any]) -> dict[str, Any]:
    """All parameters of `section` under a profile with `given` on top, checked. Raises `ParameterError`.

    Where the data set that is given is the one that it would be compared with, the published one is set beside it.
    """
    parameters = section.parameters
    profile = given.get("profile", profile)
    preset = PROFILES.get(profile, {}) if isinstance(profile, str) else {}
    values = {k: v for k, v in preset.items() if k in parameters} | given
    if "compare" in parameters and "compare" not in values and values.get("dataset") == parameters["compare"].default:
        values["compare"] = parameters["dataset"].default
    return validate(parameters, values, section.name)
