"""SIGTERM and Ctrl-C in training: finish the optimizer step, save a checkpoint, then let the signal have its effect."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any, Self

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from meetlm.config.reporter import Reporter
from meetlm.config.world import World

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class SaveWhenSignalled(TrainerCallback):
    """Saves a checkpoint after the optimizer step in which a signal arrives, then raises the signal again.

    It is a context manager around the training. A second signal has its effect at once. Signals reach only the main
    thread; in another thread this does nothing. The processes of a job agree on the step, whichever of them has
    received the signal.

    Args:
        world: The processes of the job.
        reporter: Shows what is being waited for.
    """

    def __init__(self, world: World, reporter: Reporter) -> None:
        self._world, self._reporter = world, reporter
        self._handlers: dict[signal.Signals, Any] = {}
        self._received: signal.Signals | None = None
        self._is_announced = False

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self._handlers = {number: signal.signal(number, self._receive) for number in SIGNALS}
        return self

    def __exit__(self, *error: object) -> None:
        self._restore()
        if self._received is not None and error[0] is None:  # it arrived after the last step
            signal.raise_signal(self._received)

    def on_substep_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Announce the checkpoint; not in the handler, which may have interrupted another message."""
        if self._received is not None and not self._is_announced:
            self._is_announced = True
            self._reporter.message(
                f"{self._received.name}: saving a checkpoint after optimizer step {state.global_step + 1}; "
                "a second signal ends the run at once"
            )

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Ask for a checkpoint."""
        if self._world.size > 1:
            counts = torch.tensor([float(self._received == number) for number in SIGNALS])
            received = [number for number, count in zip(SIGNALS, self._world.sum(counts), strict=True) if count > 0]
            self._received = received[-1] if received else None
        if self._received is not None:
            control.should_save = True

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Raise the signal again, now that the checkpoint is on disk."""
        if self._received is not None:
            self._reporter.message(f"saved checkpoint-{state.global_step}")
            self._restore()
            signal.raise_signal(self._received)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self._received is not None:
            self._restore()
            signal.raise_signal(number)
        self._received = signal.Signals(number)

    def _restore(self) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        self._handlers = {}
