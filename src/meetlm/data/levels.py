"""Preference examples to levelled examples: which completion shows which level.

A level is a named degree of preference. A pair shows two: the rejected completion ``bad``, the chosen ``good``.
"""

from __future__ import annotations

from dataclasses import dataclass

from meetlm.data.example import Prompt, Turn

PAIR_LEVELS = ("bad", "good")
"""Levels of pairwise data, worst first; the last one is the default at inference."""


@dataclass(frozen=True, slots=True)
class LevelledExample:
    """One completion with the level that it shows: a term of the sums in eqs. 1 and 2.

    Attributes:
        prompt: x.
        completion: y.
        level: Index into the run's levels.
    """

    prompt: Prompt
    completion: Turn
    level: int
