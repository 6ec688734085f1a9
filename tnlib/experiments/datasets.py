"""Data sets: images and labels in one canonical order, found, checked, split and fingerprinted.

The way of the data begins here. `Dataset` holds the arrays; `load_dataset` finds them by name or path.
"""

import hashlib
import json
import os
from collections.abc import Iterable
from functools import cache, cached_property
from pathlib import Path

import numpy as np

from .files import PUBLISHED
from .torchvision_compat import import_torchvision
from .weights import published_networks

SPLIT_SEED = 20240321  # fixes which training images are held out; never change it
MOST_CLASSES = 100_000  # more of them are numbers of something else
SIDE = 32

CIFAR10_CLASSES = "airplane automobile bird cat deer dog frog horse ship truck".split()
CIFAR100_CLASSES = """
apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly camel can castle
caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup dinosaur dolphin elephant flatfish
forest fox girl hamster house kangaroo keyboard lamp lawn_mower leopard lion lizard lobster man maple_tree motorcycle
mountain mouse mushroom oak_tree orange orchid otter palm_tree pear pickup_truck pine_tree plain plate poppy porcupine
possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk skyscraper snail snake spider squirrel streetcar
sunflower sweet_pepper table tank telephone television tiger tractor train trout tulip turtle wardrobe whale willow_tree
wolf woman worm""".split()

# name -> classes, torchvision's class, the folder and the archive of the official files, and the core fingerprint
# that every copy must have, official or not
CIFAR = {
    "cifar10": (CIFAR10_CLASSES, "CIFAR10", "cifar-10-batches-py",
                "cbcb4f90c75a7ce67c31b9dcb65fd9090ab7e2a9ee95ed15f4babf19407307fe"),
    "cifar100": (CIFAR100_CLASSES, "CIFAR100", "cifar-100-python",
                 "e098ddc9388d3b90eae50c52f789af6482ebc3fa23a35b2a921cbb8fb829e86b"),
}
NAMES = (*CIFAR, "shapes")


class Dataset:
    """Images and labels: `train_*`, `validation_*`, `test_*` (uint8 NHWC, int64), `classes`, `name`.

    Test images are put into one canonical order, a stable sort by label. Of the training images, 5,000 of CIFAR's
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
        if classes is not None and (isinstance(classes, str) or not isinstance(classes, Iterable) or getattr(classes, "ndim", 1) != 1):
            raise TypeError(f"classes must hold a name for each class, got {classes!r}")
        self.classes = [str(name) for name in classes] if classes is not None else [str(k) for k in range(highest + 1)]
        if highest >= len(self.classes):
            raise ValueError(f"label {highest} has no name: classes holds {len(self.classes)}")

        order = np.argsort(test_labels, kind="stable")
        self.test_images, self.test_labels = test_images[order], test_labels[order]
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

        Raises `ValueError` when `n` is not between 1 and the number of test images that all copies share.
        """
        return balanced_sample(self.test_labels, n, seed, self._differing_test, at_least=1)

    def _digest(self, without_train, without_test) -> str:
        digest = hashlib.sha256()
        for (images, labels), without in ((self._all_train, without_train),
                                          ((self.test_images, self.test_labels), without_test)):
            for array in (images, labels):
                core = np.ascontiguousarray(np.delete(array, without, axis=0) if len(without) else array)
                digest.update(f"{core.dtype.str} {core.shape}".encode())
                digest.update(core.data if core.size else b"")
        return digest.hexdigest()


def balanced_indices(dataset: Dataset, split: str, n: int) -> np.ndarray:
    """Indices of `n` class-balanced images of a split, sorted, the same for every copy of the data set; of the test images
    as `Dataset.subset` draws them."""
    if split == "test":
        return dataset.subset(n)
    differing = np.flatnonzero(dataset.train_differs) if split == "train" else ()
    return balanced_sample(getattr(dataset, f"{split}_labels"), n, 0, differing)


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
    images, labels = np.asarray(images), np.asarray(labels)
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
    return np.ascontiguousarray(images), labels.astype(np.int64)  # torchvision's arrays are views of (N, C, H, W)


def _indices(given, name):
    found = np.asarray(given)
    if found.ndim != 1 or found.size and not np.issubdtype(found.dtype, np.integer):
        raise TypeError(f"{name} must be indices, whole numbers in one row, got {found.dtype} {found.shape}")
    return found.astype(np.int64)


# ---- finding a data set ------------------------------------------------------------------------------------------

def data_folders(root=None) -> list[tuple[str, Path | None]]:
    """The places where data sets are looked for, in order, each with what it is; None where it is not set."""
    variable = os.environ.get("TNLIB_DATA")
    cache_home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return [("the folder given (root=, --data)", Path(root).expanduser() if root is not None else None),
            ("the environment variable TNLIB_DATA", Path(variable).expanduser() if variable else None),
            ("the cache", cache_home / "tnlib" / "data")]


def find_files(name: str, root=None) -> Path | None:
    """The `.npz` or the folder of official files of a CIFAR data set, the first found; None where there is none.

    Raises `FileNotFoundError` where `root` is no folder: it is what was asked for, not the other places.
    """
    _, _, folder, _ = CIFAR[name]
    if root is not None and not isinstance(root, (str, os.PathLike)):
        raise TypeError(f"root must be the path of a folder, or None for the usual places, got {root!r}")
    if root is not None and not Path(root).expanduser().is_dir():
        raise FileNotFoundError(f"no folder {root}, where data sets were to be looked for: give another (root=, --data), or "
                                f"none to look in the usual places")
    for _, place in data_folders(root):
        for candidate in () if place is None else (place / f"{name}.npz", place / folder):
            if candidate.exists():
                return candidate
    return None


def load_dataset(name, root=None) -> Dataset:
    """Load a data set by name (`"cifar10"`, `"cifar100"`, `"shapes"`) or from the path of an `.npz` file.

    CIFAR is looked for in `root`, then in the folder that TNLIB_DATA names, then in the user's cache: as
    `<name>.npz`, or as torchvision's own files (md5 checked). An `.npz` holds `test_images` (uint8, (N, H, W, C))
    and `test_labels` (int64, (N,)); `train_images`, `train_labels` and `classes` are optional.

    Raises `FileNotFoundError` when it is nowhere (naming the places) or `root` is no folder, `ValueError` for an unknown name or a file
    that is corrupt or is not the data set that its name says.
    Source: A. Krizhevsky, Learning Multiple Layers of Features from Tiny Images, 2009.
    """
    if not isinstance(name, (str, os.PathLike)):
        raise TypeError(f"name must be {', '.join(map(repr, NAMES))}, or the path of an .npz file, got {name!r}")
    if (text := os.fspath(name)) == "shapes":
        return _shapes()
    if text in CIFAR:
        return _load_cifar(text, root)
    path = Path(name).expanduser()
    if path.suffix != ".npz":
        raise ValueError(f"unknown data set {str(name)!r}: it takes {', '.join(map(repr, NAMES))}, "
                         "or the path of an .npz file")
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}: load_dataset takes {', '.join(map(repr, NAMES))}, "
                                "or the path of an existing .npz file")
    if path.stem in CIFAR:  # checked like any other copy
        return _load_cifar(path.stem, path.parent)
    if path.stem == "shapes":
        raise ValueError(f"{path}: 'shapes' is the data set that tnlib draws; give the file another name")
    arrays = _read_npz(path)
    try:
        return Dataset(**arrays, name=path.stem)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path} holds no data set: {error}") from None


def _load_cifar(name, root) -> Dataset:
    classes, torchvision_class, folder, core = CIFAR[name]
    found = find_files(name, root)
    if found is None:
        places = "; ".join(f"{what}: {place if place is not None else 'not set'}" for what, place in data_folders(root))
        raise FileNotFoundError(
            f"the data set {name!r} is in none of the three places looked at ({places}). "
            f"Put {name}.npz or {folder}/ into one of them, or download it with: tnlib data fetch {name}")
    arrays = _read_npz(found) if found.suffix == ".npz" else _read_official(name, torchvision_class, found)
    try:
        dataset = Dataset(**arrays | {"classes": classes}, name=name, **_differing(name))
    except (TypeError, ValueError) as error:  # too few images, another dtype, …
        raise ValueError(f"{found} is not {name} ({error}); remove it and run tnlib data fetch {name}") from None
    if dataset.core_fingerprint != core:
        raise ValueError(f"{found} is not {name}: its core fingerprint is {dataset.core_fingerprint[:16]}…, "
                         f"expected {core[:16]}…. The file was altered or is incomplete: remove it and run "
                         f"tnlib data fetch {name}")
    return dataset


def _differing(name) -> dict:
    if name != "cifar10":
        return {}
    lists = json.loads((PUBLISHED / "cifar10-differing.json").read_text())
    return {"differing_train": lists["train"], "differing_test": lists["test"]}


def _read_npz(path) -> dict:
    known = ("test_images", "test_labels", "train_images", "train_labels", "classes")
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {key: file[key] for key in file.files}
    except Exception as error:  # an altered byte of a zip raises whatever the code behind that byte raises
        raise ValueError(f"{path} cannot be read as an .npz file (truncated or altered?): {error}") from None
    missing, unknown = {"test_images", "test_labels"} - arrays.keys(), arrays.keys() - set(known)
    if missing or unknown:
        raise ValueError(f"{path} must hold test_images and test_labels and may hold train_images, train_labels and "
                         f"classes; missing: {sorted(missing) or 'none'}, unknown: {sorted(unknown) or 'none'}")
    return arrays


def _read_official(name, torchvision_class, folder) -> dict:
    reader = getattr(import_torchvision().datasets, torchvision_class)
    arrays = {}
    for split in ("train", "test"):
        try:
            data = reader(folder.parent, train=split == "train")  # checks md5
        except Exception as error:  # RuntimeError for a bad md5; what unpickling raises for the rest
            raise ValueError(f"the official files in {folder} are incomplete or altered ({error}); remove the folder "
                             f"and run tnlib data fetch {name}") from None
        arrays[f"{split}_images"], arrays[f"{split}_labels"] = data.data, np.asarray(data.targets, dtype=np.int64)
    return arrays


def describe(name: str, root=None) -> tuple[str, str]:
    """Where a CIFAR data set is, and which copy; or what is wrong with it or missing, and what to do."""
    found = find_files(name, root)
    if found is None:
        return "nowhere", f"run: tnlib data fetch {name}"
    try:
        dataset = _load_cifar(name, root)
    except ValueError as error:
        return str(found), f"refused: {error}"
    form = "one .npz" if found.suffix == ".npz" else "the official files"
    published = dataset.fingerprint in {card["fingerprint"] for card in published_networks()}
    return str(found), (f"{form}, {'the copy' if published else 'not the copy'} that the published networks saw; "
                        f"fingerprint {dataset.fingerprint[:16]}, core {dataset.core_fingerprint[:16]}")


def fetch(name: str, root=None) -> Path:
    """Download a CIFAR data set's official files with torchvision, check md5, and return their folder."""
    _, torchvision_class, folder, _ = CIFAR[name]
    place = next(place for _, place in data_folders(root) if place is not None)
    getattr(import_torchvision().datasets, torchvision_class)(place, train=True, download=True)
    return place / folder


@cache
def _shapes() -> Dataset:
    from .shapes import draw_shapes
    return Dataset(**draw_shapes(), name="shapes")
