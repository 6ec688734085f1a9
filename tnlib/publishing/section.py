"""The page that is being made: its name, its parameters, what it has read so far, and where its files go."""

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt

from ..experiments.files import RUNS

OUTPUT_VARIABLE = "TNLIB_OUTPUT"  # where the running notebook's figures go; set by whoever runs it


@dataclass
class OpenSection:
    """`values`: parameter → value. `of_the_book`: whether all of them are the published ones. `read`: what `results` was
    asked for → the files that it read. `made`: cards so far."""

    name: str = "notebook"
    folder: Path = field(default_factory=lambda: RUNS / "notebook")
    values: dict[str, Any] = field(default_factory=dict)
    of_the_book: bool = False
    read: dict[str, list[Path]] = field(default_factory=dict)
    made: list[str] = field(default_factory=list)

    def note(self, what: str, files: list[Path]) -> None:
        """Files were read for `what`; figures name it as one of their sources."""
        known = self.read.setdefault(what, [])
        known += [path for path in files if path not in known]


section = OpenSection()  # of this process; opened by `parameters`


def open_section(name: str, run: str, values: dict[str, Any]) -> None:
    """Let figures go to the folder that the runner set, else to runs/`run`, and use the book's look.

    `run`: as `run_name` gives it, which is `name` where no parameter is changed.
    """
    section.name, section.values, section.read, section.made = name, values, {}, []
    section.of_the_book = run == name
    section.folder = Path(os.environ.get(OUTPUT_VARIABLE) or RUNS / run)
    plt.style.use(Path(__file__).with_name("paper.mplstyle"))
