"""LoRA with stacked levels in plain operations: the definition of its arithmetic.

A layer with output layer(x) and factors A [K, r, in] and B [K, r, out] returns

    layer(x) + s · (w ⊙ (x · Aᵀ)) · B

where w [K·r] holds the level weights of a token, each repeated r times (paper section 3.3.1; Hu et al., 2021). The
layer's own ``forward`` computes layer(x), so this works on every device, under autocast, and with sharded or quantised
weights. ``kernels`` holds a faster path for CPUs, which the tests compare with this module.

R rows, T tokens per row, M = R·T tokens, K levels, r rank.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property

import torch
from torch import Tensor
from torch.nn import functional

from meetlm.config.errors import ConfigError


class LevelRouting:
    """The level weights of all tokens of one forward pass.

    All layers of a control share one routing, and none changes it. A forward pass makes a new one. Gradient
    checkpointing puts it back while it recomputes layers (see :class:`~meetlm.policy.policy.Policy`).

    Args:
        weights: Level weights times the scale s, [R, T, K].
        rank: r.

    Attributes:
        weights: The same, [M, K].
    """

    def __init__(self, weights: Tensor, rank: int) -> None:
        self.rows, self.tokens = weights.shape[:2]
        self.weights = weights.flatten(0, 1)
        self.rank = rank

    @cached_property
    def gate(self) -> Tensor:
        """The weights, each repeated r times, [M, K·r]."""
        return self.weights.repeat_interleave(self.rank, dim=-1)

    def check_tokens(self, x: Tensor) -> None:
        """Check that a layer sees all tokens.

        Args:
            x: Input of the layer, [R, T, in] or [M, in].

        Raises:
            ConfigError: The layer sees only some of the tokens, so the level of each is unknown.
        """
        num_tokens = x.shape[:-1].numel()
        if num_tokens != len(self.weights):
            raise ConfigError(
                "control.targets: LoRA cannot target layers that see only some of the tokens, such as MoE experts "
                f"(a layer got {num_tokens} tokens of a batch of {self.rows} x {self.tokens}); set control.targets "
                "to the names of other layers"
            )


def lora_forward(forward: Callable[[Tensor], Tensor], x: Tensor, a: Tensor, b: Tensor, routing: LevelRouting) -> Tensor:
    """Return the output of a layer with LoRA.

    Args:
        forward: The layer's own forward method.
        x: [R, T, in] or [M, in].
        a: A, [K, r, in].
        b: B, [K, r, out].
        routing: Level weights of the tokens.

    Returns:
        [R, T, out] or [M, out], in the dtype of the layer's output.
    """
    y = forward(x)
    if not torch.is_autocast_enabled(x.device.type):  # autocast casts by itself
        x = x.to(a.dtype)
    low = functional.linear(x, a.flatten(0, 1))
    gated = low * routing.gate.view_as(low).to(low.dtype)
    return y + (gated @ b.flatten(0, 1)).to(y.dtype)
