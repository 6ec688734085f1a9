"""What a card says of the machine and the code that made a file."""

import datetime
import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version

import torch

from .files import ROOT

RECORDED = ("torch", "torchvision", "numpy", "scipy", "pandas", "tensorly", "safetensors")


def now() -> str:
    """The time in UTC, ISO 8601, to the second."""
    return datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")


def provenance(device="cpu", packages=RECORDED) -> dict:
    """Versions of python and of `packages`, git commit, device and threads, as every card records them."""
    return {
        "git_commit": git_commit(),
        "versions": {"python": platform.python_version(), **_versions(packages)},
        "device": torch.cuda.get_device_name(device) if torch.device(device).type == "cuda" else _processor(),
        "threads": torch.get_num_threads(),
        "platform": platform.platform(),
    }


def git_commit() -> str | None:
    """The checkout's commit, with "+changes" behind it when files differ, or the library or the book has others; None
    outside git.

    Files in published/ do not count: a card names those that it depends on by their sha256.
    """
    def git(*arguments):
        return subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, check=True).stdout
    try:
        if git("rev-parse", "--show-prefix").strip():  # a copy inside another repository, whose commit says nothing of it
            return None
        changes = git("status", "--porcelain", "--untracked-files=no", "--", ".", ":!published").strip() or git(
            "ls-files", "--others", "--exclude-standard", "--", "tnlib", "book").strip()
        return git("rev-parse", "HEAD").strip() + ("+changes" if changes else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def _versions(packages) -> dict:
    found = {}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:  # a bare machine with a GPU need not have them all
            continue
    return found


def _processor() -> str:
    try:
        with open("/proc/cpuinfo") as file:
            names = [line.split(":", 1)[1].strip() for line in file if line.startswith("model name")]
    except OSError:
        names = []
    return f"{names[0] if names else platform.processor() or platform.machine()}, {os.cpu_count()} cores"
