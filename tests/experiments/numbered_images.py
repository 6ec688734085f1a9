"""Images that carry their own number in their pixels, so that what became of each can be read off a result."""

import numpy as np


def numbered(n, start=0, side=4):
    """`n` images, all different: number k in the first two bytes of image k."""
    images = np.zeros((n, side, side, 3), dtype=np.uint8)
    images.reshape(n, -1)[:, 0], images.reshape(n, -1)[:, 1] = divmod(np.arange(start, start + n), 256)
    return images


def numbers(images):
    flat = images.reshape(len(images), -1).astype(int)
    return flat[:, 0] * 256 + flat[:, 1]


def shuffled_labels(n, classes=10, seed=0):
    return np.random.RandomState(seed).permutation(np.arange(n) % classes)


def in_another_order(images, labels, seed=1):
    """The same images in mixed order, such that a stable sort by label gives the order of the sorted ones."""
    mixed = np.random.RandomState(seed).permutation(labels)
    order = np.empty(len(labels), dtype=int)
    order[np.argsort(mixed, kind="stable")] = np.argsort(labels, kind="stable")
    return images[order], mixed
