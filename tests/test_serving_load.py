"""The server under load, and as a process: 200 requests at once, and the end by SIGTERM."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import openai
import pytest

import meetlm
from run_folders import config_for, finished
from server import metric, serving, wait_until_idle
from tiny import CHATML

LEVELS: list[Any] = ["good", "bad", {"good": 1.5, "bad": -0.5}, 0.3, 1.2]


@pytest.mark.slow
def test_200_concurrent_streams(tmp_path: Path) -> None:
    """Of 32 tokens at mixed levels: all are answered, with the text of offline generation."""
    config = config_for(tmp_path, "qwen2", "lora", chat=True, template=CHATML)
    aligned = meetlm.load(meetlm.train(config, out=tmp_path / "run"))
    cases = [(f"What is rice {number % 40}?", LEVELS[number % 5]) for number in range(200)]

    async def stream(client: openai.AsyncOpenAI, prompt: str, level: Any) -> str:
        chunks = await client.chat.completions.create(
            model="tiny",
            messages=[{"role": "user", "content": prompt}],
            temperature=0,
            max_tokens=32,
            stream=True,
            extra_body={"level": level},
        )
        return "".join([chunk.choices[0].delta.content or "" async for chunk in chunks if chunk.choices])

    async def stream_all(address: str) -> list[str]:
        async with openai.AsyncOpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0) as client:
            return await asyncio.gather(*(stream(client, *case) for case in cases))

    with serving(aligned) as address:
        texts = asyncio.run(stream_all(address))
        wait_until_idle(address)
        assert metric(address, "meet_step_seconds_count") < 200 * 32 / 10, "requests share the steps"
    expected = {}
    for level in LEVELS:
        prompts = [prompt for prompt, other in cases if other == level]
        expected |= {
            (prompt, str(level)): text
            for prompt, text in zip(prompts, aligned.generate(prompts, level, max_new_tokens=32), strict=True)
        }
    assert texts == [expected[prompt, str(level)] for prompt, level in cases]


@pytest.mark.integration
def test_the_soak_loses_no_request(tmp_path: Path) -> None:
    """bench/soak.py for half a minute; its growth of memory counts over half an hour only."""
    config = config_for(tmp_path, "qwen2", "lora", chat=True, template=CHATML)
    run = meetlm.train(config, out=tmp_path / "run")
    script = Path(__file__).parents[1] / "bench" / "soak.py"
    command = [sys.executable, script, "--minutes", "0.5", "--run", run, "--limit", "1"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    totals = next(line for line in done.stdout.splitlines() if line.startswith("| all |"))
    answered, refused, left, lost = (int(cell.replace(",", "")) for cell in totals.split("|")[2:6])
    assert answered > 5 and refused > 5 and left > 0 and lost == 0


@pytest.mark.integration
def test_sigterm_lets_requests_end(tmp_path: Path) -> None:
    run = finished(tmp_path, "llama", "lora")
    command = [str(Path(sys.executable).with_name("meet")), "serve", str(run), "--port", "0", "--max-tokens", "900"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as server:
        try:
            assert server.stderr is not None
            address = server.stderr.readline().split(" at ")[1].split(",")[0]
            with openai.OpenAI(base_url=address, api_key="none", max_retries=0) as client:
                chunks = client.completions.create(
                    model="run", prompt="Hi", max_tokens=60, temperature=2, seed=1, stream=True
                )
                iterator = iter(chunks)
                next(iterator)
                server.send_signal(signal.SIGTERM)
                finish = [chunk.choices[0].finish_reason for chunk in iterator if chunk.choices][-1]
            assert finish in ("length", "stop")
            assert server.wait(30) == 0
        finally:
            server.kill()
