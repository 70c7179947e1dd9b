"""Trainer callbacks: ``metrics.jsonl`` on disk and the progress that a reporter shows."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

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
        lines = _lines_until(self.path, state.global_step)
        self.path.write_text("".join(line + "\n" for line in lines))

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
        with self.path.open("a") as file:
            file.write(json.dumps({"step": state.global_step, **logs}) + "\n")


def logged_seconds(metrics: Path, step: int) -> float:
    """Return the seconds that the logged steps up to ``step`` took, from ``metrics.jsonl``."""
    entries = (json.loads(line) for line in _lines_until(metrics, step))
    return float(sum(entry["input_tokens"] / entry["tokens_per_second"] for entry in entries))


def _lines_until(metrics: Path, step: int) -> list[str]:
    """Return the complete lines of the steps up to ``step``; none where there is no file."""
    lines = metrics.read_text().splitlines() if metrics.exists() else []
    return [line for line in lines if _step_of(line) <= step]


def _step_of(line: str) -> float:
    """Return the step of a line; infinity for a line that is incomplete because the process was killed."""
    try:
        return float(json.loads(line)["step"])
    except json.JSONDecodeError:
        return float("inf")


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
