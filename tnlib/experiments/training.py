"""Training: whole batches augmented as tensors, one checkpoint an epoch, the same run whether interrupted or not."""

import dataclasses
import json
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F
from tqdm import tqdm

from ..tensors.checks import check_device, check_seed
from .dataset import Dataset, balanced_sample, part_of
from .datasets import load_dataset
from .evaluation import default_device, evaluate, to_unit_floats
from .files import RUNS
from .kernel_spectra import entropies
from .networks import Network, Recipe, network
from .provenance import now, provenance
from .store import alone
from .tables import has_card
from .weights import (as_stored, check_called, check_trained_on, find_weights, initial_model, model_at, read_card, read_sealed, save_sealed, save_weights,
                      stem)

SAMPLE_SEED = 11  # of the training images that a network trained on fewer takes


def train(model: str, dataset, seed: int = 0, recipe: Recipe | None = None, folder=None,
          device=None, progress: bool = True) -> torch.nn.Module:
    """Train the network called `model` on `dataset` (a name, or a `Dataset`) and write its weights and card.

    They go to `folder`, by default runs/weights/, as `<model>-<dataset>-s<seed>.safetensors` and `.json`. After
    every epoch a checkpoint is written to runs/weights/; a call that finds one goes on from there, and ends in the same
    weights as a run that was never stopped (on one machine, with the same number of threads). Returns the network
    in eval mode. `device`: 'cpu' or 'cuda' (None: a GPU where there is one); `recipe`: another `Recipe` than the network's own;
    `progress`: a bar with the epochs done. Raises `TypeError` for what is no recipe, and `ValueError` for an unknown network or
    device, a seed that is no whole number, a data set with too few training images or images that are not square or not in
    colour, a checkpoint that is corrupt, of another recipe or begun in another precision than this machine trains in, or a loss
    that is no longer a number, a folder that cannot be written to; and where weights of this name are there of another network or data set.
    One that waits for another process that makes the same returns what that one made.
    """
    entry = network(model)
    check_seed(seed)
    if not isinstance(recipe, (Recipe, type(None))):
        raise TypeError(f"recipe must be a tnlib.experiments.networks.Recipe, or None for the network's own, got {recipe!r}")
    dataset = dataset if isinstance(dataset, Dataset) else load_dataset(dataset)
    dataset = as_trained_on(dataset, entry)
    try:
        device = torch.device(device or default_device())
    except (RuntimeError, TypeError) as error:
        raise ValueError(f"device must be 'cpu' or 'cuda', got {device!r}: {error}") from None
    check_device(device, "the network")
    arguments, own = entry.trained_with(dataset.name, device.type)
    recipe = recipe or own
    if len(dataset.train_labels) < recipe.batch_size:
        raise ValueError(f"{dataset!r} has {len(dataset.train_labels)} training images; at least one batch of "
                         f"{recipe.batch_size} is needed")
    if not len(dataset.validation_labels):
        raise ValueError(f"{dataset!r} has {len(dataset.train_labels)} training images, too few for a tenth to be held out: at least "
                         "ten are needed")
    if dataset.train_images.shape[1] != dataset.train_images.shape[2]:
        raise ValueError(f"training takes square images, {dataset!r} has {dataset.train_images.shape[1:3]}")
    if dataset.train_images.shape[3] != 3:
        raise ValueError(f"training takes images in colour, of three channels, and those of {dataset!r} have "
                         f"{dataset.train_images.shape[3]}; grey ones repeated three times would do")
    name = stem(model, dataset.name, seed)
    with suppress(FileNotFoundError):  # weights called the same, of another network, would be found first
        first = find_weights(model, dataset.name, seed)
        check_called(first, read_card(first), model, dataset.name, seed)
    path = _writable(RUNS / "weights" if folder is None else folder) / f"{name}.safetensors"
    checkpoint = RUNS / "weights" / f"{name}.checkpoint"  # wherever the weights go, so that any call finds it

    architecture = arguments | {"classes": len(dataset.classes), "image_size": dataset.train_images.shape[1]}
    identity = {"model": model, "dataset": dataset.name, "seed": seed, "architecture": architecture,
                "recipe": dataclasses.asdict(recipe), "core_fingerprint": dataset.core_fingerprint,
                "precision": training_precision(recipe, device)}
    trained_before = has_card(path)
    if trained_before:  # the same training may make them again, and no other replaces them
        _check_trained_alike(path, dataset, identity)
    module = initial_model(identity)
    _set_normalization(module, dataset)

    with alone(checkpoint, progress):
        if not trained_before and has_card(path):  # by the one that was waited for
            _check_trained_alike(path, dataset, identity)
            return model_at(path, model, dataset.name, seed)
        started, code, initial_entropy = now(), provenance(device), entropies(module)  # of the code that trains, whatever is edited meanwhile
        history, seconds = _fit(module, dataset, recipe, seed, device, checkpoint, identity, progress)
        module = module.to(memory_format=torch.contiguous_format).eval()
        module.load_state_dict(as_stored(module, entry.half))  # what is measured is what is loaded
        test, train_set = evaluate(module, dataset), evaluate(module, dataset, split="train")
        module = module.cpu()
        save_weights(module, path, identity | {
            "parameters": sum(p.numel() for p in module.parameters()),
            "fingerprint": dataset.fingerprint,
            "images": {"train": len(dataset.train_labels), "validation": len(dataset.validation_labels),
                       "test": len(dataset.test_labels)},
            "shuffled_labels": entry.shuffled,
            "test_accuracy": test.accuracy, "test_loss": test.loss,
            "train_accuracy": train_set.accuracy, "train_loss": train_set.loss,
            "initial_entropy": initial_entropy, "history": history, "finished": now(), "last_started": started,
            "train_seconds": round(seconds, 1), **code}, entry.half)
        checkpoint.unlink(missing_ok=True)
    return module


def _check_trained_alike(path, dataset, identity) -> None:
    """Raise `ValueError` where the weights at `path` are of another network or data set, or were trained otherwise."""
    card = read_card(path)
    check_called(path, card, identity["model"], dataset.name, identity["seed"])
    check_trained_on(dataset, card)
    if others := _differences({name: card[name] for name in ("recipe", "architecture")}, {name: identity[name] for name in ("recipe", "architecture")}):
        raise ValueError(f"{path} was trained with {'; '.join(others)}: move it and its card elsewhere, or give another folder")


def _writable(folder) -> Path:
    """`folder`, made where it is not there. Raises `ValueError` before the hours of training where nothing can be written to it."""
    try:
        (folder := Path(folder)).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return folder
    except (OSError, TypeError) as error:
        raise ValueError(f"folder must be one that weights can be written to, got {folder!r}: {error}") from None


def as_trained_on(dataset: Dataset, entry: Network) -> Dataset:
    """`dataset` with the training images and labels that `entry` takes of it: all, or fewer, their labels shuffled.

    Raises `ValueError` where it has too few.
    """
    if entry.images is None:
        return dataset
    if entry.images > len(dataset.train_labels):
        raise ValueError(f"this network is trained on {entry.images:,} images, and {dataset!r} has fewer")
    chosen = balanced_sample(dataset.train_labels, entry.images, SAMPLE_SEED)
    part = part_of(dataset, chosen)
    if entry.shuffled:
        part.train_labels = np.random.RandomState(SAMPLE_SEED).permutation(part.train_labels)
    return part


def learning_rate(step: int, steps: int, recipe: Recipe) -> float:
    """One triangle: from 0 up to the peak at `warmup`, and back to 0 at the last step."""
    return float(np.interp(step, [0, recipe.warmup * steps, steps], [0, recipe.peak_lr, 0]))


def augment(images: torch.Tensor, side: int, flip: bool, generator: torch.Generator) -> torch.Tensor:
    """Random crops of `side` out of padded uint8 images (N, H, W, C), each flipped left to right with chance ½."""
    n, padded = len(images), images.shape[1]
    top, left, mirrored = (torch.randint(high, (n, 1), generator=generator)
                           for high in (padded - side + 1, padded - side + 1, 2))
    steps = torch.arange(side)
    columns = torch.where((mirrored == 1) & flip, left + side - 1 - steps, left + steps)      # [N, side]
    index = [index.to(images.device) for index in (torch.arange(n), top + steps, columns)]
    return images[index[0][:, None, None], index[1][:, :, None], index[2][:, None, :]]        # [N, side, side, C]


def augmented(images: np.ndarray, recipe: Recipe, seed: int) -> np.ndarray:
    """Images (uint8, (N, H, W, C)) as an epoch of the recipe sees them, each once."""
    padded = torch.from_numpy(_padded(images, recipe.crop_padding))
    return augment(padded, images.shape[1], recipe.flip, torch.Generator().manual_seed(seed)).numpy()


def _padded(images, pad):
    return np.pad(images, ((0, 0), (pad, pad), (pad, pad), (0, 0)))


class Training:
    """The training of `module` on the images of `dataset`: call it with an epoch's number to train for that epoch.

    Epoch k's draws follow from `draws` + k and nothing else; the learning rate from the step among all of the recipe.
    Every parameter of two dimensions or more decays, biases do not.
    """

    def __init__(self, module, dataset: Dataset, recipe: Recipe, draws: int, device: torch.device):
        self.module = module.to(device=device, memory_format=torch.channels_last)
        self.recipe, self.draws, self.device = recipe, draws, device
        decayed = [p for p in module.parameters() if p.ndim > 1]
        plain = [p for p in module.parameters() if p.ndim <= 1]
        self.optimizer = torch.optim.SGD([{"params": decayed, "weight_decay": recipe.weight_decay},
                                          {"params": plain, "weight_decay": 0.0}],
                                         lr=recipe.peak_lr, momentum=recipe.momentum, nesterov=True)
        self.side = dataset.train_images.shape[1]
        padded = torch.from_numpy(_padded(dataset.train_images, recipe.crop_padding))
        self.images, self.labels = padded.to(device), torch.from_numpy(dataset.train_labels).to(device)
        self.steps = len(self.labels) // recipe.batch_size  # in an epoch

    def __call__(self, epoch: int) -> tuple[float, float]:
        """Train for one epoch; the mean loss and the share of right answers on its batches, as it went.

        Raises `ValueError` when the loss is no longer a number.
        """
        generator = torch.Generator().manual_seed(self.draws + epoch)  # an epoch's draws depend on nothing before it
        order = torch.randperm(len(self.labels), generator=generator).to(self.device)
        self.module.train()
        total_loss, total_correct = torch.zeros((), device=self.device), torch.zeros((), device=self.device)
        for k in range(self.steps):
            batch = order[k * self.recipe.batch_size:(k + 1) * self.recipe.batch_size]
            inputs = to_unit_floats(augment(self.images[batch], self.side, self.recipe.flip, generator))
            if (side := self.recipe.side(epoch, self.side)) != self.side:
                inputs = F.interpolate(inputs, (side, side), mode="bilinear", antialias=True)
            target = self.labels[batch]
            for group in self.optimizer.param_groups:
                group["lr"] = learning_rate(epoch * self.steps + k, self.steps * self.recipe.epochs, self.recipe)
            with torch.autocast(self.device.type, torch.bfloat16, bfloat16_pays(self.recipe, self.device)):
                logits = self.module(inputs)
            loss = F.cross_entropy(logits.float(), target, label_smoothing=self.recipe.label_smoothing)
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self.module.parameters(), self.recipe.clip_norm)
            self.optimizer.step()
            total_loss += loss.detach()
            total_correct += (logits.argmax(1) == target).sum()
        if not torch.isfinite(total_loss):
            raise ValueError(f"training diverged in epoch {epoch + 1} (loss {total_loss.item()}): "
                             f"lower the learning rate, {self.recipe.peak_lr}")
        return total_loss.item() / self.steps, total_correct.item() / (self.steps * self.recipe.batch_size)


def _fit(module, dataset, recipe, seed, device, checkpoint, identity, progress):
    training = Training(module, dataset, recipe, 1000 * seed, device)
    history, seconds = _read_checkpoint(checkpoint, module, training.optimizer, identity)
    bar = tqdm(total=recipe.epochs, initial=len(history), unit="epoch", disable=not progress,
               desc=checkpoint.stem)
    for epoch in range(len(history), recipe.epochs):
        begun = time.perf_counter()
        loss, accuracy = training(epoch)
        held_out = evaluate(module, dataset, split="validation")
        history.append({"epoch": epoch + 1, "train_loss": round(loss, 5), "train_accuracy": round(accuracy, 5),
                        "validation_loss": round(held_out.loss, 5), "validation_accuracy": round(held_out.accuracy, 5),
                        "entropy": entropies(module)})
        seconds += time.perf_counter() - begun
        _write_checkpoint(checkpoint, module, training.optimizer, identity, history, seconds)
        bar.update()
        bar.set_postfix(loss=history[-1]["train_loss"], held_out=history[-1]["validation_accuracy"])
    bar.close()
    return history, seconds


def bfloat16_pays(recipe: Recipe, device: torch.device) -> bool:
    """Whether training in bfloat16 autocast is faster than in float32: on a GPU; on a CPU with matrix tiles where the
    recipe says so; on one with bfloat16 vectors alone always (1.6 times, ResNet-50 1.7 times, on an AMD EPYC)."""
    if device.type == "cpu" and torch.cpu._is_amx_tile_supported():
        return recipe.bfloat16
    return device.type == "cuda" or torch.cpu._is_avx512_bf16_supported()


def training_precision(recipe: Recipe, device: torch.device | None = None) -> str:
    """What a card says of the arithmetic of a training; `device`: None for the one that is trained on here."""
    device = device or default_device()
    return "bfloat16 autocast in training, float32 in evaluation" if bfloat16_pays(recipe, device) else "float32"


def _set_normalization(module, dataset) -> None:
    pixels = dataset.train_images.reshape(-1, dataset.train_images.shape[-1])
    # Sums in integers are exact whatever the order: the constants are the same on every machine.
    mean = pixels.sum(0, dtype=np.int64) / len(pixels)
    square = np.stack([np.square(pixels[:, c], dtype=np.int64).sum() for c in range(pixels.shape[1])]) / len(pixels)
    module.normalize.mean.copy_(torch.from_numpy(mean / 255).view(-1, 1, 1))
    std = np.sqrt(np.maximum(square - mean ** 2, 0)) / 255
    module.normalize.std.copy_(torch.from_numpy(np.where(std > 1e-6, std, 1.0)).view(-1, 1, 1))  # of one value: no scale


# ---- checkpoints: one safetensors file, the history in its header ------------------------------------------------

def _write_checkpoint(path, module, optimizer, identity, history, seconds) -> None:
    tensors = {f"model.{name}": tensor.contiguous() for name, tensor in module.state_dict().items()}
    for name, parameter in module.named_parameters():
        tensors[f"momentum.{name}"] = optimizer.state[parameter]["momentum_buffer"].contiguous()
    header = {"identity": json.dumps(identity), "history": json.dumps(history), "seconds": str(seconds)}
    save_sealed(path, header, tensors)


def _differences(begun: dict, asked: dict) -> list[str]:
    """In what two trainings, as they are identified, are not the same, in words."""
    begun, asked = (of | of["recipe"] | of["architecture"] | {"recipe": None, "architecture": None} for of in (begun, json.loads(json.dumps(asked))))
    return [f"{name} {begun.get(name)!r}, not {asked.get(name)!r}" for name in begun | asked if begun.get(name) != asked.get(name)]


def _read_checkpoint(path, module, optimizer, identity) -> tuple[list, float]:
    if not path.exists():
        return [], 0.0
    header, tensors = read_sealed(path, "remove this checkpoint to start anew")
    if others := _differences(json.loads(header["identity"]), identity):
        raise ValueError(f"the checkpoint {path} was begun with {'; '.join(others)}: go on with it as it was begun, or "
                         "remove it to start anew")
    module.load_state_dict({name.removeprefix("model."): tensor for name, tensor in tensors.items()
                            if name.startswith("model.")})
    for name, parameter in module.named_parameters():
        layout = torch.channels_last if parameter.ndim == 4 else torch.contiguous_format
        optimizer.state[parameter]["momentum_buffer"] = tensors[f"momentum.{name}"].to(
            device=parameter.device, memory_format=layout)
    return json.loads(header["history"]), float(header["seconds"])
