"""Checkpoints: stopped and continued is the same as never stopped, bit by bit."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import TrainerCallback

from combinations import each_value
from meetlm.config.errors import RunError
from meetlm.policy.policy import Policy
from meetlm.training.checkpoints import checkpoints, load_trained
from meetlm.training.loop import StageTrainer
from meetlm.training.run_stage import DONE, run_stage
from meetlm.training.stage import BatchSettings, OptimSettings
from test_training import items_of, metrics, tensors
from tiny import stage, tiny_policy


class Killed(Exception):
    """Stands for the end of the process."""


class KillAfter(TrainerCallback):
    """Raises at the start of the step after ``steps``."""

    def __init__(self, steps: int) -> None:
        self.steps = steps

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.steps:
            raise Killed


def fresh(kind: str) -> Policy:
    return tiny_policy("llama", kind, move=0.0, dtype=torch.float32)


def run(
    policy: Policy,
    folder: Path,
    train: tuple[str, ...],
    *,
    steps: int = 7,
    save_steps: int | None = 2,
    log_steps: int = 1,
) -> Any:
    batch = BatchSettings(pairs=4, micro_pairs=2, save_steps=save_steps, log_steps=log_steps)
    settings = stage(train, steps=steps)
    return run_stage(policy, items_of(policy, 10), settings, OptimSettings(), batch, folder, seed=1)


def kill_after(monkeypatch: pytest.MonkeyPatch, steps: int) -> None:
    right = StageTrainer.__init__

    def start(self: StageTrainer, *args: Any) -> None:
        right(self, *args)
        self.add_callback(KillAfter(steps))

    monkeypatch.setattr(StageTrainer, "__init__", start)


@each_value(kind=("lora", "soft-prompt"), train=(("control",), ("control", "lm")), killed_after=(3, 4, 6))
def test_killed_and_continued(kind: str, train: tuple[str, ...], killed_after: int, tmp_path: Path) -> None:
    whole = fresh(kind)
    run(whole, tmp_path / "whole", train)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
        kill_after(patch, killed_after)
        run(fresh(kind), tmp_path / "parts", train)
    assert not (tmp_path / "parts" / DONE).exists()
    (saved,) = checkpoints(tmp_path / "parts")
    assert saved.name == f"checkpoint-{killed_after // 2 * 2}"
    continued = fresh(kind)
    result = run(continued, tmp_path / "parts", train)

    assert result.steps == 7
    for name, tensor in tensors(whole).items():
        assert torch.equal(tensor, tensors(continued)[name]), name
    lines, again = (metrics(tmp_path / name) for name in ("whole", "parts"))
    assert [line["step"] for line in again] == [1, 2, 3, 4, 5, 6, 7]
    assert [line["loss"] for line in lines] == [line["loss"] for line in again]


def test_a_finished_stage_is_loaded_not_trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = fresh("lora")
    result = run(first, tmp_path, ("control",))
    monkeypatch.setattr(StageTrainer, "train", lambda *a, **k: pytest.fail("trained again"))
    second = fresh("lora")
    assert run(second, tmp_path, ("control",)) == result
    for name, tensor in tensors(first).items():
        assert torch.equal(tensor, tensors(second)[name]), name


def test_a_partial_checkpoint_is_ignored(tmp_path: Path) -> None:
    whole = fresh("lora")
    run(whole, tmp_path / "whole", ("control",))
    with pytest.MonkeyPatch.context() as patch:  # the process ends while a checkpoint is written

        def rename(self: Path, target: Path) -> None:
            raise Killed

        patch.setattr(Path, "rename", rename)
        with pytest.raises(Killed):
            run(fresh("lora"), tmp_path / "parts", ("control",))
    assert list((tmp_path / "parts" / "partial").iterdir())
    assert checkpoints(tmp_path / "parts") == []
    continued = fresh("lora")
    run(continued, tmp_path / "parts", ("control",))
    assert [p.name for p in checkpoints(tmp_path / "parts")] == ["checkpoint-7"]
    assert not (tmp_path / "parts" / "partial").exists()
    for name, tensor in tensors(whole).items():
        assert torch.equal(tensor, tensors(continued)[name]), name


def test_checkpoints_have_trained_weights_only_and_no_pickled_weights(tmp_path: Path) -> None:
    policy = fresh("soft-prompt")
    run(policy, tmp_path, ("control",), save_steps=None)
    (saved,) = checkpoints(tmp_path)
    assert saved.name == "checkpoint-7"
    from safetensors.torch import load_file

    assert list(load_file(saved / "model.safetensors")) == ["control.prompt"]
    other = tiny_policy("llama", "lora", dtype=torch.float32)
    with pytest.raises(RunError, match="belongs to another stage: .* tensors are missing or unknown, such as control"):
        load_trained(other, saved)
    policy.lm.requires_grad_(True)  # a checkpoint that lacks what the stage trains would leave it fresh
    with pytest.raises(RunError, match="belongs to another stage"):
        load_trained(policy, saved)


def test_checkpoints_are_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    for name in ("checkpoint-100", "checkpoint-20", "partial"):
        (tmp_path / name).mkdir()
    assert [p.name for p in checkpoints(tmp_path)] == ["checkpoint-20", "checkpoint-100"]


def test_killed_between_the_last_checkpoint_and_the_stages_record(tmp_path: Path) -> None:
    """No step is trained twice, though 7 steps are no whole number of epochs."""
    finished_run = fresh("lora")
    run(finished_run, tmp_path, ("control",))
    (tmp_path / "stage.json").unlink()
    continued = fresh("lora")
    assert run(continued, tmp_path, ("control",)).steps == 7
    assert tensors(continued).keys() == tensors(finished_run).keys()
    assert all(torch.equal(tensor, tensors(finished_run)[name]) for name, tensor in tensors(continued).items())


def test_a_line_of_metrics_cut_off_by_a_kill_is_dropped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patched:
        kill_after(patched, 3)
        with pytest.raises(Killed):
            run(fresh("lora"), tmp_path, ("control",))
    with (tmp_path / "metrics.jsonl").open("a") as lines:
        lines.write('{"step": 3, "lo')
    run(fresh("lora"), tmp_path, ("control",))
    steps = [json.loads(line)["step"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert steps == [1, 2, 3, 4, 5, 6, 7]


def test_a_resumed_stage_uses_the_save_and_log_steps_of_the_call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
        kill_after(patch, 4)
        run(fresh("lora"), tmp_path, ("control",), save_steps=3)
    saved: list[int] = []
    right = StageTrainer._save_checkpoint

    def save(self: StageTrainer, *args: Any) -> None:
        saved.append(self.state.global_step)
        right(self, *args)

    monkeypatch.setattr(StageTrainer, "_save_checkpoint", save)
    run(fresh("lora"), tmp_path, ("control",), save_steps=1, log_steps=2)
    assert saved == [4, 5, 6, 7]
    assert [line["step"] for line in metrics(tmp_path)] == [1, 2, 3, 4, 6]


def test_the_older_checkpoint_is_removed_after_the_newer_one_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[str] = []
    flush, remove = os.fsync, shutil.rmtree

    def fsync(number: int) -> None:
        place = Path(os.readlink(f"/proc/self/fd/{number}"))
        events.append(f"{place.parent.name}/{place.name}")
        flush(number)

    def rmtree(place: Path, *args: Any, **more: Any) -> None:
        if Path(place).is_dir():
            events.append(f"without {Path(place).name}")
        remove(place, *args, **more)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(shutil, "rmtree", rmtree)
    run(fresh("lora"), tmp_path, ("control",), steps=4)
    gone = events.index("without checkpoint-2")
    new = events.index("checkpoint-4/model.safetensors")
    assert new < gone and f"{tmp_path.parent.name}/{tmp_path.name}" in events[new:gone]
