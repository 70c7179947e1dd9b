"""Controls with stacked levels: each level affects its own tokens and no others."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import nn

from combinations import each_pair, each_value
from meetlm.config.errors import ConfigError
from meetlm.controls.base import CONTROLS as registered
from meetlm.controls.build import parse_control
from meetlm.controls.kernels import low_rank
from meetlm.controls.lora import LoRA, target_layers
from meetlm.data.batch import collate
from meetlm.data.encoding import Encoded
from meetlm.policy.loading import checkpoint_activations, checkpoints_activations
from meetlm.policy.policy import Policy
from tiny import (
    ARCHITECTURES,
    CONTROLS,
    LENGTHS,
    LEVELLED_KINDS,
    PACKING_ARCHITECTURES,
    TRAINED,
    gap,
    gradients,
    sequences,
    text_format,
    tiny_control,
    tiny_lm,
    tiny_policy,
)


def backward(policy: Policy, batch: Sequence[Encoded]) -> dict[str, torch.Tensor]:
    collated = collate(list(batch), policy.layout)
    (-policy(collated["blocks"], collated["num_completions"]).sums().sum()).backward()
    return gradients(policy)


def checkpointed(architecture: str, kind: str, layout: str | None = None, **changes: Any) -> Policy:
    """Return the policy of ``tiny_policy`` with gradient checkpointing."""
    lm = tiny_lm(architecture)
    checkpoint_activations(lm)
    assert checkpoints_activations(lm)
    policy = tiny_policy(architecture, kind, lm=lm, layout=layout, **changes)
    policy.train()  # in eval mode nothing is recomputed
    return policy


@each_value(architecture=ARCHITECTURES, kind=LEVELLED_KINDS)
def test_levels_matter(architecture: str, kind: str) -> None:
    policy = tiny_policy(architecture, kind)
    sequence_batch = sequences(policy, [(5, 4)], [0])
    other = sequences(policy, [(5, 4)], [1])
    assert sequence_batch[0].ids[sequence_batch[0].spans[0].start :] == other[0].ids[other[0].spans[0].start :]
    gap_of_levels = abs(float(policy.score(sequence_batch)[0] - policy.score(other)[0]))
    assert gap_of_levels > 1e-2


@each_value(architecture=ARCHITECTURES, kind=TRAINED)
def test_loss_ignores_the_other_level(architecture: str, kind: str) -> None:
    policy = tiny_policy(architecture, kind)
    batch = sequences(policy, LENGTHS)
    before, _ = policy.score(batch)
    with torch.no_grad():
        for parameter in policy.control.parameters():
            parameter[0] += torch.randn_like(parameter[0])
    after, _ = policy.score(batch)
    assert torch.equal(before[1::2], after[1::2])
    assert bool((before[::2] != after[::2]).all())


@each_pair(architecture=("llama", "gpt-neo"), kind=TRAINED, checkpointing=(False, True), layout=("packed", "padded"))
def test_mixed_gradients_are_the_sum_of_single_levels(
    architecture: str, kind: str, checkpointing: bool, layout: str
) -> None:
    policy = tiny_policy(architecture, kind, layout=layout)
    batch = sequences(policy, LENGTHS)
    summed: dict[str, torch.Tensor] = {}
    for level in (0, 1):
        for name, gradient in backward(policy, batch[level::2]).items():
            summed[name] = summed.get(name, 0) + gradient
    if checkpointing:
        policy = checkpointed(architecture, kind, layout)
    # Padded, scores of GPT-Neo are in f32.
    assert gap(summed, backward(policy, batch)) < (1e-6 if architecture == "llama" or layout == "packed" else 1e-4)


@pytest.mark.parametrize("layout", [None, "padded"])
@pytest.mark.parametrize("max_dense_rows", [low_rank.MAX_DENSE_ROWS, 1])
def test_lora_on_a_layer_with_flattened_rows(
    max_dense_rows: int, layout: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """OPT's MLP gets [R·T, D] instead of [R, T, D]."""
    monkeypatch.setattr(low_rank, "MAX_DENSE_ROWS", max_dense_rows)
    policy = tiny_policy("opt", "lora", layout=layout)
    batch = sequences(policy, [(20, 15), (30, 9), (24, 16), (3, 1)], [0, 1, 0, 1])
    summed = backward(policy, batch[::2])
    for name, gradient in backward(policy, batch[1::2]).items():
        summed[name] = summed[name] + gradient
    assert gap(summed, backward(policy, batch)) < 1e-6
    alone = torch.cat([policy.score([encoded])[0] for encoded in batch])
    assert torch.allclose(policy.score(batch)[0], alone)


def test_lora_refuses_layers_that_see_only_some_of_the_tokens() -> None:
    control = tiny_policy("opt", "lora").control
    control.set_level_weights(torch.ones(2, 5, 2))
    with pytest.raises(
        ConfigError,
        match=r"see only some of the tokens, such as MoE experts \(a layer got 7 tokens of a batch of 2 x 5\)",
    ):
        control.routing.check_tokens(torch.zeros(7, 24))


@pytest.mark.parametrize("kind", TRAINED)
def test_checkpointed_gradients_with_padded_blocks(kind: str) -> None:
    """Several blocks, each with its own level weights, go forward before one backward pass."""
    policy = tiny_policy("gptj", kind)
    batch = sequences(policy, LENGTHS)
    assert len(collate(batch, "padded")["blocks"]) > 2
    plain = backward(policy, batch)
    assert gap(plain, backward(checkpointed("gptj", kind), batch)) < 1e-6


@pytest.mark.parametrize("layout", ["packed", "padded"])
@pytest.mark.parametrize("checkpointing", [False, True], ids=["plain", "checkpointed"])
def test_segmented_routing_equals_dense_routing(
    checkpointing: bool, layout: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Past ``MAX_DENSE_ROWS`` each level has its own product: equal gradients, also of a level that no token has."""
    names = ("q0", "q1", "q2", "q3")
    wide = backward(tiny_policy("llama", "lora", levels=names, layout=layout), long_segments(names))
    monkeypatch.setattr(low_rank, "MAX_DENSE_ROWS", 1)
    policy = checkpointed("llama", "lora", layout, levels=names) if checkpointing else None
    policy = policy or tiny_policy("llama", "lora", levels=names, layout=layout)
    assert gap(wide, backward(policy, long_segments(names))) < 1e-6
    assert isinstance(policy.control.routing.router, low_rank.SegmentedRouting)
    assert not bool(wide["control.a.model/layers/0/mlp/up_proj"][3].any())


def long_segments(names: Sequence[str]) -> list[Encoded]:
    """Return three sequences of different levels; none has the last level of ``names``."""
    policy = tiny_policy("llama", "lora", levels=names)
    return sequences(policy, [(20, 15), (30, 9), (24, 16)], [2, 0, 1])


def test_mixed_levels_and_short_segments_stay_dense() -> None:
    mixed, alternating = torch.zeros(1, 64, 3), torch.zeros(1, 64, 3)
    mixed[..., 0], mixed[0, 40, 1] = 1.0, -0.5
    alternating[0, torch.arange(64), torch.arange(64) % 3] = 1.0
    for weights in (mixed, alternating):
        assert low_rank.segments_of(weights.flatten(0, 1)) is None
    segments = low_rank.segments_of(mixed[0, :40])
    assert segments is not None and (segments.levels, segments.lengths) == ([0], [40])


def test_checkpointed_gradients_of_two_blocks_of_one_shape() -> None:
    """The shapes are equal, so a recomputation at the wrong level would raise nothing."""
    policy = tiny_policy("llama", "lora")
    first, second = (collate(sequences(policy, [(6, 5)], [level]), "padded")["blocks"][0] for level in (0, 1))
    blocks = [first, {**second, "completion": second["completion"] + 1}]
    (-policy(blocks, 2).sums().sum()).backward()
    plain = gradients(policy)
    policy = checkpointed("llama", "lora")
    (-policy(blocks, 2).sums().sum()).backward()
    assert gap(plain, gradients(policy)) < 1e-6


@pytest.mark.parametrize(("architecture", "kind"), [("gpt-neo", "lora"), ("gpt-neo", "soft-prompt"), ("llama", "lora")])
def test_checkpointing_under_autocast(architecture: str, kind: str) -> None:
    """Training on CUDA runs under bf16 autocast: recomputed activations have the dtypes of the first pass."""
    results = []
    for checkpointing in (False, True):
        lm = tiny_lm(architecture, dtype=torch.float32)
        if checkpointing:
            checkpoint_activations(lm)
        policy = tiny_policy(architecture, kind, lm=lm)
        policy.train()
        batch = collate(sequences(policy, LENGTHS), policy.layout)
        with torch.autocast("cpu", torch.bfloat16):
            loss = -policy(batch["blocks"], batch["num_completions"]).sums().sum()
        loss.backward()
        results.append(gradients(policy))
    assert gap(*results) < 1e-3  # a checkpointed head does not store its probabilities in bf16


@each_value(architecture=PACKING_ARCHITECTURES)
def test_many_levels(architecture: str) -> None:
    """Five levels, K·r above 128: each level equals a control that has only this level."""
    names = ("q0", "q1", "q2", "q3", "q4")
    lm = tiny_lm(architecture)
    policy = tiny_policy(architecture, "lora", lm=lm, levels=names, rank=30)
    batch = sequences(policy, LENGTHS[:5], range(5))
    together, _ = policy.score(batch)
    for level, name in enumerate(names):
        single = tiny_policy(architecture, "lora", levels=(name,), rank=30)
        with torch.no_grad():
            for parameter, stacked in zip(single.control.parameters(), policy.control.parameters(), strict=True):
                parameter.copy_(stacked[level : level + 1])
        alone = Encoded.of_one(batch[level].ids, batch[level].spans[0].start, (1.0,))
        assert float((single.score([alone])[0] - together[level]).abs()) < 1e-4


@pytest.mark.parametrize("kind", TRAINED)
def test_a_mix_of_levels_is_linear_in_the_weights(kind: str) -> None:
    """good + 0.5·(good − bad) equals a level mixed by hand (for LoRA: its product B·A)."""
    policy = tiny_policy("llama", kind)
    (batch,) = sequences(policy, [(5, 6)], [1])
    mixed = Encoded.of_one(batch.ids, batch.spans[0].start, (-0.5, 1.5))
    by_weights, _ = policy.score([mixed])
    with torch.no_grad():
        if isinstance(policy.control, LoRA):
            for path, layer in target_layers(policy.lm, "all-linear").items():
                a, b = (p[path.replace(".", "/")] for p in (policy.control.a, policy.control.b))
                delta = sum(w * b[k].T @ a[k] for k, w in enumerate((-0.5, 1.5)))
                layer.weight += policy.control.scale * delta
                b.zero_()
        else:
            prompt = policy.control.prompt
            prompt[1] = 1.5 * prompt[1] - 0.5 * prompt[0]
    by_hand, _ = policy.score([batch])
    assert float((by_hand - by_weights).abs()) < 1e-4


def test_text_control_requires_a_text_per_level() -> None:
    lm = tiny_lm("llama")
    control = tiny_control(lm, "text")
    assert [text_format().decode(slot) for slot in control.slots] == [
        "A bad conversation is",
        "A good conversation is",
    ]
    assert not list(control.parameters())
    with pytest.raises(ConfigError, match="no text for level 'q0'"):
        tiny_control(lm, "text", levels=("q0", "good"))


def test_soft_prompt_starts_from_its_text() -> None:
    """Its embeddings, scaled if the model scales them (Gemma), are repeated to the length."""
    lm = tiny_lm("gemma")
    control = tiny_control(lm, "soft-prompt", length=7)
    for level, text in enumerate(("bad", "good")):
        ids = text_format().tokenize(text)
        expected = lm.get_input_embeddings()(torch.tensor((ids * 7)[:7]))
        assert torch.allclose(control.prompt[level], expected.detach(), atol=1e-6)
    with pytest.raises(ConfigError, match="no initial text for level 'bad'"):
        tiny_control(lm, "soft-prompt", words={"good": "good"})


def test_lora_targets() -> None:
    lm = tiny_lm("llama")
    assert all(lm.get_submodule(path) is not lm.lm_head for path in target_layers(lm, "all-linear"))
    assert len(target_layers(lm, "all-linear")) == 2 * 7
    assert sorted(target_layers(lm, ("q_proj", "self_attn.v_proj"))) == [
        f"model.layers.{i}.self_attn.{name}" for i in (0, 1) for name in ("q_proj", "v_proj")
    ]
    with pytest.raises(ConfigError, match="'proj'; use .*q_proj"):
        target_layers(lm, "proj")  # whole parts of a name, no substring


def test_fresh_lora_changes_nothing() -> None:
    lm = tiny_lm("gpt2")
    ids = torch.arange(4, 20)[None]
    before = lm(ids).logits
    tiny_policy("gpt2", "lora", lm=lm, move=0.0).control.set_level_weights(torch.ones(1, 16, 2, dtype=torch.float64))
    assert torch.equal(lm(ids).logits, before)


@pytest.mark.parametrize(
    ("kind", "move", "is_identity"),
    [
        ("lora", 0.0, True),
        ("lora", 0.1, False),
        ("none", 0.0, True),
        ("text", 0.0, False),
        ("soft-prompt", 0.0, False),
        ("special-token", 0.0, False),
    ],
)
def test_is_identity(kind: str, move: float, is_identity: bool) -> None:
    assert tiny_policy("llama", kind, move=move).control.is_identity() == is_identity


def test_head_and_vocabulary_do_not_grow() -> None:
    """A tied head would otherwise have outputs for the special tokens."""
    policy = tiny_policy("gpt2", "special-token")
    assert policy.lm.get_output_embeddings().weight.shape[0] == policy.lm.config.vocab_size
    assert isinstance(policy.lm.get_input_embeddings(), nn.Embedding)
    assert policy.control.slots == [[policy.lm.config.vocab_size]] * 2


def test_unknown_control() -> None:
    with pytest.raises(ConfigError, match="unknown control 'lorra'; did you mean 'lora'"):
        parse_control({"kind": "lorra"})


def test_every_registered_control_is_tested() -> None:
    assert list(registered) == sorted(CONTROLS)


def test_no_control_is_the_plain_model() -> None:
    policy = tiny_policy("llama", "none")
    first, other = (policy.score(sequences(policy, LENGTHS, [level] * 6))[0] for level in (0, 1))
    assert torch.equal(first, other)
    assert policy.control.slots == [[], []]
    assert not list(policy.control.parameters())
