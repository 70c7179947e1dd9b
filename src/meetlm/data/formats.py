"""Data formats: which sequences a stage trains for one example. Knows no tokenizer and no model.

An *item* is the sequences of one example; all of them are in one optimizer step. A new format is one class here.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

from meetlm.config.registry import Registry
from meetlm.data.encoding import Encoded, Encoder
from meetlm.data.example import Example

Item = tuple[Encoded, ...]
"""The sequences of one example."""


class DataFormat(ABC):
    """How an example becomes sequences.

    Attributes:
        uses_levels: Whether the sequences differ in their levels; without it the control has the best level alone.
        is_pairwise: Whether an item is two completions (chosen, rejected) of one prompt at one level, for pairwise
            objectives.
        chains: Whether a sequence has completions of several levels: they need a slot before each response.
    """

    uses_levels: ClassVar[bool] = False
    is_pairwise: ClassVar[bool] = False
    chains: ClassVar[bool] = False

    @abstractmethod
    def item(self, encoder: Encoder, example: Example) -> Item:
        """Return the sequences of one example, whose completions have level weights, best first."""


FORMATS: Registry[DataFormat] = Registry("data format")


class Conditional(DataFormat):
    """Each completion at its level; of a pair, chosen at good and rejected at bad: the two terms of eqs. 1 and 2."""

    uses_levels = True

    def item(self, encoder: Encoder, example: Example) -> Item:
        """Return the completions, each at its level."""
        return tuple(encoder.encode(example.prompt, c.reply, c.weights) for c in example.completions)


class Chosen(DataFormat):
    """The best completion alone: supervised fine-tuning."""

    def item(self, encoder: Encoder, example: Example) -> Item:
        """Return (best,)."""
        best, _ = example.best_and_worst
        return (encoder.encode(example.prompt, best, encoder.levels.best),)


class Pairwise(DataFormat):
    """The best and the worst completion at the same level: for objectives that compare them (DPO)."""

    is_pairwise = True

    def item(self, encoder: Encoder, example: Example) -> Item:
        """Return (best, worst)."""
        best = encoder.levels.best
        return tuple(encoder.encode(example.prompt, reply, best) for reply in example.best_and_worst)


class Chain(DataFormat):
    """All completions in one sequence, each behind its level's feedback (Chain of Hindsight, Liu et al., 2023).

    Both orders, as in its authors' code (``pn`` and ``np``). EOS closes each completion, there as here.
    """

    uses_levels = True
    chains = True

    def item(self, encoder: Encoder, example: Example) -> Item:
        """Return (x, good, y_w, bad, y_l) and (x, bad, y_l, good, y_w)."""
        orders = dict.fromkeys((example.completions, example.completions[::-1]))
        return tuple(encoder.chain(example.prompt, order) for order in orders)


FORMATS.register("conditional")(Conditional())
FORMATS.register("chosen")(Chosen())
FORMATS.register("pairwise")(Pairwise())
FORMATS.register("chain")(Chain())
