"""Singular values that were computed before, in a file: pages that ask for those of the same kernels share one computation.

A row's key is a digest of the kernel, of its cut, and of what computes: another kernel or other code finds nothing. All
is here for speed alone: where the file cannot be read or written, values are computed anew.
"""

import hashlib
import sqlite3
from collections.abc import Iterable
from contextlib import closing
from functools import cache
from pathlib import Path

import numpy as np
import torch

from ..tensors import cuts, gram

LEAST = 64  # of matrices with fewer rows and columns the values are sooner computed than looked up
WAIT_SECONDS = 10  # for another process that writes


def known(path: Path, kernels: dict, jobs: Iterable) -> dict:
    """What the file at `path` has for `jobs`, (name of a kernel of `kernels`, cut) each: job → singular values."""
    keys = _keys(kernels, jobs)
    if not keys or not path.is_file():
        return {}
    try:
        with closing(sqlite3.connect(path, timeout=WAIT_SECONDS)) as database:
            rows = {job: database.execute("SELECT found FROM spectra WHERE key = ?", (key,)).fetchone() for job, key in keys.items()}
    except sqlite3.Error:
        return {}
    return {(name, cut): torch.from_numpy(np.frombuffer(row[0], dtype=kernels[name].numpy().dtype).copy())
            for (name, cut), row in rows.items() if row}


def keep(path: Path, kernels: dict, found: dict) -> None:
    """Add to the file at `path`, made where there is none, what was `found`: (name of a kernel, cut) → singular values."""
    rows = [(key, found[job].numpy().tobytes()) for job, key in _keys(kernels, found).items()]
    if not rows:
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with closing(sqlite3.connect(path, timeout=WAIT_SECONDS)) as database, database:
            database.execute("CREATE TABLE IF NOT EXISTS spectra (key BLOB PRIMARY KEY, found BLOB NOT NULL) WITHOUT ROWID")
            database.executemany("INSERT OR IGNORE INTO spectra VALUES (?, ?)", rows)
    except (OSError, sqlite3.Error):
        pass


def _keys(kernels, jobs) -> dict:
    asked = [(name, cut) for name, cut in jobs if cut.max_rank(kernels[name].shape) >= LEAST]
    digests = {name: _digest(kernels[name]) for name in {name for name, _ in asked}}
    return {(name, cut): hashlib.sha256(digests[name] + _method() + cut.name.encode()).digest() for name, cut in asked}


def _digest(kernel) -> bytes:
    array = np.ascontiguousarray(kernel.numpy())
    return hashlib.sha256(f"{array.shape} {array.dtype}".encode() + hashlib.sha256(array).digest()).digest()


@cache
def _method() -> bytes:
    code = [Path(module.__file__).read_bytes() for module in (cuts, gram)]
    return hashlib.sha256(b"\0".join([*code, torch.__version__.encode()])).digest()
