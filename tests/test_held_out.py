"""Held-out prompts: one reader for `meet generate` and `meet evaluate`, of pairs and of prompts alone."""

from __future__ import annotations

import gzip
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from click.testing import CliRunner

from meetlm.cli import main
from meetlm.cli.arguments import held_out_data
from meetlm.config.errors import DataError
from meetlm.config.overrides import Override
from meetlm.data.example import Prompt, Turn, as_reply
from meetlm.data.filters import ExampleTokens, filter_train
from meetlm.data.prompts import read_prompts
from meetlm.data.settings import DataSettings
from meetlm.data.sources import read_examples
from meetlm.diagnostics.check_data import check_data
from meetlm.diagnostics.data_report import report_data
from meetlm.evaluation.record import Evaluation
from meetlm.generation.settings import Sampling
from meetlm.policy.loading import load_tokenizer
from meetlm.run.completions import completions_file
from meetlm.run.execute import execute
from meetlm.run.prepared import pinned_format, prepare_data
from reward_models import folder_of
from run_folders import config_for, write_pairs
from test_completion_files import written
from tiny import text_format

ASKED = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Is rice good?"}]


def held(file: Path, source: str = "pairs") -> DataSettings:
    return DataSettings(source=source, eval_file=str(file))


def meet(*args: object) -> Any:
    return CliRunner().invoke(main, [str(arg) for arg in args])


def compared(folder: Path, rows: Sequence[dict[str, Any]], *args: object) -> Any:
    """Give `meet evaluate` two systems with the prompts of ``rows``; return what came of it."""
    prompts = [row["prompt"] for row in rows if row.get("prompt")]
    places = []
    for name, reply in (("a", "rice is good {}"), ("b", "water {}")):
        answers = [{"prompt": prompt, "completion": reply.format(n)} for n, prompt in enumerate(prompts)]
        places.append(f"{name}={written(folder / f'{name}.jsonl', answers)}")
    data = written(folder / "test.jsonl", rows)
    return meet("evaluate", *places, "--baseline", "b", "--data.path", data, "--out", folder / "out", "--quiet", *args)


def recorded(folder: Path) -> Evaluation:
    return Evaluation.read(folder / "out" / "evaluation.json")


def test_prompts_alone_are_text_or_messages_that_end_with_the_user(tmp_path: Path) -> None:
    rows = [{"prompt": "Hi"}, {"prompt": ASKED, "id": 3}, {"messages": ASKED}, {"prompt": "Hi", "completion": "Ho"}]
    read = read_prompts(held(written(tmp_path / "p.jsonl", rows)))
    turns = Prompt((Turn("system", "Be kind."), Turn("user", "Is rice good?")))
    assert [row.prompt for row in read.prompts] == [Prompt("Hi"), turns, turns, Prompt("Hi")]
    assert {row.chosen for row in read.prompts} == {None} and read.without_prompt == []
    answered = [*ASKED, {"role": "assistant", "content": "Yes."}]
    with pytest.raises(DataError, match=r"p\.jsonl:1: field 'messages': ends with a turn of 'assistant'; expected"):
        read_prompts(held(written(tmp_path / "p.jsonl", [{"messages": answered}])))
    prefix = read_prompts(held(written(tmp_path / "p.jsonl", [{"prompt": answered}]))).prompts[0]
    assert prefix.prompt.turns[-1].content == "Yes.", "the reply continues it"


@pytest.mark.parametrize(
    ("source", "pair", "prompt", "chosen"),
    [
        ("hh", {side: f"\n\nHuman: Hi\n\nAssistant: {side}" for side in ("chosen", "rejected")},
         "\n\nHuman: Hi\n\nAssistant:", " chosen"),
        ("pairs", {"prompt": "Hi", "chosen": "yes", "rejected": "no"}, "Hi", "yes"),
        ("summarize",
         {"info": {"id": "1", "article": "Rice."}, "choice": 1, "summaries": [{"text": "a"}, {"text": "b"}]},
         "Article:\nRice.\n\nTL;DR:", "b"),
    ],
)  # fmt: skip
def test_pairs_and_prompts_alone_in_one_file(
    source: str, pair: dict[str, Any], prompt: str, chosen: str, tmp_path: Path
) -> None:
    file = written(tmp_path / "p.jsonl", [pair, {"prompt": "Ho"}])
    read = read_prompts(held(file, source))
    assert [(row.prompt, row.chosen) for row in read.prompts] == [
        (Prompt(prompt), as_reply(chosen)),
        (Prompt("Ho"), None),
    ]
    half = {name: value for name, value in pair.items() if name not in ("rejected", "choice")}
    with pytest.raises(DataError, match=r"p\.jsonl:2: field '(rejected|choice)': is missing"):
        read_prompts(held(written(file, [{"prompt": "Ho"}, half]), source))


def of_splits(file: Path, *splits: str) -> Path:
    """Write a pair of summaries for each of the splits, which it states."""
    rows = []
    for split in splits:
        info = {"id": f"{len(rows)}", "article": f"Rice {len(rows)}."}
        rows.append({"info": info, "choice": 1, "summaries": [{"text": " a"}, {"text": " b"}], "split": split})
    return written(file, rows)


def test_every_row_of_a_file_in_data_path_is_held_out(tmp_path: Path) -> None:
    """Rows of summarize name their split: it divides the file of a run, and is ignored if all rows are held out."""
    file = of_splits(tmp_path / "p.jsonl", "train", "valid1", "train")
    path = Override("data.path", str(file))
    for overrides in ([path], [path, Override("data.source", "summarize")]):
        settings = held_out_data(overrides)
        assert settings is not None
        assert [row.origin.line for row in read_prompts(settings).prompts] == [1, 2, 3]
        assert read_prompts(settings).other_split_rows == []
    summarize_settings = DataSettings(source="summarize", train_file=str(file), eval_file=str(file))
    for settings, taken, other_split_rows in (
        (summarize_settings, [2], [1, 3]),
        (summarize_settings.model_copy(update={"holdout": 1}), [1], [2]),
    ):
        read = read_prompts(settings)
        assert [row.origin.line for row in read.prompts] == taken
        assert [origin.line for origin in read.other_split_rows] == other_split_rows


def test_a_limit_counts_rows_of_another_split(tmp_path: Path) -> None:
    file = of_splits(tmp_path / "p.jsonl", "train", "valid1", "train", "valid2", "train", "valid1")
    settings = DataSettings(source="summarize", train_file=str(file))
    for limit, lines in ((1, [2]), (2, [2, 4]), (3, [2, 4, 6]), (None, [2, 4, 6])):
        report = report_data(settings, text_format(), with_eval=False, limit=limit)
        assert (report.filters.kept, report.filters.other_split_rows.lines) == (limit or 3, lines)


def test_the_doctor_counts_rows_of_another_split(tmp_path: Path) -> None:
    file = of_splits(tmp_path / "p.jsonl", *["train", "valid1"] * 20, "valid2")
    read = read_examples(DataSettings(source="summarize", train_file=str(file)), "train")
    remaining, account = filter_train(read, lambda _: ExampleTokens(1, (1, 1)), 9)
    (rows,) = [
        check for check in check_data(remaining, account, lambda _: ExampleTokens(1, (1, 1))) if check.name == "rows"
    ]
    assert rows.finding.endswith("; 21 rows of another split are not counted")


def test_both_commands_name_rows_that_state_another_split(tmp_path: Path) -> None:
    file = of_splits(tmp_path / "p.jsonl", "train", "valid1", "train", "valid2")
    data = [
        f"data.{name}={value}" for name, value in (("source", "summarize"), ("train_file", file), ("eval_file", file))
    ]
    run = tmp_path / "run"
    config = config_for(tmp_path, "llama", "lora", *data)
    execute(config, run)
    trained = prepare_data(config.data, pinned_format(config, load_tokenizer(config.model.name)))
    left = "  left out: {}, rows of another split (lines {})"
    assert [line for line in trained.lines() if "left out" in line] == [left.format(2, "2, 4"), left.format(2, "1, 3")]
    said = meet("generate", run, "--max-new-tokens", 2)
    assert f"2 x rows of another split; left out: {file}:1, {file}:3\n" in said.stderr
    assert "2 completions in" in said.stdout
    systems = [run, f"again={run}", "--baseline", "again", "--max-new-tokens", 2]
    result = meet("evaluate", *systems, "--out", tmp_path / "out", "--quiet")
    assert result.exit_code == 0, result.output
    description = "rows of another split in the held-out file; left out"
    assert f"2 x {description}: {file}:1, {file}:3\n" in result.stderr
    (problem,) = [problem for problem in recorded(tmp_path).problems if problem.description == description]
    assert (problem.count, problem.examples) == (2, [f"{file}:1", f"{file}:3"])


def test_rows_without_a_prompt_are_all_counted(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [{"prompt": "Hi"}, {"question": "Hi"}, {"prompt": " \n"}, {"prompt": None}]
    rows += [{"messages": []}, {"prompt": [{"role": "user", "content": ""}]}, {"chosen": "yes", "rejected": "no"}]
    file = written(tmp_path / "p.jsonl", rows)
    read = read_prompts(held(file))
    assert [row.prompt for row in read.prompts] == [Prompt("Hi")]
    assert [str(origin) for origin in read.without_prompt] == [f"{file}:{line}" for line in range(2, 8)]
    written(file, rows[1:])
    with pytest.raises(DataError, match=r"field 'prompt': is missing or blank in every row; columns: chosen,"):
        read_prompts(held(file))


def test_both_commands_name_rows_without_a_prompt(tmp_path: Path) -> None:
    execute(config_for(tmp_path, "llama", "lora"), tmp_path / "run")
    rows = [{"prompt": "Hi"}, {"question": "?"}, {"prompt": ""}, {"prompt": "Ho"}, *[{"text": "?"}] * 5]
    reward = folder_of("deberta", tmp_path / "rm")
    result = compared(tmp_path, rows, "--reward", reward)
    assert result.exit_code == 0, result.output
    file = tmp_path / "test.jsonl"
    lines = ", ".join(f"{file}:{line}" for line in (2, 3, 5, 6, 7))
    assert f"7 x held-out rows without a prompt; left out: {lines}, …\n" in result.stderr
    (problem,) = [problem for problem in recorded(tmp_path).problems if "without a prompt" in problem.description]
    assert (problem.count, len(problem.examples)) == (7, 7) and len(recorded(tmp_path).prompts) == 2
    said = meet("generate", tmp_path / "run", "--data.path", file, "--max-new-tokens", 2)
    assert f"7 x rows without a prompt; left out: {lines}, …\n" in said.stderr and "2 completions in" in said.stdout


def test_generate_reports_prompts_that_it_leaves_out(tmp_path: Path) -> None:
    execute(config_for(tmp_path, "llama", "lora"), tmp_path / "run")
    test_file = tmp_path / "test.jsonl"
    rows = test_file.read_text().splitlines()
    long = rows[1].replace("What is", "What " + "is " * 200)
    test_file.write_text("\n".join([*rows[:2], rows[0], long, *rows[2:]]) + "\n")
    said = meet("generate", tmp_path / "run", "--max-new-tokens", 2)
    assert said.exit_code == 0, said.output
    assert f"1 x rows that repeat the prompt of an earlier row; left out: {test_file}:3\n" in said.stderr
    assert f"1 x prompts of more than 128 tokens; left out: {test_file}:4\n" in said.stderr
    assert f"{len(rows)} completions in" in said.stdout
    few = meet("generate", tmp_path / "run", "--data.path", test_file, "--max-new-tokens", 2)
    assert f"{len(rows) + 1} completions in" in few.stdout and "more than 128" not in few.stderr


def test_prompts_alone_are_compared_by_all_but_rouge(tmp_path: Path) -> None:
    rows = [{"prompt": "Is rice good?"}, {"prompt": ASKED}, {"prompt": "Is water good?"}]
    reward = folder_of("deberta", tmp_path / "rm")
    result = compared(tmp_path, rows, "--reward", reward)
    assert result.exit_code == 0, result.output
    evaluation = recorded(tmp_path)
    assert [row.chosen for row in evaluation.prompts] == [None] * 3
    assert [comparison.evaluator for comparison in evaluation.comparisons] == ["reward"]
    assert not {measure.name for measure in evaluation.measures} & {
        "rouge-1",
        "rouge-2",
        "rouge-l",
        "rouge-avg",
        "length-ratio",
    }
    (problem,) = [problem for problem in evaluation.problems if "without a chosen reply" in problem.description]
    assert problem.examples == [f"{tmp_path / 'test.jsonl'}:{line}" for line in (1, 2, 3)]
    for name in ("report.html", "report.md"):
        text = (tmp_path / "out" / name).read_text()
        assert "held-out rows without a chosen reply: ROUGE and length-ratio are not defined" in text
    refused = compared(tmp_path, rows, "--reward", reward, "--stemmer")
    examples = "(" + ", ".join(problem.examples) + ")"
    assert refused.exit_code == 1 and "--stemmer requires ROUGE" in refused.output and examples in refused.output
    nobody = compared(tmp_path, rows)
    assert (
        nobody.exit_code == 1
        and "no evaluator: pass --reward, --judge or --scorer" in nobody.output
        and examples[1:-1] in nobody.output
    )


def test_some_rows_without_a_chosen_reply_leave_the_others(tmp_path: Path) -> None:
    pairs = [{"prompt": f"Is rice {n}?", "chosen": "rice is good", "rejected": "no"} for n in range(3)]
    result = compared(tmp_path, [pairs[0], {"prompt": "Hi"}, *pairs[1:]], "--stemmer")
    assert result.exit_code == 0, result.output
    (comparison,) = recorded(tmp_path).comparisons
    assert comparison.outcomes == ["win", None, "win", "win"] and comparison.num_left_out == 1
    (problem,) = [problem for problem in recorded(tmp_path).problems if "without a chosen reply" in problem.description]
    assert problem.examples == [f"{tmp_path / 'test.jsonl'}:2"]


def test_both_commands_take_the_same_prompts_of_rows_that_repeat_them(tmp_path: Path) -> None:
    """Two posts of one text are one prompt; the chosen reply of a later row counts where the first has none."""
    execute(config_for(tmp_path, "llama", "lora"), tmp_path / "run")
    rows: list[dict[str, Any]] = [
        {"info": {"id": id, "article": "Rice."}, "choice": 0, "summaries": [{"text": f" {id}"}, {"text": " b"}]}
        for id in ("1", "2")
    ]
    rows = [{"prompt": "Article:\nRice.\n\nTL;DR:"}, *rows, {"prompt": "Ho"}]
    file = written(tmp_path / "p.jsonl", rows)
    args = ["--data.path", file, "--data.source", "summarize", "--max-new-tokens", 2]
    said = meet("generate", tmp_path / "run", *args)
    assert (
        "2 completions in" in said.stdout
        and f"2 x rows that repeat the prompt of an earlier row; left out: {file}:2" in (said.stderr)
    )
    systems = [tmp_path / "run", f"again={tmp_path / 'run'}", "--baseline", "again"]
    result = meet("evaluate", *systems, *args, "--out", tmp_path / "out", "--quiet")
    assert result.exit_code == 0, result.output
    assert [row.chosen for row in recorded(tmp_path).prompts] == ["1", None]
    (problem,) = [problem for problem in recorded(tmp_path).problems if "of an earlier row" in problem.description]
    assert problem.examples == [f"{file}:2", f"{file}:3"]


def hub_folders(place: Path) -> None:
    """Write HH as the hub has it, and a data set of prompts in the hub's own Parquet layout."""
    for subset, count in (("harmless-base", 4), ("helpful-base", 3)):
        (place / "hh" / subset).mkdir(parents=True)
        file = write_pairs(place / "pairs.jsonl", count)
        for split in ("train", "test"):
            (place / "hh" / subset / f"{split}.jsonl.gz").write_bytes(gzip.compress(file.read_bytes()))
    (place / "asks" / "data").mkdir(parents=True)
    for split, count in (("train", 5), ("test", 2)):
        table = pyarrow.table({"prompt": [f"Is {n} odd?" for n in range(count)]})
        pyarrow.parquet.write_table(table, place / "asks" / "data" / f"{split}-00000-of-00001.parquet")


def test_generate_finds_data_as_evaluate_does(tmp_path: Path) -> None:
    """What `meet generate` wrote with the same options is what `meet evaluate` compares."""
    hub_folders(tmp_path)
    run = tmp_path / "run"
    execute(config_for(tmp_path, "llama", "lora"), run)
    hh, asks = ["--data.path", tmp_path / "hh"], ["--data.path", tmp_path / "asks"]
    sets = {
        "hh-harmless-base-test": (4, [*hh, "--data.subset", "harmless-base"]),
        "hh-helpful-base-test": (3, [*hh, "--data.subset", "helpful-base", "--data.source", "hh"]),
        "asks-train": (5, [*asks, "--data.eval_split", "train"]),
        "asks-test": (2, asks),
    }
    reward = folder_of("deberta", tmp_path / "rm")
    for name, (count, args) in sets.items():
        result = meet("generate", run, *args, "--max-new-tokens", 2)
        assert result.exit_code == 0, result.output
        (file,) = (run / "completions").glob(f"good-t0-p1-n2-seed0-of-{name}-??????.jsonl")
        assert len(file.read_text().splitlines()) == count
    for count, args in sets.values():
        systems = [run, f"again={run}", "--baseline", "again", "--max-new-tokens", 2, "--reward", reward]
        result = meet("evaluate", *systems, *args, "--out", tmp_path / "out", "--quiet")
        assert result.exit_code == 0, result.output
        assert len(recorded(tmp_path).prompts) == count
        assert {bool(row.chosen) for row in recorded(tmp_path).prompts} == {"hh" in str(args[1])}
    assert json.loads(file.read_text().splitlines()[0])["prompt"] == "Is 0 odd?"


def test_data_with_equal_names_have_separate_completion_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def file_of(**data: Any) -> str:
        return completions_file(tmp_path, "good", Sampling(), 0, data=DataSettings(**{"source": "pairs", **data})).name

    for place in ("a", "b"):
        (tmp_path / place / "set").mkdir(parents=True)
        written(tmp_path / place / "p.jsonl", [{"prompt": place}])
    a, b = (file_of(eval_file=str(tmp_path / place / "p.jsonl")) for place in "ab")
    assert a != b and all("-of-p-" in name for name in (a, b))
    assert file_of(path=str(tmp_path / "a" / "set")) != file_of(path=str(tmp_path / "b" / "set"))
    assert file_of(path="one/hh-rlhf") != file_of(path="two/hh-rlhf")
    assert file_of(eval_file=str(tmp_path / "a" / "p.jsonl"), source="hh") != a
    for other in ({"columns": "prompt=question"}, {"as_chat": True}):
        assert file_of(eval_file=str(tmp_path / "a" / "p.jsonl"), **other) != a
    monkeypatch.chdir(tmp_path / "a")
    assert file_of(eval_file="p.jsonl") == file_of(eval_file="../a/p.jsonl") == a, "one place, however it is written"
    assert file_of(path=str(tmp_path / "b"), eval_file="p.jsonl") == b, "taken from the folder, as rows are"


@pytest.mark.parametrize("command", [["evaluate", "a.jsonl", "--baseline", "a"], ["generate", "run"]])
def test_options_without_effect_are_refused_by_both_commands(command: list[str], tmp_path: Path) -> None:
    file = written(tmp_path / "p.jsonl", [{"prompt": "Hi"}])
    for name in ("--data.source", "--data.subset", "--data.eval_split"):
        said = " ".join(meet(*command, name, "hh").output.replace("│", " ").split())
        assert f"{name} requires --data.path" in said
    for name in ("--data.subset", "--data.eval_split"):
        assert f"{name} has no effect" in meet(*command, "--data.path", file, name, "x").output
    assert "contains no folder 'harmles-base'; did you mean 'harmless-base'?" in meet(
        *command, "--data.path", hh_folder(tmp_path), "--data.subset", "harmles-base"
    ).output.replace("\n", " ")


def hh_folder(place: Path) -> Path:
    hub_folders(place)
    return place / "hh"
