"""The C library's allocator, told to keep what it is given back."""

import ctypes

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # names of glibc's mallopt(3)
KEPT = 2**31 - 1  # bytes, the most that it takes


def keep_freed_memory() -> bool:
    """Let this process keep up to 2 GiB of freed memory for what it allocates next; whether the C library can.

    glibc gives large blocks back to the system at once, and a step of training frees and takes hundreds of MiB: it
    pays for every page anew. See benchmarks/training.py for what that costs. Elsewhere than on glibc nothing is done.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # not glibc; no such symbol; no C library to open by None
        return False
    return bool(mallopt(M_MMAP_MAX, 0) and mallopt(M_TRIM_THRESHOLD, KEPT))
