"""Options that several commands have."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from meetlm.data.settings import DataSettings

SEED = click.IntRange(0, 2**32 - 1)
"""Type of a seed."""
PATH = click.Path(path_type=Path)
"""Type of a file or folder."""

Decorator = Callable[[Any], Any]


def finite(context: click.Context, option: click.Parameter, value: float | None) -> float | None:
    """Refuse NaN and infinity, which click's number ranges allow; a callback of options."""
    if value is not None and not math.isfinite(value):
        raise click.BadParameter(f"{value} is not a finite number.")
    return value


config_option = click.option("--config", "file", type=PATH, help="YAML file of settings; they replace the recipe's.")
quiet_option = click.option("--quiet", is_flag=True, help="Show no progress bars.")
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON instead of text.")
level_option = click.option(
    "--level",
    help="Level: a name, a number (0 = worst, 1 = best, beyond extrapolates) or weights such as good=1.5,bad=-0.5  "
    "[default: the run's default level].",
)


batch_size_option = click.option(
    "--batch-size", type=click.IntRange(1), default=32, show_default=True, help="Prompts per batch."
)


def out_option(default: str | None, help: str) -> Decorator:  # noqa: A002  click's own name
    """Return the option of where results are written."""
    return click.option(
        "--out", type=PATH, default=default and Path(default), show_default=default is not None, help=help
    )


def sampling_options(command: Any) -> Any:
    """Add the options of how completions are sampled: ``temperature``, ``top_p``, ``max_new_tokens``, ``seed``."""
    options = (
        click.option(
            "--temperature",
            type=click.FloatRange(0),
            default=0.0,
            show_default=True,
            callback=finite,
            help="Sampling temperature; 0 = greedy decoding.",
        ),
        click.option(
            "--top-p",
            type=click.FloatRange(0, 1, min_open=True),
            default=1.0,
            show_default=True,
            help="Sample from the most likely tokens of this total probability.",
        ),
        click.option(
            "--max-new-tokens",
            type=click.IntRange(1),
            default=128,
            show_default=True,
            help="Maximum number of tokens per completion.",
        ),
        click.option("--seed", type=SEED, default=0, show_default=True, help="Seed of sampling."),
    )
    for option in reversed(options):
        command = option(command)
    return command


def print_json(value: Any) -> None:
    """Print a value as indented JSON on stdout."""
    click.echo(json.dumps(value, indent=2, ensure_ascii=False))


HELD_OUT = {"data": DataSettings}
"""The settings that commands reading held-out prompts list in their help."""
