"""Reward models: what they read, that batches change no score, and what has no score."""

from __future__ import annotations

import copy
import json
import random
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    RobertaConfig,
    pipeline,
)

from meetlm.cli.reward import reward
from meetlm.config.errors import ConfigError, DataError
from meetlm.evaluation.reward import RewardModel, RewardSettings
from meetlm.evaluation.reward_forward import packed_batches, padded_batches, pooled
from meetlm.evaluation.reward_input import (
    RECORD,
    Ids,
    Prompt,
    RewardInput,
    form_of,
    joined,
    messages_of,
    question_of,
)
from meetlm.policy.loading import embedded_lm
from reward_models import KINDS, SMALL, TOLERANCE, bert, deberta, folder_of, llama, load
from tiny import _WORDS, CHATML, tiny_lm, tiny_tokenizer


def rows(count: int = 23, seed: int = 3) -> tuple[list[Prompt], list[str]]:
    """HH-like prompts of very different lengths, two to four completions of each."""
    words = _WORDS.split()
    shuffle = random.Random(seed)
    prompts: list[Prompt] = []
    completions = []
    while len(prompts) < count:
        said = " ".join(shuffle.choices(words, k=shuffle.choice([1, 4, 25])))
        prompt = f"\n\nHuman: {said}?\n\nAssistant:"
        for _ in range(shuffle.randint(2, 4)):
            prompts.append(prompt)
            completions.append(" " + " ".join(shuffle.choices(words, k=shuffle.choice([1, 3, 12]))))
    return prompts, completions


def by_pipeline(folder: Path, form: str, prompts: Sequence[Any], completions: Sequence[str], batch: int) -> list[float]:
    """Score as a user of transformers would."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    if batch > 1 and model.config.pad_token_id is None:
        model.config.pad_token_id = tokenizer.pad_token_id
    judge = pipeline("text-classification", model=model, tokenizer=tokenizer, function_to_apply="none", device="cpu")
    both = list(zip(prompts, completions, strict=True))
    if form == "pair":
        inputs: list[Any] = [{"text": p.strip(), "text_pair": c.strip()} for p, c in both]
        return [one["score"] for one in judge(inputs, batch_size=batch)]
    if form == "text":
        return [one["score"] for one in judge([p + c for p, c in both], batch_size=batch)]
    texts = [
        tokenizer.apply_chat_template([*messages_of(p), {"role": "assistant", "content": c.strip()}], tokenize=False)
        for p, c in both
    ]
    return [one["score"] for one in judge(texts, batch_size=batch, add_special_tokens=False)]


def alone(scorer: RewardModel, prompts: Sequence[Prompt], completions: Sequence[str]) -> list[float]:
    """Score rows one by one with the plain model, as it was loaded."""
    model = AutoModelForSequenceClassification.from_pretrained(scorer.settings.model).eval()
    found = []
    for row in RewardInput(scorer.tokenizer, scorer.form, scorer.most).encode(prompts, completions):
        assert isinstance(row, Ids)
        types = {} if row.types is None else {"token_type_ids": torch.tensor([row.types])}
        with torch.no_grad():
            found.append(float(model(input_ids=torch.tensor([row.ids]), **types).logits[0, 0]))
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_scores_are_those_of_rows_alone_and_of_the_pipeline(kind: str, tmp_path: Path) -> None:
    folder = folder_of(kind, tmp_path)
    _, form, asked = KINDS[kind]
    scorer = load(folder, input=asked, batch_tokens=256)
    assert scorer.form == form
    prompts, completions = rows()
    counted: list[int] = []
    found = scorer.score(prompts, completions, counted.append)
    assert sum(counted) == len(prompts) and len(counted) > 2
    assert scorer.problems == []
    assert (scorer.why_padded is None) == kind.startswith("llama")
    one_by_one = alone(scorer, prompts, completions)
    assert found == pytest.approx(one_by_one, abs=TOLERANCE)
    assert max(one_by_one) - min(one_by_one) > 0.1, "scores that differ, or the test says nothing"
    batch = 1 if kind == "llama" else 8  # without a pad id in the config the pipeline cannot batch
    assert found == pytest.approx(by_pipeline(folder, form, prompts, completions, batch), abs=TOLERANCE)
    again = list(range(len(prompts)))
    random.Random(0).shuffle(again)
    other = scorer.score([prompts[n] for n in again], [completions[n] for n in again])
    assert other == pytest.approx([found[n] for n in again], abs=TOLERANCE)


def test_a_decoder_without_a_pad_id_pools_what_it_does_alone(tmp_path: Path) -> None:
    """Rows that end with what the tokenizer would pad with, in padded batches."""
    scorer = load(folder_of("llama", tmp_path), input="text")
    scorer._packs = False  # as for an architecture that does not pack
    prompts, completions = rows(9)
    completions = [text + "<|endoftext|>" * (n % 2) for n, text in enumerate(completions)]
    assert scorer.score(prompts, completions) == pytest.approx(alone(scorer, prompts, completions), abs=TOLERANCE)
    assert scorer.model.config.pad_token_id is None
    assert pooled((5, 6, 0), None) == 2 and pooled((5, 6, 0), 0) == 1 and pooled((0, 0), 0) == 0


def test_equal_rows_are_scored_once_and_prompts_read_once(tmp_path: Path) -> None:
    scorer = load(folder_of("bert", tmp_path / "bert"))
    seen: list[int] = []
    scorer.model.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(len(kwargs["input_ids"])), with_kwargs=True
    )
    prompts, completions = rows(6)
    once = scorer.score(prompts, completions)
    first = sum(seen)
    thrice = scorer.score(prompts * 3, completions * 3)
    assert sum(seen) == 2 * first == 2 * len(set(zip(map(str, prompts), completions, strict=True)))
    assert thrice == once * 3

    packer = load(folder_of("llama", tmp_path / "llama"), input="text")
    packer.score(prompts, completions)  # the check that packing is exact
    read: list[int] = []
    packer.model.base_model.register_forward_pre_hook(lambda module, args: read.append(args[0].numel()))
    packer.score(prompts, completions)
    whole = [len(packer.tokenizer(p + c)["input_ids"]) for p, c in zip(prompts, completions, strict=True)]
    of_prompts = {p: len(packer.tokenizer(p)["input_ids"]) for p in prompts}
    repeated = sum(map(of_prompts.__getitem__, prompts)) - sum(of_prompts.values())
    assert sum(read) <= sum(whole) - repeated + 2 * len(prompts)


def test_what_does_not_fit_is_cut_from_the_old_end_and_told(tmp_path: Path) -> None:
    scorer = load(folder_of("bert", tmp_path / "bert", max_position_embeddings=32))
    assert scorer.most == 32
    long, short, answer = "water " * 60 + "rice", "rice", "A good way is to boil it"
    found = scorer.score([long, short, long], [answer, answer, answer], names=["a:1", "a:2", "a:3"])
    (problem,) = scorer.problems
    assert (problem.count, problem.examples) == (2, ["a:1", "a:3"])
    tokens = [len(scorer.tokenizer(long, answer)["input_ids"]), 32]
    assert f"{2 * (tokens[0] - tokens[1])} tokens were left out" in problem.what
    room = 32 - 3 - len(scorer.tokenizer(answer, add_special_tokens=False)["input_ids"])
    kept = "water " * (room - 1) + "rice"
    assert found[0] == pytest.approx(alone(scorer, [kept], [answer])[0], abs=TOLERANCE)
    scorer.score([short], ["boil " * 80])
    assert scorer.problems[0].count == 1, "a reply that does not fit by itself"

    decoder = load(folder_of("llama", tmp_path / "llama"), input="text", max_length=16)
    prompts, completions = ["How are you today? " * 9], [" well"]
    row = decoder._input.encode(prompts, completions)[0]
    assert isinstance(row, Ids) and len(row.ids) == 16 and row.cut > 20
    assert decoder.tokenizer.decode(list(row.ids)).endswith(" well")
    decoder.score(prompts, completions)
    assert decoder.problems[0].count == 1


def test_positions_that_are_counted_from_behind_the_padding_id() -> None:
    tokenizer, _ = bert()
    config = RobertaConfig(**SMALL, vocab_size=len(tokenizer), max_position_embeddings=34, pad_token_id=1)
    model = AutoModelForSequenceClassification.from_config(config)
    scorer = RewardModel(model, tokenizer, RewardSettings(model="roberta", device="cpu"))
    assert scorer.most == 32
    (found,) = scorer.score(["water " * 60], ["rice"])
    assert found is not None and scorer.problems[0].count == 1


@pytest.mark.parametrize("kind", ["bert", "llama"])
def test_scores_that_are_no_numbers_are_none_and_told(kind: str, tmp_path: Path) -> None:
    scorer = load(folder_of(kind, tmp_path), input=KINDS[kind][2])
    words = ["today", "rice", "water", "good"]
    table = scorer.model.get_input_embeddings().weight
    spoilt = scorer.tokenizer(" rice", add_special_tokens=False)["input_ids"][-1]
    expected = [word for word in words if spoilt in scorer.tokenizer(f"How are {word}")["input_ids"]]
    assert "rice" in expected and len(expected) < len(words)
    with torch.no_grad():
        table[spoilt] = float("nan")
    prompts: list[Prompt] = ["How are" for _ in words]
    found = scorer.score(prompts, [f" {word}" for word in words])
    assert [word for word, score in zip(words, found, strict=True) if score is None] == expected
    assert scorer.problems[-1].count == len(expected)
    assert "NaN" in scorer.problems[-1].what
    with torch.no_grad():
        head = next(p for name, p in scorer.model.named_parameters() if name.startswith(("score", "classifier")))
        head.fill_(float("inf"))
    assert scorer.score(prompts, words) == [None] * 4
    assert scorer.problems[-1].count == 4


def test_a_conversation_the_template_refuses_is_told(tmp_path: Path) -> None:
    refuses = CHATML.replace(
        "{% for message in messages %}",
        "{% for message in messages %}{% if message['role'] == 'tool' %}{{ raise_exception('no tools') }}{% endif %}",
    )
    KINDS["strict"] = (lambda: llama(pad=3, template=refuses), "chat", "auto")
    try:
        scorer = load(folder_of("strict", tmp_path))
    finally:
        del KINDS["strict"]
    tool: Prompt = [{"role": "user", "content": "Hi"}, {"role": "tool", "content": "4"}]
    found = scorer.score([tool, "Hi"], ["four", "hello"])
    assert found[0] is None and found[1] is not None
    assert scorer.problems[0].count == 1 and "no tools" in scorer.problems[0].what
    assert scorer.problems[0].examples == ["row 1"]


def test_nothing_to_read_is_told(tmp_path: Path) -> None:
    scorer = load(folder_of("llama", tmp_path), input="text")
    found = scorer.score(["", "Hi"], ["", " you"])
    assert found[0] is None and found[1] is not None and "no token" in scorer.problems[0].what
    assert scorer.score([], []) == [] and scorer.problems == []


@pytest.mark.parametrize("kind", KINDS)
def test_white_space_around_a_completion_changes_nothing(kind: str, tmp_path: Path) -> None:
    scorer = load(folder_of(kind, tmp_path), input=KINDS[kind][2])
    prompts, completions = rows(5)
    bare = [text.strip() for text in completions]
    wide = [f" {text} \n" for text in completions]
    assert scorer.read(prompts, completions) == scorer.read(prompts, bare) == scorer.read(prompts, wide)
    assert scorer.score(prompts, completions) == scorer.score(prompts, bare) == scorer.score(prompts, wide)


def test_text_is_joined_by_one_space() -> None:
    assert joined("\n\nHuman: Rice?\n\nAssistant:", "Boil it.") == "\n\nHuman: Rice?\n\nAssistant: Boil it."
    assert joined("", "Boil it.") == "Boil it."
    assert [joined(f"A post{end}", "Short.") for end in (" ", "\n", "\n\n")] == [
        "A post Short.",
        "A post\nShort.",
        "A post\n\nShort.",
    ]
    tokenizer = tiny_tokenizer()
    reader = RewardInput(tokenizer, "text", None)
    for prompt, whole in (("\n\nAssistant:", "\n\nAssistant: rice"), ("Rice?\n", "Rice?\nrice"), ("", "rice")):
        expected = Ids(tuple(tokenizer(whole)["input_ids"]))
        assert reader.encode([prompt] * 3, ["rice", " rice", "\nrice  "]) == [expected] * 3


def test_what_each_form_reads() -> None:
    hh = "\n\nHuman: How are you?\n\nAssistant: Well.\n\nHuman: And rice?\n\nAssistant:"
    turns = [
        {"role": "user", "content": "How are you?"},
        {"role": "assistant", "content": "Well."},
        {"role": "user", "content": "And rice?"},
    ]
    assert messages_of(hh) == turns and messages_of(turns) == turns
    assert messages_of(" a post\n\nTL;DR:") == [{"role": "user", "content": "a post\n\nTL;DR:"}]
    assert messages_of("Be kind." + hh)[0] == {"role": "system", "content": "Be kind."}
    assert question_of(hh) == question_of(turns) == hh.strip()
    assert question_of([{"role": "user", "content": " rice? "}]) == "rice?"

    tokenizer = tiny_tokenizer(template=CHATML)
    text = RewardInput(tokenizer, "text", None).encode([hh, turns], [" Boil it.", "Boil it."])
    assert text[0] == text[1] == Ids(tuple(tokenizer(hh + " Boil it.")["input_ids"]))
    closed = RewardInput(tokenizer, "text", None, eos=True).encode([hh], [" Boil it."])[0]
    assert isinstance(closed, Ids) and closed.ids[-1] == tokenizer.eos_token_id
    begun = [*turns, {"role": "assistant", "content": ""}]
    chat = RewardInput(tokenizer, "chat", None).encode([hh, hh + " Boil", begun], [" Boil it.", " it.", "Boil it."])
    whole = [*turns, {"role": "assistant", "content": "Boil it."}]
    assert chat[0] == chat[1] == chat[2] == Ids(tuple(tokenizer.apply_chat_template(whole, return_dict=False)))
    two, _ = deberta()
    (pair,) = RewardInput(two, "pair", None).encode([hh], [" Boil it. "])
    expected = two(hh.strip(), "Boil it.")
    assert pair == Ids(tuple(expected["input_ids"]), tuple(expected["token_type_ids"]))
    assert 1 in expected["token_type_ids"]


def test_the_form_is_told_or_asked_for() -> None:
    plain, chat, (pair, _) = tiny_tokenizer(), tiny_tokenizer(template=CHATML), deberta()
    assert form_of(chat, None, "auto")[0] == "chat" and form_of(pair, None, "auto")[0] == "pair"
    assert form_of(chat, "text", "auto") == ("text", "recorded in the model's config.json")
    assert form_of(chat, "text", "chat") == ("chat", "asked for")
    with pytest.raises(ConfigError, match="expected input: pair, chat or text, such as --reward-set input=text"):
        form_of(plain, None, "auto")
    with pytest.raises(ConfigError, match="no chat template"):
        form_of(plain, None, "chat")
    with pytest.raises(ConfigError, match=f"config.json: {RECORD} is 'tree'"):
        form_of(plain, "tree", "auto")


def test_what_is_no_reward_model_is_refused(tmp_path: Path) -> None:
    tiny_lm("llama", dtype=torch.float32).save_pretrained(tmp_path / "lm")
    tiny_tokenizer().save_pretrained(tmp_path / "lm")
    with pytest.raises(ConfigError, match="no weights for score.weight"):
        load(tmp_path / "lm", input="text")
    with pytest.raises(ConfigError, match="gives 3 numbers"):
        load(folder_of("bert", tmp_path / "three", num_labels=3))
    with pytest.raises(ConfigError, match="cannot be loaded"):
        load(tmp_path / "nowhere")


def test_batches_hold_every_row_within_the_budget() -> None:
    shuffle = random.Random(5)
    made = [Ids(tuple(range(shuffle.randint(1, 60)))) for _ in range(80)]
    prompts = [shuffle.randint(0, 20) for _ in made]
    for batches in (list(padded_batches(made, 128)), list(packed_batches(made, prompts, 128))):
        assert sorted(n for batch in batches for n in batch) == list(range(80))
    assert all(len(b) * max(len(made[n].ids) for n in b) <= 128 for b in padded_batches(made, 128))
    assert all(sum(len(made[n].ids) for n in b) <= 128 for b in packed_batches(made, prompts, 128))
    waste = sum(len(b) * max(len(made[n].ids) for n in b) for b in padded_batches(made, 128))
    assert waste < 1.15 * sum(len(row.ids) for row in made)
    assert list(padded_batches([Ids((1,) * 500)], 128)) == [[0]], "a row longer than the budget goes alone"


def test_score_command(tmp_path: Path) -> None:
    folder = folder_of("bert", tmp_path / "rm")
    file = tmp_path / "good.jsonl"
    prompts, completions = rows(5)
    lines = [{"prompt": p, "completion": c} for p, c in zip(prompts, completions, strict=True)]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    out = tmp_path / "rewards.jsonl"
    done = CliRunner().invoke(reward, ["score", str(file), "--model", str(folder), "--out", str(out), "--quiet"])
    assert done.exit_code == 0, done.output
    written = [json.loads(line) for line in out.read_text().splitlines()]
    expected = alone(load(folder), prompts, completions)
    assert [line["reward"] for line in written] == pytest.approx(expected, abs=TOLERANCE)
    assert [line["line"] for line in written] == list(range(1, len(prompts) + 1))
    (mean,) = re.findall(r"mean reward (-?[\d.]+) of \d+ completions", done.output)
    assert float(mean) == pytest.approx(sum(expected) / len(expected), abs=2e-4)
    assert "reads pair" in done.output
    file.write_text(json.dumps({"prompt": "Hi"}) + "\n")
    with pytest.raises(DataError, match=r"good\.jsonl:1: field 'completion'"):
        CliRunner().invoke(reward, ["score", str(file), "--model", str(folder)], catch_exceptions=False)


@pytest.mark.slow
def test_the_real_smollm2_packs_and_scores_as_alone() -> None:
    folder = embedded_lm()
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=1, dtype=torch.float32).eval()
    settings = RewardSettings(model=str(folder), input="text", device="cpu", batch_tokens=256)
    scorer = RewardModel(copy.deepcopy(model), AutoTokenizer.from_pretrained(folder), settings)
    prompts, completions = rows(12)
    found = scorer.score(prompts, completions)
    assert scorer.why_padded is None
    expected = []
    for prompt, completion in zip(prompts, completions, strict=True):
        assert isinstance(prompt, str)
        with torch.no_grad():
            expected.append(float(model(**scorer.tokenizer(prompt + completion, return_tensors="pt")).logits[0, 0]))
    assert found == pytest.approx(expected, abs=TOLERANCE)
    assert max(expected) - min(expected) > 0.1
