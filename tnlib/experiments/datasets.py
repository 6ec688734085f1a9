"""Data sets by name or path: where they are looked for, read, checked and fetched.

The way of the data begins here.
"""

import json
import os
from functools import cache
from pathlib import Path

import numpy as np

from .dataset import NAMES, Dataset
from .files import PUBLISHED
from .torchvision_compat import import_torchvision
from .weights import published_networks

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
    """Download a CIFAR data set's official files with torchvision, check md5, and return their folder. Raises `OSError` where
    that fails, naming what, from where and to where."""
    _, torchvision_class, folder, _ = CIFAR[name]
    place = next(place for _, place in data_folders(root) if place is not None)
    reader = getattr(import_torchvision().datasets, torchvision_class)
    try:
        reader(place, train=True, download=True)
    except (OSError, RuntimeError) as error:  # no network, a file in the folder's place, another md5
        raise OSError(f"{name} cannot be fetched from {reader.url} into {place}: {error}. Put {name}.npz or {folder}/ there by hand, or try again") from None
    return place / folder


def _shapes() -> Dataset:
    return Dataset(**_drawn_shapes(), name="shapes")  # each its own, which may be written into


@cache
def _drawn_shapes() -> dict:
    from .shapes import draw_shapes
    return draw_shapes()
