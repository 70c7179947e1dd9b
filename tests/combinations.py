"""Parametrize a test over several dimensions without running their full product each time.

Both functions parametrize over the full product. The combinations that they choose run in ``make test``; all others are
marked ``slow`` and run in ``make test-all``.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations, product
from typing import Any

import pytest

Combination = tuple[Any, ...]
Part = tuple[tuple[int, Any], ...]
"""Values of a combination, each with the number of its dimension."""


def each_value(**dimensions: Sequence[Any]) -> pytest.MarkDecorator:
    """Choose combinations that show each value of each dimension at least once.

    Args:
        dimensions: For each argument of the test its values.
    """
    return parametrize(dimensions, covering(list(dimensions.values()), 1))


def each_pair(**dimensions: Sequence[Any]) -> pytest.MarkDecorator:
    """Choose combinations that show each pair of values of two dimensions at least once.

    Args:
        dimensions: For each argument of the test its values.
    """
    return parametrize(dimensions, covering(list(dimensions.values()), 2))


def parametrize(dimensions: dict[str, Sequence[Any]], chosen: list[Combination]) -> pytest.MarkDecorator:
    """Parametrize over the full product, all but ``chosen`` marked slow."""
    parameters = [
        pytest.param(*combination, marks=() if combination in chosen else pytest.mark.slow)
        for combination in product(*dimensions.values())
    ]
    return pytest.mark.parametrize(",".join(dimensions), parameters)


def covering(dimensions: Sequence[Sequence[Any]], size: int) -> list[Combination]:
    """Return few combinations that show each part of ``size`` values, and different pairs of values."""
    every = list(product(*dimensions))
    left = [part for combination in every for part in parts_of(combination, size)]
    parts_left, pairs_left = set(left), {part for combination in every for part in parts_of(combination, 2)}
    chosen = []
    while parts_left:
        best = max(
            every,
            key=lambda combination: (
                len(parts_left & parts_of(combination, size)),
                len(pairs_left & parts_of(combination, 2)),
            ),
        )
        chosen.append(best)
        parts_left -= parts_of(best, size)
        pairs_left -= parts_of(best, 2)
    return chosen


def parts_of(combination: Combination, size: int) -> set[Part]:
    """Return the parts of a combination that have ``size`` values."""
    return set(combinations(enumerate(combination), size))
