"""``meet plan``: what a run will take: steps, tokens, time, memory, GPUs. Trains nothing and writes nothing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import psutil
import torch
from transformers import AutoModelForCausalLM, GPTNeoConfig, LlamaConfig, PreTrainedConfig, PreTrainedModel

from meetlm.config.reporter import SILENT, Reporter
from meetlm.controls.base import Control
from meetlm.controls.build import build_control
from meetlm.data.batch import Layout
from meetlm.data.encoding import Encoded, Encoder
from meetlm.data.formats import FORMATS, Item
from meetlm.diagnostics.memory import (
    BF16_SHARE,
    GIB,
    BatchShape,
    GpuMemory,
    TrainingStates,
    activation_bytes,
    gpu_memory,
    training_states,
)
from meetlm.diagnostics.preference import HeldOutPairs
from meetlm.objectives.base import OBJECTIVES
from meetlm.policy.loading import (
    check_positions,
    checkpoint_activations,
    device_of,
    embedding_rows,
    load_lm,
    load_skeleton,
    load_tokenizer,
    num_positions,
)
from meetlm.policy.packing import attention_failure_reason
from meetlm.policy.policy import Policy
from meetlm.recipes.config import RunConfig
from meetlm.run.measure import Cost, TimeEstimate, measure_scoring, measure_stage, scored_positions
from meetlm.run.planned_batches import StageBatches, StageCounts
from meetlm.run.prepared import pinned_format, prepare_data
from meetlm.training.stage import StageSettings

FEW_LAYERS = (2, 4)
"""Layers of the models that are measured where the whole model does not fit or is too slow."""
SLOW = 2e13
"""Floating-point operations of the largest forward and backward pass from which on fewer layers are measured: 1 to 2
minutes of a CPU with 2 cores."""
PAPER_PAIRS, PAPER_TOKENS = 64, 512
"""The paper's setting (appendix A): pairs per optimizer step, and most tokens of prompt and longer reply."""


@dataclass(frozen=True, slots=True)
class StagePlan:
    """What a stage will take.

    Attributes:
        name: Name of the stage.
        train: What is trained.
        counts: What the stage reads.
        time: Time of its steps, checkpoints not included; ``None`` where nothing was measured.
        reference: Time of scoring its pairs under the reference; ``None`` where there is none or nothing was measured.
        states: Weights, gradients and optimizer states, in bytes.
        activations: Peak memory of the largest forward and backward pass above these, in bytes.
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
class GpuPlan:
    """GPUs that a model needs for its most demanding stage, by memory alone.

    Attributes:
        model: Name of the model.
        stage: Name of that stage.
        memory: What the stage takes.
        gpus: Smallest number of GPUs by their size in GiB; ``None`` where no number suffices.
    """

    model: str
    stage: str
    memory: GpuMemory
    gpus: dict[int, int | None]


@dataclass(frozen=True, slots=True)
class Plan:
    """What a run will take.

    Attributes:
        config: Configuration of the run.
        device: Type of its device.
        layout: Layout of its batches.
        depths: Numbers of layers of the models that were measured; empty where nothing was measured, and the layout
            then is that which the architecture promises.
        layers: Number of layers of the run's model.
        stages: In order.
        measured_pairs: Held-out pairs that preference accuracy is measured on.
        evaluating: Time of all these measurements; ``None`` where nothing was measured.
        gpus: Of this run, then of other models in the paper's setting.
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
        """Time of the whole run without loading and writing; ``None`` where nothing was measured."""
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


@dataclass(frozen=True, slots=True)
class KnownModel:
    """A model that GPUs are planned for by its shape alone.

    Attributes:
        name: Name of the model.
        config: Its configuration.
        activation_bytes: Bytes of activations per token and feature under bf16 autocast (``diagnostics.memory``).
    """

    name: str
    config: PreTrainedConfig
    activation_bytes: float


def known_models() -> tuple[KnownModel, ...]:
    """Return the paper's model and two larger ones; what is not set is the default: GPT-Neo 1.3B, Llama 7B."""
    seventy = LlamaConfig(
        hidden_size=8192,
        intermediate_size=28672,
        num_hidden_layers=80,
        num_attention_heads=64,
        num_key_value_heads=8,
    )
    return (
        KnownModel("GPT-Neo 1.3B (the paper's)", GPTNeoConfig(), 5.0),
        KnownModel("Llama 7B", LlamaConfig(), 2.8),
        KnownModel("Llama 70B", seventy, 2.8),
    )


def make_plan(
    config: RunConfig,
    *,
    gpus: Sequence[int] = (80,),
    measure: bool = True,
    others: Sequence[KnownModel] | None = None,
    reporter: Reporter = SILENT,
) -> Plan:
    """Return what a run of ``config`` will take.

    Args:
        config: Resolved configuration.
        gpus: Sizes of GPUs to plan for, in GiB.
        measure: Run a few forward and backward passes; otherwise no weights are loaded, there are no times, and
            activations are estimated by formula.
        others: Other models to plan GPUs for; by default those of :func:`known_models`.
        reporter: Receives messages.

    Raises:
        MeetError: Data, model or configuration cannot be used.
    """
    tokenizer = load_tokenizer(config.model.name)
    prompt_format = pinned_format(config, tokenizer)
    data = prepare_data(config.data, prompt_format)
    for line in data.lines():
        reporter.message(line)
    skeleton = load_skeleton(config.model.name)
    control = _skeleton_control(config, skeleton, prompt_format.words)
    encoder = Encoder(prompt_format, control.slots, config.control.placement, embedding_rows(skeleton))
    items = {
        name: [FORMATS[name].item(encoder, example) for example in data.train]
        for name in dict.fromkeys(stage.format for stage in config.stages)
    }
    longest = max(len(sequence.ids) for form in items.values() for item in form for sequence in item)
    check_positions(skeleton, longest, "the longest training sequence")
    pairs = HeldOutPairs(encoder, data.test)
    positions = num_positions(skeleton)
    if positions is not None:
        pairs.drop_longer(positions)
    for stage in config.stages:
        warning = stage.few_steps_warning(len(data.train), config.batch.pairs)
        if warning:
            reporter.warning(warning)

    def batches_of(layout: Layout) -> list[StageBatches]:
        share = layout == "packed"
        return [
            StageBatches(items[stage.format], stage, config.batch, config.seed, layout, share=share)
            for stage in config.stages
        ]

    layout: Layout = "packed" if attention_failure_reason(skeleton) is None else "padded"
    batches = batches_of(layout)
    layers = skeleton.config.get_text_config().num_hidden_layers
    depths: tuple[int, ...] = ()
    if measure:
        is_small = layers <= FEW_LAYERS[-1] or _runs_here(config, skeleton, control, batches)
        depths = (layers,) if is_small else FEW_LAYERS
    costs: list[list[Cost]] = []
    starts_as_identity = True
    for depth in depths:
        reporter.message(f"measuring {config.model.name}: {depth} of {layers} layers")
        policy = _policy(config, depth if depth < layers else None, prompt_format.words, longest)
        starts_as_identity = policy.control.is_identity()
        if policy.layout != layout:
            layout, batches = policy.layout, batches_of(policy.layout)
        costs.append(
            [
                measure_stage(policy, items[stage.format], stage_batches, stage, config)
                for stage, stage_batches in zip(config.stages, batches, strict=True)
            ]
        )
        costs[-1].append(measure_scoring(policy, pairs.bare))
        del policy
    factor = (layers - depths[0]) / (depths[-1] - depths[0]) if len(depths) > 1 else 0.0
    whole = [few.extrapolate(more, factor) for few, more in zip(costs[0], costs[-1], strict=True)] if costs else []
    scoring = whole.pop() if whole else None
    stage_costs: Sequence[Cost | None] = whole or [None] * len(config.stages)

    def scoring_time(sequences: Sequence[Encoded]) -> TimeEstimate | None:
        return scoring.time(scored_positions(layout, sequences)) if scoring else None

    stages = [
        _stage_plan(
            config,
            stage,
            stage_batches,
            cost,
            scoring_time([sequence for item in items[stage.format] for sequence in item]),
            skeleton,
            control,
        )
        for stage, stage_batches, cost in zip(config.stages, batches, stage_costs, strict=True)
    ]
    evaluating = scoring_time(pairs.bare)
    if evaluating is not None:  # before training, an identity control has the base model's scores
        for rows in pairs.by_level.values():
            time = scoring_time(rows)
            assert time is not None
            evaluating = sum([time] * (len(stages) + (not starts_as_identity)), start=evaluating)
    return Plan(
        config=config,
        device=device_of(config.model).type,
        layout=layout,
        depths=depths,
        layers=layers,
        stages=tuple(stages),
        measured_pairs=len(pairs.bare) // 2,
        evaluating=evaluating,
        gpus=(
            _gpu_plan(config.model.name, [(stage.name, stage.gpu) for stage in stages], gpus),
            *(
                _known_model_plan(model, config, items, prompt_format.words, gpus)
                for model in (known_models() if others is None else others)
            ),
        ),
    )


def _skeleton_control(config: RunConfig, skeleton: PreTrainedModel, words: Callable[[str], list[int]]) -> Control:
    with torch.device("meta"):
        return build_control(config.control, skeleton, words, config.seed)


def _policy(config: RunConfig, depth: int | None, words: Callable[[str], list[int]], longest: int) -> Policy:
    """Return the run's policy; with a ``depth``, that of a model with so many layers and random weights."""
    if depth is None:
        lm = load_lm(config.model)[0]
    else:
        shape = load_skeleton(config.model.name).config
        text, layers = shape.get_text_config(), shape.get_text_config().num_hidden_layers
        for name, value in vars(text).items():  # such as the kind of each layer
            if isinstance(value, list) and len(value) == layers:
                setattr(text, name, value[:depth])
        text.num_hidden_layers = depth
        lm = AutoModelForCausalLM.from_config(shape, dtype=torch.float32).eval()  # type: ignore[no-untyped-call]
        if config.model.gradient_checkpointing:
            checkpoint_activations(lm)
        lm.to(device_of(config.model))
    return Policy(lm, build_control(config.control, lm, words, config.seed), longest)


def _states(skeleton: PreTrainedModel, control: Control, stage: StageSettings) -> TrainingStates:
    parts = {"lm": skeleton, "control": control}
    return training_states(parts.values(), [parts[name] for name in stage.train])


def _batch_shape(config: RunConfig, stage: StageSettings, batches: StageBatches) -> BatchShape:
    size = batches.by_positions(1).size
    return BatchShape(size.positions, size.trained, "lm" in stage.train, config.model.gradient_checkpointing)


def _runs_here(config: RunConfig, skeleton: PreTrainedModel, control: Control, batches: Sequence[StageBatches]) -> bool:
    """Whether the whole model fits into the memory that is free, and a forward and backward pass is not too slow."""
    on_gpu = device_of(config.model).type == "cuda"
    free = torch.cuda.mem_get_info()[0] if on_gpu else psutil.virtual_memory().available
    parameters = sum(parameter.numel() for parameter in skeleton.parameters())
    for stage, stage_batches in zip(config.stages, batches, strict=True):
        shape = _batch_shape(config, stage, stage_batches)
        needed = _states(skeleton, control, stage).total + activation_bytes(skeleton, shape, "f32")
        if needed > free or (6 * parameters * shape.positions > SLOW and not on_gpu):
            return False
    return True


def _stage_plan(
    config: RunConfig,
    stage: StageSettings,
    batches: StageBatches,
    cost: Cost | None,
    reference: TimeEstimate | None,
    skeleton: PreTrainedModel,
    control: Control,
) -> StagePlan:
    """Return the plan of a stage: activations as measured, or by formula where nothing was measured."""
    states, shape = _states(skeleton, control, stage), _batch_shape(config, stage, batches)
    on_gpu = device_of(config.model).type == "cuda"
    gpu = gpu_memory(skeleton, states, shape)
    if cost:
        gpu = replace(gpu, activations=int(cost.activations * (1 if on_gpu else BF16_SHARE)))
    activations = int(cost.activations) if cost else activation_bytes(skeleton, shape, "bf16" if on_gpu else "f32")
    counts = batches.counts
    compares = OBJECTIVES[stage.objective.kind].is_pairwise
    return StagePlan(
        name=stage.name,
        train=stage.train,
        counts=counts,
        time=cost.time(counts.positions, counts.steps) if cost else None,
        reference=reference if compares else None,
        states=states,
        activations=activations,
        gpu=gpu,
    )


def _known_model_plan(
    model: KnownModel,
    config: RunConfig,
    items: dict[str, list[Item]],
    words: Callable[[str], list[int]],
    sizes: Sequence[int],
) -> GpuPlan:
    """Return the GPUs that the stages of ``config`` need over another model, every pair as long as the paper allows."""
    with torch.device("meta"):
        lm: PreTrainedModel = AutoModelForCausalLM.from_config(model.config)  # type: ignore[no-untyped-call]
    control = _skeleton_control(config, lm, words)
    pairs = config.batch.model_copy(update={"pairs": PAPER_PAIRS}).micro
    stages = []
    for stage in config.stages:
        replies = sum(len(sequence.spans) for sequence in items[stage.format][0])
        positions = pairs * replies * PAPER_TOKENS
        shape = BatchShape(positions, positions // 2, "lm" in stage.train, config.model.gradient_checkpointing)
        memory = gpu_memory(lm, _states(lm, control, stage), shape, model.activation_bytes)
        stages.append((stage.name, memory))
    return _gpu_plan(model.name, stages, sizes)


def _gpu_plan(model: str, stages: Sequence[tuple[str, GpuMemory]], sizes: Sequence[int]) -> GpuPlan:
    """Return the plan for the most demanding stage."""
    name, memory = max(stages, key=lambda stage: stage[1].peak)
    return GpuPlan(model, name, memory, {size: memory.gpus_needed(size * GIB) for size in sizes})
