"""The names of the package's recipes and presets. Imports nothing heavy, so that `meet recipes` is quick.

A recipe combines a data set and a method: ``hh-coh`` has the settings of ``data/hh.yaml`` and ``methods/coh.yaml``.
"""

from __future__ import annotations

from importlib import resources
from pathlib import Path


def recipe_folder() -> Path:
    """Return the folder of the recipes, with ``methods``, ``data`` and ``presets`` in it."""
    return Path(str(resources.files("meetlm.recipes")))


def recipe_names() -> list[str]:
    """Return the names of the recipes."""
    return [f"{data}-{method}" for data in data_names() for method in method_names()]


def recipe_files(name: str) -> tuple[Path, Path]:
    """Return the files of a recipe: the data set's and the method's."""
    data, _, method = name.partition("-")
    return recipe_folder() / "data" / f"{data}.yaml", recipe_folder() / "methods" / f"{method}.yaml"


def description(file: Path) -> str:
    """Return the comment at the start of a recipe's file."""
    lines = file.read_text(encoding="utf-8").splitlines()
    return " ".join(line.removeprefix("#").strip() for line in lines[: _num_comments(lines)])


def data_names() -> list[str]:
    """Return the names of the data sets."""
    return _names("data")


def method_names() -> list[str]:
    """Return the names of the methods."""
    return _names("methods")


def preset_names() -> list[str]:
    """Return the names of the presets."""
    return _names("presets")


def _names(folder: str) -> list[str]:
    return sorted(path.stem for path in (recipe_folder() / folder).glob("*.yaml"))


def _num_comments(lines: list[str]) -> int:
    """Return the number of comment lines at the start."""
    return next((n for n, line in enumerate(lines) if not line.startswith("#")), len(lines))
