"""Client of llama.cpp's server: the part of a request that selects a level of ``meet export RUN --to gguf``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from meetlm.export.levels_file import ServedLevels
from meetlm.run.levels import Level, resolve_level, weights_by_name


def payload(level: Level, export: str | Path) -> dict[str, list[dict[str, Any]]]:
    """Return the field ``lora`` of a request to llama.cpp's server, for any level or mix.

    Example:
        >>> requests.post(f"{url}/v1/chat/completions", json={"messages": [...], **payload({"tone": "formal"}, folder)})

    Args:
        level: As in :meth:`meetlm.Aligned.generate`.
        export: Folder of the export.

    Raises:
        ConfigError: The level is unknown, or the adapters cannot express it.
        RunError: The folder holds no GGUF export with adapters.
    """
    served = ServedLevels.read(Path(export))
    return {"lora": served.lora(weights_by_name(resolve_level(served.levels, level)))}
