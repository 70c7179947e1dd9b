"""Level schemes: how the feedback on an attribute becomes levels.

A fitted scheme maps feedback to levels by name, by thresholds of scores, or by the rank of a score among the replies to
the same prompt. Each registered function fits a scheme to the settings and the values in the training rows.
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
        attribute: The attribute and its levels.
        thresholds: Scores between the levels; a score equal to a threshold is in the upper level.
        within_prompt: Whether the level is the rank of a score among the scores of its prompt.
    """

    attribute: Attribute
    thresholds: tuple[float, ...] = ()
    within_prompt: bool = False

    def indices(self, values: Sequence[Value]) -> list[int | None]:
        """Return the level index of each value of one prompt; ``None`` if levels are ranks and all values are equal.

        Raises:
            LevelError: A value has no level.
        """
        if self.within_prompt:
            return _levels_by_rank([_number(value) for value in values], len(self.attribute.levels))
        if self.thresholds:
            return [bisect_right(self.thresholds, _number(value)) for value in values]
        return [self._named(value) for value in values]

    def _named(self, value: Value) -> int:
        if value not in self.attribute.levels:
            hint = nearest(str(value), self.attribute.levels)
            raise LevelError(f"unknown level {value!r}{hint}", value)
        return self.attribute.levels.index(str(value))

    def describe(self) -> str:
        """Return in words how the levels follow from the data."""
        name = f"of {self.attribute.name} " if self.attribute.name else ""
        if self.within_prompt:
            return f"{name}by rank among the replies to a prompt, worst first"
        if self.thresholds:
            thresholds = ", ".join(f"{score:.4g}" for score in self.thresholds)
            return f"{name}by score, lowest first, with thresholds {thresholds}"
        return f"{name}as named in the data{', worst first' if self.attribute.is_ordered else ' (no order)'}"

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> LevelScheme:
        """Return the scheme from the result of :meth:`to_dict`."""
        stored = fields["attribute"]
        attribute = Attribute(stored["name"], tuple(stored["levels"]), stored["is_ordered"])
        return cls(attribute, tuple(fields["thresholds"]), fields["within_prompt"])


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


def _levels_by_rank(values: Sequence[float], count: int) -> list[int | None]:
    """Return the level of each value by its rank among the values, equal values sharing their mean rank.

    The ranks are divided into ``count`` levels; all are ``None`` if all values are equal.
    """
    if len(set(values)) < 2:
        return [None] * len(values)
    scores = np.array(values)
    mean_rank = (scores[None] < scores[:, None]).sum(1) + ((scores[None] == scores[:, None]).sum(1) - 1) / 2
    return [int((mean_rank[i] + 0.5) / len(values) * count) for i in range(len(values))]


class AttributeFeedback(NamedTuple):
    """The values of an attribute in the training rows.

    Attributes:
        name: Name of the attribute.
        by_prompt: The values of the replies to each prompt.
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
            ConfigError: The values are names, or ranks, which only compare replies to the same prompt.
        """
        if any(isinstance(value, str) for value in self.values):
            raise ConfigError(f"{_option(self.name)}.scheme: the feedback is named levels, not scores; expected named")
        if any(isinstance(value, Rank) for value in self.values):
            raise ConfigError(
                f"{_option(self.name)}.scheme: the feedback is ranks within prompts; expected within-prompt"
            )
        return [_number(value) for value in self.values]


Fit = Callable[[LevelSettings, AttributeFeedback], LevelScheme]
"""Fits a scheme to settings and the values in the training rows; raises a ``ConfigError``."""

SCHEMES: Registry[Fit] = Registry("level scheme")


@SCHEMES.register("named")
def fit_named(settings: LevelSettings, feedback: AttributeFeedback) -> LevelScheme:
    """Return a scheme with the level names of the settings or, without them, of the data."""
    values = feedback.values
    if not all(isinstance(value, str) for value in values):
        schemes = "values, quantiles, thresholds or within-prompt"
        raise ConfigError(
            f"{_option(feedback.name)}.scheme: the feedback is scores, not named levels; expected {schemes}"
        )
    known = set(map(str, values))
    for pair in (("bad", "good"), ("false", "true")):
        if not settings.names and known <= set(pair):
            return LevelScheme(Attribute(feedback.name, pair, settings.is_ordered is not False))
    names = settings.names or tuple(sorted(known))
    is_ordered = bool(settings.names) if settings.is_ordered is None else settings.is_ordered
    if is_ordered and not settings.names:
        raise ConfigError(f"{_option(feedback.name)}.is_ordered requires {_option(feedback.name)}.names, worst first")
    return LevelScheme(Attribute(feedback.name, names, is_ordered))


@SCHEMES.register("thresholds")
def fit_thresholds(settings: LevelSettings, feedback: AttributeFeedback) -> LevelScheme:
    """Return a scheme with the thresholds of the settings."""
    feedback.numbers()
    if not settings.thresholds:
        raise ConfigError(
            f"{_option(feedback.name)}.scheme thresholds requires {_option(feedback.name)}.thresholds, such as 2.5,3.5"
        )
    return _threshold_scheme(settings, feedback, settings.thresholds)


@SCHEMES.register("values")
def fit_values(settings: LevelSettings, feedback: AttributeFeedback) -> LevelScheme:
    """Return a scheme with a level per distinct score."""
    distinct = sorted(set(feedback.numbers()))
    _refuse_constant(feedback, distinct)
    return _threshold_scheme(settings, feedback, [(low + high) / 2 for low, high in pairwise(distinct)])


@SCHEMES.register("quantiles")
def fit_quantiles(settings: LevelSettings, feedback: AttributeFeedback) -> LevelScheme:
    """Return a scheme whose levels have equally many training rows, as far as equal scores allow."""
    numbers = sorted(feedback.numbers())
    _refuse_constant(feedback, numbers)
    count = settings.count or len(settings.names) or DEFAULT_COUNT
    thresholds = [float(np.quantile(numbers, k / count, method="linear")) for k in range(1, count)]
    if len(set(thresholds)) < len(thresholds) or thresholds[0] <= numbers[0]:
        raise ConfigError(
            f"{_option(feedback.name)}: equal scores leave some of {count} quantile levels empty; set a smaller count, "
            "thresholds, or the scheme values"
        )
    return _threshold_scheme(settings, feedback, thresholds)


@SCHEMES.register("within-prompt")
def fit_within_prompt(settings: LevelSettings, feedback: AttributeFeedback) -> LevelScheme:
    """Return a scheme of ranks among the replies to a prompt."""
    sizes = Counter(len(values) for values in feedback.by_prompt if len(set(values)) > 1)
    if not sizes:
        raise ConfigError(
            f"{_option(feedback.name)}.scheme within-prompt: no prompt has two replies of different scores"
        )
    if any(isinstance(value, str) for value in feedback.values):
        raise ConfigError(f"{_option(feedback.name)}.scheme: the feedback is named levels, not scores; expected named")
    count = settings.count or len(settings.names) or min(max(sizes, key=lambda n: (sizes[n], n)), DEFAULT_COUNT)
    return LevelScheme(Attribute(feedback.name, _names(settings, feedback, count)), within_prompt=True)


@SCHEMES.register("auto")
def fit_auto(settings: LevelSettings, feedback: AttributeFeedback) -> LevelScheme:
    """Return the scheme that the kind of feedback and the settings call for."""
    values = feedback.values
    if all(isinstance(value, str) for value in values):
        scheme = "named"
    elif any(isinstance(value, Rank) for value in values):
        scheme = "within-prompt"
    elif settings.thresholds:
        scheme = "thresholds"
    else:
        distinct, count = len(set(values)), settings.count or len(settings.names) or None
        scheme = "values" if distinct <= MAX_VALUES and count in (None, distinct) else "quantiles"
    return SCHEMES[scheme](settings, feedback)


def _threshold_scheme(settings: LevelSettings, feedback: AttributeFeedback, thresholds: Sequence[float]) -> LevelScheme:
    names = _names(settings, feedback, len(thresholds) + 1)
    return LevelScheme(Attribute(feedback.name, names), thresholds=tuple(thresholds))


def _names(settings: LevelSettings, feedback: AttributeFeedback, count: int) -> tuple[str, ...]:
    """Return the names of ``count`` levels, worst first."""
    if settings.names and len(settings.names) != count:
        raise ConfigError(
            f"{_option(feedback.name)}.names: expected {count} names, one per level, got {len(settings.names)}"
        )
    return settings.names or (("bad", "good") if count == 2 else tuple(f"q{k}" for k in range(count)))


def _refuse_constant(feedback: AttributeFeedback, numbers: Sequence[float]) -> None:
    if len(set(numbers)) < 2:
        raise ConfigError(f"{_option(feedback.name)}: all scores are {numbers[0]:g}, so they define no levels")


def _option(name: str) -> str:
    """Return the option that sets the levels of an attribute."""
    return f"--data.attribute_levels.{name}" if name else "--data.levels"
