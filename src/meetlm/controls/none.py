"""No control: the language model as it is under every level (SFT, DPO, the untouched model)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from transformers import PreTrainedModel

from meetlm.controls.base import CONTROLS, ControlKind, ControlSettings
from meetlm.controls.text import SlotText


class NoneSettings(ControlSettings):
    """Settings of no control."""

    kind: Literal["none"] = "none"


def _build(
    settings: NoneSettings,
    lm: PreTrainedModel,
    words: Callable[[str], list[int]],
    generator: torch.Generator,
) -> SlotText:
    del lm, words, generator
    return SlotText(settings, [[] for _ in settings.levels])


CONTROLS.register("none")(ControlKind(NoneSettings, _build, trains=False))
