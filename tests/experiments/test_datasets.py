"""Data sets by name or path: where they are looked for, and files that are checked."""

import hashlib
import json
import pickle
import tarfile
from pathlib import Path

import numpy as np
import pytest
from numbered_images import in_another_order, numbered, shuffled_labels

from tnlib import Dataset, load_dataset
from tnlib.experiments import datasets
from tnlib.experiments.datasets import CIFAR, CIFAR10_CLASSES, data_folders, describe, fetch, find_files
from tnlib.experiments.files import PUBLISHED
from tnlib.experiments.torchvision_compat import import_torchvision

I, L = numbered(20), shuffled_labels(20)


# ---- .npz files --------------------------------------------------------------------------------------------------

def arrays(n=40, side=4):
    return {"test_images": numbered(n, 1000, side), "test_labels": shuffled_labels(n, seed=5),
            "train_images": numbered(n, 0, side), "train_labels": shuffled_labels(n, seed=6)}


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed], ids=["plain", "compressed"])
def test_an_npz_is_the_data_set_of_its_arrays(tmp_path, save):
    save(tmp_path / "mine.npz", **arrays(), classes=list("abcdefghij"))
    for path in (tmp_path / "mine.npz", str(tmp_path / "mine.npz")):
        dataset = load_dataset(path)
        assert dataset.fingerprint == Dataset(**arrays()).fingerprint
        assert dataset.name == "mine" and dataset.classes == list("abcdefghij")


NOT_A_DATA_SET = {
    "missing-key": ({"test_images": I}, r"missing: \['test_labels'\], unknown: none"),
    "unknown-key": (arrays() | {"labels": L}, r"missing: none, unknown: \['labels'\]"),
    "classes": (arrays() | {"classes": np.array("cat")}, "holds no data set: "),
    "objects": (arrays() | {"test_labels": L.astype(object)}, "cannot be read .*allow_pickle=False"),
}


@pytest.mark.parametrize("content, message", NOT_A_DATA_SET.values(), ids=NOT_A_DATA_SET)
def test_an_npz_that_is_not_a_data_set_is_named(tmp_path, content, message):
    np.savez(tmp_path / "mine.npz", **content)
    with pytest.raises(ValueError, match=f"{tmp_path / 'mine.npz'} .*{message}"):
        load_dataset(tmp_path / "mine.npz")


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed], ids=["plain", "compressed"])
def test_an_altered_or_truncated_npz_is_refused_or_reads_the_same(tmp_path, save):
    """Byte after byte: an error that names the file, or no other content (some of a zip's bytes say nothing)."""
    path, content = tmp_path / "mine.npz", arrays(n=4, side=2)
    save(path, **content)
    whole = path.read_bytes()
    altered = [bytes([*whole[:k], whole[k] ^ 0xFF, *whole[k + 1:]]) for k in range(0, len(whole), 3)]
    refused = 0
    for data in [*altered, *(whole[:k] for k in range(0, len(whole), 7)), b"", b"PK", b"no zip at all"]:
        path.write_bytes(data)
        try:
            found = datasets._read_npz(path)
        except ValueError as error:
            assert str(path) in str(error)
            refused += 1
        else:
            assert all(np.array_equal(found[key], content[key]) for key in found)
    assert refused > len(altered) / 2


def test_a_file_that_is_called_as_another_data_set_is_no_other(tmp_path):
    for name, message in (("cifar10", "is not cifar10"), ("shapes", "'shapes' is the data set that tnlib draws")):
        np.savez(tmp_path / f"{name}.npz", **arrays())
        with pytest.raises(ValueError, match=message):
            load_dataset(tmp_path / f"{name}.npz")


def test_an_array_alone_is_no_npz(tmp_path):
    with open(tmp_path / "mine.npz", "wb") as file:
        np.save(file, I)
    with pytest.raises(ValueError, match="mine.npz cannot be read as an .npz file"):
        load_dataset(tmp_path / "mine.npz")


@pytest.mark.parametrize("name, error, message", [
    ("cifar11", ValueError, "unknown data set 'cifar11': it takes 'cifar10', 'cifar100', 'shapes', or the path"),
    ("nowhere.npz", FileNotFoundError, "no file nowhere.npz"),
    (10, TypeError, "name must be 'cifar10', .*got 10"), (None, TypeError, "got None"),
    (["cifar10"], TypeError, r"got \['cifar10'\]")], ids=str)
def test_unknown_names(name, error, message):
    with pytest.raises(error, match=message):
        load_dataset(name)


# ---- CIFAR by name: where it is looked for -----------------------------------------------------------------------

@pytest.fixture
def small_cifar100(no_data, monkeypatch):
    """CIFAR-100 stands for a small data set of 32×32 images, on a machine without any data; its arrays."""
    small = arrays(n=200, side=32)
    classes, reader, folder, _ = CIFAR["cifar100"]
    monkeypatch.setitem(CIFAR, "cifar100", (classes, reader, folder, Dataset(**small).core_fingerprint))
    return small


def test_missing_data_names_the_three_places_and_what_to_do(no_data, monkeypatch):
    monkeypatch.setenv("TNLIB_DATA", str(no_data / "variable"))
    with pytest.raises(TypeError, match="root must be the path of a folder, or None for the usual places, got 5"):
        load_dataset("cifar100", root=5)
    with pytest.raises(FileNotFoundError, match=f"no folder {no_data / 'root'}, where data sets were to be looked for"):
        load_dataset("cifar100", root=no_data / "root")
    (no_data / "root").mkdir()
    with pytest.raises(FileNotFoundError) as caught:
        load_dataset("cifar100", root=no_data / "root")
    for part in ("root", "variable", "cache/tnlib/data"):
        assert str(no_data / part) in str(caught.value)
    assert "tnlib data fetch cifar100" in str(caught.value) and "cifar-100-python" in str(caught.value)
    with pytest.raises(FileNotFoundError, match="'cifar100' is in none of the three places"):
        load_dataset(Path("cifar100"))
    assert describe("cifar100") == ("nowhere", "run: tnlib data fetch cifar100")


def test_the_given_folder_comes_first_then_the_variable_then_the_cache(small_cifar100, no_data, monkeypatch):
    monkeypatch.setenv("TNLIB_DATA", str(no_data / "variable"))
    places = [no_data / "root", no_data / "variable", no_data / "cache" / "tnlib" / "data"]
    assert [place for _, place in data_folders(places[0])] == places
    places[0].mkdir()
    for place in reversed(places):
        place.mkdir(parents=True, exist_ok=True)
        np.savez(place / "cifar100.npz", **small_cifar100)
        assert find_files("cifar100", root=places[0]) == place / "cifar100.npz"
        assert load_dataset("cifar100", root=str(places[0])).name == "cifar100"
    assert find_files("cifar100") == places[1] / "cifar100.npz"
    assert find_files("cifar10", root=places[0]) is None


def test_the_cache_is_below_home_where_nothing_else_is_said(no_data, monkeypatch):
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert data_folders()[2][1] == no_data / "home" / ".cache" / "tnlib" / "data"


# ---- CIFAR by name: what is refused ------------------------------------------------------------------------------

def test_a_copy_with_other_pixels_is_refused(small_cifar100, tmp_path):
    path = tmp_path / "cifar100.npz"
    np.savez(path, **small_cifar100)
    where, which = describe("cifar100", tmp_path)
    assert where == str(path) and "one .npz" in which and Dataset(**small_cifar100).fingerprint[:16] in which
    small_cifar100["test_images"][17, 3, 3, 0] ^= 1
    np.savez(path, **small_cifar100)
    with pytest.raises(ValueError, match=f"{path} is not cifar100.*expected .*tnlib data fetch cifar100"):
        load_dataset("cifar100", tmp_path)
    where, which = describe("cifar100", tmp_path)
    assert where == str(path) and "refused" in which


NOT_CIFAR10 = {
    "incomplete": arrays(side=32),
    "no-train": {"test_images": I, "test_labels": L},
    "floats": {"test_images": I / 255, "test_labels": L},
    "labels-above-9": {"test_images": I, "test_labels": L + 5},
}


@pytest.mark.parametrize("content", NOT_CIFAR10.values(), ids=NOT_CIFAR10)
def test_a_file_that_cannot_be_cifar10_is_named(no_data, content):
    np.savez(no_data / "cifar10.npz", **content)
    with pytest.raises(ValueError, match=f"{no_data / 'cifar10.npz'} is not cifar10.*tnlib data fetch cifar10"):
        load_dataset("cifar10", no_data)
    assert "refused" in describe("cifar10", no_data)[1]


# ---- the official files ------------------------------------------------------------------------------------------

def write_official(root, name, content, monkeypatch):
    """Write `content` in the form of the official files, and have torchvision expect their md5."""
    _, reader, folder, _ = CIFAR[name]
    reader = getattr(import_torchvision().datasets, reader)
    key = "labels" if name == "cifar10" else "fine_labels"
    (root / folder).mkdir(parents=True)

    def write(file, entry):
        data = pickle.dumps(entry, protocol=4)
        (root / folder / file).write_bytes(data)
        return hashlib.md5(data).hexdigest()

    for split, files in (("train", reader.train_list), ("test", reader.test_list)):
        parts = zip(files, *(np.array_split(content[f"{split}_{what}"], len(files)) for what in ("images", "labels")))
        monkeypatch.setattr(reader, f"{split}_list", [
            [file, write(file, {"data": images.transpose(0, 3, 1, 2).reshape(len(images), 3072), key: labels.tolist()})]
            for (file, _), images, labels in parts])
    md5 = write(reader.meta["filename"], {reader.meta["key"]: CIFAR[name][0]})
    monkeypatch.setattr(reader, "meta", reader.meta | {"md5": md5})
    return root / folder


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_official_files_are_read_by_torchvision(tmp_path, monkeypatch, name):
    content = arrays(n=50, side=32)
    folder = write_official(tmp_path, name, content, monkeypatch)
    found = datasets._read_official(name, CIFAR[name][1], folder)
    assert found.keys() == content.keys() and all(np.array_equal(found[key], content[key]) for key in content)
    assert Dataset(**found).test_images.flags.c_contiguous and Dataset(**found).train_images.flags.c_contiguous


def test_official_files_are_the_same_data_set(small_cifar100, tmp_path, monkeypatch):
    mixed = dict(zip(("test_images", "test_labels"),
                     in_another_order(small_cifar100["test_images"], small_cifar100["test_labels"])))
    folder = write_official(tmp_path, "cifar100", small_cifar100 | mixed, monkeypatch)
    dataset = load_dataset("cifar100", tmp_path)
    assert dataset.fingerprint == Dataset(**small_cifar100).fingerprint and len(dataset.classes) == 100
    assert describe("cifar100", tmp_path)[0] == str(folder) and "official" in describe("cifar100", tmp_path)[1]


@pytest.mark.parametrize("harm", ["altered", "missing", "empty-folder"])
def test_bad_official_files_are_one_error_that_names_the_folder(small_cifar100, tmp_path, monkeypatch, harm):
    folder = write_official(tmp_path, "cifar100", small_cifar100, monkeypatch)
    if harm == "altered":
        data = bytearray((folder / "test").read_bytes())
        data[len(data) // 2] ^= 1
        (folder / "test").write_bytes(data)
    for file in {"altered": [], "missing": ["train"], "empty-folder": ["train", "test", "meta"]}[harm]:
        (folder / file).unlink()
    with pytest.raises(ValueError, match=f"official files in {folder} are incomplete or altered") as caught:
        load_dataset("cifar100", tmp_path)
    assert caught.value.__suppress_context__ and "tnlib data fetch cifar100" in str(caught.value)


@pytest.mark.parametrize("where", ["root", "cache"])
def test_fetch_puts_the_official_files_where_they_are_found(small_cifar100, no_data, monkeypatch, where):
    """The archive is there already, as torchvision leaves it: nothing is downloaded."""
    root = no_data / "root" if where == "root" else None
    place = root or no_data / "cache" / "tnlib" / "data"
    place.mkdir(parents=True)
    folder = write_official(no_data / "elsewhere", "cifar100", small_cifar100, monkeypatch)
    reader = import_torchvision().datasets.CIFAR100
    with tarfile.open(place / reader.filename, "w:gz") as file:
        file.add(folder, folder.name)
    monkeypatch.setattr(reader, "tgz_md5", hashlib.md5((place / reader.filename).read_bytes()).hexdigest())
    assert fetch("cifar100", root) == find_files("cifar100", root) == place / folder.name
    assert load_dataset("cifar100", root).fingerprint == Dataset(**small_cifar100).fingerprint


def test_a_fetch_that_fails_names_what_and_where(no_data, monkeypatch):
    reader = import_torchvision().datasets.CIFAR10
    monkeypatch.setattr(reader, "url", "http://localhost:1/cifar.tar.gz")
    with pytest.raises(OSError, match=f"cifar10 cannot be fetched from http://localhost:1/cifar.tar.gz into {no_data / 'new'}: .*refused.*by hand"):
        fetch("cifar10", no_data / "new")
    (no_data / "file").touch()
    with pytest.raises(OSError, match=f"cifar10 cannot be fetched .* into {no_data / 'file'}: .*File exists"):
        fetch("cifar10", no_data / "file")


# ---- the real data -----------------------------------------------------------------------------------------------

@pytest.fixture(scope="module")
def cifar10():
    return load_dataset("cifar10")


def test_the_lists_of_differing_images():
    lists = json.loads((PUBLISHED / "cifar10-differing.json").read_text())
    for split, n, of in (("train", 86, 50_000), ("test", 25, 10_000)):
        assert len(set(lists[split])) == n and lists[split] == sorted(lists[split])
        assert 0 <= lists[split][0] and lists[split][-1] < of


def check_cifar(dataset, classes, means):
    assert [len(getattr(dataset, f"{split}_labels")) for split in ("train", "validation", "test")] == [
        45_000, 5_000, 10_000]
    assert len(dataset.classes) == classes
    for split, n in (("train", 45_000), ("validation", 5_000), ("test", 10_000)):
        assert getattr(dataset, f"{split}_images").shape == (n, 32, 32, 3)
        assert (np.bincount(getattr(dataset, f"{split}_labels")) == n // classes).all()
    assert (np.bincount(dataset.test_labels[dataset.subset(1000, seed=3)]) == 1000 // classes).all()
    total = dataset.train_images.sum((0, 1, 2)) + dataset.validation_images.sum((0, 1, 2))
    assert total / (50_000 * 1024 * 255) == pytest.approx(means, abs=5e-6)


@pytest.mark.cifar
def test_cifar10_has_its_known_sizes_and_channel_means(cifar10):
    check_cifar(cifar10, 10, [0.49140, 0.48216, 0.44653])
    assert cifar10.classes == CIFAR10_CLASSES and cifar10.num_differing_test == 25


@pytest.mark.cifar
def test_cifar100_has_its_known_sizes_and_channel_means():
    check_cifar(load_dataset("cifar100"), 100, [0.50708, 0.48655, 0.44092])


@pytest.mark.cifar
def test_the_official_cifar10_is_the_published_one_but_for_the_listed_images(cifar10, tmp_path, monkeypatch):
    """Our copy written as the official files: in mixed order, with other pixels where the two copies differ."""
    lists = json.loads((PUBLISHED / "cifar10-differing.json").read_text())
    content = {f"{split}_{what}": value.copy() for split, pair in (
        ("train", cifar10._all_train), ("test", (cifar10.test_images, cifar10.test_labels)))
        for what, value in zip(("images", "labels"), pair)}
    for split in ("train", "test"):
        content[f"{split}_images"][lists[split]] ^= 1
    content["test_images"], content["test_labels"] = in_another_order(content["test_images"], content["test_labels"])
    write_official(tmp_path, "cifar10", content, monkeypatch)
    assert not np.array_equal(content["test_labels"], cifar10.test_labels)
    official = load_dataset("cifar10", tmp_path)
    assert official.core_fingerprint == cifar10.core_fingerprint
    assert np.array_equal(official.validation_images, cifar10.validation_images)
    assert np.array_equal(official.test_labels, cifar10.test_labels)
    assert np.flatnonzero((official.test_images != cifar10.test_images).any((1, 2, 3))).tolist() == lists["test"]
    for n, seed in ((1000, 0), (2000, 1), (9975, 2)):
        assert np.array_equal(official.subset(n, seed), cifar10.subset(n, seed))
        assert not set(lists["test"]) & set(official.subset(n, seed))


@pytest.mark.cifar
def test_one_other_pixel_outside_the_lists_is_refused(cifar10, no_data):
    content = dict(zip(("train_images", "train_labels"), cifar10._all_train),
                   test_images=cifar10.test_images.copy(), test_labels=cifar10.test_labels)
    content["test_images"][100, 5, 5, 2] ^= 1
    np.savez(no_data / "cifar10.npz", **content)
    with pytest.raises(ValueError, match=f"{no_data / 'cifar10.npz'} is not cifar10: its core fingerprint"):
        load_dataset("cifar10", no_data)
