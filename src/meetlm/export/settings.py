"""Settings of exports. Imports no torch, so that `--help` is quick."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from meetlm.config.settings import Settings


class ExportSettings(Settings):
    """Options of single formats; each exporter lists those that it uses."""

    max_rank: int | None = Field(
        None, ge=1, description="largest rank of an exported LoRA: approximate a mix of higher rank by SVD"
    )
    converter: Path | None = Field(
        None, description="folder of llama.cpp's source, with its converters; required by gguf and ollama (docs/use.md)"
    )
    vllm: Path | None = Field(
        None, description="Python of an environment with vLLM, in which --to vllm runs its check (docs/use.md)"
    )
    outtype: Literal["f32", "f16", "q8_0"] = Field("f16", description="type of the weights in GGUF files of models")
    slider: bool = Field(
        False,
        description="for servers with one adapter: the worst level is part of the GGUF model, and the adapter's scale "
        "from 0 to 1 is the dial",
    )
