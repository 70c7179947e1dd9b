"""Settings whose class depends on their ``kind``, such as those of controls and objectives."""

from __future__ import annotations

from typing import Any, Protocol

from pydantic import ValidationError

from meetlm.config.errors import ConfigError
from meetlm.config.registry import Registry
from meetlm.config.settings import Settings, problems


class HasSettings(Protocol):
    """An entry of a registry with a class of settings."""

    @property
    def settings(self) -> type[Settings]:
        """The class of settings."""


def parse_kind(registry: Registry[Any], base: type[Settings], value: Any) -> Any:
    """Return checked settings of the kind that ``value['kind']`` names.

    Args:
        registry: Registry of entries with ``settings``.
        base: Class that all these settings derive from; a value of this class is returned as it is.
        value: A mapping.

    Raises:
        ConfigError: There is no kind, it is unknown, or a setting is wrong.
    """
    if isinstance(value, base):
        return value
    name = registry.entry_name
    if not isinstance(value, dict) or "kind" not in value:
        raise ConfigError(f"{name}: expected a mapping with 'kind', one of {', '.join(registry)}; got {value!r}")
    entry: HasSettings = registry[str(value["kind"])]
    try:
        return entry.settings.model_validate(value)
    except ValidationError as error:
        texts = [f"{'.'.join(map(str, loc))}: {text}" if loc else text for loc, text in problems(error)]
        raise ConfigError(f"{name}: " + "; ".join(texts)) from error


def parse_field(registry: Registry[Any], base: type[Settings], value: Any) -> Any:
    """Call :func:`parse_kind` as a pydantic validator: its error is a ``ValueError`` whose cause has the places."""
    try:
        return parse_kind(registry, base, value)
    except ConfigError as error:
        raise ValueError(str(error)) from error.__cause__
