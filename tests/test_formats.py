"""Data formats: what sequences a pair gives, what of them is trained, and what a chain's second reply sees."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from meetlm.data import hh
from meetlm.data.batch import IGNORE, collate
from meetlm.data.encoding import Encoded, Span
from meetlm.data.example import Example, Origin
from meetlm.data.fitted_levels import PAIRS
from meetlm.data.formats import FORMATS, Item
from meetlm.data.rows import Row
from meetlm.objectives.nll import nll
from meetlm.policy.policy import Policy
from tiny import encoder_of, gap, gradients, pairs, slots_encoder, text_format, tiny_policy

PROMPT, BETTER, WORSE = "\n\nHuman: Hi\n\nAssistant: Yes?\n\nHuman: Rice?\n\nAssistant:", " Boil it.", " No"
BAD, GOOD = (1.0, 0.0), (0.0, 1.0)
CHAINED = [("text", {}), ("soft-prompt", {"length": 3}), ("special-token", {})]


def hh_pair() -> Example:
    row = Row({"chosen": PROMPT + BETTER, "rejected": PROMPT + WORSE}, Origin("rows.jsonl", 1))
    return PAIRS.apply([hh.parse(row)])[0]


def parts() -> tuple[list[int], list[int], list[int]]:
    """Ids of prompt, chosen and rejected; EOS, which is 0, closes a reply."""
    tokenize = text_format().tokenize
    return tokenize(PROMPT), [*tokenize(BETTER), 0], [*tokenize(WORSE), 0]


def encoded(ids: list[int], start: int, weights: tuple[float, ...]) -> Encoded:
    return Encoded(tuple(ids), (Span(start, len(ids), weights),))


def test_formats_are_these() -> None:
    assert list(FORMATS) == ["chain", "chosen", "conditional", "pairwise"]
    assert [name for name in FORMATS if FORMATS[name].is_pairwise] == ["pairwise"]
    assert [name for name in FORMATS if FORMATS[name].chains] == ["chain"]
    assert [name for name in FORMATS if FORMATS[name].uses_levels] == ["chain", "conditional"]


def test_items_of_one_reply_a_sequence() -> None:
    prompt, better, worse = parts()
    opened = len(prompt) + 2
    encoder = slots_encoder(text_format(), [[1000, 1001], [2000, 2001]])
    good = encoded([2000, 2001, *prompt, *better], opened, GOOD)
    assert FORMATS["conditional"].item(encoder, hh_pair()) == (
        good,
        encoded([1000, 1001, *prompt, *worse], opened, BAD),
    )
    assert FORMATS["chosen"].item(encoder, hh_pair()) == (good,)
    assert FORMATS["pairwise"].item(encoder, hh_pair()) == (good, encoded([2000, 2001, *prompt, *worse], opened, GOOD))
    single = slots_encoder(text_format(), [[]])
    chosen, rejected = (encoded([*prompt, *reply], len(prompt), (1.0,)) for reply in (better, worse))
    assert FORMATS["chosen"].item(single, hh_pair()) == (chosen,)
    assert FORMATS["pairwise"].item(single, hh_pair()) == (chosen, rejected)
    assert (chosen.num_trained, rejected.num_trained) == (len(better), len(worse))


@pytest.mark.parametrize("layout", ["packed", "padded"])
@pytest.mark.parametrize(("kind", "changes"), CHAINED)
def test_a_chain_by_hand(kind: str, changes: dict[str, Any], layout: Any) -> None:
    prompt, better, worse = parts()
    policy = tiny_policy("llama", kind, placement="before_response", **changes)
    bad, good = policy.control.slots
    assert len(good) == {"text": len(text_format().tokenize("A good conversation is")), "soft-prompt": 3}.get(kind, 1)
    item = FORMATS["chain"].item(encoder_of(policy), hh_pair())
    orders = [((good, better, GOOD), (bad, worse, BAD)), ((bad, worse, BAD), (good, better, GOOD))]
    for sequence, (first, second) in zip(item, orders, strict=True):
        (slot, reply, weights), (other_slot, other_reply, other_weights) = first, second
        assert list(sequence.ids) == [*prompt, *slot, *reply, *other_slot, *other_reply]
        start = len(prompt) + len(slot)
        after = start + len(reply)
        end = after + len(other_slot) + len(other_reply)
        assert sequence.spans == (Span(start, after, weights), Span(after + len(other_slot), end, other_weights))
        assert sequence.num_trained == len(better) + len(worse)
        (block,) = collate([sequence], layout)["blocks"]
        labels = [IGNORE] * start + reply + [IGNORE] * len(other_slot) + other_reply  # of the tokens themselves
        assert block["targets"][0].tolist() == [*labels[1:], IGNORE]  # where they are predicted
        assert block["level_weights"][0].tolist() == [list(weights)] * after + [list(other_weights)] * (end - after)
        assert block["completion"].tolist() == [0] * len(reply) + [1] * len(other_reply)
    batch = collate(item, layout)
    assert batch["weights"].tolist() == [list(w) for w in (GOOD, BAD, BAD, GOOD)]
    assert (batch["num_completions"], len(batch["labels"])) == (4, 2 * (len(better) + len(worse)))
    assert batch["num_input_tokens"] == 2 * end


def chains(policy: Policy, count: int = 3) -> list[Encoded]:
    encoder = encoder_of(policy)
    return [chain for example in pairs(count) for chain in FORMATS["chain"].item(encoder, example)]


def plain(policy: Policy, sequence: Encoded) -> Tensor:
    """Log p of each reply of a whole chain by transformers' forward alone, the slots' vectors put in by hand."""
    table, first = policy.lm.get_input_embeddings(), policy.lm.config.vocab_size
    ids = torch.tensor(sequence.ids)
    virtual = ids >= first
    embedded = table(ids.masked_fill(virtual, 0))
    for span in sequence.spans:
        for at in range(span.start - len(policy.control.slots[0]), span.start):
            if virtual[at]:
                embedded[at] = policy.control.get_parameter("prompt")[span.weights.index(1.0), ids[at] - first]
    logps = policy.lm(inputs_embeds=embedded[None], use_cache=False).logits[0].log_softmax(-1)
    return torch.stack([sum(logps[at - 1, ids[at]] for at in range(s.start, s.end)) for s in sequence.spans])


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gpt-neo", "gemma3"])
@pytest.mark.parametrize(("kind", "changes"), CHAINED)
def test_chains_packed_padded_and_by_plain_torch(kind: str, changes: dict[str, Any], architecture: str) -> None:
    policy = tiny_policy(architecture, kind, placement="before_response", **changes)
    sequences = chains(policy)
    expected = torch.cat([plain(policy, sequence) for sequence in sequences])
    (-expected.sum()).backward()
    expected_gradients = gradients(policy)
    for layout in {policy.layout, "padded"}:
        batch = collate(sequences, layout)
        logps = policy(batch["blocks"], batch["num_completions"])
        loss = nll(logps.sums()).total
        loss.backward()
        assert float((logps.sums() - expected).detach().abs().max()) < 1e-4
        assert loss.item() == pytest.approx(-expected.sum().item(), abs=1e-3)
        assert logps.counts().tolist() == [span.end - span.start for s in sequences for span in s.spans]
        assert gap(expected_gradients, gradients(policy)) < 1e-5


def scored(policy: Policy, sequences: list[Encoded]) -> Tensor:
    batch = collate(sequences, policy.layout)
    with torch.no_grad():
        return policy(batch["blocks"], batch["num_completions"]).sums()


@pytest.mark.parametrize("architecture", ["llama", "gpt-neo", "gptj"])
def test_the_second_reply_sees_the_first_and_nothing_of_its_neighbours(architecture: str) -> None:
    policy = tiny_policy(architecture, "soft-prompt", placement="before_response")
    chain, neighbour = chains(policy, 2)[0], chains(policy, 2)[2]
    first, second = chain.spans

    def changed(at: int) -> Encoded:
        ids = list(chain.ids)
        ids[at] = 4 + (ids[at] + 1) % 250
        return replace(chain, ids=tuple(ids))

    before = scored(policy, [chain, neighbour])
    other_first = scored(policy, [changed(first.start), neighbour])
    assert abs(float(before[1] - other_first[1])) > 1e-3
    other_second = scored(policy, [changed(second.end - 2), neighbour])
    assert other_second[0] == before[0]
    assert other_second[1] != before[1]
    for other in (other_first, other_second):
        assert torch.equal(other[2:], before[2:])


def test_both_levels_have_gradients_and_the_first_reply_only_its_own() -> None:
    policy = tiny_policy("llama", "soft-prompt", placement="before_response")
    (chain, _) = chains(policy, 1)  # good first
    batch = collate([chain], policy.layout)
    reached = []
    for reply in (0, 1):
        (-policy(batch["blocks"], 2).sums()[reply]).backward()
        reached.append([float(level.abs().sum()) > 1e-6 for level in gradients(policy)["control.prompt"]])
    assert reached == [[False, True], [True, True]]  # bad, good: the second reply sees the first one's slot too


@pytest.mark.parametrize("layout", ["packed", "padded"])
def test_completions_are_numbered_through_chains_and_single_replies(layout: Any) -> None:
    policy = tiny_policy("llama", "text", placement="before_response")
    encoder = encoder_of(policy)
    items: list[Item] = []
    for number, example in enumerate(pairs(6)):  # of different lengths: padded blocks take them in another order
        items.append(FORMATS["chain" if number % 2 else "conditional"].item(encoder, example))
    sequences = [sequence for item in items for sequence in item]
    batch = collate(sequences, layout)
    assert len(batch["blocks"]) == 1 if layout == "packed" else len(batch["blocks"]) > 2
    tokens: dict[int, list[int]] = {}
    for block in batch["blocks"]:
        trained = block["targets"][block["targets"] != IGNORE].tolist()
        for number, token in zip(block["completion"].tolist(), trained, strict=True):
            tokens.setdefault(number, []).append(token)
    spans = [(sequence, span) for sequence in sequences for span in sequence.spans]
    assert batch["num_completions"] == len(spans) == 18
    assert tokens == {n: list(s.ids[span.start : span.end]) for n, (s, span) in enumerate(spans)}
    assert batch["weights"].tolist() == [list(span.weights) for _, span in spans]


def test_a_chain_needs_a_slot_before_each_reply() -> None:
    with pytest.raises(AssertionError, match="a slot before each completion"):
        FORMATS["chain"].item(slots_encoder(text_format(), [[1000], [1000]], "first"), hh_pair())


def test_chains_are_not_scored() -> None:
    policy = tiny_policy("llama", "text", placement="before_response")
    with pytest.raises(AssertionError, match="chains are not scored"):
        policy.score(chains(policy, 1))
