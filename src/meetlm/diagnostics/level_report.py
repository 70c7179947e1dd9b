"""Report the levels of a data set: replies per level, their lengths, and correlations between attributes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from meetlm.data.example import Example
from meetlm.data.filters import Lengths
from meetlm.data.fitted_levels import FittedLevels, level_counts, level_lines

STRONG = 0.7
"""Attributes with a stronger correlation are hard to control separately."""


@dataclass(frozen=True)
class LevelReport:
    """The levels of the training replies.

    Attributes:
        summary: The schemes with the number of replies per level, as lines of text.
        counts: Number of replies by level.
        median_tokens: Median tokens of the replies by level.
        with_length: Spearman's correlation of each ordered attribute with the tokens of the reply, by its name.
        between: Correlation of each pair of attributes, by both names: Spearman's, or Cramér's V if one has no order.
    """

    summary: list[str]
    counts: dict[str, int]
    median_tokens: dict[str, int]
    with_length: dict[str, float]
    between: dict[str, float]

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        return asdict(self)

    def lines(self) -> list[str]:
        """Return the report as lines of text."""
        tokens = ", ".join(f"{level} {count}" for level, count in self.median_tokens.items())
        text = [*self.summary, f"  median tokens: {tokens}"]
        text += [
            f"  {name or 'level'} and length: correlation {value:+.2f}" for name, value in self.with_length.items()
        ]
        return text + [f"  {names}: correlation {value:+.2f}" for names, value in self.between.items()]


def report_levels(fitted: FittedLevels, examples: Sequence[Example], lengths: Lengths) -> LevelReport:
    """Return the report.

    Args:
        fitted: The level schemes of the examples.
        examples: The examples with level weights.
        lengths: Counts the tokens of an example.
    """
    levels = fitted.levels
    weights = np.array([completion.weights for example in examples for completion in example.completions])
    tokens = np.array([count for example in examples for count in lengths(example).replies])
    indices = {name: _level_indices(weights[:, r.start : r.stop]) for name, r in levels.ranges.items()}
    ordered = {attribute.name: attribute.is_ordered for attribute in levels.attributes}
    with_length = {
        name: _spearman(column[column >= 0], tokens[column >= 0]) for name, column in indices.items() if ordered[name]
    }
    between = {}
    for left, right in combinations(indices, 2):
        both = (indices[left] >= 0) & (indices[right] >= 0)
        correlation = _spearman if ordered[left] and ordered[right] else _cramer
        between[f"{left} and {right}"] = correlation(indices[left][both], indices[right][both])
    return LevelReport(
        summary=level_lines(fitted, examples),
        counts=level_counts(levels, examples),
        median_tokens={level: int(np.median(tokens[weights[:, k] > 0])) for k, level in enumerate(levels)},
        with_length=with_length,
        between=between,
    )


def _level_indices(weights: NDArray[np.float64]) -> NDArray[np.int64]:
    """Return the index of each reply's level, given weights [C, K]; −1 if it has none."""
    return np.where(weights.any(axis=1), weights.argmax(axis=1), -1)


def _spearman(left: NDArray[Any], right: NDArray[Any]) -> float:
    """Return Spearman's rank correlation; 0 if a column is constant."""
    if len(left) < 2 or np.ptp(left) == 0 or np.ptp(right) == 0:
        return 0.0
    return float(stats.spearmanr(left, right).statistic)


def _cramer(left: NDArray[Any], right: NDArray[Any]) -> float:
    """Return Cramér's V; 0 if a column is constant."""
    table = stats.contingency.crosstab(left, right).count
    return float(stats.contingency.association(table)) if min(table.shape) > 1 else 0.0
