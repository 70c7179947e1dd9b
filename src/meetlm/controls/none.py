"""No control: the plain language model (SFT, DPO, the base model)."""

from __future__ import annotations

from typing import Literal

from meetlm.controls.base import CONTROLS, ControlKind, ControlSettings
from meetlm.controls.text import SlotText


class NoneSettings(ControlSettings):
    """The plain language model: it has one level and no control."""

    kind: Literal["none"] = "none"


CONTROLS.register("none")(
    ControlKind(
        NoneSettings,
        lambda settings, levels, *_: SlotText(settings, levels, [[] for _ in levels]),
        has_parameters=False,
        has_slot=False,
    )
)
