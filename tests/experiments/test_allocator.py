"""glibc keeps what is freed, seen in a process of its own; another C library is left alone, and that is said."""

import ctypes
import multiprocessing
import resource
from concurrent.futures import ProcessPoolExecutor
from types import SimpleNamespace

import pytest
import torch

from tnlib.experiments.allocator import keep_freed_memory
from tnlib.experiments.measurements import processes


def page_faults() -> int:
    """Of this process, while it takes 64 MiB and gives them back 30 times."""
    for _ in range(10):
        torch.ones(2**24)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(30):  # in a few of which, wherever small blocks come to lie, a new place is taken
        torch.ones(2**24)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


def test_freed_memory_is_taken_again_without_page_faults_in_workers_too():
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as executor:
        as_it_is = executor.submit(page_faults).result()
        assert executor.submit(keep_freed_memory).result()
        told = executor.submit(page_faults).result()
    with processes(1) as executor:
        of_worker = executor.submit(page_faults).result()
    assert max(told, of_worker) < as_it_is / 10, (told, of_worker, as_it_is)


@pytest.mark.parametrize("library", [SimpleNamespace(), SimpleNamespace(mallopt=lambda name, value: 0)],
                         ids=["without-mallopt", "refusing"])
def test_another_c_library_is_left_alone(monkeypatch, library):
    monkeypatch.setattr(ctypes, "CDLL", lambda name: library)
    assert keep_freed_memory() is False
