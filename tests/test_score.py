"""The levels as a reward model, best-of-n, rollouts and rounds of them."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from click.testing import CliRunner

import meetlm
from meetlm.cli import main
from meetlm.config.errors import ConfigError
from meetlm.data.example import Completion, Example, Origin, Prompt, Turn
from meetlm.data.levels import Attribute, LevelSpace
from meetlm.data.schemes import LevelScheme
from meetlm.generation.settings import Sampling
from meetlm.run.execute import execute
from meetlm.run.rollout import Rollout, rows_of
from meetlm.run.score import score_pairs
from reward_models import folder_of
from run_folders import config_for, finished, local_model, write_pairs
from tiny import tiny_policy

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


def shortness(prompt: Any, completion: str) -> float:
    """Number of characters, of which fewer are better."""
    return len(completion)


shortness.higher = False  # type: ignore[attr-defined]


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
    process = meet("generate", folder / "run", "--best-of", 3, "--temperature", 1, "--max-new-tokens", 4, "--limit", 2)
    assert process.exit_code == 0, process.output
    (file,) = (folder / "run" / "completions").glob("good-t1-p1-n4-best3-seed0-first2.jsonl")
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    assert [row["best_of"] for row in rows] == [3, 3] and all(isinstance(row["score"], float) for row in rows)


def test_meet_score_of_pairs_and_of_replies(folder: Path, tmp_path: Path) -> None:
    reward = folder_of("deberta", tmp_path / "rm")
    process = meet("score", folder / "run", "--json", "--quiet", "--reward", reward)
    assert process.exit_code == 0, process.output
    result = json.loads(process.stdout)
    assert result["num_pairs"] == len(result["pairs"]) == 6
    higher = [pair["score_chosen"]["total"] > pair["score_rejected"]["total"] for pair in result["pairs"]]
    assert result["accuracy"]["levels"]["value"] == pytest.approx(sum(higher) / 6)
    last = list(json.loads((folder / "run" / "preference.json").read_text()).values())[-1]
    assert result["accuracy"]["levels"]["value"] == last["by_sum"]["value"], "it is preference accuracy"
    assert f"reward model {reward}" in result["accuracy"]
    text = ["--prompt", "Is rice good?", "--completion", "yes", "--completion", "no"]
    process = meet("score", folder / "run", *text, "--quiet")
    assert process.exit_code == 0 and [line.split()[-1] for line in process.stdout.splitlines()] == ["yes", "no"]
    assert meet("score", folder / "run", "--prompt", "Hi").exit_code == 2
    execute(
        config_for(tmp_path / "sft", "llama", "none", "stages.tune.format=chosen"),
        tmp_path / "one",
    )
    assert "the run has only one level" in meet("score", tmp_path / "one").output


def test_suspects_are_the_pairs_that_the_levels_contradict(folder: Path) -> None:
    data = ["--data.path", folder / "train.jsonl", "--data.source", "hh"]
    process = meet("data", *data, "--suspects", folder / "run", "--json")
    assert process.exit_code == 0, process.output
    result = json.loads(process.stdout)
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
    reply = Completion(Turn("assistant", " yes"), (("", "good"),), Origin("a.jsonl", 1), (0.0, 1.0))
    example = Example(Prompt(PROMPTS[0]), (reply,), PROMPTS[0], Origin("a.jsonl", 1))
    with pytest.raises(ConfigError, match="no prompt with replies at different levels"):
        score_pairs(aligned.policy, aligned.encoder, [example])


TWO = LevelSpace((Attribute("tone", ("casual", "formal")), Attribute("length", ("brief", "detailed"))))


@pytest.fixture(scope="module")
def styles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with two attributes."""
    policy = tiny_policy("llama", "lora", dtype=torch.float32, levels=TWO)
    return finished(tmp_path_factory.mktemp("styles"), "llama", "lora", policy=policy)


def styled_examples() -> list[Example]:
    """Return a prompt with replies at three combinations, and a prompt with one reply."""
    replies = [("yes", [1, 3]), ("no", [0, 3]), ("maybe", [0])]
    completions = tuple(
        Completion(Turn("assistant", f" {text}"), (), Origin("a.jsonl", 1), TWO.weights(shown))
        for text, shown in replies
    )
    asked = Prompt(PROMPTS[0])
    return [
        Example(asked, completions, PROMPTS[0], Origin("a.jsonl", 1)),
        Example(asked, completions[:1], PROMPTS[0], Origin("a.jsonl", 2)),
    ]


def test_a_score_by_one_attribute_ignores_the_others(styles: Path) -> None:
    aligned = meetlm.load(styles)
    policy, encoder = aligned.policy, aligned.encoder
    prompt, reply = Prompt(PROMPTS[0]), Turn("assistant", " rice")

    def logp(*levels: int) -> float:
        return float(policy.score([encoder.encode(prompt, reply, TWO.weights(levels))])[0])

    (tone,), (both,) = (aligned.score([prompt], ["rice"], name) for name in ("tone", None))
    assert tone.total == pytest.approx(logp(1) - logp(0), abs=1e-6)
    assert both.total == pytest.approx(logp(1, 3) - logp(0, 2), abs=1e-6)
    with pytest.raises(ConfigError, match="no attribute 'tune'; did you mean 'tone'"):
        aligned.score([prompt], ["rice"], "tune")
    process = meet("score", styles, "--prompt", "Hi", "--completion", "rice", "--json", "--quiet")
    rows = json.loads(process.stdout)
    assert [(row["completion"], row["attribute"]) for row in rows] == [("rice", "tone"), ("rice", "length")]
    process = meet(
        "score", styles, "--prompt", "Hi", "--completion", "rice", "--attribute", "length", "--json", "--quiet"
    )
    assert json.loads(process.stdout) == rows[1:]


def test_a_pair_of_an_attribute_is_its_highest_and_lowest_reply(styles: Path) -> None:
    aligned = meetlm.load(styles)
    score = partial(score_pairs, aligned.policy, aligned.encoder, styled_examples())
    (pair,) = score("tone")
    assert [reply.content for reply in pair.example.best_and_worst] == [" yes", " maybe"]
    totals = [result.total for result in aligned.score([PROMPTS[0]] * 2, ["yes", "maybe"], "tone")]
    assert pair.margin == pytest.approx(totals[0] - totals[1], abs=1e-5)
    with pytest.raises(ConfigError, match="no prompt with replies at different levels of length"):
        score("length")
    with pytest.raises(ConfigError, match=r"several attributes \(tone, length\): choose .* with --attribute"):
        score()


def test_best_of_n_by_an_attribute(styles: Path) -> None:
    aligned = meetlm.load(styles)
    sampled = {"max_new_tokens": 4, "temperature": 1.0, "seed": 3}
    texts = aligned.generate([PROMPTS[0]] * 4, **sampled)
    scores = [score.total for score in aligned.score([PROMPTS[0]] * 4, texts, "length")]
    (best,) = aligned.generate(PROMPTS[:1], best_of=4, attribute="length", **sampled)
    assert best == texts[scores.index(max(scores))]
    asked = ["generate", styles, "--prompt", "Hi", "--attribute", "length"]
    assert "--attribute requires --best-of" in meet(*asked).output


def test_meet_score_of_several_attributes(styles: Path, tmp_path: Path) -> None:
    rows = [
        {"prompt": f"Rice {n}?", "completion": f"{text}.", "attributes": {"tone": tone, "length": length}}
        for n in range(3)
        for text, tone, length in (("Well", "formal", "detailed"), ("Hm", "casual", "brief"))
    ]
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    schemes = [LevelScheme(attribute).to_dict() for attribute in TWO.attributes]
    (styles / "config.yaml").write_text(yaml.safe_dump({"levels_pinned": schemes}))
    process = meet("score", styles, "--data.path", file, "--data.source", "feedback", "--json", "--quiet")
    assert process.exit_code == 0, process.output
    assert [(result["attribute"], result["num_pairs"]) for result in json.loads(process.stdout)] == [
        ("tone", 3),
        ("length", 3),
    ]
    process = meet("score", styles, "--data.path", file, "--data.source", "feedback", "--quiet")
    assert "tone: how often the chosen reply of 3 pairs" in process.stdout
    suspects = ["data", "--data.path", file, "--data.source", "feedback", "--suspects", styles]
    assert "choose the one that orders two replies with --attribute" in meet(*suspects).output
    assert " of 3 pairs: the rejected reply" in meet(*suspects, "--attribute", "tone").output
    assert "--attribute requires --suspects" in meet(*suspects[:-2], "--attribute", "tone").output


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
    process = meet("rollout", folder / "run", *data, "--out", out)
    assert process.exit_code == 0, process.output
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    aligned = meetlm.load(folder / "run")
    scores = aligned.score([row["prompt"] for row in rows], [row["completion"] for row in rows])
    assert [row["score"] for row in rows] == pytest.approx([score.total for score in scores], abs=1e-4)
    process = meet("rollout", folder / "lm", *data, "--scorer", "test_score:length", "--format", "pairs", "--out", out)
    assert process.exit_code == 0, process.output
    for line in out.read_text().splitlines():
        row = json.loads(line)
        assert row["score_chosen"] > row["score_rejected"] and len(row["chosen"]) > len(row["rejected"])
    assert "pass --reward or --scorer" in meet("rollout", folder / "lm", *data, "--out", out).output
    reward = ["--reward", folder_of("deberta", tmp_path / "rm"), "--reward.max_length", 64]
    process = meet("rollout", folder / "lm", *data, *reward, "--out", out)
    assert process.exit_code == 0, process.output
    assert len(out.read_text().splitlines()) == 3 * 6
    assert list(tmp_path.glob("rollouts*")) == [out], "stored rewards are removed at the end"
    process = meet("rollout", folder / "lm", *data, "--scorer", "test_score:shortness", "--out", out)
    assert all(json.loads(line)["score"] <= 0 for line in out.read_text().splitlines()), "lower is better"
    assert "leave out --reward" in meet("rollout", folder / "run", *data, *reward, "--attribute", "a").output


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
    process = meet(*args)
    assert process.exit_code == 0, process.output
    results = json.loads(process.stdout)
    assert [result["number"] for result in results] == [0, 1, 2]
    assert results[0]["num_rows"] == 0 < results[1]["num_rows"] < results[2]["num_rows"], "rounds add up"
    assert (out / "round-0" / "training.jsonl").stat().st_mtime_ns == before, "nothing is sampled twice"
    held_out = {json.loads(line)["prompt"] for line in (out / "round-0" / "held-out.jsonl").read_text().splitlines()}
    trained = {json.loads(line)["prompt"] for line in (out / "round-0" / "training.jsonl").read_text().splitlines()}
    assert len(held_out) == 4 and not held_out & trained
    assert meetlm.load(out / "round-2" / "run").levels[-1] == "good"
    refused = meet(*args, "--temperature", "0.5")
    assert refused.exit_code == 1 and "holds rounds of other settings (sampling)" in refused.output


def test_improve_trains_levels_of_scores(tmp_path: Path) -> None:
    model = local_model(tmp_path / "lm", "llama")
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("".join(json.dumps({"prompt": f"Rice {n}?"}) + "\n" for n in range(10)))
    out = tmp_path / "improve"
    args = [
        "improve",
        "feedback-meet-lora",
        "--data.path",
        prompts,
        "--holdout",
        3,
        "--model.name",
        model,
        "--out",
        out,
    ]
    args += ["--scorer", "test_score:length", "--max-new-tokens", 5, "--model.device", "cpu", "--quiet", "--rounds", 1]
    args += ["--stages.step1.epochs", 1, "--stages.step2.epochs", 1, "--batch.pairs", 4, "--replies", 6]
    args += ["--data.levels.count", 3, "--data.levels.scheme"]
    process = meet(*args, "within-prompt")
    assert process.exit_code == 0, process.output
    aligned = meetlm.load(out / "round-1" / "run")
    assert (tuple(aligned.levels), aligned.default_level) == (("q0", "q1", "q2"), "q2")
    assert f"round 1, {7 * 6} training replies" in process.stdout
    rows = [json.loads(line) for line in (out / "round-1" / "training-scores.jsonl").read_text().splitlines()]
    assert len(rows) == 7 * 6 and all(row["score"] == length("", row["completion"].strip()) for row in rows)
    refused = meet(*args, "quantiles")
    assert refused.exit_code == 1 and "holds rounds of other settings (levels)" in refused.output
    args[1] = "pairs-meet-lora"
    assert "--data.levels requires a recipe for feedback" in meet(*args, "quantiles").output
