"""Answers that say nothing, and those under way when it is given up: all are paid for, so all are kept."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path

import pytest

from judge_server import Body, JudgeServer, Reply, chat, error, longer, pairs, says, settings
from meetlm.config.errors import ConfigError
from meetlm.evaluation.judge import judge
from meetlm.evaluation.judge_cache import FILE


@pytest.mark.parametrize("said", [None, "", " \n"], ids=["null", "empty", "blank"])
def test_an_empty_answer_is_tried_again_and_kept(tmp_path: Path, said: str | None) -> None:
    """Two of four calls come back empty: one once, the other again and again. All of it was paid for."""

    def shy(body: Body, number: int) -> Reply:
        return chat(said) if number in (0, 2, 3, 4) else longer(body, number)

    with JudgeServer(shy) as server:
        asked = settings(server, concurrency=1, retries=2, give_up_after=1)
        outcomes, _, account, (problem,) = judge(pairs(2), asked, tmp_path)
        assert outcomes == [None, "lose"] and (account.overall.num_failed, account.overall.num_unparsable) == (0, 1)
        assert problem.examples == ["pair 1, shown second: an empty answer (finish_reason stop)"]
        assert "(of them: 1 empty)" in problem.what and account.finish_reasons == {"stop": 1}
        assert len(server.received) == account.this_run.num_answers == 2 + 3 + 2
        second = judge(pairs(2), asked, tmp_path)
        assert (second.outcomes, second.problems) == (outcomes, [problem]) and second.account.num_cached == 4
        assert len(server.received) == second.account.kept.num_answers == 7
        again = judge(pairs(2), settings(server, ask_again=True), tmp_path)
    assert again.outcomes == ["win", "lose"] and again.account.num_cached == 3 and again.problems == []
    assert len(server.received) == again.account.kept.num_answers == 7 + 1


def test_an_empty_answer_before_a_kill_is_tried_again(tmp_path: Path) -> None:
    """On disk it is told apart from one that was still empty at the last try: it is paid for, and no answer yet."""
    with JudgeServer(lambda body, number: chat("") if number == 0 else longer(body, number)) as server:
        first = judge(pairs(1), settings(server, retries=1, concurrency=1), tmp_path)
        lines = (tmp_path / FILE).read_text().splitlines(keepends=True)
        assert [json.loads(line)["final"] for line in lines] == [False, True, True]
        (tmp_path / FILE).write_text(lines[0])
        second = judge(pairs(1), settings(server, concurrency=1), tmp_path)
    assert second.outcomes == first.outcomes and second.account.num_cached == 0 and second.problems == []
    assert (second.account.this_run.num_answers, second.account.kept.num_answers) == (2, 3)


@pytest.mark.parametrize("why", ["length", "content_filter"])
def test_an_answer_cut_off_before_its_first_word_is_kept_and_not_tried_again(tmp_path: Path, why: str) -> None:
    """A reasoning model that thinks up to the most tokens: it would do so again, and that costs."""
    with JudgeServer(lambda body, number: chat(None, finish=why)) as server:
        asked = settings(server, concurrency=1, retries=5, give_up_after=3)
        for times in (1, 2):  # what was paid for is not asked again
            with pytest.raises(
                ConfigError, match=rf"3 calls in a row .*an empty answer \(finish_reason {why}\)"
            ) as told:
                judge(pairs(4), asked, tmp_path)
            said = str(told.value)  # the same command does not ask for these again
            assert "--judge-set ask_again=true" in said and "max_tokens" in said and "goes on from there" not in said
            assert len(server.received) == server.distinct == 3 * times
        last = judge(pairs(4), asked, tmp_path)
        assert len(server.received) == server.distinct == 8
        assert last.outcomes == [None] * 4 and last.account.finish_reasons == {why: 8}
        assert last.account.overall.num_unparsable == 8 and last.account.overall.num_failed == 0
        assert last.problems[0].examples[0] == f"pair 1, shown first: an empty answer (finish_reason {why})"
        assert (last.account.this_run.num_answers, last.account.kept.num_answers) == (2, 8)
        server.behave = longer
        again = judge(pairs(4), settings(server, ask_again=True), tmp_path)
    assert again.outcomes == ["win", "lose", "tie", "win"] and again.account.finish_reasons == {}
    assert again.account.kept.num_answers == 16


def test_some_cut_off_answers_stop_nothing(tmp_path: Path) -> None:
    """Where others have a text, an empty one is about its call alone; a cut one with a text may have no verdict."""

    def cut(body: Body, number: int) -> Reply:
        asked = body["messages"][-1]["content"]
        if "q1\n" in asked:
            return chat("", finish="content_filter")
        return chat("I compare", finish="length") if "q2\n" in asked else longer(body, number)

    with JudgeServer(cut) as server:
        asked = settings(server, concurrency=1, retries=3, give_up_after=1)
        for _ in range(2):
            outcomes, _, account, (problem,) = judge(pairs(4), asked, tmp_path)
            assert outcomes == ["win", None, None, "win"]
            assert account.finish_reasons == {"content_filter": 2, "length": 2}
            assert "(of them: 2 empty, 2 cut off at the most tokens, 2 filtered by the endpoint)" in problem.what
            assert problem.examples[2] == "pair 3, shown first: 'I compare' (finish_reason length)"
    assert len(server.received) == 8


def test_calls_under_way_are_kept_when_it_is_given_up(tmp_path: Path) -> None:
    """Three failures stop it while the others are being answered, which takes longer: these are waited for."""
    all_came = threading.Event()

    def behave(body: Body, number: int) -> Reply:
        if number == 7:
            all_came.set()
        all_came.wait(20)
        return error(500, "out of order") if number < 3 else Reply(longer(body, number).body, delay=1.0)

    with JudgeServer(behave) as server:
        asked = settings(server, concurrency=8, give_up_after=3)
        with pytest.raises(ConfigError, match="3 calls in a row found no answer"):
            judge(pairs(12), asked, tmp_path)
        sent = len(server.received)
        assert 8 <= sent <= 10  # the first two that failed made room for others
        entries = [json.loads(line) for line in (tmp_path / FILE).read_text().splitlines()]
        kept = sorted(json.dumps(entry["messages"]) for entry in entries)
        assert kept == sorted(json.dumps(body["messages"]) for body in server.received[3:])
        server.behave = longer
        found = judge(pairs(12), asked, tmp_path)
    assert found.outcomes == ["win", "lose", "tie"] * 4 and found.account.num_cached == sent - 3
    assert len(server.received) == 24 + 3


@pytest.mark.parametrize("waits", [0.0, 0.3], ids=["empty-first", "given-up-first"])
def test_given_up_no_empty_answer_is_tried_again(tmp_path: Path, waits: float) -> None:
    """One call comes back empty just before or after another one's key is refused: its retries would cost in vain."""

    def behave(body: Body, number: int) -> Reply:
        refused = Reply(error(401, "no").body, 401, delay=0.3 - waits)
        return refused if number == 1 else Reply(chat("").body, delay=waits)

    with JudgeServer(behave) as server:
        with pytest.raises(ConfigError, match="HTTP 401"):
            judge(pairs(4), settings(server, concurrency=2, retries=2), tmp_path)
        assert len(server.received) == 2
        (line,) = (tmp_path / FILE).read_text().splitlines()
        assert json.loads(line)["final"] is False
        server.behave = longer
        found = judge(pairs(4), settings(server), tmp_path)
    assert found.account.num_cached == 0 and found.account.kept.num_answers == 9


def test_a_call_that_stalls_is_not_waited_for_for_ever(tmp_path: Path) -> None:
    """Given up, calls under way have as long as one may take."""

    def behave(body: Body, number: int) -> Reply:
        return Reply("{}", delay=20) if number else error(401, "no")

    with JudgeServer(behave) as server:
        start = time.monotonic()
        with pytest.raises(ConfigError, match="HTTP 401"):
            judge(pairs(4), settings(server, timeout=1.0, retries=5), tmp_path)
    assert time.monotonic() - start < 8


def test_answers_without_a_verdict_are_asked_again_where_that_is_wanted(tmp_path: Path) -> None:
    def mumbles(body: Body, number: int) -> Reply:
        return chat("Hm.") if number == 1 else longer(body, number)

    with JudgeServer(mumbles) as server:
        asked = settings(server, concurrency=1)
        assert judge(pairs(2), asked, tmp_path).outcomes == [None, "lose"]
        assert judge(pairs(2), asked, tmp_path).outcomes == [None, "lose"]
        assert len(server.received) == 4  # kept, as every answer with a text
        again = judge(pairs(2), settings(server, concurrency=1, ask_again=True), tmp_path)
        assert again.outcomes == ["win", "lose"] and again.account.num_cached == 3 and again.problems == []
        last = judge(pairs(2), asked, tmp_path)
    assert last.outcomes == again.outcomes and last.account.num_cached == 4
    assert len(server.received) == 5


def test_no_verdict_anywhere_stops_nothing(tmp_path: Path) -> None:
    """Every call is answered, none with a verdict: a second run asks nothing, and asking again is no failure either."""
    with JudgeServer(says("As a language model …")) as server:
        for more in ({}, {}, {"ask_again": True}):
            outcomes, _, account, (problem,) = judge(pairs(20), settings(server, give_up_after=2, **more), tmp_path)
            assert (
                outcomes == [None] * 20
                and problem.count == account.overall.num_unparsable == account.overall.num_calls == 40
            )
            assert (
                account.overall.consistency is None
                and account.overall.chance is None
                and not account.overall.conclusive
            )
    assert len(server.received) == 80
