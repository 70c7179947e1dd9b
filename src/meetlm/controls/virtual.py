"""Soft prompts and special tokens: trained vectors in the control slot (paper section 3.3.1; Lester et al., 2021).

The parameter is P [K, n, D]. Each attribute has a slot of its own; a sequence has the slots of the attributes that it
states, in the order of the attributes. Virtual id V + a·n + j (V: rows of the embedding table) stands for vector j of
the slot of attribute a; the weights of the attribute's levels choose its level or mix of levels. The vocabulary does
not grow, so a tied LM head gains no outputs. A special token (Quark, LETI) is a soft prompt of length 1.

R rows, T tokens per row, K levels, A attributes, n vectors per level, D size of an embedding, M virtual tokens of a
batch.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from transformers import PreTrainedModel

from meetlm.config.errors import ConfigError
from meetlm.controls.base import CONTROLS, Control, ControlKind, ControlSettings
from meetlm.data.example import Weights
from meetlm.data.levels import LevelSpace


class SpecialTokenSettings(ControlSettings):
    """Settings of the special-token control."""

    kind: Literal["special-token"] = "special-token"
    words: dict[str, str] | None = Field(
        None, description="text of each level whose embeddings are the initial values; by default the level's name"
    )


class SoftPromptSettings(ControlSettings):
    """Settings of the soft-prompt control."""

    kind: Literal["soft-prompt"] = "soft-prompt"
    length: int = Field(50, ge=1, description="virtual tokens per level; the paper uses 1, 20, 50, 100")
    words: dict[str, str] | None = Field(
        None, description="text of each level whose embeddings are the initial values; by default the level's name"
    )


class SoftPrompt(Control):
    """Trained vectors in the slot of each attribute.

    Args:
        settings: The control's settings.
        levels: The levels.
        length: Vectors per level, n.
        words: Text of each level; its embeddings, repeated to the length, are the initial vectors.
        lm: The language model, for its embeddings.
        tokenize: Returns the ids of plain text, without BOS.

    Raises:
        ConfigError: A level has no text, or an empty one.
    """

    membership: Tensor  # whether level k belongs to attribute a, [A, K]

    def __init__(
        self,
        settings: ControlSettings,
        levels: LevelSpace,
        length: int,
        words: dict[str, str],
        lm: PreTrainedModel,
        tokenize: Callable[[str], list[int]],
    ) -> None:
        super().__init__(settings, levels)
        embedding = lm.get_input_embeddings()
        self.length = length
        table = embedding.weight
        assert isinstance(table, Tensor)
        self.first_id = table.shape[0]
        starts = {k: self.first_id + a * length for a, ks in enumerate(levels.ranges.values()) for k in ks}
        self.slots = [list(range(starts[k], starts[k] + length)) for k in range(len(levels))]
        membership = [[float(k in ks) for k in range(len(levels))] for ks in levels.ranges.values()]
        self.register_buffer("membership", torch.tensor(membership), persistent=False)
        rows = []
        for level in levels:
            ids = tokenize(words.get(level, ""))
            if not ids:
                raise ConfigError(f"control.words: no initial text for level {level!r}")
            repeated = torch.tensor([ids[j % len(ids)] for j in range(length)], device=table.device)
            with torch.no_grad():  # calls the module, since some models (Gemma) scale in it
                rows.append(embedding(repeated).detach().float())
        self.prompt = nn.Parameter(torch.stack(rows))
        self._lm_shape = _shape(lm)

    def embed(self, input_ids: Tensor, weights: Tensor | None, embedding: nn.Module) -> Tensor:
        """Return embeddings [R, T, D] in which each virtual id has its level-weighted vector."""
        is_virtual = input_ids >= self.first_id  # [R, T]
        embeddings: Tensor = embedding(torch.where(is_virtual, 0, input_ids))
        if not is_virtual.any():
            return embeddings
        assert weights is not None, "virtual ids have level weights"
        offsets = input_ids[is_virtual] - self.first_id
        is_of_attribute = self.membership[offsets // self.length]
        virtual_weights = weights.expand(*input_ids.shape, -1)[is_virtual] * is_of_attribute  # [M, K]
        vectors = self.prompt[:, offsets % self.length]  # [K, M, D]
        mixed = torch.einsum("mk,kmd->md", virtual_weights.to(vectors.dtype), vectors)
        return embeddings.masked_scatter(is_virtual[..., None], mixed.to(embeddings.dtype))

    def weights_failure_reason(self, weights: Weights) -> str | None:
        """Return why not, where the weights of an attribute do not sum to 1: such vectors are far from trained ones."""
        for name, levels in self.levels.ranges.items():
            level_weights = [weights[k] for k in levels]
            if any(level_weights) and not math.isclose(sum(level_weights), 1, abs_tol=1e-6):
                of_attribute = f" of {name!r}" if name else ""
                return (
                    f"the level weights{of_attribute} sum to {sum(level_weights):g}, but those of a control of kind "
                    f"{self.settings.kind!r} must sum to 1; for a stronger effect use guidance instead"
                )
        return None

    def adapter_state(self, weights: Weights) -> dict[str, Tensor]:
        """Return ``prompt_embeddings``, the vectors of the slots of all attributes with a weight, [n or more, D]."""
        slots = [
            torch.tensordot(self.prompt.new_tensor([weights[k] for k in levels]), self.prompt.detach()[list(levels)], 1)
            for levels in self.levels.ranges.values()
            if any(weights[k] for k in levels)
        ]
        return {"prompt_embeddings": torch.cat(slots)}

    def peft_config(self, weights: Weights) -> dict[str, Any] | None:
        """Return PEFT's prompt-tuning fields; ``None`` for ``before_response``, which PEFT cannot express."""
        if self.settings.placement != "first":
            return None
        return {
            "peft_type": "PROMPT_TUNING",
            "num_virtual_tokens": len(self.slot(weights)),
            "num_transformer_submodules": 1,
            "prompt_tuning_init": "RANDOM",  # TEXT would make loaders require the tokenizer
            **self._lm_shape,
        }


def _shape(lm: PreTrainedModel) -> dict[str, int]:
    """Return the sizes of ``lm`` for PEFT's prompt-tuning config."""
    config = lm.config.get_text_config()
    return {
        "token_dim": lm.get_input_embeddings().embedding_dim,
        "num_attention_heads": config.num_attention_heads,
        "num_layers": config.num_hidden_layers,
    }


def _build(
    settings: SoftPromptSettings | SpecialTokenSettings,
    levels: LevelSpace,
    lm: PreTrainedModel,
    tokenize: Callable[[str], list[int]],
    generator: torch.Generator,
) -> SoftPrompt:
    del generator  # the initial values are embeddings of text
    length = settings.length if isinstance(settings, SoftPromptSettings) else 1
    words = settings.words or {level: level.rpartition("=")[2] for level in levels}
    return SoftPrompt(settings, levels, length, words, lm, tokenize)


CONTROLS.register("soft-prompt")(ControlKind(SoftPromptSettings, _build))
CONTROLS.register("special-token")(ControlKind(SpecialTokenSettings, _build))
