"""Makes any ``transformers.Trainer`` wait at the gate before each optimizer step and report the step before."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from gate import Gate
from torch import Tensor
from transformers import Trainer, TrainerCallback


class TurnsMixin:
    """Comes before a Trainer's class: sums the losses of a step as the Trainer itself does for its log.

    Attributes:
        turn_loss: Loss of the current step.
        turn_tokens: Real tokens read in it, where the batch shows them.
    """

    turn_loss = 0.0
    turn_tokens = 0

    def training_step(self, model: Any, inputs: dict[str, Any], num_items_in_batch: Any = None) -> Tensor:
        """Train, and record loss and tokens."""
        if "attention_mask" in inputs:
            self.turn_tokens += int(inputs["attention_mask"].sum())
        elif "input_ids" in inputs:  # padding-free
            self.turn_tokens += inputs["input_ids"].numel()
        loss: Tensor = super().training_step(model, inputs, num_items_in_batch)  # type: ignore[misc]
        self.turn_loss += float(loss)
        return loss


class Turns(TrainerCallback):
    """One step of the loop per opening of the gate.

    Args:
        trainer: Trainer with :class:`TurnsMixin`.
        gate: Gate of this process.
        startup: Report before the first step.
        tokens_of: Real tokens of a step by its number from 0; by default those of the trainer's own batches.
    """

    def __init__(
        self, trainer: Trainer, gate: Gate, startup: dict[str, Any], tokens_of: Callable[[int], int] | None = None
    ) -> None:
        self.trainer, self.gate, self.startup, self.tokens_of = trainer, gate, startup, tokens_of
        self._step = -1

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Report the step that ends here, and wait for the next."""
        if self._step < 0:
            self.gate.ready("step", **self.startup)
        else:
            tokens = self.tokens_of(self._step) if self.tokens_of else self.trainer.turn_tokens
            self.gate.done(loss=self.trainer.turn_loss, tokens=tokens)
        self.trainer.turn_loss, self.trainer.turn_tokens = 0.0, 0
        self._step += 1
