"""Settings of a process that trains or generates, made before torch is loaded: how threads wait, how memory is kept.

LOG.md has what each was measured to do. All of them leave a setting of the user's own as it is.
"""

from __future__ import annotations

import ctypes
import os

SPINCOUNT = "2000"
"""How long a thread spins before it sleeps, as libgomp counts; LOG.md has what was measured."""
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
"""glibc's numbers for them in ``mallopt``."""
_OF_LIBRARY = {
    _TRIM_THRESHOLD: ("MALLOC_TRIM_THRESHOLD_", 2**31 - 1),
    _MMAP_THRESHOLD: ("MALLOC_MMAP_THRESHOLD_", 2**30),
}


def prepare() -> None:
    """Make the settings. Call it before torch is imported.

    Threads spin for long while they wait by default, and two such programs on the same cores slow each other down
    tenfold and more; a short spin costs one that is alone up to a fifth where steps are small. Tensors come and go with
    each layer: where the C library gives them back to the system, each is paid for anew, page by page.
    """
    os.environ.setdefault("GOMP_SPINCOUNT", SPINCOUNT)
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    keep_memory()


def keep_memory() -> None:
    """Let glibc keep what is given back to it; other C libraries stay as they are."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if os.name == "posix" else None
    for number, (variable, value) in _OF_LIBRARY.items():
        if mallopt is not None and variable not in os.environ:
            mallopt(number, value)
