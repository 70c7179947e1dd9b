"""What a process holds for a run's tensors on a CPU: more than they are, as its C library cannot use all it got back.

glibc before 2.38 cannot put an aligned block where one of the same size was, once a small object has taken the gap
beside it: a process of PyTorch then holds up to half as much again as its tensors are. How much is up to the order of
the blocks, so that of a dry run is replayed against this machine's own library, in a process of its own. It takes the
blocks and writes nothing into them, which costs address space and hardly any memory.

``python -m meetlm.diagnostics.allocator`` is that process: events on its standard input, the bytes on its output.
"""

from __future__ import annotations

import ctypes
import math
import platform
import subprocess
import sys
from array import array
from collections.abc import Iterable, Iterator

from meetlm.config.errors import MeetError
from meetlm.config.process import HUGE_BLOCK, huge_blocks, keep_memory

WORKING = 180 * 10**6
"""Bytes that libraries take for themselves once they compute: packed operands, compiled kernels, Python's objects.
It is what a dry run alone missed of the steps that the benchmark measures, least where they take little else."""
NOTE = 0
"""The key of an event that is no block but says what begins: one of the three below."""
DONE, FORWARD, BACKWARD = 0, 1, 2

ALIGNMENT, PAGE = 64, 4096
"""Of PyTorch's blocks on a CPU; of those that it asks huge pages for."""
BESIDE_BLOCK = (24,)
"""Sizes of the small objects that come and go with a block: its version counter."""
BESIDE_GRAPH = (16, 16, 32)
"""Sizes of those that a block made in a forward pass brings along until the graph is dropped: edges and reference
counts of its nodes. They are the numbers of such objects, by block, at the end of a forward pass of SmolLM2 with LoRA;
larger ones are too large for the gaps and change nothing."""


def replays() -> bool:
    """Whether this machine's C library says what it holds: glibc does."""
    return platform.libc_ver()[0] == "glibc"


def held(events: Iterable[tuple[int, int]]) -> int:
    """Return the most bytes that a process holds at a time, loaded code and data apart: blocks, and ``WORKING``.

    Args:
        events: A block's key and its bytes as it is taken, or its key and -1 as it is given back, and notes.

    Raises:
        MeetError: The library refused a block.
    """
    told = array("q", [number for event in events for number in event])
    done = subprocess.run([sys.executable, "-m", __name__], input=told.tobytes(), capture_output=True)
    if done.returncode:
        raise MeetError(f"the blocks of a run could not be replayed: {done.stderr.decode().strip()}")
    return int(done.stdout) + WORKING


class _Info(ctypes.Structure):
    """glibc's ``struct mallinfo2``."""

    _fields_ = [
        (name, ctypes.c_size_t)
        for name in (
            *("arena", "ordblks", "smblks", "hblks", "hblkhd"),
            *("usmblks", "fsmblks", "uordblks", "fordblks", "keepcost"),
        )
    ]


class _Library:
    """The C library of this process."""

    def __init__(self) -> None:
        self._c = ctypes.CDLL(None)
        self._c.malloc.restype = ctypes.c_void_p
        self._c.malloc.argtypes = [ctypes.c_size_t]
        self._c.posix_memalign.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_size_t]
        self._c.free.argtypes = [ctypes.c_void_p]
        self._c.mallinfo2.restype = _Info
        self._place = ctypes.c_void_p()
        self._huge = HUGE_BLOCK if huge_blocks() else math.inf
        keep_memory()

    def block(self, size: int) -> int:
        """Return a block as PyTorch takes it."""
        alignment = PAGE if size >= self._huge else ALIGNMENT
        if self._c.posix_memalign(ctypes.byref(self._place), alignment, size):
            raise SystemExit(f"no block of {size} bytes")
        return self._place.value or 0

    def small(self, sizes: Iterable[int]) -> list[int]:
        """Return small objects."""
        return [self._c.malloc(size) for size in sizes]

    def free(self, places: Iterable[int]) -> None:
        """Give back."""
        for place in places:
            self._c.free(place)

    def held(self) -> int:
        """Return the bytes that the library has from the system."""
        info = self._c.mallinfo2()
        return int(info.arena + info.hblkhd)


def _replay(events: Iterator[tuple[int, int]]) -> int:
    """Take and give back every block; return the most that was held."""
    library = _Library()
    base = most = library.held()
    taken: dict[int, list[int]] = {}
    graph: list[int] = []
    phase = DONE
    for key, size in events:
        if key == NOTE:
            phase = size
            if phase == DONE:
                library.free(graph)
                graph = []
        elif size < 0:
            library.free(taken.pop(key, []))
        else:
            taken[key] = [library.block(size), *library.small(BESIDE_BLOCK)]
            if phase == FORWARD:
                graph += library.small(BESIDE_GRAPH)
            most = max(most, library.held())
    return most - base


if __name__ == "__main__":
    numbers = array("q")
    numbers.frombytes(sys.stdin.buffer.read())
    sys.stdout.buffer.write(b"%d" % _replay(zip(numbers[0::2], numbers[1::2], strict=True)))
