"""Data formats: which sequences a stage trains for one preference pair. Knows no tokenizer and no model.

An *item* is the sequences of one pair; all of them are in one optimizer step. A new format is one class here.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

from meetlm.config.registry import Registry
from meetlm.data.encoding import Encoded, Encoder
from meetlm.data.example import PreferenceExample
from meetlm.data.levels import PAIR_LEVELS, LevelledExample

Item = tuple[Encoded, ...]
"""The sequences of one pair."""

BEST = PAIR_LEVELS[-1]


class DataFormat(ABC):
    """How a pair becomes sequences.

    Attributes:
        levels: The levels that the completions of an item have, worst first; the control has the same levels.
        is_pairwise: Whether an item is two completions (chosen, rejected) of one prompt at one level, for pairwise
            objectives.
        chains: Whether a sequence has completions of several levels: they need a slot before each response.
    """

    levels: ClassVar[tuple[str, ...]]
    is_pairwise: ClassVar[bool] = False
    chains: ClassVar[bool] = False

    @abstractmethod
    def item(self, encoder: Encoder, example: PreferenceExample) -> Item:
        """Return the sequences of one pair. The first level of the encoder is the worst, the last one the best."""


FORMATS: Registry[DataFormat] = Registry("data format")


class Conditional(DataFormat):
    """Chosen at ``good``, rejected at ``bad``: the two terms that eqs. 1 and 2 take from one pair."""

    levels = PAIR_LEVELS

    def item(self, encoder: Encoder, example: PreferenceExample) -> Item:
        """Return (chosen at good, rejected at bad)."""
        return tuple(encoder.encode(levelled) for levelled in _levelled(encoder, example))


class Chosen(DataFormat):
    """The chosen completion alone: supervised fine-tuning."""

    levels = (BEST,)

    def item(self, encoder: Encoder, example: PreferenceExample) -> Item:
        """Return (chosen,)."""
        return (encoder.encode(LevelledExample(example.prompt, example.chosen, encoder.num_levels - 1)),)


class Pairwise(DataFormat):
    """Chosen and rejected at the same level: for objectives that compare them (DPO)."""

    levels = (BEST,)
    is_pairwise = True

    def item(self, encoder: Encoder, example: PreferenceExample) -> Item:
        """Return (chosen, rejected)."""
        best, sides = encoder.num_levels - 1, (example.chosen, example.rejected)
        return tuple(encoder.encode(LevelledExample(example.prompt, side, best)) for side in sides)


class Chain(DataFormat):
    """Both completions in one sequence, each behind its level's feedback (Chain of Hindsight, Liu et al., 2023).

    Both orders, as in its authors' code (``pn`` and ``np``). EOS closes each completion, there as here.
    """

    levels = PAIR_LEVELS
    chains = True

    def item(self, encoder: Encoder, example: PreferenceExample) -> Item:
        """Return (x, good, y_w, bad, y_l) and (x, bad, y_l, good, y_w)."""
        chosen, rejected = _levelled(encoder, example)
        return encoder.chain((chosen, rejected)), encoder.chain((rejected, chosen))


def _levelled(encoder: Encoder, example: PreferenceExample) -> tuple[LevelledExample, LevelledExample]:
    """Return (chosen at the best level, rejected at the worst)."""
    assert encoder.num_levels == len(PAIR_LEVELS), "a pair shows two levels"
    return (
        LevelledExample(example.prompt, example.chosen, encoder.num_levels - 1),
        LevelledExample(example.prompt, example.rejected, 0),
    )


FORMATS.register("conditional")(Conditional())
FORMATS.register("chosen")(Chosen())
FORMATS.register("pairwise")(Pairwise())
FORMATS.register("chain")(Chain())
