"""The protocol of worker and driver: one event per line on standard output, one request per line on standard input.

Between two steps a worker waits at the gate, in a blocked read, and uses no CPU. It times one whole turn of its loop:
from the opening of the gate until it waits there again, so collation and logging count as well as the step.
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
    """Writes events and waits for requests. Everything else that is printed goes to standard error.

    Args:
        device: Device of the work; on a GPU, its memory is measured and pending work is waited for.

    Attributes:
        memory: Measures the memory of this process.
    """

    def __init__(self, device: str = "cpu") -> None:
        self._out = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)
        self._cuda = device == "cuda"
        self.memory = GpuMemory() if self._cuda else Memory()
        self._opened = 0.0

    def ready(self, next_: str, **event: Any) -> str:
        """Report that everything is prepared, and wait; memory in use now counts as loaded.

        Args:
            next_: What comes when the gate opens: ``reference`` or ``step``.
            event: Further fields.

        Returns:
            The request of the driver: ``go``, or one that the program defines.
        """
        self.memory.start()
        return self._wait({"next": next_, **event})

    def done(self, next_: str = "step", **event: Any) -> str:
        """Report the work since the gate opened, and wait again; return the request of the driver.

        A program that times itself passes its own ``seconds``.
        """
        if self._cuda:
            torch.cuda.synchronize()
        seconds = perf_counter() - self._opened
        return self._wait({"seconds": seconds, "next": next_, "above_mb": self.memory.above(), **event})

    def _wait(self, event: dict[str, Any]) -> str:
        print(json.dumps(event), file=self._out, flush=True)
        request = sys.stdin.readline().strip()
        if not request:
            os._exit(0)  # the driver has finished
        self._opened = perf_counter()
        return request


class Memory:
    """Peak resident memory above what is loaded, gradients and Adam's two moments counted as loaded too."""

    def __init__(self) -> None:
        self._base = self._later = 0

    def trains(self, parameters: Iterable[nn.Parameter]) -> None:
        """Set the trained parameters: their gradients and moments come later, 12 bytes per parameter in f32."""
        self._later = sum(3 * p.numel() * p.element_size() for p in parameters if p.requires_grad)

    def start(self) -> None:
        """Count what is resident now as loaded, and reset the peak."""
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
    """The same for tensors on the GPU."""

    def start(self) -> None:
        """Count what is allocated now as loaded, and reset the peak."""
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
