"""The interface of a control, and the registry of kinds.

All levels of a control are in stacked parameters. A weight per token and level determines the share of each level in a
token: one-hot weights in training, any mix at inference. A control may put ids into the control slot, act inside the
model, or both.

R rows, T tokens per row, K levels, D size of the hidden states.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from transformers import PreTrainedModel

from meetlm.config.registry import Registry
from meetlm.config.settings import Settings
from meetlm.data.encoding import Encoder, Placement, Scope
from meetlm.data.example import Weights
from meetlm.data.levels import LevelSpace
from meetlm.data.prompt_format import PromptFormat


class ControlSettings(Settings):
    """Settings that all controls share; a subclass fixes ``kind`` and adds its own."""

    kind: str = Field(description="kind of control")
    placement: Placement = Field("first", description="position of the control slot: first, or before_response")

    @model_validator(mode="before")
    @classmethod
    def _without_levels(cls, value: Any) -> Any:
        """Accept the levels that runs of version 0.1 have in their settings."""
        if not isinstance(value, dict) or "levels" not in value:
            return value
        if list(value["levels"]) not in (["bad", "good"], ["good"]):
            raise ValueError("remove levels: they follow from the data (data.levels.names sets their names)")
        return {name: setting for name, setting in value.items() if name != "levels"}


class Control(nn.Module, ABC):
    """One control with K levels.

    Args:
        settings: The control's settings.
        levels: The K levels, in the order of the stacked parameters.

    Attributes:
        slots: For each level, the ids of its control slot: K lists, empty for a control without a slot.
        scope: Tokens that the level weights act on: ``all`` of a sequence, or the ``response``, from the last token of
            the prompt on, which predicts its first token.
        routing: Level weights for the control's layers during a forward pass; ``None`` for controls that change no
            layer. It must be the same when gradient checkpointing recomputes a layer in backward.
    """

    slots: list[list[int]]

    def __init__(self, settings: ControlSettings, levels: LevelSpace) -> None:
        super().__init__()
        self.settings, self.levels = settings, levels
        self.scope: Scope = "all"
        self.routing: Any = None

    def slot(self, weights: Weights) -> list[int]:
        """Return the ids of the control slot for level weights [K].

        These are the slots of each attribute's heaviest level, in the order of the attributes; an attribute without a
        weight has no slot.
        """
        return [token for level in self.levels.heaviest(weights) for token in self.slots[level]]

    def weights_failure_reason(self, weights: Weights) -> str | None:
        """Return why the control cannot take level weights [K]; ``None`` if it can."""
        del weights
        return None

    def encoder(self, prompt_format: PromptFormat, num_embeddings: int | None = None) -> Encoder:
        """Return the encoder of examples for this control.

        Args:
            prompt_format: Turns text into ids.
            num_embeddings: Number of ids with an embedding in the model, if known.
        """
        placement = self.settings.placement
        return Encoder(prompt_format, self.levels, self.slot, placement, num_embeddings, self.scope)

    def is_identity(self) -> bool:
        """Return whether every level equals the base model, as for no control or an untrained LoRA."""
        return False

    def attach(self, lm: PreTrainedModel) -> None:
        """Replace the forward methods of layers of ``lm``, where the control acts inside the model. Called once."""

    def set_level_weights(self, weights: Tensor | None) -> None:
        """Set the level weights [R, T, K] of the coming forward pass, for a control that acts inside the model.

        With ``None`` the control does nothing.
        """

    def embed(self, input_ids: Tensor, weights: Tensor | None, embedding: nn.Module) -> Tensor:
        """Return the input embeddings [R, T, D] of a sequence.

        Args:
            input_ids: Ids [R, T], including the virtual ids of a control slot.
            weights: Level weights [R, T, K]; ``None`` if no id is virtual.
            embedding: The model's own embedding of plain ids.
        """
        del weights
        embeddings: Tensor = embedding(input_ids)
        return embeddings

    @abstractmethod
    def adapter_state(self, weights: Weights) -> dict[str, Tensor]:
        """Return the tensors of a level or mix, by its weights [K], with PEFT's names; empty without parameters."""

    @abstractmethod
    def peft_config(self, weights: Weights) -> dict[str, Any] | None:
        """Return the control's part of PEFT's ``adapter_config.json``; ``None`` if PEFT has no such adapter."""


Build = Callable[[Any, LevelSpace, PreTrainedModel, Callable[[str], list[int]], torch.Generator], Control]
"""Builds a control from settings, levels, the language model, a tokenizer of plain text, and a seeded generator."""


class ControlKind:
    """One entry of the registry.

    Args:
        settings: The class of its settings.
        build: Builds the control.
        has_parameters: Whether it has parameters to train.
        has_slot: Whether it has a control slot, and so can appear more than once in a sequence.
    """

    def __init__(
        self, settings: type[ControlSettings], build: Build, *, has_parameters: bool = True, has_slot: bool = True
    ) -> None:
        self.settings, self.build, self.has_parameters, self.has_slot = settings, build, has_parameters, has_slot


CONTROLS: Registry[ControlKind] = Registry("control")
