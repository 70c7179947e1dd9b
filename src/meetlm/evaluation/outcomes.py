"""From scores to outcomes: who won, cell by cell (paper section 4.3; for a judge, appendix C)."""

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
    ours: Sequence[float | None], theirs: Sequence[float | None], band: tuple[float, float] = PAPER_BAND
) -> list[Outcome | None]:
    """Return outcomes by a reward model: a tie where σ(r₁ − r₂) lies in ``band``, edges included (paper section 4.3).

    Args:
        ours: The system's rewards r₁, one a cell.
        theirs: The baseline's, r₂.
        band: Both edges. Symmetric about ½, so that swapping the systems mirrors the outcomes; (0.5, 0.5) leaves equal
            rewards as the only ties.

    Returns:
        One a cell; ``None`` where either has no reward.

    Raises:
        ConfigError: ``band`` is not symmetric about ½ or not inside (0, 1).
    """
    edge = _edge(band)
    return [
        None if one is None else "tie" if abs(one) <= edge else "win" if one > 0 else "lose"
        for one in margins(ours, theirs)
    ]


def by_value(
    ours: Sequence[float | None], theirs: Sequence[float | None], *, higher: bool = True
) -> list[Outcome | None]:
    """Return outcomes by a measure: the higher value wins (the lower one with ``higher=False``), equal values tie.

    Args:
        ours: The system's values, one a cell.
        theirs: The baseline's.
        higher: Whether more is better.

    Returns:
        One a cell; ``None`` where either has no value.
    """
    return [
        None if one is None else "tie" if one == 0 else "win" if (one > 0) == higher else "lose"
        for one in margins(ours, theirs)
    ]


def by_judge(first: Outcome, second: Outcome) -> Outcome:
    """Return the paper's outcome of two verdicts, one in each order of the replies (appendix C).

    Win: wins twice, or wins once and draws once. Loss: loses twice, or loses once and draws once. Tie: draws twice, or
    wins once and loses once.

    Args:
        first: The verdict with the system's reply first, from the system's view.
        second: The verdict with the baseline's reply first, from the system's view too.
    """
    points = _POINTS[first] + _POINTS[second]
    return "win" if points > 0 else "lose" if points < 0 else "tie"


def judge_margin(first: Outcome, second: Outcome) -> float:
    """Return the mean of both verdicts, win 1, tie 0, lose -1: how clear a judge's outcome was."""
    return (_POINTS[first] + _POINTS[second]) / 2


def margins(ours: Sequence[float | None], theirs: Sequence[float | None]) -> list[float | None]:
    """Return ours - theirs, one a cell; ``None`` where either has no value.

    Raises:
        ValueError: A value is not finite; a scorer's NaN has to be ``None`` (and counted) by now.
    """
    found = [None if a is None or b is None else a - b for a, b in zip(ours, theirs, strict=True)]
    for cell, one in enumerate(found):
        if one is not None and not math.isfinite(one):
            raise ValueError(f"cell {cell}: values {ours[cell]} and {theirs[cell]}; expected finite numbers or None")
    return found


def _edge(band: tuple[float, float]) -> float:
    """The largest |r₁ − r₂| that is a tie: logit of the upper edge, compared there so that both sides are one test.

    A hair wider, so that a difference that is exactly at an edge is not decided by how it was rounded.
    """
    low, high = band
    if not (0 < low <= 0.5 <= high < 1) or abs(low + high - 1) > 1e-9:
        raise ConfigError(
            f"tie band [{low}, {high}]; expected edges inside (0, 1) at equal distances from 0.5, such as [0.45, 0.55]"
        )
    return math.log(high / (1 - high)) + _ROUNDING if high > 0.5 else 0.0
