"""glibc keeps what is freed, seen in a process of its own; another C library is left alone, and that is said."""

import ctypes
import subprocess
import sys
from types import SimpleNamespace

import pytest

from tnlib.experiments.allocator import keep_freed_memory

FAULTS = """
import resource, sys, torch
from tnlib.experiments.allocator import keep_freed_memory
assert keep_freed_memory() if sys.argv[1] == "kept" else True
for _ in range(10):
    torch.ones(2**24)  # 64 MiB
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(30):  # in a few of which, wherever small blocks come to lie, a new place is taken
    torch.ones(2**24)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def test_freed_memory_is_taken_again_without_page_faults():
    faults = {how: int(subprocess.run([sys.executable, "-c", FAULTS, how], check=True, stdout=subprocess.PIPE,
                                      text=True).stdout) for how in ("kept", "as-it-is")}
    assert faults["kept"] < faults["as-it-is"] / 10, faults


@pytest.mark.parametrize("library", [SimpleNamespace(), SimpleNamespace(mallopt=lambda name, value: 0)],
                         ids=["without-mallopt", "refusing"])
def test_another_c_library_is_left_alone(monkeypatch, library):
    monkeypatch.setattr(ctypes, "CDLL", lambda name: library)
    assert keep_freed_memory() is False
