"""Settings whose class depends on their ``kind``, such as those of controls and objectives."""

from __future__ import annotations

from typing import Any

from meetlm.config.errors import ConfigError
from meetlm.config.registry import Registry
from meetlm.config.settings import Settings


def parse_field(registry: Registry[Any], base: type[Settings], value: Any) -> Any:
    """Return validated settings of the kind that ``value['kind']`` names, for a validator of pydantic.

    Args:
        registry: Registry of entries with ``settings``, their class of settings.
        base: Class that all these settings derive from; an instance of this class is returned unchanged.
        value: A mapping.

    Raises:
        ValueError: There is no kind, it is unknown, or a setting is wrong.
    """
    if isinstance(value, base):
        return value
    name = registry.entry_name
    if not isinstance(value, dict) or "kind" not in value:
        raise _KindError(f"{name}: expected a mapping with 'kind', one of {', '.join(registry)}; got {value!r}", ())
    try:
        settings: type[Settings] = registry[str(value["kind"])].settings
    except ConfigError as error:
        raise _KindError(str(error), ("kind",)) from error
    return settings.model_validate(value)


class _KindError(ValueError):
    """A kind that is missing or unknown.

    Attributes:
        loc: Location of the problem in the settings.
    """

    def __init__(self, message: str, loc: tuple[str, ...]) -> None:
        super().__init__(message)
        self.loc = loc
