"""Weights and their cards: what is saved is what is loaded, and nothing else is."""

import hashlib
import json
import os
import re
import subprocess
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from tnlib import Dataset, evaluate, load_dataset, load_model
from tnlib.experiments import weights
from tnlib.experiments.catalogue import find_table
from tnlib.experiments.datasets import CIFAR
from tnlib.experiments.files import PUBLISHED, atomic_path, write_json
from tnlib.experiments.kernel_spectra import entropies
from tnlib.experiments.networks import Recipe, Vanilla, network
from tnlib.experiments.tables import read_bits
from tnlib.experiments.weights import (find_weights, initial_model, published_networks, read_card, save_weights,
                                       trained_seeds)

ARCHITECTURE = {"channels": [2, 3, 4, 5], "classes": 3, "hidden": 4, "image_size": 16}
CARD = {"model": "vanilla", "dataset": "mine", "seed": 0, "architecture": ARCHITECTURE, "test_accuracy": 0.5}


@pytest.fixture
def folders(tmp_path, monkeypatch):
    monkeypatch.setattr(weights, "FOLDERS", (tmp_path / "published", tmp_path / "own"))
    return weights.FOLDERS


def small(seed=0):
    torch.manual_seed(seed)
    return Vanilla(**ARCHITECTURE)


def save(folder, seed=0, model=None):
    path = folder / f"vanilla-mine-s{seed}.safetensors"
    save_weights(model or small(seed), path, CARD | {"seed": seed})
    return path


# ---- saving and loading ------------------------------------------------------------------------------------------

def test_what_is_saved_is_loaded(folders):
    model = small().train()
    path = folders[0] / "vanilla-mine-s0.safetensors"
    card = save_weights(model, path, CARD)
    loaded = load_model("vanilla", "mine")
    assert not any(module.training for module in loaded.modules())
    assert loaded.state_dict().keys() == model.state_dict().keys() == load_file(path).keys()
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor) and torch.equal(load_file(path)[name], tensor)
    expected = CARD | {"file": path.name, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
    assert card == expected == json.loads(path.with_suffix(".json").read_text()) == read_card(path)
    assert sorted(file.name for file in folders[0].iterdir()) == ["vanilla-mine-s0.json", path.name]


def test_any_memory_layout_is_saved_as_the_same_bytes(folders):
    first = save(folders[0], model=small()).read_bytes()
    assert save(folders[1], model=small().to(memory_format=torch.channels_last)).read_bytes() == first


def test_published_weights_come_before_your_own(folders):
    published, own, other = save(folders[0]), save(folders[1], model=small(7)), save(folders[1], seed=1)
    assert find_weights("vanilla", "mine") == published and find_weights("vanilla", "mine", 1) == other
    assert torch.equal(load_model("vanilla", "mine").conv1.weight, small(0).conv1.weight)
    published.unlink()
    assert find_weights("vanilla", "mine") == own


def test_seeds_are_numbers_of_the_published_networks_else_of_your_own(folders):
    for seed in (10, 2, 0):
        save(folders[1], seed)
    (folders[1] / "vanilla-mine-sX.safetensors").touch()
    (folders[1] / "vanilla-mine2-s5.safetensors").touch()
    assert trained_seeds("vanilla", "mine") == [0, 2, 10]
    save(folders[0], 3)
    assert trained_seeds("vanilla", "mine") == [3]
    save(folders[1], 4).rename(folders[1] / "vanilla-my[v2]-s4.safetensors")
    assert trained_seeds("vanilla", "my[v2].npz") == [4]


# ---- what is refused ---------------------------------------------------------------------------------------------

def test_what_is_no_name_of_a_data_set_is_refused():
    with pytest.raises(TypeError, match="dataset must be a data set's name or the path of an .npz file, got 5"):
        load_model("vanilla", 5)


@pytest.mark.parametrize("where", [0, 8, 200, 0.5, -1], ids=["length", "header", "header-200", "middle", "last"])
def test_one_other_byte_is_one_clear_error(folders, where):
    path = save(folders[0])
    content = bytearray(path.read_bytes())
    content[int(where * len(content)) if isinstance(where, float) else where] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f"{path} is corrupt or was altered: its sha256 is .* its card says"):
        load_model("vanilla", "mine")


def test_truncated_weights_are_refused(folders):
    path = save(folders[0])
    os.truncate(path, path.stat().st_size // 2)
    with pytest.raises(ValueError, match=f"{path} is corrupt or was altered"):
        load_model("vanilla", "mine")


def test_weights_without_a_card_are_refused(folders):
    path = save(folders[0])
    path.with_suffix(".json").unlink()
    with pytest.raises(FileNotFoundError, match=f"{path} has no card: {path.with_suffix('.json')} is missing"):
        load_model("vanilla", "mine")


CARDS = {
    "no-object": ("[]", "card .*vanilla-mine-s0.json must hold a JSON object, got list"),
    "no-json": ("{", "card .*vanilla-mine-s0.json is not valid JSON"),
    "no-sha256": (json.dumps(CARD), "card .*vanilla-mine-s0.json does not say the sha256 of its file"),
    "other-channels": ({"architecture": ARCHITECTURE | {"channels": [2, 3, 4, 6]}}, "not the network that its card"),
    "unknown-argument": ({"architecture": ARCHITECTURE | {"depth": 3}}, "not the network that its card.*depth"),
    "other-model": ({"model": "vanila"}, r"not the network asked for \(vanilla on mine, seed 0\): its card describes vanila on mine, seed 0"),
    "other-seed": ({"seed": 1}, "its card describes vanilla on mine, seed 1; it was renamed or copied"),
    "other-data": ({"dataset": "cifar10"}, "its card describes vanilla on cifar10, seed 0"),
    "no-architecture": ({"architecture": None}, "not the network that its card"),
}


@pytest.mark.parametrize("change, message", CARDS.values(), ids=CARDS)
def test_a_card_that_does_not_describe_the_weights_is_refused(folders, change, message):
    path = save(folders[0])
    text = change if isinstance(change, str) else json.dumps(read_card(path) | change)
    path.with_suffix(".json").write_text(text)
    with pytest.raises(ValueError, match=message):
        load_model("vanilla", "mine")


def test_what_is_no_safetensors_file_is_refused_even_with_its_card(folders):
    path = save(folders[0])
    path.write_bytes(b"not weights")
    write_json(path.with_suffix(".json"), CARD | {"sha256": hashlib.sha256(b"not weights").hexdigest()})
    with pytest.raises(ValueError, match=f"{path} cannot be read as safetensors"):
        load_model("vanilla", "mine")


@pytest.mark.parametrize("call", [load_model, find_weights], ids=["load_model", "find_weights"])
def test_missing_weights_say_how_to_train_them(folders, call):
    with pytest.raises(FileNotFoundError, match="train them with: tnlib train vanilla cifar100 --seed 7") as caught:
        call("vanilla", "cifar100", 7)
    assert all(str(folder) in str(caught.value) for folder in folders) and "which have none of vanilla;" in str(caught.value)
    with pytest.raises(FileNotFoundError, match="tnlib train vanilla cifar100 --seed 0"):
        trained_seeds("vanilla", "cifar100")


def test_missing_weights_say_which_there_are(folders):
    save(folders[0]), save(folders[1], 2)
    (folders[1] / "vanilla-constant-mine-s0.safetensors").touch()
    with pytest.raises(FileNotFoundError, match="which have vanilla-mine-s0, vanilla-mine-s2; train them with"):
        load_model("vanilla", "mien")


@pytest.mark.parametrize("name", [["vanilla"], None, 5])
def test_a_name_that_is_none_is_named(name):
    with pytest.raises(ValueError, match="unknown network .*it takes 'vanilla', "):
        load_model(name, "mine")


@pytest.mark.parametrize("seed", ["0", -1, 1.0])
def test_a_seed_that_is_none_is_named(seed):
    with pytest.raises(ValueError, match=f"seed must be a whole number from 0 to 2147483647, got {seed!r}"):
        load_model("vanilla", "cifar10", seed)


def test_an_unknown_network_is_named():
    with pytest.raises(ValueError, match="unknown network 'vanila'"):
        load_model("vanila", "shapes")


# ---- writing a file ----------------------------------------------------------------------------------------------

def test_an_interrupted_write_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "new" / "file.json"
    write_json(path, {"α": 1})
    assert path.stat().st_mode & 0o777 == 0o644 and "α" in path.read_text(encoding="utf-8")
    with pytest.raises(KeyboardInterrupt), atomic_path(path) as temporary:
        temporary.write_text("half of")
        assert json.loads(path.read_text()) == {"α": 1}
        raise KeyboardInterrupt
    assert json.loads(path.read_text()) == {"α": 1} and list(path.parent.iterdir()) == [path]


# ---- the published weights ---------------------------------------------------------------------------------------

NAMES = sorted(path.stem for path in (PUBLISHED / "weights").glob("*.safetensors"))
each_published = pytest.mark.parametrize("name", NAMES)


def card_of(name):
    return read_card(PUBLISHED / "weights" / f"{name}.safetensors")


def test_published_networks_are_the_files_and_their_cards():
    assert [card["file"] for card in published_networks()] == [f"{name}.safetensors" for name in NAMES]
    assert {path.stem for path in (PUBLISHED / "weights").glob("*.json")} == set(NAMES) >= {"vanilla-shapes-s0"}


@each_published
def test_published_weights_load_and_are_what_their_card_says(name):
    card = card_of(name)
    assert name == f"{card['model']}-{card['dataset']}-s{card['seed']}"
    model = load_model(card["model"], card["dataset"], card["seed"])
    assert sum(p.numel() for p in model.parameters()) == card["parameters"]
    assert all(torch.isfinite(tensor).all() for tensor in model.state_dict().values())


@each_published
def test_published_cards_say_how_the_weights_came_about(name):
    card = card_of(name)
    path = PUBLISHED / "weights" / card["file"]
    assert card["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    entry = network(card["model"])
    device = "cpu" if "cores" in card["device"] else "cuda"
    recipe = Recipe(**card["recipe"] | {"sides": tuple(card["recipe"].get("sides", ()))})
    assert recipe == entry.trained_with(card["dataset"], device)[1]
    assert [row["epoch"] for row in card["history"]] == list(range(1, card["recipe"]["epochs"] + 1))
    assert 1 / card["architecture"]["classes"] < card["test_accuracy"] <= 1 and card["test_loss"] > 0
    assert re.fullmatch("[0-9a-f]{40}", card["git_commit"]), "published weights come from committed code"
    assert {"python", "torch", "numpy"} <= card["versions"].keys() and card["threads"] >= 1 and card["device"]
    if card["dataset"] in CIFAR:
        assert card["core_fingerprint"] == CIFAR[card["dataset"]][3]
        assert card["images"] == {"train": entry.images or 45_000, "validation": 5_000, "test": 10_000}


@pytest.mark.cifar
@pytest.mark.parametrize("dataset", sorted({name.split("-")[1] for name in NAMES} & CIFAR.keys()))
def test_published_accuracy_is_that_of_the_weights(dataset):
    """On 500 images: the very answers of its published table of the whole test set, where there is one, of which the
    card's accuracy is the share; else to within four standard errors."""
    images = load_dataset(dataset)
    chosen = images.subset(500, seed=0)
    some = Dataset(images.test_images[chosen], images.test_labels[chosen])
    for card in (card for card in published_networks() if card["dataset"] == dataset):
        found = evaluate(load_model(card["model"], dataset, card["seed"]), some, batch_size=50)  # of a ResNet-50 sooner done than all at once
        expected = card["test_accuracy"]
        if (answers := answers_in_tables(card)) is not None:
            assert answers.mean() == pytest.approx(expected, abs=2e-4), card["file"]  # a logit apart on another machine
            assert (found.correct != answers[chosen]).sum() <= 1, card["file"]
        else:
            assert found.accuracy == pytest.approx(expected, abs=4 * np.sqrt(expected * (1 - expected) / 500)), card["file"]


def answers_in_tables(card):
    """Which test images a network answers right, by the first of its tables that has all of them; None if none has."""
    for experiment in ("truncation", "batch-norm"):
        path = find_table(experiment, card["model"], card["dataset"], card["seed"])
        if path is not None and "test_images" not in read_card(path):
            return read_bits(path, {"test": card["images"]["test"]})["test"][0]
    return None


@pytest.mark.parametrize("card", [card for card in published_networks() if "initial_entropy" in card], ids=lambda card: card["file"])
def test_the_network_before_its_training_is_the_one_that_was_trained(card):
    found = entropies(initial_model(card))
    assert found.keys() == card["initial_entropy"].keys()
    for layer, cuts in card["initial_entropy"].items():
        assert found[layer] == pytest.approx(cuts, abs=1e-4), layer


def test_the_network_before_its_training_is_made_without_touching_the_callers_random_numbers():
    card = {"model": "vanilla", "seed": 3, "architecture": {"channels": [4, 5, 6, 7], "classes": 3, "image_size": 16}}
    torch.manual_seed(0)
    state = torch.get_rng_state()
    weights.initial_model(card)
    assert torch.equal(torch.get_rng_state(), state)


def test_a_network_is_loaded_without_torchs_compiler():
    """It takes seconds to import, and torch asks for it where weights are drawn on the device "meta"."""
    code = "import sys, tnlib; tnlib.load_model('vanilla', 'cifar10'); print('torch._dynamo' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"
