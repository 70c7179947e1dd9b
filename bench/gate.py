"""How a worker talks with the driver: an event a line on its standard output, a word a line on its standard input.

Between two steps a worker stands at the gate, in a blocked read, and uses no CPU. What it times is one whole turn of
its loop: from the gate's opening until it stands there again, so collation and logging count as well as the step.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import sys
from collections.abc import Iterable
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from torch import Tensor, nn


class Gate:
    """Events out, permission in. Whatever else prints goes to standard error.

    Args:
        device: Of the work: what was given to a GPU is waited for, and its memory is what counts.

    Attributes:
        memory: Watches this process.
    """

    def __init__(self, device: str = "cpu") -> None:
        self._out = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)
        self._cuda = device == "cuda"
        self.memory = GpuMemory() if self._cuda else Memory()
        self._opened = 0.0

    def ready(self, next_: str, **event: Any) -> str:
        """Say that all is prepared, and wait; the memory in use now is what counts as loaded.

        Args:
            next_: What comes when the gate opens: ``reference`` or ``step``.
            event: More to tell.

        Returns:
            What the driver said: ``go``, ``profile``, or what a program asks for.
        """
        self.memory.start()
        return self._wait({"next": next_, **event})

    def done(self, next_: str = "step", **event: Any) -> str:
        """Report what came after the gate had opened, and wait again; return what the driver said.

        A program that times itself gives its own ``seconds``.
        """
        if self._cuda:
            torch.cuda.synchronize()
        seconds = perf_counter() - self._opened
        return self._wait({"seconds": seconds, "next": next_, "above_mb": self.memory.above(), **event})

    def _wait(self, event: dict[str, Any]) -> str:
        print(json.dumps(event), file=self._out, flush=True)
        word = sys.stdin.readline().strip()
        if not word:
            os._exit(0)  # the driver has all it wants; nothing of a worker is kept
        self._opened = perf_counter()
        return word


class Memory:
    """Peak resident memory above what is loaded, gradients and Adam's two moments counted as loaded too."""

    def __init__(self) -> None:
        self._base = self._later = 0

    def trains(self, parameters: Iterable[nn.Parameter]) -> None:
        """Say what is trained: its gradients and moments come later, and are 12 bytes a number in f32."""
        self._later = sum(3 * p.numel() * p.element_size() for p in parameters if p.requires_grad)

    def start(self) -> None:
        """Take what is resident now as loaded, and forget the peak of loading."""
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")
        self._base = _status("VmRSS")

    def above(self) -> float:
        """Return the peak since the start, in MB above loaded weights, gradients and optimizer state."""
        return (self._peak() - self._base - self._later) / 1e6

    def _peak(self) -> int:
        return _status("VmHWM")


class GpuMemory(Memory):
    """The same of what tensors take on the GPU."""

    def start(self) -> None:
        """Take what is there now as loaded, and forget the peak of loading."""
        gc.collect()
        self._base = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()

    def _peak(self) -> int:
        return torch.cuda.max_memory_allocated()


def own_memory(modules: Iterable[nn.Module]) -> None:
    """Copy weights out of the file they are mapped from: pages of it are resident only once they are used."""
    tensors: list[Tensor] = [t for module in modules for t in (*module.parameters(), *module.buffers())]
    for tensor in tensors:
        tensor.data = tensor.data.clone()


def _status(field: str) -> int:
    """Return a field of this process's status in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise KeyError(field)
