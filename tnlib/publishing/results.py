"""The numbers that a page shows, by the name of what was measured."""

from functools import cache

import pandas as pd

from ..experiments.kernel_spectra import network_spectra, summary

_spectra = cache(network_spectra)  # a page asks for the spectra and for their summary: one computation

EXPERIMENTS = {
    "spectra": _spectra,
    "spectrum-summary": lambda *networks, **options: summary(_spectra(*networks, **options)),
}


def results(experiment: str, model: str, dataset: str, **options) -> pd.DataFrame:
    """The results of `experiment` for all trained networks `model` on `dataset`, tidy.

    "spectra" and "spectrum-summary" are computed here from the weights: see `network_spectra` (which takes the
    options) and `summary` in tnlib.experiments.kernel_spectra. Raises `ValueError` for an unknown experiment.
    """
    if experiment not in EXPERIMENTS:
        raise ValueError(f"unknown experiment {experiment!r}: it takes {', '.join(map(repr, EXPERIMENTS))}")
    return EXPERIMENTS[experiment](model, dataset, **options)
