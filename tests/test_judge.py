"""A judge's outcomes and its account, by servers whose verdicts are known."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from judge_server import Body, JudgeServer, Reply, chat, longer, pairs, says, settings, shown
from meetlm.config.reporter import Progress, Reporter
from meetlm.data.example import Prompt
from meetlm.diagnostics.intervals import mean_interval
from meetlm.evaluation.judge import Judged, judge
from meetlm.evaluation.judge_summary import consistency_chance
from meetlm.evaluation.outcomes import Outcome
from meetlm.evaluation.record import Usage


class Recorder(Reporter):
    """Counts the progress of a judge."""

    total: int | None = None
    num_done = 0

    @contextmanager
    def progress(
        self, title: str, *, total: int | None = None, unit: str = "sequence", initial: int = 0
    ) -> Iterator[Progress]:
        assert (title, unit) == ("judge", "call")
        recorder, self.total = self, total

        class Count(Progress):
            def advance(self, count: int = 1) -> None:
                recorder.num_done += count

        yield Count()


def test_longer_wins_in_both_orders(tmp_path: Path) -> None:
    reporter = Recorder()
    with JudgeServer(longer) as server:
        prices = {"prompt": 2.5, "completion": 10}
        judged = judge(pairs(30), settings(server, prices=prices), tmp_path, reporter=reporter)
    outcomes, margins, account, problems = judged
    assert outcomes == ["win", "lose", "tie"] * 10
    assert margins == [1.0, -1.0, 0.0] * 10
    assert problems == []
    assert (
        account.overall.num_calls,
        account.num_cached,
        account.overall.num_without_verdict,
        account.overall.num_failed,
    ) == (60, 0, 0, 0)
    assert (reporter.total, reporter.num_done) == (60, 60) and server.distinct == len(server.received) == 60
    assert account.this_run == account.stored == Usage(60, 6000, 600, pytest.approx(6000 * 2.5e-6 + 600 * 10e-6))
    assert account.overall.consistency and account.overall.consistency.value == 1.0
    assert account.overall.chance == pytest.approx(2 / 9 + 1 / 9)  # a = b = c = 1/3
    assert account.overall.is_conclusive
    assert "impartial" not in account.prompt_text and "neutral judge" in account.prompt_text
    body = server.received[0]
    assert (body["model"], body["temperature"], body["max_tokens"]) == ("judge", 0.0, 1024)
    assert [message["role"] for message in body["messages"]] == ["system", "user"]
    assert server.paths[0] == "/v1/chat/completions"


def test_completion_files_without_a_verdict_are_counted_and_shown(tmp_path: Path) -> None:
    answers = ["I like both, really.", "[[A]]", "?", "first [[A]], no, [[B]]"]

    def nonsense(body: Body, number: int) -> Reply:
        return chat(answers[number], finish="length" if number == 0 else "stop")

    with JudgeServer(nonsense) as server:
        first = judge(pairs(2), settings(server, concurrency=1), tmp_path)
        second = judge(pairs(2), settings(server, concurrency=1), tmp_path)
    outcomes, margins, account, (problem,) = first
    assert outcomes == margins == [None, None]
    assert account.overall.num_without_verdict == 3 and account.overall.num_failed == 0
    assert account.overall.consistency is None and account.overall.chance is None and not account.overall.is_conclusive
    assert problem.count == 3 and "(1 cut off at --judge.max_tokens)" in problem.description
    assert problem.examples == [
        "pair 1, shown first: 'I like both, really.' (finish_reason length)",
        "pair 2, shown first: '?' (finish_reason stop)",
        "pair 2, shown second: 'first [[A]], no, [[B]]' (finish_reason stop)",
    ]
    assert len(server.received) == 4 and second[3] == [problem]


NINE = [
    # verdict with both orders (A is the reply shown first), outcome, margin
    ("A", "B", "win", 1.0),
    ("A", "C", "win", 0.5),
    ("A", "A", "tie", 0.0),
    ("C", "B", "win", 0.5),
    ("C", "C", "tie", 0.0),
    ("C", "A", "lose", -0.5),
    ("B", "B", "tie", 0.0),
    ("B", "C", "lose", -0.5),
    ("B", "A", "lose", -1.0),
]


def from_table(body: Body, number: int) -> Reply:
    """Pairs are (ours n, theirs n)."""
    a, _ = shown(body)
    row = NINE[int(a.split()[1])]
    return chat(f"[[{row[0] if a.startswith('ours') else row[1]}]]")


def test_all_nine_by_the_papers_rule_and_their_mirror(tmp_path: Path) -> None:
    asked = [(Prompt("q"), f"ours {n}", f"theirs {n}") for n in range(9)]
    mirrored = {"win": "lose", "lose": "win", "tie": "tie"}
    with JudgeServer(from_table) as server:
        outcomes, margins, account, _ = judge(asked, settings(server), tmp_path)
        swapped, back, other, _ = judge([(q, theirs, ours) for q, ours, theirs in asked], settings(server), tmp_path)
    assert outcomes == [row[2] for row in NINE]
    assert margins == [row[3] for row in NINE]
    assert swapped == [mirrored[row[2]] for row in NINE]
    assert back == [-row[3] for row in NINE]
    assert account.overall.consistency == other.overall.consistency and account.overall.chance == other.overall.chance
    assert other.num_cached == 18  # the same calls, read the other way round


def test_a_system_against_itself_ties_without_asking(tmp_path: Path) -> None:
    """White space around a reply is not shown to a judge, so it makes no other reply."""
    same = [(Prompt("q"), f"reply {n}", f" reply {n}\n") for n in range(4)]
    with JudgeServer(says("[[A]]")) as server:
        outcomes, margins, account, problems = judge(same, settings(server), tmp_path)
    assert (outcomes, margins, problems) == (["tie"] * 4, [0.0] * 4, [])
    assert server.received == [] and account.overall.num_calls == 0 and account.num_identical == 4
    assert account.overall.consistency is None and account.overall.chance is None and not account.overall.is_conclusive


@pytest.mark.parametrize("prompt", ["dialogue", "summary"])
def test_pairs_with_the_same_reply_say_nothing_about_the_judge(tmp_path: Path, prompt: str) -> None:
    """60 of 100 pairs the same, a judge without a tie that is right on all others."""
    asked = [(Prompt("q"), "same", "same")] * 60 + [(Prompt(f"q{n}"), "ours, long", "theirs") for n in range(20)]
    asked += [(Prompt(f"r{n}"), "ours", "theirs, long") for n in range(20)]

    def knows(body: Body, number: int) -> Reply:
        text = body["messages"][-1]["content"]
        first = text.index("long") < text.index("ours" if "theirs, long" in text else "theirs")
        return chat(f"Comparison: …\nPreferred: {'A' if first else 'B'}\n[[{'A' if first else 'B'}]]")

    with JudgeServer(knows) as server:
        outcomes, _, account, problems = judge(asked, settings(server, prompt=prompt), tmp_path)
    assert outcomes == ["tie"] * 60 + ["win"] * 20 + ["lose"] * 20 and problems == []
    assert len(server.received) == account.overall.num_calls == 80 and account.num_identical == 60
    assert account.overall.consistency == mean_interval([1.0] * 40, range(40), bounds=(0, 1))
    assert account.overall.chance == 0.5 and account.overall.is_conclusive


@pytest.mark.parametrize("text", ["[[A]]", "[[B]]", "[[C]]"])
def test_a_judge_that_always_says_the_same_is_inconclusive(tmp_path: Path, text: str) -> None:
    with JudgeServer(says(text)) as server:
        outcomes, _, account, _ = judge(pairs(64), settings(server), tmp_path)
    assert set(outcomes) == {"tie"}
    assert account.overall.consistency and account.overall.consistency.value == account.overall.chance == (
        1.0 if text == "[[C]]" else 0.0
    )
    assert not account.overall.is_conclusive


def test_a_little_above_chance_is_inconclusive(tmp_path: Path) -> None:
    """Always A, but for one pair of 64: consistency 1/64 against 2 · 127/128 · 1/128."""

    def once(body: Body, number: int) -> Reply:
        return longer(body, number) if "Human: q0\n" in body["messages"][-1]["content"] else chat("[[A]]")

    with JudgeServer(once) as server:
        outcomes, _, account, _ = judge(pairs(64), settings(server), tmp_path)
    assert outcomes == ["win"] + ["tie"] * 63
    assert (
        account.overall.consistency
        and account.overall.chance
        and account.overall.consistency.value > account.overall.chance
    )
    assert not account.overall.is_conclusive


def test_chance_by_hand() -> None:
    both: list[tuple[Outcome, Outcome]] = [("win", "lose"), ("win", "win"), ("tie", "lose"), ("lose", "tie")]
    # Verdicts: A A, A B, tie A, B tie: a = 4/8, b = 2/8, tie = 2/8.
    assert consistency_chance(both) == pytest.approx(2 * 0.5 * 0.25 + 0.25**2)


@pytest.mark.parametrize("shares", [(0.5, 0.5, 0.0), (0.8, 0.2, 0.0), (0.5, 0.2, 0.3), (0.97, 0.03, 0.0)], ids=str)
def test_a_judge_that_sees_nothing_is_seldom_called_conclusive(shares: tuple[float, float, float]) -> None:
    """Whatever its preference for a position: 2.5% at most, give or take (of 300, 5 standard deviations)."""
    drawn, called = random.Random(0), 0
    first: dict[str, Outcome] = {"A": "win", "B": "lose", "C": "tie"}
    second: dict[str, Outcome] = {"A": "lose", "B": "win", "C": "tie"}
    for _ in range(300):
        both = [(first[drawn.choices("ABC", shares)[0]], second[drawn.choices("ABC", shares)[0]]) for _ in range(128)]
        same = mean_interval([float(a == b) for a, b in both], range(128), bounds=(0, 1), resamples=400)
        called += same.low > consistency_chance(both)
    assert called <= 8 + 5 * 2.8


def test_seeds_of_one_prompt_do_not_narrow_the_interval(tmp_path: Path) -> None:
    with JudgeServer(longer) as server:
        account_of_12 = judge(pairs(12), settings(server), tmp_path)[2].overall
        three = judge([(q, ours + seed, theirs + seed) for q, ours, theirs in pairs(12) for seed in "xyz"],
                      settings(server), tmp_path)[2].overall  # fmt: skip
    assert three.num_calls == 72 and three.consistency == account_of_12.consistency


def test_empty_completions_are_judged(tmp_path: Path) -> None:
    with JudgeServer(longer) as server:
        outcomes = judge([(Prompt("q"), " ", "word"), (Prompt("r"), "x", "")], settings(server), tmp_path).outcomes
    assert outcomes == ["lose", "win"]


def test_no_token_counts(tmp_path: Path) -> None:
    with JudgeServer(lambda body, number: chat("[[A]]", usage=None)) as server:
        account = judge(pairs(1), settings(server, prices={"prompt": 1, "completion": 1}), tmp_path).account
    assert account.this_run == account.stored == Usage(2, None, None, None)


def test_inside_a_running_loop(tmp_path: Path) -> None:
    async def notebook() -> Judged:
        return judge(pairs(2), settings(server), tmp_path)

    with JudgeServer(longer) as server:
        assert asyncio.run(notebook())[0] == ["win", "lose"]


def test_nothing_to_judge(tmp_path: Path) -> None:
    outcomes, margins, account, problems = judge([], settings("http://127.0.0.1:9/v1"), tmp_path)
    assert (outcomes, margins, problems) == ([], [], [])
    assert account.overall.num_calls == 0 and account.overall.consistency is None and not account.overall.is_conclusive
    assert account.this_run == account.stored == Usage(0, 0, 0, None)


def test_each_system_has_its_own_consistency(tmp_path: Path) -> None:
    """A judge that sees the difference of one system and, of the other, the position alone."""
    fair, blind = pairs(40), [(Prompt(f"q{n}"), f"ours, blind {n}", f"theirs, blind {n}") for n in range(40)]

    def half_blind(body: Body, number: int) -> Reply:
        return chat("[[A]]") if "blind" in body["messages"][-1]["content"] else longer(body, number)

    with JudgeServer(half_blind) as server:
        both = judge([*fair, *blind], settings(server), tmp_path, systems=["fair"] * 40 + ["blind"] * 40).account
        alone = {name: judge(asked, settings(server), tmp_path).account for name, asked in
                 (("fair", fair), ("blind", blind))}  # fmt: skip
    assert both.overall.is_conclusive and list(both.by_system) == ["fair", "blind"]
    for name, account in both.by_system.items():
        assert account == alone[name].overall
        assert account.num_calls == 80
    assert both.by_system["fair"].is_conclusive and not both.by_system["blind"].is_conclusive
    assert alone["fair"].by_system == {}


def test_costs_of_this_run_and_of_all_stored_responses(tmp_path: Path) -> None:
    """Three pairs, then nine, then the calls without a verdict again: each response is counted in its own run."""
    prices = {"prompt": 1000, "completion": 10000}

    def mumbles(body: Body, number: int) -> Reply:
        return chat("Hm.", usage=(50, 1)) if number == 5 else longer(body, number)

    with JudgeServer(mumbles) as server:
        asked = settings(server, concurrency=1, prices=prices)
        first = judge(pairs(3), asked, tmp_path).account
        assert first.this_run == first.stored == Usage(6, 550, 51, pytest.approx(0.55 + 0.51))
        whole = judge(pairs(9), asked, tmp_path).account
        assert whole.this_run == Usage(12, 1200, 120, pytest.approx(1.2 + 1.2))
        assert whole.stored == Usage(18, 1750, 171, pytest.approx(1.75 + 1.71))
        again = judge(pairs(9), settings(server, ask_again=True, prices=prices), tmp_path).account
        assert again.this_run == Usage(1, 100, 10, pytest.approx(0.2)) and again.overall.num_without_verdict == 0
        assert again.stored == Usage(19, 1850, 181, pytest.approx(1.85 + 1.81))
        nothing = judge(pairs(9), asked, tmp_path).account
    assert nothing.this_run == Usage(0, 0, 0, 0.0) and nothing.stored == again.stored
    assert len(server.received) == 19
