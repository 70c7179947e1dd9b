"""Levels: named degrees of preference, and the space of all levels that a control has.

In a pair the rejected reply shows ``bad`` and the chosen reply ``good``.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, overload

from meetlm.data.example import Weights


@dataclass(frozen=True, slots=True)
class Attribute:
    """A property of replies, such as helpfulness or tone; a reply has at most one of its levels.

    Attributes:
        name: Its name; empty if the data do not name their only attribute.
        levels: Names of its levels, worst first if they are ordered.
        is_ordered: Whether the levels are a scale from worst to best.
    """

    name: str
    levels: tuple[str, ...]
    is_ordered: bool = True


@dataclass(frozen=True)
class LevelSpace(Sequence[str]):
    """The K levels of a control as a sequence of names, attribute by attribute.

    A level of a named attribute has a name such as ``tone=formal``, a level of the unnamed attribute a name such as
    ``good``.

    Attributes:
        attributes: The attributes.
    """

    attributes: tuple[Attribute, ...]

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Names of all levels, in the order of the stacked parameters."""
        return tuple(
            f"{attribute.name}={level}" if attribute.name else level
            for attribute in self.attributes
            for level in attribute.levels
        )

    @cached_property
    def ranges(self) -> dict[str, range]:
        """Indices of the levels of each attribute, by its name."""
        ranges, start = {}, 0
        for attribute in self.attributes:
            ranges[attribute.name] = range(start, start + len(attribute.levels))
            start += len(attribute.levels)
        return ranges

    def __len__(self) -> int:
        return len(self.names)

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[str, ...]: ...
    def __getitem__(self, index: int | slice) -> str | tuple[str, ...]:
        return self.names[index]

    def weights(self, levels: Iterable[int]) -> Weights:
        """Return the weights [K] that select some levels, by their indices."""
        selected = set(levels)
        return tuple(1.0 if k in selected else 0.0 for k in range(len(self)))

    @property
    def is_scale(self) -> bool:
        """Whether there is one attribute with ordered levels, which determine the best of several replies."""
        return len(self.attributes) == 1 and self.attributes[0].is_ordered

    @property
    def best(self) -> Weights:
        """Weights of the best level of each ordered attribute."""
        return self.weights(self.ranges[a.name][-1] for a in self.attributes if a.is_ordered)

    @property
    def worst(self) -> Weights:
        """Weights of the worst level of each ordered attribute."""
        return self.weights(self.ranges[a.name][0] for a in self.attributes if a.is_ordered)

    @property
    def best_level(self) -> str | dict[str, float]:
        """Name of the best level, or weights of the best level of each of several attributes.

        Attributes without an order have no weights.
        """
        names = [name for name, weight in zip(self, self.best, strict=True) if weight]
        return names[0] if len(names) == 1 else dict.fromkeys(names, 1.0)

    @property
    def best_only(self) -> LevelSpace:
        """The space of only the best level, for formats that do not use levels."""
        return LevelSpace.of_names(*(name for name, weight in zip(self, self.best, strict=True) if weight))

    def active(self, weights: Weights) -> list[Attribute]:
        """Return the attributes that have a level with nonzero weight."""
        return [attribute for attribute in self.attributes if any(weights[k] for k in self.ranges[attribute.name])]

    def heaviest(self, weights: Weights) -> tuple[int, ...]:
        """Return the index of the level with the largest weight, for each active attribute in order."""
        return tuple(max(self.ranges[a.name], key=lambda k: weights[k]) for a in self.active(weights))

    def to_dict(self) -> list[dict[str, Any]]:
        """Return the attributes as JSON values."""
        return [{"name": a.name, "levels": list(a.levels), "is_ordered": a.is_ordered} for a in self.attributes]

    @classmethod
    def from_dict(cls, attributes: Iterable[Mapping[str, Any]]) -> LevelSpace:
        """Return what :meth:`to_dict` wrote."""
        return cls(tuple(Attribute(a["name"], tuple(a["levels"]), a["is_ordered"]) for a in attributes))

    @classmethod
    def of_names(cls, *names: str) -> LevelSpace:
        """Return a space of one unnamed attribute with these levels, worst first."""
        return cls((Attribute("", names),))


PAIR_LEVELS = LevelSpace.of_names("bad", "good")
"""Levels of pairwise data."""
