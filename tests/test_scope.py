"""LoRA with scope ``response``: the prompt does not depend on the level; step 1 reads it once and without gradient."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

import meetlm
from combinations import each_pair, each_value
from meetlm.data.batch import collate
from meetlm.data.encoding import Encoded
from meetlm.data.levels import PAIR_LEVELS
from meetlm.export.peft import peft_failure_reason
from meetlm.generation.decoding import Branch
from meetlm.generation.session import Request, Session
from meetlm.generation.settings import Sampling
from meetlm.policy.loading import checkpoint_activations
from meetlm.policy.policy import Policy
from run_folders import finished, trained
from tiny import (
    ARCHITECTURES,
    PACKING_ARCHITECTURES,
    first_logits,
    gap,
    gradients,
    items_of,
    text_format,
    tiny_lm,
    tiny_policy,
)

GOOD, BAD = PAIR_LEVELS.best, PAIR_LEVELS.worst
PROMPT = tuple(range(20, 45))


def response_policy(architecture: str, *, checkpointing: bool = False, layout: str | None = None) -> Policy:
    lm = tiny_lm(architecture)
    if checkpointing:
        checkpoint_activations(lm)
    return tiny_policy(architecture, "lora", lm=lm, layout=layout, scope="response")


def record_runs(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, bool]]:
    """Return a list to which each forward pass of a policy adds its number of tokens and whether gradients are on."""
    runs: list[tuple[int, bool]] = []
    original = Policy.run

    def run(self: Policy, ids: Tensor, *rest: object, **more: object) -> Tensor:
        runs.append((ids.numel(), torch.is_grad_enabled()))
        return original(self, ids, *rest, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(Policy, "run", run)
    return runs


@pytest.mark.parametrize("architecture", ["llama", "gptj"])
@torch.no_grad()
def test_logits_before_the_response_do_not_depend_on_the_level(architecture: str) -> None:
    policy = response_policy(architecture)
    logits = []
    for weights in (GOOD, BAD, (-0.5, 1.5)):
        sequence = Encoded.of_one((*PROMPT, 50, 51, 0), len(PROMPT), weights, policy.control.scope)
        (block,) = collate([sequence], policy.layout)["blocks"]
        logits.append(policy.run(block["input_ids"], block["level_weights"], block["position_ids"])[0])
    last = len(PROMPT) - 1
    for other in logits[1:]:
        assert torch.equal(other[:last], logits[0][:last])
        assert bool((other[last:] != logits[0][last:]).any(dim=1).all())


def gradients_of(policy: Policy, batch: Sequence[Encoded], *, share: bool) -> tuple[Tensor, dict[str, Tensor]]:
    """Return log-probs and the gradients of the control, which alone is trained."""
    policy.lm.requires_grad_(False)
    policy.train()
    collated = collate(batch, policy.layout, share=share)
    sums = policy(collated["blocks"], len(batch)).sums()
    (sums * torch.arange(1.0, len(batch) + 1)).sum().backward()
    return sums.detach(), gradients(policy)


@each_pair(architecture=PACKING_ARCHITECTURES, checkpointing=(False, True))
def test_prompts_without_gradient_change_nothing(architecture: str, checkpointing: bool) -> None:
    """Compared with rows that are padded and alone, through all of which gradients flow."""
    policy = response_policy(architecture, checkpointing=checkpointing)
    batch = [sequence for item in items_of(policy, 4) for sequence in item]
    sums, grown = gradients_of(policy, batch, share=True)
    expected_sums, expected = gradients_of(response_policy(architecture, layout="padded"), batch, share=False)
    assert float((sums - expected_sums).abs().max()) < 1e-4
    assert gap(expected, grown) < (1e-4 if architecture == "gpt-neo" else 1e-6)


def test_step_1_reads_prompts_once_and_without_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    policy = response_policy("llama")
    batch = [sequence for item in items_of(policy, 4) for sequence in item]
    runs = record_runs(monkeypatch)
    gradients_of(policy, batch, share=True)
    prompts = sum(sequence.spans[0].start - 1 for sequence in batch[::2])
    responses = sum(len(sequence.ids) - sequence.spans[0].start + 1 for sequence in batch)
    assert runs == [(prompts, False), (responses, True)]
    policy.lm.requires_grad_(True)  # step 2
    policy(collate(batch, policy.layout, share=True)["blocks"], len(batch))
    assert runs[2:] == [(prompts + responses, True)]


def test_sequences_whose_prompt_is_one_token() -> None:
    policy = response_policy("llama")
    batch = [
        Encoded.of_one((20 + n, 30, 31, 0)[: 2 + n % 3], 1, w, "response") for n, w in enumerate((GOOD, BAD, GOOD))
    ]
    batch += [sequence for item in items_of(policy, 2) for sequence in item]
    sums, grown = gradients_of(policy, batch, share=True)
    expected_sums, expected = gradients_of(response_policy("llama", layout="padded"), batch, share=False)
    assert float((sums - expected_sums).abs().max()) < 1e-4
    assert gap(expected, grown) < 1e-6


@each_value(architecture=ARCHITECTURES)
def test_all_levels_share_one_prefill(architecture: str, monkeypatch: pytest.MonkeyPatch) -> None:
    policy = response_policy(architecture)
    branches = [Branch(PROMPT, weights) for weights in (GOOD, BAD, (0.5, 0.5), (-0.5, 1.5))]
    branches += [Branch((*PROMPT[:12], 7), GOOD), Branch((*PROMPT[:12], 7), GOOD)]
    alone = torch.cat([first_logits(policy, [branch]) for branch in branches])
    runs = record_runs(monkeypatch)
    together = first_logits(policy, branches)
    assert float((together - alone).abs().max()) < 1e-4
    if architecture in PACKING_ARCHITECTURES:
        assert [tokens for tokens, _ in runs] == [len(PROMPT) - 1 + 4 + 13]
    requests = [Request((branch,), Sampling(max_new_tokens=6)) for branch in branches]
    session = Session(policy, text_format())
    assert session.complete(requests) == [session.complete([request])[0] for request in requests]


def test_a_run_with_response_scope(tmp_path: Path) -> None:
    """It generates as trained once it is loaded, and has no PEFT folders, since PEFT would act on prompts too."""
    policy = trained("llama", "lora", tmp_path / "stage", scope="response")
    reason = peft_failure_reason(policy.control)
    assert reason is not None and "scope response" in reason
    folder = finished(tmp_path, "llama", "lora", policy=policy)
    assert not (folder / "controls").exists()
    aligned = meetlm.load(folder)
    assert aligned.policy.control.scope == "response"
    ids = tuple(aligned.format.prompt_ids(aligned.parse_prompt(0, "Hi")))
    expected = first_logits(policy, [Branch(ids, GOOD)])
    assert torch.allclose(first_logits(aligned.policy, [Branch(ids, GOOD)]), expected, atol=1e-4)
