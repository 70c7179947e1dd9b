"""The server: what it answers is what the run generates offline, for any level, in one batch."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest

import meetlm
from meetlm.generation.session import Request, Session
from meetlm.generation.settings import Sampling
from meetlm.run.aligned import Aligned
from meetlm.run.levels import Guidance
from run_folders import config_for, finished
from server import metric, serving, wait_until_idle
from tiny import CHATML

PROMPTS = ["What is rice?", "How is water?", "Is it good?"]
LEVELS: list[Any] = ["good", "bad", {"good": 1.5, "bad": -0.5}, 0.3]


@pytest.fixture(scope="module")
def aligned(tmp_path_factory: pytest.TempPathFactory) -> Aligned:
    folder = tmp_path_factory.mktemp("chat")
    return meetlm.load(
        meetlm.train(config_for(folder, "qwen2", "lora", chat=True, template=CHATML), out=folder / "run")
    )


@pytest.fixture(scope="module")
def address(aligned: Aligned) -> Iterator[str]:
    with serving(aligned) as address:
        yield address


@pytest.fixture
def client(address: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0) as client:
        yield client


def user(text: str) -> list[Any]:
    return [{"role": "user", "content": text}]


def test_levels_mixes_and_guidance(aligned: Aligned, client: openai.OpenAI) -> None:
    """By model name and by field; the text is that of ``generate``."""

    def reply(model: str, **body: Any) -> str:
        completion = client.chat.completions.create(
            model=model, messages=user("Hi"), temperature=0, max_tokens=8, extra_body=body
        )
        assert completion.usage is not None and completion.usage.completion_tokens <= 8
        return completion.choices[0].message.content or ""

    def expected(level: Any, **options: Any) -> str:
        return aligned.generate(["Hi"], level, max_new_tokens=8, **options)[0]

    assert reply("tiny") == reply("tiny:good") == reply("tiny", level="good") == reply("tiny:1") == expected("good")
    assert reply("tiny:good=1.5,bad=-0.5") == reply("tiny", level={"good": 1.5, "bad": -0.5}) == expected(1.5)
    assert reply("tiny:bad", guidance=2.0, against="good") == expected("bad", guidance=2.0, against="good")
    assert reply("tiny", level=0.25, guidance=-1) == expected(0.25, guidance=-1.0)
    assert len({reply("tiny:good"), reply("tiny:bad"), expected("bad", guidance=2.0, against="good")}) == 3


def test_concurrent_streams_equal_offline_generation(aligned: Aligned, address: str) -> None:
    """The asynchronous client; levels and guidance differ, lengths too, and all are in one batch."""
    cases = [
        (PROMPTS[number % 3], LEVELS[number % 4], 0.5 * (number % 2), 4 + 3 * (number % 5)) for number in range(24)
    ]

    async def stream(client: openai.AsyncOpenAI, case: tuple[str, Any, float, int]) -> str:
        prompt, level, guidance, max_tokens = case
        body: dict[str, Any] = {"level": level} | ({"guidance": guidance, "against": 0.5} if guidance else {})
        chunks = await client.chat.completions.create(
            model="tiny", messages=user(prompt), temperature=0, max_tokens=max_tokens, stream=True, extra_body=body
        )
        return "".join([chunk.choices[0].delta.content or "" async for chunk in chunks if chunk.choices])

    async def stream_all() -> list[str]:
        async with openai.AsyncOpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0) as client:
            return await asyncio.gather(*(stream(client, case) for case in cases))

    steps = metric(address, "meet_step_seconds_count")
    texts = asyncio.run(stream_all())
    assert metric(address, "meet_step_seconds_count") - steps < 60, "requests share the steps"
    for (prompt, level, guidance, max_tokens), text in zip(cases, texts, strict=True):
        options: dict[str, Any] = {"guidance": guidance, "against": 0.5} if guidance else {}
        assert text == aligned.generate([prompt], level, max_new_tokens=max_tokens, **options)[0]
    wait_until_idle(address)


def test_samples_have_streams_of_a_seed(aligned: Aligned, client: openai.OpenAI) -> None:
    completion = client.completions.create(
        model="tiny:bad", prompt=["Hi", "Ho"], n=2, seed=5, temperature=0.8, top_p=0.9, max_tokens=6
    )
    expected = aligned.generate(["Hi", "Hi", "Ho", "Ho"], "bad", seed=5, temperature=0.8, top_p=0.9, max_new_tokens=6)
    assert [choice.text for choice in completion.choices] == expected
    assert [choice.index for choice in completion.choices] == [0, 1, 2, 3]
    other = client.completions.create(model="tiny:bad", prompt="Hi", n=8, max_tokens=6)
    assert len({choice.text for choice in other.choices}) > 1
    texts = dict.fromkeys(range(2), "")
    for chunk in client.completions.create(
        model="tiny:bad", prompt="Hi", n=2, seed=5, temperature=0.8, top_p=0.9, max_tokens=6, stream=True
    ):
        texts[chunk.choices[0].index] += chunk.choices[0].text
    assert list(texts.values()) == expected[:2]


@pytest.mark.parametrize("stream", [False, True])
def test_log_probs_and_usage(aligned: Aligned, client: openai.OpenAI, stream: bool) -> None:
    request = Request(aligned.branches("Hi", "good", Guidance()), Sampling(max_new_tokens=6), logprobs=True)
    (expected,) = Session(aligned.policy, aligned.format).complete([request])
    options: dict[str, Any] = {"stream": True, "stream_options": {"include_usage": True}} if stream else {}
    response: Any = client.chat.completions.create(
        model="tiny", messages=user("Hi"), temperature=0, max_tokens=6, logprobs=True, top_logprobs=3, **options
    )
    chunks = list(response) if stream else [response]
    tokens = [
        token for chunk in chunks for choice in chunk.choices if choice.logprobs for token in choice.logprobs.content
    ]
    assert expected.logprobs is not None and expected.finish == "length"
    assert [token.logprob for token in tokens] == pytest.approx(expected.logprobs, abs=1e-4)
    assert "".join(token.token for token in tokens).strip() == expected.text
    for token in tokens:
        assert [top.token for top in token.top_logprobs][0] == token.token and len(token.top_logprobs) == 3
        assert token.bytes is None or bytes(token.bytes).decode() == token.token
    usage = chunks[-1].usage
    assert (usage.prompt_tokens, usage.completion_tokens) == (request.length, expected.num_tokens)
    assert [choice.finish_reason for chunk in chunks for choice in chunk.choices][-1] == "length"
    text: Any = client.completions.create(model="tiny", prompt="Hi", temperature=0, max_tokens=6, logprobs=1)
    assert text.choices[0].logprobs.token_logprobs == pytest.approx(expected.logprobs, abs=1e-4)


@pytest.mark.parametrize("stream", [False, True])
def test_stop_strings(aligned: Aligned, client: openai.OpenAI, stream: bool) -> None:
    (text,) = aligned.generate(["Hi"], max_new_tokens=24)
    stop = text[4:7]
    response: Any = client.completions.create(
        model="tiny", prompt="Hi", temperature=0, max_tokens=24, stop=[stop, "never"], stream=stream
    )
    choices = [choice for chunk in (response if stream else [response]) for choice in chunk.choices]
    assert "".join(choice.text for choice in choices) == text.split(stop)[0].strip()
    assert choices[-1].finish_reason == "stop"


def test_conversations_of_a_run_of_transcripts(tmp_path: Path) -> None:
    """HH's marks are written around the messages."""
    aligned = meetlm.load(finished(tmp_path, "llama", "soft-prompt"))
    with serving(aligned) as address:
        turns = [*user("Hi"), {"role": "assistant", "content": "Ho"}, *user("What is rice?")]
        body = {"model": "tiny:0.5", "messages": turns, "temperature": 0, "max_tokens": 5}
        response = httpx2.post(f"{address}/v1/chat/completions", json=body).json()
    transcript = "\n\nHuman: Hi\n\nAssistant: Ho\n\nHuman: What is rice?\n\nAssistant:"
    assert response["choices"][0]["message"]["content"] == aligned.generate([transcript], 0.5, max_new_tokens=5)[0]


def test_models_health_and_metrics(client: openai.OpenAI, address: str) -> None:
    names = [model.id for model in client.models.list()]
    assert names == ["tiny", "tiny:bad", "tiny:good"]
    assert client.models.retrieve("tiny:bad").id == "tiny:bad"
    with pytest.raises(openai.NotFoundError, match="unknown model 'tiny:ugly'"):
        client.models.retrieve("tiny:ugly")
    assert httpx2.get(f"{address}/health").json() == {"status": "ok"}
    assert metric(address, "meet_generated_tokens_total") > 0
