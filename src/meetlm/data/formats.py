"""Data formats: the sequences that a stage trains on for one example.

An *item* is the sequences of one example; all of them are in one optimizer step. A new format is one class here.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar

from meetlm.config.errors import ConfigError
from meetlm.config.registry import Registry
from meetlm.config.reporter import SILENT, Reporter
from meetlm.data.encoding import Encoded, Encoder
from meetlm.data.example import Example
from meetlm.data.levels import LevelSpace

Item = tuple[Encoded, ...]
"""The sequences of one example."""


class DataFormat(ABC):
    """How an example becomes sequences.

    Attributes:
        uses_levels: Whether the sequences have different levels; if not, the control has only the best level.
        is_pairwise: Whether an item is two completions (chosen, rejected) of one prompt at one level, for pairwise
            objectives.
        chains: Whether a sequence has completions of several levels, which requires a slot before each response.
        required: What an example must have, as text for messages; examples without it are left out.
    """

    uses_levels: ClassVar[bool] = False
    is_pairwise: ClassVar[bool] = False
    chains: ClassVar[bool] = False
    required: ClassVar[str] = "a reply with a level"

    @abstractmethod
    def item(self, encoder: Encoder, example: Example) -> Item:
        """Return the sequences of an example; an empty item leaves it out.

        The completions have level weights, best first. Formats that do not use levels require one ordered attribute.
        """


FORMATS: Registry[DataFormat] = Registry("data format")


class Conditional(DataFormat):
    """Each completion at its level; for a pair, chosen at good and rejected at bad (the two terms of eqs. 1 and 2)."""

    uses_levels = True

    def item(self, encoder: Encoder, example: Example) -> Item:
        """Return the completions, each at its level."""
        return tuple(encoder.encode(example.prompt, c.reply, c.weights) for c in example.completions)


class Chosen(DataFormat):
    """Only the completions at the best level: supervised fine-tuning."""

    required = "a reply at the best level"

    def item(self, encoder: Encoder, example: Example) -> Item:
        """Return the completions at the best level; (chosen,) for a pair."""
        best = [completion.reply for completion in example.completions if completion.weights[-1]]
        return tuple(encoder.encode(example.prompt, reply, encoder.levels.best) for reply in best)


class Pairwise(DataFormat):
    """The best and the worst completion at the same level: for objectives that compare them (DPO)."""

    is_pairwise = True
    required = "two replies at different levels"

    def item(self, encoder: Encoder, example: Example) -> Item:
        """Return (best, worst)."""
        if example.completions[0].weights == example.completions[-1].weights:
            return ()
        best = encoder.levels.best
        return tuple(encoder.encode(example.prompt, reply, best) for reply in example.best_and_worst)


class Chain(DataFormat):
    """All completions in one sequence, each after the text of its level (Chain of Hindsight, Liu et al., 2023).

    Each pair gives both orders, and EOS ends each completion, as in the authors' code (``pn`` and ``np``).
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


def make_items(
    name: str, encoder: Encoder, examples: Sequence[Example], levels: LevelSpace, *, reporter: Reporter = SILENT
) -> list[Item]:
    """Return the items of examples in one format.

    Args:
        name: Name of the format.
        encoder: Encoder of the run's control.
        examples: Examples with level weights.
        levels: Levels of the data.
        reporter: Receives the number of examples that are left out.

    Raises:
        ConfigError: The format cannot use the data.
    """
    data_format = FORMATS[name]
    if not data_format.uses_levels and not levels.is_scale:
        names = ", ".join(attribute.name or "one without a name" for attribute in levels.attributes)
        raise ConfigError(
            f"format {name!r} requires one attribute with ordered levels, which determine the best reply; attributes "
            f"of the data: {names}. Choose one with --data.attributes and its order with --data.levels.names, or use "
            "the format conditional"
        )
    items = [item for example in examples if (item := data_format.item(encoder, example))]
    if not items:
        raise ConfigError(f"format {name!r} cannot use the data: no prompt has {data_format.required}")
    if len(items) < len(examples):
        num_left_out = len(examples) - len(items)
        reporter.message(
            f"format {name} leaves out {num_left_out} of {len(examples)} prompts without {data_format.required}"
        )
    return items
