"""Outcomes of scores and verdicts, cell by cell (paper section 4.3; for a judge, appendix C)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

from meetlm.config.errors import ConfigError

Outcome = Literal["win", "tie", "lose"]
"""Outcome for a system against the baseline, in one cell."""
PAPER_BAND = (0.45, 0.55)
_ROUNDING = 1e-12
_POINTS: dict[Outcome, int] = {"win": 1, "tie": 0, "lose": -1}


def by_reward(
    rewards: Sequence[float | None], baseline: Sequence[float | None], band: tuple[float, float] = PAPER_BAND
) -> list[Outcome | None]:
    """Return outcomes by a reward model: a tie where σ(r₁ − r₂) is in ``band``, bounds included (paper section 4.3).

    Args:
        rewards: The system's rewards r₁, one per cell.
        baseline: The baseline's rewards r₂.
        band: Both bounds, at equal distances from ½, so that exchanging the systems mirrors the outcomes. With
            (0.5, 0.5) only equal rewards tie.

    Returns:
        One outcome per cell; ``None`` where either has no reward.

    Raises:
        ConfigError: ``band`` is not symmetric about ½ or not inside (0, 1).
    """
    bound = _largest_tie(band)
    return [
        None if margin is None else "tie" if abs(margin) <= bound else "win" if margin > 0 else "lose"
        for margin in margins(rewards, baseline)
    ]


def by_value(
    values: Sequence[float | None], baseline: Sequence[float | None], *, higher: bool = True
) -> list[Outcome | None]:
    """Return outcomes by a measure: the higher value wins (the lower one with ``higher=False``), equal values tie.

    Args:
        values: The system's values, one per cell.
        baseline: The baseline's values.
        higher: Whether higher is better.

    Returns:
        One outcome per cell; ``None`` where either has no value.
    """
    return [
        None if margin is None else "tie" if margin == 0 else "win" if (margin > 0) == higher else "lose"
        for margin in margins(values, baseline)
    ]


def by_judge(first: Outcome, second: Outcome) -> Outcome:
    """Return the paper's outcome of two verdicts, one per order of the replies (appendix C).

    Win: wins twice, or wins once and draws once. Loss: loses twice, or loses once and draws once. Tie: draws twice, or
    wins once and loses once.

    Args:
        first: The verdict with the system's reply first, from the system's view.
        second: The verdict with the baseline's reply first, from the system's view.
    """
    points = _POINTS[first] + _POINTS[second]
    return "win" if points > 0 else "lose" if points < 0 else "tie"


def judge_margin(first: Outcome, second: Outcome) -> float:
    """Return the mean of both verdicts, where a win is 1, a tie 0 and a loss -1: how clear a judge's outcome is."""
    return (_POINTS[first] + _POINTS[second]) / 2


def margins(values: Sequence[float | None], baseline: Sequence[float | None]) -> list[float | None]:
    """Return values minus the baseline's, one per cell; ``None`` where either has no value.

    Raises:
        ValueError: A value is not finite; callers replace a scorer's NaN by ``None`` and count it.
    """
    differences = [None if a is None or b is None else a - b for a, b in zip(values, baseline, strict=True)]
    for cell, difference in enumerate(differences):
        if difference is not None and not math.isfinite(difference):
            pair = f"{values[cell]} and {baseline[cell]}"
            raise ValueError(f"cell {cell}: values {pair}; expected finite numbers or None")
    return differences


def _largest_tie(band: tuple[float, float]) -> float:
    """Return the largest |r₁ − r₂| that is a tie: the logit of the upper bound.

    It is widened by the rounding error, so that rounding does not decide a difference that is exactly at a bound.
    """
    low, high = band
    if not (0 < low <= 0.5 <= high < 1) or abs(low + high - 1) > 1e-9:
        raise ConfigError(
            f"tie band [{low}, {high}]; expected bounds inside (0, 1) at equal distances from 0.5, such as [0.45, 0.55]"
        )
    return math.log(high / (1 - high)) + _ROUNDING if high > 0.5 else 0.0
