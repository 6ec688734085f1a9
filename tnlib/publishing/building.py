"""What the commands `build` and `run` do: which notebooks to run with which values, and where the pages go."""

import difflib
from pathlib import Path

import click
import nbformat
from rich.console import Console
from rich.table import Table

from ..experiments.files import BUILD, ROOT, RUNS
from .cards import read_cards
from .jobs import Job, find_section, section_values, sections
from .parameters import ParameterError, changed, run_name
from .running import held, outdated, run
from .site import render, stage_book, stage_page

EXECUTED = BUILD / "executed"  # the published book's notebooks
# They begin in this order, before the others. Of the published book: the longest, or in the end all other processors would
# wait for it, and the scorecard when there are singular values by it that both need. Of any other book: those that measure
# what later ones show where it is there (gauges, noise, re-trainings), or these would be out of date as soon as they are made.
FIRST = ("spectra", "truncations", "retraining", "networks", "scorecard", "controls")
FIRST_TO_MEASURE = ("controls", "retraining", "truncations", "networks", "compression")


def build_book(profile: str | None = None, only=(), given=None) -> None:
    """Run and render the whole book; the published one into _build/html, any other below runs/.

    `only`: names of sections to bring up to date; the others are shown as they last ran. `given`: parameters, for
    each section that has them. `profile`: None for the given one, or the published one. Raises `ParameterError`,
    `NotebookError` or `SiteError`.
    """
    given = given or {}
    profile = _one_profile(profile, given)
    chosen = {name: find_section(name) for name in only}
    book = sections()
    has = {name: section.parameters for name, section in book.items()}
    unknown = [name for name in given if not any(name in parameters for parameters in has.values())]
    if unknown:
        there = "\n".join(f"  {name}: {', '.join(parameters)}" for name, parameters in has.items())
        raise ParameterError(f"no section has a parameter {', '.join(map(repr, unknown))}. There are:\n{there}")
    values = {name: section_values(section, profile, {k: v for k, v in given.items() if k in has[name]})
              for name, section in book.items()}
    changes = {name: changed(has[name], values[name]) for name in book}
    published = not any(changes.values())
    folder = BUILD if published else RUNS / run_name("book", {k: v for each in changes.values() for k, v in each.items()})
    _warn_of_days(values.values())
    jobs = [Job(section, values[name], folder / "executed" / name) for name, section in book.items()]
    with held(jobs, click.echo):
        asked = [job for job in jobs if not chosen or job.section.name in chosen or not job.has_run]
        run(in_order(asked, FIRST if published else FIRST_TO_MEASURE), click.echo)
        stage_book(jobs, folder / "stage")
        page = render(folder / "stage", ROOT if published else folder, click.echo)
    click.echo(f"The book: {page}" if published else f"The book, not the published one: {page}")


def in_order(jobs: list[Job], first: tuple[str, ...]) -> list[Job]:
    """The jobs of the sections `first`, in its order, then the others in theirs."""
    return sorted(jobs, key=lambda job: first.index(job.section.name) if job.section.name in first else len(first))


def run_section(name: str, given: dict, profile: str | None = None) -> None:
    """Run one section below runs/, render its page, and print its numbers beside the published ones.

    `profile`: None for the given one, or the published one. Raises as `build_book` does.
    """
    section = find_section(name)
    values = section_values(section, _one_profile(profile, given), given)
    changes = changed(section.parameters, values)
    _warn_of_days([values])
    job = Job(section, values, RUNS / run_name(name, changes))
    with held([job], click.echo):
        run([job], click.echo)
        stage_page(job, job.folder / "site" / "stage")
        page = render(job.folder / "site" / "stage", job.folder / "site", click.echo)
    _compare(job, Job(section, section_values(section, "published", {}), EXECUTED / name))
    click.echo(f"The page: {page}\nThe notebook: {job.executed}\nFigures and data: {job.folder / 'figures'}")


def _one_profile(profile, given) -> str:
    """The profile of --profile, or the published one; that of -p profile, if given, must be no other than the former."""
    if profile and given.get("profile", profile) != profile:
        raise ParameterError(f"--profile {profile} and -p profile {given['profile']} do not go together; give one of them")
    return profile or "published"


def _warn_of_days(all_values) -> None:
    if any(values.get("profile") == "full" for values in all_values):
        click.echo("profile full: what each chapter shows of its own network is computed anew from the published weights; days on a CPU, "
                   "minutes on a GPU. What is cut off goes on from where it was.")


def book_cards() -> dict[str, dict]:
    """Id → card of every figure and table of the published book as it was last built, in its order.

    Raises `FileNotFoundError` where it is not built.
    """
    cards = read_cards(EXECUTED / name / "figures" for name in sections())
    if not cards:
        raise FileNotFoundError(f"no figures in {EXECUTED}: the book is not built yet; build it with: tnlib build")
    return cards


def card_called(id: str) -> tuple[dict, Path]:
    """The card of a figure or table of the built book, and the folder of its files. Raises `ValueError` with likely names."""
    cards = book_cards()
    if id not in cards:
        near = difflib.get_close_matches(id, cards, n=3, cutoff=0.4)
        raise ValueError(f"no figure or table {id!r}" + (f": did you mean {' or '.join(near)}?" if near else ";")
                         + " `tnlib cite --list` names them all")
    return cards[id], EXECUTED / cards[id]["section"] / "figures"


def glued_values(path) -> dict:
    """Name → what `value` gave to the text, of an executed notebook."""
    found = {}
    for cell in nbformat.read(path, as_version=4).cells:
        for output in cell.get("outputs", []):
            name = output.get("metadata", {}).get("scrapbook", {}).get("name")
            if name:
                found[name.removeprefix("application/papermill.record/")] = next(
                    text for mime, text in output["data"].items() if mime.endswith("text/plain"))
    return found


def _compare(job: Job, published: Job) -> None:
    if not published.has_run:
        click.echo("The published page is not built yet (tnlib build): nothing to compare with.")
        return
    if reasons := outdated(published):
        click.echo(f"The published page was built before this: {', '.join(reasons)}. To compare with it as it is now: tnlib build")
    ours, theirs = glued_values(job.executed), glued_values(published.executed)
    table = Table("number in the text", "published", "here")
    for name in theirs | ours:
        if theirs.get(name) != ours.get(name):
            table.add_row(name, _short(theirs.get(name)), _short(ours.get(name)))
    if table.row_count:
        Console(markup=False).print(table)  # a value may hold what rich takes for markup
    else:
        click.echo("Every number in the text is as published.")


def _short(text):
    try:
        return f"{float(text):.6g}"
    except (TypeError, ValueError):
        return "–" if text is None else text
