"""Which completions are compared: presets, the paper's among them."""

from __future__ import annotations

from collections.abc import Iterable
from hashlib import sha256

from pydantic import Field

from meetlm.config.settings import Settings


class Protocol(Settings):
    """What completions have to be; the defaults are the paper's (sections 4.3 and 4.6, appendix A)."""

    level: str | None = Field("good", description="of the control; null for each run's default")
    temperature: float = Field(0.0, ge=0, allow_inf_nan=False, description="0 takes the likeliest token (section 4.6)")
    top_p: float = Field(1.0, gt=0, le=1, description="nucleus")
    max_new_tokens: int = Field(128, ge=1, description="most new tokens (appendix A)")


PRESETS = {"paper": Protocol()}
"""As in the paper, a run has the model of its last checkpoint, and `meet generate` asks each distinct prompt once."""


def sampled(ids: Iterable[str], number: int, seed: int) -> list[str]:
    """Return ``number`` of the prompts, or all: the first by a hash of seed and id.

    Prompts that come or go change no more than their own places, so what a judge said of the others is of use.
    """
    return sorted(ids, key=lambda one: sha256(f"{seed}:{one}".encode()).digest())[:number]
