"""The commands, thin: each parses its words and calls the library."""

import click


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def main():
    """tnlib: an executable paper on tensor network compressibility of convolutional models."""


@main.command()
@click.argument("model")
@click.argument("dataset")
@click.option("--seed", default=0, show_default=True, help="Fixes initial weights, order and augmentation.")
@click.option("--data", type=click.Path(), help="The folder that holds the data sets.")
@click.option("--publish", is_flag=True, help="Write to published/weights instead of runs/weights.")
def train(model, dataset, seed, data, publish):
    """Train MODEL on DATASET and write its weights and their card. Goes on where it was cut off."""
    from .experiments.datasets import load_dataset
    from .experiments.files import PUBLISHED, RUNS
    from .experiments.training import train
    train(model, load_dataset(dataset, data), seed, folder=(PUBLISHED if publish else RUNS) / "weights")


if __name__ == "__main__":
    main()
