"""The file ``levels.json`` of a GGUF export: which adapter of llama.cpp's server is which level. Imports no torch."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from meetlm.config.errors import ConfigError, RunError
from meetlm.config.files import write_atomic
from meetlm.data.levels import LevelSpace

LEVELS_FILE = "levels.json"


@dataclass(frozen=True, slots=True)
class Adapter:
    """An adapter of a GGUF export; its id is its index in the list of all adapters.

    Attributes:
        file: Name of its file.
        level: The level at scale 1.
        worst: The level at scale 0, which the model has in its weights; ``None`` if the model is the base model.
    """

    file: str
    level: str
    worst: str | None = None

    def scale(self, weights: Mapping[str, float]) -> float:
        """Return the scale for weights of levels by name.

        An adapter with a worst level is best − worst: the weights 1 − t and t of worst and best are the scale t.

        Raises:
            ConfigError: No scale of an adapter with a worst level has these weights.
        """
        weight = float(weights.get(self.level, 0.0))
        if self.worst is None:
            return weight
        if set(weights) - {self.worst, self.level} or not math.isclose(sum(weights.values()), 1.0):
            stated = ",".join(f"{name}={value:g}" for name, value in weights.items())
            raise ConfigError(
                f"level {stated}: an export with --slider has only mixes of {self.worst} and {self.level} whose "
                "weights sum to 1; export without --slider for other mixes"
            )
        return weight


@dataclass(frozen=True, slots=True)
class ServedLevels:
    """The contents of ``levels.json``.

    Attributes:
        model: Name of the GGUF file of the model.
        levels: The levels of the run.
        adapters: The adapters, in the order in which the server loads them.
    """

    model: str
    levels: LevelSpace
    adapters: tuple[Adapter, ...]

    def lora(self, weights: Mapping[str, float]) -> list[dict[str, Any]]:
        """Return the field ``lora`` of a request for weights of levels by name; adapters that do not act included.

        Raises:
            ConfigError: The adapters cannot express the weights.
        """
        return [{"id": number, "scale": adapter.scale(weights)} for number, adapter in enumerate(self.adapters)]

    def write(self, folder: Path) -> None:
        """Write the file into the folder of an export."""
        adapters = [{"id": number, **asdict(adapter)} for number, adapter in enumerate(self.adapters)]
        record = {"model": self.model, "attributes": self.levels.to_dict(), "adapters": adapters}
        write_atomic(folder / LEVELS_FILE, json.dumps(record, indent=2) + "\n")

    @classmethod
    def read(cls, folder: Path) -> ServedLevels:
        """Return what :meth:`write` wrote.

        Raises:
            RunError: The folder has no such file.
        """
        file = folder / LEVELS_FILE
        if not file.is_file():
            raise RunError(f"{file}: no such file; expected the folder that `meet export RUN --to gguf` wrote")
        record = json.loads(file.read_text(encoding="utf-8"))
        adapters = tuple(Adapter(entry["file"], entry["level"], entry["worst"]) for entry in record["adapters"])
        return cls(record["model"], LevelSpace.from_dict(record["attributes"]), adapters)
