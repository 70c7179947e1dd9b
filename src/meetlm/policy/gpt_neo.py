"""Packed attention for GPT-Neo, whose layers do not use transformers' ``AttentionInterface``.

Its model passes nothing but the mask to its layers. So the arguments of a packed pass travel as an attribute of the
mask; a mask that is 4-D already reaches the layers unchanged.
"""

from __future__ import annotations

from types import MethodType
from typing import Any, cast

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.models.gpt_neo.modeling_gpt_neo import GPTNeoForCausalLM, GPTNeoSelfAttention

from meetlm.policy.attention import VARLEN, varlen_attention

_ATTRIBUTE = "meet_arguments"
"""Attribute of a mask that holds the arguments of :func:`varlen_attention`."""


class GPTNeoAttention:
    """The attention of a GPT-Neo model, which can be switched to packed attention and back.

    Args:
        lm: A model for which :meth:`matches` is true.
    """

    def __init__(self, lm: PreTrainedModel) -> None:
        self._lm, self._layers = lm, _layers(lm)

    @staticmethod
    def matches(lm: PreTrainedModel) -> bool:
        """Whether the attention of ``lm`` is GPT-Neo's own."""
        return isinstance(lm, GPTNeoForCausalLM) and type(_layers(lm)[0]) is GPTNeoSelfAttention

    @property
    def name(self) -> str:
        """``VARLEN`` if the attention is packed, else transformers' name of the model's own."""
        is_packed = "_attn" in vars(self._layers[0])
        return VARLEN if is_packed else str(self._lm.config._attn_implementation)

    def failure_reason(self) -> str | None:
        """Return ``None``: this attention can be replaced."""
        return None

    def switch(self, name: str) -> None:
        """Switch to packed attention (``VARLEN``), or back to the model's own (any other name)."""
        for layer in self._layers:
            layer.__dict__.pop("_attn", None)
            if name == VARLEN:
                layer._attn = MethodType(_attend, layer)
                layer.layer_idx = layer.layer_id

    def arguments(self, values: dict[str, Any]) -> dict[str, Any]:
        """Return the arguments of the model's forward pass that carry ``values`` to its layers.

        Layers that ignored the attribute would use the mask itself, which is NaN and so makes every output NaN.
        """
        mask = torch.full((1, 1, 1, 1), torch.nan, device=self._lm.device)
        setattr(mask, _ATTRIBUTE, values)
        return {"attention_mask": mask}


def _attend(
    layer: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None = None
) -> tuple[Tensor, Tensor | None]:
    """Replace ``GPTNeoSelfAttention._attn``. All of query, key and value are [1, H, T, d]; scores are not scaled."""
    arguments = getattr(attention_mask, _ATTRIBUTE, None)
    if arguments is None:
        result: tuple[Tensor, Tensor] = GPTNeoSelfAttention._attn(  # type: ignore[no-untyped-call]
            layer, query, key, value, attention_mask
        )
        return result
    window = layer.config.window_size if layer.attention_type == "local" else None
    dropout = layer.attn_dropout.p if layer.training else 0.0
    output, _ = varlen_attention(
        layer, query, key, value, None, dropout=dropout, scaling=1.0, sliding_window=window, **arguments
    )
    return output.transpose(1, 2), None


def _layers(lm: PreTrainedModel) -> list[Any]:
    return [block.attn.attention for block in cast(Any, lm).transformer.h]
