"""Starts a command in several processes on this machine, through torch's launcher, and reports what ends them."""

from __future__ import annotations

import logging
import os
import sys
import tempfile
from pathlib import Path
from typing import Literal

import click

from meetlm.config.errors import RunError
from meetlm.config.world import World, connect


def is_launcher(processes: int) -> bool:
    """Return whether this process has to start the processes of ``--processes``, and is none of them.

    Raises:
        UsageError: Another launcher has started another number of processes.
    """
    size = World.from_environment().size
    if size > 1 and processes not in (1, size):
        raise click.UsageError(f"--processes is {processes}, but a launcher has started {size}: leave --processes out")
    return size == 1 and processes > 1


def join(device: Literal["auto", "cpu", "cuda"] = "auto") -> World:
    """Connect this process with the others of its job, and return it.

    Args:
        device: Device that it computes on.
    """
    world = World.from_environment()
    if world.size == 1:
        return world
    from meetlm.policy.loading import ModelSettings, device_of

    return connect(device_of(ModelSettings(device=device)))


def launch(processes: int, run: Path | None = None) -> None:
    """Run this command again in several processes, until all end or one fails; then the others are ended.

    The first process writes to the terminal. The output of the others is shown only if one of them is the first to
    fail.

    Args:
        processes: Number of processes.
        run: Folder of the run that they train, to name its last checkpoint.

    Raises:
        RunError: A process was ended by a signal, or a process other than the first has failed.
    """
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException, Std
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)  # the failure is reported below
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, cores // processes)))
    with tempfile.TemporaryDirectory() as logs:
        settings = LaunchConfig(
            min_nodes=1,
            max_nodes=1,
            nproc_per_node=processes,
            run_id="meet",
            rdzv_backend="c10d",
            rdzv_endpoint="127.0.0.1:0",
            local_addr="127.0.0.1",
            max_restarts=0,
            logs_specs=DefaultLogsSpecs(log_dir=logs, redirects=dict.fromkeys(range(1, processes), Std.ALL)),
        )
        try:
            elastic_launch(settings, sys.executable)("-m", "meetlm", *sys.argv[1:])
        except SignalException as error:
            sys.exit(128 + error.sigval)
        except ChildFailedError as error:
            rank, failure = error.get_first_failure()
            name = f"process {rank + 1} of {processes}"
            if failure.exitcode < 0:
                memory = ", perhaps for lack of memory" if failure.signal_name() == "SIGKILL" else ""
                problem = f"{name} was ended by {failure.signal_name()}{memory}"
            elif rank == 0:  # it has shown its error
                sys.exit(failure.exitcode)
            else:
                (output,) = Path(logs).rglob(f"{rank}/stderr.log")
                problem = f"{name} has failed:\n{output.read_text(errors='replace').strip()}\n"
            raise RunError(f"{problem}; {_how_to_continue(run)}") from None


def _how_to_continue(run: Path | None) -> str:
    """Return what is saved of an interrupted run, and how to continue it."""
    from meetlm.training.checkpoints import checkpoint_step

    if run is None:
        return "run the same command again"
    saved = sorted(run.glob("*/checkpoint-*"), key=lambda path: (path.stat().st_mtime, checkpoint_step(path)))
    if not saved:
        return "no checkpoint was saved yet: the same command starts again"
    return f"the last checkpoint is {saved[-1]}: run the same command again to continue"
