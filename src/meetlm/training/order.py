"""Which pairs are in which forward pass of a stage, without running it: the order of the training loop's sampler."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count

from accelerate.data_loader import SeedableRandomSampler

from meetlm.training.stage import BatchSettings, StageSettings

SEED_STRIDE = 1_000_003
"""The sampler orders epoch e by seed + e, so runs with neighbouring seeds would have most of their orders in common."""


def data_seed(seed: int) -> int:
    """Return the seed of a run's data order."""
    return seed * SEED_STRIDE


def optimizer_steps(num_items: int, stage: StageSettings, batch: BatchSettings, seed: int) -> Iterator[list[list[int]]]:
    """Yield for each optimizer step of a stage, in order, the items of each of its forward passes.

    Args:
        num_items: Size of the training set.
        stage: Number of epochs or steps.
        batch: Batch sizes.
        seed: Seed of the run.
    """
    steps_left = stage.num_steps(num_items, batch.pairs)
    sampler = SeedableRandomSampler(range(num_items), data_seed=data_seed(seed))
    for epoch in count():
        sampler.set_epoch(epoch)
        order = list(sampler)
        passes = [order[start : start + batch.micro] for start in range(0, num_items, batch.micro)]
        for start in range(0, len(passes), batch.accumulation):
            if steps_left == 0:
                return
            yield passes[start : start + batch.accumulation]
            steps_left -= 1
