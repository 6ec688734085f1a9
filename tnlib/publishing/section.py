"""The page that is being made: its name, its parameters, what it has read so far, and where its files go."""

import hashlib
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..experiments.files import ROOT, RUNS, sha256_of, write_json

OUTPUT_VARIABLE = "TNLIB_OUTPUT"  # where the running notebook's figures go; set by whoever runs it
ASKED = "asked.json"  # beside them: the tables that the page looked for, as patterns of their names, with the `digest` of what it found


@dataclass
class OpenSection:
    """`values`: parameter → value. `changed`: those that are not the published ones; `of_the_book`: whether there are none. `read`: what `results` was
    asked for → the files that it read. `asked`: patterns of the names of all tables that it looked for → `digest`. `made`: cards so far."""

    name: str = "notebook"
    folder: Path = field(default_factory=lambda: RUNS / "notebook")
    values: dict[str, Any] = field(default_factory=dict)
    of_the_book: bool = False
    read: dict[str, list[Path]] = field(default_factory=dict)
    changed: dict[str, Any] = field(default_factory=dict)
    asked: dict[str, str] = field(default_factory=dict)
    made: list[str] = field(default_factory=list)

    def ask(self, pattern: str) -> None:
        """Tables of this name are looked for, or were found: the page is to be made again when there are others."""
        found = own_results(pattern)
        if self.asked.get(pattern) != found:
            self.asked[pattern] = found
            if OUTPUT_VARIABLE in os.environ:
                write_json(self.folder / ASKED, self.asked)

    def note(self, what: str, files: list[Path]) -> None:
        """Files were read for `what`; figures name it as one of their sources."""
        known = self.read.setdefault(what, [])
        known += [path for path in files if path not in known]


def own_results(pattern: str) -> str:
    """The `digest` of your own results whose names are as `pattern` has them."""
    return digest(sorted((RUNS / "results").glob(pattern)))


def digest(paths) -> str:
    """sha256 of the names and the contents of files."""
    made = hashlib.sha256()
    for path in paths:
        made.update(f"{os.path.relpath(path, ROOT)}\0{sha256_of(path)}\0".encode())
    return made.hexdigest()


section = OpenSection()  # of this process; opened by `parameters`


def open_section(name: str, run: str, values: dict[str, Any], changed: dict[str, Any]) -> None:
    """Let figures go to the folder that the runner set, else to runs/`run`, and use the book's look.

    `run`: as `run_name` gives it; `changed`: the parameters that are not the published ones.
    """
    section.name, section.values, section.changed = name, values, changed
    section.read, section.asked, section.made = {}, {}, []
    section.of_the_book = not changed
    section.folder = Path(os.environ.get(OUTPUT_VARIABLE) or RUNS / run)
    if OUTPUT_VARIABLE not in os.environ:  # in Jupyter, say: what the commands made there is what they made no longer
        (section.folder / "stamp.json").unlink(missing_ok=True)
    import matplotlib.pyplot as plt  # here: pages are rendered without it
    plt.style.use(Path(__file__).with_name("paper.mplstyle"))
