"""Hand-written text in the control slot (Chain of Hindsight, Liu et al., 2023, as in the paper's section 4.2)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor
from transformers import PreTrainedModel

from meetlm.config.errors import nearest
from meetlm.controls.base import CONTROLS, Control, ControlKind, ControlSettings


class TextSettings(ControlSettings):
    """Settings of the hand-written control."""

    kind: Literal["text"] = "text"
    prompts: dict[str, str] = Field(
        {"good": "A good conversation is", "bad": "A bad conversation is"},
        description="text of each level; the default is the paper's for HH (section 4.2)",
    )

    @model_validator(mode="after")
    def _check_prompts(self) -> Self:
        for level in self.levels:
            if not self.prompts.get(level):
                raise ValueError(f"prompts: no text for level {level!r}")
        for level in self.prompts:
            if level not in self.levels:
                raise ValueError(f"prompts: unknown level {level!r}{nearest(level, self.levels)}")
        return self


class SlotText(Control):
    """A control without parameters: plain ids in the slot, or an empty slot.

    Args:
        settings: Settings with the levels.
        slots: The ids of each level.
    """

    can_mix_levels: ClassVar[bool] = False

    def __init__(self, settings: ControlSettings, slots: list[list[int]]) -> None:
        super().__init__(settings)
        self.slots = slots

    def is_identity(self) -> bool:
        """Return whether all slots are empty."""
        return not any(self.slots)

    def level_state(self, level: int) -> dict[str, Tensor]:
        """Return an empty dict: there are no parameters."""
        del level
        return {}

    def peft_config(self) -> dict[str, Any] | None:
        """Return ``None``: a text is not an adapter."""
        return None


def _build(
    settings: TextSettings,
    lm: PreTrainedModel,
    tokenize: Callable[[str], list[int]],
    generator: torch.Generator,
) -> SlotText:
    del lm, generator
    return SlotText(settings, [tokenize(settings.prompts[level]) for level in settings.levels])


CONTROLS.register("text")(ControlKind(TextSettings, _build, has_parameters=False))
