"""The configuration that a command's words come to: a recipe's name, settings in any order, a file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from meetlm.recipes.config import RunConfig


def configured(words: tuple[str, ...], file: Path | None) -> RunConfig:
    """Return the resolved configuration.

    Args:
        words: A recipe's name, ``KEY=VALUE`` and ``--KEY VALUE``, in any order.
        file: YAML over the recipe, or instead of it.

    Raises:
        UsageError: Neither a recipe nor a file, or several recipes.
        ConfigError: A name or setting is wrong.
    """
    from meetlm.config.yaml_files import split_words
    from meetlm.recipes.config import load_config

    names, overrides = split_words(words)
    if len(names) > 1:
        raise click.UsageError(f"name one recipe, not {', '.join(names)}; settings are KEY=VALUE or --KEY VALUE")
    if not names and file is None:
        raise click.UsageError("name a recipe or give --config FILE")
    return load_config(names[0] if names else None, file, overrides)
