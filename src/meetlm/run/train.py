"""``meetlm.train``: train a recipe with settings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from meetlm.config.reporter import SILENT, Reporter
from meetlm.recipes.config import RunConfig, load_config
from meetlm.recipes.names import recipe_names
from meetlm.run.execute import execute


def train(
    recipe_or_config: str | Path | RunConfig,
    *,
    out: str | Path | None = None,
    reporter: Reporter = SILENT,
    **overrides: Any,
) -> Path:
    """Train a recipe and return the folder of the run, for :func:`meetlm.load`.

    An interrupted run in the folder continues, and a finished one stays as it is.

    Example::

        run = meetlm.train("pairs-meet-lora", data={"path": "pairs.jsonl"}, model={"name": "smollm2"}, preset="small")

    Args:
        recipe_or_config: Name of a recipe (`meet recipes` lists them), a YAML file of settings, or a configuration.
        out: Folder of the run; ``runs/RECIPE`` by default.
        reporter: Shows messages and progress; a :class:`~meetlm.config.reporter.Reporter`.
        **overrides: Settings that replace the recipe's, as nested mappings: ``batch={"pairs": 16}``. Dotted keys
            work as ``**{"stages.step1.lr": 3e-3}``.

    Raises:
        ConfigError: A setting is wrong; the message names it.
        DataError: The data cannot be read; the message names file and line.
        RunError: The folder contains a run of another configuration or data, or other files, or is in use by another
            process.
    """
    config = _configuration(recipe_or_config, overrides)
    folder = Path("runs") / config.recipe if out is None else Path(out)
    execute(config, folder, reporter=reporter)
    return folder


def _configuration(recipe_or_config: str | Path | RunConfig, overrides: dict[str, Any]) -> RunConfig:
    if isinstance(recipe_or_config, RunConfig):
        if not overrides:
            return recipe_or_config
        raise TypeError(
            "overrides cannot be combined with a RunConfig: use model_copy(update=...), or pass the name of a recipe"
        )
    name = str(recipe_or_config)
    if name not in recipe_names() and Path(name).is_file():
        return load_config(None, Path(name), overrides)
    return load_config(name, None, overrides)
