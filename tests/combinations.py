"""Parametrize a test over several dimensions without running their full product each time."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations as pairs_of
from itertools import product
from typing import Any

import pytest

Combination = tuple[Any, ...]


def combinations(**dimensions: Sequence[Any]) -> pytest.MarkDecorator:
    """Parametrize over the full product of some dimensions, of which few combinations run in ``make test``.

    Those few show each value of each dimension at least once; all others are marked ``slow`` (``make test-all``).

    Args:
        dimensions: For each argument of the test its values.
    """
    few = covering(list(dimensions.values()))
    parameters = [
        pytest.param(*combination, marks=() if combination in few else pytest.mark.slow)
        for combination in product(*dimensions.values())
    ]
    return pytest.mark.parametrize(",".join(dimensions), parameters)


def covering(dimensions: Sequence[Sequence[Any]]) -> list[Combination]:
    """Return few combinations that show each value at least once, and as many pairs of values as so few can."""
    every = list(product(*dimensions))
    values_left = {part for combination in every for part in parts_of(combination, 1)}
    pairs_left = {part for combination in every for part in parts_of(combination, 2)}
    chosen = []
    while values_left:
        best = max(every, key=lambda one: (len(values_left & parts_of(one, 1)), len(pairs_left & parts_of(one, 2))))
        chosen.append(best)
        values_left -= parts_of(best, 1)
        pairs_left -= parts_of(best, 2)
    return chosen


def parts_of(combination: Combination, size: int) -> set[tuple[tuple[int, Any], ...]]:
    """Return the parts of a combination: values, or pairs of values, with the number of their dimension."""
    return set(pairs_of(enumerate(combination), size))
