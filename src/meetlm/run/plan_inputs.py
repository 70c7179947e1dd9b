"""The inputs of a plan: the run's data as sequences, and its model and control as shapes without weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from meetlm.config.reporter import Reporter
from meetlm.controls.base import Control
from meetlm.controls.build import build_control
from meetlm.data.batch import Layout
from meetlm.data.levels import LevelSpace
from meetlm.diagnostics.memory import BatchShape, TrainingStates, training_states
from meetlm.policy.loading import load_skeleton, load_tokenizer
from meetlm.policy.packing import attention_failure_reason
from meetlm.recipes.config import RunConfig
from meetlm.run.inputs import RunInputs, encode_inputs
from meetlm.run.planned_batches import StageBatches
from meetlm.run.prepared import pinned_format, prepare_data
from meetlm.training.stage import StageSettings


@dataclass(frozen=True, slots=True)
class PlanInputs:
    """The inputs of a plan.

    Attributes:
        config: Configuration of the run.
        tokenize: Tokenizes plain text for the control.
        skeleton: The model without weights.
        control: The control without weights.
        encoded: The encoded data.
    """

    config: RunConfig
    tokenize: Callable[[str], list[int]]
    skeleton: PreTrainedModel
    control: Control
    encoded: RunInputs

    @property
    def num_layers(self) -> int:
        """Number of layers of the model."""
        return int(self.skeleton.config.get_text_config().num_hidden_layers)

    @property
    def expected_layout(self) -> Layout:
        """Expected layout of the batches for the architecture; the final layout is checked with the model's weights."""
        return "packed" if attention_failure_reason(self.skeleton) is None else "padded"

    def batches(self, layout: Layout) -> list[StageBatches]:
        """Return the forward passes of each stage."""
        config, items = self.config, self.encoded.items
        return [StageBatches(items[stage.format], stage, config.batch, config.seed, layout) for stage in config.stages]

    def largest_pass(self, stage: StageSettings, batches: StageBatches) -> BatchShape:
        """Return the size of the largest forward pass of a stage."""
        size = batches.by_positions(1).size
        return BatchShape(size.positions, size.trained, "lm" in stage.train, self.config.model.gradient_checkpointing)


def read_inputs(config: RunConfig, reporter: Reporter) -> PlanInputs:
    """Return the inputs of a plan, without loading weights.

    Raises:
        MeetError: Data, model or configuration cannot be used.
    """
    prompt_format = pinned_format(config, load_tokenizer(config.model.name))
    data = prepare_data(config.data, prompt_format)
    for line in data.lines():
        reporter.message(line)
    skeleton = load_skeleton(config.model.name)
    control = skeleton_control(config, config.control_levels(data.levels), skeleton, prompt_format.tokenize)
    inputs = encode_inputs(config, data, prompt_format, skeleton, control, reporter)
    return PlanInputs(config, prompt_format.tokenize, skeleton, control, inputs)


def skeleton_control(
    config: RunConfig, levels: LevelSpace, lm: PreTrainedModel, tokenize: Callable[[str], list[int]]
) -> Control:
    """Return the control of ``config``, without weights, for a model without weights."""
    with torch.device("meta"):
        return build_control(config.control, levels, lm, tokenize, config.seed)


def states_of(lm: PreTrainedModel, control: Control, stage: StageSettings) -> TrainingStates:
    """Return weights, gradients and optimizer states of a stage, in bytes."""
    parts = {"lm": lm, "control": control}
    return training_states(parts.values(), [parts[name] for name in stage.train])
