"""GPT-Neo's attention by ours: its layers do not go through transformers' ``AttentionInterface``, as others do.

Its model hands its layers nothing but the mask, so what a packed pass tells them comes on it: a mask that is 4-D
already is handed on as it is.
"""

from __future__ import annotations

from types import MethodType
from typing import Any, cast

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.models.gpt_neo.modeling_gpt_neo import GPTNeoForCausalLM, GPTNeoSelfAttention

from meetlm.policy.attention import varlen_attention

TOLD = "meet_told"
"""The attribute of a mask."""


def is_gpt_neo(lm: PreTrainedModel) -> bool:
    """Whether the attention of ``lm`` is GPT-Neo's own."""
    return isinstance(lm, GPTNeoForCausalLM) and type(_layers(lm)[0]) is GPTNeoSelfAttention


def is_replaced(lm: PreTrainedModel) -> bool:
    """Whether :func:`replace_attention` was called last."""
    return "_attn" in vars(_layers(lm)[0])


def replace_attention(lm: PreTrainedModel) -> None:
    """Let the layers of ``lm`` attend by :func:`~meetlm.policy.attention.varlen_attention` where a mask tells them."""
    for layer in _layers(lm):
        layer._attn = MethodType(_attend, layer)
        layer.layer_idx = layer.layer_id


def restore_attention(lm: PreTrainedModel) -> None:
    """Let the layers of ``lm`` attend as they did."""
    for layer in _layers(lm):
        layer.__dict__.pop("_attn", None)


def telling(lm: PreTrainedModel, told: dict[str, Any]) -> Tensor:
    """Return a mask with what the layers are told; a layer that does not hear it makes NaN of everything."""
    mask = torch.full((1, 1, 1, 1), torch.nan, device=lm.device)
    setattr(mask, TOLD, told)
    return mask


def _attend(
    layer: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None = None
) -> tuple[Tensor, Tensor | None]:
    """In the place of ``GPTNeoSelfAttention._attn``: [1, H, T, d] each; scores are not scaled."""
    told = getattr(attention_mask, TOLD, None)
    if told is None:
        own: tuple[Tensor, Tensor] = GPTNeoSelfAttention._attn(  # type: ignore[no-untyped-call]
            layer, query, key, value, attention_mask
        )
        return own
    window = layer.config.window_size if layer.attention_type == "local" else None
    dropout = layer.attn_dropout.p if layer.training else 0.0
    output, _ = varlen_attention(
        layer, query, key, value, None, dropout=dropout, scaling=1.0, sliding_window=window, **told
    )
    return output.transpose(1, 2), None


def _layers(lm: PreTrainedModel) -> list[Any]:
    return [block.attn.attention for block in cast(Any, lm).transformer.h]
