"""Which pairs are in which forward pass of a stage, without running it: what the loop's own sampler gives."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count

from accelerate.data_loader import SeedableRandomSampler

from meetlm.training.stage import BatchSettings, StageSettings

SEEDS_APART = 1_000_003
"""The loop's sampler orders epoch e by seed + e: seeds side by side would have most of their orders in common."""


def data_seed(seed: int) -> int:
    """Return the seed of a run's data order."""
    return seed * SEEDS_APART


def optimizer_steps(num_items: int, stage: StageSettings, batch: BatchSettings, seed: int) -> Iterator[list[list[int]]]:
    """Yield the items of each forward pass of each optimizer step of a stage, in order.

    Args:
        num_items: Of the training set.
        stage: How many passes, or steps.
        batch: Sizes.
        seed: Of the data order: the run's.
    """
    left = stage.num_steps(num_items, batch.pairs)
    sampler = SeedableRandomSampler(range(num_items), data_seed=data_seed(seed))
    for epoch in count():
        sampler.set_epoch(epoch)
        order = list(sampler)
        passes = [order[start : start + batch.micro] for start in range(0, num_items, batch.micro)]
        for start in range(0, len(passes), batch.accumulation):
            if left == 0:
                return
            yield passes[start : start + batch.accumulation]
            left -= 1
