"""Settings to controls: the one place that knows which files register a kind."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

import torch
from pydantic import BeforeValidator, SerializeAsAny, ValidationError
from transformers import PreTrainedModel

import meetlm.controls.lora
import meetlm.controls.none
import meetlm.controls.text
import meetlm.controls.virtual  # noqa: F401  registers its kinds
from meetlm.config.errors import ConfigError
from meetlm.config.settings import problems
from meetlm.controls.base import CONTROLS, Control, ControlSettings


def parse_control(value: Any) -> ControlSettings:
    """Return checked settings of the kind that ``value['kind']`` names.

    Raises:
        ConfigError: There is no kind, it is unknown, or a setting is wrong.
    """
    if isinstance(value, ControlSettings):
        return value
    if not isinstance(value, dict) or "kind" not in value:
        raise ConfigError(f"a control is a mapping with 'kind', one of {', '.join(CONTROLS)}")
    try:
        return CONTROLS[value["kind"]].settings.model_validate(value)
    except ValidationError as error:
        texts = [f"{'.'.join(map(str, loc))}: {text}" if loc else text for loc, text in problems(error)]
        raise ConfigError("control: " + "; ".join(texts)) from error


def _field(value: Any) -> ControlSettings:
    """As pydantic wants its errors; the cause keeps the place of each."""
    try:
        return parse_control(value)
    except ConfigError as error:
        raise ValueError(str(error)) from error.__cause__


AnyControlSettings = Annotated[SerializeAsAny[ControlSettings], BeforeValidator(_field)]
"""A pydantic field type that reads and writes the settings of any registered kind."""


def build_control(
    settings: ControlSettings, lm: PreTrainedModel, words: Callable[[str], list[int]], seed: int
) -> Control:
    """Return a fresh control, not yet attached.

    Args:
        settings: Of a registered kind.
        lm: The model it is for.
        words: Tokenises plain words, with no BOS or EOS.
        seed: Of its initial values.
    """
    generator = torch.Generator().manual_seed(seed)
    control = CONTROLS[settings.kind].build(settings, lm, words, generator)
    return control.to(lm.device)
