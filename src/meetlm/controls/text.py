"""Hand-written prompts in the control slot (Chain of Hindsight as the paper runs it)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from transformers import PreTrainedModel

from meetlm.config.errors import nearest
from meetlm.controls.base import CONTROLS, Control, ControlKind, ControlSettings


class TextSettings(ControlSettings):
    """Settings of the hand-written control."""

    kind: Literal["text"] = "text"
    prompts: dict[str, str] = Field(
        {"good": "A good conversation is", "bad": "A bad conversation is"},
        description="the text of each level (the paper's for HH, section 4.2, by default)",
    )

    @model_validator(mode="after")
    def _a_text_each(self) -> Self:
        for level in self.levels:
            if not self.prompts.get(level):
                raise ValueError(f"prompts: no text for level {level!r}")
        for level in self.prompts:
            if level not in self.levels:
                raise ValueError(f"prompts: a text for {level!r}, which is no level{nearest(level, self.levels)}")
        return self


class SlotText(Control):
    """Plain ids in the slot, or none; nothing of it is trained.

    Args:
        settings: With the levels.
        slots: The ids of each level.
    """

    can_mix_levels: ClassVar[bool] = False

    def __init__(self, settings: ControlSettings, slots: list[list[int]]) -> None:
        super().__init__(settings)
        self.slots = slots

    def is_identity(self) -> bool:
        """Return whether there is no text."""
        return not any(self.slots)

    def attach(self, lm: PreTrainedModel) -> None:
        """Do nothing: the text is in the ids."""

    def set_level_weights(self, weights: Tensor) -> None:
        """Do nothing: the text is in the ids."""

    def embed(self, input_ids: Tensor, weights: Tensor, embedding: nn.Module) -> Tensor:
        """Return the plain embeddings."""
        del weights
        embedded: Tensor = embedding(input_ids)
        return embedded

    def level_state(self, level: int) -> dict[str, Tensor]:
        """Return nothing: there are no parameters."""
        del level
        return {}

    def peft_config(self) -> dict[str, Any] | None:
        """Return ``None``: a text is no adapter."""
        return None


def _build(
    settings: TextSettings,
    lm: PreTrainedModel,
    words: Callable[[str], list[int]],
    generator: torch.Generator,
) -> SlotText:
    del lm, generator
    return SlotText(settings, [words(settings.prompts[level]) for level in settings.levels])


CONTROLS.register("text")(ControlKind(TextSettings, _build, has_parameters=False))
