"""Which completions are compared: presets, the paper's among them."""

from __future__ import annotations

from collections.abc import Iterable
from hashlib import sha256

from pydantic import Field

from meetlm.config.settings import Settings


class Protocol(Settings):
    """Level and sampling of the completions; the defaults are the paper's (sections 4.3 and 4.6, appendix A)."""

    level: str | None = Field("good", description="level of the control; null = each run's default level")
    temperature: float = Field(0.0, ge=0, allow_inf_nan=False, description="0 = greedy decoding (section 4.6)")
    top_p: float = Field(1.0, gt=0, le=1, description="nucleus sampling")
    max_new_tokens: int = Field(128, ge=1, description="maximum number of new tokens (appendix A)")


PRESETS = {"paper": Protocol()}
"""As in the paper, a run has its last checkpoint's model, and `meet generate` answers each distinct prompt once."""


def choose_prompts(ids: Iterable[str], number: int, seed: int) -> set[str]:
    """Return ``number`` of the prompts, or all: the first by a hash of seed and id.

    Prompts that are added or removed change no more than their own places, so a judge's responses stay useful.
    """
    return set(sorted(ids, key=lambda prompt: sha256(f"{seed}:{prompt}".encode()).digest())[:number])
