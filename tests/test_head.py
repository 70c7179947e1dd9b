"""Log-probs by chunks of the vocabulary equal those of whole logits, as do their gradients."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import AutoModelForCausalLM, Gemma2Config

from meetlm.data.batch import collate
from meetlm.policy import head
from meetlm.policy.head import is_linear_head, token_logps
from meetlm.run.measure import PeakMemory
from tiny import ARCHITECTURES, LENGTHS, gap, gradients, sequences, tiny_lm, tiny_policy


def plain(hidden: Tensor, layer: nn.Module, targets: Tensor) -> Tensor:
    return -functional.cross_entropy(layer(hidden).float(), targets, reduction="none")


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("trained", [False, True], ids=["frozen", "trained"])
@pytest.mark.parametrize("store", [False, True], ids=["recomputed", "stored"])
@pytest.mark.parametrize("count", [1, 4, 11])
def test_chunks_of_the_vocabulary_give_the_log_probs_and_gradients_of_whole_logits(
    count: int, store: bool, trained: bool, bias: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(head, "NUM_LOGITS", {"cpu": 12})  # chunks of at most 12, 3 and 2
    monkeypatch.setattr(head, "MIN_CHUNK", 2)
    torch.manual_seed(0)
    layer = nn.Linear(6, 17, bias=bias).requires_grad_(trained)
    hidden, targets = torch.randn(count, 6, requires_grad=True), torch.randint(0, 17, (count,))
    outer = torch.randn(count)
    results = []
    for compute in (plain, partial(token_logps, store_probabilities=store)):
        values = compute(hidden, layer, targets)
        values.backward(outer)
        gradient, hidden.grad = hidden.grad, None
        results.append([values.detach(), gradient, *(p.grad for p in layer.parameters() if trained)])
        layer.zero_grad()
    assert len(results[0]) == 2 + trained * (1 + bias)
    for first, other in zip(*results, strict=True):
        assert torch.allclose(first, other, atol=1e-6)


def test_logits_beyond_the_range_of_exp(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(head, "NUM_LOGITS", {"cpu": 15})
    monkeypatch.setattr(head, "MIN_CHUNK", 2)
    torch.manual_seed(0)
    layer = nn.Linear(6, 17, bias=False).requires_grad_(False)
    hidden, targets = (2000 * torch.randn(5, 6)).requires_grad_(), torch.arange(5)
    assert layer(hidden).max() > 700
    values, right = token_logps(hidden, layer, targets), plain(hidden, layer, targets)
    assert torch.allclose(values, right, rtol=1e-5, atol=1e-3)
    gradients = [torch.autograd.grad(logps.sum(), hidden)[0] for logps in (values, right)]
    assert torch.allclose(*gradients, atol=1e-5)


def test_no_tokens() -> None:
    layer, hidden = nn.Linear(6, 17), torch.randn(0, 6, requires_grad=True)
    token_logps(hidden, layer, torch.zeros(0, dtype=torch.int64)).sum().backward()
    assert hidden.grad is not None and hidden.grad.shape == (0, 6)
    assert all(p.grad is not None and not p.grad.any() for p in layer.parameters())


def test_only_the_head_is_trained() -> None:
    torch.manual_seed(0)
    layer, hidden, targets = nn.Linear(6, 17), torch.randn(5, 6), torch.arange(5)
    gradients = [
        torch.autograd.grad(compute(hidden, layer, targets).sum(), layer.weight)[0] for compute in (plain, token_logps)
    ]
    assert torch.allclose(*gradients, atol=1e-6)


def test_scoring_stores_no_probabilities() -> None:
    """Scoring with a trainable model stores nothing for backward."""
    layer, hidden, targets = nn.Linear(8, 5000, bias=False), torch.randn(2000, 8), torch.zeros(2000, dtype=torch.int64)

    def most(store: bool) -> int:
        with PeakMemory() as memory:
            logps = token_logps(hidden, layer, targets, store_probabilities=store)
        del logps
        return memory.peak

    with_stored = most(True)
    with torch.no_grad():
        scored = most(True)
    assert with_stored > 4 * 2000 * 5000 > 1.5 * scored
    assert most(False) < with_stored


def test_half_precision() -> None:
    """As on CUDA: products in bf16, the softmax in f32."""
    torch.manual_seed(0)
    layer, targets = nn.Linear(64, 300, bias=False), torch.randint(0, 300, (50,))
    results = []
    for compute in (plain, token_logps):
        hidden = torch.randn(50, 64, generator=torch.Generator().manual_seed(1)).requires_grad_()
        with torch.autocast("cpu", torch.bfloat16):
            values = compute(hidden, layer, targets)
        values.sum().backward()
        assert layer.weight.grad is not None
        results.append((values.detach(), hidden.grad, layer.weight.grad.clone()))
        layer.zero_grad()
    for first, other in zip(*results, strict=True):
        assert first.dtype == other.dtype == torch.float32
        assert float((first - other).abs().max()) < 0.02 * float(first.abs().max())


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_chunked_head_equals_the_logits_of_the_model(architecture: str) -> None:
    policy = tiny_policy(architecture, "lora")
    head = policy.log_prob_head
    assert head is not None
    batch = collate(sequences(policy, LENGTHS), policy.layout)
    allocations = []
    for policy.log_prob_head in (head, None):
        values = policy(batch["blocks"], batch["num_completions"])
        values.sums().sum().backward()
        allocations.append((values.values.detach(), gradients(policy)))
    assert torch.allclose(allocations[0][0], allocations[1][0], atol=1e-5)
    assert gap(allocations[0][1], allocations[1][1]) < 1e-5


def test_training_and_scoring_call_the_whole_model() -> None:
    """What wraps the model's forward pass, such as sharding, sees every layer and the head."""
    policy = tiny_policy("llama", "lora")
    calls: list[tuple[int, ...]] = []
    policy.lm.register_forward_hook(lambda module, inputs, output: calls.append(tuple(output.logits.shape)))
    batch = collate(sequences(policy, LENGTHS), policy.layout)
    logps = policy(batch["blocks"], batch["num_completions"])
    policy.score(sequences(policy, LENGTHS))
    assert calls == [(len(logps.values), 1)] * 2


def test_capped_logits_are_not_a_linear_head() -> None:
    sizes = {"hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = Gemma2Config(
        **sizes, num_key_value_heads=2, head_dim=8, vocab_size=320, final_logit_softcapping=0.5, initializer_range=0.2
    )
    torch.manual_seed(0)
    lm = AutoModelForCausalLM.from_config(config).eval()
    assert not is_linear_head(lm)
    assert is_linear_head(tiny_lm("llama"))
    policy = tiny_policy("gemma", "lora", lm=lm.double())
    assert policy.log_prob_head is None
    (row,) = sequences(policy, [(5, 4)])
    with torch.no_grad():
        weights = torch.tensor(row.spans[0].weights, dtype=torch.float64)
        policy.control.set_level_weights(weights.expand(1, len(row.ids), -1))
        logits = lm(torch.tensor([row.ids])).logits[0].float()
    expected = logits.log_softmax(dim=1)[4:8].gather(1, torch.tensor(row.ids[5:])[:, None]).sum()
    assert float((policy.score([row])[0] - expected).abs()) < 1e-4
