"""Commands killed at random moments: the same command continues, and ends with what an uninterrupted one leaves.

MEETLM_KILLS sets the number of kills per kind, MEETLM_SEED the random moments.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from killing import BREAKS, FOLDER, kill_after_first_checkpoint, run, succeed

from meetlm.run.verify_resume import file_hashes
from reward_models import folder_of
from test_evaluate import held_out, systems

pytestmark = pytest.mark.faults
KILLS = int(os.environ.get("MEETLM_KILLS", "5"))
TRAINING = ("step 1", "step 2", "checkpoint", "between the steps", "diagnostics", "writing the model")
Command = Callable[[Path], Sequence[object]]


def survive(phase: str, command: Command, folder: Path, record: Callable[..., None], *, timed: str = "") -> None:
    """Kill the command at random moments of the phase, and compare each result with the uninterrupted one.

    Args:
        phase: The phase.
        command: The command that writes to a folder.
        folder: Folder for the processes.
        record: Adds a line to the summary.
        timed: Name of a file that shows seconds, and is not compared.
    """
    parts = folder / "parts"  # always the same, since configurations contain paths
    seconds = succeed(run(command(parts / FOLDER), parts, phase=phase)).seconds
    assert seconds > 0, f"the phase {phase!r} did not occur"
    expected = file_hashes(parts / FOLDER)
    draw = random.Random(f"{phase} {os.environ.get('MEETLM_SEED', '0')}")
    survived = late = 0
    while survived < KILLS:
        shutil.rmtree(parts)
        killed = run(command(parts / FOLDER), parts, phase=phase, kill_at=draw.uniform(0, seconds))
        assert killed.code in (0, -signal.SIGKILL), killed.messages
        succeed(run(command(parts / FOLDER), parts))
        found = file_hashes(parts / FOLDER)
        differing = {key for key in expected.keys() | found.keys() if expected.get(key) != found.get(key)} - {timed}
        assert not differing, (phase, parts, killed)
        survived += killed.code != 0 and killed.in_phase
        late += not (killed.code != 0 and killed.in_phase)
        assert late < 10 + 3 * KILLS, "the phase is too short to be hit"
    record(f"{phase}: {survived} kills survived, and {late} outside the phase")


@pytest.mark.parametrize("phase", TRAINING)
def test_training(phase: str, inputs: Path, tmp_path: Path, record: Callable[..., None]) -> None:
    survive(phase, lambda out: ["train", "--config", inputs / "config.yaml", "--out", out], tmp_path, record)


def test_generation(trained: Path, inputs: Path, tmp_path: Path, record: Callable[..., None]) -> None:
    data = ["--data.path", inputs / "prompts.jsonl", "--max-new-tokens", 12, "--temperature", 0.8, "--batch-size", 3]
    command = ["generate", trained, *data, "--out"]
    survive("generation", lambda out: [*command, out / "completions.jsonl"], tmp_path, record)


def test_evaluation(tmp_path: Path, record: Callable[..., None]) -> None:
    words = [*systems(tmp_path), "--baseline", "c", "--reward", folder_of("deberta", tmp_path / "rm"), "--quiet"]
    command = ["evaluate", *words, "--data.path", held_out(tmp_path), "--out"]
    survive("evaluation", lambda out: [*command, out], tmp_path, record)


def test_rollouts(inputs: Path, tmp_path: Path, record: Callable[..., None]) -> None:
    words = ["--data.path", inputs / "prompts.jsonl", "--scorer", "killing:num_words", "--rounds", 1, "--replies", 2]
    words += ["--holdout", 3, "--max-new-tokens", 8, "--config", inputs / "shared.yaml", "--data.max-length", 128]
    survive("rollouts", lambda out: ["improve", "pairs-meet-lora", *words, "--out", out], tmp_path, record)


def test_sweep(inputs: Path, tmp_path: Path, record: Callable[..., None]) -> None:
    words = ["hh-meet-lora", "hh-meet-lora-first-step", "--config", inputs / "shared.yaml", "--max-new-tokens", 4]
    survive("sweep", lambda out: ["sweep", *words, "--out", out], tmp_path, record, timed="table.md")


@pytest.mark.parametrize("broken", BREAKS)
def test_a_broken_restore_is_noticed(broken: str, inputs: Path, tmp_path: Path, record: Callable[..., None]) -> None:
    """What the comparison of the other tests is worth: each of these wrong restores makes it fail."""
    command = ["train", "--config", inputs / "config.yaml", "--out"]
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    succeed(run([*command, whole / FOLDER], whole))
    seconds = succeed(run([*command, parts / FOLDER], parts, phase="step 2")).seconds
    assert file_hashes(whole / FOLDER) == file_hashes(parts / FOLDER)
    killed = kill_after_first_checkpoint([*command, parts / FOLDER], parts, seconds)
    succeed(run([*command, parts / FOLDER], parts, broken=broken))
    expected, found = file_hashes(whole / FOLDER), file_hashes(parts / FOLDER)
    differing = [name for name in expected if expected[name] != found.get(name)]
    assert differing, killed
    record(f"broken restore ({broken}) noticed in {len(differing)} of {len(expected)} files")
