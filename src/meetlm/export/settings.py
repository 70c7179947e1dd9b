"""Settings of exports. Imports no torch, so that `--help` is quick."""

from __future__ import annotations

from pydantic import Field

from meetlm.config.settings import Settings


class ExportSettings(Settings):
    """Options of single formats; each exporter lists those that it uses."""

    max_rank: int | None = Field(
        None, ge=1, description="largest rank of an exported LoRA: approximate a mix of higher rank by SVD"
    )
