"""LoRA with the factors of all levels stacked (paper section 3.3.1; Hu et al., 2021).

Per layer A is [K, r, in] and B is [K, r, out], so that both flatten to K·r rows without a copy. ``lora_reference``
defines the arithmetic; ``kernels`` computes the same faster on CPUs. The layers keep their classes, names and weights:
only their forward methods are replaced, and the model's checkpoint stays a plain one.

R rows, T tokens per row, K levels, r rank.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from meetlm.config.errors import ConfigError
from meetlm.controls.base import CONTROLS, Control, ControlKind, ControlSettings
from meetlm.controls.kernels.fused_linear import can_fuse, fused_linear
from meetlm.controls.kernels.low_rank import FusedRouting
from meetlm.controls.lora_reference import lora_forward
from meetlm.data.encoding import Scope
from meetlm.data.example import Weights
from meetlm.data.levels import LevelSpace


class LoRASettings(ControlSettings):
    """Settings of the LoRA control."""

    kind: Literal["lora"] = "lora"
    rank: int = Field(4, ge=1, description="rank r per level; the paper uses 1, 4, 64")
    alpha: float = Field(16.0, gt=0, description="the LoRA term is scaled by alpha / rank")
    targets: str | tuple[str, ...] = Field(
        "all-linear",
        description="all-linear (every linear layer but the LM head), or a list of suffixes of module names",
    )
    scope: Scope = Field(
        "all",
        description="tokens that the levels act on: all, or response (faster; exported as PEFT's activated LoRA only)",
    )


class LoRA(Control):
    """The LoRA control.

    Args:
        settings: Rank, scale, target layers.
        levels: The levels.
        lm: The language model it is for.
        generator: Random source of the initial A.

    Attributes:
        a: A of each target layer, [K, r, in] in f32, keyed by module path with ``/`` for dots.
        b: B of each target layer, [K, r, out] in f32; zero at first.
        scale: s = alpha / rank.
        routing: Level weights of the current forward pass, for all target layers; ``None`` = the base model.

    Raises:
        ConfigError: ``settings.targets`` names no linear layer.
    """

    routing: FusedRouting | None

    def __init__(
        self, settings: LoRASettings, levels: LevelSpace, lm: PreTrainedModel, generator: torch.Generator
    ) -> None:
        super().__init__(settings, levels)
        self.slots = [[] for _ in levels]
        self.scope = settings.scope
        self.rank, self.scale = settings.rank, settings.alpha / settings.rank
        self._targets = target_layers(lm, settings.targets)
        self._fan_in_fan_out = any(isinstance(layer, Conv1D) for layer in self._targets.values())
        self.a, self.b = nn.ParameterDict(), nn.ParameterDict()
        num_levels, rank = len(levels), settings.rank
        for path, layer in self._targets.items():
            size_in, size_out = _sizes(layer)
            bound = 1 / math.sqrt(size_in)  # PEFT's kaiming_uniform(a=sqrt(5))
            initial_a = torch.empty(num_levels, rank, size_in).uniform_(-bound, bound, generator=generator)
            self.a[_key(path)] = nn.Parameter(initial_a)
            self.b[_key(path)] = nn.Parameter(torch.zeros(num_levels, rank, size_out))

    def is_identity(self) -> bool:
        """Return whether every B is zero."""
        return not any(bool(b.any()) for b in self.b.values())

    def attach(self, lm: PreTrainedModel) -> None:
        """Replace the forward method of every target layer of ``lm``."""
        for path in self._targets:
            layer = lm.get_submodule(path)
            layer.forward = partial(self._forward, _key(path), layer, layer.forward)

    def _forward(self, key: str, layer: nn.Module, original_forward: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        """Return the output of a target layer for x [R, T, in] or [R·T, in]."""
        if self.routing is None:
            return fused_linear(layer, x) if can_fuse(layer, x) else original_forward(x)
        self.routing.check_tokens(x)
        a, b = self.a[key], self.b[key]
        if can_fuse(layer, x):
            return fused_linear(layer, x, a, b, self.routing)
        return lora_forward(original_forward, x, a, b, self.routing)

    def set_level_weights(self, weights: Tensor | None) -> None:
        """Make the routing of the coming forward pass from weights [R, T, K]."""
        self.routing = None if weights is None else FusedRouting(weights * self.scale, self.rank)

    def adapter_state(self, weights: Weights) -> dict[str, Tensor]:
        """Return ``…lora_A.weight`` [R, in] and ``…lora_B.weight`` [out, R] per layer.

        The factors of all levels with a weight stand one after the other, B times its weight: R is the sum of ranks,
        and the LoRA is exactly that of the mix.
        """
        levels = [k for k, weight in enumerate(weights) if weight]
        state = {}
        for key in self.a:
            prefix = f"base_model.model.{_path(key)}"
            a, b = self.a[key].detach()[levels], self.b[key].detach()[levels]
            factors = b.new_tensor([weights[k] for k in levels])[:, None, None]
            state[f"{prefix}.lora_A.weight"] = a.flatten(0, 1)
            state[f"{prefix}.lora_B.weight"] = (factors * b).flatten(0, 1).T.contiguous()
        return state

    def peft_config(self, weights: Weights) -> dict[str, Any] | None:
        """Return PEFT's LoRA fields; no ``modules_to_save``, so that vLLM and llama.cpp load it too."""
        num_levels = sum(1 for weight in weights if weight)
        return {
            "peft_type": "LORA",
            "r": num_levels * self.rank,
            "lora_alpha": num_levels * self.rank * self.scale,
            "lora_dropout": 0.0,
            "target_modules": sorted(self._targets),
            "bias": "none",
            "fan_in_fan_out": self._fan_in_fan_out,
            "use_rslora": False,
            "use_dora": False,
            "modules_to_save": None,
        }


def target_layers(lm: PreTrainedModel, targets: str | tuple[str, ...]) -> dict[str, nn.Module]:
    """Return the layers LoRA acts on, by module path.

    Args:
        lm: The language model.
        targets: ``all-linear``, or names that a module path must end with (whole parts: ``q_proj``).

    Raises:
        ConfigError: A name matches no linear layer.
    """
    head: nn.Module | None = lm.get_output_embeddings()  # type: ignore[no-untyped-call]
    layers: dict[str, nn.Module] = {
        path: module
        for path, module in lm.named_modules()
        if isinstance(module, nn.Linear | Conv1D) and module is not head
    }
    if targets == "all-linear":
        return layers
    names = (targets,) if isinstance(targets, str) else targets
    for name in names:
        if not any(_ends_with(path, name) for path in layers):
            known = sorted({path.rsplit(".", 1)[-1] for path in layers})
            raise ConfigError(f"control.targets: no linear layer is called {name!r}; use {', '.join(known)}")
    return {path: layer for path, layer in layers.items() if any(_ends_with(path, name) for name in names)}


def _ends_with(path: str, name: str) -> bool:
    return f".{path}".endswith(f".{name}")


def _sizes(layer: nn.Module) -> tuple[int, int]:
    """Return (in, out) of a linear layer."""
    weight = layer.weight
    assert isinstance(weight, Tensor)
    size_out, size_in = weight.shape
    return (size_out, size_in) if isinstance(layer, Conv1D) else (size_in, size_out)


def _key(path: str) -> str:
    return path.replace(".", "/")


def _path(key: str) -> str:
    return key.replace("/", ".")


CONTROLS.register("lora")(
    ControlKind(
        LoRASettings,
        lambda settings, levels, lm, _, generator: LoRA(settings, levels, lm, generator),
        has_slot=False,
    )
)
