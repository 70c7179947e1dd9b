"""The processes of a job, as ``torchrun``, ``accelerate launch`` or ``meet train --processes`` start them.

Every process runs the same code. Each reads the data; the main process writes, and shows messages and progress. Rows to
compute are divided among the processes, and each process then has all results, in the order of the rows.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, TypeVar

from meetlm.config.errors import ConfigError, OtherProcessError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

T = TypeVar("T")

TIMEOUT = timedelta(hours=2)
"""How long a process waits for the others, such as for the main process to read the data first."""


@dataclass(frozen=True, slots=True)
class World:
    """This process and the number of all.

    Attributes:
        rank: Number of this process, from 0, the main process.
        size: Number of processes.
    """

    rank: int = 0
    size: int = 1

    @classmethod
    def from_environment(cls) -> World:
        """Return what the launcher states in the environment; a single process without a launcher."""
        return cls(int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1")))

    @classmethod
    def current(cls) -> World:
        """Return this process among those that :func:`connect` has connected, else a single process."""
        import torch.distributed as dist

        connected = dist.is_available() and dist.is_initialized()
        return cls(dist.get_rank(), dist.get_world_size()) if connected else cls()

    @property
    def is_main(self) -> bool:
        """Whether this is the process that writes and reports."""
        return self.rank == 0

    def __str__(self) -> str:
        return f"process {self.rank + 1} of {self.size}"

    def wait(self) -> None:
        """Wait until all processes have come here."""
        self._gather(None)

    def sum(self, values: Tensor) -> Tensor:
        """Return the sum of a tensor over the processes."""
        import torch.distributed as dist

        if self.size > 1:
            values = values.clone()
            dist.all_reduce(values)
        return values

    def share(self, parts: Sequence[T]) -> dict[int, T]:
        """Return the parts of the work that this process does, by their index: every ``size``-th part."""
        return {index: parts[index] for index in range(self.rank, len(parts), self.size)}

    def merge(self, results: Mapping[int, T]) -> list[T]:
        """Return the results of all processes, which :meth:`share` has divided, in the order of their indices."""
        merged = {index: result for part in self._gather(dict(results)) for index, result in part.items()}
        return [merged[index] for index in sorted(merged)]

    def from_main(self, compute: Callable[[], T]) -> T:
        """Return what ``compute`` returns in the main process, the only one that calls it.

        Raises:
            OtherProcessError: In the other processes, if it raises an error.
        """
        if self.size == 1:
            return compute()
        results: list[T] = []
        with self.main_first():
            if self.is_main:
                results.append(compute())
        return next(iter(self._gather(results)[0]))

    @contextmanager
    def main_first(self) -> Iterator[None]:
        """Let the main process complete a block before the others begin it: it fills caches that they read.

        Raises:
            OtherProcessError: In the other processes, if the main process raises an error in the block.
        """
        if not self.is_main:
            failure = self._gather(None)[0]
            if failure is not None:
                raise OtherProcessError(f"the main process has failed: {failure}")
        try:
            yield
        except Exception as error:
            if self.is_main:
                self._gather(str(error))
            raise
        if self.is_main:
            self._gather(None)

    def require_same(self, subject: str, value: str) -> None:
        """Refuse to go on if a value differs between processes, such as the hash of files on several machines.

        Raises:
            ConfigError: Names a process whose value differs from that of the main process.
        """
        values = self._gather(value)
        for rank, other in enumerate(values):
            if other != values[0]:
                raise ConfigError(
                    f"{subject}: process {rank + 1} of {self.size} has another version than process 1; every machine "
                    "needs the same files"
                )

    def _gather(self, value: T) -> list[T]:
        """Return the value of each process, in order."""
        import torch.distributed as dist

        if self.size == 1:
            return [value]
        values: list[T | None] = [None] * self.size
        dist.all_gather_object(values, value)
        return values  # type: ignore[return-value]


SINGLE = World()
"""A job of one process."""


def connect(device: torch.device) -> World:
    """Connect this process with the others of its job, and choose its GPU; a single process has nothing to do.

    Args:
        device: Type of the device that the process computes on.

    Raises:
        ConfigError: This machine has fewer GPUs than processes.
    """
    import torch
    import torch.distributed as dist

    world = World.from_environment()
    if world.size == 1 or dist.is_initialized():
        return world
    if device.type == "cuda":
        local_rank, num_gpus = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
        if local_rank >= num_gpus:
            raise ConfigError(f"{world} has no GPU: this machine has {num_gpus}; start one process per GPU")
        torch.cuda.set_device(local_rank)
    # Tensors in main memory are exchanged by gloo on every device.
    dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo", timeout=TIMEOUT)
    return world


def is_lost_connection(error: RuntimeError) -> bool:
    """Return whether an error means that another process of the job has ended."""
    if World.from_environment().size == 1:
        return False
    from torch.distributed import DistError

    return isinstance(error, DistError) or "gloo" in str(error).lower()
