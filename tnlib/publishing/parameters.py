"""A notebook's parameters: declared once in its cell, checked before anything runs, shown on its page.

The cell tagged `parameters` holds lines such as `seed: Seed = 0  # which training run`. The type is an alias of
this module, because papermill drops parameters whose annotation is an expression. Papermill accepts any value and
only warns of an unknown name, so a notebook checks both itself: `check_running_notebook`.
"""

import ast
import hashlib
import io
import json
import re
import tokenize
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, ConfigDict, Field, ValidationError, create_model

from ..experiments.datasets import NAMES
from ..experiments.networks import NETWORKS
from ..tensors.cuts import Cut

PAPERMILL_COMMENT = "# Parameters"  # the first line of the cell that papermill injects


def _model(name: str) -> str:
    if name not in NETWORKS:
        raise ValueError(f"it takes one of {', '.join(NETWORKS)}")
    return name


def _dataset(name: str) -> str:
    if name in NAMES:
        return name
    path = Path(name).expanduser().resolve()  # a notebook runs in another folder than the command
    if path.suffix != ".npz" or not path.is_file():
        raise ValueError(f"it takes one of {', '.join(NAMES)}, or the path of an existing .npz file")
    return str(path)


Profile = Literal["published", "shapes", "full"]
ModelName = Annotated[str, AfterValidator(_model)]
DatasetName = Annotated[str, AfterValidator(_dataset)]
CutName = Annotated[str, AfterValidator(lambda name: Cut.parse(name).name)]
LayerName = Annotated[str, Field(min_length=1)]
CaseName = Annotated[str, Field(min_length=1)]
Seed = Annotated[int, Field(ge=0, lt=2 ** 31)]
Rank = Annotated[int, Field(ge=1)]
Ranks = Annotated[list[Rank], Field(min_length=1, max_length=20)]
Count = Annotated[int, Field(ge=1, le=1000)]
Share = Annotated[float, Field(gt=0, lt=1)]
Spread = Annotated[float, Field(gt=0, le=5)]
Types = {"Profile": Profile, "ModelName": ModelName, "DatasetName": DatasetName, "CutName": CutName,
         "LayerName": LayerName, "CaseName": CaseName, "Seed": Seed, "Rank": Rank, "Ranks": Ranks, "Count": Count,
         "Share": Share, "Spread": Spread}

# What a profile changes in every notebook that has the parameter. `published` is what the notebooks' cells say.
PROFILES: dict[str, dict[str, Any]] = {
    "published": {},
    "shapes": {"profile": "shapes", "dataset": "shapes", "compare": "shapes", "case": "OUT,KW at 0.5",
               "deep": "vanilla"},
    "full": {"profile": "full"},
}


class ParameterError(ValueError):
    """A parameter that a notebook does not have, or a value that it does not take."""


@dataclass(frozen=True)
class Parameter:
    """One line of a `parameters` cell."""

    name: str
    type: str
    default: Any
    help: str


def declared(source: str) -> dict[str, Parameter]:
    """The parameters that a cell's source declares, in order: annotated assignments with a trailing comment."""
    comments = {token.start[0]: token.string.lstrip("# ") for token in
                tokenize.generate_tokens(io.StringIO(source).readline) if token.type == tokenize.COMMENT}
    found = {}
    for line in ast.parse(source).body:
        if isinstance(line, ast.AnnAssign) and isinstance(line.target, ast.Name) and line.value is not None:
            name = line.target.id
            found[name] = Parameter(name, ast.unparse(line.annotation), ast.literal_eval(line.value),
                                    comments.get(line.end_lineno, ""))
    return found


def parameters_cell(notebook) -> str:
    """The source of the notebook's cell tagged `parameters`. Raises `ParameterError` when there is none."""
    for cell in notebook.cells:
        if "parameters" in cell.metadata.get("tags", []):
            return cell.source
    raise ParameterError("the notebook has no cell tagged 'parameters'")


def validate(parameters: dict[str, Parameter], values: dict[str, Any], section: str) -> dict[str, Any]:
    """All parameters of a section with `values` set. Raises `ParameterError` that lists what there is.

    Types are taken strictly: "8" is no rank. A whole number is taken where a float is asked for.
    """
    unknown = [f"{p.name}: {p.type}" for p in parameters.values() if p.type not in Types]
    if unknown:
        raise ParameterError(f"section {section!r}: {', '.join(unknown)}: a parameter's type is one of {', '.join(Types)}")
    fields = {name: (Types[p.type], p.default) for name, p in parameters.items()}
    model = create_model("Parameters", __config__=ConfigDict(extra="forbid", strict=True, validate_default=True),
                         **fields)
    try:
        checked = model(**values).model_dump()
        return _check_profile(checked, section)
    except ValidationError as error:
        problems = []
        for problem in error.errors():
            name = str(problem["loc"][0])
            if problem["type"] == "extra_forbidden":
                problems.append(f"unknown parameter {name!r}")
            else:
                problems.append(f"{name} = {values.get(name)!r}: {problem['msg'].removeprefix('Value error, ')}")
        there = "\n".join(f"  {p.name}: {p.type} = {p.default!r}  {p.help}" for p in parameters.values())
        raise ParameterError(f"section {section!r}: {'; '.join(problems)}. Its parameters are:\n{there}") from None


def _check_profile(values, section):
    """A profile is the same everywhere: `shapes` on another data set would pose as what it is not."""
    wanted = {name: value for name, value in PROFILES[values.get("profile", "published")].items()
              if name in values and name != "case"}  # any case that is measured on the data set will do
    wrong = {name: values[name] for name, value in wanted.items() if values[name] != value}
    if wrong:
        raise ParameterError(f"section {section!r}: the profile {values['profile']!r} goes with "
                             + ", ".join(f"{name} = {wanted[name]!r} (got {wrong[name]!r})" for name in wrong))
    return values


def parse_value(text: str) -> Any:
    """A value from the command line as JSON has it (8, 1e-1, true, [4, 8]), else text: YAML would read 010 as 8."""
    try:
        return json.loads(text)
    except ValueError:
        return text


def changed(parameters: dict[str, Parameter], values: dict[str, Any]) -> dict[str, Any]:
    """The values that are not the defaults, that is, not the published ones; one of no parameter, which the page will refuse, too."""
    return {name: value for name, value in values.items() if name not in parameters or value != parameters[name].default}


def run_name(section: str, changes: dict[str, Any]) -> str:
    """The folder below runs/ for a section with these changes, such as spectra-dataset=cifar100."""
    changes = {name: Path(value).stem if str(value).endswith(".npz") else value for name, value in changes.items()}
    name = "-".join([section, *(f"{name}={value}" for name, value in sorted(changes.items()))])
    readable = re.sub(r"[^A-Za-z0-9=.,_-]+", "_", name)
    if readable == name and len(name) <= 100:
        return name
    return f"{readable[:100]}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def injected_names(source: str) -> set[str]:
    """The names that a cell injected by papermill assigns."""
    return {target.id for line in ast.parse(source).body if isinstance(line, ast.Assign)
            for target in line.targets if isinstance(target, ast.Name)}


def check_running_notebook(section: str, namespace: dict[str, Any], cells: list[str]):
    """Check what the running notebook's cells have set: its own `parameters` cell and papermill's injected one.

    `cells`: the sources run so far, in order. Returns (declared parameters, checked values).
    Raises `ParameterError`.
    """
    sources = [source for source in cells if source.strip()]
    own = next((found for found in map(_declared_or_none, reversed(sources)) if found), None)
    if own is None:
        raise ParameterError(f"section {section!r}: the cell of parameters has not been run yet")
    names = set(own)
    for source in sources:
        if source.startswith(PAPERMILL_COMMENT):
            names |= injected_names(source)
    values = {name: value for name, value in namespace.items() if name in names}
    return own, validate(own, values, section)


def _declared_or_none(source: str):
    try:
        found = declared(source)
    except (SyntaxError, ValueError, tokenize.TokenError):  # a cell with IPython's own syntax
        return None
    return found if found and all(p.type in Types for p in found.values()) else None


