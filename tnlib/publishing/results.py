"""The numbers that a page shows, by the name of what was measured."""

from functools import cache

import pandas as pd

from ..experiments.kernel_spectra import network_spectra, summary
from ..experiments.weights import find_weights, read_card, trained_seeds

_spectra = cache(network_spectra)  # a page asks for the spectra and for their summary: one computation

CARD_COLUMNS = ("seed", "parameters", "test_accuracy", "test_loss", "train_accuracy", "train_loss", "sha256")


def _networks(model: str, dataset: str) -> pd.DataFrame:
    cards = [read_card(find_weights(model, dataset, seed)) for seed in trained_seeds(model, dataset)]
    return pd.DataFrame([{name: card[name] for name in CARD_COLUMNS} for card in cards])


EXPERIMENTS = {
    "networks": _networks,
    "spectra": _spectra,
    "spectrum-summary": lambda *networks, **options: summary(_spectra(*networks, **options)),
}


def results(experiment: str, model: str, dataset: str, **options) -> pd.DataFrame:
    """The results of `experiment` for all trained networks `model` on `dataset`, tidy.

    "networks": one row a network, what its card says of it. "spectra" and "spectrum-summary": computed here from the
    weights, see `network_spectra` (which takes the options) and `summary` in tnlib.experiments.kernel_spectra. Raises
    `ValueError` for an unknown experiment.
    """
    if experiment not in EXPERIMENTS:
        raise ValueError(f"unknown experiment {experiment!r}: it takes {', '.join(map(repr, EXPERIMENTS))}")
    return EXPERIMENTS[experiment](model, dataset, **options)
