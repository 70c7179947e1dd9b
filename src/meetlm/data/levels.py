"""Examples with levels: which reply shows which level.

A level is a named degree of preference. In a pair the rejected reply shows ``bad`` and the chosen reply ``good``.
"""

from __future__ import annotations

from dataclasses import dataclass

from meetlm.data.example import Prompt, Turn

PAIR_LEVELS = ("bad", "good")
"""Levels of pairwise data, worst first; the last one is the default at inference."""


@dataclass(frozen=True, slots=True)
class LevelledExample:
    """One reply with the level that it shows: a term of the sums in eqs. 1 and 2.

    Attributes:
        prompt: x.
        completion: y.
        level: Index into the run's levels.
    """

    prompt: Prompt
    completion: Turn
    level: int
