"""Calls of a judge: stored on disk, retried, counted if they fail, and stopped if all would fail."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from judge_server import Body, JudgeServer, Reply, error, longer, pairs, says, settings
from meetlm.config.errors import ConfigError
from meetlm.data.example import Prompt
from meetlm.evaluation.judge import FILE, judge


def test_second_run_asks_nothing_and_needs_no_server_and_no_key(tmp_path: Path) -> None:
    with JudgeServer(longer) as server:
        first = judge(pairs(7), settings(server), tmp_path)
        again = settings(server, key_env="MEETLM_NO_SUCH_KEY")
    second = judge(pairs(7), again, tmp_path)
    assert len(server.received) == 14
    assert (second[0], second[1], second[3]) == (first[0], first[1], first[3])
    assert second[2].num_cached == second[2].overall.num_calls == 14
    assert second[2].stored == first[2].stored and second[2].this_run.num_responses == 0


def test_every_call_is_stored_with_its_request(tmp_path: Path) -> None:
    with JudgeServer(says("raw\n[[A]] ü")) as server:
        judge(pairs(1), settings(server, extra={"seed": 3}), tmp_path)
    entries = [json.loads(line) for line in (tmp_path / FILE).read_text().splitlines()]
    assert len(entries) == 2
    assert entries[0]["messages"] in [body["messages"] for body in server.received]
    assert entries[0]["answer"] == {
        "text": "raw\n[[A]] ü",
        "finish_reason": "stop",
        "served_model": "judge-2026",
        "prompt_tokens": 100,
        "completion_tokens": 10,
    }
    assert entries[0]["sampling"] == {"temperature": 0.0, "max_tokens": 1024, "seed": 3}
    assert entries[0]["base_url"] == server.url


@pytest.mark.parametrize(
    "changed",
    [{"model": "other"}, {"temperature": 0.5}, {"max_tokens": 7}, {"extra": {"seed": 1}}, {"prompt": "summary"}],
    ids=str,
)
def test_other_settings_are_other_calls(tmp_path: Path, changed: dict[str, Any]) -> None:
    with JudgeServer(says("Comparison: x\nPreferred: A [[A]]")) as server:
        judge(pairs(1), settings(server), tmp_path)
        account = judge(pairs(1), settings(server, **changed), tmp_path)[2]
    assert len(server.received) == 4 and account.num_cached == 0


def test_a_stopped_evaluation_continues(tmp_path: Path) -> None:
    """The key expires after 9 answers: calls under way are stored, no answered call is sent again."""
    with JudgeServer(longer) as server:
        whole = judge(pairs(12), settings(server), tmp_path / "whole")
        answered: set[str] = set()

        def expires(body: Body, number: int) -> Reply:
            if len(answered) >= 9:
                return error(401, "the key has expired")
            answered.add(json.dumps(body))
            return longer(body, number)

        server.behave = expires
        with pytest.raises(ConfigError, match=r"HTTP 401: the key has expired.*the same command continues"):
            judge(pairs(12), settings(server, concurrency=3), tmp_path / "cut")
        server.received.clear()
        server.behave = longer
        continued = judge(pairs(12), settings(server), tmp_path / "cut")
    assert continued[0] == whole[0] and continued[2].num_cached == 9
    assert len(server.received) == server.distinct == 24 - 9
    assert not answered & {json.dumps(body) for body in server.received}


def test_a_killed_evaluation_keeps_every_answer(tmp_path: Path) -> None:
    """The process is killed at its sixth call: five responses are on disk, and the other calls are repeated."""
    started: list[subprocess.Popen[bytes]] = []

    def kills(body: Body, number: int) -> Reply:
        if number == 5:
            started[0].kill()
        return longer(body, number)

    with JudgeServer(kills) as server:
        asked = settings(server, concurrency=1)
        code = (
            "import sys, pathlib; sys.path.insert(0, sys.argv[3]); from judge_server import pairs; "
            "from meetlm.evaluation.judge import judge; from meetlm.evaluation.settings import JudgeSettings; "
            "judge(pairs(6), JudgeSettings.model_validate_json(sys.argv[1]), pathlib.Path(sys.argv[2]))"
        )
        args = [asked.model_dump_json(), str(tmp_path / "cache"), str(Path(__file__).parent)]
        started.append(subprocess.Popen([sys.executable, "-c", code, *args]))
        assert started[0].wait(60) == -signal.SIGKILL
        assert len((tmp_path / "cache" / FILE).read_text().splitlines()) == 5
        server.behave = longer
        outcomes, _, account, problems = judge(pairs(6), asked, tmp_path / "cache")
    assert outcomes == ["win", "lose", "tie"] * 2 and problems == []
    assert account.num_cached == 5
    assert len(server.received) == 5 + 1 + 7 and server.distinct == 12  # only the call under way was sent twice


def test_failures_after_an_answer_are_counted(tmp_path: Path) -> None:
    """A server error concerns its call alone once the endpoint has answered; before, it stops the evaluation."""

    def every_third(body: Body, number: int) -> Reply:
        return error(500, "hiccup") if number % 3 == 1 else longer(body, number)

    with JudgeServer(every_third) as server:
        outcomes, _, account, (problem,) = judge(pairs(9), settings(server, concurrency=1), tmp_path)
        assert account.overall.num_failed == problem.count == 6 and outcomes.count(None) == 6
        server.behave = longer
        assert judge(pairs(9), settings(server), tmp_path).outcomes == ["win", "lose", "tie"] * 3
        server.behave = lambda body, number: error(503, "out of order")
        with pytest.raises(ConfigError, match=r"HTTP 503: out of order; .*the same command continues"):
            judge(pairs(9), settings(server, concurrency=1), tmp_path / "new")


def test_a_truncated_line_is_reported_and_its_call_repeated(tmp_path: Path) -> None:
    with JudgeServer(longer) as server:
        first = judge(pairs(3), settings(server), tmp_path)
        file = tmp_path / FILE
        file.write_bytes(file.read_bytes()[:-40])
        server.received.clear()
        second = judge(pairs(3), settings(server), tmp_path)
        assert len(server.received) == 1
        assert second[0] == first[0] and second[2].num_cached == 5
        (problem,) = second[3]
        assert "damaged" in problem.description and problem.examples == [f"{file}:6"] and problem.count == 1
        third = judge(pairs(3), settings(server), tmp_path)  # what was asked again is whole, beside the torn line
    assert len(server.received) == 1
    assert third[0] == first[0] and third[2].num_cached == 6 and third[3] == [problem]


def test_failures_of_single_calls_are_counted(tmp_path: Path) -> None:
    def too_long(body: Body, number: int) -> Reply:
        if "q4" in body["messages"][-1]["content"]:
            return error(400, "maximum context length is 8192 tokens", "context_length_exceeded")
        return longer(body, number)

    with JudgeServer(too_long) as server:
        # Nothing but refusals is left to ask the second time: that is no reason to stop.
        for _ in range(2):
            outcomes, margins, account, problems = judge(
                pairs(6), settings(server, concurrency=1), tmp_path, names=[f"p{n}" for n in range(6)]
            )
            assert outcomes == ["win", "lose", "tie", "win", None, "tie"]
            assert margins[4] is None
            assert (account.overall.num_failed, account.overall.num_without_verdict) == (2, 0)
            (problem,) = problems
            assert problem.count == 2 and "failed calls" in problem.description
            assert problem.examples[0].startswith("p4, shown first: HTTP 400: maximum context length")
    assert len(server.received) == 12 + 2


def test_nothing_answered_stops(tmp_path: Path) -> None:
    with (
        JudgeServer(lambda body, number: error(400, "unsupported parameter")) as server,
        pytest.raises(ConfigError, match=rf"'judge' at {server.url}: none of 4 calls .*unsupported parameter"),
    ):
        judge(pairs(2), settings(server), tmp_path)


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        (error(401, "Incorrect API key provided"), "HTTP 401: Incorrect API key provided"),
        (error(404, "no such model"), r"HTTP 404: no such model \(.*has no such model"),
        (error(429, "You exceeded your quota", "insufficient_quota"), "HTTP 429: You exceeded your quota"),
        (Reply("<html>not here</html>", 404, {"Content-Type": "text/html"}), "HTTP 404"),
    ],
    ids=["401", "404", "quota", "html"],
)
def test_refusals_of_everything_stop_at_once(tmp_path: Path, reply: Reply, expected: str) -> None:
    with JudgeServer(lambda body, number: reply) as server:
        with pytest.raises(ConfigError, match=expected) as raised:
            judge(pairs(20), settings(server, concurrency=2), tmp_path)
        assert len(server.received) <= 4
    assert f"judge 'judge' at {server.url}" in str(raised.value)


def test_a_rate_limit_waits_for_retry_after(tmp_path: Path) -> None:
    def limited(body: Body, number: int) -> Reply:
        return error(429, "slow down", Retry_After="1") if number == 0 else longer(body, number)

    with JudgeServer(limited) as server:
        outcomes, _, account, problems = judge(pairs(1), settings(server, retries=2, concurrency=1), tmp_path)
    assert outcomes == ["win"] and account.overall.num_failed == 0 and problems == []
    assert server.times[1] - server.times[0] >= 0.95  # without the header: at most half a second
    assert len(server.received) == 3


def test_server_errors_and_stalls_are_tried_again(tmp_path: Path) -> None:
    """Every first try fails: every other one by a 503, the rest by stalling past the time-out."""
    seen: dict[str, int] = {}

    def shaky(body: Body, number: int) -> Reply:
        text = json.dumps(body)
        seen[text] = seen.get(text, 0) + 1
        if seen[text] > 1:
            return longer(body, number)
        return error(503, "busy") if number % 2 else Reply("{}", delay=20)

    with JudgeServer(shaky) as server:
        outcomes, _, account, _ = judge(pairs(3), settings(server, retries=3, timeout=1.0), tmp_path)
    assert outcomes == ["win", "lose", "tie"] and account.overall.num_failed == 0
    assert len(server.received) >= 12 and server.distinct == 6


def test_stall_for_good_is_counted(tmp_path: Path) -> None:
    def stalls(body: Body, number: int) -> Reply:
        return Reply("{}", delay=20) if "q1" in body["messages"][-1]["content"] else longer(body, number)

    with JudgeServer(stalls) as server:
        outcomes, _, account, (problem,) = judge(pairs(3), settings(server, timeout=1.0), tmp_path)
    assert outcomes == ["win", None, "tie"] and account.overall.num_failed == 2
    assert problem.examples[0] == "pair 2, shown first: no answer in 1 s"


def test_no_server_stops_soon(tmp_path: Path) -> None:
    with JudgeServer(longer) as server:
        url = server.url
    with pytest.raises(ConfigError, match="no connection"):
        judge(pairs(200), settings(url), tmp_path)


PAGES = {
    "empty": Reply("{}"),
    "error": Reply('{"error": {"message": "upstream failed"}}'),
    "html": Reply("<html>welcome</html>", headers={"Content-Type": "text/html"}),
    "html-as-json": Reply("<html>welcome</html>"),
    "torn": Reply("{not json"),
    "no-choice": Reply('{"choices": []}'),
    "parts": Reply('{"choices": [{"message": {"content": [{"text": "[[A]]"}]}}]}'),
    "text": Reply("[[A]]", headers={"Content-Type": "text/plain"}),
    "null": Reply("null"),
}


@pytest.mark.parametrize("name", PAGES)
def test_a_response_that_is_no_completion_is_a_failed_call(tmp_path: Path, name: str) -> None:
    """The message contains the response of the endpoint and the setting to check, not the error of the JSON parser."""
    expected = "the endpoint answered with no chat completion"
    with JudgeServer(lambda body, number: PAGES[name] if number == 2 else longer(body, number)) as server:
        outcomes, _, account, (problem,) = judge(pairs(2), settings(server, concurrency=1), tmp_path)
        assert outcomes == ["win", None] and account.overall.num_failed == 1
        assert expected in problem.examples[0] and "--judge.base_url" in problem.examples[0]
        server.behave = lambda body, number: PAGES[name]
        with pytest.raises(ConfigError, match=rf"{expected}.*--judge.base_url"):
            judge(pairs(2), settings(server), tmp_path / "new")


@pytest.mark.parametrize(
    ("message", "remedy"),
    [
        ("Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead.", "--judge.max_tokens null and"),
        ("max_tokens must be at most 512", "change --judge.max_tokens"),
        ("Unsupported value: 'temperature' does not support 0.0", "set --judge.temperature null"),
    ],
)
def test_a_refused_parameter_names_its_setting(tmp_path: Path, message: str, remedy: str) -> None:
    with (
        JudgeServer(lambda body, number: error(400, message)) as server,
        pytest.raises(ConfigError, match=rf"none of 4 calls was answered; the last: HTTP 400: .*{remedy}"),
    ):
        judge(pairs(2), settings(server), tmp_path)


def test_limit_and_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEETLM_TEST_KEY", "secret-of-the-test")

    def slow(body: Body, number: int) -> Reply:
        return Reply(longer(body, number).body, delay=0.05)

    with JudgeServer(slow) as server:
        judge(pairs(8), settings(server, concurrency=3, key_env="MEETLM_TEST_KEY"), tmp_path)
    assert server.most == 3
    assert set(server.keys) == {"Bearer secret-of-the-test"}
    assert "secret-of-the-test" not in (tmp_path / FILE).read_text()


def test_a_server_that_leaves_things_out(tmp_path: Path) -> None:
    least = Reply('{"choices": [{"message": {"content": "[[C]]"}}]}')
    with JudgeServer(lambda body, number: least) as server:
        outcomes, _, account, _ = judge(pairs(1), settings(server), tmp_path)
        assert judge(pairs(1), settings(server), tmp_path)[2].num_cached == 2
    assert outcomes == ["tie"] and account.stored.prompt_tokens is None


def test_an_error_in_words_of_its_own(tmp_path: Path) -> None:
    said = Reply('{"detail": "no room"}', 422)
    with JudgeServer(lambda body, number: said) as server, pytest.raises(ConfigError, match="HTTP 422: .*no room"):
        judge(pairs(1), settings(server), tmp_path)


def test_words_that_cannot_be_sent_fail_alone(tmp_path: Path) -> None:
    """Half of a surrogate pair, as a file from elsewhere may hold it, has no UTF-8."""
    with JudgeServer(longer) as server:
        outcomes, _, account, (problem,) = judge([*pairs(1), (Prompt("q"), "\ud83d", "x")], settings(server), tmp_path)
    assert outcomes == ["win", None] and account.overall.num_failed == 2
    assert "pair 2, shown first: " in problem.examples[0]


def test_missing_key_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MEETLM_TEST_KEY", raising=False)
    with pytest.raises(ConfigError, match="the environment variable MEETLM_TEST_KEY is not set"):
        judge(pairs(1), settings("http://127.0.0.1:9/v1", key_env="MEETLM_TEST_KEY"), tmp_path)


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({"base_url": "localhost:8000"}, "begins with http"),
        ({"extra": {"temperature": 1}}, "'temperature' is not allowed here; set judge.temperature"),
        ({"extra": {"stream": True}}, "'stream' is not allowed here"),
        ({"concurency": 1}, "did you mean 'concurrency'"),
    ],
)
def test_settings_are_checked(changed: dict[str, Any], expected: str) -> None:
    with pytest.raises(ValueError, match=expected):
        settings("http://x/v1", **changed)
