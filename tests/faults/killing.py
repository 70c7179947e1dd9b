"""Commands as processes of their own, killed with SIGKILL at a moment of a phase.

The processes are forked from a server that has imported the packages and done nothing else, which saves the seconds of
the imports. A process reports when it enters and leaves the phase; the parent measures the time and kills.
"""

from __future__ import annotations

import ctypes
import importlib
import multiprocessing
import os
import random
import resource
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import wraps
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

MODULES = [f"meetlm.run.{name}" for name in ("execute", "improve", "sweep", "evaluate", "completions", "train")]
SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["killing", "meetlm.cli", "meetlm.evaluation.reward", *MODULES])

FOLDER = "result"
"""Name of the folders that commands write to: the id of a run contains it."""
WHOLE_CALLS = {
    "checkpoint": ("meetlm.training.loop:StageTrainer._save_checkpoint",),
    "diagnostics": tuple(
        f"meetlm.run.execute:{name}" for name in ("preference_accuracy", "base_model_accuracy", "reference_logps")
    ),
    "writing the model": ("meetlm.run.execute:write_result",),
    "generation": ("meetlm.run.completions:write_completions",),
    "evaluation": ("meetlm.run.evaluate:evaluate",),
    "rollouts": ("meetlm.run.improve:improve",),
    "sweep": ("meetlm.run.sweep:sweep",),
}
"""Phases that are calls of these functions."""


@dataclass(frozen=True)
class Ending:
    """How a process ended: exit code, the negative number of a signal, seconds in the phase, and whether within it."""

    code: int
    seconds: float
    in_phase: bool
    messages: str


def run(
    args: Sequence[object],
    folder: Path,
    *,
    phase: str = "",
    kill_at: float | None = None,
    broken: str = "",
    send: int = 0,
    max_file_size: int | None = None,
    unprivileged: bool = False,
) -> Ending:
    """Run ``meet`` with ``args``.

    Args:
        args: The arguments.
        folder: Folder of the process's caches and of its messages.
        phase: Name of a phase.
        kill_at: Seconds within the phase after which to kill; ``None`` for never.
        broken: Name of a deliberately wrong restore (:data:`BREAKS`).
        send: A signal to send in place of SIGKILL.
        max_file_size: Largest size of a file that the process may write, in bytes, as if the disk were full.
        unprivileged: Heed the permissions of files, also as root.
    """
    folder.mkdir(parents=True, exist_ok=True)
    receiver, sender = SERVER.Pipe(duplex=False)
    limits = max_file_size, unprivileged
    process = SERVER.Process(
        target=_child, args=([str(arg) for arg in args], str(folder), phase, broken, limits, sender)
    )
    process.start()
    sender.close()
    seconds, in_phase = 0.0, False
    while True:
        start = time.monotonic()
        wait = max(kill_at - seconds, 0) if in_phase and kill_at is not None else 300
        is_event = receiver.poll(wait)
        seconds += time.monotonic() - start if in_phase else 0
        if not is_event:
            os.kill(process.pid or 0, send) if send else process.kill()
            kill_at = None
            if not send:
                break
        elif (event := _receive(receiver)) is None:
            break
        else:
            in_phase = event
    process.join()
    while (event := _receive(receiver)) is not None:
        in_phase = event
    assert process.exitcode is not None
    return Ending(process.exitcode, seconds, in_phase, (folder / "messages").read_text())


def kill_after_first_checkpoint(args: Sequence[object], folder: Path, seconds: float) -> Ending:
    """Run ``meet`` until it is killed in step 2 when the first checkpoint is the only one; return how that run ended.

    Args:
        args: The arguments, which write to ``folder / FOLDER``.
        folder: Folder of the process, emptied before each run.
        seconds: How long step 2 takes.
    """
    draw = random.Random(0)
    for _ in range(100):
        shutil.rmtree(folder)
        killed = run(args, folder, phase="step 2", kill_at=draw.uniform(0, seconds))
        if [path.name for path in (folder / FOLDER / "step2").glob("checkpoint-*")] == ["checkpoint-2"]:
            return killed
    raise AssertionError("no kill came between the first checkpoint and the second")


def _receive(receiver: Connection) -> bool | None:
    """Return whether the process has entered or left the phase; ``None`` where it has ended."""
    try:
        return bool(receiver.recv())
    except (EOFError, OSError):
        return None


def _child(
    args: list[str], folder: str, phase: str, broken: str, limits: tuple[int | None, bool], sender: Connection
) -> None:
    os.environ["MEETLM_CACHE"] = str(Path(folder) / "cache")
    messages = os.open(Path(folder) / "messages", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(messages, 1)
    os.dup2(messages, 2)
    max_file_size, unprivileged = limits
    if max_file_size is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (max_file_size, max_file_size))
    if unprivileged:
        _heed_permissions()
    _report_phase(phase, sender.send)
    if broken:
        BREAKS[broken]()
    from meetlm.cli import main

    main(args)


def _heed_permissions() -> None:
    """Drop the capabilities by which root reads and writes what permissions forbid."""
    libc = ctypes.CDLL(None)
    header, sets = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()  # version 3, this thread
    assert libc.capget(header, sets) == 0
    for index in (0, 1):  # effective and permitted
        sets[index] &= ~0b110  # CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH
    assert libc.capset(header, sets) == 0


def _report_phase(phase: str, send: Callable[[bool], None]) -> None:
    """Report when the phase begins and ends."""

    @contextmanager
    def within() -> Iterator[None]:
        send(True)
        yield
        send(False)

    for place in WHOLE_CALLS.get(phase, ()):
        _replace(place, lambda right: wraps(right)(lambda *args, **kwargs: _call(within, right, args, kwargs)))
    if phase in ("step 1", "step 2", "between the steps"):

        def traced(right: Callable[..., Any]) -> Callable[..., Any]:
            def train(trainer: Any, *args: Any, **kwargs: Any) -> Any:
                first = trainer.stage.name == "step1"
                if phase == "between the steps":
                    send(False) if not first else None
                    result = right(trainer, *args, **kwargs)
                    send(True) if first else None
                    return result
                if phase == ("step 1" if first else "step 2"):
                    return _call(within, right, (trainer, *args), kwargs)
                return right(trainer, *args, **kwargs)

            return train

        _replace("meetlm.training.loop:StageTrainer.train", traced)


def _call(within: Any, function: Callable[..., Any], args: Any, kwargs: Any) -> Any:
    with within():
        return function(*args, **kwargs)


def _replace(place: str, change: Callable[[Callable[..., Any]], Callable[..., Any]]) -> None:
    """Replace a function, named as ``module:function`` or ``module:Class.method``."""
    module, _, name = place.partition(":")
    *path, attribute = name.split(".")
    owner: Any = importlib.import_module(module)
    for part in path:
        owner = getattr(owner, part)
    setattr(owner, attribute, change(getattr(owner, attribute)))


def _forget_random_state() -> None:
    """Restore every random state but torch's."""

    def change(right: Callable[..., Any]) -> Callable[..., Any]:
        def load(trainer: Any, checkpoint: str | None) -> None:
            import torch

            state = torch.get_rng_state()
            right(trainer, checkpoint)
            if checkpoint is not None:
                torch.set_rng_state(state)

        return load

    _replace("meetlm.training.loop:StageTrainer._load_rng_state", change)


def _forget_moment() -> None:
    """Restore every moment of the optimizer but one tensor's first."""

    def change(right: Callable[..., Any]) -> Callable[..., Any]:
        def load(trainer: Any, checkpoint: str | None) -> None:
            right(trainer, checkpoint)
            if checkpoint is not None:
                next(iter(trainer.optimizer.state.values()))["exp_avg"].zero_()

        return load

    _replace("meetlm.training.loop:StageTrainer._load_optimizer_and_scheduler", change)


def _skip_row() -> None:
    """Continue in the data one row too far."""

    def change(right: Callable[..., Any]) -> Callable[..., Any]:
        def load(trainer: Any, checkpoint: str) -> None:
            right(trainer, checkpoint)
            items = trainer.train_dataset.items
            trainer.train_dataset.items = [*items[1:], items[0]]

        return load

    _replace("meetlm.training.loop:StageTrainer._load_from_checkpoint", change)


def _forget_open_log() -> None:
    """Forget the losses since the last line of metrics."""
    _replace("meetlm.training.loop:StageTrainer.continue_log", lambda right: lambda trainer: None)


BREAKS = {
    "one random state": _forget_random_state,
    "one optimizer moment": _forget_moment,
    "one row skipped": _skip_row,
    "losses since the last log": _forget_open_log,
}


def num_words(prompt: object, completion: str) -> int:
    """Number of words: a scorer."""
    return len(completion.split())


def succeed(ending: Ending) -> Ending:
    assert ending.code == 0, ending.messages
    return ending
