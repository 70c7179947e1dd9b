"""How long a stage will take: a few passes of the real policy over real rows, timed in the loop itself.

The passes are those of training, through its own trainer, and they move weights: the policy is of no use for a run
afterwards.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from meetlm.data.batch import budget, size_of
from meetlm.data.encoding import Encoded
from meetlm.data.formats import Item
from meetlm.objectives.base import OBJECTIVES
from meetlm.policy.policy import SCORED_TOKENS, Policy
from meetlm.run.planned_batches import StageBatches
from meetlm.training.loop import StageTrainer
from meetlm.training.run_stage import set_trainable
from meetlm.training.stage import BatchSettings, OptimSettings, StageSettings

PASSES = 4
"""That are timed, after one that is not: the first takes memory from the system."""
CPU_POSITIONS = 1024
"""About as many are in a calibrating pass on a CPU: from there on the time of a position hardly changes."""


@dataclass(frozen=True, slots=True)
class Seconds:
    """An estimate of wall time, in seconds.

    Attributes:
        likely: By the mean of the passes that were timed.
        least: By the fastest of them.
        most: By the slowest.
    """

    likely: float
    least: float
    most: float

    def __add__(self, other: Seconds) -> Seconds:
        return Seconds(self.likely + other.likely, self.least + other.least, self.most + other.most)


@dataclass(frozen=True, slots=True)
class Rate:
    """What a calibration measured.

    Attributes:
        passes: Seconds of each timed pass, and the positions that it computed.
        step: Seconds of the optimizer in a step.
    """

    passes: tuple[tuple[float, int], ...]
    step: float

    def seconds(self, positions: int, steps: int = 0) -> Seconds:
        """Return the time of so many positions and optimizer steps."""
        each = [seconds / count for seconds, count in self.passes]
        mean = sum(seconds for seconds, _ in self.passes) / sum(count for _, count in self.passes)
        return Seconds(*(one * positions + self.step * steps for one in (mean, min(each), max(each))))


def calibrate(policy: Policy, items: Sequence[Item], stage: StageSettings, optim: OptimSettings, seed: int) -> Rate:
    """Train ``policy`` for a few small steps of a stage and return what they took.

    Args:
        policy: Real. It is moved.
        items: Those of the passes that are timed, and of one more: see :func:`sample`.
        stage: What is trained.
        optim: The optimizer's other settings.
        seed: Of the order.
    """
    size = len(items) // (PASSES + 1)
    short = stage.model_copy(update={"epochs": 1.0, "min_steps": 0})
    batch = BatchSettings(pairs=size, micro_pairs=size, save_steps=10**9)
    set_trainable(policy, stage)
    reference = None
    if OBJECTIVES[stage.objective.kind].is_pairwise:
        reference = torch.zeros(len(items), 2, dtype=torch.float64)
    clock = _Clock()
    with tempfile.TemporaryDirectory() as folder:
        trainer = StageTrainer(policy, items, short, optim, batch, Path(folder), seed, [clock], reference)
        trainer.train()
    policy.eval()
    policy.zero_grad(set_to_none=True)
    order = StageBatches(items, short, batch, seed, policy.layout, share=policy.shares_prompts)
    passes = tuple((seconds, one.size.positions) for seconds, one in zip(clock.passes, order.passes, strict=True))
    return Rate(passes[1:], sum(clock.steps[1:]) / PASSES)


def calibrate_scoring(policy: Policy, sequences: Sequence[Encoded]) -> Rate:
    """Return what scoring takes: the reference of a stage that compares, and measuring held-out pairs.

    Args:
        policy: Real.
        sequences: To score, in any order; as many are as fill some passes.
    """
    size = max(1, CPU_POSITIONS * len(sequences) // sum(len(one.ids) for one in sequences))
    passes = []
    for number in range(PASSES):
        chosen = [sequences[(number * size + k) % len(sequences)] for k in range(size)]
        started = _now()
        policy.score(chosen)
        passes.append((_now() - started, scored_positions(policy, chosen)))
    return Rate(tuple(passes[1:]), 0.0)


def scored_positions(policy: Policy, sequences: Sequence[Encoded]) -> int:
    """Return the positions that :meth:`Policy.score` computes for ``sequences``."""
    share = policy.shares_prompts
    groups = ([sequences[index] for index in group] for group in budget(sequences, SCORED_TOKENS, share=share))
    return sum(size_of(group, policy.layout, share=share).positions for group in groups)


def sample(batches: StageBatches, items: Sequence[Item], batch: BatchSettings, device: torch.device) -> list[Item]:
    """Return the pairs to calibrate with: the first ones of the stage's own order, enough for all passes.

    Args:
        batches: Of the stage.
        items: All of its pairs.
        batch: Its sizes.
        device: A pass on a CPU is made small; on a GPU it is as large as the stage's.
    """
    size = batch.micro
    if device.type == "cpu":
        read = sum(len(one.items) for one in batches.passes)
        size = max(1, min(size, CPU_POSITIONS * read // sum(one.size.positions for one in batches.passes)))
    order = cycle([index for one in batches.passes for index in one.items])
    return [items[index] for index in islice(order, size * (PASSES + 1))]


class _Clock(TrainerCallback):
    """Times each step's pass and optimizer, the batch's making counted; keeps checkpoints from being written.

    Attributes:
        passes: Seconds of each pass.
        steps: Seconds of each optimizer step.
    """

    def __init__(self) -> None:
        self.passes: list[float] = []
        self.steps: list[float] = []
        self._since = 0.0

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Start."""
        self._since = _now()

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Note the pass."""
        self.passes.append(self._lap())

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Note the optimizer's step."""
        self.steps.append(self._lap())
        control.should_save = False

    def _lap(self) -> float:
        before, self._since = self._since, _now()
        return self._since - before


def _now() -> float:
    """Return the time, all that was given to a GPU done."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return perf_counter()
