"""How many GPUs of a size a stage needs, by memory alone.

One GPU holds everything. Several hold a share of the states each (weights, gradients, AdamW's moments, all f32), as
FSDP and ZeRO-3 do it, gather a block's weights in bf16 when they need it and the next one's beside it, and have the
activations of a pass of their own. Speed and the links between GPUs are not looked at.
"""

from __future__ import annotations

import math

from torch import nn
from transformers import PreTrainedModel

from meetlm.diagnostics.memory import States

GIB = 2**30
RESERVED = int(1.5 * GIB)
"""Of a GPU's memory, what no tensor gets: CUDA's context and kernels, the workspaces of cuBLAS and NCCL, and the ends
of the caching allocator's segments. An allowance; it was not measured here."""
_BF16 = 2


def gpus_needed(states: States, alone: int, sharded: int, gathered: int, size: int) -> int | None:
    """Return the least number of GPUs of ``size`` bytes; ``None`` where no number is enough.

    Args:
        states: What stays from step to step.
        alone: Bytes above the states at the peak on a single GPU.
        sharded: The same on each of several.
        gathered: Bytes of the blocks that are gathered at a time.
        size: Of one GPU, in bytes.
    """
    room = size - RESERVED
    if states.total + alone <= room:
        return 1
    left = room - sharded - gathered
    return max(2, math.ceil(states.total / left)) if left > 0 else None


def gathered_bytes(lm: PreTrainedModel) -> int:
    """Return the bytes of what sharding gathers at a time: two blocks' weights and one's gradients, in bf16.

    A block is one layer of the model, or a parameter outside the layers, such as the embeddings.
    """
    layers = [part for parts in lm.modules() if isinstance(parts, nn.ModuleList) for part in parts]
    inside = {id(p) for layer in layers for p in layer.parameters()}
    sizes = [sum(p.numel() for p in layer.parameters()) for layer in layers]
    sizes += [p.numel() for p in lm.parameters() if id(p) not in inside]
    return 3 * _BF16 * max(sizes)
