"""Reads exports as users of transformers do: the tokenizer renders a prompt, ``generate`` continues it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessorList, PreTrainedTokenizerBase

from meetlm.data.example import Prompt
from meetlm.export.parity import ParityCase


def rendered_ids(tokenizer: PreTrainedTokenizerBase, prompt: Prompt) -> list[int]:
    """Return the ids of a prompt as transformers' pipeline computes them."""
    if not prompt.is_chat:
        return list(tokenizer(prompt.text())["input_ids"])
    encoded: Any = tokenizer.apply_chat_template(prompt.messages(), add_generation_prompt=True, return_dict=True)
    return list(encoded["input_ids"])


@torch.no_grad()
def reply_logits(model: Any, ids: Sequence[int], case: ParityCase) -> Tensor:
    """Return the logits [N, V] that ``model.generate`` computes at each position of the run's reply, f32.

    Args:
        model: A model of transformers, or a PEFT model.
        ids: Ids of the prompt as the model reads them.
        case: The reply; ``generate`` is made to sample its tokens.
    """
    inputs = torch.tensor([ids])

    def sample_reply(sequences: Tensor, scores: Tensor) -> Tensor:
        """Leave the reply's next token alone, also where the model's generation config excludes it."""
        forced = torch.full_like(scores, -math.inf)
        forced[:, case.reply[sequences.shape[1] - len(ids)]] = 0.0
        return forced

    output = model.generate(
        input_ids=inputs,
        attention_mask=torch.ones_like(inputs),
        max_new_tokens=len(case.reply),
        do_sample=False,
        logits_processor=LogitsProcessorList([sample_reply]),
        output_logits=True,
        return_dict_in_generate=True,
    )
    return torch.cat(output.logits).float()
