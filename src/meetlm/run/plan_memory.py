"""The memory of a run's stages on a CPU and on GPUs. From dry runs: nothing is loaded and nothing trained."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from meetlm.controls.build import build_control
from meetlm.data.batch import Batch, BatchSize, Layout
from meetlm.data.formats import Item
from meetlm.diagnostics.allocator import held, replays
from meetlm.diagnostics.gpus import gathered_bytes, gpus_needed
from meetlm.diagnostics.memory import Rehearsal, States
from meetlm.objectives.base import OBJECTIVES
from meetlm.policy.loading import checkpoint_activations
from meetlm.recipes.config import RunConfig
from meetlm.run.planned_batches import StageBatches
from meetlm.training.loop import Collator
from meetlm.training.stage import StageSettings

Words = Callable[[str], list[int]]
KEPT_BYTES = 4
"""Of each probability that a trained head keeps for backward, in f32 or less. It weighs passes against each other; what
is reported comes from a dry run of the heaviest."""


@dataclass(frozen=True, slots=True)
class CpuMemory:
    """What a stage takes on a CPU, in bytes.

    Attributes:
        states: Weights, gradients, AdamW's moments.
        above: Most that lives above all of these at a time: activations of the largest pass, less the gradients that
            are still to come then.
        held: Most that the process holds for all of it, what its C library cannot use again included; ``None`` where
            the library does not say.
    """

    states: States
    above: int
    held: int | None

    @property
    def peak(self) -> int:
        """The most that lives at a time."""
        return self.states.total + self.above


@dataclass(frozen=True, slots=True)
class GpuMemory:
    """What a stage takes on one GPU or several, under bf16 autocast over f32 weights, in bytes.

    Attributes:
        states: Weights, gradients, AdamW's moments, f32.
        above: As :class:`CpuMemory` has it, on a single GPU.
        sharded: The same on each of several that share the states; their own batch is as large.
        gathered: Of the blocks that each of several gathers at a time.
    """

    states: States
    above: int
    sharded: int
    gathered: int

    @property
    def peak(self) -> int:
        """The most that lives at a time on a single GPU."""
        return self.states.total + self.above

    def gpus(self, size: int) -> int | None:
        """Return the least number of GPUs of ``size`` bytes, ``None`` where no number is enough."""
        return gpus_needed(self.states, self.above, self.sharded, self.gathered, size)


class StageRehearsal:
    """Dry runs of one stage over its real batches.

    Args:
        lm: The model without weights, fresh.
        config: Of the run.
        stage: Of ``config``.
        items: What the stage's format makes of each pair.
        batches: Its passes.
        words: Tokenises plain words.
        layout: Of the batches.
        share: Whether neighbours share their prompt.
    """

    def __init__(
        self,
        lm: Callable[[], PreTrainedModel],
        config: RunConfig,
        stage: StageSettings,
        items: Sequence[Item],
        batches: StageBatches,
        words: Words,
        layout: Layout,
        *,
        share: bool,
    ) -> None:
        self._lm, self._config, self._stage, self._words, self._layout = lm, config, stage, words, layout
        self._items, self._batches = items, batches
        self._collate = Collator(layout, is_pairwise=OBJECTIVES[stage.objective.kind].is_pairwise, share=share)

    def on_cpu(self) -> CpuMemory:
        """Return what the stage takes on a CPU, in f32."""
        rehearsal = rehearse(self._lm(), self._config, self._stage, self._words, self._layout, bf16=False)
        batch = self._largest(rehearsal)
        above = rehearsal.forward_backward(batch).above_weights - rehearsal.states.gradients
        if self._config.batch.accumulation > 1:
            above = rehearsal.forward_backward(batch).activations
        return CpuMemory(rehearsal.states, max(above, 0), held(rehearsal.events) if replays() else None)

    def on_gpu(self) -> GpuMemory:
        """Return what the stage takes on a GPU, in bf16."""
        lm = self._lm()
        gathered = gathered_bytes(lm)
        rehearsal = rehearse(lm, self._config, self._stage, self._words, self._layout, bf16=True)
        batch = self._largest(rehearsal)
        above = rehearsal.forward_backward(batch).above_weights - rehearsal.states.gradients
        more = rehearsal.forward_backward(batch)
        if self._config.batch.accumulation > 1:
            above = more.activations
        return GpuMemory(rehearsal.states, max(above, 0), more.sharded, gathered)

    def _largest(self, rehearsal: Rehearsal) -> Batch:
        """Step over the first pass, and return the batch that then promises to be the largest."""
        first = self._batches.passes[0]
        found = rehearsal.forward_backward(self._batch(first.items)).activations
        rehearsal.step()
        keeps = "lm" in self._stage.train and rehearsal.stores_probabilities
        kept = rehearsal.num_words * KEPT_BYTES if keeps else 0
        position = max(found - kept * first.size.trained, 0) / first.size.positions

        def weigh(size: BatchSize) -> float:
            return position * size.positions + kept * size.trained

        return self._batch(self._batches.largest(weigh).items)

    def _batch(self, chosen: Sequence[int]) -> Batch:
        return self._collate([(self._items[index], torch.zeros(2)) for index in chosen])


def rehearse(
    lm: PreTrainedModel, config: RunConfig, stage: StageSettings, words: Words, layout: Layout, *, bf16: bool
) -> Rehearsal:
    """Return a dry run of a stage of ``config`` over ``lm``, which has no weights and is hollowed out."""
    lm.eval()  # type: ignore[no-untyped-call]
    if config.model.gradient_checkpointing:
        checkpoint_activations(lm)
    with torch.device("meta"):
        control = build_control(config.control, lm, words, config.seed)
    objective = OBJECTIVES[stage.objective.kind].build(stage.objective)
    return Rehearsal(lm, control, stage.train, objective, layout, bf16=bf16)
