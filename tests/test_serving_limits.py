"""Requests that the server refuses, in OpenAI's format and never with 5xx, and cleanup after a disconnected client."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator
from typing import Any

import httpx2
import openai
import pytest

import meetlm
from meetlm.config.errors import ConfigError
from meetlm.run.aligned import Aligned
from meetlm.serving.server import listen
from run_folders import finished
from server import metric, serving, wait_until_idle

KEY = "MEETLM_TEST_KEY"
CHAT: dict[str, Any] = {"model": "tiny", "messages": [{"role": "user", "content": "Hi"}]}
TEXT: dict[str, Any] = {"model": "tiny", "prompt": "Hi", "temperature": 0}


@pytest.fixture(scope="module")
def aligned(tmp_path_factory: pytest.TempPathFactory) -> Aligned:
    """A run whose greedy replies never end with EOS."""
    aligned = meetlm.load(finished(tmp_path_factory.mktemp("text"), "llama", "lora", source="pairs"))
    aligned.meet.dial[""] = {"low": -0.5, "high": 1.5, "recommended": 1.2}
    generation_config = aligned.policy.lm.generation_config
    assert generation_config is not None
    generation_config.eos_token_id = None
    aligned.tokenizer.eos_token = "<s>"
    head = aligned.policy.lm.get_output_embeddings()  # type: ignore[no-untyped-call]
    head.weight.data[[0, 1]] = 0
    return aligned


@pytest.fixture(scope="module")
def address(aligned: Aligned) -> Iterator[str]:
    with serving(aligned, max_body=20_000) as address:
        yield address


def is_openai_error(response: httpx2.Response) -> bool:
    return response.json()["error"].keys() == {"message", "type", "param", "code"}


@pytest.mark.parametrize(
    ("path", "body", "status", "param", "message"),
    [
        ("chat/completions", {**CHAT, "model": "tony"}, 404, "model", "unknown model 'tony'; did you mean 'tiny'?"),
        ("chat/completions", {**CHAT, "model": "tiny:godo"}, 400, None, "level 'godo' is unknown; did you mean"),
        ("chat/completions", {**CHAT, "model": "tiny:good", "level": "bad"}, 400, "level", "states the level already"),
        ("chat/completions", {**CHAT, "model": "tiny:a=b=,"}, 400, "model", "model 'a=b=,': expected a name"),
        ("chat/completions", {**CHAT, "model": "tiny:1e9"}, 400, "model", "expected numbers from -100 to 100"),
        ("chat/completions", {**CHAT, "level": {"good": 1e9}}, 400, "level", "expected numbers from -100 to 100"),
        ("chat/completions", {**CHAT, "level": [1]}, 400, "level", "expected"),
        ("chat/completions", {**CHAT, "against": "bad"}, 400, None, "against requires guidance"),
        ("chat/completions", {**CHAT, "temperatur": 1}, 400, "temperatur", "did you mean 'temperature'?"),
        ("chat/completions", {**CHAT, "temperature": "1"}, 400, "temperature", "expected a number, got '1'"),
        ("chat/completions", {**CHAT, "temperature": 1e-9}, 400, "temperature", "expected 0, or 1e-06 or more"),
        ("chat/completions", {**CHAT, "presence_penalty": 1}, 400, "presence_penalty", "expected 0 or less"),
        ("chat/completions", {**CHAT, "top_logprobs": 1}, 400, None, "top_logprobs requires logprobs"),
        ("chat/completions", {**CHAT, "max_tokens": 65}, 400, "max_tokens", "65; the server allows 64"),
        ("chat/completions", {**CHAT, "n": 9}, 400, "n", "9 completions; the server allows 8"),
        ("chat/completions", {**CHAT, "messages": []}, 400, "messages", "expected 1 or more entries"),
        ("chat/completions", {**CHAT, "messages": [{"role": "tool"}]}, 400, "messages.0.role", "expected"),
        ("chat/completions", {**CHAT, "messages": CHAT["messages"] * 2}, 400, "messages", "send one message"),
        ("completions", {**TEXT, "prompt": ["a"] * 9}, 400, "n", "9 completions"),
        ("completions", {**TEXT, "prompt": ""}, 400, "prompt", "expected 1 or more"),
        ("completions", {**TEXT, "prompt": "rice " * 2000}, 400, "prompt", "the model has 1024 positions"),
        ("completions", {**TEXT, "prompt": "x" * 20_000}, 413, None, "the body is too large"),
        ("completions", {**TEXT, "stop": ["", "x"]}, 400, "stop.0", "expected 1 or more"),
        ("completions", {**TEXT, "\udfff": 1}, 400, "\\udfff", "unknown key"),
        ("completions", {**TEXT, "prompt": "\ud800"}, 400, None, "half of a surrogate pair"),
        ("completions", {**TEXT, "level": {"\ud800": 1}}, 400, None, "is unknown"),
        ("completions", [TEXT], 400, None, "expected a JSON object"),
        ("nothing", TEXT, 404, None, "no such path"),
    ],
)  # fmt: skip
def test_refused_requests(address: str, path: str, body: Any, status: int, param: str | None, message: str) -> None:
    content = json.dumps(body).encode()
    response = httpx2.post(f"{address}/v1/{path}", content=content, headers={"Content-Type": "application/json"})
    assert (response.status_code, is_openai_error(response)) == (status, True), response.text
    assert message in response.json()["error"]["message"]
    assert param is None or response.json()["error"]["param"] == param


@pytest.mark.parametrize(
    ("content", "status"),
    [
        (b'{"model": "tiny"', 400),
        (b'{"model": "\xff"}', 400),
        (b"[" * 10_000, 400),
        (b"", 400),
        (b'{"n": ' + b"9" * 5000 + b"}", 400),
        (b'{"model": "tiny", "prompt": "Hi", "temperature": NaN}', 400),
        (b"x" * 30_000, 413),
        (iter([b"x" * 15_000, b"x" * 15_000]), 413),
    ],
)
def test_broken_bodies(address: str, content: Any, status: int) -> None:
    headers = {"Content-Type": "application/json"}
    response = httpx2.post(f"{address}/v1/completions", content=content, headers=headers)
    assert (response.status_code, is_openai_error(response)) == (status, True), response.text
    response = httpx2.post(
        f"{address}/v1/completions", content=json.dumps(TEXT), headers={"Content-Type": "text/plain"}
    )
    assert response.status_code == 400 and "Content-Type: application/json" in response.text


def test_hosts_and_origins(aligned: Aligned, address: str) -> None:
    def status(url: str, method: str = "GET", **headers: str) -> int:
        response = httpx2.request(method, f"{url}/v1/models", headers=headers)
        assert response.status_code == 200 or is_openai_error(response)
        return response.status_code

    assert status(address, Host="localhost:1") == status(address, Host="[::1]") == 200
    assert status(address, Host="evil.example") == status(address, Host="") == status(address, Host="[x") == 403
    assert status(address, Origin=address) == 200
    assert status(address, Origin="https://evil.example") == status(address, Origin="null") == 403
    origin = "https://page.example"
    with serving(aligned, allowed_hosts=("lm.example",), allowed_origins=(origin,)) as url:
        assert status(url, Host="LM.example:80", Origin=origin) == 200
        preflight = {"Origin": origin, "Access-Control-Request-Method": "POST"}
        response = httpx2.options(f"{url}/v1/completions", headers=preflight)
        assert (response.status_code, response.headers["Access-Control-Allow-Origin"]) == (200, origin)
    assert "Access-Control-Allow-Origin" not in httpx2.get(f"{address}/v1/models", headers={"Origin": address}).headers


def test_an_api_key(aligned: Aligned, monkeypatch: pytest.MonkeyPatch) -> None:
    with (
        pytest.raises(ConfigError, match=f"--api-key-env: the environment variable {KEY} is not set"),
        serving(aligned, api_key_env=KEY),
    ):
        pass
    monkeypatch.setenv(KEY, "secret")
    with serving(aligned, api_key_env=KEY) as address:
        for path, status in (("/v1/models", 401), ("/metrics", 401), ("/openapi.json", 401), ("/health", 200)):
            assert httpx2.get(f"{address}{path}").status_code == status
        with openai.OpenAI(base_url=f"{address}/v1", api_key="wrong") as client:
            with pytest.raises(openai.AuthenticationError, match="incorrect API key"):
                client.models.list()
            assert len(client.with_options(api_key="secret").models.list().data) == 3


def test_a_level_outside_the_safe_range_is_served_with_a_warning(address: str) -> None:
    body = {**TEXT, "max_tokens": 1}
    assert "warning" not in httpx2.post(f"{address}/v1/completions", json=body).json()
    response = httpx2.post(f"{address}/v1/completions", json={**body, "level": 2}).json()
    assert response["warning"].startswith("2 is outside the safe range -0.5 to 1.5 of `meet dial`")
    with httpx2.stream("POST", f"{address}/v1/completions", json={**body, "level": 2, "stream": True}) as chunks:
        assert "outside the safe range" in next(chunks.iter_lines())


def test_a_full_queue(aligned: Aligned) -> None:
    with (
        serving(aligned, batch_size=1, queue=1, max_tokens=900) as address,
        openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0) as client,
    ):
        streams = [client.completions.create(**TEXT, stream=True) for _ in range(2)]
        with pytest.raises(openai.RateLimitError) as error:
            client.completions.create(**TEXT)
        assert 1 <= int(error.value.response.headers["Retry-After"]) <= 60
        for stream in streams:
            stream.close()
        wait_until_idle(address)
        assert client.completions.create(**TEXT, max_tokens=1).choices[0].finish_reason == "length"


@pytest.mark.parametrize("stream", [False, True])
def test_deadlines(aligned: Aligned, stream: bool) -> None:
    with serving(aligned, timeout=0.3, max_tokens=900) as address:
        with openai.OpenAI(base_url=f"{address}/v1", api_key="none") as client:
            with pytest.raises(openai.APIError, match="took longer than 0.3 seconds") as error:
                response: Any = client.completions.create(**TEXT, stream=stream)
                list(response)
            assert stream or isinstance(error.value, openai.APIStatusError) and error.value.status_code == 408
        assert metric(address, "meet_active") == 0


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_frees_its_place(aligned: Aligned, stream: bool) -> None:
    with serving(aligned, max_tokens=900) as address:
        steps = 0.0
        with socket.create_connection(("127.0.0.1", int(address.rsplit(":", 1)[1]))) as connection:
            body = json.dumps({**TEXT, "stream": stream}).encode()
            head = f"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n"
            connection.sendall(f"{head}Content-Type: application/json\r\n\r\n".encode() + body)
            while metric(address, "meet_generated_tokens_total") == 0:
                time.sleep(0.01)
        wait_until_idle(address, seconds=1)
        steps = metric(address, "meet_step_seconds_count")
        assert steps < 800, "it was left before its end"


def test_a_client_that_never_reads_frees_its_place(aligned: Aligned) -> None:
    """Its events fill the buffers; after ``timeout`` it is treated as gone. Others are served meanwhile."""
    body = json.dumps({**TEXT, "stream": True, "n": 8, "logprobs": 20}).encode()
    head = f"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n"
    with serving(aligned, max_tokens=900, timeout=2.0) as address:
        port = int(address.rsplit(":", 1)[1])
        with socket.socket() as connection:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
            connection.connect(("127.0.0.1", port))
            connection.sendall(f"{head}Content-Type: application/json\r\n\r\n".encode() + body)
            time.sleep(0.2)
            other = httpx2.post(f"{address}/v1/completions", json={**TEXT, "max_tokens": 2})
            assert other.status_code == 200
            wait_until_idle(address)


def test_an_address_in_use() -> None:
    with listen("127.0.0.1", 0) as listener:
        port = listener.getsockname()[1]
        with pytest.raises(ConfigError, match=f"--port {port}: Address already in use; choose another"):
            listen("127.0.0.1", port)


def test_a_model_that_fails_is_an_error_of_the_server(aligned: Aligned, monkeypatch: pytest.MonkeyPatch) -> None:
    """The completions in progress end with an error, and the next request is answered."""
    with serving(aligned) as address:
        with monkeypatch.context() as patch:
            patch.setattr("meetlm.generation.session.sample_tokens", lambda *arguments: 1 / 0)
            response = httpx2.post(f"{address}/v1/completions", json=TEXT)
            assert (response.status_code, is_openai_error(response)) == (500, True)
        assert httpx2.post(f"{address}/v1/completions", json={**TEXT, "max_tokens": 1}).status_code == 200
        assert metric(address, "meet_active") == 0
