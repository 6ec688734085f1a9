"""`"shapes"`: ten classes of coloured shapes, drawn from a seed, for trying things where no data set is at hand.

A class is a form alone, brighter than its background. Its place, size, angle, colours, a background gradient, a
distracting bar and noise are drawn at random, so that no single pixel tells much. Measured, trained on the 7,200
images that are not held out, on the 2,000 test images: a linear classifier (logistic regression on the pixels, the
best of three regularisations) 30 %; `vanilla`, six epochs, 99 % (seeds 0 and 1), in under a minute on two cores.
"""

import numpy as np

SIDE = 32
CLASSES = ("disc", "ring", "square", "frame", "triangle", "plus", "bar", "star", "crescent", "pair")


def draw_shapes(train: int = 8000, test: int = 2000, seed: int = 0) -> dict:
    """Arrays of the data set: `train` and `test` images, class-balanced, in a random order, uint8 (N, 32, 32, 3)."""
    random = np.random.RandomState(seed)
    labels = {split: random.permutation(np.arange(n) % len(CLASSES)) for split, n in (("train", train), ("test", test))}
    arrays = {"classes": list(CLASSES)}
    for split, classes in labels.items():
        parts = [_draw(part, random) for part in np.array_split(classes, len(classes) // 100 + 1)]  # 100: in cache
        arrays[f"{split}_images"], arrays[f"{split}_labels"] = np.concatenate(parts), classes.astype(np.int64)
    return arrays


def _draw(labels, random) -> np.ndarray:
    # In float64, whose last bits (processors differ in a cosine's) are too small to move a pixel: one fingerprint.
    n = len(labels)
    uniform = lambda low, high, *shape: random.uniform(low, high, (n, *shape))
    rows, columns = np.mgrid[:SIDE, :SIDE].astype(np.float64)
    angle = uniform(-np.pi, np.pi, 1, 1)
    size = uniform(6.5, 11.0, 1, 1)
    y0, x0 = (rows - uniform(11, 21, 1, 1)) / size, (columns - uniform(11, 21, 1, 1)) / size
    x, y = np.cos(angle) * x0 + np.sin(angle) * y0, np.cos(angle) * y0 - np.sin(angle) * x0  # [N, H, W], shape's frame

    distance = np.empty((n, SIDE, SIDE))  # below 0: inside; in units of the shape's size
    for label, form in enumerate(_FORMS):
        distance[labels == label] = form(x[labels == label], y[labels == label])
    inside = np.clip(0.5 - distance * size, 0, 1)[..., None]  # one pixel of antialiasing

    tilt = uniform(-np.pi, np.pi, 1, 1)
    stroke = np.abs(np.cos(tilt) * (columns - 16) + np.sin(tilt) * (rows - 16) - uniform(-14, 14, 1, 1))
    stroke = np.clip(1.6 - stroke, 0, 1)[..., None]  # a distracting bar across the image, behind the shape

    gradient = uniform(-0.25, 0.25, 1, 1, 3) * (columns[..., None] - 16) / 16 + \
        uniform(-0.25, 0.25, 1, 1, 3) * (rows[..., None] - 16) / 16
    background, bar, colour = uniform(0.0, 0.5, 1, 1, 3), uniform(0.3, 0.9, 1, 1, 3), uniform(0.6, 1.0, 1, 1, 3)
    image = background + gradient
    image = image + stroke * (bar - image)
    image = image + inside * (colour - image)
    image = image + random.standard_normal(image.shape) * 0.08
    return (np.clip(image, 0, 1) * 255).astype(np.uint8)


def _box(x, y, half_width, half_height):
    return np.maximum(np.abs(x) - half_width, np.abs(y) - half_height)


def _star(x, y):
    return np.hypot(x, y) - 0.72 - 0.28 * np.cos(5 * np.arctan2(y, x))


def _triangle(x, y):
    return np.maximum(np.abs(x) * np.sqrt(3) / 2 + y / 2, -y) - 0.5


_FORMS = (
    lambda x, y: np.hypot(x, y) - 0.85,                                                # disc
    lambda x, y: np.abs(np.hypot(x, y) - 0.75) - 0.2,                                  # ring
    lambda x, y: _box(x, y, 0.75, 0.75),                                               # square
    lambda x, y: np.abs(_box(x, y, 0.7, 0.7)) - 0.18,                                  # frame
    _triangle,                                                                         # triangle
    lambda x, y: np.minimum(_box(x, y, 0.95, 0.28), _box(x, y, 0.28, 0.95)),           # plus
    lambda x, y: _box(x, y, 1.0, 0.32),                                                # bar
    _star,                                                                             # star
    lambda x, y: np.maximum(np.hypot(x, y) - 0.9, 0.75 - np.hypot(x - 0.45, y)),       # crescent
    lambda x, y: np.hypot(np.abs(x) - 0.6, y) - 0.36,                                  # pair of discs
)
