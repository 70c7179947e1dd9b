"""Settings of generation, in a module without torch, so that `--help` is quick."""

from __future__ import annotations

from pydantic import Field

from meetlm.config.settings import Settings


class Sampling(Settings):
    """Sampling settings; stored with every completion."""

    max_new_tokens: int = Field(128, ge=1, description="maximum number of new tokens per completion")
    temperature: float = Field(0.0, ge=0, description="sampling temperature; 0 = greedy decoding")
    top_p: float = Field(
        1.0, gt=0, le=1, description="nucleus sampling: sample from the most likely tokens of this total probability"
    )
