"""Builds controls from their settings. Only this file imports the modules that register a kind."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Annotated, Any

import torch
from pydantic import BeforeValidator, SerializeAsAny
from transformers import PreTrainedModel

import meetlm.controls.lora
import meetlm.controls.none
import meetlm.controls.text
import meetlm.controls.virtual  # noqa: F401  registers its kinds
from meetlm.config.kinds import parse_field
from meetlm.config.settings import Settings
from meetlm.config.yaml_files import validate
from meetlm.controls.base import CONTROLS, Control, ControlSettings
from meetlm.data.levels import LevelSpace

AnyControlSettings = Annotated[
    SerializeAsAny[ControlSettings], BeforeValidator(partial(parse_field, CONTROLS, ControlSettings))
]
"""A pydantic field type that reads and writes the settings of any registered kind."""


class _ControlField(Settings):
    control: AnyControlSettings


def parse_control(value: Any, origin: str = "control") -> ControlSettings:
    """Return the settings of a control, checked by the class of the kind that ``value['kind']`` names.

    Args:
        value: A mapping.
        origin: Where the settings are from, for messages.

    Raises:
        ConfigError: The kind is missing or unknown, or a setting is wrong.
    """
    return validate(_ControlField, {"control": value}, {}, origin).control


def build_control(
    settings: ControlSettings, levels: LevelSpace, lm: PreTrainedModel, tokenize: Callable[[str], list[int]], seed: int
) -> Control:
    """Return an untrained control, not yet attached.

    Args:
        settings: Settings of a registered kind.
        levels: Its levels.
        lm: The language model it is for.
        tokenize: Returns the ids of plain text, without BOS and EOS.
        seed: Seed of the initial values.

    Raises:
        ConfigError: The settings do not fit the model or the levels.
    """
    generator = torch.Generator().manual_seed(seed)
    control = CONTROLS[settings.kind].build(settings, levels, lm, tokenize, generator)
    return control.to(lm.device)
