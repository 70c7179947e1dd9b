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
    in a window                the pairs in it in the place of those of T²

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

SHAPES = {
    "cpu": {"2048×576 @ 576×1536": (2048, 576, 1536), "4096×4096 @ 4096×4096": (4096, 4096, 4096)},
    "cuda": {"16384×576 @ 576×1536": (16384, 576, 1536), "8192×8192 @ 8192×8192": (8192, 8192, 8192)},
}
"""Plain products: of the width of SmolLM2-135M's layers, and as large as the device likes."""
WAYS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {" by torch": functional.linear}
"""How a product is taken, by what its name gains: torch's own way and, where it is another, ours."""
if onednn_is_faster():
    WAYS[" by oneDNN"] = product


PASSES = 20
"""Products that are timed together on a GPU."""


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
        first = [m for n, m in linear.items() if ".0." in n and n.endswith(("q_proj", "k_proj", "v_proj"))]
        below = 0 if trains_lm or slot else sum(m.weight.numel() for m in first)
        self._per_token = 2 * body + 2 * (body - below) + (2 * body if trains_lm else 0)
        self._lora_per_token = 3 * 2 * rank * sum(m.in_features + m.out_features for m in linear.values())
        heads = config.num_attention_heads
        width = heads * (getattr(config, "head_dim", None) or config.hidden_size // heads)
        self._per_square = (2 + 4) * width
        self._windows = _windows(lm)
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
                squares = sum(_square(length, before, window) * n for window, n in self._windows.items())
                total["attention"] += self._per_square * squares
        return total


def product_rates(device: str = "cpu") -> dict[str, float]:
    """Return the FLOP/s of a plain product of each of ``SHAPES`` by each of ``WAYS``, the best of several.

    In f32 on a CPU, in bf16 on CUDA.
    """
    cuda = device == "cuda"
    rates = {}
    for name, (rows, inner, columns) in SHAPES[device].items():
        x, weight = (
            torch.randn(size, inner, device=device, dtype=torch.bfloat16 if cuda else torch.float32)
            for size in (rows, columns)
        )
        operations = 2 * rows * inner * columns
        for way, multiply in WAYS.items():
            best = 0.0
            for _ in range(max(4, int(3e11 / operations))):
                started = perf_counter()
                for _ in range(PASSES if cuda else 1):  # one alone is sooner done than a GPU is told of it
                    multiply(x, weight)
                if cuda:
                    torch.cuda.synchronize()
                best = max(best, (PASSES if cuda else 1) * operations / (perf_counter() - started))
            rates[f"{name}{way}"] = best
    return rates


def _windows(lm: PreTrainedModel) -> dict[int | None, int]:
    """Return how many layers have each window; ``None`` is none."""
    config = lm.config.get_text_config()
    kinds = getattr(config, "attention_layers", None) or ["global"] * config.num_hidden_layers  # GPT-Neo says "local"
    return Counter(config.window_size if kind == "local" else None for kind in kinds)


def _square(length: int, before: int, window: int | None) -> int:
    """Return twice the pairs of a query and a key that it sees, its own counted half, of a sequence behind others."""

    def pairs(queries: int) -> int:
        beyond = max(0, queries - window) if window else 0
        return queries * (queries + 1) // 2 - beyond * (beyond + 1) // 2

    return 2 * (pairs(before + length) - pairs(before)) - length
