"""The judge in ``meet evaluate``: its prompt, and the messages about it."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from click.testing import CliRunner

from judge_server import Body, JudgeServer, Reply, chat
from meetlm.cli import main
from meetlm.evaluation.record import Evaluation
from meetlm.run.execute import execute
from run_folders import config_for

POST = "SUBREDDIT: r/{n}\n\nTITLE: A title\n\nPOST: A long post.\n\nTL;DR:"
HH = "\n\nHuman: What is rice, {n}?\n\nAssistant:"
PAIR = "What is rice, {n}?"


def rows_of(source: str, number: int) -> list[dict[str, object]]:
    """Held-out rows in the format of a source."""
    if source == "summarize":
        info = {"post": "A long post.", "title": "A title"}
        summaries = [{"text": " a good one"}, {"text": " a bad one"}]
        return [
            {"info": {**info, "id": f"t3_{n}", "subreddit": f"{n}"}, "summaries": summaries, "choice": 0}
            for n in range(number)
        ]
    if source == "hh":
        return [{"chosen": HH.format(n=n) + " Food.", "rejected": HH.format(n=n) + " No."} for n in range(number)]
    return [{"prompt": PAIR.format(n=n), "chosen": "Food.", "rejected": "No."} for n in range(number)]


@pytest.fixture(autouse=True)
def no_charts(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.function is not test_the_record_has_the_cells_that_were_judged:
        monkeypatch.setattr("meetlm.run.evaluate.write_report", lambda evaluation, folder: [])


def lines(file: Path, rows: list[dict[str, object]]) -> Path:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def evaluated(folder: Path, source: str, server: JudgeServer, *args: object, number: int = 3) -> tuple[str, Evaluation]:
    """Compare two systems by a judge; return the output and the record."""
    prompt = {"summarize": POST, "hh": HH, "pairs": PAIR}[source]
    data = lines(folder / "test.jsonl", rows_of(source, number))
    places = [
        f"{name}={lines(folder / f'{name}.jsonl', rows)}"
        for name, text in (("a", "reply, longer"), ("b", "reply"))
        for rows in [[{"prompt": prompt.format(n=n), "completion": text} for n in range(number)]]
    ]
    judge = ["--judge", "j", "--judge.base_url", server.url, "--judge.key_env", "null", *args]
    usual = ["--baseline", "b", "--data.path", data, "--out", folder / "out", "--quiet"]
    result = CliRunner().invoke(main, [str(arg) for arg in ("evaluate", *places, *usual, *judge)])
    assert result.exit_code == 0, result.output
    return result.output, Evaluation.read(folder / "out" / "evaluation.json")


def likes_longer(body: Body, number: int) -> Reply:
    """A verdict in the format of every prompt of the package."""
    replies = re.findall(r"\breply\b(?:, longer)?", body["messages"][-1]["content"])
    first = "A" if replies[0] == "reply, longer" else "B"
    return chat(f"Comparison: …\nPreferred: {first}\n[[{first}]]")


@pytest.mark.parametrize(
    ("source", "args", "prompt", "reason"),
    [
        ("summarize", [], "summary", "for the data source summarize, whose responses are summaries"),
        ("hh", [], "dialogue", "for the data source hh, whose responses are replies in a dialogue"),
        ("pairs", [], "dialogue", "the default, since the kind of response in pairs data is unknown"),
        ("summarize", ["--judge.prompt", "dialogue"], "dialogue", "set by --judge.prompt"),
        ("hh", ["--judge.prompt", "summary"], "summary", "set by --judge.prompt"),
    ],
)
def test_the_judge_prompt_follows_the_data_unless_set(
    tmp_path: Path, source: str, args: list[str], prompt: str, reason: str
) -> None:
    with JudgeServer(likes_longer) as server:
        said, evaluation = evaluated(tmp_path, source, server, *args)
    sent = {len(body["messages"]) for body in server.received}
    assert len(server.received) == 6 and sent == {1 if prompt == "summary" else 2}  # a system message or none
    assert evaluation.judge and (evaluation.judge.prompt, evaluation.judge.prompt_reason) == (prompt, reason)
    assert evaluation.settings["judge"]["prompt"] == prompt
    assert "Calls and costs of the judge" in said and f"{prompt}, {reason}" in said


def test_a_resumed_evaluation_reports_the_costs_of_both_runs(tmp_path: Path) -> None:
    prices = ["--judge.prices", "{prompt: 1000, completion: 10000}"]
    with JudgeServer(likes_longer) as server:
        first, _ = evaluated(tmp_path, "hh", server, *prices, number=2)
        second, evaluation = evaluated(tmp_path, "hh", server, *prices, number=5)
        third, again = evaluated(tmp_path, "hh", server, *prices, number=5)
    assert "4 responses, 400 prompt and 40 completion tokens, cost 0.80" in first
    assert "6 responses, 600 prompt and 60 completion tokens, cost 1.20" in second
    assert "10 responses, 1,000 prompt and 100 completion tokens, cost 2.00" in second
    assert "0 responses, 0 prompt and 0 completion tokens, cost 0.00" in third
    assert evaluation.judge and again.judge and again.judge.stored == evaluation.judge.stored
    assert again.judge.by_system == evaluation.judge.by_system and list(evaluation.judge.by_system) == ["a"]
    assert re.search(r"\na .* 100\.0 \[", second) and len(server.received) == 10
    assert "all systems" not in second  # one system is all


@pytest.mark.slow
def test_a_temperature_sweep_asks_as_the_runs_data_are(tmp_path: Path) -> None:
    """The report has the cost at every temperature; a second sweep costs nothing."""
    runs = [tmp_path / f"r{seed}" for seed in (0, 1)]
    for seed, run in enumerate(runs):
        execute(config_for(tmp_path / f"c{seed}", "llama", "lora", f"seed={seed}"), run)
    args = ["sweep-temperature", *runs, "--baseline", "r1", "--temperatures", "0,1", "--max-new-tokens", 4]
    args += ["--out", tmp_path / "out", "--quiet", "--judge", "j", "--judge.key_env", "null", "--judge.base_url"]

    def any_verdict(body: Body, number: int) -> Reply:
        return chat(f"[[{'ABC'[number % 3]}]]")

    with JudgeServer(any_verdict) as server:
        for asked in (True, False):
            result = CliRunner().invoke(main, [str(arg) for arg in (*args, server.url)])
            assert result.exit_code == 0, result.output
            judges = [Evaluation.read(tmp_path / "out" / f"t{t}" / "r1" / "evaluation.json").judge for t in (0, 1)]
            used = [judge.this_run.num_responses for judge in judges if judge]
            assert sum(used) == len(server.received) * asked and len(server.received) == server.distinct > 0
            assert all(judge and judge.stored.num_responses >= judge.this_run.num_responses for judge in judges)
    reason = "for the data source hh, whose responses are replies in a dialogue"
    assert result.output.count(f"dialogue, {reason}") == 2
    text = (tmp_path / "out" / "temperature.md").read_text(encoding="utf-8")
    assert f"| dialogue, {reason} |" in text and "**Consistency of the judge across both orders**" in text


def test_the_record_has_the_cells_that_were_judged(tmp_path: Path) -> None:
    """Three of five prompts are judged, one of them without a verdict."""
    first = []

    def once_silent(body: Body, number: int) -> Reply:
        question = re.search(r"What is rice, \d", body["messages"][-1]["content"])
        assert question
        first.append(question[0])
        return chat(None, finish="content_filter") if question[0] == first[0] else likes_longer(body, number)

    with JudgeServer(once_silent) as server:
        args = ["--judge.num_prompts", 3, "--judge.concurrency", "1"]
        said, evaluation = evaluated(tmp_path, "hh", server, *args, number=5)
    judged, rouge = (
        next(comparison for comparison in evaluation.comparisons if comparison.evaluator == name)
        for name in ("judge", "rouge-avg")
    )
    assert judged.asked and judged.asked.count(True) == 3 and rouge.asked is None
    assert [outcome for outcome, was in zip(judged.outcomes, judged.asked, strict=True) if not was] == [None, None]
    assert sorted(map(str, judged.outcomes)) == ["None", "None", "None", "win", "win"]
    assert (judged.rates.num_cells, judged.num_left_out) == (2, 1)
    assert re.search(r"\na .* 6 +2 +0 *\n", said)
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    (codes,) = re.findall(r'"evaluator":"judge","outcomes":"([^"]*)"', page)
    assert sorted(codes) == ["-", "o", "o", "w", "w"]
