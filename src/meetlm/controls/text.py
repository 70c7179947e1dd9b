"""Hand-written text in the control slot (Chain of Hindsight, Liu et al., 2023, as in the paper's section 4.2)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor
from transformers import PreTrainedModel

from meetlm.config.errors import ConfigError, nearest
from meetlm.controls.base import CONTROLS, Control, ControlKind, ControlSettings
from meetlm.data.example import Weights
from meetlm.data.levels import LevelSpace


class TextSettings(ControlSettings):
    """Settings of the hand-written control."""

    kind: Literal["text"] = "text"
    prompts: dict[str, str] = Field(
        {"good": "A good conversation is", "bad": "A bad conversation is"},
        description="text of each level; the default is the paper's for HH (section 4.2)",
    )


class SlotText(Control):
    """A control without parameters: plain ids in the slot, or an empty slot.

    Args:
        settings: The control's settings.
        levels: The levels.
        slots: The ids of each level.
    """

    def __init__(self, settings: ControlSettings, levels: LevelSpace, slots: list[list[int]]) -> None:
        super().__init__(settings, levels)
        self.slots = slots

    def weights_failure_reason(self, weights: Weights) -> str | None:
        """Return why not, for anything but one level per attribute: a text cannot be mixed with another."""
        if weights == self.levels.weights(self.levels.heaviest(weights)):
            return None
        return f"a control of kind {self.settings.kind!r} takes one level at a time, not a mix; use guidance instead"

    def is_identity(self) -> bool:
        """Return whether all slots are empty."""
        return not any(self.slots)

    def adapter_state(self, weights: Weights) -> dict[str, Tensor]:
        """Return an empty dict: there are no parameters."""
        del weights
        return {}

    def peft_config(self, weights: Weights) -> dict[str, Any] | None:
        """Return ``None``: a text is not an adapter."""
        del weights
        return None


def _build(
    settings: TextSettings,
    levels: LevelSpace,
    lm: PreTrainedModel,
    tokenize: Callable[[str], list[int]],
    generator: torch.Generator,
) -> SlotText:
    del lm, generator
    for level in levels:
        if not settings.prompts.get(level):
            raise ConfigError(f"control.prompts: no text for level {level!r}; set --control.prompts.{level} TEXT")
    for level in settings.prompts:
        if level not in levels and len(levels) > 1:  # one level alone may have the default texts of two
            raise ConfigError(f"control.prompts: unknown level {level!r}{nearest(level, levels)}")
    return SlotText(settings, levels, [tokenize(settings.prompts[level]) for level in levels])


CONTROLS.register("text")(ControlKind(TextSettings, _build, has_parameters=False))
