"""What watches the loop: ``metrics.jsonl`` on disk and progress."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from meetlm.config.reporter import Progress


class UseCurrentIntervals(TrainerCallback):
    """Logs and saves as often as this call says: a resumed Trainer takes over what its checkpoint's call said."""

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Set it."""
        state.compute_steps(args, state.max_steps)  # type: ignore[no-untyped-call]


class MetricsWriter(TrainerCallback):
    """Appends a line to ``metrics.jsonl`` for each logged step: loss, loss per level, rate, tokens per second."""

    def __init__(self, path: Path) -> None:
        self.path, self._since = path, time.perf_counter()

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Start the clock; drop lines after the step that training resumes from."""
        self._since = time.perf_counter()
        kept = _until(self.path, state.global_step)
        self.path.write_text("".join(line + "\n" for line in kept))

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
        with self.path.open("a") as out:
            out.write(json.dumps({"step": state.global_step, **logs}) + "\n")


def logged_seconds(metrics: Path, step: int) -> float:
    """Return the seconds that the logged steps up to ``step`` took, as ``metrics.jsonl`` has them."""
    lines = (json.loads(line) for line in _until(metrics, step))
    return float(sum(line["input_tokens"] / line["tokens_per_second"] for line in lines))


def _until(metrics: Path, step: int) -> list[str]:
    """The whole lines of the steps up to ``step``; none where there is no file."""
    lines = metrics.read_text().splitlines() if metrics.exists() else []
    return [line for line in lines if _step(line) <= step]


def _step(line: str) -> float:
    """The step of a line; one that was cut off by a kill belongs to no step that is kept."""
    try:
        return float(json.loads(line)["step"])
    except json.JSONDecodeError:
        return float("inf")


class ProgressCallback(TrainerCallback):
    """Reports steps, loss per level and tokens per second.

    Args:
        progress: Of the stage.
    """

    def __init__(self, progress: Progress) -> None:
        self._progress = progress

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Advance."""
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
            parts = {key: v for key, v in logs.items() if key.startswith(("loss/", "rewards/m", "rewards/a"))}
            values = {key.split("/")[1]: f"{v:.3f}" for key, v in parts.items()}
            self._progress.show(**values, **{"tok/s": f"{logs.get('tokens_per_second', 0):.0f}"})
