"""A data set: images and labels in one canonical order, checked, split and fingerprinted."""

import copy
import hashlib
from collections.abc import Iterable, Mapping, Set
from functools import cached_property

import numpy as np

from ..tensors.checks import check_seed

NAMES = ("cifar10", "cifar100", "shapes")  # all others are called by the path of an .npz file
SPLIT_SEED = 20240321  # fixes which training images are held out; never change it
MOST_CLASSES = 100_000  # more of them are numbers of something else


class Dataset:
    """Images and labels: `train_*`, `validation_*`, `test_*` (uint8 NHWC, int64), `classes`, `name`.

    Test images are put into one canonical order, a stable sort by label, in which all indices and answers of test images are:
    `test_images` are those given at `test_order`. Of the training images, 5,000 of CIFAR's
    50,000 and a tenth elsewhere are held out as `validation_*`, class-balanced, by a fixed seed; choices are made on
    these. `differing_train` and `differing_test` are indices (in the order given; in the canonical order) of images
    that differ between copies of the data set: they are in no held-out image, no `subset`, and not in the core
    fingerprint.

    Raises `ValueError` or `TypeError` naming the array, what it is and what it must be.
    """

    def __init__(self, test_images, test_labels, train_images=None, train_labels=None, classes=None,
                 name="custom", differing_train=(), differing_test=()):
        test_images, test_labels = _check(test_images, test_labels, "test")
        if (train_images is None) != (train_labels is None):
            raise ValueError("train_images and train_labels go together: one of them is missing")
        if train_images is None:
            train_images, train_labels = test_images[:0], test_labels[:0]
        train_images, train_labels = _check(train_images, train_labels, "train")
        if len(train_labels) and train_images.shape[1:] != test_images.shape[1:]:
            raise ValueError(f"train images have the form {train_images.shape[1:]}, "
                             f"test images {test_images.shape[1:]}: they must agree")
        highest = int(max(train_labels.max(initial=0), test_labels.max()))
        self.name = name
        if classes is not None and (isinstance(classes, str) or not isinstance(classes, Iterable)
                                    or isinstance(classes, (Set, Mapping)) or getattr(classes, "ndim", 1) != 1):
            raise TypeError(f"classes must hold a name for each class, in the order of their labels, got {classes!r}")
        self.classes = [str(name) for name in classes] if classes is not None else [str(k) for k in range(highest + 1)]
        if highest >= len(self.classes):
            raise ValueError(f"label {highest} has no name: classes holds {len(self.classes)}")

        order = np.argsort(test_labels, kind="stable")
        self.test_order, self.test_images, self.test_labels = order, test_images[order], test_labels[order]
        self._differing_test = _indices(differing_test, "differing_test")
        self._all_train = train_images, train_labels
        self._differing_train = _indices(differing_train, "differing_train")
        for split, indices, n in (("train", self._differing_train, len(train_labels)),
                                  ("test", self._differing_test, len(test_labels))):
            if len(indices) and not 0 <= indices.min() <= indices.max() < n:
                raise ValueError(f"differing_{split} must be indices of the {n} {split} images, "
                                 f"got {indices.min()} to {indices.max()}")

        held_out = balanced_sample(train_labels, len(train_labels) // 10, SPLIT_SEED, self._differing_train)
        kept = np.setdiff1d(np.arange(len(train_labels)), held_out)
        self.train_images, self.train_labels = train_images[kept], train_labels[kept]
        self.train_differs = np.isin(kept, self._differing_train)  # which of these are others in another copy
        self.validation_images, self.validation_labels = train_images[held_out], train_labels[held_out]

    def __repr__(self):
        return (f"Dataset({self.name!r}: {len(self.train_labels):,} train, {len(self.validation_labels):,} held out, "
                f"{len(self.test_labels):,} test images, {len(self.classes)} classes)")

    @cached_property
    def fingerprint(self) -> str:
        """sha256 over all arrays: training images as given, test images in the canonical order."""
        return self._digest((), ())

    @cached_property
    def core_fingerprint(self) -> str:
        """The same without the images in which known copies differ; cards are compared by this one."""
        return self._digest(self._differing_train, self._differing_test)

    @property
    def num_differing_test(self) -> int:
        """How many test images differ between known copies."""
        return len(self._differing_test)

    def subset(self, n: int, seed: int = 0) -> np.ndarray:
        """Indices of `n` class-balanced test images, sorted, drawn by `seed`; the same for every copy of the data set.

        Raises `ValueError` when `n` is not between 1 and the number of test images that all copies share, and for a seed that is
        no whole number from 0 to 2³¹ − 1.
        """
        return balanced_sample(self.test_labels, n, check_seed(seed), self._differing_test, at_least=1)

    def _digest(self, without_train, without_test) -> str:
        digest = hashlib.sha256()
        for (images, labels), without in ((self._all_train, without_train),
                                          ((self.test_images, self.test_labels), without_test)):
            for array in (images, labels):
                core = np.ascontiguousarray(np.delete(array, without, axis=0) if len(without) else array)
                digest.update(f"{core.dtype.str} {core.shape}".encode())
                digest.update(core.data if core.size else b"")
        return digest.hexdigest()


def as_argument(dataset) -> str:
    """A data set as a command takes it: one of `NAMES`, or the .npz file of which `dataset` is the path or the name."""
    text = str(dataset)
    return text if text in NAMES or text.endswith(".npz") else f"{text}.npz"


def balanced_indices(dataset: Dataset, split: str, n: int) -> np.ndarray:
    """Indices of `n` class-balanced images of a split, sorted, the same for every copy of the data set; of the test images
    as `Dataset.subset` draws them."""
    if split == "test":
        return dataset.subset(n)
    differing = np.flatnonzero(dataset.train_differs) if split == "train" else ()
    return balanced_sample(getattr(dataset, f"{split}_labels"), n, 0, differing)


def part_of(dataset: Dataset, train=None, test=None) -> Dataset:
    """A copy with only these training and these test images (indices; None: all). Cards have the fingerprint of the
    whole: that of a part is not for them."""
    few = copy.copy(dataset)
    if train is not None:
        few.train_images, few.train_labels, few.train_differs = dataset.train_images[train], dataset.train_labels[train], dataset.train_differs[train]
    if test is not None:
        few.test_images, few.test_labels = dataset.test_images[test], dataset.test_labels[test]
    return few


def balanced_sample(labels, n: int, seed: int, without=(), at_least=0) -> np.ndarray:
    """Sorted indices of `n` entries of `labels`, each class equally often (to within one), none of `without`.

    The draw uses numpy's RandomState, whose stream numpy keeps fixed for good.
    """
    free = np.setdiff1d(np.arange(len(labels)), np.asarray(without, dtype=np.int64))
    if not isinstance(n, (int, np.integer)) or isinstance(n, bool) or not at_least <= n <= len(free):
        raise ValueError(f"a class-balanced sample takes {at_least} to {len(free)} images, got {n!r}")
    random = np.random.RandomState(seed)
    queues = [random.permutation(free[labels[free] == label]) for label in np.unique(labels[free])]
    # Round after round, each class gives its next image; the last round is drawn among the classes.
    chosen, turn = [], 0
    while len(chosen) < n:
        row = [queue[turn] for queue in queues if turn < len(queue)]
        missing = n - len(chosen)
        chosen += row if len(row) <= missing else list(random.permutation(row)[:missing])
        turn += 1
    return np.sort(np.asarray(chosen, dtype=np.int64))


def _check(images, labels, split):
    try:
        images, labels = np.asarray(images), np.asarray(labels)
    except ValueError as error:  # rows of different lengths
        raise TypeError(f"{split}_images and {split}_labels must be arrays: {error}") from None
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] not in (1, 3) or 0 in images.shape[1:3]:
        raise TypeError(f"{split}_images must be uint8 of shape (N, H, W, C) with 1 or 3 channels, "
                        f"got {images.dtype} {images.shape}")
    if not np.issubdtype(labels.dtype, np.integer) or labels.shape != images.shape[:1]:
        raise TypeError(f"{split}_labels must be integers of shape ({len(images)},), one for each of {split}_images, "
                        f"got {labels.dtype} {labels.shape}")
    if split == "test" and not len(labels):
        raise ValueError("test_images is empty: at least one test image is needed")
    if len(labels) and labels.min() < 0:
        raise ValueError(f"{split}_labels must not be negative, got {labels.min()}")
    if len(labels) and labels.max() >= MOST_CLASSES:
        raise ValueError(f"{split}_labels go up to {labels.max()}, and labels number the classes from 0: of other numbers make such with "
                         "np.unique(labels, return_inverse=True)[1]")
    # A copy, for the caller may write into theirs; its rows in order, where torchvision's arrays are views of (N, C, H, W).
    return images.copy(order="C"), labels.astype(np.int64)


def _indices(given, name):
    found = np.asarray(given)
    if found.ndim != 1 or found.size and not np.issubdtype(found.dtype, np.integer):
        raise TypeError(f"{name} must be indices, whole numbers in one row, got {found.dtype} {found.shape}")
    return found.astype(np.int64)
