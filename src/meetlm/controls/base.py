"""The interface of a control, and the registry of kinds.

All levels of a control live in stacked parameters; a weight per token and level says how much of each level a token
sees (one-hot in training, any mix at inference). A control may put ids into the control slot, act inside the model,
or both.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from pydantic import Field, field_validator
from torch import Tensor, nn
from transformers import PreTrainedModel

from meetlm.config.registry import Registry
from meetlm.config.settings import Settings
from meetlm.data.encoding import Placement


class ControlSettings(Settings):
    """What every control's settings share; a subclass fixes ``kind`` and adds its own."""

    kind: str = Field(description="which control")
    levels: tuple[str, ...] = Field(("bad", "good"), description="names, worst first: bad and good, or good alone")
    placement: Placement = Field("first", description="where the control slot stands: first, or before_response")

    @field_validator("levels")
    @classmethod
    def _apart(cls, levels: tuple[str, ...]) -> tuple[str, ...]:
        twice = sorted({name for name in levels if levels.count(name) > 1})
        if not levels or twice:
            raise ValueError(f"two controls are called {twice[0]!r}" if twice else "a control has at least one level")
        return levels


class Control(nn.Module, ABC):
    """One control with K levels.

    Args:
        settings: The control's settings.

    Attributes:
        slots: For each level, the ids of its control slot (K lists, empty where the control puts nothing there).
        can_mix_levels: Whether level weights other than one-hot mean anything to it.
    """

    can_mix_levels: ClassVar[bool] = True
    slots: list[list[int]]

    def __init__(self, settings: ControlSettings) -> None:
        super().__init__()
        self.settings = settings

    @property
    def levels(self) -> tuple[str, ...]:
        """The names of the levels, in the order of the stacked parameters."""
        return self.settings.levels

    def is_identity(self) -> bool:
        """Whether the model computes what it does without a control, whatever the levels: no control, a fresh LoRA."""
        return False

    @abstractmethod
    def attach(self, lm: PreTrainedModel) -> None:
        """Hook ``lm`` so that it follows the weights of :meth:`set_level_weights`. Called once."""

    @abstractmethod
    def set_level_weights(self, weights: Tensor) -> None:
        """Set the level weights of the coming forward pass.

        They stay in force until the next call: gradient checkpointing runs parts of the forward again in backward.

        Args:
            weights: [R, T, K], or [R, 1, K] for rows of one level each.
        """

    @abstractmethod
    def embed(self, input_ids: Tensor, weights: Tensor, embedding: nn.Module) -> Tensor:
        """Return input embeddings [R, T, D] of ids [R, T] in which virtual ids may stand."""

    @abstractmethod
    def level_state(self, level: int) -> dict[str, Tensor]:
        """Return the tensors of one level as PEFT names them; empty for a control with no parameters."""

    @abstractmethod
    def peft_config(self) -> dict[str, Any] | None:
        """Return the control's part of PEFT's ``adapter_config.json``, or ``None`` where PEFT cannot express it."""


Build = Callable[[Any, PreTrainedModel, Callable[[str], list[int]], torch.Generator], Control]
"""Makes a control from its settings, the model it will hook, a tokenizer of plain words, and a seeded generator."""


class ControlKind:
    """One entry of the registry.

    Args:
        settings: The class of its settings.
        build: Makes it.
        has_parameters: Whether it has parameters.
        has_slot: Whether it has a control slot, so that it can speak more than once in a sequence.
    """

    def __init__(
        self, settings: type[ControlSettings], build: Build, *, has_parameters: bool = True, has_slot: bool = True
    ) -> None:
        self.settings, self.build, self.has_parameters, self.has_slot = settings, build, has_parameters, has_slot


CONTROLS: Registry[ControlKind] = Registry("control")
