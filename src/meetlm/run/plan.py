"""``meet plan``: an estimate of a run's steps, tokens, time, memory and GPUs, without training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import psutil
import torch

from meetlm.config.reporter import SILENT, Reporter
from meetlm.data.batch import Layout
from meetlm.diagnostics.memory import BF16_ACTIVATION_RATIO, GpuMemory, TrainingStates, activation_bytes, gpu_memory
from meetlm.objectives.base import OBJECTIVES
from meetlm.policy.loading import device_of
from meetlm.recipes.config import RunConfig
from meetlm.run.measure import RunCost, TimeEstimate, measure_run
from meetlm.run.plan_gpus import GpuPlan, KnownModel, known_models, plan_gpus, plan_known_model
from meetlm.run.plan_inputs import PlanInputs, read_inputs, states_of
from meetlm.run.planned_batches import StageBatches, StageCounts

FEW_LAYERS = (2, 4)
"""Layers of the models that are measured if the whole model does not fit or is too slow."""
SLOW = 2e13
"""Maximum floating-point operations of a forward and backward pass for which the whole model is measured: 1 to 2
minutes on a CPU with 2 cores."""


@dataclass(frozen=True, slots=True)
class StagePlan:
    """The estimate for a stage.

    Attributes:
        name: Name of the stage.
        train: Trained parts: control, lm or both.
        counts: The amount of work.
        time: Time of its steps, without checkpoints; ``None`` if nothing was measured.
        reference: Time of scoring its pairs under the reference; ``None`` if there is none or nothing was measured.
        states: Weights, gradients and optimizer states, in bytes.
        activations: Peak memory of the largest forward and backward pass, in addition to the states, in bytes.
        gpu: Memory of the stage on GPUs.
    """

    name: str
    train: tuple[str, ...]
    counts: StageCounts
    time: TimeEstimate | None
    reference: TimeEstimate | None
    states: TrainingStates
    activations: int
    gpu: GpuMemory


@dataclass(frozen=True, slots=True)
class Plan:
    """The estimate for a run.

    Attributes:
        config: Configuration of the run.
        device: Type of its device.
        layout: Layout of its batches.
        depths: Numbers of layers of the models that were measured; empty if nothing was measured, and the layout is
            then the expected layout of the architecture.
        layers: Number of layers of the run's model.
        stages: The stages, in order.
        measured_pairs: Number of held-out pairs for preference accuracy.
        evaluating: Time of all preference accuracies; ``None`` if nothing was measured.
        gpus: GPUs for this run, and for other models in the paper's setting.
    """

    config: RunConfig
    device: str
    layout: Layout
    depths: tuple[int, ...]
    layers: int
    stages: tuple[StagePlan, ...]
    measured_pairs: int
    evaluating: TimeEstimate | None
    gpus: tuple[GpuPlan, ...]

    @property
    def time(self) -> TimeEstimate | None:
        """Time of the whole run without loading and writing; ``None`` if nothing was measured."""
        if self.evaluating is None:
            return None
        parts = [time for stage in self.stages for time in (stage.time, stage.reference) if time is not None]
        return sum(parts, start=self.evaluating)

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as plain JSON types; times in seconds, memory in bytes."""
        return {
            **asdict(self),
            "config": self.config.model_dump(mode="json"),
            "time": self.time and asdict(self.time),
        }


def make_plan(
    config: RunConfig,
    *,
    gpus: Sequence[int] = (80,),
    measure: bool = True,
    other_models: Sequence[KnownModel] | None = None,
    reporter: Reporter = SILENT,
) -> Plan:
    """Return the estimate for a run of ``config``.

    Args:
        config: Resolved configuration.
        gpus: Sizes of GPUs to plan for, in GiB.
        measure: Run a few forward and backward passes; otherwise no weights are loaded, there are no times, and
            activations are estimated by formula.
        other_models: Other models to plan GPUs for; by default those of :func:`known_models`.
        reporter: Receives messages.

    Raises:
        MeetError: Data, model or configuration cannot be used.
    """
    inputs = read_inputs(config, reporter)
    layout, depths = inputs.expected_layout, _depths(inputs) if measure else ()
    costs = measure_run(inputs, depths, reporter) if depths else None
    if costs:
        layout = costs.layout
    stages = [_stage_plan(inputs, number, batches, costs) for number, batches in enumerate(inputs.batches(layout))]
    other_models = known_models() if other_models is None else other_models
    return Plan(
        config=config,
        device=device_of(config.model).type,
        layout=layout,
        depths=depths,
        layers=inputs.num_layers,
        stages=tuple(stages),
        measured_pairs=len(inputs.encoded.pairs.uncontrolled) // 2,
        evaluating=_evaluation_time(inputs, costs) if costs else None,
        gpus=(
            plan_gpus(config.model.name, [(stage.name, stage.gpu) for stage in stages], gpus),
            *(plan_known_model(model, inputs, gpus) for model in other_models),
        ),
    )


def _depths(inputs: PlanInputs) -> tuple[int, ...]:
    """Return the numbers of layers to measure: all layers if the model fits into memory and is not too slow."""
    layers = inputs.num_layers
    on_gpu = device_of(inputs.config.model).type == "cuda"
    free = torch.cuda.mem_get_info()[0] if on_gpu else psutil.virtual_memory().available
    parameters = sum(parameter.numel() for parameter in inputs.skeleton.parameters())
    for stage, batches in zip(inputs.config.stages, inputs.batches(inputs.expected_layout), strict=True):
        shape = inputs.largest_pass(stage, batches)
        states = states_of(inputs.skeleton, inputs.control, stage)
        does_not_fit = states.total + activation_bytes(inputs.skeleton, shape, "f32") > free
        is_slow = 6 * parameters * shape.positions > SLOW and not on_gpu
        if layers > FEW_LAYERS[-1] and (does_not_fit or is_slow):
            return FEW_LAYERS
    return (layers,)


def _stage_plan(inputs: PlanInputs, number: int, batches: StageBatches, costs: RunCost | None) -> StagePlan:
    """Return the plan of a stage: activations are measured, or estimated by formula if nothing was measured."""
    stage = inputs.config.stages[number]
    states = states_of(inputs.skeleton, inputs.control, stage)
    shape, counts = inputs.largest_pass(stage, batches), batches.counts
    on_gpu = device_of(inputs.config.model).type == "cuda"
    activations = activation_bytes(inputs.skeleton, shape, "bf16" if on_gpu else "f32")
    gpu = gpu_memory(inputs.skeleton, states, shape)
    time = reference = None
    if costs:
        cost = costs.stages[number]
        time = cost.time(counts.positions, counts.steps)
        activations = int(cost.activations)
        gpu = replace(gpu, activations=int(activations * (1 if on_gpu else BF16_ACTIVATION_RATIO)))
        if OBJECTIVES[stage.objective.kind].is_pairwise:
            sequences = [sequence for item in inputs.encoded.items[stage.format] for sequence in item]
            reference = costs.scoring_time(sequences)
    return StagePlan(stage.name, stage.train, counts, time, reference, states, activations, gpu)


def _evaluation_time(inputs: PlanInputs, costs: RunCost) -> TimeEstimate:
    """Return the time of preference accuracy: the base model's scores, before training and after each stage."""
    times = len(inputs.config.stages) + (
        not costs.starts_as_identity
    )  # else the scores before training equal the base model's
    pairs = inputs.encoded.pairs
    rounds = [costs.scoring_time(rows) for rows in pairs.by_level.values()] * times
    return sum(rounds, start=costs.scoring_time(pairs.uncontrolled))
