"""TRL's preference formats: explicit and implicit prompts, text and conversations."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from meetlm.config.errors import DataError
from meetlm.data import pairs
from meetlm.data.example import Example, Origin, Prompt, Turn
from meetlm.data.rows import Row
from meetlm.data.settings import DataSettings
from meetlm.data.sources import read_examples


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def reply(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def turns(*messages: dict[str, str]) -> tuple[Turn, ...]:
    return tuple(Turn(message["role"], message["content"]) for message in messages)


def parse(**fields: Any) -> Example:
    return pairs.parse(Row(fields, Origin("x.jsonl", 7)))


def parts(example: Example) -> tuple[Any, Any, Any]:
    chat = example.prompt.is_chat
    replies = ((side,) if chat else side.content for side in example.replies)
    return example.prompt.content, *replies


def test_explicit_text() -> None:
    example = parse(prompt="Q:", chosen=" a", rejected=" a b")
    assert parts(example) == ("Q:", " a", " a b")
    assert (example.group, example.other_prompt) == ("Q:", None)


@pytest.mark.parametrize(
    ("chosen", "rejected", "prompt"),
    [
        ("The sky is blue.", "The sky is green.", "The sky is"),  # the space goes with the completions
        ("The sky is blue.", "The sky is black.", "The sky is"),  # no word is torn
        ("Q: x\nA: yes", "Q: x\nA:\nno", "Q: x\nA:"),  # both continue with white space
        ("It is blue sky", "It is blueish sky", "It is"),  # one word is the start of the other
        ("2+2? 4", "2+2? 4 of course", "2+2?"),  # one side ends: neither completion is empty
        ("a \n\nb", "a \n\nc", "a"),  # a run of white space is not cut
        ("same text", "same text", "same"),
        ("yes", "no", ""),
        ("", "no", ""),
    ],
)
def test_implicit_text(chosen: str, rejected: str, prompt: str) -> None:
    for first, second in [(chosen, rejected), (rejected, chosen)]:
        expected = (prompt, first[len(prompt) :], second[len(prompt) :])
        assert parts(parse(chosen=first, rejected=second)) == expected
        assert parts(parse(prompt=None, chosen=first, rejected=second)) == expected


def test_explicit_conversation() -> None:
    example = parse(prompt=[user("hi")], chosen=[reply("yo")], rejected=[reply("go")])
    assert parts(example) == (turns(user("hi")), turns(reply("yo")), turns(reply("go")))
    again = parse(prompt=[user("hi")], chosen=[user("hi"), reply("yo")], rejected=[user("hi"), reply("go")])
    assert again == example
    assert parse(prompt=[user("ho")], chosen=[reply("yo")], rejected=[reply("go")]).group != example.group


def test_implicit_conversation_shares_the_leading_turns() -> None:
    shared = [{"role": "system", "content": "s"}, user("a"), reply("b"), user("c")]
    example = parse(chosen=[*shared, reply("yes")], rejected=[*shared, reply("no")])
    assert parts(example) == (turns(*shared), turns(reply("yes")), turns(reply("no")))
    assert example.other_prompt is None


def test_implicit_conversation_of_equal_sides_keeps_a_completion() -> None:
    example = parse(chosen=[user("a"), reply("b")], rejected=[user("a"), reply("b")])
    assert parts(example) == (turns(user("a")), turns(reply("b")), turns(reply("b")))


def test_implicit_conversation_that_parts_before_the_last_question() -> None:
    chosen = [user("a"), reply("b"), user("c"), reply("yes")]
    rejected = [user("a"), reply("B"), user("c"), reply("no")]
    example = parse(chosen=chosen, rejected=rejected)
    assert parts(example) == (turns(*chosen[:3]), turns(reply("yes")), turns(reply("no")))
    assert example.other_prompt == Prompt(turns(*rejected[:3]))


def test_a_text_prompt_with_conversations_is_a_copy() -> None:
    example = parse(prompt="a", chosen=[user("a"), reply("b")], rejected=[user("a"), reply("c")])
    assert parts(example) == (turns(user("a")), turns(reply("b")), turns(reply("c")))


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        (
            {"prompt": "a", "chosen": "b"},
            "field 'rejected': is missing; expected text, or a list of messages with role and content; "
            "fields of this row: chosen, prompt"
            "; --data.columns rejected=COLUMN reads it from another column",
        ),
        (
            {"prompt": "a", "completion": "b", "score": 0.5},
            "holds one reply, with a score; "
            "expected 'chosen' and 'rejected'; or --data.source feedback, which reads replies with feedback",
        ),
        (
            {"prompt": "a", "completion": "b", "score": 0.5, "chosen": "c"},
            "field 'rejected': is missing; expected text, or a list of messages with role and content; "
            "fields of this row: chosen, completion, prompt, score"
            "; --data.columns rejected=COLUMN reads it from another column",
        ),
        (
            {"prompt": 3, "chosen": "b", "rejected": "c"},
            "field 'prompt': is an integer; expected text, or a list of messages with role and content",
        ),
        (
            {"chosen": {"role": "user"}, "rejected": "c"},
            "field 'chosen[0].content': is missing; expected a string; fields of this row: role",
        ),
        (
            {"chosen": "b", "rejected": [reply("c")]},
            "field 'rejected': is a conversation; expected text, as in 'chosen'",
        ),
        ({"chosen": [], "rejected": []}, "field 'chosen': is an empty list; expected at least one message"),
        (
            {"chosen": [user("a"), "b"], "rejected": []},
            "field 'chosen[1]': is a string; expected an object with role and content",
        ),
        (
            {"chosen": [{"role": "user", "content": None}], "rejected": []},
            "field 'chosen[0].content': is null; expected a string",
        ),
        (
            {"chosen": [{"from": "human"}], "rejected": []},
            "field 'chosen[0].role': is missing; expected a string; fields of this row: from",
        ),
        (
            {"chosen": [user("a"), reply("b")], "rejected": [user("a")]},
            "field 'rejected': ends with a turn of 'user'; expected an assistant turn last",
        ),
        (
            {"prompt": [user("a")], "chosen": [user("x"), reply("b")], "rejected": [reply("c")]},
            "field 'chosen': has user or system turns that are not in the prompt; "
            "expected only the reply, or all turns of the prompt and then the reply",
        ),
    ],
)
def test_errors(fields: dict[str, Any], text: str) -> None:
    with pytest.raises(DataError) as caught:
        parse(**fields)
    assert str(caught.value) == f"x.jsonl:7: {text}"


CHAT = {"prompt": [user("hi")], "chosen": [reply("yo")], "rejected": [reply('g,"o')]}
TEXT = {"prompt": "hi", "chosen": " yo", "rejected": ' g,"o'}


@pytest.mark.parametrize("row", [TEXT, CHAT], ids=["text", "chat"])
@pytest.mark.parametrize("ending", ["jsonl", "json", "csv", "parquet"])
def test_every_kind_of_file_gives_the_same_example(tmp_path: Path, row: dict[str, Any], ending: str) -> None:
    file = tmp_path / f"a.{ending}"
    if ending == "parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist([row]), file)
    elif ending == "csv":
        cells = [value if isinstance(value, str) else json.dumps(value) for value in row.values()]
        quoted = ",".join('"' + cell.replace('"', '""') + '"' for cell in cells)
        file.write_text(",".join(row) + "\n" + quoted + "\n")
    else:
        file.write_text(json.dumps([row] if ending == "json" else row))
    [example] = read_examples(DataSettings(source="pairs", path=str(file)), "train").rows
    assert parts(example) == parts(parse(**row))
    assert str(example.origin) == f"{file}:{2 if ending == 'csv' else 1}"
