"""Which examples are in which forward pass of a stage, for each process."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import count, islice

from accelerate.data_loader import SeedableRandomSampler
from torch.utils.data import Sampler

from meetlm.config.world import SINGLE, World
from meetlm.training.stage import BatchSettings, StageSettings

SEED_STRIDE = 1_000_003
"""The sampler orders epoch e by seed + e, so runs with neighbouring seeds would have most of their orders in common."""


def data_seed(seed: int) -> int:
    """Return the seed of a run's data order."""
    return seed * SEED_STRIDE


def dropout_seed(seed: int, world: World) -> int:
    """Return the seed of a process's dropout: the run's in the main process, and another one in each other process."""
    return (seed + world.rank * SEED_STRIDE) % 2**32


class PassSampler(Sampler[list[int]]):
    """Yields the examples of each forward pass of an epoch, for one process.

    Every process goes through the same shuffled order, and each step has the same examples for any number of processes:
    of n processes, process r takes the examples r, r + n, r + 2n, … of a step. All processes have the same number of
    forward passes, since they exchange gradients; a pass without examples is an empty list.

    Args:
        num_items: Size of the training set.
        batch: Batch sizes of the whole job.
        seed: Seed of the run.
        world: The process.

    Raises:
        ConfigError: The batch cannot be divided among the processes.
    """

    def __init__(self, num_items: int, batch: BatchSettings, seed: int, world: World) -> None:
        self._num_items, self._pairs, self._batch = num_items, batch.pairs, batch.of_process(world)
        self._world = world
        self._sampler = SeedableRandomSampler(range(num_items), data_seed=data_seed(seed))

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch that the next iteration yields."""
        self._sampler.set_epoch(epoch)

    def __len__(self) -> int:
        full_steps, rest = divmod(self._num_items, self._pairs)
        return full_steps * self._batch.accumulation + self._num_passes(rest)

    def __iter__(self) -> Iterator[list[int]]:
        order = list(self._sampler)
        for start in range(0, self._num_items, self._pairs):
            step = order[start : start + self._pairs]
            own, micro = step[self._world.rank :: self._world.size], self._batch.micro
            for number in range(self._num_passes(len(step))):
                yield own[number * micro : (number + 1) * micro]

    def _num_passes(self, num_items: int) -> int:
        """Return the number of forward passes of each process for a step of ``num_items`` examples."""
        return math.ceil(math.ceil(num_items / self._world.size) / self._batch.micro)


def optimizer_steps(
    num_items: int, stage: StageSettings, batch: BatchSettings, seed: int, world: World = SINGLE
) -> Iterator[list[list[int]]]:
    """Yield for each optimizer step of a stage, in order, the examples of each of its forward passes.

    Args:
        num_items: Size of the training set.
        stage: Number of epochs or steps.
        batch: Batch sizes.
        seed: Seed of the run.
        world: The process whose forward passes are yielded.
    """
    steps_left = stage.num_steps(num_items, batch.pairs)
    sampler = PassSampler(num_items, batch, seed, world)
    accumulation = batch.of_process(world).accumulation
    for epoch in count():
        sampler.set_epoch(epoch)
        passes = iter(sampler)
        while step := list(islice(passes, accumulation)):
            if steps_left == 0:
                return
            yield step
            steps_left -= 1
