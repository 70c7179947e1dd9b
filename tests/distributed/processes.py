"""Groups of real processes, connected by gloo, that run the functions of ``jobs``; started once for all tests."""

from __future__ import annotations

import os
import socket
import tempfile
import traceback
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import torch.multiprocessing as mp

SECONDS = 600
"""Longest time of a job."""


class Processes:
    """A group of processes.

    Args:
        size: Number of processes.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        context = mp.get_context("spawn")
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        pipes = [context.Pipe() for _ in range(size)]
        cache = tempfile.mkdtemp(prefix="meetlm-cache-")
        self._processes = [
            context.Process(target=_serve, args=(rank, size, port, cache, pipe), daemon=True)
            for rank, (_, pipe) in enumerate(pipes)
        ]
        self._connections = [connection for connection, _ in pipes]
        for process in self._processes:
            process.start()

    def run(self, name: str, **arguments: Any) -> list[Any]:
        """Run a function of ``jobs`` in every process and return the results, in order.

        Raises:
            RuntimeError: It failed in a process; the message has the traceback.
        """
        for connection in self._connections:
            connection.send((name, arguments))
        results = {}
        while len(results) < self.size:
            missing = [connection for connection in self._connections if connection not in results]
            ready = [item for item in wait(missing, SECONDS) if isinstance(item, Connection)]
            assert ready, f"{name} takes longer than {SECONDS} s in {len(missing)} of {self.size} processes"
            for connection in ready:
                is_done, results[connection] = connection.recv()
                if not is_done:
                    self.stop()
                    raise RuntimeError(results[connection])
        return [results[connection] for connection in self._connections]

    def stop(self) -> None:
        """End the processes."""
        for process in self._processes:
            process.kill()
            process.join()


def _serve(rank: int, size: int, port: int, cache: str, pipe: Connection) -> None:
    variables = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, "LOCAL_WORLD_SIZE": size, "MASTER_PORT": port}
    os.environ |= {name: str(value) for name, value in variables.items()}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MEETLM_CACHE": str(Path(cache) / str(rank)), "OMP_NUM_THREADS": "1"}
    import torch

    from distributed import jobs
    from meetlm.config.world import connect

    connect(torch.device("cpu"))
    while True:
        try:
            name, arguments = pipe.recv()
        except EOFError:
            return
        try:
            pipe.send((True, getattr(jobs, name)(**arguments)))
        except Exception:
            pipe.send((False, f"process {rank + 1} of {size}: {traceback.format_exc()}"))
