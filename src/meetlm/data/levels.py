"""Preference examples to levelled examples: which completion shows which level.

A level is a named degree of preference. A pair shows two: the rejected completion ``bad``, the chosen ``good``.
"""

from __future__ import annotations

from dataclasses import dataclass

from meetlm.data.example import PreferenceExample, Text

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

    prompt: Text
    completion: Text
    level: int


def levels_of_pair(example: PreferenceExample) -> tuple[LevelledExample, LevelledExample]:
    """Return (chosen at ``good``, rejected at ``bad``), the two terms that eqs. 1 and 2 take from one pair."""
    return (
        LevelledExample(example.prompt, example.chosen, PAIR_LEVELS.index("good")),
        LevelledExample(example.prompt, example.rejected, PAIR_LEVELS.index("bad")),
    )
