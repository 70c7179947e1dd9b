"""A plan states beforehand what a run then does: steps and tokens exactly, memory as it is measured."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner

from meetlm.cli import main
from meetlm.data.batch import collate
from meetlm.diagnostics.memory import (
    GIB,
    RESERVED_BYTES,
    BatchShape,
    GpuMemory,
    TrainingStates,
    activation_bytes,
    training_states,
)
from meetlm.policy.loading import checkpoint_activations
from meetlm.run import plan as plan_module
from meetlm.run.execute import execute
from meetlm.run.measure import Cost, PeakMemory
from meetlm.run.plan import Plan, make_plan
from run_folders import config_for, write_pairs
from tiny import sequences, tiny_lm, tiny_policy

DPO = [
    {"name": "sft", "train": ["lm"], "lr": 1e-3, "epochs": 1, "format": "chosen"},
    {
        "name": "dpo",
        "train": ["lm"],
        "lr": 1e-4,
        "epochs": 2,
        "format": "pairwise",
        "objective": {"kind": "dpo", "beta": 0.1},
    },
]


@pytest.mark.parametrize(
    ("architecture", "kind", "stages"),
    [("gpt-neo", "lora", None), ("gptj", "soft-prompt", None), ("qwen3", "none", DPO)],
    ids=["packed", "padded", "dpo"],
)
def test_steps_and_tokens_are_those_of_the_run(
    architecture: str, kind: str, stages: list[dict[str, Any]] | None, tmp_path: Path
) -> None:
    config = config_for(tmp_path, architecture, kind, "batch.pairs=5", "batch.micro_pairs=5", stages=stages)
    plan = make_plan(config, other_models=())
    execute(config, tmp_path / "run")
    assert plan.layout == ("padded" if architecture == "gptj" else "packed")
    assert [stage.name for stage in plan.stages] == [stage.name for stage in config.stages]
    for stage in plan.stages:
        folder = tmp_path / "run" / stage.name
        lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        assert stage.counts.steps == len(lines) == json.loads((folder / "stage.json").read_text())["steps"]
        assert stage.counts.tokens == sum(line["input_tokens"] for line in lines)
        assert stage.time is not None and 0 < stage.time.low <= stage.time.mean <= stage.time.high
        shares = stage.name == "dpo" and plan.layout == "packed"
        assert (stage.counts.positions < stage.counts.tokens) == shares
        assert (stage.reference is not None) == (stage.name == "dpo")
    stages_alone = sum(stage.time.mean for stage in plan.stages if stage.time)
    assert plan.time is not None and plan.time.mean > stages_alone


def test_peak_memory_by_hand() -> None:
    x = torch.ones(1000)
    with PeakMemory() as memory:
        y = x * 2  # 4,000 bytes
        z = y.view(10, 100)  # no new storage
        del y, z
        a = x + 1
        b = a + 1  # 8,000 at a time
        del a, b
        c = x + 2
    assert memory.peak == 8000 and memory.live == 4000
    del c


def test_states_by_hand() -> None:
    lm = tiny_lm("llama", dtype=torch.float32)
    head = torch.nn.Linear(10, 3)
    weights = sum(parameter.numel() for parameter in lm.parameters()) * 4
    buffers = sum(buffer.numel() * buffer.element_size() for buffer in lm.buffers())
    states = training_states([lm, head], [head])
    assert states == TrainingStates(weights + buffers + 33 * 4, gradients=33 * 4, optimizer=2 * 33 * 4)


def test_gpus_by_hand() -> None:
    states = TrainingStates(weights=60 * GIB, gradients=20 * GIB, optimizer=20 * GIB)
    memory = GpuMemory(states, activations=4 * GIB, copies=GIB, gathered=2 * GIB)
    assert memory.gpus_needed(106 * GIB + RESERVED_BYTES) == 1
    assert memory.gpus_needed(104 * GIB + RESERVED_BYTES) == 2  # 100 / 98: two share
    assert memory.gpus_needed(26 * GIB + RESERVED_BYTES) == 5  # 100 / 20
    assert memory.gpus_needed(6 * GIB + RESERVED_BYTES) is None


def test_extrapolation_by_hand() -> None:
    few, more = Cost((1.0, 2.0), 0.5, 100), Cost((1.5, 1.9), 0.7, 150)  # 2 and 4 layers
    whole = few.extrapolate(more, (10 - 2) / (4 - 2))
    assert whole.per_position == pytest.approx((3.0, 2.0)), "noise never makes a deeper model cheaper"
    assert whole.per_step == pytest.approx(1.3) and whole.activations == 300
    assert Cost((1.0, 3.0), 0.5).time(10, 2).mean == pytest.approx(21.0)


def _deep(folder: Path, *overrides: str) -> Plan:
    """Return the plan of a model of 8 layers."""
    config = config_for(folder, "llama", "lora", *overrides)
    tiny_lm("llama", dtype=torch.float32, num_hidden_layers=8).save_pretrained(folder / "lm")
    return make_plan(config, other_models=())


def test_few_layers_stand_for_the_whole_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = _deep(tmp_path / "whole")
    monkeypatch.setattr(plan_module, "SLOW", 0)
    few = _deep(tmp_path / "few")
    assert (whole.depths, few.depths) == ((8,), (2, 4))
    for measured, extrapolated in zip(whole.stages, few.stages, strict=True):
        assert extrapolated.activations == pytest.approx(measured.activations, rel=0.02)
        assert extrapolated.states == measured.states


def test_checkpointing_takes_less_and_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan_module, "SLOW", 0)
    plain = _deep(tmp_path / "plain")
    less = _deep(tmp_path / "less", "model.gradient_checkpointing=true")
    for stage, other in zip(less.stages, plain.stages, strict=True):
        assert stage.activations < 0.5 * other.activations


def test_checkpointing_under_autocast() -> None:
    """As on CUDA: what a layer recomputes in backward has the types that it had in forward."""
    lm = tiny_lm("gpt-neo", dtype=torch.float32)
    checkpoint_activations(lm)
    policy = tiny_policy("gpt-neo", "lora", lm=lm, dtype=torch.float32).train()
    batch = collate(sequences(policy, [(5, 4), (7, 6)]), policy.layout)
    with torch.autocast("cpu", torch.bfloat16):
        sums = policy(batch["blocks"], batch["num_completions"]).sums()
    sums.sum().backward()
    assert all(parameter.grad is not None for parameter in policy.control.parameters())


@pytest.mark.parametrize("checkpointing", [False, True])
def test_formula_of_activations(checkpointing: bool, tmp_path: Path) -> None:
    """Within a third of what is measured, for a Llama of ordinary proportions."""
    config = config_for(tmp_path, "llama", "lora", f"model.gradient_checkpointing={checkpointing}")
    shape = {"hidden_size": 96, "intermediate_size": 256, "num_attention_heads": 2, "num_key_value_heads": 2}
    lm = tiny_lm("llama", dtype=torch.float32, num_hidden_layers=4, **shape)
    lm.save_pretrained(tmp_path / "lm")
    stage = make_plan(config, other_models=()).stages[1]
    positions = max(stage.counts.positions // stage.counts.steps // config.batch.accumulation, 1)
    formula = activation_bytes(lm, BatchShape(positions, positions // 2, True, checkpointing), "f32")
    assert formula == pytest.approx(stage.activations, rel=1 / 3)


def test_the_command(tmp_path: Path) -> None:
    config_for(tmp_path, "llama", "lora")
    file = tmp_path / "config.yaml"
    args = ["plan", "--config", str(file), "--no-measure", "--gpu", "24", "--gpu", "80"]
    result = CliRunner().invoke(main, args)
    assert result.exit_code == 0, result.output
    for expected in ("step1", "step2", "not measured", "by formula", "GPUs of 24 GiB", "Llama 70B", "in one process"):
        assert expected in result.stdout
    assert "12 of 12 rows kept" in result.stderr
    assert "warning: stage step1: 3 optimizer steps" in result.stderr
    plan = json.loads(CliRunner().invoke(main, [*args, "--json"]).stdout)
    assert [stage["name"] for stage in plan["stages"]] == ["step1", "step2"]
    assert plan["time"] is None
    seven = next(row for row in plan["gpus"] if "7B" in row["model"])
    assert seven["memory"]["states"]["weights"] > 6e9 * 4  # f32 master weights
    assert not (tmp_path / "run").exists()


def test_long_sequences_are_refused(tmp_path: Path) -> None:
    config = config_for(tmp_path, "llama", "lora")
    tiny_lm("llama", dtype=torch.float32, max_position_embeddings=8).save_pretrained(tmp_path / "lm")
    write_pairs(tmp_path / "train.jsonl", 12)
    result = CliRunner().invoke(main, ["plan", "--config", str(tmp_path / "config.yaml"), "--no-measure"])
    assert result.exit_code != 0 and "the model has 8 positions" in result.output
    assert config.recipe == "mine"
