"""Where things are kept, and how a file is written so that a kill leaves the old one or the new one."""

import hashlib
import json
import os
import tempfile
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout
from safetensors import SafetensorError

ROOT = Path(__file__).resolve().parents[2]  # tnlib is used from its checkout
PUBLISHED = ROOT / "published"
RUNS = ROOT / "runs"
BUILD = ROOT / "_build"  # all of it can be made again
VALUES = BUILD / "singular-values.sqlite"  # of kernels that pages have asked for, see `known_values`


@contextmanager
def atomic_path(path):
    """Yield a temporary path beside `path`, renamed onto it when the block succeeds."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        temporary.chmod(0o644)  # mkstemp's 0600 would keep others from reading a published file
        os.replace(temporary, path)
    except SafetensorError as error:  # which is no OSError
        raise OSError(f"{path} cannot be written: {error}. Is the disk full?") from None
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def exclusive(path, say):
    """No other process is meanwhile in such a block for the lock file `path`; `say()` before one that is has to be waited for."""
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        say()
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def write_json(path, content) -> None:
    """Write `content` as indented JSON, atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def sha256_of(path) -> str:
    """The sha256 of a file's bytes, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
