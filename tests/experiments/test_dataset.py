"""A data set: one canonical order, fixed held-out images and subsets, the same for every copy."""

import numpy as np
import pytest
from hypothesis import given, strategies as st
from numbered_images import in_another_order, numbered, numbers, shuffled_labels

from tnlib import Dataset
from tnlib.experiments.dataset import balanced_indices, balanced_sample, part_of
from tnlib.experiments.networks import Network
from tnlib.experiments.training import as_trained_on


# ---- order, held-out images, subsets -----------------------------------------------------------------------------

def test_test_images_lie_in_a_stable_sort_by_label():
    labels = shuffled_labels(60)
    dataset = Dataset(numbered(60), labels)
    pairs = list(zip(dataset.test_labels, numbers(dataset.test_images)))
    assert pairs == sorted(zip(labels, range(60)))
    assert (dataset.test_images == numbered(60)[dataset.test_order]).all() and (dataset.test_labels == np.array(labels)[dataset.test_order]).all()


def test_held_out_images_are_a_tenth_balanced_fixed_and_disjoint():
    labels = shuffled_labels(400)
    dataset = Dataset(numbered(1), [0], numbered(400), labels)
    held_out, kept = numbers(dataset.validation_images), numbers(dataset.train_images)
    assert sorted([*held_out, *kept]) == list(range(400))
    assert (np.bincount(dataset.validation_labels) == 4).all()
    assert (labels[held_out] == dataset.validation_labels).all() and (labels[kept] == dataset.train_labels).all()
    assert (np.diff(kept) > 0).all()
    assert held_out[:6].tolist() == [2, 14, 27, 30, 32, 44], "published networks were chosen on these: never change it"


@given(labels=st.lists(st.integers(0, 4), min_size=1, max_size=60), seed=st.integers(0, 2**32 - 1), data=st.data())
def test_balanced_sample(labels, seed, data):
    labels = np.array(labels)
    without = data.draw(st.sets(st.integers(0, len(labels) - 1), max_size=len(labels) - 1))
    n = data.draw(st.integers(1, len(labels) - len(without)))
    chosen = balanced_sample(labels, n, seed, sorted(without))
    assert len(chosen) == n and (np.diff(chosen) > 0).all() and not without & set(chosen)
    assert np.array_equal(chosen, balanced_sample(labels, n, seed, sorted(without)))
    taken = np.bincount(labels[chosen], minlength=5)
    there = np.bincount(np.delete(labels, sorted(without)), minlength=5)
    assert all(taken[k] == there[k] or taken[k] >= taken.max() - 1 for k in range(5))


def test_every_image_and_every_class_has_the_same_chance():
    """15 of 40 images in 10 classes: each image in 3/8 of 800 subsets, within five standard errors."""
    dataset = Dataset(numbered(40), shuffled_labels(40))
    chosen = np.stack([np.bincount(dataset.subset(15, seed), minlength=40) for seed in range(800)])
    assert abs(chosen.sum(0) - 300).max() < 5 * np.sqrt(800 * 3 / 8 * 5 / 8)
    assert not np.array_equal(*chosen[:2])


@pytest.mark.parametrize("n", [0, -1, 41, 2.0, "all", True, None], ids=repr)
def test_subsets_of_no_possible_size_are_refused(n):
    with pytest.raises(ValueError, match=f"takes 1 to 40 images, got {n!r}"):
        Dataset(numbered(40), shuffled_labels(40)).subset(n)


# ---- two copies of one data set ----------------------------------------------------------------------------------

def two_copies():
    """A copy sorted by label, and the official one: test images in mixed order, some pixels different.

    Training images 2 and 14 would be held out if they were the same in both.
    """
    labels, test_labels = shuffled_labels(400), np.sort(shuffled_labels(200, seed=2))
    train, test = numbered(400), numbered(200, start=1000)
    differing = {"differing_train": [2, 14, 78, 399], "differing_test": [0, 50, 199]}
    ours = Dataset(test, test_labels, train, labels, **differing)
    for images, indices in ((train, differing["differing_train"]), (test, differing["differing_test"])):
        images[indices, -1, -1] += 9
    return ours, Dataset(*in_another_order(test, test_labels), train, labels, **differing), differing


def test_samples_of_training_images_hold_none_that_differs():
    ours, official, _ = two_copies()
    differs = (ours.train_images != official.train_images).any((1, 2, 3))
    assert differs.sum() == 4 and np.array_equal(ours.train_differs, differs)
    sample = balanced_indices(ours, "train", 350)
    assert not differs[sample].any() and np.array_equal(sample, balanced_indices(official, "train", 350))
    few = as_trained_on(ours, Network(None, images=300))
    assert np.array_equal(few.train_differs, (few.train_images != as_trained_on(official, Network(None, images=300)).train_images).any((1, 2, 3)))
    assert few.train_differs.any()


def test_copies_share_what_results_are_compared_by():
    ours, official, differing = two_copies()
    assert ours.fingerprint != official.fingerprint
    assert ours.core_fingerprint == official.core_fingerprint
    assert np.array_equal(ours.validation_images, official.validation_images)
    assert np.array_equal(ours.test_labels, official.test_labels)
    differs = (ours.test_images != official.test_images).any((1, 2, 3))
    assert np.flatnonzero(differs).tolist() == differing["differing_test"]
    assert ours.num_differing_test == official.num_differing_test == 3
    assert ours.train_images.shape == official.train_images.shape
    assert (ours.train_images != official.train_images).any((1, 2, 3)).sum() == 4, "none of the four is held out"


def test_no_subset_has_an_image_that_differs():
    ours, official, differing = two_copies()
    for n, seed in ((10, 0), (100, 1), (197, 2)):
        assert np.array_equal(ours.subset(n, seed), official.subset(n, seed))
        assert not set(ours.subset(n, seed)) & set(differing["differing_test"])
    with pytest.raises(ValueError, match="takes 1 to 197 images, got 198"):
        ours.subset(198)


def test_fingerprints_see_every_array():
    images, labels = numbered(40), shuffled_labels(40)
    arrays = dict(test_images=images, test_labels=labels, train_images=images, train_labels=labels)
    seen = {Dataset(**arrays).fingerprint, Dataset(images, labels).fingerprint}
    assert Dataset(**arrays).core_fingerprint in seen
    for name in arrays:
        changed = arrays[name].copy()
        changed[7] = changed[7] + 1 if name.endswith("images") else (changed[7] + 1) % 10
        seen.add(Dataset(**arrays | {name: changed}).fingerprint)
    assert len(seen) == 6
    assert Dataset(images.reshape(40, 2, 8, 3), labels).fingerprint != Dataset(images, labels).fingerprint


@pytest.mark.parametrize("differing, message", [
    ({"differing_train": [40]}, "differing_train must be indices of the 40 train images, got 40 to 40"),
    ({"differing_test": [-1, 3]}, "differing_test must be indices of the 20 test images, got -1 to 3")], ids=str)
def test_images_that_differ_must_be_there(differing, message):
    with pytest.raises(ValueError, match=message):
        Dataset(numbered(20), shuffled_labels(20), numbered(40), shuffled_labels(40), **differing)


def test_the_fingerprint_is_of_the_arrays_as_they_were_given():
    images, labels = numbered(40), shuffled_labels(40)
    before = Dataset(numbered(20), shuffled_labels(20), images.copy(), labels.copy()).fingerprint
    dataset = Dataset(numbered(20), shuffled_labels(20), images, labels)
    images[:] = 0
    assert dataset.fingerprint == before
    assert Dataset(numbered(20), shuffled_labels(20), numbered(40)[::-1], labels[::-1]).fingerprint != before  # in this order


# ---- arrays in memory --------------------------------------------------------------------------------------------

def test_only_test_images_are_required():
    dataset = Dataset(numbered(20), shuffled_labels(20).astype(np.int8), name="mine")
    assert dataset.test_images.dtype == np.uint8 and dataset.test_labels.dtype == np.int64
    assert len(dataset.train_labels) == len(dataset.validation_labels) == 0
    assert dataset.train_images.shape == dataset.validation_images.shape == (0, 4, 4, 3)
    assert dataset.classes == [str(k) for k in range(10)]
    assert repr(dataset) == "Dataset('mine': 0 train, 0 held out, 20 test images, 10 classes)"


I, L = numbered(20), shuffled_labels(20)
BAD = {
    "ragged": (dict(test_images=[[1], [2, 3]], test_labels=[0, 1]), TypeError, "test_images and test_labels must be arrays: "),
    "float-images": (dict(test_images=I / 255, test_labels=L), TypeError, r"test_images must be uint8.*got float64"),
    "channels-first": (dict(test_images=I.transpose(0, 3, 1, 2), test_labels=L), TypeError, r"uint8 \(20, 3, 4, 4\)"),
    "one-image": (dict(test_images=I[0], test_labels=L[0]), TypeError, r"shape \(N, H, W, C\).*got uint8 \(4, 4, 3\)"),
    "too-few-labels": (dict(test_images=I, test_labels=L[:19]), TypeError, r"shape \(20,\).*got int64 \(19,\)"),
    "one-hot": (dict(test_images=I, test_labels=np.eye(10, dtype=int)[L]), TypeError, r"got int64 \(20, 10\)"),
    "float-labels": (dict(test_images=I, test_labels=L / 1), TypeError, r"must be integers.*got float64"),
    "negative": (dict(test_images=I, test_labels=L - 1), ValueError, "test_labels must not be negative, got -1"),
    "ids": (dict(test_images=I, test_labels=L + 2**40), ValueError, r"go up to 1099511627785, and labels number the classes from 0: .*np.unique"),
    "beyond-int64": (dict(test_images=I, test_labels=L.astype(np.uint64) + np.uint64(2**63)), ValueError, "go up to 9223372036854775817"),
    "mask": (dict(test_images=I, test_labels=L, differing_test=L == 3), TypeError, r"differing_test must be indices, whole numbers in one row, got bool \(20,\)"),
    "no-names": (dict(test_images=I, test_labels=L, classes=5), TypeError, "classes must hold a name for each class, in the order of their labels, got 5"),
    "one-name": (dict(test_images=I, test_labels=L, classes="cat"), TypeError, "classes must hold .*, got 'cat'"),
    "names-in-no-order": (dict(test_images=I, test_labels=L, classes=set("abcdefghij")), TypeError, "in the order of their labels, got {"),
    "no-list-of-names": (dict(test_images=I, test_labels=L, classes=np.array("cat")), TypeError, "classes must hold a name for each class"),
    "no-height": (dict(test_images=I[:, :0], test_labels=L), TypeError, r"shape \(N, H, W, C\).*got uint8 \(20, 0, 4, 3\)"),
    "no-name": (dict(test_images=I, test_labels=L, classes=tuple("abcdefghi")), ValueError, "label 9 has no name: .* holds 9"),
    "no-name-in-train": (dict(test_images=I, test_labels=L, train_images=I, train_labels=L + 1, classes=range(10)),
                         ValueError, "label 10 has no name"),
    "empty": (dict(test_images=I[:0], test_labels=L[:0]), ValueError, "test_images is empty"),
    "no-train-labels": (dict(test_images=I, test_labels=L, train_images=I), ValueError, "one of them is missing"),
    "train-float": (dict(test_images=I, test_labels=L, train_images=I / 255, train_labels=L), TypeError, "train_im"),
    "two-sizes": (dict(test_images=I, test_labels=L, train_images=numbered(20, side=8), train_labels=L),
                  ValueError, r"\(8, 8, 3\), test images \(4, 4, 3\)"),
}


@pytest.mark.parametrize("arrays, error, message", BAD.values(), ids=BAD)
def test_bad_arrays_are_named(arrays, error, message):
    with pytest.raises(error, match=message):
        Dataset(**arrays)


def test_a_part_has_the_images_that_are_asked_for_and_leaves_the_whole():
    images = np.random.default_rng(0).integers(0, 256, (60, 8, 8, 3), dtype=np.uint8)
    whole = Dataset(images[:20], np.arange(20) % 2, images[20:], np.arange(40) % 2, differing_train=[3, 5])
    part = part_of(whole, [4, 0, 1], [7])
    assert np.array_equal(part.train_images, whole.train_images[[4, 0, 1]]) and np.array_equal(part.train_labels, whole.train_labels[[4, 0, 1]])
    assert np.array_equal(part.train_differs, whole.train_differs[[4, 0, 1]]) and whole.train_differs.any()
    assert np.array_equal(part.test_images, whole.test_images[[7]]) and len(part.test_labels) == 1 and len(whole.test_labels) == 20
    assert part_of(whole, test=[0]).train_images is whole.train_images and part_of(whole).test_images is whole.test_images
