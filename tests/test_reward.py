"""Reward models: what they read, that batching changes no score, and which rows have no score."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from transformers import AutoModelForSequenceClassification, AutoTokenizer, RobertaConfig, pipeline

from meetlm.cli.reward import reward
from meetlm.config.errors import ConfigError, DataError
from meetlm.data.example import Prompt, Turn, as_reply
from meetlm.data.hh import to_turns
from meetlm.evaluation.reward import RewardModel, batches_by_length
from meetlm.evaluation.reward_input import (
    FORM_KEY,
    RewardInput,
    TokenizedRow,
    choose_form,
    join_text,
    question_of,
)
from meetlm.evaluation.settings import RewardSettings
from reward_models import KINDS, SMALL, TOLERANCE, bert, deberta, folder_of, llama, load
from tiny import _WORDS, CHATML, tiny_lm, tiny_tokenizer


def rows(count: int = 23, seed: int = 3) -> tuple[list[Prompt], list[str]]:
    """Return HH-like prompts of very different lengths, two to four completions of each."""
    vocabulary = _WORDS.split()
    shuffle = random.Random(seed)
    prompts: list[Prompt] = []
    completions = []
    while len(prompts) < count:
        question = " ".join(shuffle.choices(vocabulary, k=shuffle.choice([1, 4, 25])))
        for _ in range(shuffle.randint(2, 4)):
            prompts.append(Prompt(f"\n\nHuman: {question}?\n\nAssistant:"))
            completions.append(" " + " ".join(shuffle.choices(vocabulary, k=shuffle.choice([1, 3, 12]))))
    return prompts, completions


def score(model: RewardModel, prompts: Sequence[Prompt], completions: Sequence[str]) -> list[float | None]:
    return model.score(model.tokenize(prompts, completions))


def problems(model: RewardModel, prompts: Sequence[Prompt], completions: Sequence[str]) -> list[Any]:
    """Return (text, count, names) of the problems of rows that are called 0, 1, …"""
    tokenized = model.tokenize(prompts, completions)
    listed = model.problems(tokenized, model.score(tokenized), list(map(str, range(len(prompts)))))
    return [(problem.description, problem.count, problem.examples) for problem in listed]


def by_pipeline(
    folder: Path, form: str, prompts: Sequence[Prompt], completions: Sequence[str], batch: int
) -> list[float]:
    """Score as a user of transformers would."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    if batch > 1 and model.config.pad_token_id is None:
        model.config.pad_token_id = tokenizer.pad_token_id
    judge = pipeline("text-classification", model=model, tokenizer=tokenizer, function_to_apply="none", device="cpu")
    both = list(zip(prompts, completions, strict=True))
    if form == "pair":
        inputs: list[Any] = [{"text": p.text().strip(), "text_pair": c.strip()} for p, c in both]
        return [result["score"] for result in judge(inputs, batch_size=batch)]
    if form == "text":
        return [result["score"] for result in judge([p.text() + c for p, c in both], batch_size=batch)]
    chats = [[turn.to_message() for turn in (*to_turns(p), as_reply(c.strip()))] for p, c in both]
    texts = [tokenizer.apply_chat_template(messages, tokenize=False) for messages in chats]
    return [result["score"] for result in judge(texts, batch_size=batch, add_special_tokens=False)]


def row_by_row(model: RewardModel, prompts: Sequence[Prompt], completions: Sequence[str]) -> list[float]:
    """Score rows one at a time with the plain model, as it was saved."""
    plain = AutoModelForSequenceClassification.from_pretrained(model.settings.model).eval()
    scores = []
    for row in RewardInput(model.tokenizer, model.form, model.max_tokens).encode(prompts, completions):
        assert isinstance(row, TokenizedRow)
        types = {} if row.type_ids is None else {"token_type_ids": torch.tensor([row.type_ids])}
        with torch.no_grad():
            scores.append(float(plain(input_ids=torch.tensor([row.ids]), **types).logits[0, 0]))
    return scores


@pytest.mark.parametrize("kind", KINDS)
def test_scores_equal_those_of_single_rows_and_of_the_pipeline(kind: str, tmp_path: Path) -> None:
    folder = folder_of(kind, tmp_path)
    _, form, requested = KINDS[kind]
    model = load(folder, input=requested, batch_tokens=256)
    assert model.form == form
    prompts, completions = rows()
    scores = score(model, prompts, completions)
    expected = row_by_row(model, prompts, completions)
    assert scores == pytest.approx(expected, abs=TOLERANCE)
    assert max(expected) - min(expected) > 0.1, "the scores differ, or this test shows nothing"
    batch = 1 if kind == "llama" else 8  # without a pad id in the config the pipeline cannot batch
    assert scores == pytest.approx(by_pipeline(folder, form, prompts, completions, batch), abs=TOLERANCE)
    order = list(range(len(prompts)))
    random.Random(0).shuffle(order)
    shuffled = score(model, [prompts[n] for n in order], [completions[n] for n in order])
    assert shuffled == pytest.approx([scores[n] for n in order], abs=TOLERANCE)
    bare = [completion.strip() for completion in completions]
    assert model.tokenize(prompts, completions) == model.tokenize(prompts, bare), "white space changes nothing"


def test_a_decoder_without_a_pad_id_pools_the_last_token(tmp_path: Path) -> None:
    """Rows that end with the tokenizer's padding token, in padded batches."""
    model = load(folder_of("llama", tmp_path), input="text")
    prompts, completions = rows(9)
    completions = [text + "<|endoftext|>" * (n % 2) for n, text in enumerate(completions)]
    expected = row_by_row(model, prompts, completions)
    assert score(model, prompts, completions) == pytest.approx(expected, abs=TOLERANCE)
    assert model.model.config.pad_token_id is None


def test_long_rows_lose_the_oldest_tokens_and_are_reported(tmp_path: Path) -> None:
    model = load(folder_of("bert", tmp_path / "bert", max_position_embeddings=32))
    assert model.max_tokens == 32
    long, short, answer = "water " * 60 + "rice", "rice", "A good way is to boil it"
    ((text, count, names),) = problems(model, [Prompt(text) for text in (long, short, long)], [answer] * 3)
    assert (count, names) == (2, ["0", "2"])
    excess = len(model.tokenizer(long, answer)["input_ids"]) - 32
    assert f"{2 * excess} tokens were removed" in text
    room = 32 - 3 - len(model.tokenizer(answer, add_special_tokens=False)["input_ids"])
    truncated = "water " * (room - 1) + "rice"
    expected = row_by_row(model, [Prompt(truncated)], [answer])[0]
    assert score(model, [Prompt(long)], [answer])[0] == pytest.approx(expected, abs=TOLERANCE)
    assert problems(model, [Prompt(short)], ["boil " * 80])[0][1] == 1, "a completion that is too long by itself"

    decoder = load(folder_of("llama", tmp_path / "llama"), input="text", max_length=16)
    (row,) = decoder.tokenize([Prompt("How are you today? " * 9)], [" well"])
    assert isinstance(row, TokenizedRow) and len(row.ids) == 16 and row.num_removed > 20
    assert decoder.tokenizer.decode(list(row.ids)).endswith(" well")


def test_roberta_counts_positions_from_after_the_padding_id() -> None:
    tokenizer, _ = bert()
    config = RobertaConfig(**SMALL, vocab_size=len(tokenizer), max_position_embeddings=34, pad_token_id=1)
    classifier = AutoModelForSequenceClassification.from_config(config)
    model = RewardModel(classifier, tokenizer, RewardSettings(model="roberta", device="cpu"))
    assert model.max_tokens == 32
    assert score(model, [Prompt("water " * 60)], ["rice"])[0] is not None


@pytest.mark.parametrize("kind", ["bert", "llama"])
def test_non_finite_scores_are_none_and_reported(kind: str, tmp_path: Path) -> None:
    model = load(folder_of(kind, tmp_path), input=KINDS[kind][2])
    words = ["today", "rice", "water", "good"]
    prompts = [Prompt("How are")] * 4
    nan_id = model.tokenizer(" rice", add_special_tokens=False)["input_ids"][-1]
    expected = [str(n) for n, word in enumerate(words) if nan_id in model.tokenizer(f"How are {word}")["input_ids"]]
    assert "1" in expected and len(expected) < len(words)
    with torch.no_grad():
        model.model.get_input_embeddings().weight[nan_id] = float("nan")
    ((text, count, names),) = problems(model, prompts, words)
    assert "NaN" in text and (count, names) == (len(expected), expected)
    with torch.no_grad():
        head = next(p for name, p in model.model.named_parameters() if name.startswith(("score", "classifier")))
        head.fill_(float("inf"))
    assert score(model, prompts, words) == [None] * 4


def test_rows_without_tokens_or_refused_by_the_template_are_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load(folder_of("llama", tmp_path / "text"), input="text")
    prompts, completions = [Prompt(""), Prompt("Hi")], ["", " you"]
    assert score(model, prompts, completions)[0] is None and score(model, [], []) == []
    assert "no token" in problems(model, prompts, completions)[0][0]
    strict = CHATML.replace(
        "{% for message in messages %}",
        "{% for message in messages %}{% if message['role'] == 'tool' %}{{ raise_exception('no tools') }}{% endif %}",
    )
    monkeypatch.setitem(KINDS, "strict", (lambda: llama(pad=3, template=strict), "chat", "auto"))
    model = load(folder_of("strict", tmp_path / "strict"))
    asked = [Prompt((Turn("user", "Hi"), Turn("tool", "4"))), Prompt("Hi")]
    assert [value is None for value in score(model, asked, ["four", "hello"])] == [True, False]
    ((text, count, names),) = problems(model, asked, ["four", "hello"])
    assert "no tools" in text and (count, names) == (1, ["0"])


def test_text_is_joined_by_one_space() -> None:
    assert join_text("\n\nHuman: Rice?\n\nAssistant:", "Boil it.") == "\n\nHuman: Rice?\n\nAssistant: Boil it."
    assert join_text("", "Boil it.") == "Boil it."
    assert [join_text(f"A post{end}", "Short.") for end in (" ", "\n", "\n\n")] == [
        "A post Short.",
        "A post\nShort.",
        "A post\n\nShort.",
    ]


def test_the_input_of_each_form() -> None:
    text = "\n\nHuman: How are you?\n\nAssistant: Well.\n\nHuman: And rice?\n\nAssistant:"
    hh, turns = Prompt(text), [Turn("user", "How are you?"), as_reply("Well."), Turn("user", "And rice?")]
    chat = Prompt(tuple(turns))
    assert list(to_turns(hh)) == list(to_turns(chat)) == turns
    assert to_turns(Prompt(" a post\n\nTL;DR:")) == (Turn("user", "a post\n\nTL;DR:"),)
    assert to_turns(Prompt("Be kind." + text))[0] == Turn("system", "Be kind.")
    assert question_of(hh) == question_of(chat) == text.strip()
    assert question_of(Prompt((Turn("user", " rice? "),))) == "rice?"

    tokenizer = tiny_tokenizer(template=CHATML)
    read = RewardInput(tokenizer, "text", None).encode([hh, chat], [" Boil it.", "Boil it."])
    assert read[0] == read[1] == TokenizedRow(tuple(tokenizer(text + " Boil it.")["input_ids"]))
    closed = RewardInput(tokenizer, "text", None, eos=True).encode([hh], [" Boil it."])[0]
    assert isinstance(closed, TokenizedRow) and closed.ids[-1] == tokenizer.eos_token_id
    prompts = [hh, Prompt(text + " Boil"), Prompt((*turns, as_reply("")))]
    read = RewardInput(tokenizer, "chat", None).encode(prompts, [" Boil it.", " it.", "Boil it."])
    whole = [turn.to_message() for turn in (*turns, as_reply("Boil it."))]
    expected = TokenizedRow(tuple(tokenizer.apply_chat_template(whole, return_dict=False)))
    assert read == [expected] * 3
    model, _ = deberta()
    (pair,) = RewardInput(model, "pair", None).encode([hh], [" Boil it. "])
    both = model(text.strip(), "Boil it.")
    assert pair == TokenizedRow(tuple(both["input_ids"]), tuple(both["token_type_ids"]))
    assert 1 in both["token_type_ids"]


def test_the_form_is_determined_or_requested() -> None:
    plain, chat, (pair, _) = tiny_tokenizer(), tiny_tokenizer(template=CHATML), deberta()
    assert choose_form(chat, None, "auto")[0] == "chat" and choose_form(pair, None, "auto")[0] == "pair"
    assert choose_form(chat, "text", "auto") == ("text", "recorded in the model's config.json")
    assert choose_form(chat, "text", "chat") == ("chat", "as requested")
    with pytest.raises(ConfigError, match="set input to pair, chat or text"):
        choose_form(plain, None, "auto")
    with pytest.raises(ConfigError, match="no chat template"):
        choose_form(plain, None, "chat")
    with pytest.raises(ConfigError, match=f"config.json: {FORM_KEY} is 'tree'"):
        choose_form(plain, "tree", "auto")


def test_models_that_are_not_reward_models_are_refused(tmp_path: Path) -> None:
    tiny_lm("llama", dtype=torch.float32).save_pretrained(tmp_path / "lm")
    tiny_tokenizer().save_pretrained(tmp_path / "lm")
    with pytest.raises(ConfigError, match="no weights for score.weight"):
        load(tmp_path / "lm", input="text")
    with pytest.raises(ConfigError, match="has 3 labels"):
        load(folder_of("bert", tmp_path / "three", num_labels=3))
    with pytest.raises(ConfigError, match="no such folder"):
        load(tmp_path / "nowhere")


def test_batches_hold_every_row_within_the_budget() -> None:
    shuffle = random.Random(5)
    lengths = [shuffle.randint(1, 60) for _ in range(80)]
    batches = list(batches_by_length([TokenizedRow(tuple(range(length))) for length in lengths], 128))
    assert sorted(n for batch in batches for n in batch) == list(range(80))
    sizes = [len(batch) * max(lengths[n] for n in batch) for batch in batches]
    assert max(sizes) <= 128 and sum(sizes) < 1.15 * sum(lengths)
    assert list(batches_by_length([TokenizedRow((1,) * 500)], 128)) == [[0]], "a row above the budget is a batch"


def test_score_command(tmp_path: Path) -> None:
    folder = folder_of("bert", tmp_path / "rm")
    file = tmp_path / "good.jsonl"
    prompts, completions = rows(5)
    lines = [{"prompt": p.text(), "completion": c} for p, c in zip(prompts, completions, strict=True)]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    out = tmp_path / "rewards.jsonl"
    result = CliRunner().invoke(reward, ["score", str(file), "--reward", str(folder), "--out", str(out), "--quiet"])
    assert result.exit_code == 0, result.output
    written = [json.loads(line) for line in out.read_text().splitlines()]
    expected = row_by_row(load(folder), prompts, completions)
    assert [line["reward"] for line in written] == pytest.approx(expected, abs=TOLERANCE)
    assert [line["line"] for line in written] == list(range(1, len(prompts) + 1))
    (mean,) = re.findall(r"mean reward (-?[\d.]+) of \d+ completions", result.stdout)
    assert float(mean) == pytest.approx(sum(expected) / len(expected), abs=2e-4)
    assert "pair (" in result.stderr and "pair (" not in result.stdout
    file.write_text(json.dumps({"prompt": "Hi"}) + "\n")
    with pytest.raises(DataError, match=r"good\.jsonl:1: field 'completion'"):
        CliRunner().invoke(reward, ["score", str(file), "--reward", str(folder)], catch_exceptions=False)
