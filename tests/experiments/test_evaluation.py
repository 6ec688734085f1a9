"""Accuracy and loss against torch one image after another; nothing about the model or the batches leaks into them."""

import threading
from concurrent.futures import ThreadPoolExecutor, wait

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from tnlib import Dataset, evaluate, sweep
from tnlib.experiments.calls import CALLS
from tnlib.experiments.evaluation import exact_float32, to_unit_floats
from tnlib.experiments.networks import Vanilla
from tnlib.experiments.torchvision_compat import import_torchvision


def dataset(n=50, classes=5, side=16, train=60):
    random = np.random.RandomState(0)
    arrays = {}
    for split, count in (("test", n), ("train", train)):
        arrays[f"{split}_images"] = random.randint(0, 256, (count, side, side, 3)).astype(np.uint8)
        arrays[f"{split}_labels"] = random.permutation(np.arange(count) % classes)
    return Dataset(**arrays)


def network(classes=5, side=16):
    torch.manual_seed(0)
    return Vanilla(classes, (4, 4, 4, 4), hidden=8, image_size=side)


class Answers(nn.Module):
    """Class k for images whose first byte is k, from the batch as `preprocess` gives it."""

    def forward(self, batch):
        return F.one_hot(batch[:, 0, 0, 0].long(), 5).float()


@pytest.mark.parametrize("split", ["test", "validation", "train"])
def test_against_one_image_after_another(split):
    data, model = dataset(), network().eval()
    to_tensor = import_torchvision().transforms.functional.to_tensor
    images, labels = getattr(data, f"{split}_images"), getattr(data, f"{split}_labels")
    with torch.no_grad():
        logits = torch.cat([model(to_tensor(image)[None]) for image in images])
    found = evaluate(model, data, split=split)
    assert np.array_equal(found.correct, logits.argmax(1).numpy() == labels)
    assert found.correct.dtype == bool and 0 < found.correct.sum() < len(labels)
    assert found.accuracy == found.correct.sum() / len(labels) and isinstance(found.accuracy, float)
    assert found.loss == pytest.approx(nn.CrossEntropyLoss()(logits, torch.from_numpy(labels)).item(), rel=1e-5)


@pytest.mark.parametrize("batch_size", [1, 7, 50, 1000])
def test_the_batch_size_does_not_matter(batch_size):
    data, model = dataset(), network()
    expected, found = evaluate(model, data, batch_size=25), evaluate(model, data, batch_size=batch_size)
    assert np.array_equal(found.correct, expected.correct) and found.loss == pytest.approx(expected.loss, rel=1e-6)


def test_correct_is_in_the_data_sets_order_and_preprocess_is_applied():
    data = dataset()
    data.test_images[:, 0, 0, 0] = data.test_labels
    wrong = [0, 13, 31, 49]
    data.test_images[wrong, 0, 0, 0] = (data.test_labels[wrong] + 1) % 5
    seen = []

    def preprocess(batch):
        seen.append((batch.dtype, batch.shape[1:], len(batch)))
        return batch.permute(0, 3, 1, 2)

    found = evaluate(Answers(), data, preprocess, batch_size=20)
    assert np.flatnonzero(~found.correct).tolist() == wrong and found.accuracy == 46 / 50
    assert seen == [(torch.uint8, (16, 16, 3), n) for n in (2, 1, 20, 20, 10)], "two images together and one alone, then all"


def test_to_unit_floats_is_torchvisions_and_channels_last():
    images = dataset().test_images
    ours = to_unit_floats(torch.from_numpy(images))
    theirs = torch.stack([import_torchvision().transforms.functional.to_tensor(image) for image in images])
    assert torch.equal(ours, theirs) and ours.is_contiguous(memory_format=torch.channels_last)


# ---- what stays as it is -----------------------------------------------------------------------------------------

class Noisy(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.dropout, self.linear = nn.BatchNorm2d(3), nn.Dropout(0.5), nn.Linear(3 * 16 * 16, 5)

    def forward(self, image):
        return self.linear(self.dropout(self.norm(image)).flatten(1))


@pytest.mark.parametrize("training", [True, False])
def test_evaluation_is_in_eval_mode_and_leaves_every_layers_mode(training):
    data, model = dataset(), Noisy().train(training)
    model.norm.train(not training)
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    assert evaluate(model, data).loss == evaluate(model, data).loss
    assert (model.training, model.norm.training, model.dropout.training) == (training, not training, training)
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())


def test_modes_are_restored_after_an_error():
    model = Noisy().train()
    with pytest.raises(ValueError):
        evaluate(model, dataset(side=8))
    assert model.training and model.dropout.training


def test_nothing_is_kept_for_gradients():
    model, outputs = network(), []
    model.register_forward_hook(lambda module, inputs, output: outputs.append(output))
    evaluate(model, dataset())
    assert not any(output.requires_grad for output in outputs) and len(outputs) == 3


@pytest.fixture
def tf32():
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    yield
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


def test_autocast_and_tf32_do_not_reach_it(tf32):
    data, model = dataset(), network()
    expected = evaluate(model, data).loss
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert evaluate(model, data).loss == expected
        with exact_float32():
            assert not torch.is_autocast_enabled("cpu")
            assert {torch.backends.cuda.matmul.fp32_precision, torch.backends.cudnn.conv.fp32_precision} == {"ieee"}
        assert torch.is_autocast_enabled("cpu")
    assert torch.backends.cuda.matmul.allow_tf32 and torch.backends.cudnn.allow_tf32


@pytest.mark.parametrize("asked", ["high", "medium"])
def test_nor_does_what_is_asked_of_matrix_products(asked):
    """With "medium" also a CPU may take bfloat16 for float32. Afterwards torch's own question is answered as before."""
    torch.set_float32_matmul_precision(asked)
    try:
        before = torch.backends.mkldnn.matmul.fp32_precision
        evaluate(network(), dataset())
        assert torch.get_float32_matmul_precision() == asked and torch.backends.mkldnn.matmul.fp32_precision == before
        with exact_float32():
            assert {one.fp32_precision for one in (torch.backends.mkldnn.matmul, torch.backends.mkldnn.conv)} == {"ieee"}
    finally:
        torch.set_float32_matmul_precision("highest")


def test_it_works_with_the_newer_settings_too():
    operation = torch.backends.cuda.matmul
    before, operation.fp32_precision = operation.fp32_precision, "tf32"
    try:
        evaluate(network(), dataset())
        assert operation.fp32_precision == "tf32"
    finally:
        operation.fp32_precision = before


# ---- bad input ---------------------------------------------------------------------------------------------------

def broken():
    model = network()
    model.linear2.bias.data[0] = torch.nan
    return model


class Integers(nn.Module):
    def forward(self, image):
        return image.flatten(1)[:, :5].long()


class WritesIntoImages(nn.Module):
    def forward(self, image):
        return image.sub_(0.5).div_(0.25).flatten(1)[:, :5]


class AlwaysDropping(nn.Module):
    def forward(self, x):
        return nn.functional.dropout(x, 0.5)


class Masked(nn.Module):
    """One class gets a score that no other has: against it any difference would be small."""

    def forward(self, scores):
        return scores + torch.tensor([0, 0, 0, 0, -1e9])


def by_its_batch():
    return nn.Sequential(nn.BatchNorm2d(3, track_running_stats=False), network())


BAD = {
    "split": (lambda: evaluate(network(), dataset(), split="val"), "unknown split 'val': it takes 'test'"),
    "empty-split": (lambda: evaluate(network(), dataset(train=9), split="validation"), "has no validation images"),
    "too-few-classes": (lambda: evaluate(network(4), dataset()), "the labels go up to 4, and the model tells 4 classes apart.* at least 5"),
    "feature-maps": (lambda: evaluate(nn.Conv2d(3, 5, 1), dataset()), r"returned \(2, 5, 16, 16\) for a batch of 2"),
    "batch-size": (lambda: evaluate(network(), dataset(), batch_size=0), "batch_size must be a whole number of at least 1, got 0"),
    "device": (lambda: evaluate(network().to("meta"), dataset()), "the model must be on the CPU or on CUDA, .* got the device meta"),
    "no-module": (lambda: evaluate("vanilla", dataset()), "model must be a torch.nn.Module, got str"),
    "other-channels": (lambda: evaluate(nn.Conv2d(1, 5, 1), dataset()),
                       r"Conv2d does not take images of shape \(16, 16, 3\) \(torch.float32 \(3, 16, 16\) after preprocess\): Given groups=1"),
    "other-dtype": (lambda: evaluate(network().bfloat16(), dataset()), "torch.float32 .* after preprocess.*weights are torch.bfloat16: give a preprocess that makes such"),
    "dropout": (lambda: evaluate(nn.Sequential(nn.Flatten(), AlwaysDropping(), nn.Linear(768, 10)), dataset()), "or F.dropout without training=self.training"),
    "other-length": (lambda: evaluate(nn.Flatten(0, 2), dataset()), r"it must be \(N, classes\)"),
    "nan": (lambda: evaluate(broken(), dataset()), "Vanilla answers images of the test split with NaN or infinity"),
    "preprocess": (lambda: evaluate(network(), dataset(), lambda batch: batch.image),
                   r"preprocess fails on a uint8 batch \(2, 16, 16, 3\): \w+Error: "),
    "preprocess-one": (lambda: evaluate(network(), dataset(), lambda batch: to_unit_floats(batch)[0]),
                       r"a tensor of a batch \(2, 16, 16, 3\), one entry an image, got \(3, 16, 16\)"),
    "preprocess-number": (lambda: evaluate(network(), dataset(), lambda batch: torch.tensor(0.0)), r"one entry an image, got \(\)"),
    "batch-statistics": (lambda: evaluate(by_its_batch(), dataset()), "Sequential answers to an image alone otherwise than in a batch"),
    "in-place": (lambda: evaluate(WritesIntoImages(), dataset()), r"WritesIntoImages writes into the images that it is given .*write x = x - mean, not x.sub_"),
    "in-place-swept": (lambda: next(sweep(nn.Sequential(nn.ReLU(inplace=True), network()), dataset(), [({}, {})], preprocess=lambda batch: to_unit_floats(batch) - 0.5)),
                       "Sequential writes into the images that it is given"),
    "integers": (lambda: evaluate(Integers(), dataset()), "the model returned torch.int64: its logits must be of a floating dtype"),
    "a-masked-class": (lambda: evaluate(nn.Sequential(by_its_batch(), Masked()), dataset()), "answers to an image alone otherwise than in a batch"),
    "random-crop": (lambda: evaluate(network(), dataset(), lambda batch: torch.rand(len(batch), 3, 16, 16)),
                    "preprocess makes something else of an image alone than in a batch"),
    "preprocess-nan": (lambda: evaluate(network(), dataset(), lambda batch: to_unit_floats(batch) / 0), "preprocess makes NaN or infinity"),
    "preprocess-list": (lambda: evaluate(network(), dataset(), list), "one entry an image, got list"),
}


@pytest.mark.parametrize("call, message", BAD.values(), ids=BAD)
def test_bad_input_is_named(call, message):
    with pytest.raises((ValueError, TypeError), match=message):
        call()


def test_it_waits_while_another_thread_traces():
    """Or torch would take the calls of its modules for those that are traced."""
    expected = evaluate(network(), dataset())
    with ThreadPoolExecutor(1) as pool:
        with CALLS.replaced():
            found = pool.submit(evaluate, network(), dataset())
            assert not wait([found], timeout=0.5).done
        assert (found.result(60).correct == expected.correct).all()


def test_threads_that_overlap_leave_the_settings_as_they_were(tf32):
    entered, left = threading.Event(), threading.Event()

    def other():
        with exact_float32():
            entered.set()
            left.wait()
            return torch.backends.cuda.matmul.fp32_precision

    with ThreadPoolExecutor(1) as pool:
        with exact_float32():
            inside = pool.submit(other)
            entered.wait()
        left.set()
        assert inside.result() == "ieee"
    assert torch.backends.cuda.matmul.allow_tf32 and torch.backends.cudnn.allow_tf32
