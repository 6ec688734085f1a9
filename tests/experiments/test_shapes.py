"""The drawn data set: the same everywhere, balanced, out of a linear classifier's reach and within a network's."""

import numpy as np
import pytest
from sklearn.linear_model import RidgeClassifier

from tnlib import evaluate, load_dataset, load_model
from tnlib.experiments.files import PUBLISHED
from tnlib.experiments.shapes import CLASSES, draw_shapes
from tnlib.experiments.weights import read_card


@pytest.fixture(scope="module")
def shapes():
    return load_dataset("shapes")


def test_drawn_by_its_seed():
    drawn = draw_shapes(train=150, test=30, seed=3)
    assert drawn["train_images"].shape == (150, 32, 32, 3) and drawn["test_images"].shape == (30, 32, 32, 3)
    assert all(array.dtype == np.uint8 for key, array in drawn.items() if key.endswith("images"))
    again, other = draw_shapes(150, 30, 3), draw_shapes(150, 30, 4)
    for key in drawn.keys() - {"classes"}:
        assert np.array_equal(drawn[key], again[key]) and not np.array_equal(drawn[key], other[key])


def test_the_images_are_those_the_published_network_was_trained_on(shapes):
    """Drawn on another machine: the fingerprint in the card."""
    assert shapes.fingerprint == read_card(PUBLISHED / "weights" / "vanilla-shapes-s0.safetensors")["fingerprint"]


def test_sizes_and_balance(shapes):
    assert shapes.classes == list(CLASSES) and len(set(CLASSES)) == 10
    for split, n in (("train", 7200), ("validation", 800), ("test", 2000)):
        labels = getattr(shapes, f"{split}_labels")
        assert len(labels) == n and (np.bincount(labels, minlength=10) == n / 10).all()
    assert (np.diff(shapes.train_labels) != 0).mean() == pytest.approx(0.9, abs=0.02), "training images lie mixed"


def test_no_image_is_there_twice(shapes):
    images = np.concatenate([shapes.train_images, shapes.validation_images, shapes.test_images])
    assert len({image.tobytes() for image in images}) == 10_000


def test_a_linear_classifier_on_the_pixels_fails(shapes):
    flat = lambda images: images.reshape(len(images), -1) / np.float32(255)
    linear = RidgeClassifier(alpha=1000.0).fit(flat(shapes.train_images), shapes.train_labels)
    assert 0.15 < linear.score(flat(shapes.test_images), shapes.test_labels) < 0.60


def test_the_published_network_succeeds(shapes):
    assert evaluate(load_model("vanilla", "shapes"), shapes).accuracy > 0.90
