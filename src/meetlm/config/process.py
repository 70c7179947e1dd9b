"""Settings of the process that must precede the import of torch: how long threads spin, freed memory, warnings.

LOG.md has measurements of each. A value that the user has set stays.
"""

from __future__ import annotations

import ctypes
import os

from meetlm.config.world import World

SPINCOUNT = "2000"
"""How long a thread spins before it sleeps, in iterations of libgomp."""
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _ARENA_MAX = -1, -3, -8
"""Numbers of parameters of glibc's ``mallopt``."""
_PARAMETERS = {
    _TRIM_THRESHOLD: ("MALLOC_TRIM_THRESHOLD_", 2**31 - 1),
    _MMAP_THRESHOLD: ("MALLOC_MMAP_THRESHOLD_", 2**30),
}


def prepare() -> None:
    """Apply the settings; call this before torch is imported.

    Waiting threads spin for long by default, and two such programs on the same cores slow each other down more than
    tenfold; a short spin costs a program that runs alone up to a fifth where steps are small. Every layer allocates and
    frees tensors: where the C library returns their memory to the system, every page must be mapped again.
    """
    os.environ.setdefault("GOMP_SPINCOUNT", SPINCOUNT)
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    if World.from_environment().size > 1:
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # DDP warns where no parameter is unused
    retain_freed_memory()


def retain_freed_memory() -> None:
    """Set glibc to retain freed memory for reuse; other C libraries are unaffected."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if os.name == "posix" else None
    for number, (variable, value) in _PARAMETERS.items():
        if mallopt is not None and variable not in os.environ:
            mallopt(number, value)


def prepare_server() -> None:
    """Bound the memory of a process that computes sequences of all lengths for days; call this before a model runs.

    oneDNN remembers how it computes each shape, up to 1024 of them: SmolLM2's took hundreds of megabytes. A thread's
    own arena in glibc grows in parts of 64 MB, each of which stays as long as anything in it is in use.
    """
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "128")
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if os.name == "posix" else None
    if mallopt is not None and "MALLOC_ARENA_MAX" not in os.environ:
        mallopt(_ARENA_MAX, 1)


def release_freed_memory() -> None:
    """Return the pages of freed memory to the system; in milliseconds, and only with glibc."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if os.name == "posix" else None
    if trim is not None:
        trim(0)
