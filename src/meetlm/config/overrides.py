"""Settings on the command line; ``--data.path X``, ``--data.path=X`` and ``data.path=X`` are equivalent."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from types import UnionType
from typing import Any, Union, get_args, get_origin

import yaml
from pydantic import BaseModel

from meetlm.config.errors import ConfigError, nearest

KeyPath = tuple[str | int, ...]


@dataclass(frozen=True, slots=True)
class Override:
    """A setting on the command line.

    Attributes:
        key: Dotted key, such as ``data.path``.
        text: The value as typed.
    """

    key: str
    text: str

    @property
    def option(self) -> str:
        """The option, for messages."""
        return f"--{self.key}"


def split_args(args: Sequence[str], *, only_dotted: bool = False) -> tuple[list[str], list[Override]]:
    """Return the arguments that are not settings, such as a recipe's name, and the settings; each in order.

    An argument that names an existing path is not a setting, whatever characters it contains.

    Args:
        args: Arguments of a command.
        only_dotted: Treat ``KEY=VALUE`` without leading dashes as a setting only if KEY has a dot, for commands with
            arguments ``NAME=PATH``.

    Raises:
        ConfigError: A setting has no value, or two values.
    """
    names: list[str] = []
    overrides: dict[str, Override] = {}
    remaining = list(args)
    while remaining:
        arg = remaining.pop(0)
        key, equals, text = arg.partition("=")
        is_option = arg.startswith("--")
        is_key = re.fullmatch(r"[A-Za-z_][\w.-]*", key) is not None and ("." in key or not only_dotted)
        if not is_option and not (equals and is_key and not Path(arg).exists()):
            names.append(arg)
            continue
        if not equals:
            if not remaining:
                raise ConfigError(f"{arg} requires a value: {arg} VALUE")
            text = remaining.pop(0)
        override = Override(key.removeprefix("--"), text)
        previous = overrides.setdefault(override.key.replace("-", "_"), override)
        if previous is not override:
            raise ConfigError(f"{override.option} is set twice, to {previous.text!r} and {text!r}: remove one of them")
    return names, list(overrides.values())


def parse_overrides(args: Sequence[str | Override]) -> list[Override]:
    """Return the settings in ``args`` in order; parsed overrides are returned unchanged.

    Raises:
        ConfigError: An argument is not a setting.
    """
    overrides: list[Override] = []
    for is_text, group in groupby(args, lambda arg: isinstance(arg, str)):
        if not is_text:
            overrides += [arg for arg in group if isinstance(arg, Override)]
            continue
        names, parsed = split_args([arg for arg in group if isinstance(arg, str)])
        if names:
            raise ConfigError(f"{names[0]!r} is not a setting: expected key=value or --key value")
        overrides += parsed
    return overrides


def parse_value(override: Override, settings: type[BaseModel]) -> Any:
    """Return the value of a setting: a number, list, mapping, true, false or null as in YAML, else the text as typed.

    If the setting is text (a path, a name), everything except ``null`` is text, so that ``2024`` and ``a #1.jsonl`` are
    paths. Quotes around the whole text are removed unless they belong to an existing path.

    Args:
        override: The setting.
        settings: The class of settings that contains the key.

    Raises:
        ConfigError: A list or mapping is not YAML.
    """
    text = override.text
    text_expected = takes_text(settings, override.key.split("."))
    if text_expected and Path(text).expanduser().exists():
        return text
    try:
        value = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError):  # ValueError: a date that does not exist
        if text.lstrip()[:1] in ("[", "{") and not text_expected:
            raise ConfigError(f"{override.option} {text}: the value is not YAML") from None
        return text
    is_quoted = text[:1] in ("'", '"') and isinstance(value, str)
    if is_quoted or (value is None and text_expected):
        return value
    is_collection = isinstance(value, (list, dict)) and text.lstrip()[:1] in ("[", "{")
    if not text_expected and (is_collection or value is None or isinstance(value, (bool, int, float))):
        return value
    return text


def takes_text(settings: type[BaseModel], keys: Sequence[str]) -> bool:
    """Return whether the setting at ``keys`` is text; ``False`` if its class depends on a ``kind``."""
    field = settings.model_fields.get(keys[0].replace("-", "_"))
    if field is None:
        return False
    is_union = get_origin(field.annotation) in (Union, UnionType)
    types = get_args(field.annotation) if is_union else (field.annotation,)
    if len(keys) == 1:
        return str in types
    return any(isinstance(t, type) and issubclass(t, BaseModel) and takes_text(t, keys[1:]) for t in types)


def set_value(config: dict[str, Any], key: str, value: Any) -> KeyPath:
    """Set a dotted key in place; a stage is addressed by its name or its number (``stages.step1.lr``).

    A field may be written with dashes: ``data.max-length``.

    Returns:
        The keys and indices of the value.

    Raises:
        ConfigError: A parent in the key is not a mapping, or the stage is unknown.
    """
    *parents, last = key.split(".")
    node: Any = config
    path: list[str | int] = []
    for parent in parents:
        if isinstance(node, list):
            index = _index(node, parent, key)
            path.append(index)
            node = node[index]
        elif isinstance(node, dict):
            path.append(_field(node, parent))
            node = node.setdefault(path[-1], {})
        else:
            break
    if not isinstance(node, dict):
        raise ConfigError(f"--{key}: {'.'.join(parents)} is a single value, without keys")
    last = _field(node, last)
    node[last] = value
    return (*path, last)


def flatten(settings: Mapping[str, Any], parent: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the dotted key and the value of each setting in nested mappings; an empty mapping is a value."""
    for name, value in settings.items():
        key = f"{parent}{name}"
        if isinstance(value, Mapping) and value:
            yield from flatten(value, f"{key}.")
        else:
            yield key, value


def parse_settings(
    settings: type[BaseModel], overrides: Sequence[Override], defaults: Mapping[str, Any] | None = None
) -> tuple[dict[str, Any], dict[KeyPath, str]]:
    """Return ``defaults`` with the overrides, and the option of each override, for ``validate``.

    Raises:
        ConfigError: As of :func:`set_value`.
    """
    raw = dict(defaults or {})
    locations = {}
    for override in overrides:
        locations[set_value(raw, override.key, parse_value(override, settings))] = override.option
    return raw, locations


def _field(mapping: Mapping[str, Any], name: str) -> str:
    return name if name in mapping else name.replace("-", "_")


def _index(items: list[Any], name: str, key: str) -> int:
    if name.isdigit() and int(name) < len(items):
        return int(name)
    indices = {str(item.get("name")): index for index, item in enumerate(items) if isinstance(item, dict)}
    item_name = _field(indices, name)
    if item_name not in indices:
        raise ConfigError(f"--{key}: there is no stage {name!r}{nearest(name, indices)}")
    return indices[item_name]
