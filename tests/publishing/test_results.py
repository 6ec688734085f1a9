"""Results by name, of one data set or of several."""

import pandas as pd
import pytest

from tnlib.experiments.networks import NETWORKS
from tnlib.publishing import results
from tnlib.publishing.results import measured, titles


def test_several_data_sets_below_each_other_under_their_own_names(monkeypatch):
    monkeypatch.setitem(results.EXPERIMENTS, "shrink", lambda model, dataset, times=1: pd.DataFrame(
        {"dataset": [f"fingerprint of {dataset}"], "seed": [len(dataset) * times]}))
    found = measured("shrink", "vanilla", ["shapes", "a/my.npz"], times=2)
    assert found.to_dict("list") == {"dataset": ["shapes", "a/my.npz"], "seed": [12, 16]}


def test_titles_are_in_order_and_each_once():
    found = titles("cifar100", "cifar10", "cifar100")
    assert list(found.items()) == [("cifar100", "CIFAR-100"), ("cifar10", "CIFAR-10")]
    assert titles("/somewhere/my.npz") == {"/somewhere/my.npz": "my.npz"}


def test_the_recipe_of_re_training_is_the_first_one_but_shorter_and_slower():
    table = results.results("retraining-recipe", "vanilla", "cifar10")
    first, again = table.loc["training"], table.loc["retraining"]
    assert first["peak_lr"] == NETWORKS["vanilla"].recipe.peak_lr > again["peak_lr"]
    assert first["epochs"] > again["epochs"]
    for name in ("batch_size", "momentum", "weight_decay", "label_smoothing", "clip_norm", "crop_padding", "flip"):
        assert first[name] == again[name]


def test_an_unknown_experiment_names_what_there_is():
    with pytest.raises(ValueError, match="unknown experiment 'retrain': it takes .*'retraining-answers'"):
        results.results("retrain", "vanilla", "shapes")
