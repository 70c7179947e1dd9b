"""The base of all settings; each class of settings is defined beside the component that it configures."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator
from pydantic_core import PydanticCustomError

from meetlm.config.errors import nearest


class Settings(BaseModel):
    """Frozen settings: values are checked, and unknown keys are refused with the nearest name."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)

    @model_validator(mode="before")
    @classmethod
    def _known_keys(cls, value: Any) -> Any:
        if isinstance(value, dict):
            for key in value:
                if key not in cls.model_fields:
                    values = {"key": key, "hint": nearest(str(key), cls.model_fields)}
                    raise PydanticCustomError("unknown_key", "unknown key '{key}'{hint}", values)
        return value


def problems(error: ValidationError) -> list[tuple[tuple[str | int, ...], str]]:
    """Return the location and the message of each problem that pydantic has found."""
    result: list[tuple[tuple[str | int, ...], str]] = []
    details = error.errors(include_url=False)
    for detail in details:
        loc = detail["loc"]
        if detail["type"] == "too_short" and any(
            other is not detail and other["loc"][: len(loc)] == loc for other in details
        ):
            continue  # only short because of the problems inside
        raised = detail.get("ctx", {}).get("error")
        if isinstance(raised, ValueError) and isinstance(raised.__cause__, ValidationError):
            result += [((*loc, *inner), message) for inner, message in problems(raised.__cause__)]
            continue
        if detail["type"] == "unknown_key":
            result.append(((*loc, detail["ctx"]["key"]), detail["msg"]))
            continue
        message = detail["msg"].removeprefix("Value error, ")
        if detail["type"] not in ("value_error", "missing"):
            message += f", got {detail['input']!r}"
        result.append((tuple(loc), message))
    return result
