"""Runs on data with feedback: from rows to a trained control, its accuracy and its completions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

import meetlm
from meetlm.config.errors import ConfigError
from meetlm.recipes.config import RunConfig
from meetlm.run.execute import execute
from meetlm.run.folder import read_pinned_levels
from meetlm.run.score import read_pairs
from reporters import RecordingReporter
from run_folders import config_for

SFT = [{"name": "sft", "train": ["lm"], "format": "chosen", "lr": 1e-3, "epochs": 1}]
DPO = [{"name": "dpo", "train": ["lm"], "format": "pairwise", "objective": {"kind": "dpo"}, "lr": 1e-3, "epochs": 1}]


def config_of(folder: Path, kind: str, rows: list[dict[str, Any]], *overrides: str, **more: Any) -> RunConfig:
    """Return a configuration over rows of feedback, a third of whose prompts is held out."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = [f"data.path={folder / 'rows.jsonl'}", "data.source=feedback", "data.holdout=6"]
    nothing = [f"data.{name}=null" for name in ("train_file", "eval_file")]
    return config_for(folder, "llama", kind, *data, *nothing, *overrides, **more)


def scored_rows() -> list[dict[str, Any]]:
    words = ("bad", "fair", "good")
    return [
        {"prompt": f"Rice {n}?", "completion": f" {words[score]} {n}.", "score": score}
        for n in range(18)
        for score in range(3)
    ]


def test_scores_train_a_level_each(tmp_path: Path) -> None:
    config = config_of(tmp_path, "lora", scored_rows())
    reporter = RecordingReporter()
    execute(config, tmp_path / "run", reporter=reporter)
    assert any(
        text.startswith("levels by score, lowest first, with thresholds 0.5, 1.5: q0 12") for text in reporter.messages
    )
    aligned = meetlm.load(tmp_path / "run")
    assert (tuple(aligned.levels), aligned.default_level) == (("q0", "q1", "q2"), "q2")
    assert all(aligned.generate(["Rice?"], level, max_new_tokens=3)[0] is not None for level in ("q0", 0.25, 1.5))
    record = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert record["levels_pinned"][0]["thresholds"] == [0.5, 1.5]
    pinned = read_pinned_levels(tmp_path / "run")
    (tmp_path / "run" / "config.yaml").unlink()
    assert read_pinned_levels(tmp_path / "run") == pinned, "meet.json has the schemes too"
    after = json.loads((tmp_path / "run" / "preference.json").read_text())["after step2"]
    assert after["pairs"] == 6 * 3
    examples, _ = read_pairs(config.data, aligned.format, pinned)
    replies = [[reply.content.split()[0] for reply in example.best_and_worst] for example in examples]
    assert replies == [["good", "bad"]] * 6, "the file has the worst reply first"
    assert set(after["attributes"][""]["by_levels"]) == {"q0 < q1", "q0 < q2", "q1 < q2"}
    metrics = [json.loads(line) for line in (tmp_path / "run" / "step1" / "metrics.jsonl").read_text().splitlines()]
    assert all({"loss/q0", "loss/q1", "loss/q2"} & step.keys() for step in metrics if "loss" in step)


@pytest.mark.parametrize("stages", [SFT, DPO])
def test_methods_without_levels_use_the_best_or_the_ends(stages: list[dict[str, Any]], tmp_path: Path) -> None:
    execute(config_of(tmp_path, "none", scored_rows(), stages=stages), tmp_path / "run")
    after = json.loads((tmp_path / "run" / "preference.json").read_text())[f"after {stages[0]['name']}"]
    assert (after["by_sum"], after["pairs"]) == (None, 6 * 3)
    assert tuple(meetlm.load(tmp_path / "run").levels) == ("q2",)


def test_dpo_refuses_data_without_two_levels_of_a_prompt(tmp_path: Path) -> None:
    rows = [{**row, "prompt": f"{row['prompt']} {row['score']}"} for row in scored_rows()]
    with pytest.raises(
        ConfigError, match="format 'pairwise' cannot use the data: no prompt has two replies at different"
    ):
        execute(config_of(tmp_path, "none", rows, stages=DPO), tmp_path / "run")


def test_sft_refuses_several_attributes(tmp_path: Path) -> None:
    rows = [
        {"prompt": row["prompt"], "completion": row["completion"], "attributes": {"a": row["score"], "b": n % 2}}
        for n, row in enumerate(scored_rows())
    ]
    with pytest.raises(
        ConfigError, match="format 'chosen' requires one attribute with ordered levels.*attributes of the data: a, b"
    ):
        execute(config_of(tmp_path, "none", rows, stages=SFT), tmp_path / "run")


@pytest.mark.parametrize("kind", ["lora", "soft-prompt"])
def test_two_attributes_with_missing_values(kind: str, tmp_path: Path) -> None:
    rows = [
        {"prompt": f"Rice {n}?", "completion": f" {tone} {score} {n}.", "attributes": {"tone": tone, "score": score}}
        for n in range(18)
        for tone in ("kind", "bad")
        for score in (0, 1 if n % 3 else None)
    ]
    execute(config_of(tmp_path, kind, rows, "data.levels.count=2"), tmp_path / "run")
    aligned = meetlm.load(tmp_path / "run")
    assert tuple(aligned.levels) == ("tone=bad", "tone=kind", "score=bad", "score=good")
    assert aligned.default_level == "score=good"
    assert aligned.weights({"tone": "kind", "score": 1}) == (0, 1, 0, 1)
    assert len(aligned.generate(["Rice?"], {"tone": "kind", "score": "bad"}, max_new_tokens=3)) == 1
    after = json.loads((tmp_path / "run" / "preference.json").read_text())["after step2"]
    assert (after["attributes"]["tone"]["rank_correlation"], after["attributes"]["score"]["most_likely"]) == (
        None,
        None,
    )
    assert 0 <= after["attributes"]["tone"]["most_likely"]["value"] <= 1


def test_an_attribute_without_replies_to_compare_has_no_accuracy(tmp_path: Path) -> None:
    rows = [
        {"prompt": f"Rice {n}?", "completion": f" {tone} {n}.", "attributes": {"tone": tone, "score": n % 2}}
        for n in range(30)
        for tone in ("bad", "good")
    ]
    execute(config_of(tmp_path, "lora", rows), tmp_path / "run")
    after = json.loads((tmp_path / "run" / "preference.json").read_text())["after step2"]["attributes"]
    assert after["score"]["accuracy"] is None and after["tone"]["accuracy"] is not None
