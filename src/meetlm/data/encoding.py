"""Examples to id sequences with the control slot in its place. Knows no model.

The slot stands first ([P, BOS, x, y], as PEFT's prompt tuning has it), or right before the response. Ids of the slot
may be virtual: at or above the size of the embedding table, resolved by the control.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from meetlm.data.example import PreferenceExample, Text
from meetlm.data.levels import LevelledExample, levels_of_pair
from meetlm.data.prompt_format import PromptFormat

Placement = Literal["first", "before_response"]


@dataclass(frozen=True, slots=True)
class Encoded:
    """One sequence.

    Attributes:
        ids: Slot, prompt and completion, in the order of the placement.
        start: Index in ``ids`` of the completion's first token; tokens from here on are trained.
        weights: The level weights [K] of all its tokens: one-hot in training, any mix at inference.
    """

    ids: tuple[int, ...]
    start: int
    weights: tuple[float, ...]

    @property
    def num_trained(self) -> int:
        """Number of tokens that carry loss."""
        return len(self.ids) - self.start


class Encoder:
    """Encodes examples for one control.

    Args:
        prompt_format: Text to ids.
        slots: For each level the ids of its control slot, K lists.
        placement: Where the slot stands.
    """

    def __init__(
        self, prompt_format: PromptFormat, slots: Sequence[Sequence[int]], placement: Placement = "first"
    ) -> None:
        self.format, self.slots, self.placement = prompt_format, [tuple(slot) for slot in slots], placement
        self.num_levels = len(self.slots)

    def prompt(self, prompt: Text, level: int) -> list[int]:
        """Return slot and prompt ids: what generation under ``level`` starts from."""
        slot, ids = self.slots[level], self.format.prompt_ids(prompt)
        return [*slot, *ids] if self.placement == "first" else [*ids, *slot]

    def encode(self, example: LevelledExample) -> Encoded:
        """Return the sequence of one completion under its level."""
        opened = self.prompt(example.prompt, example.level)
        completion = self.format.completion_ids(example.prompt, example.completion)
        return Encoded((*opened, *completion), len(opened), one_hot(example.level, self.num_levels))

    def pair(self, example: PreferenceExample) -> tuple[Encoded, Encoded]:
        """Return (chosen at good, rejected at bad): one item of the training set, always in one batch."""
        chosen, rejected = levels_of_pair(example)
        return self.encode(chosen), self.encode(rejected)


def one_hot(level: int, num_levels: int) -> tuple[float, ...]:
    """Return the weights [K] that select one level."""
    return tuple(1.0 if k == level else 0.0 for k in range(num_levels))


def pair_lengths(prompt_format: PromptFormat, example: PreferenceExample) -> tuple[int, int, int]:
    """Return the numbers of tokens of prompt, chosen and rejected, without any control.

    The filters count with this, so that every method trains on the same rows.
    """
    return (
        len(prompt_format.prompt_ids(example.prompt)),
        len(prompt_format.completion_ids(example.prompt, example.chosen)),
        len(prompt_format.completion_ids(example.prompt, example.rejected)),
    )
