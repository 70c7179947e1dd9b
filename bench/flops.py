"""How many floating point operations a training step needs, and how fast a plain matrix product is here.

Counted is what the method needs, not what a program happens to do: no padding, no recomputation under gradient
checkpointing, no head at positions that carry no loss, attention to the past alone; a prompt that two replies share in
a batch of ours counts once. A multiply-add is 2.

Per token, with N weights in the linear layers of all blocks (embeddings, norms and head apart):

    forward                    2 N
    gradient of activations    2 N       less the first block's q, k, v where nothing below them is trained (LoRA)
    gradient of weights        2 N       where the language model is trained
    LoRA                       3 · 2 r · Σ (in + out) over the layers: forward, activations, weights; one level's r

Per sequence of T tokens (slot included), a block's attention with H heads of size d:

    forward                    2 products of T·T/2·H·d multiply-adds = 2 T² H d
    backward                   4 of them                             = 4 T² H d
    behind S shared tokens     T² + 2 T S in the place of T²

Per trained token, V words by D: head forward 2 V D, activations 2 V D, weights 2 V D where the model is trained.
The embedding's look-up and its gradient, norms, softmax and optimizer are not counted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from time import perf_counter

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel

from meetlm.controls.products import onednn_is_faster, product
from meetlm.data.batch import Block

SHAPES = {"2048×576 @ 576×1536": (2048, 576, 1536), "4096×4096 @ 4096×4096": (4096, 4096, 4096)}
WAYS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {" by torch": functional.linear}
"""How a product is taken, by what its name gains: torch's own way and, where it is another, ours."""
if onednn_is_faster():
    WAYS[" by oneDNN"] = product


class Flops:
    """Counts a step of one stage.

    Args:
        lm: For its shapes.
        trains_lm: Whether the language model is trained.
        rank: Of LoRA, 0 without it.
        slot: Whether the embeddings carry a gradient (a soft prompt).
    """

    def __init__(self, lm: PreTrainedModel, *, trains_lm: bool, rank: int = 0, slot: bool = False) -> None:
        config = lm.config.get_text_config()
        head = lm.get_output_embeddings()
        linear = {n: m for n, m in lm.named_modules() if isinstance(m, nn.Linear) and m is not head}
        body = sum(m.weight.numel() for m in linear.values())
        first = [m for n, m in linear.items() if ".layers.0." in n and n.endswith(("q_proj", "k_proj", "v_proj"))]
        below = 0 if trains_lm or slot else sum(m.weight.numel() for m in first)
        self._per_token = 2 * body + 2 * (body - below) + (2 * body if trains_lm else 0)
        self._lora_per_token = 3 * 2 * rank * sum(m.in_features + m.out_features for m in linear.values())
        width = config.num_attention_heads * (getattr(config, "head_dim", None) or config.hidden_size)
        self._per_square = config.num_hidden_layers * (2 + 4) * width
        self._per_trained = 2 * head.weight.numel() * (3 if trains_lm else 2)

    def of(self, blocks: Sequence[Block]) -> Counter[str]:
        """Return the operations of a step over the blocks of its batch: ``products``, ``lora`` and ``attention``.

        ``products`` are those with the model's own weights, the head's among them.
        """
        total: Counter[str] = Counter()
        for block in blocks:
            if "cu_seq_lens" in block:
                lengths = block["cu_seq_lens"].diff().tolist()
            else:
                lengths = block["attention_mask"].sum(dim=1).tolist()
            total["products"] += self._per_token * sum(lengths) + self._per_trained * len(block["completion"])
            total["lora"] += self._lora_per_token * sum(lengths)
            for length, before in zip(lengths, block.get("shared") or [0] * len(lengths), strict=True):
                total["attention"] += self._per_square * (length**2 + 2 * length * before)
        return total


def product_rates() -> dict[str, float]:
    """Return the FLOP/s of a plain f32 product of each of ``SHAPES`` by each of ``WAYS``, the best of several."""
    rates = {}
    for name, (rows, inner, columns) in SHAPES.items():
        x, weight = torch.randn(rows, inner), torch.randn(columns, inner)
        operations = 2 * rows * inner * columns
        for way, multiply in WAYS.items():
            best = 0.0
            for _ in range(max(4, int(3e11 / operations))):
                started = perf_counter()
                multiply(x, weight)
                best = max(best, operations / (perf_counter() - started))
            rates[f"{name}{way}"] = best
    return rates
