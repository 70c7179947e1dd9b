"""The levels as a reward model, best-of-n, rollouts and rounds of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner

import meetlm
from meetlm.cli import main
from meetlm.config.errors import ConfigError
from meetlm.data.example import Completion, Example, Origin, Prompt, Turn
from meetlm.generation.settings import Sampling
from meetlm.run.execute import execute
from meetlm.run.rollout import Rollout, rows_of
from meetlm.run.score import score_pairs
from reward_models import folder_of
from run_folders import config_for, local_model, write_pairs

PROMPTS = ["\n\nHuman: What is rice?\n\nAssistant:", "\n\nHuman: Is water good?\n\nAssistant:"]


def meet(*args: object) -> Any:
    return CliRunner().invoke(main, [str(arg) for arg in args])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run, its data and its model."""
    folder = tmp_path_factory.mktemp("score")
    execute(config_for(folder, "llama", "lora"), folder / "run")
    return folder


def length(prompt: Any, completion: str) -> float:
    """Number of characters."""
    return len(completion)


def test_a_score_is_the_difference_of_log_probs(folder: Path) -> None:
    aligned = meetlm.load(folder / "run")
    (score,) = aligned.score(PROMPTS[:1], ["rice is good"])
    prompt = Prompt(PROMPTS[0])
    start = len(aligned.format.prompt_ids(prompt))
    reply = aligned.format.completion_ids(prompt, Turn("assistant", " rice is good"))
    sequence = [*aligned.format.prompt_ids(prompt), *reply]
    logps = []
    for level in ("good", "bad"):
        weights = [float(name == level) for name in aligned.levels]
        aligned.policy.control.set_level_weights(torch.tensor(weights).expand(1, len(sequence), -1))
        with torch.no_grad():
            logits = aligned.policy.lm(torch.tensor([sequence]), use_cache=False).logits[0].double()
        chosen = logits.log_softmax(-1)[range(start - 1, len(sequence) - 1), sequence[start:]]
        logps.append(float(chosen.sum()))
    assert score.total == pytest.approx(logps[0] - logps[1], abs=1e-3)
    assert score.per_token == pytest.approx(score.total / (len(sequence) - start))
    assert aligned.score(PROMPTS[:1], [" rice is good"]) == [score], "a space joins text that has none"


def test_best_of_is_the_sample_with_the_highest_score(folder: Path) -> None:
    aligned = meetlm.load(folder / "run")
    sampling = Sampling(max_new_tokens=6, temperature=1.0)
    samples = aligned.complete([p for p in PROMPTS for _ in range(4)], None, sampling, seed=3)
    scores = [score.total for score in aligned.score([s.prompt for s in samples], [s.completion for s in samples])]
    best = [max(range(at, at + 4), key=lambda index: scores[index]) for at in (0, 4)]
    assert len(set(scores)) > 4
    replies = aligned.generate(PROMPTS, best_of=4, max_new_tokens=6, temperature=1.0, seed=3)
    assert replies == [samples[index].completion for index in best]
    with pytest.raises(ConfigError, match="best_of requires a temperature above 0"):
        aligned.generate(PROMPTS, best_of=2)
    done = meet("generate", folder / "run", "--best-of", 3, "--temperature", 1, "--max-new-tokens", 4, "--limit", 2)
    assert done.exit_code == 0, done.output
    (file,) = (folder / "run" / "completions").glob("good-t1-p1-n4-best3-seed0-first2.jsonl")
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    assert [row["best_of"] for row in rows] == [3, 3] and all(isinstance(row["score"], float) for row in rows)


def test_meet_score_of_pairs_and_of_replies(folder: Path, tmp_path: Path) -> None:
    reward = folder_of("deberta", tmp_path / "rm")
    done = meet("score", folder / "run", "--json", "--quiet", "--reward", reward)
    assert done.exit_code == 0, done.output
    result = json.loads(done.stdout)
    assert result["num_pairs"] == len(result["pairs"]) == 6
    higher = [pair["score_chosen"]["total"] > pair["score_rejected"]["total"] for pair in result["pairs"]]
    assert result["accuracy"]["levels"]["value"] == pytest.approx(sum(higher) / 6)
    last = list(json.loads((folder / "run" / "preference.json").read_text()).values())[-1]
    assert result["accuracy"]["levels"]["value"] == last["by_sum"]["value"], "it is preference accuracy"
    assert f"reward model {reward}" in result["accuracy"]
    text = ["--prompt", "Is rice good?", "--completion", "yes", "--completion", "no"]
    done = meet("score", folder / "run", *text, "--quiet")
    assert done.exit_code == 0 and [line.split()[-1] for line in done.stdout.splitlines()] == ["yes", "no"]
    assert meet("score", folder / "run", "--prompt", "Hi").exit_code == 2
    execute(
        config_for(tmp_path / "sft", "llama", "none", "stages.tune.format=chosen"),
        tmp_path / "one",
    )
    assert "the run has no worst level beside the best" in meet("score", tmp_path / "one").output


def test_suspects_are_the_pairs_that_the_levels_contradict(folder: Path) -> None:
    data = ["--data.path", folder / "train.jsonl", "--data.source", "hh"]
    done = meet("data", *data, "--suspects", folder / "run", "--json")
    assert done.exit_code == 0, done.output
    result = json.loads(done.stdout)
    margins = [pair["margin"] for pair in result["suspects"]]
    assert result["num_pairs"] == 12 and margins == sorted(margins) and all(margin < 0 for margin in margins)
    lines = (folder / "train.jsonl").read_text().splitlines()
    swapped = [json.loads(line) for line in lines]
    rows = [{"chosen": row["rejected"], "rejected": row["chosen"]} for row in swapped]
    other = folder / "swapped.jsonl"
    other.write_text("".join(json.dumps(row) + "\n" for row in rows))
    flipped = json.loads(
        meet("data", "--data.path", other, "--data.source", "hh", "--suspects", folder / "run", "--json").stdout
    )
    assert len(flipped["suspects"]) == 12 - len(margins), "a pair with its labels swapped is a suspect, and only then"


def test_data_with_one_reply_per_prompt_are_refused(folder: Path) -> None:
    aligned = meetlm.load(folder / "run")
    reply = Completion(Turn("assistant", " yes"), (("", "good"),), Origin("a.jsonl", 1))
    example = Example(Prompt(PROMPTS[0]), (reply,), PROMPTS[0], Origin("a.jsonl", 1))
    with pytest.raises(ConfigError, match="one reply per prompt"):
        score_pairs(aligned.policy, aligned.encoder, [example])


ROLLOUT = Rollout(Prompt("Q:"), ("a", "b", "c"), (1.0, 3.0, 2.0))


def test_rows_have_trls_formats() -> None:
    assert rows_of([ROLLOUT], "scores") == [
        {"prompt": "Q:", "completion": f" {text}", "score": score} for text, score in zip("abc", (1, 3, 2), strict=True)
    ]
    (pair,) = rows_of([ROLLOUT, Rollout(Prompt("R:"), ("a", "b"), (1.0, 1.0))], "pairs")
    assert pair == {"prompt": "Q:", "chosen": " b", "rejected": " a", "score_chosen": 3.0, "score_rejected": 1.0}
    assert [(row["completion"], row["label"]) for row in rows_of([ROLLOUT], "unpaired")] == [
        (" a", False),
        (" b", True),
    ]
    chat = Rollout(Prompt((Turn("user", "Hi"),)), ("a", "b"), (0.0, 1.0))
    (pair,) = rows_of([chat], "pairs")
    assert pair["prompt"] == [{"role": "user", "content": "Hi"}]
    assert pair["chosen"] == [{"role": "assistant", "content": "b"}]
    (pair,) = rows_of([Rollout(Prompt(PROMPTS[0]), ("a", "b"), (0.0, 1.0))], "pairs")
    assert pair["chosen"] == f"{PROMPTS[0]} b" and "prompt" not in pair


def test_meet_rollout_from_a_run_and_from_a_model(folder: Path, tmp_path: Path) -> None:
    data = ["--data.path", folder / "test.jsonl", "--replies", 3, "--max-new-tokens", 4, "--quiet"]
    out = tmp_path / "rollouts.jsonl"
    done = meet("rollout", folder / "run", *data, "--out", out)
    assert done.exit_code == 0, done.output
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    aligned = meetlm.load(folder / "run")
    scores = aligned.score([row["prompt"] for row in rows], [row["completion"] for row in rows])
    assert [row["score"] for row in rows] == pytest.approx([score.total for score in scores], abs=1e-4)
    done = meet("rollout", folder / "lm", *data, "--scorer", "test_score:length", "--format", "pairs", "--out", out)
    assert done.exit_code == 0, done.output
    for line in out.read_text().splitlines():
        row = json.loads(line)
        assert row["score_chosen"] > row["score_rejected"] and len(row["chosen"]) > len(row["rejected"])
    assert "pass --reward or --scorer" in meet("rollout", folder / "lm", *data, "--out", out).output


def test_improve_repeats_rollouts_and_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = local_model(tmp_path / "lm", "llama")
    data = write_pairs(tmp_path / "pairs.jsonl", 10)
    out = tmp_path / "improve"
    args = ["improve", "hh-meet-lora", "--data.path", data, "--holdout", 4, "--model.name", model, "--out", out]
    args += ["--scorer", "test_score:length", "--max-new-tokens", 5, "--model.device", "cpu", "--quiet", "--json"]
    args += ["--stages.step1.epochs", 1, "--stages.step2.epochs", 1, "--batch.pairs", 4, "--replies", 3]
    right = execute

    def interrupted(config: Any, folder: Path, **more: Any) -> None:
        if folder.parent.name == "round-2":
            raise KeyboardInterrupt
        right(config, folder, **more)

    with monkeypatch.context() as patch:
        patch.setattr("meetlm.run.improve.execute", interrupted)
        assert meet(*args).exit_code == 130
    before = (out / "round-0" / "training.jsonl").stat().st_mtime_ns
    done = meet(*args)
    assert done.exit_code == 0, done.output
    results = json.loads(done.stdout)
    assert [result["number"] for result in results] == [0, 1, 2]
    assert results[0]["num_pairs"] == 0 < results[1]["num_pairs"] < results[2]["num_pairs"], "rounds add up"
    assert (out / "round-0" / "training.jsonl").stat().st_mtime_ns == before, "nothing is sampled twice"
    held_out = {json.loads(line)["prompt"] for line in (out / "round-0" / "held-out.jsonl").read_text().splitlines()}
    trained = {json.loads(line)["prompt"] for line in (out / "round-0" / "training.jsonl").read_text().splitlines()}
    assert len(held_out) == 4 and not held_out & trained
    assert meetlm.load(out / "round-2" / "run").levels[-1] == "good"
    refused = meet(*args, "--temperature", "0.5")
    assert refused.exit_code == 1 and "holds rounds of other settings (sampling)" in refused.output
