"""What the book's pages say of the book itself, written anew at every build: a name, and a function from jobs to MyST.

A line `% generated: NAME` of a page in book/ stands for it. To MyST that line is a comment.
"""

import ast
import re
from collections.abc import Callable

import pandas as pd
from pydantic import TypeAdapter

from ..experiments.catalogue import EXPERIMENTS
from ..experiments.datasets import NAMES
from ..experiments.files import PUBLISHED, ROOT
from ..experiments.networks import NETWORKS
from ..experiments.provenance import git_commit
from ..experiments.strengths import CASES
from ..experiments.tables import read_table
from ..experiments.weights import published_networks, read_card
from ..tensors.cuts import CUTS
from .claims import least_accuracy
from .gallery import gallery
from .jobs import Job
from .parameters import Types
from .running import outdated


class SiteError(RuntimeError):
    """The pages of the book could not be made."""


def fill(text: str, jobs: list[Job]) -> str:
    """A page's text with what is generated in place of its marks. Raises `SiteError` for a name that is not there."""
    def made(mark):
        if mark[1] not in GENERATED:
            raise SiteError(f"a page asks for {mark[1]!r}, which is not generated: there are {', '.join(GENERATED)}")
        return GENERATED[mark[1]](jobs)

    return re.sub(r"^% generated: *(.*?) *$", made, text, flags=re.MULTILINE)


# ---- the parameters of all chapters ----------------------------------------------------------------------------------

NAMED = {  # types of which a schema says no more than that they are texts
    "ModelName": "one of " + ", ".join(f"`{name}`" for name in NETWORKS),
    "DatasetName": "one of " + ", ".join(f"`{name}`" for name in NAMES) + ", or the path of an `.npz` file",
    "CutName": "one of " + "; ".join(f"`{cut.name}`" for cut in CUTS),
    "LayerName": "a convolution of the network, as `tnlib.conv_kernels` names them",
    "CaseName": "a truncation that is re-trained: one of " + "; ".join(
        f"`{case.cut} at {case.strength:g}`" for case in CASES) + ", or another one that is measured",
}


def parameters(jobs: list[Job]) -> str:
    """Every parameter of every chapter; then what the types take."""
    declared = [(job.section.name, p) for job in jobs for p in job.section.parameters.values()]
    rows = [{"section": f"`{section}`", "name": f"`{p.name}`", "type": f"`{p.type}`", "default": f"`{p.default!r}`",
             "meaning": p.help} for section, p in declared]
    types = [{"type": f"`{name}`", "takes": NAMED.get(name) or _takes(TypeAdapter(Types[name]).json_schema())}
             for name in dict.fromkeys(p.type for _, p in declared)]
    return f"{_table(rows)}\n\nWhat the types take:\n\n{_table(types)}"


def _takes(schema: dict) -> str:
    """A JSON schema in words."""
    if "enum" in schema:
        return "one of " + ", ".join(f"`{value}`" for value in schema["enum"])
    if schema["type"] == "array":
        return f"a list of {schema['minItems']} to {schema['maxItems']}, each {_takes(schema['items'])}"
    ends = {"minimum": "at least", "exclusiveMinimum": "above", "maximum": "at most", "exclusiveMaximum": "below"}
    limits = [f"{words} {schema[end]:,}" for end, words in ends.items() if end in schema]
    return f"a {'whole ' if schema['type'] == 'integer' else ''}number {' and '.join(limits)}"


# ---- the networks --------------------------------------------------------------------------------------------------------

def trained(jobs: list[Job]) -> str:
    """Every published network, by architecture and data set, from the cards of its weights."""
    groups = {}
    for card in published_networks():
        recipe = card["recipe"]
        shape = {name: value for name, value in card["architecture"].items() if name not in ("classes", "image_size")}
        alike = (card["model"], card["dataset"], _arguments(shape), card["parameters"], recipe["epochs"],
                 card["images"]["train"], recipe["weight_decay"])
        groups.setdefault(alike, []).append(card)
    rows = []
    for (model, dataset, shape, parameters, epochs, images, decay), cards in groups.items():
        reduced = min(card["test_accuracy"] for card in cards) < least_accuracy(model, dataset)
        rows.append({"network": model, "data set": dataset, "architecture": shape, "parameters": f"{parameters:,}",
                     "epochs": epochs, "images": f"{images:,}", "decay": f"{decay:g}", "seeds": ", ".join(str(card["seed"]) for card in cards),
                     "test, %": _percent(card["test_accuracy"] for card in cards) + " *reduced*" * reduced,
                     "training, %": _percent(card["train_accuracy"] for card in cards)})
    return _table(rows)


ARMS = {"free": "free", "kept": "rank kept", "noise": "noise", "continued": "continued", "scratch": "scratch"}  # as heads


def retrained(jobs: list[Job]) -> str:
    """Every case of every re-trained network: accuracy before, truncated, and after the last epoch by arm; what was re-trained
    of all networks before what was of some."""
    rows, percent = [], lambda share: "–" if share is None else f"{100 * share:.1f}"  # a run may be missing
    cards = {path: read_card(path) for path in (PUBLISHED / "results").glob("retraining-*.csv")}
    listed = {name: place for place, name in enumerate(EXPERIMENTS)}
    for path, card in sorted(cards.items(), key=lambda found: (
            listed[found[1]["experiment"]], *(found[1][name] for name in ("model", "dataset", "seed")))):
        runs = read_table(path)
        if "epoch" not in runs:  # what others start from
            continue
        if "truncated" in runs:  # one layer alone
            runs["cut"] += (" of " + runs["truncated"]).where(runs["cut"] != "none", "")
        last = runs["epoch"].max()
        accuracy = runs.set_index(["cut", "strength", "arm", "epoch"])["accuracy"]
        cases = [(cut, strength) for cut, strength in dict.fromkeys(zip(runs["cut"], runs["strength"])) if cut != "none"]
        for cut, strength in cases:
            after = {words: accuracy.get((cut, strength, arm, last), accuracy.get(("none", 1.0, arm, last)))
                     for arm, words in ARMS.items()}
            rows.append({"network": card["model"], "data": card["dataset"], "seed": card["seed"], "cut": cut,
                         "down to": f"{100 * strength:g} %", "before": percent(accuracy.get(("none", 1.0, "continued", 0))),
                         "truncated": percent(accuracy.get((cut, strength, "free", 0))),
                         "noise, before": percent(accuracy.get((cut, strength, "noise", 0))), "epochs": last,
                         **{words: percent(found) for words, found in after.items()}})
    return _table(rows)


def _arguments(shape: dict) -> str:
    return "; ".join(f"{name} {', '.join(map(str, value)) if isinstance(value, list) else value}" for name, value in shape.items())


def _percent(shares) -> str:
    """Mean and standard deviation of shares, in per cent."""
    found = 100 * pd.Series(list(shares))
    return f"{found.mean():.1f}" + (f" ± {found.std():.1f}" if len(found) > 1 else "")


# ---- what it cost --------------------------------------------------------------------------------------------------------

def costs(jobs: list[Job]) -> str:
    """How long everything that is published took, by network and machine, from its cards."""
    cards = [read_card(path) for path in sorted((PUBLISHED / "results").glob("*.csv"))]
    every = pd.DataFrame([_training_cost(card) for card in published_networks()] + [_measuring_cost(c) for c in cards])
    rows = []
    for (command, network, machine, _), group in every.groupby(["command", "network", "machine", "epochs"], sort=False):
        timed = group["minutes"].dropna()
        what = "epochs" if group["epochs"].any() else "rows"
        part = f" ({len(timed)} of {len(group)})" if 0 < len(timed) < len(group) else ""
        rows.append({"`tnlib` …": f"`{command}`", "network": network, "data sets": ", ".join(group["dataset"].unique()),
                     "times": len(group), "size": f"{_span(group[what], '{:.0f}')} {what}",
                     "minutes": _span(timed, "{:.1f}") + part if len(timed) else "not recorded", "machine": machine})
    hours = every["minutes"].sum() / 60
    return (f"{_table(rows)}\n\nTogether these are {hours:.0f} hours of work, without what was cut off and so has no "
            "recorded time.")


def _training_cost(card: dict) -> dict:
    return {"command": "train", "network": card["model"], "dataset": card["dataset"], "machine": _machine(card),
            "epochs": card["recipe"]["epochs"], "rows": 0, "minutes": card["train_seconds"] / 60}


def _measuring_cost(card: dict) -> dict:
    seconds = [call.get("seconds") for call in card["calls"]]
    return {"command": f"measure {card['experiment']}", "network": card["model"], "dataset": card["dataset"],
            "machine": "; ".join(dict.fromkeys(_machine(call) for call in card["calls"])), "epochs": 0,
            "rows": card["rows"], "minutes": None if None in seconds else sum(seconds) / 60}


def _machine(record: dict) -> str:
    threads = record["threads"]
    return f"{record['device'].replace('(R)', '')}; {threads} {'thread' if threads == 1 else 'threads'}"


def _span(values, form: str) -> str:
    return " to ".join(dict.fromkeys(form.format(value) for value in (values.min(), values.max())))


# ---- the code --------------------------------------------------------------------------------------------------------------

def modules(jobs: list[Job]) -> str:
    """Every module of the library, and what it says of itself."""
    paths = sorted((ROOT / "tnlib").rglob("*.py"), key=lambda path: (len(path.parts), path))
    said = {path: ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) for path in paths}
    return _table([{"module": f"`{path.relative_to(ROOT).as_posix()}`", "what it is": " ".join(words.split("\n\n")[0].split())}
                   for path, words in said.items() if words])


# ---- how it ran ------------------------------------------------------------------------------------------------------------

def status(jobs: list[Job]) -> str:
    """When, how long, with what and where each notebook ran, from the records of the runs."""
    rows, alike = [], {}
    for job in jobs:
        record, changes = job.record, outdated(job)
        rows.append({"notebook": f"[{job.section.name}]({job.section.path.name})",
                     "run time": _duration(record["seconds"]),
                     "parameters": ", ".join(f"`{name} = {value!r}`" for name, value in record["changed"].items())
                     or "published",
                     "started (UTC)": record["started"][:16].replace("T", " "), "at commit": _commit(record["git_commit"]),
                     "shown": f"as it last ran; since then: {', '.join(changes)}" if changes else "up to date"})
        versions = ", ".join(f"{package} {number}" for package, number in record["versions"].items())
        alike.setdefault((versions, f"{_machine(record)}; {record['platform']}"), []).append(job.section.name)
    machines = [{"notebooks": "all" if len(alike) == 1 else ", ".join(names), "versions": versions, "machine": machine}
                for (versions, machine), names in alike.items()]
    return f"The book was put together at commit {_commit(git_commit())}.\n\n{_table(rows)}\n\n{_table(machines)}"


def _commit(commit: str | None) -> str:
    if commit is None:
        return "unknown (not a git checkout)"
    return f"`{commit[:10]}`" + (" and changes" if commit.endswith("+changes") else "")


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    return (f"{minutes} min {seconds} s" if minutes else f"{seconds} s").replace(" ", "\u00a0")  # on one line


def _table(rows: list[dict]) -> str:
    """Rows as a table whose cells are MyST."""
    return f"```{{csv-table}}\n:header-rows: 1\n:class: generated\n\n{pd.DataFrame(rows).to_csv(index=False)}```"


GENERATED: dict[str, Callable[[list[Job]], str]] = {
    "gallery": gallery, "parameters": parameters, "trained": trained, "retrained": retrained, "costs": costs,
    "modules": modules, "status": status}
