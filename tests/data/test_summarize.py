"""Comparisons of summaries: the TL;DR prompt letter by letter, both validation parts, the errors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from meetlm.config.errors import DataError
from meetlm.data import summarize
from meetlm.data.example import Origin
from meetlm.data.rows import Row
from meetlm.data.settings import DataSettings
from meetlm.data.sources import read_examples


def fields(**changes: Any) -> dict[str, Any]:
    """A row as the hub has it."""
    info = {
        "id": "t3_2vwp1w",
        "post": "One.\n\nTwo.\nThree.",
        "title": "A car [accident]",
        "subreddit": "legaladvice",
        "site": None,
        "article": None,
    }
    summaries = [
        {"text": " first", "policy": "sup2", "note": None},
        {"text": " second", "policy": "ref", "note": "ok"},
    ]
    row = {
        "info": info,
        "summaries": summaries,
        "choice": 1,
        "worker": "w",
        "batch": "batch3",
        "split": "train",
    }
    return {**row, "extra": {"confidence": None}, **changes}


def parse(row: dict[str, Any]) -> Any:
    return summarize.parse(Row(row, Origin("x.jsonl", 7)))


def test_the_prompt_of_a_post() -> None:
    example = parse(fields())
    assert example.prompt.text() == (
        "SUBREDDIT: r/legaladvice\n\nTITLE: A car [accident]\n\nPOST: One.\nTwo.\nThree.\n\nTL;DR:"
    )
    assert tuple(r.content for r in example.replies) == (" second", " first")
    assert (example.group, str(example.origin)) == ("t3_2vwp1w", "x.jsonl:7")


def test_choice_zero_and_braces_in_a_post() -> None:
    info = {**fields()["info"], "post": "{title} and {0}"}
    example = parse(fields(choice=0, info=info))
    assert tuple(r.content for r in example.replies) == (" first", " second")
    assert "POST: {title} and {0}\n\n" in example.prompt.text()


def test_the_prompt_of_an_article() -> None:
    """OpenAI's own files leave out the keys that do not apply; the hub has nulls there."""
    info = {"id": "abc", "title": "T", "site": "cnn", "article": "(CNN) News.\n\nMore."}
    example = parse(fields(info=info, batch="cnndm0"))
    assert (example.prompt.text(), example.group) == ("Article:\n(CNN) News.\nMore.\n\nTL;DR:", "abc")


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"choice": 2}, "field 'choice': is 2; expected 0 or 1, the index of the better summary"),
        ({"choice": True}, "field 'choice': is true or false; expected an integer"),
        ({"choice": "1"}, "field 'choice': is a string; expected an integer"),
        ({"summaries": [{"text": "a"}]}, "field 'summaries': has 1 summaries; expected two"),
        (
            {"summaries": [{"text": "a"}, {"policy": "b"}]},
            "field 'summaries[1].text': is missing; expected a string; fields of this row: policy",
        ),
        ({"summaries": ["a", "b"]}, "field 'summaries[1]': is not an object; expected an object with a text"),
        ({"info": "x"}, "field 'info': is a string; expected an object"),
        ({"info": {**fields()["info"], "post": None}}, "field 'info.post': is null; expected a string"),
        ({"info": {**fields()["info"], "id": 3}}, "field 'info.id': is an integer; expected a string"),
    ],
)
def test_errors(changes: dict[str, Any], text: str) -> None:
    with pytest.raises(DataError) as caught:
        parse(fields(**changes))
    assert str(caught.value) == f"x.jsonl:7: {text}"


def test_splits_by_the_field_of_a_row(tmp_path: Path) -> None:
    file = tmp_path / "batch3.json"
    parts = ["train", "valid1", "valid2", "train"]
    file.write_text("".join(json.dumps(fields(split=part)) + "\n" for part in parts))
    settings = DataSettings(source="summarize", train_file=str(file), eval_file=str(file))
    assert [example.origin.line for example in read_examples(settings, "train").rows] == [1, 4]
    assert [example.origin.line for example in read_examples(settings, "eval").rows] == [2, 3]


def test_a_file_of_another_split_only(tmp_path: Path) -> None:
    file = tmp_path / "valid.jsonl"
    file.write_text(json.dumps(fields(split="valid1")) + "\n")
    with pytest.raises(DataError, match=r"valid\.jsonl: no row is part of the split 'train'"):
        read_examples(DataSettings(source="summarize", path=str(file)), "train")


def test_the_hub_layout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The hub's Parquet copy: ``comparisons/<split>/0000.parquet``, with both validation parts together."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    for split, parts in {"train": ["train"], "validation": ["valid1", "valid2"]}.items():
        folder = tmp_path / "hub" / "comparisons" / split
        folder.mkdir(parents=True)
        table = pyarrow.Table.from_pylist([fields(split=part, batch=part) for part in parts])
        pyarrow.parquet.write_table(table, folder / "0000.parquet")
    settings = DataSettings(
        source="summarize", path=str(tmp_path / "hub"), subset="comparisons", eval_split="validation"
    )
    expected = parse(fields())
    for split, lines in [("train", [1]), ("eval", [1, 2])]:
        examples = read_examples(settings, split).rows  # type: ignore[arg-type]
        assert [example.origin.line for example in examples] == lines
        assert all((row.prompt, row.replies[0]) == (expected.prompt, expected.replies[0]) for row in examples)
