"""Hand-written prompts in the control slot (Chain of Hindsight as the paper runs it), and no control at all."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from transformers import PreTrainedModel

from meetlm.config.errors import ConfigError
from meetlm.controls.base import CONTROLS, Control, ControlKind, ControlSettings


class TextSettings(ControlSettings):
    """Settings of the hand-written control."""

    kind: Literal["text"] = "text"
    prompts: dict[str, str] = Field(
        {"good": "A good conversation is", "bad": "A bad conversation is"},
        description="the text of each level (the paper's for HH, section 4.2, by default)",
    )


class TextControl(Control):
    """A hand-written text per level; nothing of it is trained.

    Raises:
        ConfigError: A level has no text.
    """

    mixes: ClassVar[bool] = False

    def __init__(self, settings: TextSettings, tokenize: Callable[[str], list[int]]) -> None:
        super().__init__(settings)
        self.slots = []
        for level in settings.levels:
            if not settings.prompts.get(level):
                raise ConfigError(f"control.prompts: no text for level {level!r}")
            self.slots.append(tokenize(settings.prompts[level]))

    def attach(self, lm: PreTrainedModel) -> None:
        """Do nothing: the text is in the ids."""

    def weigh(self, weights: Tensor) -> None:
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
) -> TextControl:
    del lm, generator
    return TextControl(settings, words)


CONTROLS.register("text")(ControlKind(TextSettings, _build))
