"""Examples to id sequences with the control slot in its place. Knows no model.

The slot stands first ([P, BOS, x, y], as PEFT's prompt tuning has it), or right before the response. Ids of the slot
may be virtual: at or above the size of the embedding table, resolved by the control.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from meetlm.config.errors import ConfigError
from meetlm.data.example import PreferenceExample, Prompt
from meetlm.data.filters import PairTokens
from meetlm.data.levels import LevelledExample
from meetlm.data.prompt_format import PromptFormat

Placement = Literal["first", "before_response"]


@dataclass(frozen=True, slots=True)
class Span:
    """One completion within a sequence.

    Attributes:
        start: Index of its first token; its tokens are trained.
        end: Index behind its last token.
        weights: The level weights [K] of its tokens and of those before it, back to the completion before: one-hot in
            training, any mix at inference.
    """

    start: int
    end: int
    weights: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Encoded:
    """One sequence; its last completion ends it.

    Attributes:
        ids: Slot, prompt and completion, in the order of the placement; a chain has more slots and completions.
        spans: Its completions, in order.
    """

    ids: tuple[int, ...]
    spans: tuple[Span, ...]

    @classmethod
    def of_one(cls, ids: Sequence[int], start: int, weights: tuple[float, ...]) -> Encoded:
        """Return a sequence whose tokens from ``start`` on are its one completion."""
        return cls(tuple(ids), (Span(start, len(ids), weights),))

    @property
    def num_trained(self) -> int:
        """Number of tokens that carry loss."""
        return sum(span.end - span.start for span in self.spans)


class Encoder:
    """Encodes examples for one control.

    Args:
        prompt_format: Turns text into ids.
        slots: The ids of the control slot of each level, K lists.
        placement: Where the slot stands.
        num_embeddings: Number of ids with an embedding in the model, if known; text with other tokens is refused.
    """

    def __init__(
        self,
        prompt_format: PromptFormat,
        slots: Sequence[Sequence[int]],
        placement: Placement = "first",
        num_embeddings: int | None = None,
    ) -> None:
        self.format, self.slots, self.placement = prompt_format, [tuple(slot) for slot in slots], placement
        self.num_levels, self._num_embeddings = len(self.slots), num_embeddings

    def prompt(self, prompt: Prompt, level: int) -> list[int]:
        """Return slot and prompt ids: what generation under ``level`` starts from.

        Raises:
            ConfigError: The model has no embedding for a token. All methods raise this.
        """
        slot, ids = self.slots[level], self._require_embeddings(self.format.prompt_ids(prompt))
        return [*slot, *ids] if self.placement == "first" else [*ids, *slot]

    def encode(self, example: LevelledExample) -> Encoded:
        """Return the sequence of one completion under its level."""
        opened = self.prompt(example.prompt, example.level)
        completion = self._require_embeddings(self.format.completion_ids(example.prompt, example.completion))
        return Encoded.of_one((*opened, *completion), len(opened), one_hot(example.level, self.num_levels))

    def chain(self, examples: Sequence[LevelledExample]) -> Encoded:
        """Return one sequence of a prompt and several of its completions, each behind the slot of its level.

        Args:
            examples: Completions of one prompt, in their order; the slot must stand before the response.
        """
        assert self.placement == "before_response", "a chain has a slot before each completion"
        ids, spans = self._require_embeddings(self.format.prompt_ids(examples[0].prompt)), []
        for example in examples:
            ids += self.slots[example.level]
            start = len(ids)
            ids += self._require_embeddings(self.format.completion_ids(example.prompt, example.completion))
            spans.append(Span(start, len(ids), one_hot(example.level, self.num_levels)))
        return Encoded(tuple(ids), tuple(spans))

    def _require_embeddings(self, ids: list[int]) -> list[int]:
        """Return ``ids``, if the model has an embedding for each; other ids would be read as virtual tokens of a slot.

        Raises:
            ConfigError: Names the token without an embedding.
        """
        most = max(ids, default=0)
        if self._num_embeddings is not None and most >= self._num_embeddings:
            token = self.format.tokenizer.convert_ids_to_tokens(most)
            raise ConfigError(
                f"token {token!r} has id {most}, and the model has embeddings for {self._num_embeddings} ids: use the "
                "model's own tokenizer, or call resize_token_embeddings and save the model"
            )
        return ids


def one_hot(level: int, num_levels: int) -> tuple[float, ...]:
    """Return the weights [K] that select one level."""
    return tuple(1.0 if k == level else 0.0 for k in range(num_levels))


def pair_lengths(prompt_format: PromptFormat, example: PreferenceExample) -> PairTokens:
    """Return the numbers of tokens of prompt, chosen and rejected, without any control.

    The filters count with this, so that every method trains on the same rows.

    Raises:
        ConfigError: The row cannot be turned into tokens.
    """
    prompt = prompt_format.prompt_ids(example.prompt)
    chosen, rejected = (prompt_format.completion_ids(example.prompt, r) for r in (example.chosen, example.rejected))
    special = prompt_format.special_text((*example.prompt.turns, example.chosen, example.rejected))
    return PairTokens(len(prompt), len(chosen), len(rejected), chosen == rejected, special is not None)
