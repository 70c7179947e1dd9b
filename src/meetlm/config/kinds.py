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
    """Return validated settings of the kind that ``value['kind']`` names.

    Args:
        registry: Registry of entries with ``settings``.
        base: Class that all these settings derive from; an instance of this class is returned unchanged.
        value: A mapping.

    Raises:
        ConfigError: There is no kind, it is unknown, or a setting is wrong.
    """
    try:
        return parse_field(registry, base, value)
    except _KindError as error:
        raise ConfigError(str(error)) from error
    except ValidationError as error:
        texts = [f"{'.'.join(map(str, loc))}: {text}" if loc else text for loc, text in problems(error)]
        raise ConfigError(f"{registry.entry_name}: " + "; ".join(texts)) from error


def parse_field(registry: Registry[Any], base: type[Settings], value: Any) -> Any:
    """Return the settings as :func:`parse_kind` does, but raise ``ValueError``, to which pydantic adds the location.

    Raises:
        ValueError: There is no kind, it is unknown, or a setting is wrong.
    """
    if isinstance(value, base):
        return value
    name = registry.entry_name
    if not isinstance(value, dict) or "kind" not in value:
        raise _KindError(f"{name}: expected a mapping with 'kind', one of {', '.join(registry)}; got {value!r}", ())
    try:
        entry: HasSettings = registry[str(value["kind"])]
    except ConfigError as error:
        raise _KindError(str(error), ("kind",)) from error
    return entry.settings.model_validate(value)


class _KindError(ValueError):
    """A kind that is missing or unknown.

    Attributes:
        loc: Location of the problem in the settings.
    """

    def __init__(self, message: str, loc: tuple[str, ...]) -> None:
        super().__init__(message)
        self.loc = loc
