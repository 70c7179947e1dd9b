"""Encode examples as sequences of token ids with a control slot.

The slot is first ([P, BOS, x, y], as in PEFT's prompt tuning), or directly before the response. Its ids may be virtual:
at or above the size of the embedding table, and resolved by the control.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from meetlm.config.errors import ConfigError
from meetlm.data.example import Completion, Example, Prompt, Turn, Weights
from meetlm.data.filters import ExampleTokens
from meetlm.data.levels import LevelSpace
from meetlm.data.prompt_format import PromptFormat

Placement = Literal["first", "before_response"]

Scope = Literal["all", "response"]
"""Tokens that level weights act on: all, or from the last token of the prompt (which predicts the response) on."""

Slot = Callable[[Weights], Sequence[int]]
"""Returns the ids of a control's slot for level weights [K]."""


def no_slot(weights: Weights) -> tuple[int, ...]:
    """Return no ids: the slot of a control without a slot."""
    del weights
    return ()


@dataclass(frozen=True, slots=True)
class Span:
    """One completion within a sequence.

    Attributes:
        start: Index of its first token; its tokens are trained.
        end: Index after its last token.
        weights: Level weights [K] of its tokens and of the tokens between it and the previous completion. In training
            they are 1 for each level of the completion; at inference they are any mix.
        controlled_from: Index of the first token with these level weights; those of earlier tokens are zero.
    """

    start: int
    end: int
    weights: Weights
    controlled_from: int = 0


@dataclass(frozen=True, slots=True)
class Encoded:
    """One sequence, which ends with a completion.

    Attributes:
        ids: Slot, prompt and completion, in the order of the placement; a chain has more slots and completions.
        spans: Its completions, in order.
    """

    ids: tuple[int, ...]
    spans: tuple[Span, ...]

    @classmethod
    def of_one(cls, ids: Sequence[int], start: int, weights: Weights, scope: Scope = "all") -> Encoded:
        """Return a sequence with one completion, its tokens from ``start`` on."""
        return cls(tuple(ids), (Span(start, len(ids), weights, 0 if scope == "all" else start - 1),))

    @property
    def num_trained(self) -> int:
        """Number of tokens that carry loss."""
        return sum(span.end - span.start for span in self.spans)


class Encoder:
    """Encodes examples for one control.

    Args:
        prompt_format: Turns text into ids.
        levels: The K levels of the control.
        slot: Returns the ids of the control slot for level weights.
        placement: Position of the slot.
        num_embeddings: Number of ids with an embedding in the model, if available; text with other tokens is refused.
        scope: Tokens that the level weights act on.
    """

    def __init__(
        self,
        prompt_format: PromptFormat,
        levels: LevelSpace,
        slot: Slot,
        placement: Placement = "first",
        num_embeddings: int | None = None,
        scope: Scope = "all",
    ) -> None:
        self.format, self.levels, self.slot, self.placement = prompt_format, levels, slot, placement
        self._num_embeddings, self._scope = num_embeddings, scope

    def prompt(self, prompt: Prompt, weights: Weights) -> list[int]:
        """Return slot and prompt ids, from which generation at level weights [K] starts.

        Raises:
            ConfigError: The model has no embedding for a token. All methods raise this.
        """
        slot, ids = self.slot(weights), self._require_embeddings(self.format.prompt_ids(prompt))
        return [*slot, *ids] if self.placement == "first" else [*ids, *slot]

    def encode(self, prompt: Prompt, reply: Turn, weights: Weights) -> Encoded:
        """Return the sequence of one reply under level weights [K]."""
        assert len(weights) == len(self.levels), "level weights of another control"
        opened = self.prompt(prompt, weights)
        completion = self._require_embeddings(self.format.completion_ids(prompt, reply))
        return Encoded.of_one((*opened, *completion), len(opened), weights, self._scope)

    def chain(self, prompt: Prompt, completions: Sequence[Completion]) -> Encoded:
        """Return one sequence of a prompt and several completions, each after the slot of its level.

        The slot must be placed before the response.
        """
        assert self.placement == "before_response", "a chain has a slot before each completion"
        ids, spans = self._require_embeddings(self.format.prompt_ids(prompt)), []
        for completion in completions:
            ids += self.slot(completion.weights)
            start = len(ids)
            ids += self._require_embeddings(self.format.completion_ids(prompt, completion.reply))
            spans.append(Span(start, len(ids), completion.weights))
        return Encoded(tuple(ids), tuple(spans))

    def _require_embeddings(self, ids: list[int]) -> list[int]:
        """Return ``ids`` if the model has an embedding for each; others would be taken for virtual tokens.

        Raises:
            ConfigError: Names the token without an embedding.
        """
        largest = max(ids, default=0)
        if self._num_embeddings is not None and largest >= self._num_embeddings:
            token = self.format.tokenizer.convert_ids_to_tokens(largest)
            raise ConfigError(
                f"token {token!r} has id {largest}, but the model has embeddings for {self._num_embeddings} ids: use "
                "the model's own tokenizer, or call resize_token_embeddings and save the model"
            )
        return ids


def example_lengths(prompt_format: PromptFormat, example: Example) -> ExampleTokens:
    """Return the numbers of tokens of an example, without any control.

    The filters use these numbers, so that every method trains on the same rows.

    Raises:
        ConfigError: The row cannot be turned into tokens.
    """
    prompt = prompt_format.prompt_ids(example.prompt)
    replies = [tuple(prompt_format.completion_ids(example.prompt, reply)) for reply in example.replies]
    special = prompt_format.special_text((*example.prompt.turns, *example.replies))
    has_same = len(set(replies)) < len(replies)
    return ExampleTokens(len(prompt), tuple(map(len, replies)), has_same, special is not None)
