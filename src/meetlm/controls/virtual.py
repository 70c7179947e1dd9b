"""Soft prompts and special tokens: trained vectors in the control slot (paper section 3.3.1; Lester et al., 2021).

P is [K, n, D]. Virtual id V + j (V: size of the embedding table) stands for vector j of the slot; the level weights
of its token say which level's, or which mix. The vocabulary itself does not grow, so a tied head gains no outputs.
A special token (Quark, LETI) is a soft prompt of length 1.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from transformers import PreTrainedModel

from meetlm.config.errors import ConfigError
from meetlm.controls.base import CONTROLS, Control, ControlKind, ControlSettings


class SpecialTokenSettings(ControlSettings):
    """Settings of the special-token control."""

    kind: Literal["special-token"] = "special-token"
    words: dict[str, str] | None = Field(None, description="initial words by level; the level's name by default")


class SoftPromptSettings(ControlSettings):
    """Settings of the soft-prompt control."""

    kind: Literal["soft-prompt"] = "soft-prompt"
    length: int = Field(50, ge=1, description="n, virtual tokens per level; the paper uses 1, 20, 50, 100")
    words: dict[str, str] | None = Field(None, description="initial words by level; the level's name by default")


class SoftPrompt(Control):
    """Trained vectors in the slot.

    Args:
        settings: Levels and placement.
        length: n.
        words: Initial words of each level, repeated to the length.
        lm: The model, for its embeddings.
        tokenize: Plain words to ids, with no BOS among them.

    Raises:
        ConfigError: Words are missing for a level or empty.
    """

    def __init__(
        self,
        settings: ControlSettings,
        length: int,
        words: dict[str, str],
        lm: PreTrainedModel,
        tokenize: Callable[[str], list[int]],
    ) -> None:
        super().__init__(settings)
        embedding = lm.get_input_embeddings()
        self.length, self.words = length, words
        table = embedding.weight
        assert isinstance(table, Tensor)
        self.first_id = table.shape[0]
        self.slots = [list(range(self.first_id, self.first_id + length)) for _ in settings.levels]
        rows = []
        for level in settings.levels:
            ids = tokenize(words.get(level, ""))
            if not ids:
                raise ConfigError(f"control.words: no initial words for level {level!r}")
            repeated = torch.tensor([ids[j % len(ids)] for j in range(length)], device=table.device)
            with torch.no_grad():  # through the module: some (Gemma) scale in it
                rows.append(embedding(repeated).detach().float())
        self.prompt = nn.Parameter(torch.stack(rows))
        self._lm_shape = _shape(lm)

    def attach(self, lm: PreTrainedModel) -> None:
        """Do nothing: the vectors enter by :meth:`embed`."""

    def set_level_weights(self, weights: Tensor) -> None:
        """Do nothing: :meth:`embed` takes the weights."""

    def embed(self, input_ids: Tensor, weights: Tensor, embedding: nn.Module) -> Tensor:
        """Return embeddings in which each virtual id has its level-weighted vector."""
        virtual = input_ids >= self.first_id  # [R, T]
        embedded: Tensor = embedding(torch.where(virtual, 0, input_ids))
        if not virtual.any():
            return embedded
        chosen = weights.expand(*input_ids.shape, -1)[virtual]  # [M, K]
        vectors = self.prompt[:, input_ids[virtual] - self.first_id]  # [K, M, D]
        mixed = torch.einsum("mk,kmd->md", chosen.to(vectors.dtype), vectors)
        return embedded.masked_scatter(virtual[..., None], mixed.to(embedded.dtype))

    def level_state(self, level: int) -> dict[str, Tensor]:
        """Return ``prompt_embeddings`` [n, D]."""
        return {"prompt_embeddings": self.prompt[level].detach().clone()}

    def peft_config(self) -> dict[str, Any] | None:
        """Return PEFT's prompt-tuning fields, or ``None`` for ``before_response``, which it has no word for."""
        if self.settings.placement != "first":
            return None
        return {
            "peft_type": "PROMPT_TUNING",
            "num_virtual_tokens": self.length,
            "num_transformer_submodules": 1,
            "prompt_tuning_init": "RANDOM",  # TEXT would make loaders ask for the tokenizer
            **self._lm_shape,
        }


def _shape(lm: PreTrainedModel) -> dict[str, int]:
    config = lm.config.get_text_config()
    return {
        "token_dim": lm.get_input_embeddings().embedding_dim,
        "num_attention_heads": config.num_attention_heads,
        "num_layers": config.num_hidden_layers,
    }


def _build(
    settings: SoftPromptSettings | SpecialTokenSettings,
    lm: PreTrainedModel,
    words: Callable[[str], list[int]],
    generator: torch.Generator,
) -> SoftPrompt:
    del generator  # words, not chance, are the start
    length = settings.length if isinstance(settings, SoftPromptSettings) else 1
    return SoftPrompt(settings, length, settings.words or {level: level for level in settings.levels}, lm, words)


CONTROLS.register("soft-prompt")(ControlKind(SoftPromptSettings, _build))
CONTROLS.register("special-token")(ControlKind(SpecialTokenSettings, _build))
