"""Packed, padded and single sequences have the same log-probs and gradients."""

from __future__ import annotations

from dataclasses import replace
from itertools import accumulate
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from combinations import each_value
from meetlm.data.batch import IGNORE, collate, split_by_tokens
from meetlm.data.encoding import Encoded
from meetlm.data.levels import PAIR_LEVELS
from meetlm.policy import gpt_neo
from meetlm.policy.attention import VARLEN, AttentionInterface, sdpa_attention_forward, varlen_attention
from meetlm.policy.packed_layout import PackedLayout
from meetlm.policy.packing import try_packed_attention
from meetlm.policy.policy import Policy
from tiny import (
    ARCHITECTURES,
    LENGTHS,
    PACKING_ARCHITECTURES,
    gap,
    gradients,
    sequences,
    tiny_control,
    tiny_lm,
    tiny_policy,
)

Result = tuple[Tensor, dict[str, Tensor]]


def run(policy: Policy, batches: list[list[Encoded]], layout: Any) -> Result:
    """Return log p of every sequence, and the gradients of their sum."""
    sums = []
    for batch in batches:
        collated = collate(batch, layout)
        logps = policy(collated["blocks"], collated["num_completions"]).sums()
        logps.sum().backward()
        sums.append(logps.detach())
    return torch.cat(sums), gradients(policy)


@torch.no_grad()
def reference(lm: PreTrainedModel, sequence: Encoded) -> Tensor:
    """Return log p of a sequence without virtual ids, by transformers' own forward pass."""
    ids = torch.tensor([sequence.ids])
    logps = lm(ids, use_cache=False).logits[0, :-1].log_softmax(-1)
    return logps.gather(-1, ids[0, 1:, None])[sequence.spans[0].start - 1 :].sum()


@each_value(architecture=ARCHITECTURES, kind=("lora", "soft-prompt"))
def test_layouts_agree(architecture: str, kind: str) -> None:
    policy = tiny_policy(architecture, kind)
    assert policy.layout == ("packed" if architecture in PACKING_ARCHITECTURES else "padded")
    batch = sequences(policy, LENGTHS)
    alone, alone_gradients = run(policy, [[encoded] for encoded in batch], "padded")
    for layout in {policy.layout, "padded"}:
        together, together_gradients = run(policy, [batch], layout)
        assert float((together - alone).abs().max()) < 1e-4
        # GPT-Neo's own attention has its scores in f32, whatever the model is in; ours has not.
        rounded = (architecture, layout) == ("gpt-neo", "packed")
        assert gap(alone_gradients, together_gradients) < (1e-4 if rounded else 1e-5)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_logps_are_those_of_transformers(architecture: str) -> None:
    lm = tiny_lm(architecture)
    policy = Policy(lm, tiny_control(lm, "text"), longest=64)
    batch = sequences(policy, LENGTHS)
    fresh = tiny_lm(architecture)
    expected = torch.stack([reference(fresh, encoded) for encoded in batch])
    assert float((policy.score(batch)[0] - expected).abs().max()) < 1e-4


def test_an_architecture_that_cannot_pack_has_a_padding_reason() -> None:
    policy = tiny_policy("gptj", "lora")
    assert policy.layout == "padded"
    assert policy.padding_reason == "GPTJForCausalLM does not use transformers' AttentionInterface"


def test_gpt_neo_past_its_window() -> None:
    """The paper's model has local attention over 256 tokens; these sequences are longer."""
    policy = tiny_policy("gpt-neo", "lora", lm=tiny_lm("gpt-neo", window_size=256))
    batch = sequences(policy, [(280, 40), (250, 20), (290, 10), (30, 5)])
    alone, _ = run(policy, [[encoded] for encoded in batch], "padded")
    for layout in ("padded", "packed"):
        together, _ = run(policy, [batch], layout)
        assert float((together - alone).abs().max()) < 1e-4
    wide = tiny_policy("gpt-neo", "lora", lm=tiny_lm("gpt-neo", window_size=1024))
    moved = (wide.score(batch)[0] - alone).abs()
    assert float(moved[:3].min()) > 5e-4  # the window is at work
    assert float(moved[3]) < 1e-4


def test_padding_does_not_matter() -> None:
    """Neither the ids in the padding nor its length matter."""
    policy = tiny_policy("llama", "lora")
    batch = sequences(policy, LENGTHS)
    (block,) = collate(batch, "padded", max_waste=1.0)["blocks"]
    with torch.no_grad():
        before = policy([block], len(batch)).values
        filled = torch.where(block["attention_mask"], block["input_ids"], 99)
        after = policy([{**block, "input_ids": filled}], len(batch)).values
    assert torch.equal(before, after)


@pytest.mark.parametrize("architecture", PACKING_ARCHITECTURES)
def test_packed_sequences_do_not_see_each_other(architecture: str) -> None:
    """Another first sequence of the same length leaves the second one's log-probs bit-identical."""
    policy = tiny_policy(architecture, "lora")
    first, second = sequences(policy, [(9, 5), (6, 4)])
    other = Encoded.of_one(tuple(300 - i for i in first.ids), first.spans[0].start, first.spans[0].weights)
    with torch.no_grad():
        sums, other_sums = (policy(collate([x, second], "packed")["blocks"], 2).sums() for x in (first, other))
    assert sums[0] != other_sums[0]
    assert sums[1] == other_sums[1]


@pytest.mark.parametrize("architecture", PACKING_ARCHITECTURES)
def test_the_check_accepts_architectures_that_pack(architecture: str) -> None:
    lm = tiny_lm(architecture, dtype=torch.float32)
    assert try_packed_attention(lm) is None
    if architecture == "gpt-neo":
        assert all("_attn" in vars(block.attn.attention) for block in lm.transformer.h)
    else:
        assert lm.config._attn_implementation == VARLEN


def leak(wrong: str, **kwargs: Any) -> dict[str, Any]:
    packed = kwargs["meet_layout"]
    if wrong == "leaks":
        kwargs["meet_layout"] = PackedLayout([0, sum(packed.lengths)])
    elif wrong == "branch":
        shared = [skip and skip - 1 for skip in packed.shared]
        kwargs["meet_layout"] = PackedLayout([0, *accumulate(packed.lengths)], shared)
    elif wrong == "window":
        kwargs["sliding_window"] = 20
    elif wrong == "scaling":
        kwargs["scaling"] = 0.7
    return kwargs


@pytest.mark.parametrize("wrong", ["leaks", "branch", "window", "scaling"])
def test_the_check_catches_wrong_packing(wrong: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def attention(*args: Any, **kwargs: Any) -> Any:
        return varlen_attention(*args, **(leak(wrong, **kwargs) if kwargs.get("meet_layout") is not None else kwargs))

    monkeypatch.setitem(AttentionInterface._global_mapping, VARLEN, attention)
    monkeypatch.setattr(gpt_neo, "varlen_attention", attention)
    for architecture, implementation in (("llama", "sdpa"), ("gpt-neo", "eager")):
        lm = tiny_lm(architecture, dtype=torch.float32)
        why = try_packed_attention(lm, longest=40)
        assert why is not None
        assert "differ from unpacked logits" in why
        assert lm.config._attn_implementation == implementation
        assert not any("_attn" in vars(module) for module in lm.modules())


def test_a_gpt_neo_without_its_arguments_gives_nan(monkeypatch: pytest.MonkeyPatch) -> None:
    """If packed sequences saw each other, nothing would raise."""
    policy = tiny_policy("gpt-neo", "lora")
    batch = collate(sequences(policy, LENGTHS), "packed")
    assert policy(batch["blocks"], batch["num_completions"]).values.isfinite().all()
    monkeypatch.setattr(gpt_neo, "setattr", lambda *_: None, raising=False)
    assert policy(batch["blocks"], batch["num_completions"]).values.isnan().all()


def test_a_second_check_that_fails_keeps_the_packed_attention() -> None:
    for architecture in ("llama", "gpt-neo"):
        policy = tiny_policy(architecture, "none")
        batch = collate(sequences(policy, LENGTHS), "packed")
        before = policy(batch["blocks"], batch["num_completions"]).values
        assert try_packed_attention(policy.lm, tolerance=-1) is not None
        assert torch.equal(policy(batch["blocks"], batch["num_completions"]).values, before)


def test_the_check_refuses_other_attention() -> None:
    lm = tiny_lm("llama")
    lm.set_attn_implementation("eager")
    why = try_packed_attention(lm)
    assert why is not None
    assert "'eager'" in why


@pytest.mark.parametrize("layout", ["packed", "padded"])
def test_collate_by_hand(layout: Any) -> None:
    first, second = Encoded.of_one((5, 6, 7, 8), 2, (1.0, 0.0)), Encoded.of_one((9, 10), 1, (0.0, 1.0))
    batch = collate([first, second], layout, max_waste=1.0)
    (block,) = batch["blocks"]
    assert (batch["num_completions"], batch["num_input_tokens"]) == (2, 6)
    assert batch["labels"].tolist() == [7, 8, 10]
    assert block["completion"].tolist() == [0, 0, 1]
    no = IGNORE
    if layout == "packed":
        assert block["input_ids"].tolist() == [[5, 6, 7, 8, 9, 10]]
        assert block["position_ids"].tolist() == [[0, 1, 2, 3, 0, 1]]
        assert block["targets"].tolist() == [[no, 7, 8, no, 10, no]]
        assert block["cu_seq_lens"].tolist() == [0, 4, 6]
        assert block["level_weights"].tolist() == [[[1, 0]] * 4 + [[0, 1]] * 2]
        assert "attention_mask" not in block
    else:
        assert block["input_ids"].tolist() == [[5, 6, 7, 8], [9, 10, 0, 0]]
        assert block["targets"].tolist() == [[no, 7, 8, no], [10, no, no, no]]
        assert block["attention_mask"].tolist() == [[True] * 4, [True, True, False, False]]
        assert block["level_weights"][:, 0].tolist() == [[1, 0], [0, 1]]


def test_padded_blocks_waste_little() -> None:
    batch = [Encoded.of_one(tuple(range(4, 4 + n)), 1, (1.0,)) for n in (30, 3, 29, 28, 4, 10)]
    blocks = collate(batch, "padded")["blocks"]
    assert [int(b["attention_mask"].sum()) for b in blocks] == [30 + 29 + 28, 10, 4, 3]
    for block in blocks:
        assert float(block["attention_mask"].double().mean()) >= 0.9
    assert sorted({int(i) for b in blocks for i in b["completion"]}) == list(range(6))


def test_budget() -> None:
    batch = [Encoded.of_one(tuple(range(n)), 1, (1.0,)) for n in (3, 50, 7, 7, 2)]
    groups = list(split_by_tokens(batch, 16))
    assert groups == [[1], [2, 3], [0, 4]]


def test_an_attention_that_raises_is_a_reason_for_padding(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*args: Any, **kwargs: Any) -> Any:
        if kwargs.get("meet_layout") is not None:
            raise RuntimeError("no kernel")
        return sdpa_attention_forward(*args, **kwargs)

    monkeypatch.setitem(AttentionInterface._global_mapping, VARLEN, fails)
    lm = tiny_lm("llama", dtype=torch.float32)
    assert try_packed_attention(lm) == "meet_varlen failed: no kernel"
    assert lm.config._attn_implementation == "sdpa"


def family(policy: Policy, *, level: int = 1) -> list[Encoded]:
    """Return completions of three prompts: three of the first, one of the second, two of the third."""
    generator = torch.Generator().manual_seed(3)

    def ids(count: int) -> list[int]:
        return torch.randint(4, 300, (count,), generator=generator).tolist()

    slot, weights = policy.control.slots[level], PAIR_LEVELS.weights([level])
    rows = []
    for prompt, replies in ((ids(19), (4, 9, 1)), (ids(6), (3,)), (ids(11), (12, 2))):
        opened = [*slot, *prompt]
        rows += [Encoded.of_one((*opened, *ids(n)), len(opened), weights) for n in replies]
    return rows


@each_value(architecture=PACKING_ARCHITECTURES, kind=("lora", "soft-prompt", "text"))
def test_a_shared_prompt_changes_nothing(architecture: str, kind: str) -> None:
    """Windows of gemma3 (8 tokens) reach back into the shared part. The log-softmax of f64 models is in f32."""
    policy = tiny_policy(architecture, kind)
    rows = family(policy)
    assert policy.shares_prompts
    results = []
    for share in (True, False):
        batch = collate(rows, "packed", share=share)
        sums = policy(batch["blocks"], len(rows)).sums()
        (sums * torch.arange(1.0, 7.0)).sum().backward()
        results.append((batch, sums.detach(), gradients(policy)))
    (shared, values, grown), (apart, expected_values, expected) = results
    slot = len(policy.control.slots[1])
    assert shared["blocks"][0]["shared"] == [0, slot + 18, slot + 18, 0, 0, slot + 10]
    assert "shared" not in apart["blocks"][0]
    assert shared["blocks"][0]["input_ids"].numel() < apart["blocks"][0]["input_ids"].numel()
    assert shared["num_input_tokens"] == apart["num_input_tokens"]
    assert shared["labels"].tolist() == apart["labels"].tolist()
    assert float((values - expected_values).abs().max()) < 1e-5
    assert gap(expected, grown) < 1e-6


def test_sequences_that_do_not_share_their_prompt() -> None:
    policy = tiny_policy("llama", "soft-prompt")
    good, bad = (family(policy, level=level)[:1] for level in (1, 0))
    (other,) = [replace(good[0], ids=(*good[0].ids[:-5], 7, *good[0].ids[-4:]))]  # another last token of the prompt
    assert "shared" not in collate([*good, *bad], "packed", share=True)["blocks"][0]
    assert "shared" not in collate([*good, other], "packed", share=True)["blocks"][0]
    assert "shared" not in collate([*good, *good], "packed")["blocks"][0]
    assert "shared" not in collate([*good, *good], "padded", share=True)["blocks"][0]


def test_budget_keeps_completions_of_one_prompt_together() -> None:
    policy = tiny_policy("llama", "lora")
    rows = family(policy)
    lengths = [len(row.ids) for row in rows]
    assert lengths == [23, 28, 20, 9, 23, 13]
    assert list(split_by_tokens(rows, 200, share=True)) == [[0, 1, 2, 4, 5, 3]]
    assert list(split_by_tokens(rows, 52, share=True)) == [[0, 1], [4, 5], [2, 3]]  # a third has no room
    assert list(split_by_tokens(rows, 52)) == [[1, 0], [4, 2], [5, 3]]
    together, counts = policy.score(rows, max_tokens=30)
    alone = torch.cat([policy.score([row])[0] for row in rows])
    assert float((together - alone).abs().max()) < 1e-5
    assert counts.tolist() == [4, 9, 1, 3, 12, 2]
