"""The commands, thin: each parses its words and calls the library."""

import click

PARAMETER = click.option("-p", "given", nargs=2, multiple=True, metavar="NAME VALUE",
                         help="A notebook's parameter; may be repeated.")
PROFILES = click.Choice(["published", "shapes", "full"])
SEED = click.IntRange(0, 2**31 - 1)  # as the chapters take it
DATA = click.option("--data", type=click.Path(), help="The folder that holds the data sets.")


class Commands(click.Group):
    """Bad input is a message and exit status 1, not a traceback."""

    def invoke(self, context):
        try:
            return super().invoke(context)
        except (click.exceptions.Exit, click.Abort):  # such as the end of a command's --help; they are RuntimeErrors
            raise
        except (ValueError, TypeError, OSError, RuntimeError, ImportError) as error:
            message = str(error)
            if isinstance(error, PermissionError) and error.filename:  # "[Errno 13] …" says neither what was tried nor what to do
                message = f"{error.filename} cannot be written or read ({error.strerror}): give this user the right to"
            raise click.ClickException(message) from error


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="tnlib", message="tnlib %(version)s")
def main():
    """tnlib: an executable paper on tensor network compressibility of convolutional models."""


@main.command()
@click.option("--profile", type=PROFILES,
              help="published, the default: from published/; shapes: small and live, no data set needed; full: each chapter's own network anew.")
@click.option("--only", multiple=True, metavar="SECTION", help="Bring only this section up to date; may be repeated.")
@PARAMETER
def build(profile, only, given):
    """Run the book's notebooks and render its pages.

    The published book goes to _build/html; with another profile or with parameters it goes below runs/.
    """
    from .publishing.building import build_book
    build_book(profile, only, _values(given))


@main.command()
def pdf():
    """Print the published book, as it was last built, to _build/book.pdf with Chromium or Chrome."""
    from .publishing.building import BUILD
    from .publishing.printing import print_book
    click.echo(f"The book: {print_book(BUILD / 'stage', BUILD / 'book.pdf', click.echo)}")


@main.command()
@click.argument("section")
@click.option("--profile", type=PROFILES, help="As in build; the same as -p profile.")
@PARAMETER
def run(section, profile, given):
    """Run one SECTION with other parameters, below runs/, and compare its numbers with the published ones."""
    from .publishing.building import run_section
    run_section(section, _values(given), profile)


@main.command()
@click.argument("model")
@click.argument("dataset")
@click.option("--seed", default=0, show_default=True, type=SEED,
              help="Fixes initial weights, order and augmentation.")
@DATA
@click.option("--publish", is_flag=True, help="Write to published/weights instead of runs/weights.")
def train(model, dataset, seed, data, publish):
    """Train MODEL on DATASET and write its weights and their card. Goes on where it was cut off; what is trained already is
    not trained anew."""
    from .experiments.allocator import keep_freed_memory
    from .experiments.datasets import load_dataset
    from .experiments.files import PUBLISHED, RUNS
    from .experiments.networks import network
    from .experiments.tables import has_card
    from .experiments.training import train
    from .experiments.weights import check_called, read_card, stem
    keep_freed_memory()
    network(model)  # an unknown name stops here, before the data set is read
    folder = (PUBLISHED if publish else RUNS) / "weights"
    images = load_dataset(dataset, data)
    path = folder / f"{stem(model, images.name, seed)}.safetensors"
    if has_card(path):
        check_called(path, read_card(path), model, images.name, seed)
        raise ValueError(f"{path} is trained already: move it and its card elsewhere to train the network anew")
    if not publish and (first := PUBLISHED / "weights" / path.name).is_file():  # before the hours that it takes
        click.echo(f"Published weights come before your own: this network is still loaded from {first}")
    train(model, images, seed, folder=folder)
    click.echo(f"Weights: {path} ({100 * read_card(path)['test_accuracy']:.1f} % of the test images are answered right)")


@main.command()
@click.argument("experiment")
@click.argument("model")
@click.argument("dataset")
@click.option("--seed", default=0, show_default=True, type=SEED, help="Which training run.")
@DATA
@click.option("--workers", default=0, type=click.IntRange(0), metavar="N",
              help="Processes of one thread each; 0, the default: this one, with all of its threads.")
@click.option("--publish", is_flag=True, help="Write to published/results instead of runs/results.")
@click.option("--complete", is_flag=True, help="Keep the rows of the published table, and make only what it lacks.")
def measure(experiment, model, dataset, seed, data, workers, publish, complete):
    """Measure EXPERIMENT on the network MODEL trained on DATASET: a table, per-image bits and a card.

    EXPERIMENT: truncation, noise, shrink, joint, data-aware, multi-mode, tensor-train, cp, tensor-ring, controls, gauges,
    memory, retraining, retraining-cuts, retraining-layers, retraining-long, retraining-statistics, batch-norm, paths or
    compression. Goes on where it was cut off, also on another machine, but for re-trainings, which end in the precision
    in which they were begun.
    """
    from .experiments.allocator import keep_freed_memory
    from .experiments.catalogue import experiment_called, find_table
    from .experiments.datapackage import describe_results
    from .experiments.datasets import load_dataset
    from .experiments.files import PUBLISHED, RUNS
    from .experiments.measurements import measure, processes
    from .experiments.networks import network
    from .experiments.weights import find_weights
    keep_freed_memory()
    experiment_called(experiment)
    network(model)
    images = load_dataset(dataset, data)
    find_weights(model, dataset, seed)
    folder = (PUBLISHED if publish else RUNS) / "results"
    if not publish and (first := find_table(experiment, model, images.name, seed, [PUBLISHED / "results"])):
        click.echo(f"Published tables come before your own: the book still reads {first}")
    try:
        with processes(workers) as executor:
            path = measure(experiment, model, images, seed, folder, executor, complete=complete)
    finally:  # a table of what was found until then may have been left
        if publish:
            describe_results(PUBLISHED)
    click.echo(f"Results: {path}")


@main.command()
@click.argument("model", required=False)
@click.argument("dataset", required=False)
@click.option("--sample", default=20, show_default=True, type=click.IntRange(1), help="How many cells.")
@click.option("--seed", default=0, show_default=True, type=click.IntRange(0), help="Which cells.")
@DATA
def verify(model, dataset, sample, seed, data):
    """Evaluate published cells (those of the network MODEL, on DATASET) anew from the published weights, and compare
    image by image, and norms, errors and parameters; hold the published paths against the runs that they lie between, and
    make the first epoch of one published re-training anew (half a minute; without a GPU not of a deep network)."""
    from .experiments.verification import DEVIATION, RETRAINED_POINTS, TIES, other_copies, verify, verify_paths, verify_retraining
    of = {name: value for name, value in (("model", model), ("dataset", dataset)) if value}
    checks = verify(sample, seed, data, **of)
    for words in other_copies(checks, data):
        click.echo(words)
    images = sum(check.images for check in checks)
    different = sum(check.different for check in checks)
    worst = max(checks, key=lambda check: check.different / max(1, check.images), default=None)
    click.echo(f"{len(checks)} cells of {len({check.table for check in checks})} tables: {different} of {images:,} answers differ"
               + (f"; most in {worst.table}, {worst.key}: {worst.different} of {worst.images}" if worst else ""))
    if checks:
        furthest = max(checks, key=lambda check: check.deviation)
        click.echo(f"norms kept, relative errors and parameters are off by {furthest.deviation:.0e} at most (in {furthest.table}, {furthest.key})")
        if not furthest.deviation <= DEVIATION:
            raise click.ClickException(f"that is more than the {DEVIATION:g} that rounding explains: the published numbers do not follow from "
                                       "the published weights here")
    if different > max(1, TIES * images):
        raise click.ClickException("more answers differ than rounding explains: the published results do not follow from "
                                   "the published weights here")
    if ends := verify_paths(**of):
        images, different = sum(end.images for end in ends), sum(end.different for end in ends)
        click.echo(f"{len(ends)} ends of paths, against the runs that they lie between: {different} of {images:,} answers differ")
        if different > TIES * images:
            raise click.ClickException("that is more than rounding explains: the published paths do not lie between the "
                                       "published runs")
    if (again := verify_retraining(data, **of)) is not None:
        click.echo(f"{again.table}, {again.key}, re-trained anew: {again.found:.1%} right, published {again.published:.1%}")
        if not again.agrees:
            raise click.ClickException(f"that is further apart than the {RETRAINED_POINTS:g} points that another machine "
                                       "explains: the published re-training does not follow from the published weights")


@main.command()
@click.argument("figure", required=False)
@click.option("--list", "listed", is_flag=True, help="Print the names of all figures and tables, one a line.")
@click.option("--files", type=click.Path(file_okay=False), metavar="DIR", help="Copy the figure's files and card to DIR.")
def cite(figure, listed, files):
    """Print what a citation of FIGURE (or of a table) of the built book needs: caption, BibTeX, files and provenance."""
    import shutil
    from pathlib import Path

    from .publishing.building import book_cards, card_called
    from .publishing.cards import about_sources, bibtex, sentence
    if listed or not figure:
        if figure or files or not listed:
            raise click.UsageError("name a FIGURE, or say --list alone")
        click.echo("\n".join(book_cards()))
        return
    card, folder = card_called(figure)
    paths = [folder / name for name in (*card["files"], f"{figure}.json")]
    if files:
        Path(files).mkdir(parents=True, exist_ok=True)
        paths = [Path(shutil.copy(path, files)) for path in paths]
    click.echo("\n\n".join([card["caption"], sentence(card), bibtex(card), "Files:\n" + "\n".join(f"  {path}" for path in paths),
                            "Made from:\n" + "\n".join(f"  {line}" for line in about_sources(card))]))


@main.command()
def claims():
    """Print the scorecard: the verdict on each claim of the paper, its number and interval, and why."""
    from rich.box import SIMPLE
    from rich.console import Console
    from rich.table import Table

    from .publishing.scorecard import label, pair_text, scorecard
    click.echo("Evaluates book/claims.yml on the published results; a minute …", err=True)
    found, console = scorecard(), Console()
    table = Table("claim", box=SIMPLE)
    for name in ("network, data", "verdict", "number", "95 % interval", "n"):
        table.add_column(name, no_wrap=name != "verdict", min_width=16 if name == "verdict" else None)
    for claim in found.claims["claims"]:
        for verdict in found.of(claim):
            first = next((part for part in verdict.parts if part.threshold is not None), next(iter(verdict.parts), None))  # that decides
            at = first.interval if first else None
            table.add_row(claim, pair_text(verdict.model, verdict.dataset), label(verdict),
                          *((first.text(at.estimate), first.span, str(at.n)) if first else ("–", "–", "0")))
        table.add_section()
    console.print(table)
    for claim, about in found.claims["claims"].items():
        console.print(f"\n{claim}. {about['claim']} Overall: {found.overall(claim)}.", style="bold", highlight=False,
                      soft_wrap=True)
        for verdict in found.of(claim):
            console.print(f"  {pair_text(verdict.model, verdict.dataset)}: {verdict.words}. {verdict.reason}",
                          highlight=False, soft_wrap=True, markup=False)


@main.group()
def data():
    """Where the data sets are."""


@data.command()
@DATA
def status(data):
    """Say of each data set where it is and which copy, or what to do about it."""
    from rich.console import Console
    from rich.table import Table

    from .experiments.datasets import CIFAR, data_folders, describe
    console = Console(markup=False)  # a path may hold what rich takes for markup
    for what, place in data_folders(data):
        console.print(f"{what}: {place if place is not None else 'not set'}", highlight=False, soft_wrap=True)
    table = Table("data set", "where", "which copy")
    for name in CIFAR:
        table.add_row(name, *describe(name, data))
    table.add_row("shapes", "drawn by tnlib", "needs no file")
    console.print(table)


@data.command()
@click.argument("names", nargs=-1, type=click.Choice(["cifar10", "cifar100"]))
@DATA
def fetch(names, data):
    """Download CIFAR data sets (both where none is named), md5 checked."""
    from .experiments.datasets import CIFAR, fetch
    for name in names or CIFAR:
        click.echo(f"{name}: {fetch(name, data)}")


def _values(given):
    from .publishing.parameters import parse_value
    names = [name for name, _ in given]
    if twice := [name for name in dict.fromkeys(names) if names.count(name) > 1]:
        raise ValueError(f"-p {twice[0]} is given {names.count(twice[0])} times; a run takes one value of a parameter")
    return {name: parse_value(text) for name, text in given}


if __name__ == "__main__":
    main()
