"""Outcomes of scores and verdicts, cell by cell (paper section 4.3; for a judge, appendix C)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

Outcome = Literal["win", "tie", "lose"]
"""Outcome for a system against the baseline, in one cell."""
Column = list[float | None]
"""A value per cell; ``None`` if there is none."""
POINTS: dict[Outcome, int] = {"win": 1, "tie": 0, "lose": -1}
PAPER_BAND = (0.45, 0.55)
_ROUNDING = 1e-12


def margins(
    values: Sequence[float | None], baseline: Sequence[float | None], *, higher_is_better: bool = True
) -> Column:
    """Return how much better a system is than the baseline, cell by cell: the difference of their values.

    Args:
        values: The system's values, one per cell.
        baseline: The baseline's values.
        higher_is_better: With ``False`` the sign is reversed.

    Returns:
        One margin per cell; ``None`` if either has no value.

    Raises:
        ValueError: A value is not finite; callers replace a scorer's NaN by ``None`` and count it.
    """
    differences: Column = []
    for cell, (a, b) in enumerate(zip(values, baseline, strict=True)):
        difference = None if a is None or b is None else a - b if higher_is_better else b - a
        if difference is not None and not math.isfinite(difference):
            raise ValueError(f"cell {cell}: values {a} and {b}; expected finite numbers or None")
        differences.append(difference)
    return differences


def decide(margins: Sequence[float | None], *, largest_tie: float = 0.0) -> list[Outcome | None]:
    """Return the outcome of each margin: a tie up to ``largest_tie`` in either direction; ``None`` for ``None``."""
    return [
        None if margin is None else "tie" if abs(margin) <= largest_tie else "win" if margin > 0 else "lose"
        for margin in margins
    ]


def largest_tie(band: tuple[float, float]) -> float:
    """Return the largest |r₁ − r₂| of two rewards that tie: σ(r₁ − r₂) is inside ``band`` (paper section 4.3).

    It is the logit of the upper bound, widened by the rounding error, so that rounding does not decide a difference
    that is exactly at a bound. With (0.5, 0.5) only equal rewards tie.

    Raises:
        ValueError: The bounds are not inside (0, 1) or not symmetric about ½, so that exchanging the systems would
            not mirror the outcomes.
    """
    low, high = band
    if not (0 < low <= 0.5 <= high < 1) or abs(low + high - 1) > 1e-9:
        raise ValueError(
            f"expected two bounds inside (0, 1) at equal distances from 0.5, such as 0.45 0.55, got {low} {high}"
        )
    return math.log(high / (1 - high)) + _ROUNDING if high > 0.5 else 0.0


def judge_margin(first: Outcome, second: Outcome) -> float:
    """Return the mean of a judge's two verdicts, one per order of the replies: a win is 1, a tie 0, a loss -1.

    Its sign is the paper's outcome (appendix C). Win: wins twice, or wins once and draws once. Loss: loses twice, or
    loses once and draws once. Tie: draws twice, or wins once and loses once.

    Args:
        first: The verdict with the system's reply first, from the system's view.
        second: The verdict with the baseline's reply first, from the system's view.
    """
    return (POINTS[first] + POINTS[second]) / 2
