"""Singular values that are kept in a file: the same as those computed, of the same kernels alone, and never in the way."""

import sqlite3
from concurrent.futures import ThreadPoolExecutor

import pandas as pd
import pytest
import torch

from tnlib.experiments import kernel_spectra as spectra, known_values
from tnlib.experiments.kernel_spectra import cut_spectra, kernel_spectra
from tnlib.experiments.known_values import LEAST, keep, known
from tnlib.experiments.networks import Vanilla
from tnlib.tensors.cuts import distinct_cuts

SHAPE = (LEAST + 1, LEAST, 2, 2)  # KW, KH and OUT,IN have few values


def kernel(seed, shape=SHAPE):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def same(found, expected):
    assert {name: list(cuts) for name, cuts in found.items()} == {name: list(cuts) for name, cuts in expected.items()}
    for name, cuts in expected.items():
        for cut, values in cuts.items():
            assert found[name][cut].dtype == values.dtype and torch.equal(found[name][cut], values), (name, cut)
    return True


@pytest.fixture
def kept(tmp_path):
    return tmp_path / "made" / "values.sqlite"


@pytest.fixture
def computed(monkeypatch):
    """What is computed, and not looked up: the cuts' names, in order."""
    names, own = [], spectra.singular_values

    def noting(kernel, cut):
        names.append(cut.name)
        return own(kernel, cut)

    monkeypatch.setattr(spectra, "singular_values", noting)
    return names


def test_what_is_kept_is_not_computed_again_and_is_the_same(kept, computed):
    kernels = {"one": kernel(1), ("other", 2): kernel(2)}
    expected = cut_spectra(kernels)
    assert same(cut_spectra(kernels, kept=kept), expected)
    del computed[:]
    assert same(cut_spectra(kernels, kept=kept), expected)
    small = [cut.name for cut in distinct_cuts(SHAPE) if cut.max_rank(SHAPE) < LEAST]
    assert sorted(computed) == sorted(2 * small) and len(small) == 3, "only what is sooner computed than looked up"


def test_names_do_not_count_kernels_do(kept, computed):
    expected = cut_spectra({"a": kernel(1)}, kept=kept)["a"]
    del computed[:]
    found = cut_spectra({"b": kernel(1), "a": kernel(2)}, kept=kept)
    assert same({"b": found["b"]}, {"b": expected})
    assert same({"a": found["a"]}, {"a": cut_spectra({"a": kernel(2)})["a"]})
    assert computed.count("OUT") == 2, "of kernel 2, with a file and without"


@pytest.mark.parametrize("change", ["a weight's last bit", "shape", "dtype", "torch", "the code"])
def test_another_kernel_and_other_code_find_nothing(kept, monkeypatch, tmp_path, change):
    first = kernel(1)
    cut_spectra({0: first}, kept=kept)
    jobs = [(0, cut) for cut in distinct_cuts(SHAPE)]
    assert known(kept, {0: first}, jobs)
    other = first.clone()
    if change == "a weight's last bit":
        other[0, 0, 0, 0] = torch.nextafter(other[0, 0, 0, 0], torch.tensor(9.0))
    elif change == "shape":
        other = first.view(SHAPE[1], SHAPE[0], *SHAPE[2:])
    elif change == "dtype":
        other = first.double()
    else:
        if change == "torch":
            monkeypatch.setattr(torch, "__version__", "0.1")
        else:
            code = tmp_path / "cuts.py"
            code.write_text("another way")
            monkeypatch.setattr(known_values.cuts, "__file__", str(code))
        known_values._method.cache_clear()
    try:
        assert known(kept, {0: other}, jobs) == {}
    finally:
        known_values._method.cache_clear()


def test_a_file_that_cannot_be_used_is_never_in_the_way(kept, tmp_path):
    kernels = {0: kernel(1)}
    expected = cut_spectra(kernels)
    for content in (b"no database at all", b"SQLite format 3\0 cut off"):
        kept.parent.mkdir(exist_ok=True)
        kept.write_bytes(content)
        assert same(cut_spectra(kernels, kept=kept), expected)
    with sqlite3.connect(tmp_path / "other.sqlite") as other:
        other.execute("CREATE TABLE spectra (something TEXT)")
    assert same(cut_spectra(kernels, kept=tmp_path / "other.sqlite"), expected)
    (tmp_path / "no folder").write_text("a file")
    assert same(cut_spectra(kernels, kept=tmp_path / "no folder" / "values.sqlite"), expected)


def test_those_who_keep_at_once_lose_nothing(kept):
    kernels = {seed: kernel(seed) for seed in range(9)}
    jobs = [(seed, cut) for seed in kernels for cut in distinct_cuts(SHAPE) if cut.max_rank(SHAPE) >= LEAST]
    values = {job: torch.arange(LEAST, dtype=torch.float32) + job[0] for job in jobs}

    def one(seed):  # its own, and those of a kernel that all have
        keep(kept, kernels, {job: found for job, found in values.items() if job[0] in (0, seed)})

    with ThreadPoolExecutor(8) as pool:  # a connection each, as of so many processes
        list(pool.map(one, range(1, 9)))
    found = known(kept, kernels, jobs)
    assert set(found) == set(jobs) and all(torch.equal(found[job], values[job]) for job in jobs)


def test_a_networks_table_is_the_same_from_the_file(kept):
    torch.manual_seed(0)
    model = Vanilla(3, (6, LEAST, LEAST, 4), hidden=8, image_size=16)
    expected = kernel_spectra(model, samples=2)
    for _ in range(2):
        pd.testing.assert_frame_equal(kernel_spectra(model, samples=2, kept=kept), expected)
