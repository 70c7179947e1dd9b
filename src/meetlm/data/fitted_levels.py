"""The levels of a data set: the level schemes of all attributes, fitted on the training rows and used for all rows."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from meetlm.config.errors import ConfigError, DataError, nearest
from meetlm.data.example import Completion, Example, Prompt
from meetlm.data.levels import PAIR_LEVELS, LevelSpace
from meetlm.data.schemes import SCHEMES, AttributeFeedback, LevelError, LevelScheme, Value
from meetlm.data.settings import DataSettings

MIN_ROWS = 10
"""Minimum number of training rows per level: fewer are not enough to learn it. Pairs have no minimum."""

MAX_REPLIES = 32
"""Maximum number of replies in one example, since all of them are in one optimizer step."""


@dataclass(frozen=True)
class FittedLevels:
    """The level schemes of all attributes, fitted on the training rows.

    Attributes:
        schemes: One scheme per attribute.
    """

    schemes: tuple[LevelScheme, ...]

    @property
    def levels(self) -> LevelSpace:
        """The space of all levels."""
        return LevelSpace(tuple(scheme.attribute for scheme in self.schemes))

    def apply(self, examples: Iterable[Example]) -> list[Example]:
        """Return the examples with level weights and the best reply first, without replies that have no level.

        Raises:
            DataError: A value has no level.
        """
        levels = self.levels
        result = []
        for example in examples:
            shown: list[list[int]] = [[] for _ in example.completions]
            for scheme in self.schemes:
                for number, index in _levels_shown(scheme, example.completions):
                    shown[number].append(levels.ranges[scheme.attribute.name][index])
            completions = [
                replace(completion, weights=levels.weights(indices))
                for completion, indices in zip(example.completions, shown, strict=True)
                if indices
            ]
            completions.sort(key=lambda completion: completion.weights[::-1], reverse=True)
            if completions:
                result.append(replace(example, completions=tuple(completions)))
        return result

    def to_dict(self) -> list[dict[str, Any]]:
        """Return the schemes as JSON values."""
        return [scheme.to_dict() for scheme in self.schemes]

    @classmethod
    def from_dict(cls, schemes: Iterable[Mapping[str, Any]]) -> FittedLevels:
        """Return what :meth:`to_dict` wrote."""
        return cls(tuple(map(LevelScheme.from_dict, schemes)))


PAIRS = FittedLevels((LevelScheme(PAIR_LEVELS.attributes[0]),))
"""The levels of pairs."""


def fit_levels(settings: DataSettings, examples: Sequence[Example]) -> FittedLevels:
    """Return the level schemes of all attributes in the training examples.

    Args:
        settings: Schemes, and the attributes to use.
        examples: Filtered training examples, one per prompt.

    Raises:
        ConfigError: A setting does not fit the values.
        DataError: No row has an attribute, an attribute has both names and numbers, or a level has too few rows.
    """
    names = dict.fromkeys(
        [*settings.attributes, *(name for example in examples for c in example.completions for name, _ in c.feedback)]
    )
    for name in settings.attribute_levels:
        if name not in names:
            raise ConfigError(f"data.attribute_levels: unknown attribute {name!r}{nearest(name, names)}")
    fitted = FittedLevels(tuple(_fit(settings, name, examples) for name in names))
    counts = level_counts(fitted.levels, fitted.apply(examples))
    is_pairs = all(example.is_pair for example in examples)
    if not is_pairs and min(counts.values()) < MIN_ROWS:
        shown = ", ".join(f"{level}: {count}" for level, count in counts.items())
        raise DataError(
            f"levels with too few rows ({shown})",
            file=examples[0].origin.file,
            expected=f"at least {MIN_ROWS} training rows per level: set fewer levels (--data.levels.count or "
            "--data.levels.thresholds), or add rows",
        )
    return fitted


def level_counts(levels: LevelSpace, examples: Iterable[Example]) -> dict[str, int]:
    """Return the number of replies that show each level."""
    weights = np.array([completion.weights for example in examples for completion in example.completions])
    return {name: int(count) for name, count in zip(levels, weights.sum(0), strict=True)}


def level_lines(fitted: FittedLevels, examples: Sequence[Example]) -> list[str]:
    """Return the number of replies at each level as lines of text, one per attribute; none for pairs."""
    if all(example.is_pair for example in examples):
        return []
    counts = level_counts(fitted.levels, examples)
    lines = []
    for scheme in fitted.schemes:
        levels = fitted.levels.ranges[scheme.attribute.name]
        shown = ", ".join(f"{fitted.levels[k]} {counts[fitted.levels[k]]}" for k in levels)
        lines.append(f"levels {scheme.describe()}: {shown} replies")
    return lines


def _fit(settings: DataSettings, name: str, examples: Sequence[Example]) -> LevelScheme:
    """Return the scheme of one attribute."""
    if not set(name).isdisjoint("=,"):
        raise ConfigError(f"data.attributes: {name!r} cannot name an attribute, as it contains '=' or ','")
    by_prompt = [values for example in examples if (values := _feedback_on(example.completions, name))]
    file = examples[0].origin.file
    if not by_prompt:
        known = sorted({attribute for example in examples for c in example.completions for attribute, _ in c.feedback})
        raise DataError(
            "no row has this attribute", field=name, file=file, expected=f"one of {', '.join(known) or 'none'}"
        )
    first: dict[bool, Completion] = {}
    for values in by_prompt:
        for completion, value in values:
            first.setdefault(isinstance(value, str), completion)
    if len(first) == 2:
        text, number = (dict(first[is_text].feedback)[name] for is_text in (True, False))
        raise DataError(
            f"is {text!r}, but the row at {first[False].origin} has the number {number:g}",
            file=first[True].origin.file,
            line=first[True].origin.line,
            field=name or "level",
            expected="either numbers or names in all rows",
        )
    level_settings = settings.attribute_levels.get(name, settings.levels)
    feedback = AttributeFeedback(name, [[value for _, value in values] for values in by_prompt])
    if level_settings.scheme not in SCHEMES:
        option = f"--data.attribute_levels.{name}" if name in settings.attribute_levels else "--data.levels"
        hint = nearest(level_settings.scheme, SCHEMES)
        raise ConfigError(f"{option}.scheme: unknown scheme {level_settings.scheme!r}{hint}")
    return SCHEMES[level_settings.scheme](level_settings, feedback)


def _feedback_on(completions: Iterable[Completion], name: str) -> list[tuple[Completion, Value]]:
    """Return the replies with feedback on an attribute, and the values."""
    return [(c, value) for c in completions for attribute, value in c.feedback if attribute == name]


def _levels_shown(scheme: LevelScheme, completions: Sequence[Completion]) -> list[tuple[int, int]]:
    """Return the indices of the replies that have a level of one attribute, and the levels.

    Raises:
        DataError: A value has no level.
    """
    name = scheme.attribute.name
    numbers = [n for n, completion in enumerate(completions) if _feedback_on([completion], name)]
    values = [value for _, value in _feedback_on(completions, name)]
    try:
        indices = scheme.indices(values)
    except LevelError as error:
        origin = completions[numbers[values.index(error.value)]].origin
        raise DataError(str(error), file=origin.file, line=origin.line, field=name or "level") from None
    return [(number, index) for number, index in zip(numbers, indices, strict=True) if index is not None]


def merge_prompts(examples: Sequence[Example]) -> list[Example]:
    """Return examples in which rows with one reply to the same prompt are merged, at the position of the first row."""
    merged: dict[Prompt, int] = {}
    result: list[Example] = []
    for example in examples:
        is_alone = len(example.completions) == 1
        index = merged.get(example.prompt) if is_alone else None
        if index is not None:
            result[index] = replace(result[index], completions=(*result[index].completions, *example.completions))
            continue
        if is_alone:
            merged[example.prompt] = len(result)
        result.append(example)
    return result


def without_level_lines(file: str, number: int) -> list[str]:
    """Return a line about the replies of a file that have no level; none without such replies."""
    if not number:
        return []
    return [f"{file}: {number} replies have no level and are left out: all replies to their prompt have the same score"]


def num_replies(examples: Iterable[Example]) -> int:
    """Return the number of replies in examples."""
    return sum(len(example.completions) for example in examples)


def split_large(examples: Iterable[Example]) -> list[Example]:
    """Return examples of at most :data:`MAX_REPLIES` replies: a prompt with more of them becomes several examples."""
    return [
        replace(example, completions=example.completions[start : start + MAX_REPLIES])
        for example in examples
        for start in range(0, len(example.completions), MAX_REPLIES)
    ]
