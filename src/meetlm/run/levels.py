"""Levels as a user gives them: a name, a place on the scale from worst to best, or weights of several levels."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from numbers import Real
from typing import Any

from meetlm.config.errors import ConfigError, nearest
from meetlm.data.levels import LevelSpace

Level = str | float | Mapping[str, float]
"""A level's name; a number (0 = worst, 1 = best, beyond extrapolates); or weights: ``{"good": 1.5, "bad": -0.5}``."""


def parse_level(text: str | None) -> Level | None:
    """Return the level that the text of ``--level`` stands for; ``None`` for no text.

    Raises:
        ConfigError: A weight is not a number.
    """
    if not text:
        return None
    if "=" not in text:
        try:
            return float(text)
        except ValueError:
            return text
    weights = {}
    for part in text.split(","):
        name, _, number = part.partition("=")
        try:
            weights[name.strip()] = float(number)
        except ValueError:
            raise ConfigError(
                f"--level {text!r}: expected a name, a number, or weights such as good=1.5,bad=-0.5"
            ) from None
    return weights


def resolve_level(levels: Sequence[str], level: Level) -> str | dict[str, float]:
    """Return a level's name, or the weights of levels; what a number stands for included.

    A number between 0 and 1 is a place on the scale: the weights of the two nearest levels are interpolated. Beyond,
    they are extrapolated: with levels bad and good, 1.5 is good=1.5, bad=-0.5.

    Args:
        levels: Names, worst first.
        level: As the user gives it.

    Raises:
        ConfigError: A level is unknown, a number is not finite, or there is only one level and so no scale.
    """
    if isinstance(level, str | Mapping):
        names = [level] if isinstance(level, str) else list(level)
        for name in names:
            if name not in levels:
                raise ConfigError(f"unknown level {name!r}{nearest(str(name), levels)}")
        if isinstance(level, str):
            return level
        if not names or not all(_is_finite(weight) for weight in level.values()):
            raise ConfigError(f"level {dict(level)}: expected names with finite numbers as weights")
        return {name: float(weight) for name, weight in level.items()}
    if not _is_finite(level):
        raise ConfigError(f"level {level!r}: expected a name, a finite number, or a mapping of names to weights")
    return _on_scale(levels, float(level))


def scales_of(levels: LevelSpace) -> dict[str, tuple[str, ...]]:
    """Return the names of the levels of each attribute that is a scale: with an order, or with two levels."""
    return {
        attribute.name: tuple(levels[index] for index in levels.ranges[attribute.name])
        for attribute in levels.attributes
        if attribute.is_ordered or len(attribute.levels) == 2
    }


def dial_warning(levels: LevelSpace, dial: Mapping[str, Mapping[str, Any]], level: Level) -> str | None:
    """Return a warning about a level outside the safe range that `meet dial` has recorded; ``None`` inside it.

    Args:
        levels: All levels.
        dial: The recorded range of each attribute.
        level: What :func:`resolve_level` returned.
    """
    weights = {level: 1.0} if isinstance(level, str) else level
    assert isinstance(weights, Mapping), "the level is resolved"
    for attribute, names in scales_of(levels).items():
        stated = [weights.get(name, 0.0) for name in names]
        limits = dial.get(attribute)
        if limits is None or len(names) < 2 or not math.isclose(sum(stated), 1, abs_tol=1e-9):
            continue
        setting = sum(weight * place for place, weight in enumerate(stated)) / (len(names) - 1)
        if not limits["low"] - 1e-9 <= setting <= limits["high"] + 1e-9:
            about = f"{attribute} " if attribute else ""
            return (
                f"{about}{setting:g} is outside the safe range {limits['low']:g} to {limits['high']:g} of `meet dial`: "
                f"replies may repeat themselves or be cut off (recommended: {limits['recommended']:g})"
            )
    return None


def level_text(level: Level) -> str:
    """Return a level as ``--level`` takes it."""
    if isinstance(level, Mapping):
        return ",".join(f"{name}={weight:g}" for name, weight in level.items())
    return level if isinstance(level, str) else f"{level:g}"


def _is_finite(value: object) -> bool:
    if isinstance(value, bool):
        return False
    return isinstance(value, Real) and math.isfinite(value)


def _on_scale(levels: Sequence[str], place: float) -> str | dict[str, float]:
    if len(levels) < 2:
        raise ConfigError(f"level {place:g}: there is one level ({levels[0]}) and so no scale; pass its name")
    steps = place * (len(levels) - 1)
    lower = min(max(math.floor(steps), 0), len(levels) - 2)
    share = round(steps - lower, 12)
    if share in (0, 1):
        return levels[lower + int(share)]
    return {levels[lower]: round(1 - share, 12), levels[lower + 1]: share}
