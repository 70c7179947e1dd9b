"""Reads YAML files as mappings, and validates mappings as settings.

Errors name the file and line of a setting, or its option, and the key.
"""

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
    """Return the mapping in a YAML file, and the location of each key as ``file:line``.

    Raises:
        ConfigError: The file is missing, is not YAML or not a mapping, or repeats a key.
    """
    try:
        text = path.read_text(encoding="utf-8")
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        value = yaml.safe_load(text)
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}; expected a YAML file of settings") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8: {error}") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        problem = str(getattr(error, "problem", error)).replace("the node content", "a value")
        problem = problem.replace("'<stream end>'", "the end of the file")
        raise ConfigError(f"{path}{line}: not YAML: {problem}; check quotes, brackets and indentation") from error
    if not isinstance(value, dict):
        kind = "an empty file" if value is None else type(value).__name__
        raise ConfigError(f"{path}: expected a mapping of settings, got {kind}")
    locations: dict[KeyPath, str] = {}
    _locate_keys(node, (), path, locations)
    return value, locations


def merge(base: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``base`` with its values replaced by those of ``overrides``, recursively.

    A mapping of another ``kind`` (of control or objective) replaces the whole mapping.
    """
    merged = dict(base)
    for key, value in overrides.items():
        current = merged.get(key)
        if isinstance(value, Mapping) and isinstance(current, Mapping):
            is_other_kind = "kind" in value and "kind" in current and value["kind"] != current["kind"]
            merged[key] = dict(value) if is_other_kind else merge(current, value)
        else:
            merged[key] = value
    return merged


def validate(settings: type[S], value: Any, locations: Mapping[KeyPath, str], name: str) -> S:
    """Return ``value`` as validated settings.

    Args:
        settings: The class.
        value: A mapping.
        locations: The file and line, or the option, that each key comes from.
        name: Name of the settings in messages, for keys without a location.

    Raises:
        ConfigError: Lists every problem with its location.
    """
    try:
        return settings.model_validate(value)
    except ValidationError as error:
        lines = []
        for loc, message in problems(error):
            options_within = [
                key
                for key, location in locations.items()
                if loc and key[: len(loc)] == loc and location.startswith("--")
            ]
            key_and_parents = [loc[:length] for length in range(len(loc), 0, -1)]
            located_key = next((key for key in (*options_within, *key_and_parents) if key in locations), ())
            location = locations.get(located_key, name)
            if location.startswith("--") and loc[: len(located_key)] == located_key:  # the option names these parts
                loc = tuple(part for part in loc[len(located_key) :] if isinstance(part, str))
            key = ".".join(map(str, loc))
            lines.append(f"{location}: {key + ': ' if key else ''}{message}")
        raise ConfigError("\n".join(lines)) from error


def _locate_keys(node: yaml.Node | None, parent: KeyPath, path: Path, locations: dict[KeyPath, str]) -> None:
    """Add the location of every key and list entry in ``node`` to ``locations``."""
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            if (*parent, key.value) in locations:
                raise ConfigError(f"{path}:{key.start_mark.line + 1}: key {key.value!r} is repeated")
            locations[(*parent, key.value)] = f"{path}:{key.start_mark.line + 1}"
            _locate_keys(value, (*parent, key.value), path, locations)
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            locations[(*parent, index)] = f"{path}:{value.start_mark.line + 1}"
            _locate_keys(value, (*parent, index), path, locations)
