"""Rows and files as they occur in practice: each is read as intended, or refused in one line that says what to do.

No prompt, turn, tool call or reply is dropped, cut or doubled without a word.
"""

from __future__ import annotations

import gzip
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from pydantic import ValidationError

from meetlm.config.errors import ConfigError, DataError
from meetlm.data import hh, pairs
from meetlm.data.example import Example, Origin, Prompt, Turn, UnfilteredRows, as_reply
from meetlm.data.filters import ExampleTokens, filter_eval, filter_train
from meetlm.data.prompts import read_prompts
from meetlm.data.rows import Row, read_file
from meetlm.data.settings import DataSettings
from meetlm.data.sources import read_examples

USER, OTHER = {"role": "user", "content": "Is rice good?"}, {"role": "user", "content": "Is water?"}
YES, NO = {"role": "assistant", "content": "Yes."}, {"role": "assistant", "content": "No."}
SHAREGPT = [{"from": "human", "value": "Is rice good?"}]
CALLS = [[{"type": "function", "function": {"name": name, "arguments": {}}}] for name in ("look", "buy")]
ASKED = (Turn("user", "Is rice good?"),)


def parse(**fields: Any) -> Example:
    return pairs.parse(Row(fields, Origin("x.jsonl", 7)))


def refusal(**fields: Any) -> str:
    with pytest.raises(DataError) as caught:
        parse(**fields)
    text = str(caught.value)
    assert text.startswith("x.jsonl:7: ") and "\n" not in text
    return text


def tokens_of(example: Example) -> ExampleTokens:
    """Return three tokens; replies that are the same in lower case are the same tokens."""
    chosen, rejected = ((reply.content.lower(), reply.extra) for reply in example.replies)
    return ExampleTokens(1, (1, 1), chosen == rejected)


def filtered(*examples: Example) -> tuple[list[Example], dict[str, int]]:
    """Filter; return the remaining examples, and the count of each reason and oddity."""
    left, report = filter_train(UnfilteredRows(list(examples), []), tokens_of, 9)
    return left, {name: tally.count for name, tally in (report.dropped | report.odd).items()}


CONVERSATIONS: dict[str, tuple[dict[str, Any], tuple[Turn, ...]]] = {
    "OpenAI": ({"prompt": [USER]}, ASKED),
    "ShareGPT": ({"conversations": SHAREGPT}, ASKED),
    "ShareGPT, with a system message": (
        {"conversations": SHAREGPT, "system": "Be kind."},
        (Turn("system", "Be kind."), *ASKED),
    ),
    "messages": ({"messages": [USER]}, ASKED),
    "human and gpt as roles": (
        {"prompt": [{"role": "human", "content": "a"}, {"role": "GPT", "content": "b"}, USER]},
        (Turn("user", "a"), Turn("assistant", "b"), *ASKED),
    ),
    "developer": (
        {"prompt": [{"role": "developer", "content": "Be kind."}, USER]},
        (Turn("system", "Be kind."), *ASKED),
    ),
    "content in parts": ({"prompt": [{"role": "user", "content": [{"type": "text", "text": "Is rice good?"}]}]}, ASKED),
    "JSON text": ({"prompt": json.dumps([USER])}, ASKED),
    "JSON text, other fields first": (
        {"prompt": json.dumps([{"name": "Ann", **USER}])},
        (replace(ASKED[0], extra='{"name": "Ann"}'),),
    ),
    "JSON text, ShareGPT": ({"prompt": json.dumps(SHAREGPT)}, ASKED),
    "text beside replies": ({"prompt": "Is rice good?"}, ASKED),
    "system in a column": ({"prompt": [USER], "system": "Be kind."}, (Turn("system", "Be kind."), *ASKED)),
    "a system message in both places": (
        {"prompt": [{"role": "system", "content": "Be kind."}, USER], "system": "Be kind."},
        (Turn("system", "Be kind."), *ASKED),
    ),
    "the reply is begun": (
        {"prompt": [USER, {"role": "assistant", "content": "Well,"}]},
        (*ASKED, Turn("assistant", "Well,")),
    ),
}


@pytest.mark.parametrize("name", CONVERSATIONS)
def test_conversations_are_read(name: str) -> None:
    fields, turns = CONVERSATIONS[name]
    example = parse(**fields, chosen=[YES], rejected=[NO])
    assert (example.prompt.content, *example.replies) == (turns, as_reply("Yes."), as_reply("No."))
    single = {"chosen": {"from": "gpt", "value": "Yes."}, "rejected": {"from": "gpt", "value": "No."}}
    assert parse(**fields, **single) == example
    assert parse(**fields, chosen=json.dumps([YES]), rejected=json.dumps([NO])) == example
    if name != "text beside replies":
        assert parse(**fields, chosen="Yes.", rejected="No.") == example


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "question": ({"question": "Is rice good?"}, "field 'question': looks like the prompt but would not be used"),
    "question: remedy": ({"question": "Is rice good?"}, "--data.columns prompt=question to use it"),
    "instruction and input": ({"instruction": "Translate.", "input": "Reis"}, "prompt=instruction+input"),
    "input beside the prompt": ({"prompt": "Translate.", "input": "Reis"}, "prompt=prompt+input"),
    "system beside a text": ({"prompt": "Hi", "system": "Be kind."}, "field 'system': looks like a part of the prompt"),
    "system and question": (
        {"system": "Be kind.", "question": "Rice?"},
        "--data.columns prompt=system+question to use",
    ),
    "system and prompt": ({"system": "Be kind.", "prompt": "Rice?"}, "prompt=system+prompt to use it"),
    "history": ({"prompt": "Hi", "history": [["a", "b"]]}, "--data.columns history= to ignore it"),
    "tools": ({"prompt": "Hi", "tools": [{"name": "look"}]}, "field 'tools'"),
    "userQuery": ({"userQuery": "Is rice good?"}, "prompt=userQuery"),
    "unknown role": ({"prompt": [{"role": "narrator", "content": "x"}]}, "field 'prompt[0].role': is 'narrator'"),
    "image": ({"prompt": [{"role": "user", "content": [{"type": "image"}]}]}, "prompt[0].content[0]': is 'image'"),
    "no content": ({"prompt": [{"role": "user"}]}, "field 'prompt[0].content': is missing"),
    "Python's str": ({"prompt": str([USER])}, "field 'prompt': bad JSON"),
    "other system": (
        {"prompt": [{"role": "system", "content": "Be kind."}, USER], "system": "Be cruel."},
        "field 'system': differs from the system message of the conversation",
    ),
    "conversation that is answered": ({"conversations": [USER, YES]}, "field 'conversations': ends with a turn of"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_messages_that_would_lose_parts_are_refused(name: str) -> None:
    fields, text = REFUSED[name]
    assert text in refusal(**fields, chosen="Yes.", rejected="No.")


def test_replies_without_any_prompt_name_the_columns() -> None:
    assert "field 'prompt': is missing" in refusal(chosen=[YES], rejected=[NO], topic="rice")
    assert "columns of this row: chosen, rejected, topic" in refusal(chosen=[YES], rejected=[NO], topic="rice")


@pytest.mark.parametrize(
    "more",
    [
        {"prompt_id": "a1", "source": "web", "context_length": "9", "chosen_model": "x", "score_chosen": 3},
        {"messages": [USER, YES]},  # UltraFeedback's copy of prompt and chosen reply
        {"instruction": " Is rice  good?"},
        {"input": "", "system": None, "tools": []},
    ],
)
def test_columns_about_the_prompt_and_copies_of_it_are_no_part_of_it(more: dict[str, Any]) -> None:
    assert parse(prompt="Is rice good?", chosen="Yes.", rejected="No.", **more).prompt == Prompt("Is rice good?")
    full = {"chosen": [USER, YES], "rejected": [USER, NO]}
    assert parse(prompt="Is rice good?", **full, **more).prompt == Prompt(ASKED)


def test_alpacas_comparisons_are_refused_by_name() -> None:
    text = refusal(instruction="Translate.", input="Reis", output=["rice", "ice"])
    assert "Alpaca" in text and "--data.columns prompt=instruction+input" in text


def test_fields_of_messages_go_to_the_template() -> None:
    sides = [[{"role": "assistant", "content": None, "tool_calls": calls}] for calls in CALLS]
    example = parse(prompt=[USER], chosen=sides[0], rejected=sides[1])
    assert example.replies[0].to_message() == {"role": "assistant", "content": "", "tool_calls": CALLS[0]}
    assert filtered(example) == ([example], {}), "two calls are not the same reply, and a call is not empty"
    thought = parse(prompt=[USER], chosen=[{**YES, "reasoning_content": "Rice is food."}], rejected=[YES])
    assert thought.replies[0].to_message()["reasoning_content"] == "Rice is food." and filtered(thought)[0] == [thought]
    answer = {"role": "tool", "content": "4", "name": "look", "tool_call_id": "1"}
    assert parse(prompt=[USER, *sides[0], answer], chosen=[YES], rejected=[NO]).prompt.to_json()[2] == answer
    assert parse(prompt=[{**USER, "name": None}], chosen=[YES], rejected=[NO]).prompt == Prompt(ASKED), "Arrow's nulls"


def test_conversations_that_repeat_the_begun_reply_lose_it() -> None:
    whole = [[USER, {"role": "assistant", "content": f"Well, {word}"}] for word in ("yes", "no")]
    example = parse(prompt=[USER, {"role": "assistant", "content": "Well,"}], chosen=whole[0], rejected=whole[1])
    assert tuple(r.content for r in example.replies) == (" yes", " no")


def test_remarks_are_counted() -> None:
    both = parse(prompt="Is rice good?", chosen="Is rice good? Yes.", rejected="Is rice good? No.")
    assert tuple(r.content for r in both.replies) == (" Yes.", " No.")
    example = parse(prompt="Is rice good?", chosen="Is rice good? Yes.", rejected=" No.")
    assert example.replies[0].content == "Is rice good? Yes."
    differs = parse(prompt="Is water?", chosen=[USER, YES], rejected=[USER, NO])
    assert differs.prompt == Prompt(ASKED)
    assert filtered(both, example, differs)[1] == {
        "repeated_in_both": 1,
        "repeated_in_one": 1,
        "prompt_column_ignored": 1,
    }


def test_replies_that_are_equal_as_trained_are_dropped() -> None:
    spaces = parse(prompt="Rice?", chosen=" Yes.", rejected="Yes. ")
    tokens = parse(prompt="Water?", chosen="yes", rejected="Yes")
    other = parse(prompt="Tea?", chosen="yes", rejected="no")
    left, counts = filtered(spaces, tokens, other)
    assert (left, counts) == ([other], {"identical_replies": 2})
    test, report = filter_eval(UnfilteredRows([spaces, tokens, other], []), tokens_of, 9)
    assert test == [other] and report.dropped["identical_replies"].count == 2


def test_an_error_of_the_prompt_format_names_the_row() -> None:
    def refuse(example: Example) -> ExampleTokens:
        raise ConfigError("the chat template refuses a conversation")

    with pytest.raises(DataError, match=r"^x\.jsonl:7: the chat template refuses"):
        filter_train(UnfilteredRows([parse(prompt="Rice?", chosen="yes", rejected="no")], []), refuse, 9)


class TestTranscripts:
    def parse(self, chosen: str, rejected: str) -> Example:
        return hh.parse(Row({"chosen": chosen, "rejected": rejected}, Origin("x.jsonl", 7)))

    def test_a_humans_turn_after_the_reply_is_not_trained(self) -> None:
        start = "\n\nHuman: Hi\n\nAssistant:"
        example = self.parse(f"{start} Yes.\n\nHuman: Thanks", f"{start} No.")
        other = self.parse(f"{start} Yes.", f"{start} No.")
        assert filtered(example, other) == ([other], {"human_turn": 1})

    def test_a_transcript_opens_like_all_others(self) -> None:
        assert self.parse("Human: Hi\n\nAssistant: a", "Human: Hi\n\nAssistant: b").prompt == Prompt(
            "\n\nHuman: Hi\n\nAssistant:"
        )

    @pytest.mark.parametrize(
        "text", ["Hi", "Human: Hi", "\n\nHuman: Hi", "Human: Hi\n\nAssistant:", "\n\nHuman: Hi\n\nAssistant:"]
    )
    def test_marks_are_put_once(self, text: str) -> None:
        assert hh.as_transcript(Prompt(text)) == Prompt("\n\nHuman: Hi\n\nAssistant:")

    def test_a_begun_reply_is_continued(self) -> None:
        text = "\n\nHuman: Hi\n\nAssistant: Well,"
        assert hh.as_transcript(Prompt(text)) == Prompt(text)


def write(file: Path, content: str | bytes) -> Path:
    file.write_bytes(content.encode() if isinstance(content, str) else content)
    return file


LINE = json.dumps({"prompt": "Rice?", "chosen": "yes", "rejected": "no"})
TABLE = "prompt,chosen,rejected\nRice?,yes,no\n"
READ: dict[str, tuple[str, str | bytes, int]] = {
    "gzip without .gz": ("a.jsonl", gzip.compress(LINE.encode()), 1),
    "no gzip with .gz": ("a.jsonl.gz", LINE, 1),
    "CSV, gzipped": ("a.csv.gz", gzip.compress(TABLE.encode()), 2),
    "semicolons": ("a.csv", TABLE.replace(",", ";"), 2),
    "tabs": ("a.csv", TABLE.replace(",", "\t"), 2),
    "Excel's first line": ("a.csv", "sep=;\n" + TABLE.replace(",", ";"), 3),
    "CR alone, CSV": ("a.csv", TABLE.replace("\n", "\r"), 2),
    "CR alone, JSON lines": ("a.jsonl", f'{{"prompt": "first"}}\r{LINE}\r', 2),
    "one object": ("a.json", json.dumps(json.loads(LINE), indent=2), 1),
}


@pytest.mark.parametrize("name", READ)
def test_files_that_look_otherwise_than_their_names(name: str, tmp_path: Path) -> None:
    file, content, line = READ[name]
    *_, row = read_file(write(tmp_path / file, content))
    assert dict(row.fields) == json.loads(LINE) and row.origin.line == line


def test_parquet_under_another_name(tmp_path: Path) -> None:
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([json.loads(LINE)]), tmp_path / "a.jsonl")
    assert [dict(row.fields) for row in read_file(tmp_path / "a.jsonl")] == [json.loads(LINE)]


BAD: dict[str, tuple[str, str | bytes, str]] = {
    "UTF-16": ("a.csv", TABLE.encode("utf-16"), "a.csv: is UTF-16 text; expected UTF-8 (iconv"),
    "spreadsheet": ("a.csv", b"PK\x03\x04...", "a.csv: is a zip archive or a spreadsheet"),
    "Git LFS": ("a.jsonl", "version https://git-lfs.github.com/spec/v1\n", "is a Git LFS pointer"),
    "empty JSON": ("a.json", "", "a.json: has no rows"),
    "empty CSV": ("a.csv", "", "a.csv: has no rows"),
    "key twice": ("a.jsonl", f'{LINE}\n{{"chosen": "a", "chosen": "b"}}', "a.jsonl:2: has the key 'chosen' twice"),
    "key twice, nested": ("a.json", '[{"prompt": [{"role": "user", "role": "x"}]}]', "has the key 'role' twice"),
    "column twice": ("a.csv", "prompt,chosen,chosen\na,b,c\n", "a.csv:1: the header has 'chosen' twice"),
    "huge number": ("a.jsonl", f'{LINE}\n{{"id": {"9" * 5000}}}', "a.jsonl:2: bad JSON: a number with thousands"),
    "deep nesting": ("a.jsonl", LINE + "\n" + "[" * 99_999, "a.jsonl:2: bad JSON: too deeply nested"),
    "rows inside an object": ("a.json", json.dumps({"data": [{"prompt": "a"}, {"prompt": "b"}]}), "a list in 'data'"),
}


@pytest.mark.parametrize("name", BAD)
def test_files_that_cannot_be_read(name: str, tmp_path: Path) -> None:
    file, content, text = BAD[name]
    with pytest.raises(DataError) as caught:
        list(read_file(write(tmp_path / file, content)))
    assert text in str(caught.value) and len(str(caught.value).splitlines()) == 1


class TestColumns:
    def examples(self, folder: Path, row: dict[str, Any], **settings: Any) -> list[Example]:
        file = write(folder / "a.jsonl", json.dumps(row) + "\n")
        return read_examples(DataSettings(**{"source": "pairs", "path": str(file), **settings}), "train").rows

    def test_columns_are_renamed_and_joined(self, tmp_path: Path) -> None:
        row = {"instruction": "Translate.", "input": "Reis", "answer_good": "rice", "answer_bad": "ice"}
        columns = "prompt=instruction+input, chosen=answer_good,rejected=answer_bad"
        [example] = self.examples(tmp_path, row, columns=columns)
        assert (example.prompt.text(), example.replies[0].content) == ("Translate.\n\nReis", "rice")
        [example] = self.examples(tmp_path, row | {"input": ""}, columns=columns)
        assert example.prompt.text() == "Translate."

    def test_a_column_can_be_left_out(self, tmp_path: Path) -> None:
        row = json.loads(LINE) | {"system": "Be kind."}
        [example] = self.examples(tmp_path, row, columns={"system": ""})
        assert example.prompt.text() == "Rice?"

    def test_they_hold_for_transcripts(self, tmp_path: Path) -> None:
        row = {"good": "\n\nHuman: Hi\n\nAssistant: a", "bad": "\n\nHuman: Hi\n\nAssistant: b"}
        [example] = self.examples(tmp_path, row, columns="chosen=good,rejected=bad", source="hh")
        assert example.replies[0].content == " a"

    def test_a_missing_column_is_named_with_the_setting(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match=r"a\.jsonl:1: field 'frage': is missing; .*columns reads 'prompt' from it"):
            self.examples(tmp_path, json.loads(LINE), columns="prompt=frage")
        with pytest.raises(ValidationError, match="such as prompt=question"):
            DataSettings(source="pairs", path="x", columns="question")

    def test_they_hold_for_prompts_alone(self, tmp_path: Path) -> None:
        file = write(tmp_path / "p.jsonl", '{"question": "Rice?"}\n')
        settings = DataSettings(source="pairs", eval_file=str(file), columns="prompt=question")
        assert [row.prompt for row in read_prompts(settings).prompts] == [Prompt("Rice?")]
        with pytest.raises(DataError, match="in every row; columns: question; .*prompt=COLUMN"):
            read_prompts(settings.model_copy(update={"columns": {}}))


class TestAsChat:
    def test_text_becomes_one_message(self, tmp_path: Path) -> None:
        file = write(tmp_path / "a.jsonl", json.dumps({"prompt": "Rice?", "chosen": " yes", "rejected": " no"}) + "\n")
        settings = DataSettings(source="pairs", path=str(file), as_chat=True)
        [example] = read_examples(settings, "train").rows
        assert (example.prompt, example.replies[0]) == (Prompt((Turn("user", "Rice?"),)), as_reply("yes"))

    def test_transcripts_become_turns(self, tmp_path: Path) -> None:
        start = "\n\nHuman: Hi\n\nAssistant: Yes?\n\nHuman: Rice?\n\nAssistant:"
        file = write(tmp_path / "a.jsonl", json.dumps({"chosen": start + " a", "rejected": start + " b"}) + "\n")
        settings = DataSettings(source="hh", train_file=str(file), eval_file=str(file), as_chat=True)
        turns = (Turn("user", "Hi"), as_reply("Yes?"), Turn("user", "Rice?"))
        [example] = read_examples(settings, "train").rows
        assert (example.prompt, example.replies[0]) == (Prompt(turns), as_reply("a"))
        assert [row.prompt for row in read_prompts(settings).prompts] == [Prompt(turns)]


def test_prompts_alone_may_begin_the_reply(tmp_path: Path) -> None:
    begun = [USER, {"role": "assistant", "content": "Well,"}]
    file = write(tmp_path / "p.jsonl", json.dumps({"prompt": begun}) + "\n")
    settings = DataSettings(source="pairs", eval_file=str(file))
    assert read_prompts(settings).prompts[0].prompt == Prompt((*ASKED, as_reply("Well,")))
    write(file, json.dumps({"messages": begun}) + "\n")
    with pytest.raises(DataError, match="field 'messages': ends with a turn of 'assistant'"):
        read_prompts(settings)


def test_a_folder_of_save_to_disk_is_read(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    rows = datasets.Dataset.from_list([json.loads(LINE)])
    rows.save_to_disk(tmp_path / "one")
    datasets.DatasetDict({"train": rows}).save_to_disk(tmp_path / "dict")
    for folder in ("one", "dict"):
        settings = DataSettings(source="pairs", path=str(tmp_path / folder))
        [example] = read_examples(settings, "train").rows
        assert str(example.origin) == f"{tmp_path / folder} [train]:1"
    with pytest.raises(DataError, match="has no split 'test'; .*train"):
        read_examples(settings, "eval")


def test_a_mistyped_folder_is_reported_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("meetlm.data.locations.hub_is_reachable", lambda: False)
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(DataError, match="no such file or folder on this machine, and the hub cannot be reached"):
        read_examples(DataSettings(source="pairs", path="my-pairs"), "train")
