"""The base of every block of settings; each block is defined beside the component that it configures."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Settings(BaseModel):
    """A frozen block of settings: unknown keys are refused, values are checked, nothing is coerced silently."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)
