"""The judge against a real server: ``transformers serve`` with SmolLM2, on loopback.

So small a model judges nothing well; what is tested is that calls, answers and their account fit a real endpoint.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from meetlm.config.errors import ConfigError
from meetlm.data.example import Prompt
from meetlm.evaluation.judge import FILE, judge
from meetlm.evaluation.settings import JudgeSettings
from meetlm.policy.loading import embedded_lm

pytest.importorskip("fastapi", reason="transformers serve wants fastapi")
pytest.importorskip("uvicorn", reason="transformers serve wants uvicorn")
pytestmark = pytest.mark.integration

PAIRS = [
    (
        Prompt("\n\nHuman: What is the capital of France?\n\nAssistant:"),
        " The capital of France is Paris.",
        " I like cheese.",
    ),
    (Prompt("\n\nHuman: Name a colour.\n\nAssistant:"), " No.", " Blue is a colour."),
]


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str]]:
    """Base URL and model name."""
    model = str(embedded_lm())
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = tmp_path_factory.mktemp("serve") / "log"
    command = [str(Path(sys.executable).with_name("transformers")), "serve", model, "--host", "127.0.0.1"]
    with log.open("w") as out:
        server = subprocess.Popen(
            [*command, "--port", str(port), "--device", "cpu"],
            stdout=out,
            stderr=subprocess.STDOUT,
            env={**os.environ, "HF_HUB_OFFLINE": "1"},
        )
    try:
        for _ in range(1200):
            assert server.poll() is None, log.read_text()
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5):
                    break
            except (urllib.error.URLError, OSError):
                time.sleep(0.1)
        else:
            pytest.fail(log.read_text())
        yield f"http://127.0.0.1:{port}/v1", model
    finally:
        server.terminate()
        server.wait(30)


@pytest.mark.parametrize("prompt", ["dialogue", "summary"])
def test_real_endpoint(served: tuple[str, str], tmp_path: Path, prompt: str) -> None:
    url, model = served
    asked = JudgeSettings.model_validate(
        {
            "model": model,
            "base_url": url,
            "key_env": None,
            "prompt": prompt,
            "max_tokens": 24,
            "concurrency": 2,
            "prices": {"prompt": 1, "completion": 2},
        }
    )
    first = judge(PAIRS, asked, tmp_path)
    outcomes, _, account, problems = first
    assert (account.overall.num_calls, account.num_cached, account.overall.num_failed) == (4, 0, 0)
    assert account.overall.num_without_verdict == sum(problem.count for problem in problems)
    assert outcomes.count(None) <= account.overall.num_without_verdict <= 2 * outcomes.count(None)
    assert not account.overall.is_conclusive  # two pairs
    used = account.stored
    assert used == account.this_run and used.num_responses >= 4 and used.prompt_tokens
    assert used.completion_tokens and used.completion_tokens <= 24 * used.num_responses
    assert used.cost == pytest.approx((used.prompt_tokens + 2 * used.completion_tokens) / 1e6)
    answers = [json.loads(line)["answer"] for line in (tmp_path / FILE).read_text().splitlines()]
    assert len(answers) == used.num_responses and any(answer["text"].strip() for answer in answers)
    assert {answer["finish_reason"] for answer in answers} <= {"stop", "length"}
    second = judge(PAIRS, asked, tmp_path)
    assert second[:2] == first[:2] and second[3] == problems
    assert second[2].num_cached == 4 and second[2].stored == used and second[2].this_run.num_responses == 0


def test_a_real_endpoint_refuses_another_model(served: tuple[str, str], tmp_path: Path) -> None:
    url, _ = served
    asked = JudgeSettings(model="gpt-4", base_url=url, key_env=None, prompt="dialogue")
    with pytest.raises(ConfigError, match=f"judge 'gpt-4' at {url}: none of 2 calls was answered.*pinned to"):
        judge(PAIRS[:1], asked, tmp_path)
