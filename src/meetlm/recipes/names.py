"""Which recipes and presets the package ships. Imports nothing heavy: the command's help lists them."""

from __future__ import annotations

from importlib import resources
from pathlib import Path


def recipe_folder() -> Path:
    """Return the folder of the recipes; ``presets`` is in it."""
    return Path(str(resources.files("meetlm.recipes")))


def recipe_names() -> list[str]:
    """Return the names of the recipes."""
    return sorted(path.stem for path in recipe_folder().glob("*.yaml"))


def preset_names() -> list[str]:
    """Return the names of the presets."""
    return sorted(path.stem for path in (recipe_folder() / "presets").glob("*.yaml"))
