"""Level schemes: how the feedback on one attribute becomes levels.

A scheme is one of three maps: names of levels, thresholds of scores, or the place of a score among the replies to its
prompt. A way to choose one from settings and data is one function with one registration.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

from meetlm.config.errors import ConfigError, nearest
from meetlm.config.registry import Registry
from meetlm.data.example import Rank
from meetlm.data.levels import Attribute
from meetlm.data.settings import LevelSettings

Value = str | float

MAX_VALUES = 7
"""Scores with at most this many distinct values get a level per value by default."""

DEFAULT_COUNT = 5
"""Number of quantile levels by default."""


@dataclass(frozen=True)
class LevelScheme:
    """The fitted scheme of one attribute.

    Attributes:
        attribute: Its levels.
        thresholds: Scores between the levels; a score on a threshold is in the upper level.
        within_prompt: Whether a score's level is its place among the scores of its prompt.
    """

    attribute: Attribute
    thresholds: tuple[float, ...] = ()
    within_prompt: bool = False

    def indices(self, values: Sequence[Value]) -> list[int | None]:
        """Return the level of each value of one prompt; ``None`` where the other values do not order it.

        Raises:
            LevelError: A value has no level.
        """
        if self.within_prompt:
            return _places([_number(value) for value in values], len(self.attribute.levels))
        if self.thresholds:
            return [bisect_right(self.thresholds, _number(value)) for value in values]
        return [self._named(value) for value in values]

    def _named(self, value: Value) -> int:
        if value not in self.attribute.levels:
            hint = nearest(str(value), self.attribute.levels)
            raise LevelError(f"unknown level {value!r}{hint}", value)
        return self.attribute.levels.index(str(value))

    def describe(self) -> str:
        """Return how the levels follow from the data, in words."""
        name = f"of {self.attribute.name} " if self.attribute.name else ""
        if self.within_prompt:
            return f"{name}by place among the replies to a prompt, worst first"
        if self.thresholds:
            return f"{name}by score, lowest first, parted at {', '.join(f'{score:.4g}' for score in self.thresholds)}"
        return f"{name}as named{', worst first' if self.attribute.is_ordered else ' (no order)'}"

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> LevelScheme:
        """Return what :meth:`to_dict` wrote."""
        attribute = fields["attribute"]
        levels = Attribute(attribute["name"], tuple(attribute["levels"]), attribute["is_ordered"])
        return cls(levels, tuple(fields["thresholds"]), fields["within_prompt"])


class LevelError(ValueError):
    """A value that has no level.

    Args:
        problem: What is wrong.
        value: The value.
    """

    def __init__(self, problem: str, value: Value) -> None:
        super().__init__(problem)
        self.value = value


def _number(value: Value) -> float:
    if isinstance(value, str):
        raise LevelError(f"is {value!r}, and the training rows have numbers", value)
    return value


def _places(values: Sequence[float], count: int) -> list[int | None]:
    """Return the level of each value among all of them; ``None`` where all are equal, as they have no order then."""
    if len(set(values)) < 2:
        return [None] * len(values)
    scores = np.array(values)
    below = (scores[None] < scores[:, None]).sum(1) + ((scores[None] == scores[:, None]).sum(1) - 1) / 2
    return [int((below[i] + 0.5) / len(values) * count) for i in range(len(values))]


class Stated(NamedTuple):
    """The values of one attribute, by prompt, in the training rows.

    Attributes:
        name: Name of the attribute.
        by_prompt: Values that the replies to each prompt have.
    """

    name: str
    by_prompt: Sequence[Sequence[Value]]

    @property
    def values(self) -> list[Value]:
        """All values."""
        return [value for values in self.by_prompt for value in values]

    def numbers(self) -> list[float]:
        """Return the values as numbers.

        Raises:
            ConfigError: They are names, or ranks, which compare replies to one prompt alone.
        """
        if any(isinstance(value, str) for value in self.values):
            raise ConfigError(f"{_option(self.name)}.scheme: the feedback is named levels, not scores; expected named")
        if any(isinstance(value, Rank) for value in self.values):
            raise ConfigError(
                f"{_option(self.name)}.scheme: the feedback is ranks within prompts; expected within-prompt"
            )
        return [_number(value) for value in self.values]


Fit = Callable[[LevelSettings, Stated], LevelScheme]
"""Returns the scheme that settings and values of the training rows make; raises a ``ConfigError``."""

SCHEMES: Registry[Fit] = Registry("level scheme")


@SCHEMES.register("named")
def fit_named(settings: LevelSettings, stated: Stated) -> LevelScheme:
    """Return the scheme of named levels: those of the settings, or those in the data."""
    values = stated.values
    if not all(isinstance(value, str) for value in values):
        schemes = "values, quantiles, thresholds or within-prompt"
        raise ConfigError(
            f"{_option(stated.name)}.scheme: the feedback is scores, not named levels; expected {schemes}"
        )
    known = {*map(str, values)}
    for usual in (("bad", "good"), ("false", "true")):
        if not settings.names and known <= {*usual}:
            return LevelScheme(Attribute(stated.name, usual, settings.is_ordered is not False))
    names = settings.names or tuple(sorted(known))
    is_ordered = bool(settings.names) if settings.is_ordered is None else settings.is_ordered
    if is_ordered and not settings.names:
        raise ConfigError(f"{_option(stated.name)}.is_ordered requires {_option(stated.name)}.names, worst first")
    return LevelScheme(Attribute(stated.name, names, is_ordered))


@SCHEMES.register("thresholds")
def fit_thresholds(settings: LevelSettings, stated: Stated) -> LevelScheme:
    """Return the scheme of the thresholds in the settings."""
    stated.numbers()
    if not settings.thresholds:
        raise ConfigError(
            f"{_option(stated.name)}.scheme thresholds requires {_option(stated.name)}.thresholds, such as 2.5,3.5"
        )
    return _parted(settings, stated, settings.thresholds)


@SCHEMES.register("values")
def fit_values(settings: LevelSettings, stated: Stated) -> LevelScheme:
    """Return the scheme with a level per distinct score."""
    distinct = sorted(set(stated.numbers()))
    _refuse_constant(stated, distinct)
    return _parted(settings, stated, [(low + high) / 2 for low, high in pairwise(distinct)])


@SCHEMES.register("quantiles")
def fit_quantiles(settings: LevelSettings, stated: Stated) -> LevelScheme:
    """Return the scheme whose levels have equally many training rows, as far as equal scores allow."""
    numbers = sorted(stated.numbers())
    _refuse_constant(stated, numbers)
    count = settings.count or len(settings.names) or DEFAULT_COUNT
    thresholds = [float(np.quantile(numbers, k / count, method="linear")) for k in range(1, count)]
    if len(set(thresholds)) < len(thresholds) or thresholds[0] <= numbers[0]:
        raise ConfigError(
            f"{_option(stated.name)}: equal scores leave some of {count} quantile levels empty; set a smaller count, "
            "thresholds, or the scheme values"
        )
    return _parted(settings, stated, thresholds)


@SCHEMES.register("within-prompt")
def fit_within_prompt(settings: LevelSettings, stated: Stated) -> LevelScheme:
    """Return the scheme of places among the replies to a prompt."""
    sizes = Counter(len(values) for values in stated.by_prompt if len(set(values)) > 1)
    if not sizes:
        raise ConfigError(f"{_option(stated.name)}.scheme within-prompt: no prompt has two replies of different scores")
    if any(isinstance(value, str) for value in stated.values):
        raise ConfigError(f"{_option(stated.name)}.scheme: the feedback is named levels, not scores; expected named")
    count = settings.count or len(settings.names) or min(max(sizes, key=lambda n: (sizes[n], n)), DEFAULT_COUNT)
    return LevelScheme(Attribute(stated.name, _names(settings, stated, count)), within_prompt=True)


@SCHEMES.register("auto")
def fit_auto(settings: LevelSettings, stated: Stated) -> LevelScheme:
    """Return the scheme that fits the values."""
    values = stated.values
    if all(isinstance(value, str) for value in values):
        scheme = "named"
    elif any(isinstance(value, Rank) for value in values):
        scheme = "within-prompt"
    elif settings.thresholds:
        scheme = "thresholds"
    else:
        distinct, count = len(set(values)), settings.count or len(settings.names) or None
        scheme = "values" if distinct <= MAX_VALUES and count in (None, distinct) else "quantiles"
    return SCHEMES[scheme](settings, stated)


def _parted(settings: LevelSettings, stated: Stated, thresholds: Sequence[float]) -> LevelScheme:
    names = _names(settings, stated, len(thresholds) + 1)
    return LevelScheme(Attribute(stated.name, names), thresholds=tuple(thresholds))


def _names(settings: LevelSettings, stated: Stated, count: int) -> tuple[str, ...]:
    """Return the names of ``count`` levels, worst first."""
    if settings.names and len(settings.names) != count:
        raise ConfigError(
            f"{_option(stated.name)}.names: expected {count} names, one per level, got {len(settings.names)}"
        )
    return settings.names or (("bad", "good") if count == 2 else tuple(f"q{k}" for k in range(count)))


def _refuse_constant(stated: Stated, numbers: Sequence[float]) -> None:
    if len(set(numbers)) < 2:
        raise ConfigError(f"{_option(stated.name)}: all scores are {numbers[0]:g}, so they define no levels")


def _option(name: str) -> str:
    """Return the option of the settings of an attribute's levels."""
    return f"--data.attribute_levels.{name}" if name else "--data.levels"
