"""The sampler: rows are the same in a batch as alone, and end where they should."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from random import Random
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders
from tokenizers.models import BPE
from transformers import PreTrainedTokenizerFast

from combinations import each_value
from meetlm.data.prompt_format import FormatSpec, PromptFormat
from meetlm.generation import decoding
from meetlm.generation import session as sessions
from meetlm.generation.decoding import Branch, PackedDecoder, PaddedDecoder, decoder_of, decoding_failure_reason
from meetlm.generation.session import (
    Event,
    GeneratedText,
    Request,
    Session,
    TextStream,
    guided,
)
from meetlm.generation.settings import Sampling
from meetlm.generation.text import ends_in_stop
from meetlm.policy.kv_cache import KVCache
from meetlm.policy.policy import Policy
from reporters import RecordingReporter
from tiny import (
    ARCHITECTURES,
    LEVELLED_KINDS,
    PACKING_ARCHITECTURES,
    first_logits,
    text_format,
    tiny_lm,
    tiny_policy,
    tiny_tokenizer,
)

GREEDY = Sampling(max_new_tokens=12)
LENGTHS = (3, 17, 9, 1, 12)


def branches_of(policy: Policy, lengths: Sequence[int] = LENGTHS, mixed: bool = True) -> list[Branch]:
    """Return random prompts of different levels, the last at a mix of levels if the control supports it."""
    generator = torch.Generator().manual_seed(11)
    branches = []
    for stream, length in enumerate(lengths):
        level = stream % 2
        weights = (1.0, 0.0) if level == 0 else (0.0, 1.0)
        if mixed and stream == len(lengths) - 1 and policy.control.weights_failure_reason((-0.5, 1.5)) is None:
            weights = (-0.5, 1.5)
        ids = torch.randint(4, 300, (length,), generator=generator).tolist()
        branches.append(Branch((*policy.control.slots[level], *ids), weights))
    return branches


def requests_of(
    policy: Policy, lengths: Sequence[int] = LENGTHS, sampling: Sampling = GREEDY, seed: int = 0, mixed: bool = True
) -> list[Request]:
    """Return a request for each branch of :func:`branches_of`."""
    branches = branches_of(policy, lengths, mixed)
    return [Request((branch,), sampling, seed, stream) for stream, branch in enumerate(branches)]


def session_of(policy: Policy, *stop: str, batch_size: int = 32) -> Session:
    return Session(policy, PromptFormat(tiny_tokenizer(), FormatSpec(None, "auto", stop)), batch_size)


@each_value(architecture=ARCHITECTURES, kind=LEVELLED_KINDS)
def test_logits_in_a_batch_equal_those_alone(architecture: str, kind: str) -> None:
    policy = tiny_policy(architecture, kind)
    branches = branches_of(policy)
    together = first_logits(policy, branches)
    alone = torch.cat([first_logits(policy, [branch]) for branch in branches])
    assert float((together - alone).abs().max()) < 1e-4
    assert float((together[0] - together[1]).abs().max()) > 0.1


@each_value(architecture=ARCHITECTURES, kind=("lora", "soft-prompt"), temperature=(0.0, 1.0))
def test_completions_in_a_batch_equal_those_alone(architecture: str, kind: str, temperature: float) -> None:
    """In float64 no two tokens are within rounding of each other."""
    policy = tiny_policy(architecture, kind)
    settings = Sampling(max_new_tokens=8, temperature=temperature, top_p=0.9)
    requests = requests_of(policy, sampling=settings, seed=3)
    session = session_of(policy)
    alone = [session.complete([request])[0] for request in requests]
    assert session_of(policy, batch_size=2).complete(requests) == alone
    assert session.complete(requests[::-1])[::-1] == alone


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_greedy_decoding_equals_that_of_transformers(architecture: str) -> None:
    """The same model without a control, in f32: equal up to the first tie within 1e-4."""
    policy = tiny_policy(architecture, "lora", move=0.0, dtype=torch.float32)
    lm = tiny_lm(architecture, dtype=torch.float32)
    for request in requests_of(policy)[:2]:
        (completion,) = session_of(policy).complete([request])
        ids = torch.tensor([request.branches[0].ids])
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
        for step, (first, second) in enumerate(zip(completion.ids, expected, strict=True)):
            top = theirs.logits[step][0].topk(2).values
            if float(top[0] - top[1]) < 1e-4:
                break
            assert first == second, step
        assert step > 0 or expected == [0]


def test_sampling_depends_on_the_seed_and_the_stream() -> None:
    policy = tiny_policy("llama", "lora")
    session, (branch, *_) = session_of(policy), branches_of(policy)
    settings = Sampling(max_new_tokens=8, temperature=1.0)
    requests = [Request((branch,), settings, seed, stream) for seed, stream in ((0, 0), (1, 0), (0, 7), (0, 0))]
    texts = [completion.text for completion in session.complete(requests)]
    assert len(set(texts[:3])) == 3
    assert texts[3] == texts[0]


class Script:
    """Replaces ``sample_tokens``: returns the tokens written for each row, by its random stream."""

    def __init__(self, scripts: list[list[int]], seed: int = 0) -> None:
        self.scripts = {sessions.row_generator(seed, row).initial_seed(): list(s) for row, s in enumerate(scripts)}
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
    monkeypatch.setattr(sessions, "sample_tokens", script)
    sampling = Sampling(max_new_tokens=max_new_tokens)
    requests = [Request((Branch((5, 6 + row), (1.0, 0.0)),), sampling, stream=row) for row in range(len(texts))]
    return session_of(policy, *stop).complete(requests), script


def test_completions_end_with_eos_stop_or_length(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [
        " yes <|endoftext|>rice",
        " no \n\nHuman: rice",
        " It is kind of good to boil rice and water, today and then",
    ]
    completions, script = scripted(texts, monkeypatch, "\n\nHuman:", max_new_tokens=14)
    assert [completion.finish for completion in completions] == ["eos", "stop", "length"]
    assert completions[0].text == "yes"
    assert completions[1].text == "no"
    tokens = text_format().tokenize(texts[2])
    assert completions[2].text == text_format().decode(tokens[:14]).strip()
    assert completions[2].num_tokens == 14
    assert completions[0].num_tokens == len(text_format().tokenize(" yes ")) + 1
    assert script.sizes[0] == 3
    assert script.sizes[-1] == 1  # rows that ended have left
    assert len(script.sizes) == 14


@pytest.mark.parametrize("text", ["a\n\nHuman: b", "a\n\nHuman:", "é à\n\nHuman:x", "\n\nHuman: b", "日本\n\nHuman: c"])
def test_stop_strings_across_tokens(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (completion,), script = scripted([text + " and more than that"], monkeypatch, "\n\nHuman:", "STOP")
    assert completion.text == text.split("\n\nHuman:")[0].strip()
    assert completion.finish == "stop"
    closing = text.index("\n\nHuman:") + len("\n\nHuman:")
    assert completion.num_tokens <= len(text_format().tokenize(text[:closing])) + 1


def test_the_first_stop_string_cuts(monkeypatch: pytest.MonkeyPatch) -> None:
    (completion,), _ = scripted([" good\nB: A: x"], monkeypatch, "A:", "\nB:")
    assert completion.text == "good"


def test_a_stop_string_of_many_tokens_per_character_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    stop = "日本語で"
    assert len(text_format().tokenize(stop)) > 2 * len(stop)
    (done,), _ = scripted([f"yes{stop} and more than that"], monkeypatch, stop)
    assert (done.text, done.finish) == ("yes", "stop")


def test_a_stop_string_inside_a_token_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    assert len(text_format().tokenize(" good")) == 1
    (completion,), _ = scripted([" a good way"], monkeypatch, "oo")
    assert (completion.text, completion.finish, completion.num_tokens) == ("a g", "stop", 2)


def test_eos_of_the_generation_config(monkeypatch: pytest.MonkeyPatch) -> None:
    policy = tiny_policy("llama", "lora")
    policy.lm.generation_config.eos_token_id = [7, 9]
    monkeypatch.setattr(sessions, "sample_tokens", Script([[20, 9, 21], [0]]))
    requests = [Request((Branch((5,), (1.0, 0.0)),), GREEDY, stream=row) for row in range(2)]
    completions = session_of(policy).complete(requests)
    assert [(completion.finish, completion.num_tokens) for completion in completions] == [("eos", 2), ("eos", 1)]
    assert [completion.text for completion in completions] == [
        text_format().decode([20]).strip(),
        "",
    ]  # 9 is an ordinary token


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_finished_rows_do_not_change_the_others(architecture: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Most rows end early; the last one has the same logits as alone."""
    policy = tiny_policy(architecture, "lora")
    requests = requests_of(policy, sampling=Sampling(max_new_tokens=15))
    seen: dict[int, list[torch.Tensor]] = {len(requests): [], 1: []}
    scripts = [[20] * 15, [20, 0], [20, 21, 22, 0], [0], [30, 0]]
    for rows in (requests, requests[:1]):
        script = Script(scripts)

        def sample_tokens(logits: torch.Tensor, *rest: Any, rows: Any = rows, script: Any = script) -> torch.Tensor:
            generators = rest[1]
            first = [g.initial_seed() for g in generators].index(sessions.row_generator(0, 0).initial_seed())
            seen[len(rows)].append(logits[first])
            return script(logits, *rest)

        monkeypatch.setattr(sessions, "sample_tokens", sample_tokens)
        session_of(policy).complete(rows)
    together, alone = (torch.stack(seen[n]) for n in (len(requests), 1))
    assert together.shape == alone.shape == (15, policy.lm.config.vocab_size)
    assert float((together - alone).abs().max()) < 1e-4


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_cached_steps_equal_one_forward_pass(architecture: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The logits of each step equal those of training at that position."""
    policy = tiny_policy(architecture, "soft-prompt")
    (request,) = requests_of(policy, [6], Sampling(max_new_tokens=10), mixed=False)
    script, seen = Script([[20, 21, 22, 23, 24, 25, 26, 27, 28, 29]]), []

    def record(logits: torch.Tensor, *rest: Any) -> torch.Tensor:
        seen.append(logits[0])
        return script(logits, *rest)

    monkeypatch.setattr(
        sessions, "sample_tokens", lambda logits, *rest: (seen.append(logits[0]), script(logits, *rest))[1]
    )
    session_of(policy).complete([request])
    (branch,) = request.branches
    ids = torch.tensor([[*branch.ids, *range(20, 29)]])
    weights = torch.tensor([[branch.weights]])
    with torch.no_grad():
        embedded = policy.control.embed(ids, weights, policy.lm.get_input_embeddings())
        whole = policy.lm(inputs_embeds=embedded, use_cache=False).logits[0, len(branch.ids) - 1 :]
    assert float((torch.stack(seen) - whole).abs().max()) < 1e-4


@each_value(architecture=PACKING_ARCHITECTURES, kind=("lora", "soft-prompt"))
def test_mixed_precision_is_near_f32(architecture: str, kind: str) -> None:
    """On CUDA generation runs under autocast, with keys in bf16; here under autocast of the CPU."""
    policy = tiny_policy(architecture, kind, dtype=torch.float32)
    assert isinstance(decoder_of(policy), PackedDecoder)

    @torch.no_grad()
    def logits() -> torch.Tensor:
        decoder, branches = PackedDecoder(policy), dict(enumerate(branches_of(policy)))
        first = decoder.add(branches, dict.fromkeys(branches, 3))
        rows = decoder.rows
        steps = [decoder.step(torch.full([len(rows)], token)) for token in (20, 21)]
        assert decoder.rows == rows
        return torch.stack([first[rows], *steps])

    policy.eval()
    exact = logits()
    with torch.autocast("cpu", torch.bfloat16):
        half = logits()
    gaps = (half - exact).abs().amax(dim=-1) / exact.abs().max()
    assert 1e-5 < float(gaps.median()) < 3e-2, "random weights make a few rows turn on a rounding; most do not"


@pytest.mark.parametrize("architecture", ["llama", "gpt-neo", "gptj"])
def test_finished_rows_leave_the_batch(architecture: str, monkeypatch: pytest.MonkeyPatch) -> None:
    policy = tiny_policy(architecture, "lora")
    monkeypatch.setattr(sessions, "sample_tokens", Script([[20, 0], [20, 21, 22, 23, 0], [20, 21, 0]]))
    decoder, sizes = type(decoder_of(policy)), []
    original = decoder.step
    monkeypatch.setattr(decoder, "step", lambda self, tokens: (sizes.append(len(tokens)), original(self, tokens))[1])
    session_of(policy).complete(requests_of(policy, (3, 4, 5)))
    assert sizes == [3, 2, 1, 1]


def test_only_architectures_that_pack_use_the_packed_decoder() -> None:
    for architecture in ARCHITECTURES:
        decoder = decoder_of(tiny_policy(architecture, "lora"))
        assert isinstance(decoder, PackedDecoder if architecture in PACKING_ARCHITECTURES else PaddedDecoder)


def test_a_step_that_differs_needs_the_padded_decoder(monkeypatch: pytest.MonkeyPatch) -> None:
    """The check notices an architecture whose steps differ from one forward pass."""
    policy = tiny_policy("llama", "lora")
    original = KVCache.attend
    monkeypatch.setattr(KVCache, "attend", lambda self, *args: original(self, *args) * 1.01)
    reason = decoding_failure_reason(policy)
    assert reason is not None and "differ" in reason
    assert isinstance(decoder_of(policy), PaddedDecoder)


@each_value(architecture=PACKING_ARCHITECTURES, kind=("lora", "soft-prompt"))
@torch.no_grad()
def test_shared_prefixes_are_computed_once(architecture: str, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two levels with a common prefix each and a repeated prompt: fewer tokens, and the logits of padded rows."""
    policy = tiny_policy(architecture, kind)
    generator = torch.Generator().manual_seed(5)
    start = torch.randint(4, 300, (30,), generator=generator).tolist()
    branches = []
    for level, weights in enumerate([(1.0, 0.0), (0.0, 1.0)]):
        for length in (4, 11, 4, 1):
            rest = torch.randint(4, 300, (length,), generator=generator).tolist()
            branches.append(Branch((*policy.control.slots[level], *start, *rest), weights))
        branches.append(branches[-3])
    counts = count_tokens(monkeypatch)
    mixed = {row: branches[row] for row in (9, 0, 5, 1, 6, 2, 7, 3, 8, 4)}
    packed, padded = PackedDecoder(policy), PaddedDecoder(policy)
    limits = dict.fromkeys(mixed, 3)
    logits = packed.add(mixed, limits)
    assert counts == [2 * (len(policy.control.slots[0]) + 30 + 4 + 11 + 4 + 1)]
    assert float((logits - padded.add(mixed, limits)).abs().max()) < 1e-4
    for _ in range(2):
        tokens = torch.arange(20, 30)
        by_row = dict(zip(padded.rows, padded.step(tokens[padded.rows]), strict=True))
        expected = torch.stack([by_row[row] for row in packed.rows])
        assert float((packed.step(tokens[packed.rows]) - expected).abs().max()) < 1e-4


def count_tokens(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return a list that each forward pass of a policy adds its number of tokens to."""
    counts: list[int] = []
    original = Policy.run
    monkeypatch.setattr(
        Policy,
        "run",
        lambda self, ids, *rest, **more: (counts.append(ids.numel()), original(self, ids, *rest, **more))[1],
    )
    return counts


def test_long_prompts_take_several_forward_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    policy = tiny_policy("llama", "soft-prompt")
    branches = branches_of(policy, (60, 50, 40, 30, 20, 10))
    whole = first_logits(policy, branches)
    monkeypatch.setattr(decoding, "MAX_TOKENS", 64)
    assert len(list(decoding._chunks(dict(enumerate(branches)), policy))) > 3
    assert float((first_logits(policy, branches) - whole).abs().max()) < 1e-4


def test_progress_and_mode() -> None:
    policy = tiny_policy("llama", "lora")
    policy.train()
    reporter = RecordingReporter()
    requests = requests_of(policy, sampling=Sampling(max_new_tokens=2))
    completions = session_of(policy, batch_size=2).complete(requests, reporter=reporter)
    assert reporter.counts == [1] * 5
    assert policy.training
    assert all(completion.num_tokens <= 2 for completion in completions)
    assert session_of(policy).complete([]) == []


def run(session: Session, arrivals: dict[int, list[Request]], cancelled: dict[int, int]) -> dict[int, GeneratedText]:
    """Return the completions by request id of a session in which requests come and go at the steps named."""
    completions: dict[int, GeneratedText] = {}
    for step in range(200):
        for request in arrivals.pop(step, []):
            session.add(request)
        if step in cancelled:
            session.cancel(cancelled[step])
        events = session.step()
        if not events and not arrivals:
            return completions
        completions |= {event.request: event.completion for event in events if event.completion is not None}
    raise AssertionError("the session does not end")


@each_value(architecture=ARCHITECTURES, kind=("lora", "soft-prompt"), batch_size=(3, 32))
def test_requests_join_and_leave_at_any_step(architecture: str, kind: str, batch_size: int) -> None:
    """Completions and log-probs are those of each request alone, whatever joins, leaves or is cancelled beside it."""
    policy = tiny_policy(architecture, kind)
    branches = branches_of(policy, (3, 17, 9, 1, 12, 40, 2))
    requests = [
        Request((branch,), Sampling(max_new_tokens=4 + 5 * row, temperature=0.7 * (row % 2)), 3, row, logprobs=True)
        for row, branch in enumerate(branches)
    ]
    alone = [session_of(policy).complete([request])[0] for request in requests]
    arrivals = {0: requests[:3], 2: requests[3:4], 9: requests[4:6], 30: requests[6:]}
    together = run(session_of(policy, batch_size=batch_size), arrivals, {12: 2})
    assert together.keys() | {2} == set(range(7))
    for number, completion in together.items():
        assert completion.ids == alone[number].ids
        assert completion.text == alone[number].text
        assert completion.logprobs == pytest.approx(alone[number].logprobs, abs=1e-4)


@each_value(architecture=ARCHITECTURES, kind=LEVELLED_KINDS)
def test_guidance_adds_logits(architecture: str, kind: str) -> None:
    """ℓ + s·(ℓ − ℓ_against), beside plain requests; strength 0 is the plain level exactly."""
    policy = tiny_policy(architecture, kind)
    good, bad = (Branch((*policy.control.slots[k], 20, 21, 22), (1.0 - k, float(k))) for k in (1, 0))
    plain = Request((good,), GREEDY, logprobs=True)
    none = Request(guided(good, bad, 0.0), GREEDY, logprobs=True)
    strong = Request(guided(good, bad, 1.5), GREEDY, logprobs=True)
    session = session_of(policy)
    alone = session.complete([plain])
    assert session.complete([none]) == alone
    together = session.complete([plain, strong, none])
    assert together[0].ids == together[2].ids == alone[0].ids
    assert together[1].logprobs != together[0].logprobs
    ids = torch.tensor(together[1].ids)
    logits = []
    for branch in (good, bad):
        whole = torch.tensor([[*branch.ids, *ids[:-1]]])
        weights = torch.tensor(branch.weights, dtype=torch.float64).expand(*whole.shape, -1)
        with torch.no_grad():
            logits.append(policy.run(whole, weights, torch.arange(whole.shape[1])[None])[0, len(branch.ids) - 1 :])
    expected = (logits[0] + 1.5 * (logits[0] - logits[1])).log_softmax(dim=1).gather(1, ids[:, None])[:, 0]
    assert together[1].logprobs == pytest.approx(expected.tolist(), abs=1e-4)


def test_a_stream_of_text_is_the_completion(monkeypatch: pytest.MonkeyPatch) -> None:
    policy = tiny_policy("llama", "lora")
    texts = [" It is good\n\nHuman: x", " é 日本 rice <|endoftext|>"]
    ids = [text_format().tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
    monkeypatch.setattr(sessions, "sample_tokens", Script(ids))
    session = session_of(policy, "\n\nHuman:")
    numbers = [
        session.add(Request((Branch((5, 6), (1.0, 0.0)),), Sampling(), stream=row, stop=("rice",))) for row in (0, 1)
    ]
    streams = {number: TextStream(session.format, ("rice",)) for number in numbers}
    pieces: dict[int, str] = dict.fromkeys(numbers, "")
    while events := session.step():
        for event in events:
            pieces[event.request] += streams[event.request].add(event)
    assert list(pieces.values()) == ["It is good", "é 日本"]


def byte_fallback_tokenizer() -> PreTrainedTokenizerFast:
    """Return a tokenizer as of Llama 2 and Gemma: white space opens tokens, and unknown characters become bytes."""
    words = ["▁", "a", "▁a", "bc", "▁bc", "é", "▁日本", ".", "\n"]
    vocabulary = ["<unk>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *words]
    backend = Tokenizer(BPE({word: k for k, word in enumerate(vocabulary)}, [], unk_token="<unk>", byte_fallback=True))
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>", unk_token="<unk>")


@pytest.mark.parametrize("tokenizer", [tiny_tokenizer(), tiny_tokenizer(bos=True), byte_fallback_tokenizer()])
def test_pieces_of_random_tokens_are_the_text(tokenizer: PreTrainedTokenizerFast) -> None:
    """Parts of characters, special tokens, white space and invalid bytes among them."""
    prompt_format = PromptFormat(tokenizer, FormatSpec(None, "auto", ("é", "\n\nab")))
    characters = [
        tokenizer(text, add_special_tokens=False)["input_ids"] for text in ("日", "é", "😀", "  ", "a", "\n\n")
    ]
    for seed in range(200):
        random = Random(seed)
        ids = []
        while len(ids) < 30:
            ids += random.choice([*characters, [random.randrange(len(tokenizer))]])
        text = prompt_format.decode(ids)
        cut = next((n for n in range(1, 31) if ends_in_stop(prompt_format, ids[:n], prompt_format.spec.stop)), 30)
        text = prompt_format.decode(ids[:cut])
        for stop in prompt_format.spec.stop:
            text = text.split(stop)[0]
        completion = GeneratedText(text.strip(), tuple(ids[:cut]), "stop")
        stream = TextStream(prompt_format)
        pieces = [stream.add(Event(0, token, None, None)) for token in ids[: cut - 1]]
        assert "".join([*pieces, stream.add(Event(0, ids[cut - 1], None, completion))]) == completion.text


def test_each_token_is_decoded_a_few_times(monkeypatch: pytest.MonkeyPatch) -> None:
    """The work per token does not grow with the text."""
    prompt_format = PromptFormat(tiny_tokenizer(), FormatSpec(None, "auto", ("\n\nHuman:",)))
    decode, counts = PromptFormat.decode, []
    monkeypatch.setattr(PromptFormat, "decode", lambda self, ids: counts.append(len(ids)) or decode(self, ids))
    ids = prompt_format.tokenize(" It is kind of good to boil 日本 rice" * 20)
    stream = TextStream(prompt_format)
    text = "".join(stream.add(Event(0, token, None, None)) for token in ids)
    assert len(text) > len("It is kind of good to boil 日本 rice") * 20 and max(counts) < 12


def test_only_the_start_of_a_stop_string_is_held_back() -> None:
    prompt_format = PromptFormat(tiny_tokenizer(), FormatSpec(None, "auto", ("\n\nHuman:",)))
    stream = TextStream(prompt_format)
    pieces = [stream.add(Event(0, token, None, None)) for token in prompt_format.tokenize("yes\n\nHum and\n\nHuman")]
    assert "".join(pieces) == "yes\n\nHum and"
    assert "".join(pieces[: len(prompt_format.tokenize("yes"))]) == "yes"


def test_nan_of_a_request_does_not_spread() -> None:
    """Its keys and values are in the padding of the row that takes its place in the cache."""
    policy = tiny_policy("llama", "lora", dtype=torch.float32)
    first, broken, second = requests_of(policy, (20, 18, 21))
    alone = [session_of(policy).complete([request])[0].ids for request in (first, second)]
    branch = replace(broken.branches[0], weights=(1e38, 1e38))
    broken = Request((branch,), Sampling(max_new_tokens=3), logprobs=True)
    together = run(session_of(policy), {0: [first, broken], 5: [second]}, {})
    assert not math.isfinite(sum(together[1].logprobs or ()))
    assert [together[0].ids, together[2].ids] == alone
