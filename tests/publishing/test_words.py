"""Words that pages share."""

import pandas as pd
import pytest

from tnlib.experiments.weights import find_weights, published_networks, read_card
from tnlib.publishing import words
from tnlib.publishing.words import about_networks, listed, several, signed, stand_in, titles


@pytest.mark.parametrize("given, said", [([], ""), (["a"], "a"), ([1, 2], "1 and 2"), ("abc", "a, b and c"), (iter(["a"]), "a")])
def test_lists(given, said):
    assert listed(given) == said


def test_one_and_several():
    assert several(1) == "one network" and several(3) == "3 networks"
    assert several(1, "one epoch", "{} epochs") == "one epoch" and several(5, "one epoch", "{} epochs") == "5 epochs"


@pytest.mark.parametrize("number, form, said", [(1.25, "{:+.1f}", "+1.2"), (-1.25, "{:+.1f}", "−1.2"), (-0.04, "{:+.1f}", "0.0"), (0.04, "{:+.1f}", "0.0"),
                                                (-3, "{:g}", "−3"), (0.0004, "{:+.3f}", "0.000")])
def test_numbers_have_the_sign_of_print_and_nothing_none(number, form, said):
    assert signed(number, form) == said


def test_where_there_is_no_second_network_the_page_says_that_its_own_stands_in():
    assert stand_in("resnet50", "vanilla") == "" and "no other network here than vanilla" in stand_in("vanilla", "vanilla")


def test_titles_are_in_order_and_each_once():
    found = titles("cifar100", "cifar10", "cifar100")
    assert list(found.items()) == [("cifar100", "CIFAR-100"), ("cifar10", "CIFAR-10")]
    assert titles("/somewhere/my.npz") == {"/somewhere/my.npz": "my.npz"}


def test_only_names_of_cifar_are_written_in_its_way():
    assert titles("cifar10", "cifar100", "/x/mycifar_crops.npz", "cifar_small.npz") == {
        "cifar10": "CIFAR-10", "cifar100": "CIFAR-100", "/x/mycifar_crops.npz": "mycifar_crops.npz", "cifar_small.npz": "cifar_small.npz"}


def test_networks_are_described_as_a_caption_does(monkeypatch):
    assert about_networks("vanilla", "shapes") == "6 epochs, 98.8 % right, n = 1"
    (card,) = [card for card in published_networks() if card["file"] == "resnet50-cifar10-s0.safetensors"]
    assert about_networks("resnet50", "cifar10").endswith(f"{card['recipe']['epochs']} epochs, {100 * card['test_accuracy']:.1f} % right, n = 1")
    assert about_networks("resnet50", "cifar10").startswith("first layer of stride 1, ")
    of = [read_card(find_weights("vanilla", "cifar10", seed))["test_accuracy"] for seed in (1, 3)]
    assert f"{50 * sum(of):.1f} % right, n = 2" in about_networks("vanilla", "cifar10", seeds=[3, 1])
    monkeypatch.setattr(words, "least_accuracy", lambda model, dataset: of[0])
    assert about_networks("vanilla", "cifar10", seeds=[1]).endswith("n = 1")
    monkeypatch.setattr(words, "least_accuracy", lambda model, dataset: of[0] + 0.0001)
    assert about_networks("vanilla", "cifar10", seeds=[1]).endswith("n = 1, reduced")
    monkeypatch.setattr(words, "least_accuracy", lambda model, dataset: (2 * min(of) + max(of)) / 3)
    assert about_networks("vanilla", "cifar10", seeds=[1, 3]).endswith("n = 2, reduced"), "one of them is enough, whatever the mean"


def test_the_epochs_are_those_of_the_networks_that_are_shown(monkeypatch):
    tables = {"networks": pd.DataFrame({"seed": [0, 1], "stem": [None, None], "test_accuracy": [0.8, 0.9]}),
              "recipe": pd.DataFrame({"seed": [0, 1], "epochs": [24, 3]})}
    monkeypatch.setattr(words, "results", lambda what, *_: tables[what])
    assert about_networks("vanilla", "shapes", [0]).startswith("24 epochs, 80.0 % right")
