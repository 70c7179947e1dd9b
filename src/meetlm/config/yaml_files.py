"""YAML files to plain mappings, and mappings to checked settings. Errors name the file, the line and the key."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import ValidationError

from meetlm.config.errors import ConfigError
from meetlm.config.overrides import KeyPath
from meetlm.config.settings import Settings, problems

S = TypeVar("S", bound=Settings)


def read_yaml(path: Path) -> tuple[dict[str, Any], dict[KeyPath, str]]:
    """Return the mapping in a YAML file, and the place of each key as ``file:line``.

    Raises:
        ConfigError: The file is missing, is not YAML or not a mapping, or repeats a key.
    """
    try:
        text = path.read_text(encoding="utf-8")
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        value = yaml.safe_load(text)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8: {error}") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        raise ConfigError(f"{path}{line}: not YAML: {getattr(error, 'problem', error)}") from error
    if not isinstance(value, dict):
        kind = "an empty file" if value is None else type(value).__name__
        raise ConfigError(f"{path}: expected a mapping of settings, got {kind}")
    places: dict[KeyPath, str] = {}
    _places(node, (), path, places)
    return value, places


def merge(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``below`` with the values of ``above`` over it, recursively.

    A mapping of another ``kind`` (of control or objective) replaces the one below.
    """
    merged = dict(below)
    for key, value in above.items():
        under = merged.get(key)
        if isinstance(value, Mapping) and isinstance(under, Mapping):
            other_kind = "kind" in value and "kind" in under and value["kind"] != under["kind"]
            merged[key] = dict(value) if other_kind else merge(under, value)
        else:
            merged[key] = value
    return merged


def check(settings: type[S], value: Any, places: Mapping[KeyPath, str], name: str) -> S:
    """Return ``value`` as checked settings.

    Args:
        settings: The class.
        value: A mapping.
        places: The file and line, or the option, that each key comes from.
        name: What the settings are called, for values that come from neither a file nor an option.

    Raises:
        ConfigError: Lists every problem with its place.
    """
    try:
        return settings.model_validate(value)
    except ValidationError as error:
        lines = []
        for loc, message in problems(error):
            place = next((places[loc[:n]] for n in range(len(loc), 0, -1) if loc[:n] in places), name)
            key = ".".join(map(str, loc))
            is_named = not key or (loc in places and place.startswith("--"))
            lines.append(f"{place}: {'' if is_named else key + ': '}{message}")
        raise ConfigError("\n".join(lines)) from error


def _places(node: yaml.Node | None, at: KeyPath, path: Path, places: dict[KeyPath, str]) -> None:
    if isinstance(node, yaml.MappingNode):
        seen = set()
        for key, value in node.value:
            if key.value in seen:
                raise ConfigError(f"{path}:{key.start_mark.line + 1}: key {key.value!r} is repeated")
            seen.add(key.value)
            places[(*at, key.value)] = f"{path}:{key.start_mark.line + 1}"
            _places(value, (*at, key.value), path, places)
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            places[(*at, index)] = f"{path}:{value.start_mark.line + 1}"
            _places(value, (*at, index), path, places)
