"""YAML files and command-line overrides to plain mappings, and mappings to checked settings.

Later layers win: preset, recipe, config file, overrides. Errors name the file, the line and the key.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import ValidationError

from meetlm.config.errors import ConfigError, nearest
from meetlm.config.settings import Settings, problems

S = TypeVar("S", bound=Settings)
Place = tuple[str | int, ...]


def read_yaml(path: Path) -> tuple[dict[str, Any], dict[Place, str]]:
    """Return the mapping in a YAML file, and for each key in it its place as ``file:line``.

    Raises:
        ConfigError: It is missing, is not YAML, is no mapping, or has a key twice.
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
        raise ConfigError(f"{path}: expected a mapping of settings, found {type(value).__name__}")
    places: dict[Place, str] = {}
    _places(node, (), path, places)
    return value, places


def merge(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``below`` with ``above`` over it, mapping by mapping.

    A control of another kind replaces the one below rather than mixing with it.
    """
    merged = dict(below)
    for key, value in above.items():
        under = merged.get(key)
        if isinstance(value, Mapping) and isinstance(under, Mapping):
            other = "kind" in value and "kind" in under and value["kind"] != under["kind"]
            merged[key] = dict(value) if other else merge(under, value)
        else:
            merged[key] = value
    return merged


def parse_overrides(words: Sequence[str]) -> list[tuple[str, str]]:
    """Return (dotted key, text) of ``--a.b value``, ``--a.b=value`` and ``a.b=value``.

    Raises:
        ConfigError: A word is none of these.
    """
    pairs: list[tuple[str, str]] = []
    rest = list(words)
    while rest:
        word = rest.pop(0)
        key, equals, value = word.partition("=")
        if not equals:
            if not word.startswith("--") or not rest:
                raise ConfigError(f"override {word!r}: expected key=value or --key value")
            value = rest.pop(0)
        pairs.append((key.removeprefix("--"), value))
    return pairs


def split_words(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return the names among a command's words, and its overrides in any of the three forms; each in order."""
    names, overrides = [], []
    rest = list(words)
    while rest:
        word = rest.pop(0)
        if re.match(r"(--)?[A-Za-z_][\w.-]*=", word):
            overrides.append(word)
        elif word.startswith("--"):
            overrides += [word, *rest[:1]]
            del rest[:1]
        else:
            names.append(word)
    return names, overrides


def override(config: dict[str, Any], key: str, text: str) -> Place:
    """Set a dotted key in place; a stage may be addressed by its name or its number (``stages.step1.lr``).

    A field may be written as an option is, with dashes: ``data.max-length``.

    Returns:
        The keys and indices that it stands under.

    Raises:
        ConfigError: The value is not YAML, or the key goes through something that is no mapping.
    """
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"override {key}={text}: the value is not YAML") from error
    *parents, last = key.split(".")
    here: Any = config
    place: list[str | int] = []
    for part in parents:
        if isinstance(here, list):
            index = _index(here, part, key)
            place.append(index)
            here = here[index]
        elif isinstance(here, dict):
            place.append(_field(here, part))
            here = here.setdefault(place[-1], {})
        else:
            break
    if not isinstance(here, dict):
        raise ConfigError(f"override {key}: {'.'.join(parents)} has no keys")
    last = _field(here, last)
    here[last] = value
    return (*place, last)


def check(settings: type[S], value: Any, places: Mapping[Place, str], what: str) -> S:
    """Return ``value`` as checked settings.

    Args:
        settings: The class.
        value: A mapping.
        places: Where keys were read, for messages.
        what: What is checked, for values that came from no file.

    Raises:
        ConfigError: Lists every problem with its place.
    """
    try:
        return settings.model_validate(value)
    except ValidationError as error:
        lines = []
        for loc, message in problems(error):
            place = next((places[loc[:n]] for n in range(len(loc), 0, -1) if loc[:n] in places), what)
            key = ".".join(map(str, loc))
            lines.append(f"{place}: {key + ': ' if key else ''}{message}")
        raise ConfigError("\n".join(lines)) from error


def _field(mapping: Mapping[str, Any], name: str) -> str:
    return name if name in mapping else name.replace("-", "_")


def _index(items: list[Any], name: str, key: str) -> int:
    if name.isdigit() and int(name) < len(items):
        return int(name)
    named = {str(item.get("name")): index for index, item in enumerate(items) if isinstance(item, dict)}
    found = _field(named, name)
    if found not in named:
        raise ConfigError(f"override {key}: there is no {name!r}{nearest(name, named)}")
    return named[found]


def _places(node: yaml.Node | None, at: Place, path: Path, places: dict[Place, str]) -> None:
    if isinstance(node, yaml.MappingNode):
        seen = set()
        for key, value in node.value:
            if key.value in seen:
                raise ConfigError(f"{path}:{key.start_mark.line + 1}: key {key.value!r} stands twice")
            seen.add(key.value)
            places[(*at, key.value)] = f"{path}:{key.start_mark.line + 1}"
            _places(value, (*at, key.value), path, places)
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            places[(*at, index)] = f"{path}:{value.start_mark.line + 1}"
            _places(value, (*at, index), path, places)
