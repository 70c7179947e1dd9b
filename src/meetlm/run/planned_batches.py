"""What the batches of a stage will hold, counted without making one: steps, tokens, padding, the largest pass."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from meetlm.data.batch import BatchSize, Layout, size_of
from meetlm.data.formats import Item
from meetlm.training.order import optimizer_steps
from meetlm.training.stage import BatchSettings, StageSettings


@dataclass(frozen=True, slots=True)
class Pass:
    """One forward and backward pass.

    Attributes:
        items: Numbers of the pairs in it, in order.
        size: Of its batch.
    """

    items: tuple[int, ...]
    size: BatchSize


@dataclass(frozen=True, slots=True)
class StageCounts:
    """What a stage reads.

    Attributes:
        pairs: Of the training set.
        sequences: That a pass over the pairs has.
        steps: Optimizer steps.
        epochs: Passes over the pairs that these are.
        tokens_per_epoch: Real tokens of one pass over the pairs: slots, prompts and replies.
        tokens: Real tokens of all steps, as ``metrics.jsonl`` counts them.
        positions: What the model computes for them: a prompt that replies share once, padding counted.
    """

    pairs: int
    sequences: int
    steps: int
    epochs: float
    tokens_per_epoch: int
    tokens: int
    positions: int


class StageBatches:
    """Every pass of a stage, in order.

    Args:
        items: What the stage's format makes of each pair.
        stage: Its length.
        batch: Sizes.
        seed: Of the data order.
        layout: Of the batches.
        share: Whether neighbours share their prompt.
    """

    def __init__(
        self,
        items: Sequence[Item],
        stage: StageSettings,
        batch: BatchSettings,
        seed: int,
        layout: Layout,
        *,
        share: bool,
    ) -> None:
        self._items, self._batch, self._layout, self._share = items, batch, layout, share
        self.steps = [
            [Pass(tuple(chosen), self.size(chosen)) for chosen in passes]
            for passes in optimizer_steps(len(items), stage, batch, seed)
        ]

    @property
    def passes(self) -> list[Pass]:
        """Those of all steps."""
        return [one for step in self.steps for one in step]

    def size(self, chosen: Sequence[int]) -> BatchSize:
        """Return the size of the batch of some pairs."""
        sequences = [sequence for index in chosen for sequence in self._items[index]]
        return size_of(sequences, self._layout, share=self._share)

    def counts(self) -> StageCounts:
        """Return what all of it comes to."""
        items = self._items
        return StageCounts(
            pairs=len(items),
            sequences=sum(map(len, items)),
            steps=len(self.steps),
            epochs=len(self.steps) / math.ceil(len(items) / self._batch.pairs),
            tokens_per_epoch=sum(len(sequence.ids) for item in items for sequence in item),
            tokens=sum(one.size.input_tokens for one in self.passes),
            positions=sum(one.size.positions for one in self.passes),
        )

    def largest(self, weigh: Callable[[BatchSize], float]) -> Pass:
        """Return the pass whose batch weighs most."""
        return max(self.passes, key=lambda one: weigh(one.size))
