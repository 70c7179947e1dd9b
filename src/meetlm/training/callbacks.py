"""Trainer callbacks: ``metrics.jsonl`` on disk and the progress that a reporter shows."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from meetlm.config.files import explain_write_errors, write_atomic
from meetlm.config.journal import Journal
from meetlm.config.reporter import Progress


class UseCurrentIntervals(TrainerCallback):
    """Logs and saves at the intervals of the current call; a resumed Trainer would use those of its checkpoint."""

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Set the intervals."""
        state.compute_steps(args, state.max_steps)  # type: ignore[no-untyped-call]


class MetricsWriter(TrainerCallback):
    """Appends a line to ``metrics.jsonl`` per logged step: loss, loss per level, learning rate, tokens per second."""

    def __init__(self, path: Path) -> None:
        self.path, self._since = path, time.perf_counter()

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Start the clock; remove lines after the step that training resumes from."""
        self._since = time.perf_counter()
        entries = _entries_until(self.path, state.global_step)
        write_atomic(self.path, "".join(json.dumps(entry) + "\n" for entry in entries))

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        """Write the line."""
        if not logs or "loss" not in logs:
            return
        now = time.perf_counter()
        logs["tokens_per_second"] = logs["input_tokens"] / (now - self._since)
        self._since = now
        with explain_write_errors(self.path), self.path.open("a") as file:
            file.write(json.dumps({"step": state.global_step, **logs}) + "\n")


def logged_seconds(metrics: Path, step: int) -> float:
    """Return the seconds that the logged steps up to ``step`` took, from ``metrics.jsonl``."""
    return float(sum(entry["input_tokens"] / entry["tokens_per_second"] for entry in _entries_until(metrics, step)))


def _entries_until(metrics: Path, step: int) -> list[dict[str, Any]]:
    """Return the complete lines of the steps up to ``step``; none if there is no file."""
    return [entry for entry in Journal(metrics).entries if entry["step"] <= step]


class ShowProgress(TrainerCallback):
    """Shows optimizer steps, loss per level and tokens per second.

    Args:
        progress: Progress of the stage, in optimizer steps; those before a resumed step are counted already.
    """

    def __init__(self, progress: Progress) -> None:
        self._progress = progress

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Advance by one step."""
        self._progress.advance()

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        """Show the losses."""
        if logs and "loss" in logs:
            prefixes = ("loss/", "rewards/margins", "rewards/accuracies")
            values = {key.split("/")[1]: f"{value:.3f}" for key, value in logs.items() if key.startswith(prefixes)}
            self._progress.show(**values, **{"tok/s": f"{logs.get('tokens_per_second', 0):.0f}"})
