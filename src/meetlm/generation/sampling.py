"""How a next token is chosen. Each row has its own random stream, so its draws do not depend on its neighbours."""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor

from meetlm.config.settings import Settings

_HEAD = 256
"""Nuclei are looked for among this many tokens first: sorting a vocabulary costs as much as a small model."""


class Sampling(Settings):
    """Settings of a generation; stored with every completion."""

    max_new_tokens: int = Field(128, ge=1, description="most new tokens (128 in the paper)")
    temperature: float = Field(0.0, ge=0, allow_inf_nan=False, description="0 takes the likeliest token")
    top_p: float = Field(1.0, gt=0, le=1, description="sample from the smallest set of this much probability")


def row_generator(seed: int, row: int) -> torch.Generator:
    """Return the random stream of one prompt: the same whatever else is in its batch."""
    return torch.Generator().manual_seed(seed * 1_000_003 + row)


def sample_tokens(logits: Tensor, sampling: Sampling, generators: list[torch.Generator]) -> Tensor:
    """Return the next token of each row, [R].

    Args:
        logits: [R, V], f32.
        sampling: Temperature and nucleus.
        generators: One a row.
    """
    if sampling.temperature == 0:
        return logits.argmax(dim=-1)
    probs = (logits / sampling.temperature).softmax(dim=-1)
    draws = torch.stack([torch.rand((), generator=g, dtype=torch.float64) for g in generators]).to(logits.device)
    if sampling.top_p == 1:
        return _inverse(probs.double().cumsum(dim=-1), draws)
    top, tokens = probs.topk(min(_HEAD, probs.shape[-1]), dim=-1)
    chosen = tokens.gather(-1, _nucleus(top, draws, sampling.top_p)[:, None])[:, 0]
    wide = top.sum(dim=-1) < sampling.top_p
    if bool(wide.any()):  # nuclei wider than the head: sort these rows whole
        top, tokens = probs[wide].sort(dim=-1, descending=True)
        chosen[wide] = tokens.gather(-1, _nucleus(top, draws[wide], sampling.top_p)[:, None])[:, 0]
    return chosen


def _nucleus(sorted_probs: Tensor, draws: Tensor, top_p: float) -> Tensor:
    """Return for each row an index into its sorted probabilities, drawn from the smallest set of mass ``top_p``."""
    mass = sorted_probs.double().cumsum(dim=-1)
    inside = mass - sorted_probs < top_p  # up to and with the token that reaches top_p
    return _inverse((sorted_probs * inside).double().cumsum(dim=-1), draws)


def _inverse(cumulative: Tensor, draws: Tensor) -> Tensor:
    """Return for each row the first index whose cumulative mass exceeds draw × total."""
    index = torch.searchsorted(cumulative, (draws * cumulative[:, -1])[:, None], right=True)[:, 0]
    return index.clamp(max=cumulative.shape[-1] - 1)
