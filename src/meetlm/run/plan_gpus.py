"""Number of GPUs that a run needs, and would need with other models; only memory is considered."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from transformers import AutoModelForCausalLM, GPTNeoConfig, LlamaConfig, PreTrainedConfig, PreTrainedModel

from meetlm.diagnostics.memory import GIB, BatchShape, GpuMemory, gpu_memory
from meetlm.run.plan_inputs import PlanInputs, skeleton_control, states_of

PAPER_PAIRS, PAPER_TOKENS = 64, 512
"""The paper's setting (appendix A): pairs per optimizer step, maximum number of tokens of prompt and longer reply."""


@dataclass(frozen=True, slots=True)
class GpuPlan:
    """GPUs that a model needs for its most demanding stage.

    Attributes:
        model: Name of the model.
        stage: Name of that stage.
        memory: Memory of that stage.
        gpus: Smallest number of GPUs by GPU memory in GiB; ``None`` if no number suffices.
    """

    model: str
    stage: str
    memory: GpuMemory
    gpus: dict[int, int | None]


@dataclass(frozen=True, slots=True)
class KnownModel:
    """A model whose shape is known without loading it.

    Attributes:
        name: Name of the model.
        config: Its configuration.
        activation_bytes: Bytes of activations per token and feature under bf16 autocast (``diagnostics.memory``).
    """

    name: str
    config: PreTrainedConfig
    activation_bytes: float


def known_models() -> tuple[KnownModel, ...]:
    """Return the paper's model and two larger models.

    ``GPTNeoConfig()`` is GPT-Neo 1.3B and ``LlamaConfig()`` is Llama 7B.
    """
    llama_70b = LlamaConfig(
        hidden_size=8192,
        intermediate_size=28672,
        num_hidden_layers=80,
        num_attention_heads=64,
        num_key_value_heads=8,
    )
    return (
        KnownModel("GPT-Neo 1.3B (the paper's)", GPTNeoConfig(), 5.0),
        KnownModel("Llama 7B", LlamaConfig(), 2.8),
        KnownModel("Llama 70B", llama_70b, 2.8),
    )


def plan_known_model(model: KnownModel, inputs: PlanInputs, gpu_sizes: Sequence[int]) -> GpuPlan:
    """Return the GPUs that the run's stages need with another model, if every pair has the paper's maximum length.

    Args:
        model: The other model.
        inputs: Inputs of the run's plan.
        gpu_sizes: Memory per GPU, in GiB, of the GPUs to plan for.
    """
    config = inputs.config
    with torch.device("meta"):
        lm: PreTrainedModel = AutoModelForCausalLM.from_config(model.config)  # type: ignore[no-untyped-call]
    control = skeleton_control(config, inputs.control.levels, lm, inputs.tokenize)
    micro_batch = config.batch.model_copy(update={"pairs": PAPER_PAIRS}).micro
    stages = []
    for stage in config.stages:
        replies = sum(len(sequence.spans) for sequence in inputs.encoded.items[stage.format][0])
        positions = micro_batch * replies * PAPER_TOKENS
        shape = BatchShape(positions, positions // 2, "lm" in stage.train, config.model.gradient_checkpointing)
        memory = gpu_memory(lm, states_of(lm, control, stage), shape, model.activation_bytes)
        stages.append((stage.name, memory))
    return plan_gpus(model.name, stages, gpu_sizes)


def plan_gpus(model: str, stages: Sequence[tuple[str, GpuMemory]], gpu_sizes: Sequence[int]) -> GpuPlan:
    """Return the GPUs for the most demanding stage, given the name and memory of each stage."""
    name, memory = max(stages, key=lambda stage: stage[1].peak)
    return GpuPlan(model, name, memory, {size: memory.gpus_needed(size * GIB) for size in gpu_sizes})
