"""The methods from their recipes to runs, and the stages that runs have in common."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file
from torch import Tensor

import meetlm
from meetlm.config.errors import ConfigError
from meetlm.recipes.config import RunConfig, load_config
from meetlm.run.execute import execute
from meetlm.run.stage_cache import StageCache, stage_key, stage_keys
from reporters import RecordingReporter
from run_folders import local_model, write_pairs
from test_resume import Killed, kill_after

TEXTS = ["\n\nHuman: What is rice?\n\nAssistant:", "Hi"]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEETLM_CACHE", str(tmp_path / "cache"))


def recipe(folder: Path, method: str, *overrides: str) -> RunConfig:
    """Return a method's recipe over a tiny Llama and 12 pairs, all in ``folder``, at one epoch of 3 steps a stage."""
    if not (folder / "lm").exists():
        local_model(folder / "lm", "llama")
        write_pairs(folder / "train.jsonl", 12)
        write_pairs(folder / "test.jsonl", 6)
    file = folder / f"{method}.yaml"
    files = {"path": None, "train_file": str(folder / "train.jsonl"), "eval_file": str(folder / "test.jsonl")}
    over = {
        "recipe": f"hh-{method}",
        "model": {"name": str(folder / "lm"), "device": "cpu"},
        "data": {**files, "max_length": 128},
        "batch": {"pairs": 4, "micro_pairs": 2, "save_steps": 1},
    }
    file.write_text(json.dumps(over))
    stages = load_config(None, file).stages
    changed = {override.partition("=")[0] for override in overrides}
    one_epoch = [f"stages.{stage.name}.epochs=1" for stage in stages]
    return load_config(None, file, [*(override for override in one_epoch if override[:-2] not in changed), *overrides])


def run(config: RunConfig, folder: Path, cache: StageCache | None = None) -> list[str]:
    """Execute; return the messages."""
    reporter = RecordingReporter()
    execute(config, folder, cache=cache, reporter=reporter)
    return reporter.messages


class EveryStage(StageCache):
    """Stores all stages."""

    def store(self, key: str, stage: Path) -> None:
        self.keys_to_store = {key}
        super().store(key, stage)


def reused_stages(messages: list[str]) -> list[str]:
    """Return the stages that a run has not trained itself."""
    return [line.split(":")[0] for line in messages if "reused from another run" in line]


def read(folder: Path, name: str = "preference.json") -> Any:
    return json.loads((folder / name).read_text())


def weights(run: Path) -> dict[str, Tensor]:
    """Every tensor of a finished run."""
    files = [run / "model" / "model.safetensors", run / "control.safetensors"]
    return {f"{file.name} {name}": t for file in files if file.is_file() for name, t in load_file(file).items()}


def same(run_folder: Path, other_folder: Path) -> bool:
    left, right = weights(run_folder), weights(other_folder)
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def fingerprint(run: Path) -> str:
    """Return what stages over the run's data have in common: its rows and its prompt format."""
    record = yaml.safe_load((run / "config.yaml").read_text())
    return f"{record['data_sha256']} {json.dumps(record['format_pinned'], sort_keys=True)}"


@pytest.mark.parametrize(
    ("method", "stages", "levels"),
    [
        ("sft", ["sft"], ("good",)),
        ("dpo", ["sft", "dpo"], ("good",)),
        ("sft-lora", ["step1", "step2"], ("good",)),
        ("coh-chain", ["tune"], ("bad", "good")),
        ("special-token", ["tune"], ("bad", "good")),
    ],
)
def test_a_method_from_its_recipe_to_its_run(
    method: str, stages: list[str], levels: tuple[str, ...], tmp_path: Path
) -> None:
    run(recipe(tmp_path, method), tmp_path / "run")
    aligned = meetlm.load(tmp_path / "run")
    assert (tuple(aligned.levels), aligned.default_level) == (levels, "good")
    replies = aligned.generate(TEXTS, max_new_tokens=5)
    assert replies == aligned.generate(TEXTS, "good", max_new_tokens=5)
    assert all(replies)
    entries = read(tmp_path / "run")
    assert list(entries) == ["before training", *(f"after {name}" for name in stages)]
    for entry in entries.values():
        assert (entry["by_sum"] is None, entry["by_token"] is None) == (len(levels) == 1,) * 2
        assert entry["pairs"] == 6
        assert 0 < entry["nll"] < 10
    if len(levels) == 1:  # nothing has moved: a tie each, not a coin's throw
        assert entries["before training"]["reward"]["value"] == 0.5
        with pytest.raises(ConfigError, match="level 'bad' is unknown"):
            aligned.generate(TEXTS, "bad")
    for name in stages:
        lines = [json.loads(line) for line in (tmp_path / "run" / name / "metrics.jsonl").read_text().splitlines()]
        assert len(lines) == 3
        assert ("rewards/accuracies" in lines[0]) == (name == "dpo")
        assert ("loss/bad" in lines[0]) == (len(levels) == 2)
        if name == "dpo":  # its reference is the model that it starts from
            assert lines[0]["loss"] == pytest.approx(math.log(2), abs=1e-4)


@pytest.mark.parametrize(
    "order",
    [
        pytest.param(("meet-lora", "meet-lora-first-step"), marks=pytest.mark.slow),
        ("meet-lora-first-step", "meet-lora"),
    ],
)
def test_meet_and_its_first_step_share_step_one(order: tuple[str, str], tmp_path: Path) -> None:
    configs = {method: recipe(tmp_path, method) for method in order}
    run(configs["meet-lora"], tmp_path / "alone")
    rows = fingerprint(tmp_path / "alone")
    first, second = (tmp_path / method for method in order)
    cache = StageCache(tmp_path / "shared")
    cache.keys_to_store = stage_keys([configs[order[1]]], rows)
    messages = [run(configs[method], tmp_path / method, cache) for method in order]
    assert list(map(reused_stages, messages)) == [[], ["step1"]]
    # Trained once: a second training would have times of its own.
    for name in ("metrics.jsonl", "stage.json"):
        assert (second / "step1" / name).read_bytes() == (first / "step1" / name).read_bytes()
    first_weights, second_weights = (
        load_file(folder / "step1" / "checkpoint-3" / "model.safetensors") for folder in (first, second)
    )
    assert all(torch.equal(first_weights[name], second_weights[name]) for name in first_weights)
    cache.keys_to_store = {stage_key(configs["meet-lora"], rows, 0)}
    cache.remove_others()
    assert [path.name for path in (tmp_path / "shared").iterdir() if path.is_dir()] == list(cache.keys_to_store)
    for when in ("before training", "after step1"):
        assert read(first)[when] == read(second)[when] == read(tmp_path / "alone")[when]
    assert same(tmp_path / "meet-lora", tmp_path / "alone")
    assert read(tmp_path / "meet-lora") == read(tmp_path / "alone")
    assert not same(first, second)


def test_dpo_reuses_the_stage_of_sft(tmp_path: Path) -> None:
    configs = {method: recipe(tmp_path, method) for method in ("sft", "dpo")}
    run(configs["dpo"], tmp_path / "alone")
    cache = StageCache(tmp_path / "shared")
    cache.keys_to_store = {stage_key(configs["dpo"], fingerprint(tmp_path / "alone"), 0)}
    run(configs["sft"], tmp_path / "sft", cache)
    assert reused_stages(run(configs["dpo"], tmp_path / "dpo", cache)) == ["sft"]
    assert (tmp_path / "dpo/sft/stage.json").read_bytes() == (tmp_path / "sft/sft/stage.json").read_bytes()
    assert same(tmp_path / "dpo", tmp_path / "alone")
    assert read(tmp_path / "dpo") == read(tmp_path / "alone")
    assert read(tmp_path / "dpo", "sft/stage.json")["lm_sha256"] == meetlm.load(tmp_path / "sft").meet.lm_sha256
    assert len([path for path in (tmp_path / "shared").iterdir() if path.is_dir()]) == 1  # dpo's is not wanted


def test_a_stage_that_a_run_has_begun_is_not_replaced(tmp_path: Path) -> None:
    configs = {method: recipe(tmp_path, method) for method in ("sft", "dpo")}
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
        kill_after(patch, 2)
        run(configs["dpo"], tmp_path / "dpo")
    cache = StageCache(tmp_path / "shared")
    cache.keys_to_store = {stage_key(configs["sft"], fingerprint(tmp_path / "dpo"), 0)}
    run(configs["sft"], tmp_path / "sft", cache)
    assert any(cache.folder.glob("*/stage.json"))
    assert "sft: continuing after step 2" in run(configs["dpo"], tmp_path / "dpo", cache)
    run(configs["dpo"], tmp_path / "alone")
    assert same(tmp_path / "dpo", tmp_path / "alone")


OTHER = [
    ("meet-lora", ["seed=1"]),
    ("meet-lora", ["control.rank=8"]),
    ("meet-lora", ["control.alpha=32"]),
    ("meet-soft-prompt", []),
    ("meet-lora", ["stages.step1.lr=2e-3"]),
    ("meet-lora", ["stages.step1.epochs=2"]),
    ("meet-lora", ["stages.step1.train=[control, lm]"]),
    ("meet-lora", ["batch.pairs=6"]),
    ("meet-lora", ["optim.schedule=constant"]),
    ("meet-lora", ["optim.weight_decay=0.1"]),
    ("meet-lora", ["format.system=none"]),
    ("meet-lora", ["model.name=smollm2"]),
    ("sft-lora", []),
]


@pytest.mark.parametrize(("method", "overrides"), OTHER, ids=[" ".join((m, *w)) for m, w in OTHER])
def test_settings_that_affect_a_stage_change_its_key(method: str, overrides: list[str], tmp_path: Path) -> None:
    first, second = recipe(tmp_path, "meet-lora"), recipe(tmp_path, method, *overrides)
    assert stage_key(first, "rows", 0) != stage_key(second, "rows", 0)
    assert not stage_keys([first], "rows") & stage_keys([second], "rows")


def test_settings_without_effect_on_a_stage_do_not_change_its_key(tmp_path: Path) -> None:
    config = recipe(tmp_path, "meet-lora")
    overrides = ["batch.micro_pairs=1", "batch.save_steps=7", "stages.step2.lr=7", "stages.step1.name=first"]
    other_config = recipe(tmp_path, "meet-lora", *overrides)
    for index in (-1, 0):
        assert (
            stage_key(config, "rows", index)
            == stage_key(other_config, "rows", index)
            != stage_key(config, "others", index)
        )
    assert stage_key(config, "rows", 1) != stage_key(other_config, "rows", 1)
    assert len({stage_key(config, "rows", index) for index in (-1, 0, 1)}) == 3


def test_another_control_is_trained_again(tmp_path: Path) -> None:
    method, overrides = "meet-lora-first-step", ["control.rank=8"]
    cache = EveryStage(tmp_path / "shared")
    run(recipe(tmp_path, method), tmp_path / "one", cache)
    assert reused_stages(run(recipe(tmp_path, method, *overrides), tmp_path / "two", cache)) == []
    run(recipe(tmp_path, method, *overrides), tmp_path / "alone")
    assert same(tmp_path / "two", tmp_path / "alone")
    assert not same(tmp_path / "two", tmp_path / "one")


def test_an_interrupted_store_is_not_reused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache, config = EveryStage(tmp_path / "shared"), recipe(tmp_path, "sft")
    rename = Path.rename

    def killed(self: Path, target: Path) -> Path:
        if self.parent == tmp_path / "shared":
            raise Killed
        return rename(self, target)

    with monkeypatch.context() as patched, pytest.raises(Killed):
        patched.setattr(Path, "rename", killed)
        run(config, tmp_path / "one", cache)
    assert reused_stages(run(config, tmp_path / "two", cache)) == []
    assert reused_stages(run(config, tmp_path / "three", cache)) == ["sft"]
    assert same(tmp_path / "two", tmp_path / "three")


@pytest.mark.parametrize("cached", [pytest.param(True, marks=pytest.mark.slow), False])
def test_an_interrupted_dpo_stage_continues_with_its_reference(cached: bool, tmp_path: Path) -> None:
    """The reference is the model after SFT, though the stage has moved it when it is interrupted."""
    config = recipe(tmp_path, "dpo", "stages.sft.epochs=0.5", "stages.dpo.lr=1e-2", "stages.dpo.epochs=2")
    run(config, tmp_path / "whole")
    references = tmp_path / "cache" / "reference"
    files = sorted(references.iterdir())
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
        kill_after(patch, 3)  # sft has two steps
        run(config, tmp_path / "parts")
    assert (tmp_path / "parts" / "dpo" / "checkpoint-3").is_dir()
    if not cached:
        for file in files:
            file.unlink()
    assert "dpo: continuing after step 3" in run(config, tmp_path / "parts")
    assert sorted(references.iterdir()) == files
    assert same(tmp_path / "whole", tmp_path / "parts")
    names = ("step", "loss", "rewards/chosen", "rewards/margins")
    logs = [(tmp_path / name / "dpo" / "metrics.jsonl").read_text().splitlines() for name in ("whole", "parts")]
    whole, parts = ([[json.loads(line)[name] for name in names] for line in lines] for lines in logs)
    assert whole == parts
    assert len(whole) == 6
    assert abs(whole[-1][2]) > 1e-3  # the policy has left its reference
