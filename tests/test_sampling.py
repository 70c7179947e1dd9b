"""Sampling of tokens, compared with a plain reference."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from meetlm.config.errors import MeetError
from meetlm.generation import sampling
from meetlm.generation.sampling import row_generator, sample_tokens
from meetlm.generation.settings import Sampling


def reference(logits: Tensor, settings: Sampling, generators: list[torch.Generator]) -> list[int]:
    """Sample row by row: sort all tokens, take the smallest set that reaches top_p, invert its distribution."""
    chosen = []
    for row, generator in zip(logits, generators, strict=True):
        draw = float(torch.rand((), generator=generator, dtype=torch.float64))
        probs = (row / settings.temperature).softmax(-1)
        order = probs.argsort(descending=True, stable=True).tolist() if settings.top_p < 1 else range(len(row))
        nucleus, mass = [], 0.0
        for token in order:
            nucleus.append(token)
            mass += float(probs[token])
            if settings.top_p < 1 and mass >= settings.top_p:
                break
        target, reached = draw * mass, 0.0
        for token in nucleus:
            reached += float(probs[token])
            if reached > target:
                break
        chosen.append(token)
    return chosen


def streams(count: int) -> list[torch.Generator]:
    return [row_generator(5, row) for row in range(count)]


@pytest.mark.parametrize("top_p", [0.1, 0.5, 0.9, 0.95, 1.0])
@pytest.mark.parametrize("spread", [0.1, 1.0, 5.0], ids=["flat", "usual", "peaked"])
@pytest.mark.parametrize("vocabulary", [50, 700])
def test_nucleus(vocabulary: int, spread: float, top_p: float) -> None:
    """``flat`` over 700 tokens needs more than the first 256; ``peaked`` needs few."""
    logits = spread * torch.randn(200, vocabulary, generator=torch.Generator().manual_seed(3))
    settings = Sampling(temperature=0.7, top_p=top_p)
    got = sample_tokens(logits, settings, streams(200)).tolist()
    assert got == reference(logits, settings, streams(200))
    assert len(set(got)) > 10


def test_only_wide_nuclei_sort_whole_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    sorts: list[int] = []
    right = Tensor.sort
    monkeypatch.setattr(Tensor, "sort", lambda self, **k: (sorts.append(1), right(self, **k))[1])
    settings = Sampling(temperature=1.0, top_p=0.9)
    sample_tokens(10 * torch.randn(4, 700, generator=torch.Generator().manual_seed(3)), settings, streams(4))
    assert not sorts
    sample_tokens(torch.zeros(4, 700), settings, streams(4))
    assert sorts
    assert sampling._NUM_TOP_TOKENS == 256


def test_greedy() -> None:
    logits = torch.randn(5, 40, generator=torch.Generator().manual_seed(0))
    assert sample_tokens(logits, Sampling(temperature=0.0), streams(5)).tolist() == logits.argmax(-1).tolist()


def test_frequencies_follow_the_distribution() -> None:
    probs = torch.tensor([0.5, 0.3, 0.15, 0.05])
    rows = 4000
    logits = probs.log().expand(rows, -1)
    free = torch.bincount(sample_tokens(logits, Sampling(temperature=1.0), streams(rows)), minlength=4) / rows
    assert torch.allclose(free, probs, atol=0.03)
    cut = torch.bincount(sample_tokens(logits, Sampling(temperature=1.0, top_p=0.8), streams(rows)), minlength=4) / rows
    assert torch.allclose(cut, torch.tensor([0.625, 0.375, 0.0, 0.0]), atol=0.03)
    sharp = torch.bincount(sample_tokens(logits, Sampling(temperature=0.5), streams(rows)), minlength=4) / rows
    assert torch.allclose(sharp, probs**2 / (probs**2).sum(), atol=0.03)


def test_streams_differ_by_row_and_by_seed() -> None:
    draws = {
        (seed, row): float(torch.rand((), generator=row_generator(seed, row))) for seed in range(5) for row in range(50)
    }
    assert len(set(draws.values())) == len(draws)


@pytest.mark.parametrize("wrong", [{"temperature": -1}, {"top_p": 0}, {"top_p": 1.1}, {"max_new_tokens": 0}])
def test_settings_are_checked(wrong: dict[str, float]) -> None:
    with pytest.raises((ValueError, MeetError)):
        Sampling(**wrong)  # type: ignore[arg-type]
