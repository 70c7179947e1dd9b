"""Settings of a process, made before torch is imported: how long threads spin, and how memory is kept.

LOG.md has measurements of each. A value that the user has set stays.
"""

from __future__ import annotations

import ctypes
import os

SPINCOUNT = "2000"
"""How long a thread spins before it sleeps, as libgomp counts; LOG.md has what was measured."""
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
"""Their numbers in glibc's ``mallopt``."""
_OF_LIBRARY = {
    _TRIM_THRESHOLD: ("MALLOC_TRIM_THRESHOLD_", 2**31 - 1),
    _MMAP_THRESHOLD: ("MALLOC_MMAP_THRESHOLD_", 2**30),
}


def prepare() -> None:
    """Make the settings; call it before torch is imported.

    By default, waiting threads spin for long, and two such programs on the same cores slow each other down more than
    tenfold; a short spin costs a program that runs alone up to a fifth where steps are small. Tensors are allocated and
    freed with each layer: where the C library returns them to the system, every page must be mapped again.
    """
    os.environ.setdefault("GOMP_SPINCOUNT", SPINCOUNT)
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    keep_memory()


def keep_memory() -> None:
    """Let glibc keep freed memory; other C libraries are not changed."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if os.name == "posix" else None
    for number, (variable, value) in _OF_LIBRARY.items():
        if mallopt is not None and variable not in os.environ:
            mallopt(number, value)
