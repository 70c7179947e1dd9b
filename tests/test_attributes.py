"""Several attributes in one control: a slot per attribute, contributions that add, and rows that state only some."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from meetlm.data.batch import collate
from meetlm.data.encoding import Encoded
from meetlm.data.levels import Attribute, LevelSpace
from meetlm.generation.decoding import Branch
from meetlm.policy.policy import Policy
from meetlm.run.levels import resolve_level, weights_by_name
from tiny import first_logits, gradients, tiny_policy

LEVELS = LevelSpace((Attribute("tone", ("casual", "formal"), is_ordered=False), Attribute("length", ("brief", "long"))))
FORMAL_LONG, CASUAL, LONG = LEVELS.weights([1, 3]), LEVELS.weights([0]), LEVELS.weights([3])
PROMPT = (20, 21, 22)
TEXTS = {name: name.replace("=", " ") for name in LEVELS}


def policy_of(kind: str, **changes: Any) -> Policy:
    if kind == "text":
        changes["prompts"] = TEXTS
    return tiny_policy("llama", kind, levels=LEVELS, **changes)


def test_each_attribute_has_its_own_virtual_ids() -> None:
    control = policy_of("soft-prompt").control
    first = 320  # rows of the embedding table; the slot has 3 tokens per attribute
    assert control.slot(FORMAL_LONG) == [first, first + 1, first + 2, first + 3, first + 4, first + 5]
    assert control.slot(CASUAL) == [first, first + 1, first + 2]
    assert control.slot(LONG) == [first + 3, first + 4, first + 5]
    assert control.slot((0.0,) * 4) == []


@torch.no_grad()
def test_a_slot_holds_the_vectors_of_its_attribute() -> None:
    policy = policy_of("soft-prompt")
    control, prompt = policy.control, policy.control.get_parameter("prompt")
    mixed = (0.25, 0.75, -0.5, 1.5)
    ids = torch.tensor([[*control.slot(mixed), *PROMPT]])
    weights = torch.tensor(mixed, dtype=torch.float64).expand(1, ids.shape[1], -1)
    embedded = control.embed(ids, weights, policy.lm.get_input_embeddings())[0]
    assert torch.allclose(embedded[:3], 0.25 * prompt[0] + 0.75 * prompt[1])
    assert torch.allclose(embedded[3:6], -0.5 * prompt[2] + 1.5 * prompt[3])


def test_one_hot_weights_are_the_plain_level() -> None:
    policy = tiny_policy("llama", "lora")
    levels = policy.control.levels
    plain = levels.weights([1])
    for level in ({"good": 1.0, "bad": 0.0}, {"good": 1}, 1, 1.0, "good"):
        weights = weights_by_name(resolve_level(levels, level))
        branch = Branch(PROMPT, tuple(weights.get(name, 0.0) for name in levels))
        assert torch.equal(first_logits(policy, [branch]), first_logits(policy, [Branch(PROMPT, plain)]))


@pytest.mark.parametrize("kind", ["lora", "soft-prompt"])
def test_rows_train_only_the_levels_that_they_state(kind: str) -> None:
    policy = policy_of(kind)
    sequences = [
        Encoded.of_one((*policy.control.slot(w), *PROMPT, 30, 31, 0), len(policy.control.slot(w)) + 3, w)
        for w in (CASUAL, LONG)
    ]
    policy(collate(sequences, policy.layout)["blocks"], 2).sums().sum().backward()
    trained = {name: g for name, g in gradients(policy).items() if name.startswith("control.")}
    for gradient in trained.values():
        assert [bool(part.any()) for part in gradient] == [True, False, False, True]


@pytest.mark.parametrize("kind", ["lora", "soft-prompt", "text"])
def test_combinations_in_one_batch(kind: str) -> None:
    policy = policy_of(kind)
    combinations = [LEVELS.weights([tone, length]) for tone in (0, 1) for length in (2, 3)] + [CASUAL, LONG]
    branches = [Branch((*policy.control.slot(w), *PROMPT), w) for w in combinations]
    together = first_logits(policy, branches)
    alone = torch.cat([first_logits(policy, [branch]) for branch in branches])
    assert float((together - alone).abs().max()) < 1e-4
    assert len({tuple(row.tolist()) for row in together}) == len(branches)


def test_weights_that_a_control_cannot_take() -> None:
    lora, soft, text = (policy_of(kind).control for kind in ("lora", "soft-prompt", "text"))
    strong, mixed = (0.0, 2.0, 0.0, 1.0), (0.5, 0.5, 0.0, 1.0)
    assert [lora.weights_failure_reason(weights) for weights in (FORMAL_LONG, CASUAL, strong, mixed)] == [None] * 4
    assert [soft.weights_failure_reason(weights) for weights in (FORMAL_LONG, CASUAL, mixed)] == [None] * 3
    reason = soft.weights_failure_reason(strong)
    assert reason is not None and "'tone' sum to 2" in reason and "guidance" in reason
    assert [text.weights_failure_reason(weights) for weights in (FORMAL_LONG, CASUAL)] == [None] * 2
    reason = text.weights_failure_reason(mixed)
    assert reason is not None and "one level" in reason and "guidance" in reason
