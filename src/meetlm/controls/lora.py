"""LoRA with all levels stacked: a linear layer's output gains B·(w ⊙ A·x) (paper section 3.3.1; Hu et al., 2021).

Per layer A is [K, r, in] and B is [K, r, out], so that both flatten to K·r rows without a copy; w repeats each
level weight r times. Cost grows with K·r; over ``WIDE`` of them, where each token has one level, runs of tokens of
one level go through their own r rows. The layers keep their own classes, names and weights: only how they go forward
is replaced (``linear``), and the model's checkpoint stays a plain one.
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
from meetlm.controls.linear import Layers, join
from meetlm.controls.low_rank import Reach, Runs, Wide

WIDE = 128
"""Most K·r that all tokens go through."""
RUN = 16
"""Tokens that a run has on average at least: shorter ones are more calls than they save."""


class LoRASettings(ControlSettings):
    """Settings of the LoRA control."""

    kind: Literal["lora"] = "lora"
    rank: int = Field(4, ge=1, description="r; the paper uses 1, 4, 64")
    alpha: float = Field(16.0, gt=0, description="scale is alpha / rank, so that one rate serves every rank")
    targets: str | tuple[str, ...] = Field(
        "all-linear",
        description="all-linear (every linear layer but the head), or the last parts of module names",
    )


class LoRA(Control):
    """The LoRA control. Parameters: ``a`` and ``b``, keyed by module path with ``/`` for dots, in f32."""

    def __init__(self, settings: LoRASettings, lm: PreTrainedModel, generator: torch.Generator) -> None:
        super().__init__(settings)
        self.slots = [[] for _ in settings.levels]
        self.rank, self.scale = settings.rank, settings.alpha / settings.rank
        self._targets = target_layers(lm, settings.targets)
        self._fan_in_fan_out = any(isinstance(layer, Conv1D) for layer in self._targets.values())
        self.a, self.b = nn.ParameterDict(), nn.ParameterDict()
        self._weights: Tensor | None = None
        self._runs: Runs | None = None
        num_levels, rank = len(settings.levels), settings.rank
        for path, layer in self._targets.items():
            size_in, size_out = _sizes(layer)
            bound = 1 / math.sqrt(size_in)  # PEFT's kaiming_uniform(a=sqrt(5))
            start = torch.empty(num_levels, rank, size_in).uniform_(-bound, bound, generator=generator)
            self.a[_key(path)] = nn.Parameter(start)
            self.b[_key(path)] = nn.Parameter(torch.zeros(num_levels, rank, size_out))

    def is_identity(self) -> bool:
        """Return whether every B is zero."""
        return not any(bool(one.any()) for one in self.b.values())

    def attach(self, lm: PreTrainedModel) -> None:
        """Replace how every target layer of ``lm`` goes forward."""
        layers = {path: lm.get_submodule(path) for path in self._targets}
        join(layers, partial(self._added, layers))

    def _added(self, layers: dict[str, nn.Module], paths: list[str], x: Tensor) -> tuple[Tensor, ...]:
        """Return the outputs of those of ``layers`` that read x [R, T, in]."""
        down, up = ([factors[_key(path)] for path in paths] for factors in (self.a, self.b))
        return Layers([layers[path] for path in paths], down, up).forward(x, self.reach(x))

    def set_level_weights(self, weights: Tensor) -> None:
        """Keep w ⊙ scale, [R, T, K]; or the runs of tokens of one level."""
        self._weights = weights * self.scale
        self._runs = _runs(self._weights) if weights.shape[-1] * self.rank > WIDE else None

    def reach(self, x: Tensor) -> Reach:
        """Return what tokens x [R, T, in], or [R·T, in], reach under the weights of :meth:`set_level_weights`.

        Raises:
            ConfigError: The layer reads some of the tokens only, so that their levels are not known.
        """
        assert self._weights is not None, "set_level_weights() before the forward pass"
        rows, tokens = self._weights.shape[:2]
        number = x.shape[:-1].numel()
        if number % rows or tokens not in (1, number // rows):
            raise ConfigError(
                f"LoRA: a layer read {number} tokens of a batch of {rows} x {tokens}, such as an expert does; "
                "control.targets names the layers that are to have one"
            )
        if self._runs is not None:
            return self._runs
        gate = self._weights.expand(rows, number // rows, -1).flatten(0, 1)
        return Wide(gate.repeat_interleave(self.rank, dim=-1))

    def embed(self, input_ids: Tensor, weights: Tensor, embedding: nn.Module) -> Tensor:
        """Return the plain embeddings: LoRA has no slot."""
        del weights
        embedded: Tensor = embedding(input_ids)
        return embedded

    def level_state(self, level: int) -> dict[str, Tensor]:
        """Return ``…lora_A.weight`` [r, in] and ``…lora_B.weight`` [out, r] per layer."""
        state = {}
        for key in self.a:
            prefix = f"base_model.model.{_path(key)}"
            state[f"{prefix}.lora_A.weight"] = self.a[key][level].detach().clone()
            state[f"{prefix}.lora_B.weight"] = self.b[key][level].detach().T.contiguous()
        return state

    def peft_config(self) -> dict[str, Any]:
        """Return PEFT's LoRA fields; no ``modules_to_save``, so that vLLM and llama.cpp load it too."""
        assert isinstance(self.settings, LoRASettings)
        return {
            "peft_type": "LORA",
            "r": self.settings.rank,
            "lora_alpha": self.settings.alpha,
            "lora_dropout": 0.0,
            "target_modules": sorted(self._targets),
            "bias": "none",
            "fan_in_fan_out": self._fan_in_fan_out,
            "use_rslora": False,
            "use_dora": False,
            "modules_to_save": None,
        }


def _runs(weights: Tensor) -> Runs | None:
    """Return the runs in weights [R, T, K]; ``None`` where a token mixes levels or they are short."""
    flat = weights.flatten(0, 1)
    if weights.shape[1] == 1 or int((flat != 0).sum(dim=1).max()) > 1:
        return None
    levels, lengths = torch.unique_consecutive(flat.abs().argmax(dim=1), return_counts=True)
    if len(levels) * RUN > len(flat):
        return None
    return Runs(levels.tolist(), lengths.tolist(), flat.sum(dim=1, keepdim=True))


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
    chosen: dict[str, nn.Module] = {
        p: m for p, m in layers.items() if any(p == n or p.endswith("." + n) for n in names)
    }
    for name in names:
        if not any(p == name or p.endswith("." + name) for p in chosen):
            known = sorted({p.rsplit(".", 1)[-1] for p in layers})
            raise ConfigError(f"control.targets: no linear layer is called {name!r}; there are {', '.join(known)}")
    return chosen


def _sizes(layer: nn.Module) -> tuple[int, int]:
    weight = layer.weight
    assert isinstance(weight, Tensor)
    size_out, size_in = weight.shape
    return (size_out, size_in) if isinstance(layer, Conv1D) else (size_in, size_out)


def _key(path: str) -> str:
    return path.replace(".", "/")


def _path(key: str) -> str:
    return key.replace("/", ".")


def _build(
    settings: LoRASettings,
    lm: PreTrainedModel,
    words: Callable[[str], list[int]],
    generator: torch.Generator,
) -> LoRA:
    del words
    return LoRA(settings, lm, generator)


CONTROLS.register("lora")(ControlKind(LoRASettings, _build, has_slot=False))
