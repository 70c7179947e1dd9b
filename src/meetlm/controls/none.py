"""No control: the plain language model (SFT, DPO, the base model)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from transformers import PreTrainedModel

from meetlm.controls.base import CONTROLS, ControlKind, ControlSettings
from meetlm.controls.text import SlotText
from meetlm.data.levels import LevelSpace


class NoneSettings(ControlSettings):
    """The plain language model: it has one level and no control."""

    kind: Literal["none"] = "none"


def _build(
    settings: NoneSettings,
    levels: LevelSpace,
    lm: PreTrainedModel,
    tokenize: Callable[[str], list[int]],
    generator: torch.Generator,
) -> SlotText:
    del lm, tokenize, generator
    return SlotText(settings, levels, [[] for _ in levels])


CONTROLS.register("none")(ControlKind(NoneSettings, _build, has_parameters=False, has_slot=False))
