"""Judge prompts: the request, how responses are parsed, and the messages about a wrong file."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from meetlm.config.errors import ConfigError
from meetlm.data.example import Prompt, Turn
from meetlm.evaluation.judge_prompts import as_question, load_prompt, prompt_names

GOOD = """\
user: |
  Post: {post} A: {answer_a} B: {answer_b}
verdicts:
  A: 'first'
  B: 'second'
"""


def write(folder: Path, text: str) -> str:
    file = folder / "mine.yaml"
    file.write_text(text, encoding="utf-8")
    return str(file)


def test_shipped() -> None:
    assert prompt_names() == ["dialogue", "letter", "summary"]
    dialogue, summary = load_prompt("dialogue"), load_prompt("summary")
    assert dialogue.system and summary.system is None
    for word in ("helpful", "relevant", "accurate", "deep", "creative", "detailed", "length", "names", "objective"):
        assert word in dialogue.text
    for mark in ("[[A]]", "[[B]]", "[[C]]"):
        assert mark in dialogue.system
    assert summary.user.index("{post}") < summary.user.index("{answer_a}") < summary.user.index("{answer_b}")
    assert summary.user.index("{answer_b}") < summary.user.index("Comparison: <") < summary.user.index("Preferred: <")
    assert dialogue.ties and not summary.ties


@pytest.mark.parametrize(
    ("answer", "verdict"),
    [
        ("Comparison: the first is closer.\nPreferred: A", "A"),
        ("Comparison: the second is closer.\nPreferred: B", "B"),
        ('Comparison: …\nPreferred: "B"', "B"),
        ("**Comparison:** …\n**Preferred:** A", "A"),
        ("**Comparison:** …\n**Preferred: B**", "B"),
        ("preferred: Summary A", "A"),
        ("A good one and a better one.\n\nB", "B"),
        ("Comparison: …\nPreferred: A.", "A"),
        ("Comparison: …\nPreferred: a tie", None),
        ("Comparison: …\nPreferred: A or B", None),
        ("Comparison: …\nPreferred: A/B", None),
        ("Comparison: …\nPreferred: Both", None),
        ("Comparison: …\nPreferred: Better", None),
        ('Comparison: <sentence>\nPreferred: <"A" or "B">', None),
        ("Preferred: A\nPreferred: B", None),
        ('Preferred: "A" or "B"', None),
        ('Preferred: <"A" or "B">\nPreferred: B', "B"),
        ('Preferred: <"A', None),
        ("Preferred: **A** or **B**", None),
        ("Preferred: (A) or (B)", None),
        ("Preferred: 'A' or 'B'", None),
        ("Preferred: A, B", None),
        ("Preferred: A and B", None),
        ("Preferred: **A** / **B**", None),
        ("Preferred: A tie", None),
        ("Preferred: A good summary names both", None),
        ("Preferred: neither A nor B", None),
        ("Preferred: <A>", "A"),
        ('Preferred: <"A">', "A"),
        ("Preferred: `A`", "A"),
        ('Preferred: Summary "A"', "A"),
        ("Preferred: A, because it is shorter", "A"),
        ("Preferred: A because it is shorter than B", "A"),
        ("Preferred: B, not A", "B"),
        ("Preferred: A. B misses the point.", "A"),
        ("Preferred:\n**A**", "A"),
        ("Preferred: B.", "B"),
        ("Preferred：B", "B"),
        ("Preferred：B，因为更准确", "B"),
        ("**[[A]]**", "A"),
        ("Answer: A", "A"),
        ("Summary A is good. I prefer summary B", None),
        ("A forum post about\nBob", None),
        ("", None),
        ("<think>Preferred: B? Or\nPreferred: A</think>\nComparison: …\nPreferred: B", "B"),
        ("<think>Hm.\nPreferred: B", None),
    ],
)
def test_summary_verdicts(answer: str, verdict: str | None) -> None:
    prompt = load_prompt("summary")
    assert prompt.verdict(answer) == verdict
    mirrored = re.sub(r"\b[AB]\b", lambda letter: "B" if letter[0] == "A" else "A", answer)
    if not mirrored.startswith(("B good", "B forum")):  # no letter there, but an article
        assert prompt.verdict(mirrored) == {"A": "B", "B": "A", None: None}[verdict]


@pytest.mark.parametrize(
    ("answer", "verdict"),
    [
        ("Assistant A is better: [[A]]", "A"),
        ("[[B]]\n", "B"),
        ("My final verdict is [[C]].", "tie"),
        ("[[A]] … so [[A]]", "A"),
        ("[[A]] if assistant A is better, [[B]] if assistant B is better, [[C]] for a tie", None),
        ('"[[A]]" if assistant A is', None),
        ('"[[A]]" if assistant A is better, "[[B]]" if', None),
        ('"[[A]]" if A is better, "[[B]]" if B is, "[[C]]" for a tie. Verdict: [[B]]', None),
        ("[[A]] for its clarity, not [[B]]", None),
        ("[[A]] for its clarity", "A"),
        ("**[[A]]**", "A"),
        ("Answer: A", "A"),
        ("Final verdict: **B**", "B"),
        ("Verdict: tie", "tie"),
        ("Preferred: A\n\n[[B]]", None),
        ("[[ A ]]", "A"),
        ("[[Assistant B]]", "B"),
        ("[[Tie]]", "tie"),
        ("[A]", "A"),
        ("A is better", None),
    ],
)
def test_dialogue_verdicts(answer: str, verdict: str | None) -> None:
    assert load_prompt("dialogue").verdict(answer) == verdict


@pytest.mark.parametrize(
    ("answer", "verdict"),
    [("A", "A"), (" B.", "B"), ("**A**", "A"), ("(B)", "B"), ("A or B.", None), ("A reply", None), ("Neither", None)],
)
def test_letter_verdicts(answer: str, verdict: str | None) -> None:
    assert load_prompt("letter").verdict(answer) == verdict


def test_question_is_the_whole_dialogue_without_its_cue() -> None:
    text = "\n\nHuman: hi\n\nAssistant: Hello.\n\nHuman: why?\n\nAssistant:"
    assert as_question(Prompt(text)) == "Human: hi\n\nAssistant: Hello.\n\nHuman: why?"
    turns = [("user", "hi"), ("assistant", "Hello. "), ("user", "why?")]
    assert as_question(Prompt(tuple(Turn(role, said) for role, said in turns))) == as_question(Prompt(text))
    assert as_question(Prompt((Turn("user", " hi"),))) == "hi"
    assert as_question(Prompt("SUBREDDIT: r/x\n\nPOST: long\n\nTL;DR:")) == "SUBREDDIT: r/x\n\nPOST: long"
    assert as_question(Prompt("TL;DR: means what?")) == "TL;DR: means what?"


def test_a_judge_sees_tool_calls() -> None:
    call = {"role": "assistant", "content": "", "tool_calls": [{"name": "weather", "city": "Oslo"}]}
    prompt = Prompt.from_json([{"role": "user", "content": "Rain?"}, call, {"role": "tool", "content": "yes"}])
    question = as_question(prompt)
    assert question.startswith("Human: Rain?\n\nAssistant: {") and '"city": "Oslo"' in question
    assert question.endswith("Tool: yes")


def test_braces_in_completions_are_not_replaced() -> None:
    prompt = load_prompt("dialogue")
    filled = prompt.messages(Prompt("{answer_b}?"), " {answer_b} {x} \\1", "second")[-1]["content"]
    assert "start]\n{answer_b} {x} \\1\n[Reply" in filled
    assert filled.count("second") == 1
    assert "{answer_b}?" in filled


def test_from_a_file(tmp_path: Path) -> None:
    prompt = load_prompt(write(tmp_path, GOOD))
    assert prompt.messages(Prompt("a post"), "x", "y") == [{"role": "user", "content": "Post: a post A: x B: y"}]
    assert (prompt.verdict("the first"), prompt.verdict("the second"), prompt.verdict("none")) == ("A", "B", None)


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("{post}", "it", r"mine.yaml:1: user: expected a placeholder for the prompt: \{question\} or \{post\}"),
        ("{answer_b}", "it", r"mine.yaml:1: user: expected the placeholder \{answer_b\}"),
        ("{answer_b}", "{Answerb}", r"mine.yaml:1: user: unknown placeholder \{Answerb\}; did you mean 'answer_b'"),
        ("'first'", "'(first'", r"mine.yaml:4: verdicts.A: expected a regular expression, got '\(first'"),
        ("'first'", "'x*'", r"mine.yaml:4: verdicts.A: .*matches an empty answer"),
        ("  B: 'second'\n", "", r"mine.yaml:3: verdicts.B: is required"),
        ("user", "usr", r"mine.yaml:1: usr: unknown key 'usr'; did you mean 'user'"),
        ("'second'", "[", r"mine.yaml:\d+: not YAML"),
    ],
)
def test_errors_name_file_and_field(tmp_path: Path, old: str, new: str, expected: str) -> None:
    with pytest.raises(ConfigError, match=expected):
        load_prompt(write(tmp_path, GOOD.replace(old, new)))


def test_unknown_name() -> None:
    with pytest.raises(ConfigError, match="--judge.prompt dialog: neither .* nor a YAML file; did you mean 'dialogue'"):
        load_prompt("dialog")
