"""``meet data``: the format of rows, the account of every row, lengths, and examples as they are encoded."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result
from transformers.utils import logging

from meetlm.cli import main
from meetlm.config.errors import DataError
from meetlm.data.encoding import Encoded
from meetlm.data.example import Origin
from meetlm.data.rows import Row
from meetlm.data.settings import DataSettings
from meetlm.diagnostics.data_report import Segment, report_data, segments, shorten
from meetlm.diagnostics.locate import guess_source, with_test
from tiny import CHATML, text_format, tiny_lm, tiny_tokenizer

SAMPLE = Path(__file__).parents[2] / "shared" / "data" / "hh-harmless-base"


def pair(number: int, chosen: str = " a good way", rejected: str = " bad") -> dict[str, Any]:
    return {"prompt": f"What is {number}?", "chosen": chosen, "rejected": rejected}


def transcript(number: int, prompt: str = "What") -> dict[str, Any]:
    opened = f"is {number}?\n\nAssistant:"
    return {
        "chosen": f"\n\nHuman: What {opened} a good way",
        "rejected": f"\n\nHuman: {prompt} {opened} bad",
    }


def comparison(number: int) -> dict[str, Any]:
    return {
        "info": {"id": f"t{number}", "post": "I boil rice.", "title": "Rice", "subreddit": "cook"},
        "summaries": [{"text": " Rice is boiled."}, {"text": " Rice."}],
        "choice": 0,
    }


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(autouse=True)
def _restored_verbosity() -> Iterator[None]:
    before = logging.get_verbosity()
    yield
    logging.set_verbosity(before)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    tiny_lm("llama", dtype=torch.float32).save_pretrained(folder)
    tiny_tokenizer(template=CHATML).save_pretrained(folder)
    (folder / "model.safetensors").unlink()  # only its config and tokenizer are wanted
    return folder


def data(path: object, *args: object) -> Result:
    return CliRunner().invoke(main, ["data", "--data.path", str(path), *map(str, args)])


def output(path: object, *args: object) -> str:
    result = data(path, *args)
    assert result.exit_code == 0, result.output
    return result.stdout


# --- where the data are and what format they have


@pytest.mark.parametrize(
    ("fields", "source"),
    [
        (transcript(1), "hh"),
        (comparison(1), "summarize"),
        (pair(1), "pairs"),
        ({"chosen": "\n\nHuman: a\n\nAssistant: b", "rejected": "c"}, "pairs"),
        ({"chosen": [{"role": "assistant", "content": "b"}], "rejected": "\n\nHuman: a"}, "pairs"),
        ({"info": {}}, "pairs"),
    ],
)
def test_guess_source(fields: dict[str, Any], source: str) -> None:
    assert guess_source(Row(fields, Origin("f", 1)))[0] == source


def test_the_format_is_guessed_and_can_be_set(tmp_path: Path, model: Path) -> None:
    file = write(tmp_path / "train.jsonl", [transcript(n) for n in range(3)])
    assert output(file, "--model.name", model).startswith(
        "data format: hh, from the first row: chosen and rejected begin"
    )
    as_pairs = output(file, "--model.name", model, "--data.source", "pairs")
    assert "from the first row" not in as_pairs and "What[[ is 0?" not in as_pairs
    assert "the columns info and summaries" in output(
        write(tmp_path / "s.jsonl", [comparison(1)]), "--model.name", model
    )


def test_a_file_is_its_own_training_data(tmp_path: Path) -> None:
    file = write(tmp_path / "x.jsonl", [pair(1)])
    assert with_test(DataSettings(source="pairs", path=str(file))) is None
    settings = DataSettings(source="pairs", path=str(file), eval_file="other.jsonl")
    assert with_test(settings) == settings


def test_splits_of_a_folder(tmp_path: Path) -> None:
    write(tmp_path / "train.jsonl", [pair(1)])
    settings = DataSettings(source="pairs", path=str(tmp_path))
    assert with_test(settings) is None
    write(tmp_path / "validation.jsonl", [pair(2)])
    completed = with_test(settings)
    assert completed is not None and completed.eval_split == "validation"
    write(tmp_path / "test.jsonl", [pair(3)])
    completed = with_test(settings)
    assert completed is not None and completed.eval_split == "test"
    completed = with_test(settings.model_copy(update={"train_split": "test"}))
    assert completed is not None and completed.eval_split == "validation"


def test_a_broken_test_split_is_not_taken_for_none(tmp_path: Path) -> None:
    write(tmp_path / "train.jsonl", [pair(1)])
    (tmp_path / "test.jsonl").write_text("{nonsense\n")
    with pytest.raises(DataError, match=r"test\.jsonl:1: bad JSON"):
        with_test(DataSettings(source="pairs", path=str(tmp_path)))


def test_a_test_file_beside_a_folder_is_not_looked_for_inside(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "set").mkdir()
    write(tmp_path / "set" / "train.jsonl", [pair(1)])
    write(tmp_path / "held.jsonl", [pair(1), pair(2)])
    monkeypatch.chdir(tmp_path)
    text = output("set", "--data.eval_file", tmp_path / "held.jsonl", "--model.name", model)
    assert "held.jsonl: 2 of 2 rows kept" in text
    assert "1 of these prompts are in the training data too (lines 1)" in text


# --- the account and the lengths


def test_every_row_is_accounted_for(tmp_path: Path, model: Path) -> None:
    rows = [transcript(n) for n in range(6)]
    rows[1] = transcript(1, prompt="Where")
    rows[3] = rows[0]
    rows[4]["chosen"] += " good" * 600
    train = write(tmp_path / "train.jsonl", rows)
    write(tmp_path / "test.jsonl", [transcript(0), transcript(10)])
    text = output(tmp_path, "--model.name", model)
    assert f"{train}: 3 of 6 rows kept, 3 distinct prompts" in text
    assert "dropped: 1, the two sides answer different prompts (line 2)" in text
    assert "dropped: 1, duplicate of an earlier row (line 4)" in text
    assert "dropped: 1, more tokens than --data.max_length (line 5)" in text
    assert "1 of these prompts are in the training data too (lines 1)" in text
    assert (
        "The chosen reply is longer in 100% of the pairs that are used, the rejected reply in 0%; 0% are equal" in text
    )
    assert "4 pairs, of which 1 are too long" in text
    assert "1 of 1 rows kept" in output(tmp_path, "--model.name", model, "--data.limit_train", 1)


def test_lengths_by_hand(tmp_path: Path) -> None:
    tokens = text_format().tokenize
    rows = [pair(n, chosen=" a good way" * (n + 1), rejected=" bad" * 3) for n in range(10)]
    report = report_data(
        DataSettings(source="pairs", train_file=str(write(tmp_path / "a.jsonl", rows))),
        text_format(),
        with_eval=False,
    )
    chosen = [len(tokens(row["chosen"])) + 1 for row in rows]  # EOS closes each
    rejected = len(tokens(" bad" * 3)) + 1
    prompt = len(tokens("What is 0?"))
    assert list(report.lengths["chosen reply"].values()) == [
        chosen[0], chosen[1], chosen[4], chosen[8], chosen[9], chosen[9]
    ]  # fmt: skip
    assert report.lengths["prompt"]["min"] == report.lengths["prompt"]["max"] == prompt
    assert report.lengths["prompt + longer reply"]["min"] == prompt + max(chosen[0], rejected)
    wins = sum(length > rejected for length in chosen)
    ties = sum(length == rejected for length in chosen)
    assert report.longer == {"chosen": wins, "rejected": 10 - wins - ties, "neither": ties}
    assert report.test is None and report.overlap is None
    json.dumps(report.to_dict())


def test_rows_held_out_of_the_training_rows(tmp_path: Path) -> None:
    file = write(tmp_path / "a.jsonl", [pair(n) for n in range(10)])
    settings = DataSettings(source="pairs", train_file=str(file), holdout=3)
    report = report_data(settings, text_format(), with_eval=True)
    assert report.test is not None and report.overlap is not None
    assert (report.filters.kept, report.test.kept, report.overlap.count) == (7, 3, 0)


# --- examples as they are encoded


def test_a_slot_and_trained_tokens_are_marked(tmp_path: Path, model: Path) -> None:
    file = write(tmp_path / "a.jsonl", [pair(7)])
    text = output(file, "--model.name", model, "--control.kind", "soft-prompt")
    assert "\x1b" not in text
    assert "‹control good ×50›What is 7?[[ a good way<|im_end|>]]" in text
    assert "‹control bad ×50›What is 7?[[ bad<|im_end|>]]" in text
    assert "line 1, chosen: level good (50 slot, " in text
    text = output(file, "pairs-coh", "--model.name", model)
    assert "‹control good A good response is›What is 7?[[" in text
    text = output(file, "--model.name", model)
    assert "has no slot" in text and "   What is 7?[[ bad<|im_end|>]]" in text and "‹control" not in text


def test_conversations_show_the_chat_template(tmp_path: Path, model: Path) -> None:
    row = {
        "prompt": [{"role": "user", "content": "How?"}],
        "chosen": [{"role": "assistant", "content": "Well."}],
        "rejected": [{"role": "assistant", "content": "Bad."}],
    }
    file = write(tmp_path / "a.jsonl", [row])
    text = output(file, "--model.name", model)
    assert "You are of use." in text and "[[Well.<|im_end|>]]" in text
    assert "You are of use." not in output(file, "--model.name", model, "--format.system", "none")


def test_json(tmp_path: Path, model: Path) -> None:
    file = write(tmp_path / "a.jsonl", [pair(n) for n in range(5)])
    report = json.loads(output(file, "--model.name", model, "--json"))
    assert (report["source"], report["measured"]) == ("pairs", 5)


def test_show_and_control(tmp_path: Path, model: Path) -> None:
    file = write(tmp_path / "a.jsonl", [pair(n) for n in range(5)])
    assert output(file, "--model.name", model).count("── line") == 4
    assert "──" not in output(file, "--model.name", model, "--show", 0)
    wrong = data(file, "--model.name", model, "--control.kind", "soft-promt")
    assert wrong.exit_code == 1 and wrong.stdout.count("rows kept") == 0
    assert "did you mean 'soft-prompt'" in wrong.stderr


def test_malformed_rows_end_with_their_place(tmp_path: Path, model: Path) -> None:
    file = write(tmp_path / "a.jsonl", [pair(1), {"prompt": "x", "chosen": "y"}])
    result = data(file, "--model.name", model)
    assert result.exit_code == 1 and f"error: {file}:2: field 'rejected': is missing" in result.stderr


def test_segments_with_the_slot_before_the_response() -> None:
    ids = text_format().tokenize
    sequence = Encoded.of_one((*ids("How"), 320, 321, *ids(" well"), 0), len(ids("How")) + 2, (0.0, 1.0))
    parts = segments(sequence, [320, 321], "before_response", tiny_tokenizer(), 320)
    assert [(part.kind, part.text) for part in parts] == [
        ("prompt", "How"),
        ("slot", "×2"),
        ("trained", " well<|endoftext|>"),
    ]
    assert sum(part.tokens for part in parts) == len(sequence.ids)


def test_shorten_keeps_both_ends() -> None:
    words = [str(n) for n in range(100)]
    short = shorten(Segment("prompt", " ".join(words), 300), 60)
    assert short.text.startswith("0 1 2") and short.text.endswith("98 99")
    assert "29 (… 40 words …) 70" in short.text and short.tokens == 300
    whole = Segment("prompt", " ".join(words[:70]), 70)
    assert shorten(whole, 60) is whole


@pytest.mark.hh
@pytest.mark.skipif(not SAMPLE.exists(), reason="no HH-RLHF sample beside the checkout")
def test_harmless_base(model: Path) -> None:
    text = output(SAMPLE, "--model.name", model, "--data.max_length", 100_000, "--show", 1)
    assert "data format: hh" in text
    assert "1593 of 1600 rows kept" in text
    assert "a reply is empty (lines 65, 357, 642, 774)" in text
    assert "399 of 400 rows kept" in text
    assert "none of these prompts is in the training data" in text


@pytest.mark.hh
@pytest.mark.slow
@pytest.mark.skipif(not SAMPLE.exists(), reason="no HH-RLHF sample beside the checkout")
def test_harmless_base_with_smollm2() -> None:
    text = output(SAMPLE)
    assert "1539 of 1600 rows kept" in text
    assert "dropped: 54, more tokens than --data.max_length" in text
