"""Collate encoded sequences into tensors.

A batch is a list of blocks. A *packed* block holds all its sequences in one row without padding: positions restart,
``cu_seq_lens`` marks the borders, and there is no attention mask (with one, transformers lets packed sequences see
each other). A *padded* block holds one sequence per row. Architectures for which packing changes logits get padded
blocks, grouped by length so that there is little padding.

In a packed block, adjacent sequences with the same prompt at the same level can share the prompt; if the level acts on
the response only, the levels may differ. The later sequences are *branches* of the first: they contain only the tokens
from the last token of the prompt on. Sharing does not change logits.

R rows, T tokens per row, K levels, Q sequences of the block, S completions of the batch (one per sequence, several in
chains), N trained tokens of the block.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Literal, NotRequired, TypedDict

import torch
from torch import Tensor

from meetlm.data.encoding import Encoded

Layout = Literal["packed", "padded"]
IGNORE = -100


class Block(TypedDict):
    """Tensors of one forward pass."""

    input_ids: Tensor  # [R, T] int64; virtual ids start at the size of the embedding table
    position_ids: Tensor  # [R, T] int64
    level_weights: Tensor  # [R, T, K] f32
    targets: Tensor  # [R, T] int64: the trained token that the position predicts, or IGNORE
    completion: Tensor  # [N] int64: for each trained token in row order, the number of its completion in the batch
    attention_mask: NotRequired[Tensor]  # [R, T] bool, padded blocks only
    cu_seq_lens: NotRequired[Tensor]  # [Q + 1] int32, packed blocks only
    # Q numbers: how many tokens at its start a branch shares with the last sequence before it that is not a branch
    shared: NotRequired[list[int]]
    # Q numbers: how many tokens at the start of each sequence, as it is in this row, have no level weights
    uncontrolled: NotRequired[list[int]]


class Batch(TypedDict):
    """Blocks, and what belongs to the whole batch."""

    blocks: list[Block]
    num_completions: int
    num_input_tokens: int  # tokens of slots, prompts and completions, without padding
    weights: Tensor  # [S, K] f32, the level weights of each completion
    # All trained ids of the batch, or one per pair for pairwise objectives; the loss is divided by their number.
    labels: Tensor
    reference: NotRequired[Tensor]  # [S] f64: log-probs of the completions under the reference, for pairwise objectives


def collate(sequences: Sequence[Encoded], layout: Layout, *, max_waste: float = 0.1, share: bool = False) -> Batch:
    """Return the batch of ``sequences``; completions are numbered in their order.

    Args:
        sequences: At least one, all with the same number of levels.
        layout: ``packed`` gives one block; ``padded`` gives as many as keep padding under ``max_waste``.
        max_waste: Largest share of padding in a padded block.
        share: Whether neighbours with the same prompt share it in a packed block.
    """
    assert sequences, "an empty batch"
    first_completions = accumulate((len(s.spans) for s in sequences), initial=0)
    numbered = list(zip(first_completions, sequences, strict=False))
    blocks = (
        [_pack(numbered, share=share)]
        if layout == "packed"
        else [_pad(group) for group in _by_length(numbered, max_waste)]
    )
    labels = torch.cat([block["targets"][block["targets"] != IGNORE] for block in blocks])
    spans = [span for sequence in sequences for span in sequence.spans]
    return Batch(
        blocks=blocks,
        num_completions=len(spans),
        num_input_tokens=sum(len(s.ids) for s in sequences),
        weights=torch.tensor([span.weights for span in spans], dtype=torch.float32),
        labels=labels,
    )


@dataclass(frozen=True, slots=True)
class BatchSize:
    """The size of a batch.

    Attributes:
        positions: Positions that the model computes: shared prompts once, padding included.
        input_tokens: Tokens of all sequences, as in :class:`Batch`: shared prompts once per sequence, no padding.
        trained: Trained tokens.
    """

    positions: int
    input_tokens: int
    trained: int


def size_of(sequences: Sequence[Encoded], layout: Layout, *, max_waste: float = 0.1, share: bool = False) -> BatchSize:
    """Return the size of the batch that :func:`collate` returns for the same arguments."""
    lengths = [len(sequence.ids) for sequence in sequences]
    if layout == "packed":
        positions = sum(lengths) - (sum(_shared_counts(sequences)) if share else 0)
    else:
        groups = _by_length([(0, sequence) for sequence in sequences], max_waste)
        positions = sum(len(group) * len(group[0][1].ids) for group in groups)
    return BatchSize(positions, sum(lengths), sum(sequence.num_trained for sequence in sequences))


def split_by_tokens(sequences: Sequence[Encoded], max_tokens: int, *, share: bool = False) -> Iterable[list[int]]:
    """Yield groups of indices, longest sequences first: of at most ``max_tokens`` tokens, or of one longer sequence.

    Args:
        sequences: In any order.
        max_tokens: Largest number of tokens, counted without sharing.
        share: Whether neighbours with the same prompt stay together as far as ``max_tokens`` allows.
    """
    families: list[list[int]] = []
    room = 0
    for index, sequence in enumerate(sequences):
        room -= len(sequence.ids)
        if share and families and room >= 0 and same_prompt(sequences[families[-1][0]], sequence):
            families[-1].append(index)
        else:
            families.append([index])
            room = max_tokens - len(sequence.ids)
    group: list[int] = []
    total = 0
    for family in sorted(families, key=lambda family: -len(sequences[family[0]].ids)):
        length = sum(len(sequences[index].ids) for index in family)
        if group and total + length > max_tokens:
            yield group
            group, total = [], 0
        group += family
        total += length
    if group:
        yield group


Numbered = tuple[int, Encoded]
"""The number of a sequence's first completion, and the sequence."""


def _by_length(sequences: Sequence[Numbered], max_waste: float) -> list[list[Numbered]]:
    """Return groups of similar length, in which at most ``max_waste`` of the positions is padding."""
    groups: list[list[Numbered]] = []
    tokens = 0
    for index, sequence in sorted(sequences, key=lambda item: -len(item[1].ids)):
        longest = len(groups[-1][0][1].ids) if groups else 0
        if groups and 1 - (tokens + len(sequence.ids)) / (longest * (len(groups[-1]) + 1)) <= max_waste:
            groups[-1].append((index, sequence))
            tokens += len(sequence.ids)
        else:
            groups.append([(index, sequence)])
            tokens = len(sequence.ids)
    return groups


def _targets(sequence: Encoded) -> list[int]:
    targets = [IGNORE] * len(sequence.ids)
    for span in sequence.spans:
        targets[span.start - 1 : span.end - 1] = sequence.ids[span.start : span.end]
    return targets


def _weights(sequences: Iterable[Encoded]) -> Tensor:
    parts = []
    for sequence in sequences:
        starts = (0, *(span.end for span in sequence.spans))
        for start, span in zip(starts, sequence.spans, strict=False):
            weights = torch.tensor([span.weights], dtype=torch.float32)
            parts.append(torch.zeros_like(weights).expand(max(0, span.controlled_from - start), -1))
            parts.append(weights.expand(span.end - max(start, span.controlled_from), -1))
    return torch.cat(parts)


def _completion(group: list[Numbered]) -> Tensor:
    return torch.cat(
        [
            torch.full((span.end - span.start,), first + number, dtype=torch.int64)
            for first, sequence in group
            for number, span in enumerate(sequence.spans)
        ]
    )


def _pack(group: list[Numbered], *, share: bool) -> Block:
    members = [sequence for _, sequence in group]
    shared = _shared_counts(members) if share else [0] * len(members)
    trimmed = list(zip(members, shared, strict=True))
    lengths = [len(s.ids) - skip for s, skip in trimmed]
    block = Block(
        input_ids=torch.tensor([[i for s, skip in trimmed for i in s.ids[skip:]]]),
        position_ids=torch.cat([torch.arange(skip, len(s.ids)) for s, skip in trimmed])[None],
        level_weights=torch.cat([_weights([s])[skip:] for s, skip in trimmed])[None],
        targets=torch.tensor([[t for s, skip in trimmed for t in _targets(s)[skip:]]]),
        completion=_completion(group),
        cu_seq_lens=torch.tensor([0, *accumulate(lengths)], dtype=torch.int32),
    )
    if any(shared):
        block["shared"] = shared
    uncontrolled = [max(0, s.spans[0].controlled_from - skip) for s, skip in trimmed]
    if any(uncontrolled):
        block["uncontrolled"] = uncontrolled
    return block


def _shared_counts(sequences: Sequence[Encoded]) -> list[int]:
    """Return how many tokens each sequence shares with the last one before it that is not a branch.

    The prompt's last token is not shared: it predicts the first token of each completion.
    """
    counts: list[int] = []
    root: Encoded | None = None
    for sequence in sequences:
        is_branch = root is not None and same_prompt(root, sequence)
        counts.append(sequence.spans[0].start - 1 if is_branch else 0)
        root = root if is_branch else sequence
    return counts


def same_prompt(left: Encoded, right: Encoded) -> bool:
    """Return whether two sequences complete the same prompt, slot included, with the same level weights on it."""
    if len(left.spans) > 1 or len(right.spans) > 1:
        return False
    first, second = left.spans[0], right.spans[0]
    return (
        (first.start, first.controlled_from) == (second.start, second.controlled_from)
        and (first.weights == second.weights or first.controlled_from == first.start - 1)
        and first.start > 1
        and left.ids[: first.start] == right.ids[: second.start]
    )


def _pad(group: list[Numbered]) -> Block:
    longest = max(len(sequence.ids) for _, sequence in group)
    rows = len(group)
    input_ids = torch.zeros(rows, longest, dtype=torch.int64)
    targets = torch.full((rows, longest), IGNORE)
    mask = torch.zeros(rows, longest, dtype=torch.bool)
    weights = torch.zeros(rows, longest, len(group[0][1].spans[0].weights))
    for row, (_, sequence) in enumerate(group):
        length = len(sequence.ids)
        input_ids[row, :length] = torch.tensor(sequence.ids)
        targets[row, :length] = torch.tensor(_targets(sequence))
        mask[row, :length] = True
        weights[row, :length] = _weights([sequence])
    return Block(
        input_ids=input_ids,
        position_ids=torch.arange(longest).expand(rows, -1).contiguous(),
        level_weights=weights,
        targets=targets,
        completion=_completion(group),
        attention_mask=mask,
    )
