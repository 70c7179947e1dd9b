"""The sampler: rows are the same in a batch as alone, and end where they should."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch

from combinations import each_value
from meetlm.data.prompt_format import FormatSpec, PromptFormat
from meetlm.generation import decoding
from meetlm.generation import engine as engines
from meetlm.generation.decoding import PackedDecoder, PaddedDecoder, Request, decoding_failure_reason
from meetlm.generation.engine import Engine
from meetlm.generation.settings import Sampling
from meetlm.policy.kv_cache import KVCache
from meetlm.policy.policy import Policy
from reporters import RecordingReporter
from tiny import ARCHITECTURES, OBEYED, PACKING, text_format, tiny_lm, tiny_policy, tiny_tokenizer

GREEDY = Sampling(max_new_tokens=12)
LENGTHS = (3, 17, 9, 1, 12)


def requests_of(policy: Policy, lengths: Sequence[int] = LENGTHS, mixed: bool = True) -> list[Request]:
    """Return random prompts of different levels, the last at a mix of levels if the control supports it."""
    generator = torch.Generator().manual_seed(11)
    made = []
    for stream, length in enumerate(lengths):
        level = stream % 2
        weights = (1.0, 0.0) if level == 0 else (0.0, 1.0)
        if mixed and policy.control.can_mix_levels and stream == len(lengths) - 1:
            weights = (-0.5, 1.5)
        ids = torch.randint(4, 300, (length,), generator=generator).tolist()
        made.append(Request((*policy.control.slots[level], *ids), weights, stream))
    return made


def engine_of(policy: Policy, *stop: str) -> Engine:
    return Engine(policy, PromptFormat(tiny_tokenizer(), FormatSpec(None, "auto", stop)))


@each_value(architecture=ARCHITECTURES, kind=OBEYED)
def test_logits_in_a_batch_equal_those_alone(architecture: str, kind: str) -> None:
    policy = tiny_policy(architecture, kind)
    engine, requests = engine_of(policy), requests_of(policy)
    together = engine.first_logits(requests)
    alone = torch.cat([engine.first_logits([request]) for request in requests])
    assert float((together - alone).abs().max()) < 1e-4
    assert float((together[0] - together[1]).abs().max()) > 0.1


@each_value(architecture=ARCHITECTURES, kind=("lora", "soft-prompt"), temperature=(0.0, 1.0))
def test_completions_in_a_batch_equal_those_alone(architecture: str, kind: str, temperature: float) -> None:
    """In float64 no two tokens are within rounding of each other."""
    policy = tiny_policy(architecture, kind)
    engine, requests = engine_of(policy), requests_of(policy)
    settings = Sampling(max_new_tokens=8, temperature=temperature, top_p=0.9)
    alone = [engine.generate([request], settings, seed=3)[0] for request in requests]
    assert engine.generate(requests, settings, seed=3, batch_size=2) == alone
    assert engine.generate(requests[::-1], settings, seed=3)[::-1] == alone


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_greedy_decoding_equals_that_of_transformers(architecture: str) -> None:
    """The same model without a control, in f32: equal up to the first tie within 1e-4."""
    policy = tiny_policy(architecture, "lora", move=0.0, dtype=torch.float32)
    engine = engine_of(policy)
    lm = tiny_lm(architecture, dtype=torch.float32)
    for request in requests_of(policy)[:2]:
        tokens: list[int] = []
        with pytest.MonkeyPatch.context() as patch:
            right, keep = engines.sample_tokens, tokens.extend
            patch.setattr(engines, "sample_tokens", lambda *a, r=right, k=keep: (c := r(*a), k(c.tolist()))[0])
            engine.generate([request], Sampling(max_new_tokens=12))
        ids = torch.tensor([request.ids])
        theirs = lm.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=12,
            do_sample=False,
            pad_token_id=0,
            output_logits=True,
            return_dict_in_generate=True,
        )
        expected = theirs.sequences[0, ids.shape[1] :].tolist()
        for step, (one, two) in enumerate(zip(tokens, expected, strict=True)):
            top = theirs.logits[step][0].topk(2).values
            if float(top[0] - top[1]) < 1e-4:
                break
            assert one == two, step
        assert step > 0 or expected == [0]


def test_sampling_depends_on_the_seed_and_the_stream() -> None:
    policy = tiny_policy("llama", "lora")
    engine, (request, *_) = engine_of(policy), requests_of(policy)
    settings = Sampling(max_new_tokens=8, temperature=1.0)
    other = Request(request.ids, request.weights, 7)
    one, two, three = (
        engine.generate([row], settings, seed=seed)[0].text for row, seed in ((request, 0), (request, 1), (other, 0))
    )
    assert len({one, two, three}) == 3
    assert engine.generate([request], settings, seed=0)[0].text == one


class Script:
    """Replaces ``sample_tokens``: returns the tokens written for each row, by its random stream."""

    def __init__(self, scripts: list[list[int]], seed: int = 0) -> None:
        self.scripts = {engines.row_generator(seed, row).initial_seed(): list(s) for row, s in enumerate(scripts)}
        self.sizes: list[int] = []

    def __call__(self, logits: Any, sampling: Any, generators: list[torch.Generator]) -> torch.Tensor:
        self.sizes.append(len(generators))
        assert len(logits) == len(generators)
        return torch.tensor([self.scripts[g.initial_seed()].pop(0) for g in generators])


def scripted(
    texts: list[str], monkeypatch: pytest.MonkeyPatch, *stop: str, max_new_tokens: int = 40
) -> tuple[list[Any], Script]:
    policy = tiny_policy("llama", "lora")
    ids = [text_format().tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
    script = Script(ids)
    monkeypatch.setattr(engines, "sample_tokens", script)
    requests = [Request((5, 6 + row), (1.0, 0.0), row) for row in range(len(texts))]
    done = engine_of(policy, *stop).generate(requests, Sampling(max_new_tokens=max_new_tokens))
    return done, script


def test_completions_end_with_eos_stop_or_length(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [
        " yes <|endoftext|>rice",
        " no \n\nHuman: rice",
        " It is kind of good to boil rice and water, today and then",
    ]
    done, script = scripted(texts, monkeypatch, "\n\nHuman:", max_new_tokens=14)
    assert [one.finish for one in done] == ["eos", "stop", "length"]
    assert done[0].text == "yes"
    assert done[1].text == "no"
    tokens = text_format().tokenize(texts[2])
    assert done[2].text == text_format().decode(tokens[:14]).strip()
    assert done[2].num_tokens == 14
    assert done[0].num_tokens == len(text_format().tokenize(" yes ")) + 1
    assert script.sizes[0] == 3
    assert script.sizes[-1] == 1  # rows that ended have left
    assert len(script.sizes) == 14


@pytest.mark.parametrize("text", ["a\n\nHuman: b", "a\n\nHuman:", "é à\n\nHuman:x", "\n\nHuman: b", "日本\n\nHuman: c"])
def test_stop_strings_across_tokens(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (done,), script = scripted([text + " and more than that"], monkeypatch, "\n\nHuman:", "STOP")
    assert done.text == text.split("\n\nHuman:")[0].strip()
    assert done.finish == "stop"
    closing = text.index("\n\nHuman:") + len("\n\nHuman:")
    assert done.num_tokens <= len(text_format().tokenize(text[:closing])) + 1


def test_the_first_stop_string_cuts(monkeypatch: pytest.MonkeyPatch) -> None:
    (done,), _ = scripted([" good\nB: A: x"], monkeypatch, "A:", "\nB:")
    assert done.text == "good"


def test_a_stop_string_inside_a_token_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    assert len(text_format().tokenize(" good")) == 1
    (done,), _ = scripted([" a good way"], monkeypatch, "oo")
    assert (done.text, done.finish, done.num_tokens) == ("a g", "stop", 2)


def test_eos_of_the_generation_config(monkeypatch: pytest.MonkeyPatch) -> None:
    policy = tiny_policy("llama", "lora")
    policy.lm.generation_config.eos_token_id = [7, 9]
    monkeypatch.setattr(engines, "sample_tokens", Script([[20, 9, 21], [0]]))
    requests = [Request((5,), (1.0, 0.0), row) for row in range(2)]
    done = engine_of(policy).generate(requests, GREEDY)
    assert [(one.finish, one.num_tokens) for one in done] == [("eos", 2), ("eos", 1)]
    assert [one.text for one in done] == [text_format().decode([20]).strip(), ""]  # 9 is an ordinary token


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_finished_rows_do_not_change_the_others(architecture: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Most rows end early; the last one has the same logits as alone."""
    policy = tiny_policy(architecture, "lora")
    requests = requests_of(policy)
    seen: dict[int, list[torch.Tensor]] = {len(requests): [], 1: []}
    scripts = [[20] * 15, [20, 0], [20, 21, 22, 0], [0], [30, 0]]
    for rows in (requests, requests[:1]):
        script = Script(scripts)

        def sample_tokens(logits: torch.Tensor, *rest: Any, rows: Any = rows, script: Any = script) -> torch.Tensor:
            generators = rest[1]
            first = [g.initial_seed() for g in generators].index(engines.row_generator(0, 0).initial_seed())
            seen[len(rows)].append(logits[first])
            return script(logits, *rest)

        monkeypatch.setattr(engines, "sample_tokens", sample_tokens)
        engine_of(policy).generate(rows, Sampling(max_new_tokens=15))
    together, alone = (torch.stack(seen[n]) for n in (len(requests), 1))
    assert together.shape == alone.shape == (15, policy.lm.config.vocab_size)
    assert float((together - alone).abs().max()) < 1e-4


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_cached_steps_equal_one_forward_pass(architecture: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The logits of each step equal those of training at that position."""
    policy = tiny_policy(architecture, "soft-prompt")
    (request,) = requests_of(policy, [6], mixed=False)
    script, seen = Script([[20, 21, 22, 23, 24, 25, 26, 27, 28, 29]]), []

    def record(logits: torch.Tensor, *rest: Any) -> torch.Tensor:
        seen.append(logits[0])
        return script(logits, *rest)

    monkeypatch.setattr(
        engines, "sample_tokens", lambda logits, *rest: (seen.append(logits[0]), script(logits, *rest))[1]
    )
    engine_of(policy).generate([request], Sampling(max_new_tokens=10))
    ids = torch.tensor([[*request.ids, *range(20, 29)]])
    weights = torch.tensor([[request.weights]])
    with torch.no_grad():
        embedded = policy.control.embed(ids, weights, policy.lm.get_input_embeddings())
        whole = policy.lm(inputs_embeds=embedded, use_cache=False).logits[0, len(request.ids) - 1 :]
    assert float((torch.stack(seen) - whole).abs().max()) < 1e-4


@each_value(architecture=PACKING, kind=("lora", "soft-prompt"))
def test_mixed_precision_is_near_f32(architecture: str, kind: str) -> None:
    """On CUDA generation runs under autocast, with keys in bf16; here under autocast of the CPU."""
    policy = tiny_policy(architecture, kind, dtype=torch.float32)
    assert engine_of(policy)._decoder is PackedDecoder

    @torch.no_grad()
    def logits() -> torch.Tensor:
        rows = PackedDecoder(policy, requests_of(policy), 3)
        read, order = [rows.prefill()], rows.order
        read += [rows.step(torch.full([len(order)], token)) for token in (20, 21)]
        assert rows.order == order
        return torch.stack(read)

    policy.eval()
    exact = logits()
    with torch.autocast("cpu", torch.bfloat16):
        half = logits()
    gaps = (half - exact).abs().amax(dim=-1) / exact.abs().max()
    assert 1e-5 < float(gaps.median()) < 3e-2, "random weights make a few rows turn on a rounding; most do not"


@pytest.mark.parametrize("architecture", ["llama", "gpt-neo", "gptj"])
def test_finished_rows_leave_the_batch(architecture: str, monkeypatch: pytest.MonkeyPatch) -> None:
    policy = tiny_policy(architecture, "lora")
    engine, sizes = engine_of(policy), []
    monkeypatch.setattr(engines, "sample_tokens", Script([[20, 0], [20, 21, 22, 23, 0], [20, 21, 0]]))
    rows = engine._decoder
    right = rows.step
    monkeypatch.setattr(rows, "step", lambda self, tokens: (sizes.append(len(tokens)), right(self, tokens))[1])
    engine.generate(requests_of(policy, (3, 4, 5)), GREEDY)
    assert sizes == [3, 2, 1, 1]


def test_only_architectures_that_pack_use_the_packed_decoder() -> None:
    for architecture in ARCHITECTURES:
        made = engine_of(tiny_policy(architecture, "lora"))._decoder
        assert made is (PackedDecoder if architecture in PACKING else PaddedDecoder)


def test_a_step_that_differs_needs_the_padded_decoder(monkeypatch: pytest.MonkeyPatch) -> None:
    """The check notices an architecture whose steps differ from one forward pass."""
    policy = tiny_policy("llama", "lora")
    right = KVCache.attend
    monkeypatch.setattr(KVCache, "attend", lambda self, *args: right(self, *args) * 1.01)
    why = decoding_failure_reason(policy)
    assert why is not None and "differ" in why
    assert engine_of(policy)._decoder is PaddedDecoder


@each_value(architecture=PACKING, kind=("lora", "soft-prompt"))
@torch.no_grad()
def test_shared_prefixes_are_computed_once(architecture: str, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two levels with a common prefix each and a repeated prompt: fewer tokens, and the logits of padded rows."""
    policy = tiny_policy(architecture, kind)
    generator = torch.Generator().manual_seed(5)
    start = torch.randint(4, 300, (30,), generator=generator).tolist()
    requests = []
    for level, weights in enumerate([(1.0, 0.0), (0.0, 1.0)]):
        for length in (4, 11, 4, 1):
            own = torch.randint(4, 300, (length,), generator=generator).tolist()
            requests.append(Request((*policy.control.slots[level], *start, *own), weights, len(requests)))
        requests.append(requests[-3])
    tokens: list[int] = []
    right = PackedDecoder._forward
    monkeypatch.setattr(
        PackedDecoder,
        "_forward",
        lambda self, ids, *rest, **more: (tokens.append(ids.numel()), right(self, ids, *rest, **more))[1],
    )
    mixed = [requests[row] for row in (9, 0, 5, 1, 6, 2, 7, 3, 8, 4)]
    packed, padded = (kind(policy, mixed, 3) for kind in (PackedDecoder, PaddedDecoder))
    slot = len(policy.control.slots[0])
    for step in range(3):
        if step == 0:
            one, other = packed.prefill(), padded.prefill()
            assert tokens == [2 * (slot + 30 + 4 + 11 + 4 + 1)]
        else:
            chosen = torch.arange(20, 30)
            one, other = packed.step(chosen[packed.order]), padded.step(chosen)
        assert float((one[[packed.order.index(row) for row in range(10)]] - other).abs().max()) < 1e-4


def test_long_prompts_take_several_forward_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    policy = tiny_policy("llama", "soft-prompt")
    requests = requests_of(policy, (60, 50, 40, 30, 20, 10))
    engine = engine_of(policy)
    whole = engine.first_logits(requests)
    monkeypatch.setattr(decoding, "MAX_TOKENS", 64)
    assert len(list(decoding._chunks(requests))) > 3
    assert float((engine.first_logits(requests) - whole).abs().max()) < 1e-4


def test_progress_and_mode(monkeypatch: pytest.MonkeyPatch) -> None:
    policy = tiny_policy("llama", "lora")
    policy.train()
    reporter = RecordingReporter()
    settings = Sampling(max_new_tokens=2)
    done = engine_of(policy).generate(requests_of(policy), settings, batch_size=2, reporter=reporter)
    assert reporter.counts == [2, 2, 1]
    assert policy.training
    assert all(one.num_tokens <= 2 for one in done)
    assert engine_of(policy).generate([], settings) == []
