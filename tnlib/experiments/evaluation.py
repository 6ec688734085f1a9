"""Top-1 accuracy and loss of a network over a data set's images, in float32."""

import reprlib
import threading
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional as F

from ..tensors.checks import check_count, check_device
from .calls import CALLS

PROBE_IMAGES = 2
PROBE_TOLERANCE = 1e-3  # of the largest number, far above rounding in float32; of coarser numbers 16 of their steps
MASKS = 1e4  # times a number of the lower quarter: what is larger is no score, but says that there is none


@dataclass(frozen=True)
class Evaluation:
    """`.accuracy` (a fraction), `.correct` (bool, one an image, in the data set's order: that of its
    `test_images`, sorted by label, and not of the arrays it was made of), `.loss` (mean, in nats)."""

    correct: np.ndarray
    loss: float

    @property
    def accuracy(self) -> float:
        return float(self.correct.mean())


def to_unit_floats(images: torch.Tensor) -> torch.Tensor:
    """uint8 (N, H, W, C) → float32 (N, C, H, W) in [0, 1], in torch's channels_last layout."""
    return images.permute(0, 3, 1, 2).float().div_(255)  # the permuted view is channels_last already


def default_device() -> torch.device:
    """Where networks are trained and evaluated: on a GPU where there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@contextmanager
def exact_float32():
    """Neither TF32 nor autocast: what is published is float32."""
    with torch.autocast("cpu", enabled=False), torch.autocast("cuda", enabled=False), _without_tf32:
        yield


class _WithoutTF32:
    """Settings of the whole process: the first of its threads to enter takes note of them, the last to leave restores
    them. On a CPU, too, torch may be told to take bfloat16 for float32."""

    def __init__(self):
        self._lock, self._inside, self._before = threading.Lock(), 0, ()
        backends = torch.backends
        self._operations = [backends.cuda.matmul, *(operation for library in (backends.cudnn, backends.mkldnn)
                                                    for operation in (library.conv, library.rnn)), backends.mkldnn.matmul]

    def __enter__(self):
        with self._lock:
            if not self._inside:
                self._before = [operation.fp32_precision for operation in self._operations]
                for operation in self._operations:
                    operation.fp32_precision = "ieee"
            self._inside += 1

    def __exit__(self, *error):
        with self._lock:
            self._inside -= 1
            if not self._inside:
                for operation, precision in zip(self._operations, self._before):
                    operation.fp32_precision = precision


_without_tf32 = _WithoutTF32()


@contextmanager
def eval_mode(model: torch.nn.Module):
    """`model` in eval mode for the time; afterwards each of its modules is in the mode that it was in."""
    modes = [(module, module.training) for module in model.modules()]  # a frozen batch norm is in a mode of its own
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def split_arrays(dataset, split: str) -> tuple[np.ndarray, np.ndarray]:
    """Images and labels of "test", "validation" or "train".

    Raises `ValueError` for another split or an empty one, `TypeError` for anything but a data set.
    """
    if not hasattr(dataset, "test_images"):
        raise TypeError(f"dataset must be a tnlib.Dataset, as load_dataset gives one, got {reprlib.repr(dataset)}")
    if split not in ("test", "validation", "train"):
        raise ValueError(f"unknown split {split!r}: it takes 'test', 'validation' or 'train'")
    images, labels = getattr(dataset, f"{split}_images"), getattr(dataset, f"{split}_labels")
    if not len(labels):
        raise ValueError(f"{dataset!r} has no {split} images")
    return images, labels


def check_logits(logits, target) -> None:
    """Raise `ValueError` for logits that are not (N, classes) with a class for each label in `target` (N,)."""
    form = tuple(logits.shape) if isinstance(logits, torch.Tensor) else type(logits).__name__
    if isinstance(logits, torch.Tensor) and not logits.is_floating_point():
        raise ValueError(f"the model returned {logits.dtype}: its logits must be of a floating dtype")
    if not isinstance(form, tuple) or len(form) != 2 or form[0] != len(target):
        raise ValueError(f"the model returned {form} for a batch of {len(target)} images: it must be (N, classes)")
    if form[1] <= int(target.max()):
        raise ValueError(f"the labels go up to {int(target.max())}, and the model tells {form[1]} classes apart: labels count from 0, so that it "
                         f"needs at least {int(target.max()) + 1}")


def prepared(preprocess, batch: torch.Tensor, device: torch.device) -> torch.Tensor:
    """What `preprocess` makes of a batch of images, on `device`. Raises `ValueError` where it fails, or makes no tensor with
    one entry an image."""
    try:
        # The user's own function may write into its batch, which shares its memory with the data set.
        inputs = preprocess(batch if preprocess is to_unit_floats else batch.clone())
    except Exception as error:  # whatever the caller's own code raises
        raise ValueError(f"preprocess fails on a uint8 batch {tuple(batch.shape)}: {type(error).__name__}: {error}") from error
    if not isinstance(inputs, torch.Tensor) or inputs.shape[:1] != batch.shape[:1]:
        form = tuple(inputs.shape) if isinstance(inputs, torch.Tensor) else type(inputs).__name__
        raise ValueError(f"preprocess must make a tensor of a batch {tuple(batch.shape)}, one entry an image, got {form}")
    return inputs.to(device)


def logits_of(model, inputs: torch.Tensor, shape: tuple) -> torch.Tensor:
    """What `model` answers to `inputs`, made of images of `shape`. Raises `ValueError` when it does not take them."""
    try:
        return model(inputs)
    except Exception as error:  # whatever the model's own code raises
        own = next((parameter.dtype for parameter in model.parameters()), inputs.dtype)
        cast = f"; the model's weights are {own}: give a preprocess that makes such" if own != inputs.dtype else ""
        raise ValueError(f"{type(model).__name__} does not take images of shape {tuple(shape)} ({inputs.dtype} {tuple(inputs.shape[1:])} after "
                         f"preprocess): {error}{cast}") from error


def alike(found: torch.Tensor, expected: torch.Tensor) -> bool:
    """Whether numbers are the expected ones, up to rounding; two that are NaN, or the same infinity, are alike.

    Rounding is relative to the largest of them, but for such as mask a class and are larger than the others by far.
    """
    sizes = expected.abs().double().flatten()
    sizes = sizes[sizes.isfinite() & (sizes > 0)]
    largest = sizes[sizes <= MASKS * sizes.sort().values[len(sizes) // 4]].max().item() if len(sizes) else 0.0
    tolerance = max(PROBE_TOLERANCE, 16 * torch.finfo(expected.dtype).eps)
    return torch.allclose(found, expected, rtol=tolerance, atol=tolerance * largest, equal_nan=True)


def probed(model, pixels, labels, preprocess) -> torch.Tensor:
    """Some images as `model`, which is in eval mode, takes them. Raises `ValueError` when it does not, or not one by one, or where
    `preprocess` does not make them one by one: what is found would be about the batches that they come in."""
    parameter = next(model.parameters(), torch.empty(0))
    some = torch.from_numpy(pixels[np.linspace(0, len(pixels) - 1, PROBE_IMAGES, dtype=int)]).to(parameter.device)
    probe, first = (prepared(preprocess, images, parameter.device) for images in (some, some[:1]))
    if not probe.isfinite().all():
        raise ValueError("preprocess makes NaN or infinity of some images")
    if first.shape != probe[:1].shape or not alike(first.double(), probe[:1].double()):
        raise ValueError("preprocess makes something else of an image alone than in a batch (a mean over the batch, or a random crop?): the "
                         "accuracy would be that of the batches; take numbers that do not depend on it")
    before = probe.clone()
    logits = logits_of(model, probe, pixels.shape[1:])
    if not torch.equal(probe, before):
        raise ValueError(f"{type(model).__name__} writes into the images that it is given (an in-place normalisation?): write x = x - mean, not "
                         "x.sub_(mean)")
    alone = logits_of(model, probe[:1], pixels.shape[1:])
    for scores, images in ((logits, probe), (alone, probe[:1])):
        check_logits(scores, torch.full((len(images),), int(labels.max())))  # there must be a class for the highest
    if not alike(alone, logits[:1]):
        raise ValueError(f"{type(model).__name__} answers to an image alone otherwise than in a batch, also in eval mode (a batch "
                         "norm without running statistics, or F.dropout without training=self.training?): its accuracy would be that of the batches")
    return probe


def watch(model, layers, see, pixels, batch_size: int = 100) -> None:
    """Run `model` in eval mode on the images `pixels`, uint8 (N, H, W, C), and call `see(layer, input, output)` whenever one of
    `layers` has run. Raises `ValueError` for a model that does not take them."""
    hooks = [model.get_submodule(layer).register_forward_hook(lambda _, inputs, output, layer=layer: see(layer, inputs[0], output))
             for layer in layers]
    device = next(model.parameters()).device
    try:
        with CALLS.as_they_are(), eval_mode(model), torch.inference_mode(), exact_float32():
            for start in range(0, len(pixels), batch_size):
                batch = torch.from_numpy(pixels[start:start + batch_size]).to(device)
                logits_of(model, to_unit_floats(batch), pixels.shape[1:])
    finally:
        for hook in hooks:
            hook.remove()


def evaluate(model, dataset, preprocess=None, split: str = "test", batch_size: int = 100) -> Evaluation:
    """Evaluate `model` on the images of one split: "test" (the default), "validation" or "train".

    `preprocess` maps a uint8 (N, H, W, C) batch to the model's input; by default to (N, C, H, W) floats in [0, 1].
    The model is put into eval mode for the time. On a CPU larger batches are slower: they leave its caches, and memory that is
    given back to the system after each is paid for anew (measured with 1,000: 1.3 to 2.4 times as long).

    Raises `ValueError` for an unknown or empty split, a model that does not take the images, writes into them, answers to each by its
    batch (or a `preprocess` that does) or is on a device without float64, logits that are not (N, classes) or are NaN, a
    `preprocess` that makes no batch and a batch size below 1, and `TypeError` for anything but a module.
    """
    if not isinstance(model, torch.nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    check_count(batch_size, "batch_size")
    images, labels = split_arrays(dataset, split)
    preprocess = preprocess or to_unit_floats
    parameter = next(model.parameters(), torch.empty(0))
    check_device(parameter.device, "the model")
    correct, loss = [], 0.0
    with CALLS.as_they_are(), eval_mode(model), torch.inference_mode(), exact_float32():
        probed(model, images, labels, preprocess)
        for start in range(0, len(labels), batch_size):
            batch = torch.from_numpy(images[start:start + batch_size]).to(parameter.device)
            target = torch.from_numpy(labels[start:start + batch_size]).to(parameter.device)
            logits = logits_of(model, prepared(preprocess, batch, parameter.device), images.shape[1:])
            check_logits(logits, target)
            correct.append((logits.argmax(1) == target).cpu().numpy())
            loss += F.cross_entropy(logits.double(), target, reduction="sum").item()
    if np.isnan(loss):
        raise ValueError(f"{type(model).__name__} answers images of the {split} split with NaN or infinity: an accuracy of that says nothing; "
                         "are its weights finite?")
    return Evaluation(np.concatenate(correct), loss / len(labels))
