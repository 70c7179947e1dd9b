"""``meet doctor``: each check fires on data or a model built to deserve it, and keeps quiet on others."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from transformers.utils import logging

from meetlm.cli import main
from meetlm.data.example import Example, Origin, Prompt, as_reply
from meetlm.data.filters import filter_train
from meetlm.data.fitted_levels import fit_levels, merge_prompts
from meetlm.data.prompt_format import pin_format
from meetlm.data.settings import DataSettings
from meetlm.data.sources import read_examples
from meetlm.diagnostics import shortcuts
from meetlm.diagnostics.check_data import check_data
from meetlm.diagnostics.data_report import TokenCounts
from meetlm.diagnostics.intervals import share_interval
from tiny import CHATML, tiny_lm, tiny_tokenizer

SAMPLE = Path(__file__).parents[2] / "shared" / "data" / "hh-harmless-base"
WORDS = ["rice", "water", "boil", "way", "good", "bad", "kind", "day", "well", "how", "cook", "what"]

Row = dict[str, Any]
Reply = Callable[[random.Random], str]


def some_words(rng: random.Random, least: int = 4, most: int = 8) -> str:
    return " " + " ".join(rng.choices(WORDS, k=rng.randint(least, most)))


def rows(count: int, chosen: Reply = some_words, rejected: Reply = some_words, *, start: int = 0) -> list[Row]:
    """Return pairs with distinct prompts, numbered from ``start``."""
    result = []
    for number in range(start, start + count):
        rng = random.Random(number)
        result.append({"prompt": f"What is {number}?", "chosen": chosen(rng), "rejected": rejected(rng)})
    return result


def write(path: Path, rows: list[Row]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def save(folder: Path, architecture: str = "llama", *, template: str | None = None, **changes: Any) -> Path:
    import torch

    tiny_lm(architecture, dtype=torch.float32, **changes).save_pretrained(folder)
    tiny_tokenizer(template=template).save_pretrained(folder)
    return folder


@pytest.fixture(autouse=True)
def _restored_verbosity() -> Iterator[None]:
    before = logging.get_verbosity()
    yield
    logging.set_verbosity(before)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tmp_path_factory.mktemp("model"))


def call(path: object, model: object, *args: object) -> tuple[int, str]:
    command = ["doctor", "--data.path", path, "--model.name", model, *args]
    result = CliRunner().invoke(main, list(map(str, command)))
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.stdout + result.stderr if result.exit_code == 2 else result.stdout


@pytest.fixture
def doctor(tmp_path: Path, model: Path) -> Callable[..., dict[str, dict[str, Any]]]:
    """Return a function from rows to the checks by name, the exit status checked against them."""

    def run(
        train: list[Row],
        test: list[Row] | None = None,
        *args: str,
        model: Path = model,
        preset: str = "small",
    ) -> dict[str, dict[str, Any]]:
        held_out = rows(400, start=100_000) if test is None else test
        train_file, test_file = write(tmp_path / "a.jsonl", train), write(tmp_path / "b.jsonl", held_out)
        more = ["--data.eval_file", test_file] if held_out else []
        code, text = call(train_file, model, "--json", "--preset", preset, *more, *args)
        result = json.loads(text)
        assert code == (1 if result["status"] == "problem" else 0)
        return {check["name"]: check for check in result["checks"]}

    return run


Doctor = Callable[..., dict[str, dict[str, Any]]]


def statuses(checks: dict[str, dict[str, Any]], *names: str) -> list[str]:
    return [checks[name]["status"] for name in names]


# --- what else than preference tells the levels apart


def test_nothing_fires_on_random_replies(doctor: Doctor) -> None:
    checks = doctor(rows(400))
    assert {name for name, check in checks.items() if check["status"] != "ok"} == set()
    assert all(check["advice"] == "" for check in checks.values())
    assert [checks["words"][key] for key in ("rows", "prompts")] == [400, 400]
    for name in ("length", "stock replies", "opening words", "words"):
        assert checks[name]["low"] < 0.5 + 0.06 and 0.4 < checks[name]["value"] < 0.6, name


@pytest.mark.parametrize("side", ["chosen", "rejected"])
@pytest.mark.parametrize(("share", "status"), [(0.5, "ok"), (0.7, "warning"), (1.0, "problem")])
def test_length(doctor: Doctor, share: float, status: str, side: str) -> None:
    other = "rejected" if side == "chosen" else "chosen"
    pairs = rows(300)
    for number, row in enumerate(pairs):
        row[side if number < share * 300 else other] += " and so on and so on"
        row[side if number >= share * 300 else other] = " rice water"
    check = doctor(pairs)["length"]
    assert check["status"] == status
    assert check["value"] == pytest.approx(max(share, 1 - share))
    if status != "ok":
        assert f"the {'longer' if side == 'chosen' else 'shorter'} reply is the chosen one" in check["finding"]
        assert check["advice"]


def test_stock_replies(doctor: Doctor) -> None:
    often = doctor(rows(300, chosen=lambda rng: " I am well." if rng.random() < 0.9 else some_words(rng)))
    assert often["stock replies"]["status"] == "problem"
    both = doctor(
        rows(
            300,
            chosen=lambda rng: " I am well." if rng.random() < 0.3 else some_words(rng),
            rejected=lambda rng: " I am well." if rng.random() < 0.3 else some_words(rng, 9, 12),
        )
    )
    assert both["stock replies"]["status"] == "ok"


def test_openings_and_words(doctor: Doctor) -> None:
    opening = doctor(rows(300, chosen=lambda rng: " sure" + some_words(rng)))
    assert statuses(opening, "opening words", "words") == ["problem", "problem"]
    assert "'sure'" in opening["opening words"]["finding"]
    inside = doctor(rows(300, chosen=lambda rng: some_words(rng, 4, 5) + " indeed", rejected=some_words))
    assert statuses(inside, "opening words", "words") == ["ok", "problem"]
    sometimes = doctor(rows(300, chosen=lambda rng: (" sure" if rng.random() < 0.6 else "") + some_words(rng)))
    assert statuses(sometimes, "opening words", "words") == ["warning", "warning"]


# --- what is dropped, what is held out


def test_rows_that_are_dropped(doctor: Doctor) -> None:
    pairs = rows(200)
    for row in pairs[:5]:
        row["chosen"] = "  "
    assert doctor(pairs)["rows"]["status"] == "ok"
    for row in pairs[5:15]:
        row["chosen"] = row["rejected"]
    check = doctor(pairs)["rows"]
    assert check["status"] == "warning" and check["value"] == pytest.approx(0.075)


def test_contradictions_count_as_odd_rows(doctor: Doctor) -> None:
    pairs = rows(200)
    pairs += [{**row, "chosen": row["rejected"], "rejected": row["chosen"]} for row in pairs[:20]]
    check = doctor(pairs)["rows"]
    assert check["status"] == "warning" and "in the opposite order: 20)" in check["finding"]


@pytest.mark.parametrize(("count", "status"), [(4, "ok"), (40, "warning"), (120, "problem")])
def test_too_long(doctor: Doctor, count: int, status: str) -> None:
    pairs = rows(200)
    for row in pairs[:count]:
        row["prompt"] += " why" * 300
    checks = doctor(pairs, None, "data.max_length=200")
    assert checks["too long"]["status"] == status
    assert checks["too long"]["value"] == pytest.approx(count / 200)
    assert "held-out length" not in checks
    held = doctor(rows(100), pairs, "data.max_length=200")
    assert ("held-out length" in held) == (status != "ok")


def test_prompts_that_differ(doctor: Doctor) -> None:
    def transcripts(differ: int) -> list[Row]:
        result = []
        for number, row in enumerate(rows(200)):
            other = "Where" if number < differ else "What"
            result.append(
                {
                    "chosen": f"\n\nHuman: What is {number}?\n\nAssistant:{row['chosen']}",
                    "rejected": f"\n\nHuman: {other} is {number}?\n\nAssistant:{row['rejected']}",
                }
            )
        return result

    assert doctor(transcripts(2), transcripts(0))["rows"]["status"] == "ok"
    check = doctor(transcripts(20), transcripts(0))["rows"]
    assert check["status"] == "warning" and check["value"] == pytest.approx(0.1)


@pytest.mark.parametrize(("count", "status"), [(30, "problem"), (200, "warning"), (400, "ok")])
def test_held_out_pairs(doctor: Doctor, count: int, status: str) -> None:
    check = doctor(rows(100), rows(count, start=5000))["held-out pairs"]
    assert check["status"] == status
    assert check["value"] == pytest.approx(1.96 * np.sqrt(0.65 * 0.35 / count), rel=0.06)
    assert "350 give ± 0.05" in check["finding"]


def test_a_part_of_the_training_rows_is_held_out(doctor: Doctor) -> None:
    checks = doctor(rows(60), [], "data.holdout=20")
    assert checks["held-out pairs"]["finding"].startswith("20 pairs ")


def test_nothing_held_out(doctor: Doctor) -> None:
    checks = doctor(rows(100), [])
    assert checks["held-out pairs"]["status"] == "problem" and "overlap" not in checks


@pytest.mark.parametrize(("shared", "status"), [(0, "ok"), (10, "warning"), (100, "problem")])
def test_overlap(doctor: Doctor, shared: int, status: str) -> None:
    check = doctor(rows(200), rows(400, start=200 - shared))["overlap"]
    assert check["status"] == status and check["value"] == pytest.approx(shared / 400)
    assert ("(lines 1, 2, 3, 4, 5, …)" in check["finding"]) == (shared > 0)


# --- steps


def test_steps_under_both_presets(doctor: Doctor) -> None:
    paper = doctor(rows(400), preset="paper")  # 7 batches of 64 pairs, 5 epochs
    assert statuses(paper, "steps of step1", "steps of step2") == ["problem", "problem"]
    assert paper["steps of step1"]["value"] == 35
    assert "200 are advisable" in paper["steps of step1"]["advice"]
    assert "--preset small" in paper["steps of step1"]["advice"]
    small = doctor(rows(400))
    assert statuses(small, "steps of step1", "steps of step2") == ["ok", "ok"]
    assert small["steps of step1"]["value"] == 100


def test_overrides_change_the_steps(doctor: Doctor) -> None:
    checks = doctor(rows(400), None, "batch.pairs=20", "--stages.step1.epochs", "10", preset="paper")
    assert statuses(checks, "steps of step1", "steps of step2") == ["ok", "warning"]
    assert [checks[f"steps of step{n}"]["value"] for n in (1, 2)] == [200, 100]


def test_many_epochs_of_few_pairs(doctor: Doctor) -> None:
    check = doctor(rows(40))["steps of step1"]  # 100 steps of 8 pairs
    assert check["status"] == "warning" and "20 epochs" in check["finding"]


# --- the model


@pytest.mark.parametrize(("positions", "status"), [(700, "ok"), (600, "warning"), (520, "problem")])
def test_context(doctor: Doctor, tmp_path: Path, positions: int, status: str) -> None:
    short = save(tmp_path / "short", max_position_embeddings=positions)
    recipe = ["pairs-meet-soft-prompt"]  # a slot of 50, max_length 512, 128 new tokens
    check = doctor(rows(60), None, *recipe, model=short)["context"]
    assert check["status"] == status and check["value"] == positions - 690
    if status != "ok":
        assert f"data.max_length to {positions - 178} or less" in check["advice"]


def test_a_tokenizer_with_more_ids_than_embeddings(doctor: Doctor, tmp_path: Path) -> None:
    checks = doctor(rows(60), model=save(tmp_path / "few", vocab_size=290))
    assert checks["vocabulary"]["status"] == "problem"


def conversations(count: int) -> list[Row]:
    return [
        {
            "prompt": [{"role": "user", "content": row["prompt"]}],
            "chosen": [{"role": "assistant", "content": row["chosen"].strip()}],
            "rejected": [{"role": "assistant", "content": row["rejected"].strip()}],
        }
        for row in rows(count)
    ]


def test_conversations_need_a_chat_template(doctor: Doctor, tmp_path: Path) -> None:
    without = doctor(conversations(60))
    assert statuses(without, "chat template", "data") == ["problem", "problem"]
    chat = save(tmp_path / "chat", template=CHATML)
    assert doctor(conversations(60), conversations(60), model=chat)["chat template"]["status"] == "ok"


def transcripts(count: int) -> list[Row]:
    """Return pairs as HH has them, with markers of their own."""
    sides = ("chosen", "rejected")
    return [{side: f"\n\nHuman: {row['prompt']}\n\nAssistant:{row[side]}" for side in sides} for row in rows(count)]


def test_plain_text_on_a_chat_model(doctor: Doctor, tmp_path: Path, model: Path) -> None:
    chat = save(tmp_path / "chat", template=CHATML)
    warned = doctor(rows(60), model=chat)["chat template"]
    assert warned["status"] == "warning" and "--data.as_chat true" in warned["advice"]
    assert doctor(rows(60))["chat template"]["status"] == "ok"
    assert doctor(transcripts(60), transcripts(60), model=chat)["chat template"]["status"] == "ok"


# --- enough prompts


def test_rows_without_their_prompt_are_a_problem(doctor: Doctor) -> None:
    """As where the prompt stands in a column that is not read: every row then has the same prompt."""
    pairs = [{**row, "prompt": "Answer."} for row in rows(200)]
    checks = doctor(pairs)
    names = ("training pairs", "length", "stock replies", "opening words", "words")
    assert statuses(checks, *names) == ["problem"] * len(names)
    assert "--data.columns" in checks["training pairs"]["advice"]
    assert (checks["length"]["rows"], checks["length"]["prompts"]) == (200, 1)


@pytest.mark.parametrize(("count", "status"), [(29, "problem"), (30, "ok")])
def test_few_prompts_are_a_problem(doctor: Doctor, count: int, status: str) -> None:
    checks = doctor(rows(count))
    assert statuses(checks, "training pairs", "length") == [status, status]


def test_every_check_of_the_data_names_rows_and_prompts(doctor: Doctor) -> None:
    checks = doctor(rows(40), rows(50, start=1000))
    model = ("steps", "chat template", "vocabulary", "context")
    for name, check in checks.items():
        if not name.startswith(model):
            number = 50 if name in ("held-out pairs", "overlap") else 40
            assert (check["rows"], check["prompts"]) == (number, number), name


# --- the command


def test_text_output(tmp_path: Path, model: Path) -> None:
    train = write(tmp_path / "train.jsonl", rows(60))
    code, text = call(train, model, "--preset", "paper")
    assert code == 1
    assert "\x1b" not in text
    assert "(60 rows" in text
    assert "problem  held-out pairs" in text and "→ Pass --data.eval_file FILE, --data.holdout N" in text
    assert text.rstrip().endswith("(recipe pairs-meet-lora, preset paper)")
    assert all(len(line) <= 110 for line in text.splitlines())


def test_a_folder_with_a_test_split_needs_no_holdout(tmp_path: Path, model: Path) -> None:
    write(tmp_path / "train.jsonl", rows(200))
    write(tmp_path / "validation.jsonl", rows(400, start=1000))
    code, text = call(tmp_path, model, "--preset", "small")
    assert code == 0 and "400 pairs measure an accuracy near 0.65" in text
    assert "--data.eval_split validation" in text


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--preset", "smal"], "did you mean 'small'"),
        (["hh-meet"], "unknown recipe 'hh-meet'"),
        (["data.max_lenght=9"], "did you mean 'max_length'"),
        (["data.source=hhh"], "unknown --data.source 'hhh'"),
        (["--seed=-1"], "--seed: expected 0 or more, got -1"),
    ],
)
def test_wrong_arguments(tmp_path: Path, model: Path, args: list[str], message: str) -> None:
    train = write(tmp_path / "train.jsonl", rows(10))
    result = CliRunner().invoke(main, ["doctor", "--data.path", str(train), "--model.name", str(model), *args])
    assert result.exit_code == 1 and message in result.stderr


def test_a_model_that_cannot_be_loaded_is_a_problem(tmp_path: Path) -> None:
    train = write(tmp_path / "train.jsonl", rows(60))
    broken = save(tmp_path / "broken")
    (broken / "model.safetensors").write_bytes(b"version https://git-lfs.github.com/spec/v1")
    code, text = call(train, broken, "--json")
    (check,) = json.loads(text)["checks"]
    assert code == 1 and (check["name"], check["status"]) == ("model", "problem")
    assert "git lfs pull" in check["finding"]


@pytest.mark.hh
@pytest.mark.skipif(not SAMPLE.exists(), reason="no HH-RLHF sample beside the checkout")
def test_harmless_base(model: Path) -> None:
    code, text = call(SAMPLE, model, "--json", "data.max_length=896")
    checks = {check["name"]: check for check in json.loads(text)["checks"]}
    assert code == 0
    assert "the shorter reply is the chosen one" in checks["length"]["finding"]
    assert 0.55 < checks["words"]["value"] < 0.70 and "'sorry'" in checks["words"]["finding"]
    assert checks["overlap"]["value"] == 0


@pytest.mark.hh
@pytest.mark.slow
@pytest.mark.skipif(not SAMPLE.exists(), reason="no HH-RLHF sample beside the checkout")
def test_harmless_base_with_smollm2() -> None:
    code, text = call(SAMPLE, "smollm2", "--preset", "small")
    assert code == 0
    assert "no problems, no warnings" in text


# --- the rules by hand


def test_share_counts_rows_of_one_prompt_as_one() -> None:
    outcomes = np.repeat([1.0, 0] * 10, 2)
    grouped = share_interval(outcomes, [str(row // 2) for row in range(40)])
    assert grouped == share_interval(outcomes[::2], [str(row) for row in range(20)])
    apart = share_interval(outcomes, [str(row) for row in range(40)])
    assert apart.value == 0.5 and apart.high - apart.low < grouped.high - grouped.low


def test_number_of_held_out_pairs() -> None:
    assert shortcuts.prompts_for(0.05, 0.65) == 350
    assert shortcuts.half_width(350, 0.65) == pytest.approx(0.05, abs=1e-4)


def example(chosen: str, rejected: str, number: int) -> Example:
    return Example.of_pair(Prompt("x"), as_reply(chosen), as_reply(rejected), str(number), Origin("f", number))


def test_repeated_replies_leave_the_row_itself_out() -> None:
    pairs = [example("a", "b", 1), example("a", "c", 2), example("d", "a", 3)]
    rate, known = shortcuts.repeated_replies(pairs)
    # Rows 1, 2: "a" is chosen once and rejected once elsewhere, a tie; row 3: chosen twice elsewhere, wrong.
    assert known == 3 and rate.value == pytest.approx((0.5 + 0.5 + 0) / 3)
    assert shortcuts.repeated_replies([example("a", "b", 1)])[0].value == 0.5


def test_surface_accuracy_uses_only_features_that_recur() -> None:
    once = [{f"chosen{i}"} for i in range(50)], [{f"rejected{i}"} for i in range(50)]
    rate, best, worst = shortcuts.surface_accuracy(*once, [str(i) for i in range(50)])
    assert rate.value == 0.5 and best == worst == []
    rate, best, worst = shortcuts.surface_accuracy([{"up"}] * 50, [{"down"}] * 50, [str(i) for i in range(50)])
    assert rate.value == 1.0 and (best, worst) == (["up"], ["down"])


def test_rows_of_one_prompt_are_held_out_together() -> None:
    # Each prompt has its own word on the chosen side: known from other rows, unless they are held out too.
    number = [i // 5 for i in range(100)]
    chosen = [{f"word{n}"} for n in number]
    apart = shortcuts.surface_accuracy(chosen, [set()] * 100, [str(i) for i in range(100)])[0]
    together = shortcuts.surface_accuracy(chosen, [set()] * 100, [str(n) for n in number])[0]
    assert apart.value > 0.9 and together.value == 0.5


def test_openings_and_words_of_a_conversation() -> None:
    reply = as_reply("I can't, sorry.")
    assert shortcuts.opening_features(reply) == {"i", "i can", "i can '"}
    assert shortcuts.word_features(reply) == {"i", "can", "'", "t", ",", "sorry", "."}


@pytest.mark.parametrize(("share", "status"), [(1.0, "warning"), (0.5, "ok")])
def test_attributes_that_predict_each_other_are_a_warning(share: float, status: str, tmp_path: Path) -> None:
    stated = [(n % 2, n % 2 if n / 80 < share else (n // 2) % 2) for n in range(80)]
    rows = [
        {"prompt": f"What is {n}?", "completion": some_words(random.Random(n)), "attributes": {"tone": a, "length": b}}
        for n, (a, b) in enumerate(stated)
    ]
    file = write(tmp_path / "rows.jsonl", rows)
    settings = DataSettings(source="feedback", path=str(file))
    read = read_examples(settings, "train")
    tokens = TokenCounts(pin_format(tiny_tokenizer()))
    train, report = filter_train(read, tokens, settings.max_length, None)
    checks = check_data(train, report, tokens, fit_levels(settings, merge_prompts(train)))
    (check,) = [check for check in checks if check.name == "attributes"]
    assert check.status == status and f"tone and length have the correlation {check.value:+.2f}" in check.finding
    assert check.value is not None and (check.value == pytest.approx(1.0)) == (share == 1)
