"""Transcripts of HH-RLHF: where they are split, and what the real sample holds."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import pytest

from meetlm.config.errors import DataError
from meetlm.data import hh
from meetlm.data.example import Origin, Prompt
from meetlm.data.filters import ExampleTokens, filter_train
from meetlm.data.rows import Row
from meetlm.data.settings import DataSettings
from meetlm.data.sources import read_examples

SAMPLE = Path(__file__).parents[3] / "shared" / "data"
QUESTION = "\n\nHuman: a\n\nAssistant: b\n\nHuman: c\n\nAssistant:"


def row(**fields: object) -> Row:
    return Row(fields, Origin("x.jsonl", 7))


def test_split_at_the_last_assistant_turn() -> None:
    example = hh.parse(row(chosen=QUESTION + " yes", rejected=QUESTION + " no\n\nmore"))
    assert (example.prompt.content, *(reply.content for reply in example.replies)) == (
        QUESTION,
        " yes",
        " no\n\nmore",
    )
    assert example.group == QUESTION and example.other_prompt is None
    assert str(example.origin) == "x.jsonl:7"


def test_an_empty_reply_stays_empty() -> None:
    example = hh.parse(row(chosen=QUESTION, rejected=QUESTION + " no"))
    assert (example.prompt.content, example.replies[0].content) == (QUESTION, "")


def test_sides_with_different_prompts_are_split_separately() -> None:
    other = "\n\nHuman: a\n\nAssistant: something else\n\nHuman: c\n\nAssistant:"
    example = hh.parse(row(chosen=QUESTION + " yes", rejected=other + " no"))
    assert (example.prompt, example.other_prompt) == (Prompt(QUESTION), Prompt(other))
    assert tuple(r.content for r in example.replies) == (" yes", " no")


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        (
            {"chosen": QUESTION + " yes", "rejected": "Assistant: no"},
            "x.jsonl:7: field 'rejected': the transcript has no assistant turn; "
            "expected '\\n\\nAssistant:' before the reply",
        ),
        (
            {"chosen": QUESTION},
            "x.jsonl:7: field 'rejected': is missing; expected a string; fields of this row: chosen"
            "; --data.columns rejected=COLUMN reads it from another column",
        ),
        ({"chosen": [], "rejected": ""}, "x.jsonl:7: field 'chosen': is a list; expected a string"),
        ({"chosen": None, "rejected": ""}, "x.jsonl:7: field 'chosen': is null; expected a string"),
        (
            {"chosen": QUESTION + "\ud800", "rejected": ""},
            "x.jsonl:7: field 'chosen': contains half of a surrogate pair; expected valid Unicode",
        ),
    ],
)
def test_errors(fields: dict[str, object], text: str) -> None:
    with pytest.raises(DataError) as caught:
        hh.parse(row(**fields))
    assert str(caught.value) == text


@pytest.mark.hh
@pytest.mark.skipif(not SAMPLE.is_dir(), reason=f"no HH-RLHF sample at {SAMPLE}")
@pytest.mark.parametrize(
    ("split", "total", "differ", "empty", "remaining"), [("train", 1600, 3, 4, 1593), ("eval", 400, 1, 0, 399)]
)
def test_the_real_sample(split: Literal["train", "eval"], total: int, differ: int, empty: int, remaining: int) -> None:
    read = read_examples(DataSettings(source="hh", path=str(SAMPLE), subset="hh-harmless-base"), split)
    examples = read.rows
    assert len(examples) == total
    for example in examples:
        prompt, chosen = example.prompt.text(), example.replies[0].content
        assert prompt.startswith("\n\nHuman:") and prompt.endswith("\n\nAssistant:")
        assert chosen == "" or chosen[0].isspace()
    report = filter_train(read, lambda _: ExampleTokens(0, (0, 0)), 512)[1]
    counts = {name: tally.count for name, tally in report.dropped.items()}
    assert counts == {name: n for name, n in {"sides_differ": differ, "empty_reply": empty}.items() if n}
    assert (report.kept, report.groups) == (remaining, remaining)
    assert len({example.prompt for example in examples}) == total
