"""The arguments of every command: recipes, runs or files, and settings as ``--data.path X`` or ``data.path=X``."""

from __future__ import annotations

import difflib
import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import click

from meetlm.cli.options import field_help
from meetlm.config.errors import ConfigError
from meetlm.config.overrides import Override, parse_settings, split_args
from meetlm.config.settings import Settings
from meetlm.data.settings import DataSettings

if TYPE_CHECKING:
    from meetlm.recipes.config import RunConfig

PLACES = ("data.path", "data.train_file", "data.eval_file")
LEVEL_KEYS = ("data.attributes", "data.levels", "data.attribute_levels")
"""Settings of data that have no effect on pairs; not listed by commands that read pairs only."""
HELD_OUT_HELP = {
    "data.path": "Held-out prompts or pairs: a file, a folder laid out like a data set on the hub, or a hub name.",
    "data.source": "Format of the rows: hh, summarize, pairs or feedback; by default decided by the first row.",
    "data.eval_split": "Split to read.  [default: test]",
    "data.eval_file": "File of held-out prompts or pairs, relative to --data.path if that is a folder.",
}
"""Descriptions of settings for commands that read only held-out prompts, if they differ from those of training."""
RECIPE_SETTINGS = (
    "The settings of the recipe: `meet recipes` lists the recipes, `meet config RECIPE` prints all settings with "
    "explanations."
)


class HeldOutData(Settings):
    """The settings of a command that reads held-out prompts."""

    data: DataSettings | None = None


class SettingsCommand(click.Command):
    """A command whose arguments are names, such as recipes, and settings.

    The command function has the parameters ``names`` and ``overrides``.

    Args:
        names: The names in the usage line: ``RUN`` is one name, ``[RECIPE]`` at most one, ``FILE...`` at least one.
        missing: Description of the name, for the message if it is missing.
        settings: The settings class of the command, whose fields the help lists; by default
            :class:`~meetlm.recipes.config.RunConfig`, whose fields `meet config` lists.
    """

    def __init__(
        self, *args: Any, names: str = "", missing: str = "", settings: type[Settings] | None = None, **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        self.names, self.missing, self.settings = names, missing, settings
        self.context_settings = {**self.context_settings, "ignore_unknown_options": True}
        metavar = f"{names} [SETTING]...".strip()
        self.params.append(click.Argument(["args"], nargs=-1, type=click.UNPROCESSED, metavar=metavar))

    def invoke(self, ctx: click.Context) -> Any:
        """Split the arguments, then run the command."""
        names, overrides = self._split(ctx.params.pop("args"))
        if not names and self.names and not self.names.startswith("["):
            raise click.UsageError(f"missing argument {self.names}: {self.missing}", ctx)
        extra = names[1:] if self.names else names
        if extra and not self.names.endswith("..."):
            raise click.UsageError(_unexpected(extra[0]), ctx)
        ctx.params |= {"names": names, "overrides": overrides}
        return super().invoke(ctx)

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options, then the settings."""
        super().format_options(ctx, formatter)
        with formatter.section("Settings (--KEY VALUE, --KEY=VALUE or KEY=VALUE)"):
            if self.settings is None:
                formatter.write_text(RECIPE_SETTINGS)
            else:
                formatter.write_dl(list(self._setting_rows()))

    def _split(self, args: Sequence[str]) -> tuple[list[str], list[Override]]:
        """Return the names and the settings.

        Raises:
            NoSuchOption: An option is neither an option of the command nor a setting.
        """
        settings = self.settings or _run_settings()
        only_dotted = all(_block(settings, name) for name in settings.model_fields)
        known = [name for parameter in self.params for name in parameter.opts if name.startswith("-")]
        known += [f"--{name}" for name in settings.model_fields if not _block(settings, name)]
        blocks = [name for name in settings.model_fields if _block(settings, name)]

        def check_known(option: str) -> None:
            first, dot, rest = option.removeprefix("--").partition(".")
            if first.replace("-", "_") in settings.model_fields:
                return
            close = difflib.get_close_matches(first, blocks) if dot else []
            possibilities = [f"--{block}.{rest}" for block in close] or difflib.get_close_matches(option, known)
            raise click.NoSuchOption(option, possibilities=possibilities)

        try:
            names, overrides = split_args(args, only_dotted=only_dotted)
        except ConfigError:
            option, equals, _ = args[-1].partition("=")
            if option.startswith("--"):
                check_known(option)
                key = option.removeprefix("--").replace("-", "_")
                held_out = HELD_OUT_HELP if issubclass(settings, HeldOutData) else {}
                description = None if equals else held_out.get(key) or _description(settings, key.split("."))
                if description:
                    raise ConfigError(
                        f"{option} requires a value: {description[:1].lower()}{description[1:]}"
                    ) from None
            raise
        for override in overrides:
            check_known(override.option)
            if override.text == "-" and override.key in PLACES:
                raise click.UsageError(f"{override.option} -: data cannot be read from standard input; pass a file")
        return names, overrides

    def _setting_rows(self) -> Iterator[tuple[str, str]]:
        """Yield option and description of every setting that the command uses."""
        from meetlm.diagnostics.locate import HELD_OUT_KEYS

        assert self.settings is not None
        options = {option for parameter in self.params for option in parameter.opts}
        reads_held_out = issubclass(self.settings, HeldOutData)
        for block, field in self.settings.model_fields.items():
            settings = _block(self.settings, block)
            if settings is None:
                yield f"--{block}", field_help(field)
                continue
            for name, inner in settings.model_fields.items():
                key = f"{block}.{name}"
                is_option = name == "model" and f"--{block}" in options  # --judge MODEL sets judge.model
                if is_option or key in LEVEL_KEYS:
                    continue
                if not (reads_held_out and block == "data"):
                    yield f"--{key}", field_help(inner)
                elif name in HELD_OUT_KEYS:
                    yield f"--{key}", HELD_OUT_HELP.get(key) or field_help(inner)


def configure(names: Sequence[str], overrides: Sequence[Override], file: Path | None) -> RunConfig:
    """Return the configuration of a recipe, a file, and settings that override both.

    Raises:
        UsageError: Neither a recipe nor a file.
        ConfigError: A name or setting is wrong.
    """
    from meetlm.recipes.config import load_config

    if not names and file is None:
        raise click.UsageError("name a recipe (`meet recipes` lists them) or pass --config FILE")
    return load_config(_recipe(names), file, overrides)


def configure_for_data(
    names: Sequence[str], overrides: Sequence[Override], file: Path | None
) -> tuple[RunConfig, str | None]:
    """Return the configuration as :func:`configure` does, and how the format of the data was chosen.

    Without a recipe, the first row decides the format and so the recipe, and the model is SmolLM2. With a recipe or
    ``data.source`` the reason is ``None``.

    Args:
        names: A recipe's name, if any.
        overrides: Settings.
        file: YAML file of settings that override those of the recipe, or a whole configuration.

    Raises:
        UsageError: Neither a recipe, a file nor data.
        ConfigError: A name or setting is wrong.
    """
    from meetlm.data.sources import SOURCES
    from meetlm.recipes.config import load_config

    recipe, reason = _recipe(names), None
    defaults: Mapping[str, str] = {}
    if recipe is None and file is None:
        if not any(override.key in PLACES[:2] for override in overrides):
            raise click.UsageError("pass the data (--data.path FILE, FOLDER or HUB_NAME) or name a recipe")
        source, reason = guess_train_source(overrides)
        SOURCES[source]  # raises an error if there is no such source
        recipe = {"summarize": "tldr"}.get(source, source) + "-meet-lora"
        defaults = {"model.name": "smollm2", "data.source": source, "data.subset": "null", "data.eval_split": "test"}
    return load_config(recipe, file, [*(Override(key, text) for key, text in defaults.items()), *overrides]), reason


def held_out_data(overrides: Sequence[Override]) -> DataSettings | None:
    """Return the settings of the held-out prompts; ``None`` without settings of ``data``.

    Raises:
        MeetError: As of :func:`~meetlm.diagnostics.locate.held_out_settings`.
    """
    from meetlm.diagnostics.locate import held_out_settings

    raw, locations = parse_settings(HeldOutData, data_overrides(overrides))
    return held_out_settings(raw["data"], {key[1:]: option for key, option in locations.items()}) if raw else None


def data_overrides(overrides: Sequence[Override]) -> list[Override]:
    """Return the settings of ``data``."""
    return [override for override in overrides if override.key.startswith("data.")]


def as_args(overrides: Sequence[Override]) -> list[str]:
    """Return settings as arguments of another command."""
    return [part for override in overrides for part in (override.option, override.text)]


def guess_train_source(overrides: Sequence[Override]) -> tuple[str, str | None]:
    """Return the format of the training data and, without ``data.source``, what in the first row determines it."""
    from meetlm.config.yaml_files import validate
    from meetlm.data.locations import find_rows
    from meetlm.diagnostics.locate import guess_source

    raw, locations = parse_settings(HeldOutData, data_overrides(overrides))
    if raw["data"].get("source") is not None:
        return str(raw["data"]["source"]), None
    settings = validate(HeldOutData, {"data": {"source": "pairs", **raw["data"]}}, locations, "data").data
    assert settings is not None
    return guess_source(next(iter(find_rows(settings, "train").rows)))


def _description(settings: type[Settings], keys: Sequence[str]) -> str | None:
    """Return the description of a setting; ``None`` if there is none or the class of a block depends on its kind."""
    name = keys[0].replace("-", "_")
    if name not in settings.model_fields:
        return None
    block = _block(settings, name)
    if len(keys) == 1:
        return None if block else field_help(settings.model_fields[name])
    return _description(block, keys[1:]) if block else None


def _block(settings: type[Settings], name: str) -> type[Settings] | None:
    """Return the settings class of a field; ``None`` for a plain value."""
    annotation = settings.model_fields[name].annotation
    types = get_args(annotation) or (annotation,)
    return next((t for t in types if isinstance(t, type) and issubclass(t, Settings)), None)


def _run_settings() -> type[Settings]:
    from meetlm.recipes.config import RunConfig

    return RunConfig


def _recipe(names: Sequence[str]) -> str | None:
    """Return the name of the recipe, if there is one; refuse a path."""
    from meetlm.recipes.names import recipe_names

    for name in names:
        if name not in recipe_names() and Path(name).exists():
            raise click.UsageError(_unexpected(name))
    return names[0] if names else None


def _unexpected(name: str) -> str:
    """Return the message about an unexpected argument."""
    if Path(name).exists():
        return f"unexpected argument {name!r}: pass data as --data.path {shlex.quote(name)}"
    return f"unexpected argument {name!r}: settings are --KEY VALUE or KEY=VALUE, such as --data.path PATH"
