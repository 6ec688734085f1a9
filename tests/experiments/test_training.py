"""Training: one run whether interrupted or not, against a plain loop of torch, and a card that says what was done."""

import dataclasses
import datetime
import json
import subprocess
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version

import numpy as np
import pytest
import torch
from safetensors import SafetensorError
from torch import nn

from tnlib import Dataset, entanglement_entropy, evaluate, load_model, train
from tnlib.experiments import provenance, training, weights
from tnlib.experiments.files import write_json
from tnlib.experiments.networks import NETWORKS, Network, Recipe, Vanilla
from tnlib.experiments.training import augment, augmented, learning_rate

RECIPE = Recipe(epochs=3, batch_size=12, peak_lr=0.1, crop_padding=2)
STEM = "tiny-mine-s0"


@pytest.fixture(autouse=True)
def tiny(monkeypatch, tmp_path):
    monkeypatch.setattr(training, "RUNS", tmp_path)
    monkeypatch.setitem(NETWORKS, "tiny", Network(Vanilla, {"channels": (4, 5, 6, 7), "hidden": 8}, RECIPE))


def dataset(train=60, seed=0, name="mine", side=16):
    random = np.random.RandomState(seed)
    draw = lambda n: random.randint(0, 256, (n, side, side, 3)).astype(np.uint8)
    return Dataset(draw(30), np.arange(30) % 3, draw(train), random.permutation(np.arange(train) % 3), name=name)


def run(folder, data=None, **options):
    """Train, and return the bytes of the weights and the card."""
    train("tiny", data or dataset(), folder=folder, device="cpu", progress=False, **options)
    path = folder / f"tiny-mine-s{options.get('seed', 0)}.safetensors"
    return path.read_bytes(), json.loads(path.with_suffix(".json").read_text())


def as_read(recipe):
    """A recipe as a card has it."""
    return json.loads(json.dumps(dataclasses.asdict(recipe)))


class Interrupted(BaseException):
    """Not an Exception, as a KeyboardInterrupt is not."""


def interrupt(monkeypatch, name, call):
    """Raise at the given call of a function of the module, counted from 1; before it does anything."""
    original, calls = getattr(training, name), []

    def function(*arguments, **options):
        calls.append(None)
        if len(calls) == call:
            raise Interrupted
        return original(*arguments, **options)

    monkeypatch.setattr(training, name, function)


# ---- the same run whether interrupted or not ---------------------------------------------------------------------

# 54 images are left for training: four steps an epoch.
PLACES = {"before-the-first-checkpoint": ("augment", 3), "in-the-second-epoch": ("augment", 6),
          "while-evaluating": ("evaluate", 2), "before-the-second-checkpoint": ("_write_checkpoint", 2),
          "in-the-last-step": ("augment", 12), "while-saving": ("save_weights", 1)}


@pytest.mark.parametrize("name, call", PLACES.values(), ids=PLACES)
def test_a_resumed_run_ends_in_the_same_bytes(tmp_path, monkeypatch, name, call):
    expected, card = run(tmp_path / "whole")
    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        interrupt(patch, name, call)
        run(tmp_path / "resumed")
    assert not (tmp_path / "resumed" / f"{STEM}.safetensors").exists()
    torch.manual_seed(99)
    found, resumed = run(tmp_path / "resumed")
    assert found == expected and resumed["history"] == card["history"]
    assert sorted(path.name for path in (tmp_path / "resumed").iterdir()) == [f"{STEM}.json", f"{STEM}.safetensors"]
    assert not list(tmp_path.rglob("*.checkpoint"))


def test_a_resumed_run_does_not_repeat_what_was_done(tmp_path, monkeypatch):
    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        interrupt(patch, "augment", 10)
        run(tmp_path)
    calls = []
    monkeypatch.setattr(training, "augment", lambda *arguments: calls.append(None) or augment(*arguments))
    run(tmp_path)
    assert len(calls) == 4, "of three epochs two had been finished"


def test_a_run_goes_on_wherever_its_weights_are_to_go(tmp_path, monkeypatch):
    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        interrupt(patch, "augment", 10)
        run(tmp_path / "mine")
    interrupt(monkeypatch, "augment", 5)  # of three epochs of four steps two had been finished
    run(tmp_path / "published")


def test_the_seed_is_all_that_matters(tmp_path):
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first, _ = run(tmp_path / "first")
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    assert run(tmp_path / "again")[0] == first
    assert run(tmp_path / "other", seed=1)[0] != first


def test_held_out_and_test_images_do_not_reach_the_weights(tmp_path):
    ours, other = dataset(), dataset()
    for images in (other.validation_images, other.test_images):
        images[:] = 255 - images
    (first, card), (second, other_card) = run(tmp_path / "first", ours), run(tmp_path / "second", other)
    assert first == second
    assert card["test_loss"] != other_card["test_loss"]


# ---- checkpoints that are refused --------------------------------------------------------------------------------

@pytest.fixture
def checkpoint(tmp_path, monkeypatch):
    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        interrupt(patch, "_write_checkpoint", 3)
        run(tmp_path)
    return tmp_path / "weights" / f"{STEM}.checkpoint"


OTHERS = {  # what it is asked for, and what the message names
    "recipe": (lambda: dict(recipe=dataclasses.replace(RECIPE, peak_lr=0.2)), f"peak_lr {RECIPE.peak_lr}, not 0.2"),
    "epochs": (lambda: dict(recipe=dataclasses.replace(RECIPE, epochs=4)), "epochs 3, not 4"),
    "images": (lambda: dict(data=dataset(seed=1)), "core_fingerprint '.*', not '.*'"),
    "network": (lambda: NETWORKS["tiny"].arguments.update(hidden=9) or {}, "hidden .*, not 9"),
}


@pytest.mark.parametrize("other, named", OTHERS.values(), ids=OTHERS)
def test_a_checkpoint_of_another_run_is_refused_and_kept(checkpoint, other, named):
    before = checkpoint.read_bytes()
    with pytest.raises(ValueError, match=f"{checkpoint} was begun with {named}: .*remove it to start anew"):
        run(checkpoint.parent, **other())
    assert checkpoint.read_bytes() == before


def test_a_run_does_not_go_on_in_another_precision(checkpoint, monkeypatch):
    here = training.training_precision(RECIPE, torch.device("cpu"))
    monkeypatch.setattr(training, "training_precision", lambda recipe, device: "float64")
    with pytest.raises(ValueError, match=f"begun with precision '{here}', not 'float64': .*remove it to start anew"):
        run(checkpoint.parent)


def test_a_corrupt_checkpoint_is_refused_whatever_byte_is_altered(checkpoint):
    whole = checkpoint.read_bytes()
    places = [7, *range(8, len(whole), 97), len(whole) - 1]
    altered = [whole[:k] + bytes([whole[k] ^ 1]) + whole[k + 1:] for k in places]
    for content in [*altered, whole[:-1], whole[:100], b"", b"no checkpoint"]:
        checkpoint.write_bytes(content)
        with pytest.raises(ValueError, match=f"{checkpoint} cannot be read.*remove this checkpoint to start anew"):
            run(checkpoint.parent)
    checkpoint.write_bytes(whole)
    run(checkpoint.parent)


# ---- what is done in a step --------------------------------------------------------------------------------------

@pytest.mark.parametrize("device, amx, vectors, with_tiles, without", [
    ("cuda", False, False, True, True), ("cpu", True, True, True, False), ("cpu", False, True, True, True),
    ("cpu", False, False, False, False)], ids=["GPU", "AMX", "AVX-512 BF16", "neither"])
def test_where_training_is_in_bfloat16(device, amx, vectors, with_tiles, without, monkeypatch):
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: vectors)
    pays = [training.bfloat16_pays(Recipe(bfloat16=tiles), torch.device(device)) for tiles in (True, False)]
    assert pays == [with_tiles, without]
    assert ["bfloat16" in training.training_precision(Recipe(bfloat16=tiles), torch.device(device))
            for tiles in (True, False)] == pays


def test_against_a_plain_loop(tmp_path, monkeypatch):
    """One batch an epoch, so that the order does not matter: torch's SGD, OneCycleLR, clipping and label smoothing."""
    monkeypatch.setattr(training, "bfloat16_pays", lambda recipe, device: False)
    data = dataset(train=40)
    recipe = Recipe(epochs=10, batch_size=36, peak_lr=0.3, warmup=0.3, weight_decay=0.01, label_smoothing=0.1,
                    clip_norm=0.1, crop_padding=0, flip=False)
    found = train("tiny", data, seed=3, recipe=recipe, folder=tmp_path, device="cpu", progress=False)

    torch.manual_seed(3)
    model = Vanilla(3, (4, 5, 6, 7), hidden=8, image_size=16)
    images = torch.from_numpy(data.train_images / 255).permute(0, 3, 1, 2).float()
    model.normalize.mean[:] = images.mean((0, 2, 3), keepdim=True)[0]
    model.normalize.std[:] = images.std((0, 2, 3), keepdim=True, correction=0)[0]
    groups = [{"params": [p for p in model.parameters() if p.ndim == 1], "weight_decay": 0},
              {"params": [p for p in model.parameters() if p.ndim > 1], "weight_decay": 0.01}]
    optimizer = torch.optim.SGD(groups, lr=0.0, momentum=0.9, nesterov=True)
    schedule = triangle(optimizer, 10, recipe)
    criterion, labels = nn.CrossEntropyLoss(label_smoothing=0.1), torch.from_numpy(data.train_labels)
    norms, history = [], []
    for _ in range(10):
        optimizer.zero_grad()
        logits = model(images)
        loss = criterion(logits, labels)
        loss.backward()
        norms.append(nn.utils.clip_grad_norm_(model.parameters(), 0.1).item())
        optimizer.step()
        schedule.step()
        history.append([loss.item(), (logits.argmax(1) == labels).float().mean().item()])
    assert max(norms) > 0.15, "or clipping is not tested"
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(found.state_dict()[name], tensor, rtol=1e-4, atol=1e-5)
    card = json.loads((tmp_path / "tiny-mine-s3.json").read_text())
    found_history = [[row["train_loss"], row["train_accuracy"]] for row in card["history"]]
    np.testing.assert_allclose(found_history, history, atol=1e-4)


def triangle(optimizer, steps, recipe):
    """torch's one cycle with its peak at `warmup` of the steps; it ends one step after the last that is taken."""
    return torch.optim.lr_scheduler.OneCycleLR(
        optimizer, recipe.peak_lr, total_steps=steps + 1, pct_start=(recipe.warmup * steps + 1) / (steps + 1),
        anneal_strategy="linear", cycle_momentum=False, div_factor=1e12, final_div_factor=1e12)


@pytest.mark.parametrize("steps, warmup", [(10, 0.3), (100, 0.2), (7, 0.5)])
def test_the_learning_rate_is_a_triangle(steps, warmup):
    recipe = dataclasses.replace(RECIPE, peak_lr=0.4, warmup=warmup)
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1)
    schedule = triangle(optimizer, steps, recipe)
    for step in range(steps):
        assert learning_rate(step, steps, recipe) == pytest.approx(schedule.get_last_lr()[0], abs=1e-9)
        optimizer.step()
        schedule.step()
    assert learning_rate(0, steps, recipe) == learning_rate(steps, steps, recipe) == 0
    assert learning_rate(warmup * steps, steps, recipe) == 0.4


@pytest.mark.parametrize("flip", [True, False])
def test_augment_draws_every_crop_and_flip_equally_often(flip):
    """All crops of 4×4 out of 6×6, and their mirror images, by a plain loop; each to within five standard errors."""
    padded = torch.arange(6 * 6 * 3, dtype=torch.uint8).view(6, 6, 3)
    possible = {}
    for top in range(3):
        for left in range(3):
            for mirrored in range(1 + flip):
                crop = padded.numpy()[top:top + 4, left:left + 4]
                possible[(crop[:, ::-1] if mirrored else crop).tobytes()] = 0
    n = 500 * len(possible)
    batch = augment(padded.expand(n, 6, 6, 3), 4, flip, torch.Generator().manual_seed(0))
    assert batch.dtype == torch.uint8 and batch.shape == (n, 4, 4, 3)
    for image in batch.numpy():
        possible[image.tobytes()] += 1
    assert max(abs(count - 500) for count in possible.values()) < 5 * np.sqrt(500)


def test_augment_keeps_each_image_in_its_place():
    images = torch.arange(200, dtype=torch.uint8).view(200, 1, 1, 1).expand(200, 6, 6, 3)
    assert torch.equal(augment(images, 4, True, torch.Generator().manual_seed(0)), images[:, :4, :4])


def test_images_are_augmented_as_an_epoch_of_the_recipe_sees_them():
    images = np.random.RandomState(0).randint(1, 256, (40, 6, 6, 3), dtype=np.uint8)
    assert np.array_equal(augmented(images, Recipe(crop_padding=0, flip=False), 3), images)
    found = augmented(images, Recipe(crop_padding=2), 3)
    assert found.shape == images.shape and np.array_equal(found, augmented(images, Recipe(crop_padding=2), 3))
    for image, seen in zip(images, found):
        padded = np.pad(image, ((2, 2), (2, 2), (0, 0)))
        crops = [padded[y:y + 6, x:x + 6] for y in range(5) for x in range(5)]
        assert any(np.array_equal(seen, way) for crop in crops for way in (crop, crop[:, ::-1]))


def test_an_epoch_goes_through_the_images_in_an_order_of_its_own(tmp_path, monkeypatch):
    data, seen = dataset(), []
    data.train_images[:] = np.arange(54)[:, None, None, None]

    def recorded(images, *arguments):
        seen.extend(images[:, 8, 8, 0].tolist())
        return augment(images, *arguments)

    monkeypatch.setattr(training, "augment", recorded)
    run(tmp_path, data)
    epochs = np.array(seen).reshape(3, 48)
    assert all(len(set(epoch)) == 48 for epoch in epochs.tolist())
    assert not np.array_equal(epochs[0], epochs[1]) and not np.array_equal(epochs[1], epochs[2])
    assert not np.array_equal(epochs[0], np.sort(epochs[0]))


def test_crops_are_padded_with_black(tmp_path, monkeypatch):
    data, seen = dataset(), []
    data.train_images[:] = 100 + np.arange(54)[:, None, None, None]
    monkeypatch.setattr(training, "augment", lambda *arguments: seen.append(arguments[0]) or augment(*arguments))
    run(tmp_path, data)
    assert seen[0].shape == (12, 20, 20, 3) and (seen[0][:, 2:-2, 2:-2] >= 100).all()
    for border in (seen[0][:, :2], seen[0][:, -2:], seen[0][:, :, :2], seen[0][:, :, -2:]):
        assert not border.any()


def test_it_learns(tmp_path):
    data = dataset(train=200)
    for images, labels in ((data.train_images, data.train_labels), (data.test_images, data.test_labels)):
        images[:] = images // 4 + 60 * labels[:, None, None, None]
    _, card = run(tmp_path, data, recipe=dataclasses.replace(RECIPE, epochs=8))
    assert card["test_accuracy"] > 0.9 and card["history"][-1]["train_loss"] < card["history"][0]["train_loss"]


# ---- the weights and the card ------------------------------------------------------------------------------------

def test_the_card_says_what_was_done(tmp_path):
    data = dataset()
    model = train("tiny", data, seed=5, folder=tmp_path, device="cpu", progress=False)
    card = json.loads((tmp_path / "tiny-mine-s5.json").read_text())
    assert not model.training and card["recipe"] == as_read(RECIPE)
    assert (card["model"], card["dataset"], card["seed"]) == ("tiny", "mine", 5)
    assert card["architecture"] == {"channels": [4, 5, 6, 7], "hidden": 8, "classes": 3, "image_size": 16}
    assert card["parameters"] == sum(p.numel() for p in model.parameters())
    assert card["fingerprint"] == data.fingerprint and card["core_fingerprint"] == data.core_fingerprint
    assert card["images"] == {"train": 54, "validation": 6, "test": 30}
    for split in ("test", "train"):
        found = evaluate(model, data, split=split)
        assert card[f"{split}_accuracy"] == found.accuracy and card[f"{split}_loss"] == pytest.approx(found.loss)
    held_out = evaluate(model, data, split="validation")
    assert [row["epoch"] for row in card["history"]] == [1, 2, 3]
    assert card["history"][-1]["validation_accuracy"] == pytest.approx(held_out.accuracy, abs=1e-5)
    assert card["history"][-1]["validation_loss"] == pytest.approx(held_out.loss, abs=1e-5)
    assert {"train_loss", "train_accuracy"} < card["history"][0].keys()
    entropies = card["history"][-1]["entropy"]
    assert list(entropies) == ["conv1", "conv2", "conv3", "conv4"] and len(entropies["conv2"]) == 7
    found = entanglement_entropy(model.conv2.weight.detach(), "OUT,KW").item()
    assert entropies["conv2"]["OUT,KW"] == pytest.approx(found, abs=1e-5) != card["initial_entropy"]["conv2"]["OUT,KW"]
    assert card["train_seconds"] >= 0 and card["threads"] == 1 and card["device"]
    started, finished = (datetime.datetime.fromisoformat(card[key]) for key in ("last_started", "finished"))
    assert started <= finished and finished.utcoffset() == datetime.timedelta(0)
    assert card["versions"]["torch"] == version("torch") and card["versions"]["numpy"] == np.__version__
    assert card["git_commit"] == provenance.git_commit()


def test_the_card_names_the_code_that_began(tmp_path, monkeypatch):
    """Which may be another than what lies there when the training ends."""
    order, noted, fit = [], training.provenance, training._fit
    monkeypatch.setattr(training, "provenance", lambda *given: order.append("noted") or noted(*given))
    monkeypatch.setattr(training, "_fit", lambda *given: order.append("trained") or fit(*given))
    run(tmp_path)
    assert order == ["noted", "trained"]


def test_the_commit_says_whether_something_was_changed(tmp_path, monkeypatch):
    git = lambda *words: subprocess.run(["git", "-c", "user.name=n", "-c", "user.email=e@example.org", "-C", tmp_path,
                                         *words], capture_output=True, text=True, check=True).stdout.strip()
    monkeypatch.setattr(provenance, "ROOT", tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert provenance.git_commit() is None
    (tmp_path / "published").mkdir()
    for file in ("file", "published/table"):
        (tmp_path / file).write_text("one")
    git("init")
    git("add", ".")
    git("commit", "-m", "one")
    (tmp_path / "made").write_text("not tracked")
    (tmp_path / "published" / "table").write_text("two")
    assert provenance.git_commit() == git("rev-parse", "HEAD")
    (tmp_path / "file").write_text("two")
    assert provenance.git_commit() == git("rev-parse", "HEAD") + "+changes"
    (tmp_path / "vendor").mkdir()
    monkeypatch.setattr(provenance, "ROOT", tmp_path / "vendor")
    assert provenance.git_commit() is None, "the commit of a repository around it says nothing of a copy"


def test_of_two_that_train_the_same_one_does_and_the_other_waits(tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(training, "RUNS", tmp_path)
    order, fit, at_work = [], training._fit, threading.Event()

    def slowly(*given):
        order.append("begins")
        at_work.set()
        time.sleep(0.3)
        found = fit(*given)
        order.append("ends")
        return found

    monkeypatch.setattr(training, "_fit", slowly)
    again = lambda progress: train("vanilla", dataset(), recipe=RECIPE, device="cpu", progress=progress)
    with ThreadPoolExecutor(1) as other:
        first = other.submit(again, False)
        assert at_work.wait(60)
        second = again(True)
    assert order == ["begins", "ends"] and "waits for another process that makes it" in capfd.readouterr().err
    for name, tensor in first.result().state_dict().items():
        assert torch.equal(tensor, second.state_dict()[name])


def test_what_was_waited_for_may_be_of_another_recipe(tmp_path, monkeypatch):
    monkeypatch.setattr(training, "RUNS", tmp_path)
    at_work, fit = threading.Event(), training._fit

    def slowly(*given):
        at_work.set()
        time.sleep(0.3)
        return fit(*given)

    monkeypatch.setattr(training, "_fit", slowly)
    with ThreadPoolExecutor(1) as other:
        first = other.submit(train, "tiny", dataset(), recipe=RECIPE, device="cpu", progress=False)
        assert at_work.wait(60)
        with pytest.raises(ValueError, match="was trained with epochs 3, not 4"):
            train("tiny", dataset(), recipe=dataclasses.replace(RECIPE, epochs=4), device="cpu", progress=False)
        first.result()


def test_weights_that_cannot_be_written_are_named(tmp_path, monkeypatch):
    monkeypatch.setattr(training, "RUNS", tmp_path)

    def full(*given, **named):
        raise SafetensorError("No space left on device")

    monkeypatch.setattr(weights, "save_file", full)
    with pytest.raises(OSError, match=r"\.checkpoint cannot be written: No space left on device. Is the disk full\?"):
        train("vanilla", dataset(), recipe=RECIPE, device="cpu", progress=False)


@pytest.mark.parametrize("shuffled", [False, True], ids=["true-labels", "shuffled-labels"])
def test_a_network_may_be_trained_on_fewer_images_and_on_shuffled_labels(tmp_path, monkeypatch, shuffled):
    monkeypatch.setitem(NETWORKS, "tiny", dataclasses.replace(NETWORKS["tiny"], images=24, shuffled=shuffled))
    data, seen = dataset(train=200), []
    monkeypatch.setattr(training, "augment", lambda *arguments: seen.append(arguments[0]) or augment(*arguments))
    model = train("tiny", data, folder=tmp_path, device="cpu", progress=False)
    part = training.as_trained_on(data, NETWORKS["tiny"])
    card = json.loads((tmp_path / STEM).with_suffix(".json").read_text())
    assert card["images"]["train"] == 24 and card["shuffled_labels"] is shuffled and len(seen) == 6
    assert np.bincount(part.train_labels).tolist() == [8, 8, 8]
    where = [int(np.flatnonzero((data.train_images == image).all((1, 2, 3)))[0]) for image in part.train_images]
    assert (data.train_labels[where] == part.train_labels).all() != shuffled and len(set(where)) == 24
    assert card["train_accuracy"] == evaluate(model, part, split="train").accuracy
    assert part.fingerprint == data.fingerprint == card["fingerprint"] and len(data.train_labels) == 180


def test_by_default_weights_go_below_runs_and_are_found_there(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(training, "RUNS", tmp_path)
    monkeypatch.setattr(weights, "FOLDERS", (tmp_path / "published", tmp_path / "weights"))
    model = train("tiny", dataset(), device="cpu", progress=False)
    loaded = load_model("tiny", "mine")
    assert all(torch.equal(tensor, loaded.state_dict()[name]) for name, tensor in model.state_dict().items())
    assert model.conv2.weight.is_contiguous() and capsys.readouterr() == ("", "")


def test_a_data_set_may_have_a_recipe_of_its_own(tmp_path, monkeypatch):
    own = dataclasses.replace(RECIPE, epochs=1)
    monkeypatch.setitem(NETWORKS["tiny"].smaller, "mine", ({}, own))
    assert run(tmp_path)[1]["recipe"] == as_read(own)
    train("tiny", dataset(name="yours"), folder=tmp_path, device="cpu", progress=False)
    assert json.loads((tmp_path / "tiny-yours-s0.json").read_text())["recipe"] == as_read(RECIPE)


def test_a_channel_of_one_value_is_no_reason_to_diverge(tmp_path):
    data = dataset()
    for images in (data.train_images, data.validation_images, data.test_images):
        images[..., 2] = 137
    train("tiny", data, folder=tmp_path, device="cpu", progress=False)
    card = json.loads((tmp_path / f"{STEM}.json").read_text())
    assert all(np.isfinite(row["train_loss"]) for row in card["history"])


# ---- bad input ---------------------------------------------------------------------------------------------------

def test_weights_of_other_images_are_not_replaced(tmp_path):
    before, _ = run(tmp_path)
    with pytest.raises(ValueError, match="Dataset.'mine'.* is not the data set that tiny-mine-s0 was trained on.* "
                       "remove tiny-mine-s0.safetensors and its card, and train again"):
        run(tmp_path, dataset(seed=1))
    assert (tmp_path / f"{STEM}.safetensors").read_bytes() == before and run(tmp_path)[0] == before


def test_a_training_whose_weights_would_never_be_found_does_not_begin(tmp_path, monkeypatch):
    """tiny on mine-s0.npz and tiny-mine on s0.npz have one name; what is there is found first, and is another network."""
    run(tmp_path / "first")
    path = (tmp_path / "first" / f"{STEM}.json")
    write_json(path, json.loads(path.read_text()) | {"model": "another"})
    monkeypatch.setattr(weights, "FOLDERS", (tmp_path / "first",))
    with pytest.raises(ValueError, match=rf"{STEM}.safetensors is not the network asked for .tiny on mine, seed 0.: its card describes another on mine"):
        run(tmp_path / "second")
    assert not (tmp_path / "second").exists()


def test_weights_of_another_recipe_are_not_replaced(tmp_path):
    before, _ = run(tmp_path)
    with pytest.raises(ValueError, match=rf"{STEM}.safetensors was trained with epochs 3, not 4: move it and its card elsewhere"):
        run(tmp_path, recipe=dataclasses.replace(RECIPE, epochs=4))
    assert (tmp_path / f"{STEM}.safetensors").read_bytes() == before


def test_weights_without_a_card_are_those_of_a_training_that_was_cut_off(tmp_path):
    """Killed between the two files: nothing says what the first is, and the training ends in the same."""
    before, card = run(tmp_path)
    (tmp_path / f"{STEM}.json").unlink()
    assert run(tmp_path)[0] == before and (tmp_path / f"{STEM}.json").is_file()


def test_weights_of_another_network_of_the_same_name_are_not_replaced(tmp_path, monkeypatch):
    monkeypatch.setitem(NETWORKS, "tiny-er", NETWORKS["tiny"])
    train("tiny", dataset(name="er-mine"), folder=tmp_path, device="cpu", progress=False)
    before = (tmp_path / "tiny-er-mine-s0.safetensors").read_bytes()
    with pytest.raises(ValueError, match=r"asked for \(tiny-er on mine, seed 0\): its card describes tiny on er-mine, seed 0"):
        train("tiny-er", dataset(), folder=tmp_path, device="cpu", progress=False)
    assert (tmp_path / "tiny-er-mine-s0.safetensors").read_bytes() == before


BAD = {
    "network": (lambda folder: train("tinny", "shapes", folder=folder), "unknown network 'tinny'"),
    "seed": (lambda folder: run(folder, seed="0"), "seed must be a whole number from 0 to 2147483647, got '0'"),
    "seed-too-large": (lambda folder: run(folder, seed=2**31), "seed must be a whole number from 0 to 2147483647, got 2147483648"),
    "folder": (lambda folder: train("tiny", dataset(), recipe=RECIPE, folder=7, device="cpu"), "folder must be one that weights can be written to, got 7"),
    "folder-that-is-a-file": (lambda folder: train("tiny", dataset(), recipe=RECIPE, folder=__file__, device="cpu"),
                              "folder must be one that weights can be written to, got .*test_training.py.*exists"),
    "data-set": (lambda folder: train("tiny", "shape", folder=folder), "unknown data set 'shape'"),
    "too-few": (lambda folder: run(folder, dataset(train=12)),
                r"'mine': 11 train, .* has 11 training images; at least one batch of 12 is needed"),
    "none-held-out": (lambda folder: run(folder, dataset(train=9), recipe=dataclasses.replace(RECIPE, batch_size=4)),
                      "has 9 training images, too few for a tenth to be held out: at least ten are needed"),
    "device": (lambda folder: train("tiny", dataset(), folder=folder, device="meta"), "must be on the CPU or on CUDA, .* device meta"),
    "no-train": (lambda folder: run(folder, Dataset(np.zeros((3, 16, 16, 3), np.uint8), [0, 1, 2])), "has 0 training"),
    "oblong": (lambda folder: run(folder, Dataset(*[np.zeros((30, 16, 32, 3), np.uint8), np.arange(30) % 3] * 2)),
               r"square images.* has \(16, 32\)"),
    "grey": (lambda folder: run(folder, Dataset(*[np.zeros((30, 16, 16, 1), np.uint8), np.arange(30) % 3] * 2)),
             "training takes images in colour, of three channels, and those of .* have 1"),
    "too-few-for-twins": (lambda folder: train("vanilla-true-labels", dataset(), folder=folder),
                          "this network is trained on 10,000 images, and Dataset.'mine'.* has fewer"),
    "size": (lambda folder: run(folder, dataset(side=20)), "image size divisible by 16, got .*image_size=20"),
    "no-device": (lambda folder: train("tiny", dataset(), folder=folder, device="gpu"), "device must be 'cpu' or 'cuda', got 'gpu'"),
    "diverged": (lambda folder: run(folder, recipe=dataclasses.replace(RECIPE, peak_lr=1e25, clip_norm=1e25)),
                 r"diverged in epoch 1 \(loss (nan|inf)\): lower the learning rate, 1e\+25"),
}


@pytest.mark.parametrize("name, values, message", [
    ("peak_lr", (0, -1.0, "0.1", float("nan")), "above 0, got"), ("clip_norm", (0.0, True), "above 0, got"),
    ("momentum", (0.0, 1.5), "above 0 and at most 1, got"), ("warmup", (-0.1, 1.5), "of at least 0 and at most 1, got"),
    ("label_smoothing", (2.0, None), "of at least 0 and at most 1, got"), ("weight_decay", (-1e-4,), "of at least 0, got")])
def test_numbers_of_a_recipe_are_in_their_range(name, values, message):
    for value in values:
        with pytest.raises(ValueError, match=f"{name} must be a number {message} {value!r}"):
            dataclasses.replace(RECIPE, **{name: value})
    with pytest.raises(TypeError, match="sides must be a tuple of whole numbers, got 5"):
        dataclasses.replace(RECIPE, sides=5)


@pytest.mark.parametrize("call, message", BAD.values(), ids=BAD)
def test_bad_input_is_named_and_nothing_is_written(tmp_path, call, message):
    with pytest.raises(ValueError, match=message):
        call(tmp_path)
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and path.suffix != ".lock"]


def test_of_a_network_of_fewer_images_it_is_known_which_differ_between_copies():
    """Images are told apart by their first value: of those drawn, every seventh of all differs."""
    image = np.arange(200, dtype=np.uint8)[:, None, None, None] + np.zeros((1, 4, 4, 3), np.uint8)
    data = Dataset(image, np.arange(200) % 3, image, np.arange(200) % 3, differing_train=range(0, 200, 7))
    part = training.as_trained_on(data, dataclasses.replace(NETWORKS["vanilla"], images=60))
    number = part.train_images[:, 0, 0, 0]
    assert len(number) == 60 and np.array_equal(part.train_differs, number % 7 == 0) and part.train_differs.any()
