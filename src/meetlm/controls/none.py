"""No control: the plain language model (SFT, DPO, the base model)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from pydantic import Field
from transformers import PreTrainedModel

from meetlm.controls.base import CONTROLS, ControlKind, ControlSettings
from meetlm.controls.text import SlotText


class NoneSettings(ControlSettings):
    """The plain language model: it has one level and no control."""

    kind: Literal["none"] = "none"
    levels: tuple[str, ...] = Field(("good",), description="name of the only level: the model without a control")


def _build(
    settings: NoneSettings,
    lm: PreTrainedModel,
    tokenize: Callable[[str], list[int]],
    generator: torch.Generator,
) -> SlotText:
    del lm, tokenize, generator
    return SlotText(settings, [[] for _ in settings.levels])


CONTROLS.register("none")(ControlKind(NoneSettings, _build, has_parameters=False, has_slot=False))
