"""Levels in requests: names, numbers from worst to best, or weights; per attribute if there are several."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any

from meetlm.config.errors import ConfigError, LevelChoiceError, nearest
from meetlm.data.levels import Attribute, LevelSpace

Level = str | float | Mapping[str, str | float]
"""A level in a request.

* The name of a level: ``"good"``.
* A number on the scale: 0 = worst level, 1 = best level; numbers outside this range extrapolate.
* Weights of levels: ``{"good": 1.5, "bad": -0.5}``, ``{"tone=formal": 1.3}``.
* A name or a number per attribute: ``{"tone": "formal", "length": 0.7}``.
"""
EXPECTED = "a name, a finite number, weights such as good=1.5,bad=-0.5, or attributes such as tone=formal,length=brief"


@dataclass(frozen=True, slots=True)
class Guidance:
    """Guidance: sample from ℓ + s·(ℓ − ℓ_against), where ℓ are the logits at the level.

    Attributes:
        strength: s; 0 = none.
        against: The level to move away from; ``None`` = the worst level of each attribute in the level.
    """

    strength: float = 0.0
    against: Level | None = None


NO_GUIDANCE = Guidance()


def parse_level(text: str | None, option: str = "--level") -> Level | None:
    """Return the level in the text of ``--level``; ``None`` for empty text.

    Args:
        text: The text.
        option: The option with the text, for messages.

    Raises:
        ConfigError: A part of it has no name or no value, or two parts have one name.
    """
    if not text:
        return None
    if "=" not in text:
        number = _number(text)
        return text if number is None else number
    level: dict[str, str | float] = {}
    for part in text.split(","):
        name, _, value = (piece.strip() for piece in part.rpartition("="))
        if not name or not value:
            raise ConfigError(f"{option} {text!r}: expected {EXPECTED}")
        if name in level:
            raise ConfigError(f"{option} {text!r}: {name!r} is given twice")
        number = _number(value)
        level[name] = value if number is None else number
    return level


def resolve_level(levels: LevelSpace | Sequence[str], level: Level) -> str | dict[str, float]:
    """Return the name of a level, or weights of levels for a number, a mix, or levels of attributes.

    A number from 0 to 1 interpolates the weights of the two nearest levels; numbers outside this range extrapolate:
    with levels bad and good, 1.5 is good=1.5, bad=-0.5.

    Args:
        levels: All levels; a list of names is one attribute, worst first.
        level: The level in the request.

    Raises:
        LevelChoiceError: A level or an attribute is unknown, a number is not finite, or a number has no scale: there is
            a single level, the levels have no order, or there are several attributes.
    """
    space = levels if isinstance(levels, LevelSpace) else LevelSpace.of_names(*levels)
    if isinstance(level, str):
        if level not in space:
            raise LevelChoiceError(f"level {level!r} is unknown{nearest(level, space)}")
        return level
    if isinstance(level, Mapping):
        if not level:
            raise LevelChoiceError(f"level {{}}: expected {EXPECTED}")
        weights: dict[str, float] = {}
        for name, value in level.items():
            weights |= _weights(space, name, value)
        return weights
    if not _is_finite(level):
        raise LevelChoiceError(f"level {level!r}: expected {EXPECTED}")
    if len(space.attributes) > 1:
        names = [attribute.name for attribute in space.attributes]
        raise LevelChoiceError(
            f"level {level:g}: there are {len(names)} attributes ({', '.join(names)}); name one, as in "
            f"{names[0]}={level:g}"
        )
    return _on_scale(space.attributes[0], float(level))


def weights_by_name(resolved: str | Mapping[str, float]) -> dict[str, float]:
    """Return what :func:`resolve_level` returned as weights of levels."""
    return {resolved: 1.0} if isinstance(resolved, str) else dict(resolved)


def change_level(
    levels: LevelSpace, level: str | dict[str, float], change: str | dict[str, float]
) -> str | dict[str, float]:
    """Return ``change``, with the weights of ``level`` for attributes that ``change`` does not contain."""
    weights, changed = weights_by_name(level), weights_by_name(change)
    replaced = [names for names in _names(levels).values() if any(name in changed for name in names)]
    unchanged = {name: weight for name, weight in weights.items() if not any(name in names for names in replaced)}
    return {**unchanged, **changed} if unchanged else change


def levels_text(levels: LevelSpace) -> str:
    """Return all levels in words, such as ``tone: casual, formal; length: brief, detailed (worst first)``."""
    return "; ".join(
        (f"{attribute.name}: " if attribute.name else "")
        + ", ".join(attribute.levels)
        + (" (worst first)" if attribute.is_ordered and len(attribute.levels) > 1 else "")
        for attribute in levels.attributes
    )


def scales_of(levels: LevelSpace) -> dict[str, tuple[str, ...]]:
    """Return the names of the levels of each ordered attribute, worst first."""
    return {
        attribute.name: tuple(levels[index] for index in levels.ranges[attribute.name])
        for attribute in levels.attributes
        if attribute.is_ordered
    }


def check_scale(levels: LevelSpace, attribute: str) -> None:
    """Refuse an attribute whose levels have no order.

    Raises:
        ConfigError: It is unknown, or its levels have no order.
    """
    attributes = {each.name: each for each in levels.attributes}
    if attribute not in attributes:
        raise ConfigError(f"no attribute {attribute!r}{nearest(attribute, attributes)}")
    if not attributes[attribute].is_ordered:
        raise ConfigError(_no_order(attributes[attribute]))


def _no_order(attribute: Attribute) -> str:
    """Return the message that the levels of an attribute have no order, and how to order them."""
    of = f" of {attribute.name}" if attribute.name else ""
    setting = f"data.attribute_levels.{attribute.name}.names" if attribute.name else "data.levels.names"
    return (
        f"the levels{of} ({', '.join(attribute.levels)}) have no order; to order them, train with --{setting} and "
        "their names from worst to best"
    )


def dial_key(attribute: str, by: str) -> str:
    """Return the key in ``meet.json`` of the calibration of an attribute's level, or of guidance at its best level."""
    return attribute if by == "level" else f"guidance of {attribute}".removesuffix(" of ")


def dial_warning(
    levels: LevelSpace,
    dial: Mapping[str, Mapping[str, Any]],
    level: str | Mapping[str, float],
    guidance: float = 0.0,
) -> str | None:
    """Return a warning if a setting is outside the safe range that `meet dial` has recorded, else ``None``.

    Args:
        levels: All levels.
        dial: The recorded range of each attribute.
        level: What :func:`resolve_level` returned.
        guidance: Strength of guidance.
    """
    weights = weights_by_name(level)
    for attribute, names in scales_of(levels).items():
        level_weights = [weights.get(name, 0.0) for name in names]
        if len(names) < 2 or not math.isclose(sum(level_weights), 1, abs_tol=1e-9):
            continue
        setting = sum(weight * index for index, weight in enumerate(level_weights)) / (len(names) - 1)
        for by, value in (("level", setting), ("guidance", guidance)):
            key = dial_key(attribute, by)
            limits = dial.get(key)
            if limits is None or limits["low"] - 1e-9 <= value <= limits["high"] + 1e-9:
                continue
            about = f"{key} " if key else ""
            return (
                f"{about}{value:g} is outside the safe range {limits['low']:g} to {limits['high']:g} of `meet dial`: "
                f"replies may repeat themselves or be cut off (recommended: {limits['recommended']:g})"
            )
    return None


def calibrated_level(levels: LevelSpace, dial: Mapping[str, Mapping[str, Any]]) -> str | dict[str, float]:
    """Return the default level of requests: the best level, or the level that `meet dial` recommends.

    A recommended setting replaces the best level of its attribute if its gain over the best level is significant.

    Args:
        levels: All levels.
        dial: The record of `meet dial` for each attribute.
    """
    level = levels.best_level
    for attribute, names in scales_of(levels).items():
        limits = dial.get(attribute, {})
        if limits.get("improves"):
            level = change_level(levels, level, resolve_level(names, limits["recommended"]))
    return level


def level_text(level: Level) -> str:
    """Return a level in the syntax of ``--level``."""
    if isinstance(level, Mapping):
        return ",".join(
            name if "=" in name and value == 1 else f"{name}={_text(value)}" for name, value in level.items()
        )
    return _text(level)


def _text(value: str | float) -> str:
    return value if isinstance(value, str) else f"{value:g}"


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _is_finite(value: Any) -> bool:
    return not isinstance(value, bool) and isinstance(value, Real) and math.isfinite(value)


def _names(levels: LevelSpace) -> dict[str, list[str]]:
    """Return the names of the levels of each attribute, by its name."""
    return {name: [levels[k] for k in indices] for name, indices in levels.ranges.items()}


def _weights(levels: LevelSpace, name: str, value: Any) -> dict[str, float]:
    """Return the weights of levels for a weight of a level, or for a level or number of an attribute."""
    attributes = {attribute.name: attribute for attribute in levels.attributes if attribute.name}
    if name in levels:
        if not _is_finite(value):
            raise LevelChoiceError(f"level {name!r} has the weight {value!r}; expected a finite number")
        return {name: float(value)}
    if name not in attributes:
        raise LevelChoiceError(f"level {name!r} is unknown{nearest(str(name), [*levels, *attributes])}")
    if isinstance(value, str):
        if value not in attributes[name].levels:
            raise LevelChoiceError(f"level {value!r} of {name} is unknown{nearest(value, attributes[name].levels)}")
        return {f"{name}={value}": 1.0}
    if not _is_finite(value):
        raise LevelChoiceError(f"level {name}={value!r}: expected the name of a level or a finite number")
    return weights_by_name(_on_scale(attributes[name], float(value)))


def _on_scale(attribute: Attribute, number: float) -> str | dict[str, float]:
    """Return the level at a number on the scale of an attribute, or the weights of two levels."""
    names = LevelSpace((attribute,)).names
    text = f"{attribute.name}={number:g}" if attribute.name else f"{number:g}"
    if len(names) < 2:
        raise LevelChoiceError(f"level {text}: the only level is {names[0]}, so there is no scale; pass its name")
    if not attribute.is_ordered:
        raise LevelChoiceError(f"level {text}: expected the name of a level, since {_no_order(attribute)}")
    steps = number * (len(names) - 1)
    lower = min(max(math.floor(steps), 0), len(names) - 2)
    share = round(steps - lower, 12)
    if share in (0, 1):
        return names[lower + int(share)]
    return {names[lower]: round(1 - share, 12), names[lower + 1]: share}
