"""The steps, tokens, padding and largest forward pass of a stage, without computing the passes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from meetlm.data.batch import BatchSize, Layout, size_of
from meetlm.data.formats import Item
from meetlm.training.order import optimizer_steps
from meetlm.training.stage import BatchSettings, StageSettings


@dataclass(frozen=True, slots=True)
class ForwardPass:
    """A forward and backward pass.

    Attributes:
        items: Indices of the pairs in it, in order.
        size: Size of its batch.
    """

    items: tuple[int, ...]
    size: BatchSize


@dataclass(frozen=True, slots=True)
class StageCounts:
    """The amount of work of a stage.

    Attributes:
        pairs: Pairs in the training set.
        steps: Optimizer steps.
        epochs: Number of epochs.
        tokens_per_epoch: Tokens in one epoch: control slots, prompts and replies.
        tokens: Tokens in all steps, counted as in ``metrics.jsonl``.
        positions: Positions that the model computes: padding included, and a shared prompt only once.
    """

    pairs: int
    steps: int
    epochs: float
    tokens_per_epoch: int
    tokens: int
    positions: int


class StageBatches:
    """Every forward pass of a stage, in order.

    Args:
        items: The sequences of each pair, in the stage's format.
        stage: Settings of the stage.
        batch: Batch sizes.
        seed: Seed of the data order.
        layout: Layout of the batches; in packed batches neighbouring sequences share their prompt.

    Attributes:
        passes: Forward passes of all steps.
        counts: The amount of work.
    """

    def __init__(
        self, items: Sequence[Item], stage: StageSettings, batch: BatchSettings, seed: int, layout: Layout
    ) -> None:
        def forward_pass(indices: list[int]) -> ForwardPass:
            sequences = [sequence for index in indices for sequence in items[index]]
            return ForwardPass(tuple(indices), size_of(sequences, layout, share=layout == "packed"))

        steps = list(optimizer_steps(len(items), stage, batch, seed))
        self.passes = [forward_pass(indices) for step in steps for indices in step]
        self.counts = StageCounts(
            pairs=len(items),
            steps=len(steps),
            epochs=len(steps) / math.ceil(len(items) / batch.pairs),
            tokens_per_epoch=sum(len(sequence.ids) for item in items for sequence in item),
            tokens=sum(forward.size.input_tokens for forward in self.passes),
            positions=sum(forward.size.positions for forward in self.passes),
        )

    def by_positions(self, share: float) -> ForwardPass:
        """Return the forward pass at a quantile of the number of positions: 0.5 is the median, 1 the largest."""
        ordered = sorted(self.passes, key=lambda forward: forward.size.positions)
        return ordered[round(share * (len(ordered) - 1))]
