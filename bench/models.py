"""Models of other sizes, with random weights: the cost of a step does not depend on what was learned.

Plain data: the driver and the report read it without torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Model:
    """The shape of a language model.

    Attributes:
        title: Description.
        kind: ``model_type`` of transformers' configuration.
        settings: Settings of the configuration.
        rows: Rows per step: as many as two programs have memory for, in 24 GiB beside a CPU or 80 GiB of a GPU.
        quick: Smaller settings for ``--quick``.
    """

    title: str
    kind: str
    settings: dict[str, Any]
    rows: dict[str, int]
    quick: dict[str, Any]


def _llama(width: int, layers: int, heads: int, kv_heads: int, inner: int) -> dict[str, Any]:
    return {
        "vocab_size": 49152,
        "hidden_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "intermediate_size": inner,
        "max_position_embeddings": 2048,
        "tie_word_embeddings": True,
    }


FEW = {"num_hidden_layers": 2}
MODELS = {
    "135m": Model("135M, SmolLM2-135M's shape", "llama", _llama(576, 30, 9, 3, 1536), {"cpu": 8, "cuda": 64}, FEW),
    "360m": Model("360M, SmolLM2-360M's shape", "llama", _llama(960, 32, 15, 5, 2560), {"cpu": 4, "cuda": 32}, FEW),
    "llama-1.3b": Model(
        "1.3B, a Llama of GPT-Neo 1.3B's depth, width and heads",
        "llama",
        _llama(2048, 24, 16, 16, 5504),
        {"cpu": 2, "cuda": 8},
        FEW,
    ),
    "gpt-neo-1.3b": Model(
        "1.3B, GPT-Neo 1.3B's shape",
        "gpt_neo",
        {},  # the defaults of its configuration
        {"cpu": 2, "cuda": 4},
        {"num_layers": 2, "attention_types": [[["global", "local"], 1]]},
    ),
}
