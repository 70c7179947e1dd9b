"""From HH's real pairs to a report: a reward model of SmolLM2, two systems, figures beside those of transformers."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from rouge_score.rouge_scorer import RougeScorer
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from meetlm.cli import main
from meetlm.data.example import Example
from meetlm.data.settings import DataSettings
from meetlm.data.sources import read_examples
from meetlm.evaluation.record import Comparison, Evaluation
from reward_models import TOLERANCE
from test_completion_files import written
from test_reward_training import trl as trl  # a fixture

SAMPLE = Path(__file__).parents[2] / "shared" / "data" / "hh-harmless-base"
NUMBER = 12
"""Prompts compared."""


def meet(*args: object) -> str:
    result = CliRunner().invoke(main, [str(arg) for arg in args])
    assert result.exit_code == 0, result.output
    return result.output


def short_pairs() -> list[Example]:
    """The first held-out pairs of short rows, both sides of one prompt and with words that ROUGE reads."""
    usable: dict[str, Example] = {}
    for example in read_examples(DataSettings(source="hh", path=str(SAMPLE)), "eval").rows:
        chosen, rejected = example.best_and_worst
        texts = [example.prompt.text(), chosen.content, rejected.content]
        have_words = all(any(c.isalpha() and c.isascii() for c in text) for text in texts)
        if example.other_prompt is None and have_words and chosen != rejected and sum(map(len, texts)) < 600:
            usable.setdefault(texts[0], example)
    return list(usable.values())[:NUMBER]


@torch.no_grad()
def rewards(folder: Path, prompts: Sequence[str], replies: Sequence[str]) -> list[float]:
    """Score row by row, as a user of transformers would."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32).eval()
    texts = [prompt + reply for prompt, reply in zip(prompts, replies, strict=True)]
    return [float(model(**tokenizer(text, return_tensors="pt")).logits[0, 0]) for text in texts]


def rouge(reference: str, reply: str) -> float:
    scores = RougeScorer(["rouge1", "rouge2", "rougeL"]).score(reference, reply)
    return statistics.fmean(score.fmeasure for score in scores.values())


def of(evaluation: Evaluation, evaluator: str) -> Comparison:
    (comparison,) = [comparison for comparison in evaluation.comparisons if comparison.evaluator == evaluator]
    return comparison


@pytest.mark.hh
@pytest.mark.slow
@pytest.mark.usefixtures("trl")
@pytest.mark.skipif(not SAMPLE.exists(), reason="no HH-RLHF sample beside the checkout")
def test_chosen_against_rejected_replies(tmp_path: Path) -> None:
    rm, out = tmp_path / "rm", tmp_path / "out"
    few = ["--data.limit_train", 16, "--data.limit_eval", 8, "--data.max_length", 128, "--device", "cpu", "--quiet"]
    said = meet("reward", "train", "--data.path", SAMPLE, "--model", "smollm2", "--input", "text", "--out", rm, *few)
    assert "held-out accuracy" in said and "on 8 pairs" in said
    pairs = short_pairs()
    assert len(pairs) == NUMBER
    prompts = [pair.prompt.text() for pair in pairs]
    chosen, rejected = zip(*(pair.best_and_worst for pair in pairs), strict=True)
    replies = {"chosen": [reply.content for reply in chosen], "rejected": [reply.content for reply in rejected]}
    places = []
    for side, texts in replies.items():
        rows = [{"prompt": prompt, "completion": text.strip()} for prompt, text in zip(prompts, texts, strict=True)]
        places.append(written(tmp_path / f"{side}.jsonl", rows))
    said = meet(
        "evaluate", *places, "--baseline", "rejected", "--data.path", SAMPLE, "--reward", rm, "--out", out, "--quiet"
    )
    evaluation = Evaluation.read(out / "evaluation.json")
    assert {row.prompt for row in evaluation.prompts} == set(prompts)
    order = [prompts.index(str(evaluation.prompts[place].prompt)) for place, _ in evaluation.cells]

    measures = {measure.name: measure for measure in evaluation.measures}
    alone = {side: rewards(rm, prompts, texts) for side, texts in replies.items()}
    expected = {side: [values[n] for n in order] for side, values in alone.items()}
    for side, values in expected.items():
        assert measures["reward"].values[side] == pytest.approx(values, abs=TOLERANCE)
        assert measures["reward"].means[side].value == pytest.approx(statistics.fmean(values), abs=TOLERANCE)
    assert max(expected["chosen"]) - min(expected["chosen"]) > 100 * TOLERANCE
    both = zip(measures["reward"].values["chosen"], measures["reward"].values["rejected"], strict=True)
    chances = [1 / (1 + math.exp(theirs - ours)) for ours, theirs in both]
    outcomes = ["win" if chance > 0.55 else "lose" if chance < 0.45 else "tie" for chance in chances]
    by_reward = of(evaluation, "reward")
    assert by_reward.outcomes == outcomes
    shares = {name: outcomes.count(name) / NUMBER for name in ("win", "lose", "tie")}
    rates = by_reward.rates
    assert (rates.win.value, rates.lose.value, rates.tie.value) == pytest.approx(tuple(shares.values()))
    assert rates.delta.value == pytest.approx(shares["win"] - shares["lose"])

    chosen_rouge, similar = ([rouge(replies["chosen"][n], replies[side][n]) for n in order] for side in replies)
    assert measures["rouge-avg"].values == {"chosen": pytest.approx(chosen_rouge), "rejected": pytest.approx(similar)}
    assert of(evaluation, "rouge-avg").outcomes == [
        "win" if a > b else "tie" for a, b in zip(chosen_rouge, similar, strict=True)
    ]

    win, lose, delta = (100 * rate.value for rate in (rates.win, rates.lose, rates.delta))
    row = next(line for line in said.split("Win rates by reward")[1].splitlines() if line.startswith("chosen "))
    assert all(f" {share:.1f} [" in row for share in (win, lose)) and f" {delta:.1f} [".replace("-", "−") in row
    page, text = ((out / name).read_text() for name in ("report.html", "report.md"))
    assert "image/svg+xml" in page and evaluation.settings["reward"]["weights_sha256"] in page
    assert all(f"{share:.1f} [" in text for share in (win, lose)) and f"{delta:.1f} [".replace("-", "−") in text
    assert json.loads((rm / "config.json").read_text())["reward_input"] == "text"
