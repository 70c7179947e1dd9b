"""Memory of training: parameters, gradients and optimizer states exactly, activations on GPUs by formula.

On GPUs training runs under bf16 autocast over f32 weights. The constants below were fitted to a dry run of Llama 7B,
Llama 70B and GPT-Neo 1.3B, operator by operator, at commit 1e2bd1a; docs/plan.md has the errors.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from torch import nn
from transformers import PreTrainedModel

GIB = 2**30
F32, BF16 = 4, 2
ADAMW_MOMENTS = 2
"""AdamW stores two running means per trained parameter."""

RESERVED_BYTES = int(1.5 * GIB)
"""GPU memory that is not available for tensors: CUDA's context and kernels, workspaces of cuBLAS and NCCL,
fragmentation. A rough allowance, not a measurement."""
GATHERED_BLOCKS = 3
"""Sharding gathers the weights of two blocks and the gradients of one block at a time, in bf16: three blocks."""
ACTIVATION_BYTES = {"f32": 4.6, "bf16": 2.8}
"""Activations stored for backward, in bytes per token and per input and output feature of each linear layer, of models
with gated MLPs. Models that compute GELU step by step in Python, such as GPT-Neo, store 1.8 times as much."""
BF16_ACTIVATION_RATIO = 0.75
"""Activations under bf16 autocast, relative to f32: 0.60 for Llama, 0.75 for GPT-Neo."""
LOGITS_BYTES = {"f32": 3 * F32 * 2**22, "bf16": 3 * F32 * 2**25}
"""Logits, their exponentials and gradients for the part of the vocabulary that the head computes at a time."""


@dataclass(frozen=True, slots=True)
class TrainingStates:
    """Memory in use from step to step, in bytes.

    Attributes:
        weights: Parameters and buffers, f32.
        gradients: Gradients of the trained parameters.
        optimizer: AdamW's two moments of the trained parameters.
    """

    weights: int
    gradients: int
    optimizer: int

    @property
    def total(self) -> int:
        """Weights, gradients and optimizer states together."""
        return self.weights + self.gradients + self.optimizer


def training_states(modules: Iterable[nn.Module], trained: Iterable[nn.Module]) -> TrainingStates:
    """Return the memory of weights, gradients and optimizer states.

    Args:
        modules: Language model and control; their parameters may be on the device ``meta``.
        trained: The modules that the stage trains.
    """
    all_modules = nn.ModuleList(modules)
    buffers = sum(buffer.numel() * buffer.element_size() for buffer in all_modules.buffers())
    weights = F32 * sum(parameter.numel() for parameter in all_modules.parameters())
    gradients = F32 * sum(parameter.numel() for parameter in nn.ModuleList(trained).parameters())
    return TrainingStates(weights + buffers, gradients, ADAMW_MOMENTS * gradients)


@dataclass(frozen=True, slots=True)
class BatchShape:
    """Size of the largest forward pass of a stage.

    Attributes:
        positions: Positions that the model computes.
        trained_tokens: Tokens that contribute to the loss.
        trains_lm: Whether the language model is trained.
        checkpointing: Whether activations are recomputed in backward.
    """

    positions: int
    trained_tokens: int
    trains_lm: bool
    checkpointing: bool


def activation_bytes(lm: PreTrainedModel, batch: BatchShape, dtype: str, per_feature: float | None = None) -> int:
    """Return an estimate of the activations of a forward and backward pass, in bytes.

    Args:
        lm: The language model; only shapes matter, so it may be on the device ``meta``.
        batch: The forward pass.
        dtype: ``f32`` or ``bf16``.
        per_feature: Bytes per token and feature, instead of ``ACTIVATION_BYTES``.
    """
    per_feature = per_feature or ACTIVATION_BYTES[dtype]
    layers = layers_of(lm)
    features = [sum(sum(w.shape) for w in layer.parameters() if w.dim() == 2) for layer in layers]
    width: int = lm.config.get_text_config().hidden_size
    if batch.checkpointing:  # the inputs of all layers, and all activations of the layer that is being recomputed
        per_token = F32 * width * len(layers) + per_feature * max(features)
    else:
        per_token = per_feature * sum(features)
    vocabulary: int = lm.config.get_text_config().vocab_size
    head = min(LOGITS_BYTES[dtype], 3 * F32 * batch.trained_tokens * vocabulary)
    if batch.trains_lm and not batch.checkpointing:  # the head stores its probabilities for backward
        head += batch.trained_tokens * vocabulary * (BF16 if dtype == "bf16" else F32)
    return round(batch.positions * per_token + head)


def layers_of(lm: PreTrainedModel) -> list[nn.Module]:
    """Return the transformer layers of ``lm``."""
    depth = lm.config.get_text_config().num_hidden_layers
    lists = [module for module in lm.modules() if isinstance(module, nn.ModuleList) and len(module) == depth]
    return list(lists[0]) if lists else [lm]


@dataclass(frozen=True, slots=True)
class GpuMemory:
    """Memory of a stage on GPUs, in bytes.

    Attributes:
        states: Weights, gradients and optimizer states.
        activations: Activations of the largest forward pass.
        copies: bf16 copies of the weights that autocast keeps on a single GPU until backward.
        gathered: bf16 weights and gradients that each GPU holds at a time if the states are sharded.
    """

    states: TrainingStates
    activations: int
    copies: int
    gathered: int

    @property
    def peak(self) -> int:
        """Peak memory on a single GPU."""
        return self.states.total + self.activations + self.copies

    def gpus_needed(self, gpu_bytes: int) -> int | None:
        """Return the smallest sufficient number of GPUs with ``gpu_bytes`` of memory; ``None`` if no number suffices.

        A single GPU needs the peak memory. Several GPUs shard the states equally, as FSDP and ZeRO-3 do; each gathers
        the blocks that it computes and holds the activations of its forward passes.
        """
        available = gpu_bytes - RESERVED_BYTES
        if self.peak <= available:
            return 1
        available -= self.activations + self.gathered
        return max(2, math.ceil(self.states.total / available)) if available > 0 else None


def gpu_memory(
    lm: PreTrainedModel, states: TrainingStates, batch: BatchShape, per_feature: float | None = None
) -> GpuMemory:
    """Return the memory of a stage on GPUs, with the arguments of :func:`activation_bytes`."""
    layers = layers_of(lm)
    in_layers = {id(parameter) for layer in layers for parameter in layer.parameters()}
    blocks = [sum(parameter.numel() for parameter in layer.parameters()) for layer in layers]
    blocks += [parameter.numel() for parameter in lm.parameters() if id(parameter) not in in_layers]
    return GpuMemory(
        states,
        activation_bytes(lm, batch, "bf16", per_feature),
        copies=0 if batch.checkpointing else BF16 * sum(parameter.numel() for parameter in lm.parameters()),
        gathered=GATHERED_BLOCKS * BF16 * max(blocks),
    )
