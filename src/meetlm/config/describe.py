"""Write settings as YAML with an explanation of each; reading it back gives the same settings."""

from __future__ import annotations

import inspect
import textwrap
from collections.abc import Iterator
from typing import Any

import yaml

from meetlm.config.settings import Settings

WIDTH = 110


def describe(settings: Settings) -> str:
    """Return all fields with their values, and their descriptions as comments.

    In a list of settings, such as stages, only the first has comments.
    """
    return "".join(f"{line}\n" for line in _lines(settings, commented=True, depth=0))


def _lines(settings: Settings, *, commented: bool, depth: int) -> Iterator[str]:
    json_values = settings.model_dump(mode="json")
    for name, field in type(settings).model_fields.items():
        value = getattr(settings, name)
        if isinstance(value, Settings):
            if depth == 0:
                yield ""
            yield from _commented(f"{name}:", inspect.getdoc(type(value)) if commented else None, depth)
            yield from _indented(_lines(value, commented=commented, depth=depth + 1), "  ")
        elif isinstance(value, tuple) and value and all(isinstance(item, Settings) for item in value):
            if depth == 0:
                yield ""
            yield f"{name}:"
            for number, item in enumerate(value):
                lines = _lines(item, commented=commented and number == 0, depth=depth + 2)
                yield from _indented(lines, "    ", first_indent="  - ")
        else:
            yield from _commented(
                f"{name}: {flow_yaml(json_values[name])}", field.description if commented else None, depth
            )


def flow_yaml(value: Any) -> str:
    """Return a value as one line of YAML."""
    text: str = yaml.safe_dump(value, default_flow_style=True, sort_keys=False, allow_unicode=True, width=10**6)
    return text.removesuffix("...\n").strip()


def _commented(line: str, description: str | None, depth: int) -> list[str]:
    if not description:
        return [line]
    text = " ".join(description.split("\n\n")[0].split())
    commented = f"{line}  # {text}"
    if len(commented) <= WIDTH - 2 * depth:
        return [commented]
    return [*textwrap.wrap(text, WIDTH - 2 * depth, initial_indent="# ", subsequent_indent="# "), line]


def _indented(lines: Iterator[str], indent: str, first_indent: str | None = None) -> Iterator[str]:
    for number, line in enumerate(lines):
        yield (first_indent if first_indent is not None and number == 0 else indent) + line
