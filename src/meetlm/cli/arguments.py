"""The arguments of every command: recipes, runs or files, and settings as ``--data.path X`` or ``data.path=X``."""

from __future__ import annotations

import difflib
import shlex
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from pydantic.fields import FieldInfo

from meetlm.config.errors import ConfigError
from meetlm.config.overrides import Override, parse_settings, split_args
from meetlm.config.settings import Settings
from meetlm.data.settings import DataSettings

if TYPE_CHECKING:
    from meetlm.recipes.config import RunConfig

PLACES = ("path", "train_file", "eval_file")


HELD_OUT_HELP = {
    "data.path": "Held-out prompts or pairs: a file, a folder in the hub's layout, or a hub name.",
    "data.source": "Format of the rows: hh, summarize or pairs  [default: by the first row].",
    "data.eval_split": "Name of the split  [default: test].",
    "data.limit_eval": "Number of rows to use, the first ones.",
}
"""Descriptions for commands that read held-out prompts only, where they differ from those of the settings."""


class HeldOutData(Settings):
    """The settings of a command that reads held-out prompts."""

    data: DataSettings | None = None


class SettingsCommand(click.Command):
    """A command that takes settings among its arguments.

    Args:
        blocks: The settings that the command's help lists, by the first part of their keys; empty for keys of one part.
        trains: Whether the command reads training data, so that its help lists all settings of ``data``.
        **kwargs: As for ``click.Command``.
    """

    def __init__(
        self, *args: Any, blocks: Mapping[str, type[Settings]] | None = None, trains: bool = False, **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        self.trains = trains
        self.context_settings = {**self.context_settings, "ignore_unknown_options": True}
        self.blocks = blocks or {}

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options, then the settings."""
        super().format_options(ctx, formatter)
        from meetlm.diagnostics.locate import HELD_OUT_KEYS

        options = {parameter.name for parameter in self.params}  # --judge MODEL stands for judge.model
        rows = [
            (
                f"--{block}.{name}" if block else f"--{name}",
                (not self.trains and HELD_OUT_HELP.get(f"{block}.{name}")) or _field_help(field),
            )
            for block, settings in self.blocks.items()
            for name, field in settings.model_fields.items()
            if name not in self.blocks
            and (block != "data" or self.trains or name in HELD_OUT_KEYS)
            and not (name == "model" and block in options)
        ]
        if rows:
            with formatter.section("Settings (--KEY VALUE, --KEY=VALUE or KEY=VALUE)"):
                formatter.write_dl(rows)


def _field_help(field: FieldInfo) -> str:
    """Return the first sentence of a setting's description, and its default."""
    text = (field.description or "").split(". ")[0].rstrip(".")
    default = None if field.is_required() else field.get_default(call_default_factory=True)
    shown = str(default).lower() if isinstance(default, bool) else str(default)
    return f"{text[:1].upper()}{text[1:]}." + (f"  [default: {shown}]" if default not in (None, {}) else "")


def args_argument(metavar: str) -> Callable[[Any], Any]:
    """Return the declaration of a command's arguments, for :func:`split`."""
    return click.argument("args", nargs=-1, type=click.UNPROCESSED, metavar=metavar)


def split(
    args: Sequence[str], settings: type[Settings], *, only_dotted: bool = False
) -> tuple[list[str], list[Override]]:
    """Return the arguments that are not settings, and the settings.

    Args:
        args: Of the command.
        settings: The class that all keys start from.
        only_dotted: As of :func:`~meetlm.config.overrides.split_args`.

    Raises:
        NoSuchOption: A setting is not one of the class.
    """
    try:
        names, overrides = split_args(args, only_dotted=only_dotted)
    except ConfigError:  # the last argument is an option without a value
        _check_known(args[-1], settings)
        raise
    for override in overrides:
        _check_known(override.option, settings)
        if override.text == "-" and override.key in [f"data.{name}" for name in PLACES]:
            raise click.UsageError(f"{override.option} -: data cannot be read from standard input; pass a file")
    return names, overrides


def configure(args: Sequence[str], file: Path | None) -> RunConfig:
    """Return the configuration that a recipe's name, settings and a file make.

    Raises:
        UsageError: Neither a recipe nor a file, or several recipes.
        ConfigError: A name or setting is wrong.
    """
    from meetlm.recipes.config import RunConfig, load_config

    names, overrides = split(args, RunConfig)
    if not names and file is None:
        has_config = any(parameter.name == "file" for parameter in click.get_current_context().command.params)
        raise click.UsageError(
            "name a recipe (`meet recipes` lists them)" + (" or pass --config FILE" if has_config else "")
        )
    return load_config(_recipe(names), file, overrides)


def configure_for_data(args: Sequence[str], file: Path | None, *more: Override) -> tuple[RunConfig, str | None]:
    """Return the configuration as :func:`configure` does, and why the data have their format.

    Without a recipe, the first row decides the format, and with it the recipe; the model is SmolLM2. With a recipe or
    ``data.source`` the reason is ``None``.

    Args:
        args: As of the command.
        file: YAML over the recipe, or instead of it.
        *more: Settings over the ones in ``args``.

    Raises:
        UsageError: Neither a recipe, a file nor data; or several recipes.
        ConfigError: A name or setting is wrong.
    """
    from meetlm.recipes.config import RunConfig, load_config

    names, overrides = split(args, RunConfig)
    recipe = _recipe(names)
    keys = {override.key for override in overrides}
    reason = None
    if recipe is None and file is None:
        if not keys & {"data.path", "data.train_file"}:
            raise click.UsageError("pass the data (--data.path FILE, FOLDER or HUB_NAME) or name a recipe")
        source, reason = guess_train_source(overrides)
        recipe = {"hh": "hh", "summarize": "tldr"}.get(source, "pairs") + "-meet-lora"
        defaults = {"model.name": "smollm2", "data.source": source, "data.subset": "null", "data.eval_split": "test"}
        overrides = [*(Override(key, text) for key, text in defaults.items() if key not in keys), *overrides]
    return load_config(recipe, file, [*overrides, *more]), reason


def held_out_data(overrides: Sequence[Override]) -> DataSettings | None:
    """Return where held-out prompts are, by the settings of ``data``; ``None`` where there are none of them.

    Raises:
        MeetError: As of :func:`~meetlm.diagnostics.locate.held_out_settings`.
    """
    from meetlm.diagnostics.locate import held_out_settings

    data_overrides = [override for override in overrides if override.key.startswith("data.")]
    if not data_overrides:
        return None
    raw, places = parse_settings(HeldOutData, data_overrides)
    return held_out_settings(raw["data"], {key[1:]: option for key, option in places.items()})


def _recipe(names: Sequence[str]) -> str | None:
    if len(names) > 1:
        raise click.UsageError(
            f"name one recipe, not {', '.join(names)}; settings are --KEY VALUE or KEY=VALUE, such as --data.path PATH"
        )
    if names and Path(names[0]).exists():
        raise click.UsageError(f"{names[0]} is not a recipe; pass data as --data.path {shlex.quote(names[0])}")
    return names[0] if names else None


def guess_train_source(overrides: Sequence[Override]) -> tuple[str, str | None]:
    """Return the format of the training data, and by what the first row decided it without ``data.source``."""
    from meetlm.config.yaml_files import validate
    from meetlm.data.places import find_rows
    from meetlm.diagnostics.locate import guess_source

    raw, places = parse_settings(HeldOutData, [o for o in overrides if o.key.startswith("data.")])
    if raw["data"].get("source") is not None:
        return str(raw["data"]["source"]), None
    settings = validate(HeldOutData, {"data": {"source": "pairs", **raw["data"]}}, places, "data").data
    assert settings is not None
    return guess_source(next(iter(find_rows(settings, "train").rows)))


def _check_known(option: str, settings: type[Settings]) -> None:
    """Refuse an option that is not a setting, with the nearest names."""
    if option.removeprefix("--").split(".")[0].replace("-", "_") not in settings.model_fields:
        options = [name for parameter in click.get_current_context().command.params for name in parameter.opts]
        known = [*options, *(f"--{name}" for name in settings.model_fields)]
        raise click.NoSuchOption(option, possibilities=difflib.get_close_matches(option, known))
