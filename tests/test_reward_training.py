"""Training a reward model from pairs with TRL."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
)

from meetlm.cli.reward import reward
from meetlm.config.errors import DataError, RunError
from meetlm.config.reporter import Progress, Reporter
from meetlm.data.example import Prompt
from meetlm.data.settings import DataSettings
from meetlm.data.splits import read_splits
from meetlm.evaluation.reward_input import RewardInput
from meetlm.evaluation.settings import RewardData, RewardTraining
from meetlm.run.reward_training import CHECKPOINTS, RESULT, RewardPairs, train_reward
from reward_models import KINDS, TOLERANCE, folder_of, load
from tiny import _WORDS, CHATML, tiny_lm, tiny_tokenizer


def _write_pairs(place: Path, count: int, seed: int, *, chat: bool = False) -> Path:
    """Write pairs whose chosen reply contains "good" and whose rejected reply contains "bad", among random words."""
    shuffle = random.Random(seed)
    words = [word for word in _WORDS.replace(";", "").split() if word not in ("good", "bad")]
    lines = []
    for number in range(count):
        said = " ".join(shuffle.choices(words, k=shuffle.randint(2, 9)))
        prompt: Any = f"\n\nHuman: {number} {said}?\n\nAssistant:"
        replies = {}
        for side, word in (("chosen", "good"), ("rejected", "bad")):
            reply = shuffle.choices(words, k=shuffle.randint(2, 8))
            reply.insert(shuffle.randint(0, len(reply)), word)
            replies[side] = " " + " ".join(reply)
        if chat:
            prompt = [{"role": "user", "content": said}]
            replies = {side: [{"role": "assistant", "content": text.strip()}] for side, text in replies.items()}
        lines.append({"prompt": prompt, **replies})
    place.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return place


class Stop(Exception):
    """A kill."""


class Recorder(Reporter, Progress):
    """Records messages and optimizer steps; raises :class:`Stop` after ``stop_after`` steps."""

    def __init__(self, stop_after: int | None = None) -> None:
        self.messages: list[str] = []
        self.steps: list[int] = []
        self.stop_after = stop_after
        self._training = False

    def message(self, text: str) -> None:
        self.messages.append(text)

    @contextmanager
    def progress(self, title: str, *, unit: str = "", **more: Any) -> Iterator[Progress]:
        yield self if unit == "step" else Progress()

    def advance(self, count: int = 1) -> None:
        self.steps.append(count)
        if sum(self.steps) == self.stop_after:
            raise Stop


def _training(tmp_path: Path, model: Path, **changes: Any) -> RewardTraining:
    data = RewardData(
        source="pairs",
        train_file=str(_write_pairs(tmp_path / "train.jsonl", 240, 0, chat=changes.pop("chat", False))),
        eval_file=str(_write_pairs(tmp_path / "test.jsonl", 80, 1, chat=changes.pop("chat_test", False))),
        max_length=200,
    )
    usual = {"lr": 1e-2, "epochs": 4.0, "lora_rank": 0, "save_steps": 10, "device": "cpu"}
    return RewardTraining(model=str(model), data=data, **{**usual, **changes})


@pytest.fixture
def trl() -> None:
    pytest.importorskip("trl")
    pytest.importorskip("peft")


def _lm(place: Path, template: str | None = None) -> Path:
    tiny_lm("llama", dtype=torch.float32).save_pretrained(place)
    tiny_tokenizer(template=template).save_pretrained(place)
    return place


@pytest.mark.parametrize("kind", ["llama", "llama with a template", "bert"])
def test_scoring_and_training_have_the_same_inputs(kind: str, tmp_path: Path) -> None:
    """HH's replies begin with a space; completions that `meet generate` writes have lost it."""
    said = [f"\n\nHuman: How are you {number}?\n\nAssistant:" for number in range(4)]
    lines = [{"chosen": f"{text} I am well. ", "rejected": f"{text} A bad way"} for text in said]
    for name, some in (("train", lines[:3]), ("test", lines[3:])):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in some))
    settings = DataSettings(
        source="hh", train_file=str(tmp_path / "train.jsonl"), eval_file=str(tmp_path / "test.jsonl")
    )
    scorer = load(folder_of(kind, tmp_path / "rm"), input=KINDS[kind][2])
    trained, held = read_splits(settings)
    pairs = RewardPairs.prepare(settings, trained, held, RewardInput(scorer.tokenizer, scorer.form, None))
    assert len(pairs.train) == 3
    for completion, side in (("I am well.", 0), ("A bad way", 1)):
        assert scorer.tokenize(list(map(Prompt, said[:3])), [completion] * 3) == [pair[side] for pair in pairs.train]
    if scorer.form == "text":
        assert scorer.tokenizer.decode(pairs.train[0][0].ids) == lines[0]["chosen"].rstrip()
    (test,) = pairs.test
    assert test.prompt.text() == said[3]


def test_only_pairs_train_a_reward_model(tmp_path: Path) -> None:
    """Feedback of other kinds does not say before its levels are known which reply is the better one."""
    row = {"prompt": "Rice?", "completions": ["a", "b"], "scores": [1, 2]}
    (tmp_path / "scores.jsonl").write_text(json.dumps(row) + "\n")
    file = str(tmp_path / "scores.jsonl")
    settings = DataSettings(source="feedback", train_file=file, eval_file=file)
    encoder = RewardInput(tiny_tokenizer(), "text", None)
    with pytest.raises(DataError, match=r"scores\.jsonl:1: is not a pair of a chosen and a rejected reply"):
        RewardPairs.prepare(settings, *read_splits(settings), encoder)


@pytest.mark.slow
@pytest.mark.usefixtures("trl")
def test_training_learns_resumes_and_reloads(tmp_path: Path) -> None:
    settings = _training(tmp_path, _lm(tmp_path / "lm"), lora_rank=8)
    recorder = Recorder()
    trained = train_reward(settings, tmp_path / "rm", reporter=recorder)
    assert trained.accuracy.value > 0.9 and trained.accuracy.low > 0.8
    assert trained.num_test == 80 and trained.num_train == 240 and trained.steps == 120
    assert any("input form of the reward model: text" in line for line in recorder.messages)
    record = json.loads((tmp_path / "rm" / RESULT).read_text())
    assert record["accuracy"]["value"] == trained.accuracy.value and record["versions"]["trl"]
    assert not (tmp_path / "rm" / CHECKPOINTS).exists()

    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "rm")
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "rm").eval()
    assert model.config.pad_token_id == tokenizer.pad_token_id is not None
    scorer = load(tmp_path / "rm")
    assert (scorer.form, scorer.form_reason) == ("text", "recorded in the model's config.json")
    held = [json.loads(line) for line in (tmp_path / "test.jsonl").read_text().splitlines()]
    prompts, replies = [Prompt(row["prompt"]) for row in held for _ in range(2)], []
    for row in held:
        replies += [row["chosen"], row["rejected"]]
    scores = scorer.score(scorer.tokenize(prompts, replies))
    texts = tokenizer([p.text() + r for p, r in zip(prompts, replies, strict=True)], padding=True, return_tensors="pt")
    with torch.no_grad():
        plain = model(input_ids=texts["input_ids"], attention_mask=texts["attention_mask"]).logits[:, 0]
    assert scores == pytest.approx(plain.tolist(), abs=TOLERANCE)
    higher = [float(a > b) for a, b in zip(plain[::2].tolist(), plain[1::2].tolist(), strict=True)]
    assert sum(higher) / len(higher) == pytest.approx(trained.accuracy.value)

    with pytest.raises(Stop):
        train_reward(settings, tmp_path / "killed", reporter=Recorder(stop_after=27))
    (tmp_path / "killed" / CHECKPOINTS / "checkpoint-25").mkdir()  # cut off while it was written
    later = Recorder()
    resumed = train_reward(settings, tmp_path / "killed", reporter=later)
    assert later.steps[0] == 20 and sum(later.steps) == 120, "it resumes from the last complete checkpoint"
    assert resumed.accuracy == trained.accuracy
    again = load(tmp_path / "killed").score(scorer.tokenize(prompts, replies))
    assert again == pytest.approx(scores, abs=TOLERANCE)

    before = (tmp_path / "rm" / "model.safetensors").stat().st_mtime_ns
    assert train_reward(settings, tmp_path / "rm") == trained
    assert (tmp_path / "rm" / "model.safetensors").stat().st_mtime_ns == before
    with pytest.raises(RunError, match=r"lr was 0\.01 and is now 0\.02"):
        train_reward(settings.model_copy(update={"lr": 0.02}), tmp_path / "rm")
    with pytest.raises(RunError, match="holds other files"):
        train_reward(settings, tmp_path)


@pytest.mark.slow
@pytest.mark.usefixtures("trl")
def test_training_on_conversations_and_on_two_sequences(tmp_path: Path) -> None:
    lm = _lm(tmp_path / "lm", CHATML)
    chat = train_reward(_training(tmp_path, lm, chat=True, chat_test=True), tmp_path / "chat")
    assert load(tmp_path / "chat").form == "chat" and chat.accuracy.value > 0.9
    assert AutoTokenizer.from_pretrained(tmp_path / "chat").chat_template == CHATML
    encoder = folder_of("bert", tmp_path / "bert")
    pair = train_reward(_training(tmp_path, encoder, lr=3e-3, epochs=6.0), tmp_path / "pair")
    assert load(tmp_path / "pair").form == "pair" and pair.accuracy.value > 0.9


@pytest.mark.usefixtures("trl")
def test_train_command(tmp_path: Path) -> None:
    lm, data = _lm(tmp_path / "lm"), _write_pairs(tmp_path / "pairs.jsonl", 120, 0)
    args = ["train", "--data.path", str(data), "--model", str(lm), "--out", str(tmp_path / "rm"), "--quiet"]
    result = CliRunner().invoke(reward, args)
    assert result.exit_code == 2 and "--data.holdout" in result.output
    result = CliRunner().invoke(reward, [*args, "--data.holdout", "40", "--device", "cpu"], catch_exceptions=False)
    assert result.exit_code == 0
    assert "held-out accuracy" in result.output and "on 40 pairs" in result.output
    assert "80 of 80 rows kept" in result.output
    assert load(tmp_path / "rm").form == "text"
