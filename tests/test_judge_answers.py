"""Responses without a verdict: empty, cut or unclear. All are paid for, so all are stored, and none is a false win."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import pytest

from judge_server import Body, JudgeServer, Reply, chat, error, longer, pairs, says, settings
from meetlm.config.errors import ConfigError
from meetlm.evaluation.judge import FILE, judge


@pytest.mark.parametrize("text", [None, "", " \n"], ids=["null", "empty", "blank"])
@pytest.mark.parametrize("reason", ["stop", "length", "content_filter"])
def test_an_empty_response_is_stored_and_repeated_on_request(tmp_path: Path, text: str | None, reason: str) -> None:
    with JudgeServer(lambda body, number: chat(text, finish=reason) if number == 0 else longer(body, number)) as server:
        first_settings = settings(server, concurrency=1)
        outcomes, _, account, (problem,) = judge(pairs(2), first_settings, tmp_path)
        assert outcomes == [None, "lose"] and (account.overall.num_failed, account.overall.num_without_verdict) == (
            0,
            1,
        )
        assert problem.examples == [f"pair 1, shown first: {text or ''!r} (finish_reason {reason})"]
        assert "--judge.ask_again true" in problem.description
        assert account.this_run.num_responses == 4
        second = judge(pairs(2), first_settings, tmp_path)
        assert (second.outcomes, second.problems) == (outcomes, [problem]) and second.account.num_cached == 4
        assert len(server.received) == second.account.stored.num_responses == 4
        again = judge(pairs(2), settings(server, ask_again=True), tmp_path)
    assert again.outcomes == ["win", "lose"] and again.account.num_cached == 3 and again.problems == []
    assert len(server.received) == again.account.stored.num_responses == 5


def test_cut_responses_are_counted(tmp_path: Path) -> None:
    def cut(body: Body, number: int) -> Reply:
        question = body["messages"][-1]["content"]
        if "q1\n" in question:
            return chat("", finish="content_filter")
        return chat("I compare", finish="length") if "q2\n" in question else longer(body, number)

    with JudgeServer(cut) as server:
        outcomes, _, account, (problem,) = judge(pairs(4), settings(server, concurrency=1), tmp_path)
    assert outcomes == ["win", None, None, "win"]
    assert "(2 cut off at --judge.max_tokens)" in problem.description
    assert problem.examples[2] == "pair 3, shown first: 'I compare' (finish_reason length)"


def test_calls_under_way_are_stored_when_the_evaluation_stops(tmp_path: Path) -> None:
    """A refused key stops it while other calls are being answered: they are waited for, and no further one is sent."""
    all_came = threading.Event()

    def behave(body: Body, number: int) -> Reply:
        if number == 7:
            all_came.set()
        all_came.wait(20)
        return error(401, "no") if number == 0 else Reply(longer(body, number).body, delay=0.5)

    with JudgeServer(behave) as server:
        with pytest.raises(ConfigError, match="HTTP 401"):
            judge(pairs(12), settings(server, concurrency=8), tmp_path)
        assert len(server.received) == 8
        entries = [json.loads(line) for line in (tmp_path / FILE).read_text().splitlines()]
        stored = sorted(json.dumps(entry["messages"]) for entry in entries)
        assert stored == sorted(json.dumps(body["messages"]) for body in server.received[1:])
        server.behave = longer
        continued = judge(pairs(12), settings(server), tmp_path)
    assert continued.outcomes == ["win", "lose", "tie"] * 4 and continued.account.num_cached == 7
    assert len(server.received) == 24 + 1


def test_two_different_marks_are_no_verdict(tmp_path: Path) -> None:
    """A judge that names the loser's mark too must not turn every win into a loss."""

    def names_both(body: Body, number: int) -> Reply:
        winner, loser = ("A", "B") if number % 2 == 0 else ("B", "A")
        return chat(f"[[{winner}]] for its clarity, not [[{loser}]]")

    with JudgeServer(names_both) as server:
        outcomes, _, account, (problem,) = judge(pairs(4), settings(server, concurrency=1), tmp_path)
    assert outcomes == [None] * 4 and account.overall.num_without_verdict == problem.count == 8


def test_calls_without_a_verdict_are_repeated_on_request(tmp_path: Path) -> None:
    def mumbles(body: Body, number: int) -> Reply:
        return chat("Hm.") if number == 1 else longer(body, number)

    with JudgeServer(mumbles) as server:
        asked = settings(server, concurrency=1)
        assert judge(pairs(2), asked, tmp_path).outcomes == [None, "lose"]
        assert judge(pairs(2), asked, tmp_path).outcomes == [None, "lose"]
        assert len(server.received) == 4  # stored, like every response with text
        again = judge(pairs(2), settings(server, concurrency=1, ask_again=True), tmp_path)
        assert again.outcomes == ["win", "lose"] and again.account.num_cached == 3 and again.problems == []
        last = judge(pairs(2), asked, tmp_path)
    assert last.outcomes == again.outcomes and last.account.num_cached == 4
    assert len(server.received) == 5


def test_no_verdict_anywhere_stops_nothing(tmp_path: Path) -> None:
    """Every call is answered, none with a verdict: a second run asks nothing, and asking again is no failure either."""
    with JudgeServer(says("As a language model …")) as server:
        for more in ({}, {}, {"ask_again": True}):
            outcomes, _, account, (problem,) = judge(pairs(20), settings(server, **more), tmp_path)
            assert (
                outcomes == [None] * 20
                and problem.count == account.overall.num_without_verdict == account.overall.num_calls == 40
            )
            assert (
                account.overall.consistency is None
                and account.overall.chance is None
                and not account.overall.is_conclusive
            )
    assert len(server.received) == 80
