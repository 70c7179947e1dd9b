"""Makes any ``transformers.Trainer`` stand at the gate before each optimizer step and tell what the last one was."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from gate import Gate
from jobs import PROFILE
from step_profile import StepProfile
from torch import Tensor
from transformers import Trainer, TrainerCallback

About = Callable[[int], dict[str, Any]]
"""More about a step, by its number from 0."""


class TurnsMixin:
    """Goes before a Trainer's class: sums the losses of a step as the Trainer itself does for its log.

    Attributes:
        turn_loss: Of the step under way.
        turn_tokens: Real tokens read in it, where the batch says.
    """

    turn_loss = 0.0
    turn_tokens = 0

    def training_step(self, model: Any, inputs: dict[str, Any], num_items_in_batch: Any = None) -> Tensor:
        """Train, and note the loss and the tokens."""
        if "attention_mask" in inputs:
            self.turn_tokens += int(inputs["attention_mask"].sum())
        elif "input_ids" in inputs:  # padding-free
            self.turn_tokens += inputs["input_ids"].numel()
        loss: Tensor = super().training_step(model, inputs, num_items_in_batch)  # type: ignore[misc]
        self.turn_loss += float(loss)
        return loss


class Turns(TrainerCallback):
    """One turn of the loop for each opening of the gate.

    Args:
        trainer: With :class:`TurnsMixin`.
        gate: Of this process.
        first: What to tell when all is prepared.
        about: More about each step; without it the tokens of the trainer's own batches are told.
        profile: Taken of a step that the driver asks to profile.
    """

    def __init__(
        self,
        trainer: Trainer,
        gate: Gate,
        first: dict[str, Any],
        about: About | None = None,
        profile: StepProfile | None = None,
    ) -> None:
        self.trainer, self.gate, self.first, self.about, self.profile = trainer, gate, first, about, profile
        self._steps = -1
        self._word = ""

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Tell of the turn that ends here, and wait for the next."""
        if self._steps < 0:
            self._word = self.gate.ready("step", **self.first)
        else:
            more = self.about(self._steps) if self.about else {"tokens": self.trainer.turn_tokens}
            if self._word == PROFILE and self.profile:
                more["profile"] = self.profile.stop()
            self._word = self.gate.done(loss=self.trainer.turn_loss, **more)
        self.trainer.turn_loss, self.trainer.turn_tokens = 0.0, 0
        self._steps += 1
        if self._word == PROFILE and self.profile:
            self.profile.start()
