"""The base of all settings; each class of settings is defined beside the component that it configures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator
from pydantic_core import PydanticCustomError

from meetlm.config.errors import encodable, nearest


class Settings(BaseModel):
    """Frozen settings: values are validated, numbers are finite, and unknown keys are refused with the nearest name."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _known_keys(cls, value: Any) -> Any:
        if isinstance(value, dict):
            for key in value:
                if key not in cls.model_fields:
                    name = encodable(str(key))
                    values = {"key": name, "hint": nearest(name, cls.model_fields)}
                    raise PydanticCustomError("unknown_key", "unknown key '{key}'{hint}", values)
        return value


_PLAIN_WORDS = {
    "missing": "is required",
    "int_type": "expected a whole number",
    "int_parsing": "expected a whole number",
    "int_from_float": "expected a whole number",
    "float_type": "expected a number",
    "float_parsing": "expected a number",
    "finite_number": "expected a finite number",
    "bool_type": "expected true or false",
    "bool_parsing": "expected true or false",
    "string_type": "expected text",
    "string_too_short": "expected {min_length} or more characters",
    "string_too_long": "expected {max_length} or fewer characters",
    "list_type": "expected a list",
    "tuple_type": "expected a list",
    "dict_type": "expected a mapping of names to values",
    "model_type": "expected a mapping of settings",
    "literal_error": "expected {expected}",
    "greater_than": "expected a number greater than {gt:g}",
    "greater_than_equal": "expected {ge:g} or more",
    "less_than": "expected a number less than {lt:g}",
    "less_than_equal": "expected {le:g} or less",
    "too_short": "expected {min_length} or more entries",
    "too_long": "expected {max_length} or fewer entries",
}
"""Messages by pydantic's type of error, in plain English."""


def problems(error: ValidationError) -> list[tuple[tuple[str | int, ...], str]]:
    """Return the location and the message of each problem that pydantic reports."""
    return plain_problems(error.errors(include_url=False))


def plain_problems(details: Sequence[Mapping[str, Any]]) -> list[tuple[tuple[str | int, ...], str]]:
    """Return the location and the message of each of pydantic's ``errors()``."""
    result: list[tuple[tuple[str | int, ...], str]] = []
    for detail in details:
        loc, kind, context = detail["loc"], detail["type"], detail.get("ctx", {})
        if kind == "too_short" and any(other is not detail and other["loc"][: len(loc)] == loc for other in details):
            continue  # only short because of the problems inside
        if kind == "unknown_key":
            result.append(((*loc, context["key"]), detail["msg"]))
        elif kind == "value_error":
            result.append(((*loc, *getattr(context["error"], "loc", ())), str(context["error"])))
        else:
            message = _PLAIN_WORDS[kind].format(**context) if kind in _PLAIN_WORDS else detail["msg"]
            result.append((loc, message if kind == "missing" else f"{message}, got {detail['input']!r}"))
    return result
