"""Options of several commands. Options that set a field of a settings class are generated from that class."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from types import NoneType
from typing import Any, Literal, get_args, get_origin

import click
from pydantic.fields import FieldInfo

from meetlm.cli.console import ConsoleReporter
from meetlm.config.errors import ConfigError
from meetlm.config.overrides import KeyPath
from meetlm.config.settings import Settings
from meetlm.config.yaml_files import validate
from meetlm.generation.settings import Sampling

Decorator = Callable[[Any], Any]


class Count(click.IntRange):
    """A whole number in a range, called ``integer`` in messages."""

    name = "integer"


class Numbers(click.ParamType[list[float]]):
    """Numbers separated by commas; a list without repetitions.

    Args:
        kind: ``int`` or ``float``.
        is_signed: Whether numbers may be negative.
    """

    name = "numbers"

    def __init__(self, kind: type[int] | type[float], *, is_signed: bool = False) -> None:
        self.kind, self.is_signed = kind, is_signed

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> list[float]:
        """Return the numbers in a text such as ``0,0.5,1``."""
        try:
            numbers = list(dict.fromkeys(self.kind(part) for part in value.split(",")))
        except ValueError:
            numbers = []
        lowest = -math.inf if self.is_signed else 0
        if not numbers or not all(math.isfinite(number) and number >= lowest for number in numbers):
            noun = "whole numbers" if self.kind is int else "numbers"
            limit = "" if self.is_signed else " of 0 or more"
            self.fail(f"{value!r}: expected {noun}{limit}, separated by commas", param, ctx)
        return numbers


TYPES: dict[Any, str] = {int: "INTEGER", float: "NUMBER", Path: "PATH"}
"""Name of an option's value in the help."""
SEED = Count(0, 2**32 - 1)
"""Type of a seed."""
PATH = click.Path(path_type=Path)
"""Type of a file or folder."""
FILE = click.Path(dir_okay=False, path_type=Path)
FOLDER = click.Path(file_okay=False, path_type=Path)

config_option = click.option("--config", "file", type=FILE, help="YAML file of settings that override the recipe's.")
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON instead of text.")
quiet_option = click.option(
    "--quiet",
    "reporter",
    is_flag=True,
    callback=lambda context, option, quiet: ConsoleReporter(quiet=quiet),
    help="Show no progress bars.",
)
level_option = click.option(
    "--level",
    help="Level of the replies: a name, a number from 0 (worst level) to 1 (best level), a number outside this "
    "range to extrapolate, or weights such as good=1.5,bad=-0.5; with several attributes, a level for each, as in "
    "tone=formal,length=0.7.  [default: the best level, or the level that `meet dial` recommends]",
)
guidance_option = click.option(
    "--guidance",
    type=float,
    default=0.0,
    show_default=True,
    metavar="S",
    help="Strength of guidance: add S times the difference of the logits at --level and --against. Doubles the cost.",
)
against_option = click.option(
    "--against", metavar="LEVEL", help="Level that guidance moves away from.  [default: the worst level]"
)
attribute_option = click.option(
    "--attribute", metavar="NAME", help="Attribute to score by, in a run with several.  [default: all that are ordered]"
)
batch_size_option = click.option(
    "--batch-size", type=Count(1), default=32, show_default=True, help="Number of prompts per batch."
)
processes_option = click.option(
    "--processes",
    type=Count(1),
    default=1,
    show_default=True,
    help="Number of processes to start on this machine, such as one per GPU.",
)


def out_option(default: str | None, help: str, type: click.Path = FOLDER) -> Decorator:  # noqa: A002  click's own names
    """Return the option ``--out``."""
    return click.option(
        "--out", type=type, default=default and Path(default), show_default=default is not None, help=help
    )


def seed_option(help: str, option: str = "--seed") -> Decorator:  # noqa: A002  click's own name
    """Return the option of a seed."""
    return click.option(option, type=SEED, default=0, show_default=True, help=help)


def settings_options(settings: type[Settings], argument: str, *fields: str) -> Decorator:
    """Return a decorator that adds an option for each field of a class; the command receives the checked settings.

    Args:
        settings: The class; the descriptions of its fields are the help texts.
        argument: Name of the command's argument that receives the settings.
        *fields: Names of the fields that have an option; all of them by default.
    """
    names = fields or tuple(settings.model_fields)

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(command)
        def call(**options: Any) -> Any:
            values = {name: value for name in names if (value := options.pop(name)) is not None}
            locations: dict[KeyPath, str] = {(name,): _option_name(name) for name in values}
            try:
                options[argument] = validate(settings, values, locations, argument)
            except ConfigError as error:
                raise click.UsageError(str(error)) from None
            return command(**options)

        for name in reversed(names):
            call = _field_option(name, settings.model_fields[name])(call)
        return call

    return decorate


def sampling_options(*fields: str) -> Decorator:
    """Return a decorator that adds the options of sampling; the command receives ``sampling``."""
    return settings_options(Sampling, "sampling", *fields)


def field_help(field: FieldInfo) -> str:
    """Return the first sentence of a setting's description, and its default."""
    text = (field.description or "").split(". ")[0].rstrip(".")
    text = f"{text[:1].upper()}{text[1:]}."
    default = None if field.is_required() else field.get_default(call_default_factory=True)
    if isinstance(default, tuple):
        return f"{text}  [default: {' '.join(map(str, default))}]"
    if default is None and "null" not in text or default == {}:
        return text
    shown = default if isinstance(default, str) else json.dumps(default).removesuffix(".0")
    return f"{text}  [default: {shown}]"


def _option_name(field: str) -> str:
    return f"--{field.replace('_', '-')}"


def _field_option(name: str, field: FieldInfo) -> Decorator:
    """Return the option of a field; the settings class parses its text."""
    text = field_help(field)
    if field.annotation is bool:
        return click.option(_option_name(name), is_flag=True, help=text.removesuffix("  [default: false]"))
    is_range = get_origin(field.annotation) is tuple
    if get_origin(field.annotation) is Literal:
        metavar = f"[{'|'.join(get_args(field.annotation))}]"
    else:
        types = [kind for kind in get_args(field.annotation) or (field.annotation,) if kind is not NoneType]
        metavar = "LOW HIGH" if is_range else TYPES.get(types[0], "TEXT")
    return click.option(_option_name(name), nargs=2 if is_range else 1, metavar=metavar, help=text)
