"""Full disks, folders without write permission, files that vanish or change, second processes, SIGTERM and Ctrl-C.

Each ends in one line that says what is wrong, and afterwards the same command ends with what an uninterrupted one
leaves.
"""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from killing import FOLDER, Ending, kill_after_first_checkpoint, run, succeed

from meetlm.config.files import locked, manifest_failure_reason
from meetlm.config.journal import Journal
from meetlm.run.verify_resume import compare, file_hashes
from meetlm.training.checkpoints import checkpoints

pytestmark = pytest.mark.faults
Record = Callable[..., None]


@pytest.fixture(scope="module")
def whole(inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Return the files of an uninterrupted run."""
    folder = tmp_path_factory.mktemp("whole")
    succeed(run(train(inputs, folder), folder))
    return file_hashes(folder / FOLDER)


@pytest.fixture(scope="module")
def killed(inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder whose run was killed in step 2, after its first checkpoint and before its second."""
    folder = tmp_path_factory.mktemp("killed")
    seconds = succeed(run(train(inputs, folder), folder, phase="step 2")).seconds
    kill_after_first_checkpoint(train(inputs, folder), folder, seconds)
    return folder


@pytest.fixture
def parts(killed: Path, tmp_path: Path) -> Path:
    """Return a copy of it."""
    shutil.copytree(killed, tmp_path / "parts")
    return tmp_path / "parts"


def train(inputs: Path, folder: Path) -> Sequence[object]:
    return ["train", "--config", inputs / "config.yaml", "--out", folder / FOLDER]


def refused(ending: Ending, *words: object) -> None:
    """Check that a command ended with one line that has these words."""
    lines = [line for line in ending.messages.splitlines() if line.startswith("error: ")]
    assert ending.code == 1 and len(lines) == 1 and "Traceback" not in ending.messages, ending.messages
    assert all(str(word) in ending.messages for word in words), ending.messages


@pytest.mark.parametrize("size", [4_000, 20_000, 100_000, 250_000])
def test_a_full_disk(size: int, inputs: Path, parts: Path, whole: dict[str, str], record: Record) -> None:
    """Files above a size cannot be written: weights of the control or the model, states of their optimizers."""
    saved = checkpoints(parts / FOLDER / "step2")
    refused(run(train(inputs, parts), parts, max_file_size=size), parts, "cannot be written", "GB are free")
    assert checkpoints(parts / FOLDER / "step2") == saved
    assert all(manifest_failure_reason(checkpoint) is None for checkpoint in saved)
    assert not (parts / FOLDER / "step2" / "partial").exists()
    succeed(run(train(inputs, parts), parts))
    assert file_hashes(parts / FOLDER) == whole
    shutil.rmtree(parts)
    refused(run(train(inputs, parts), parts, max_file_size=size), "cannot be written")
    succeed(run(train(inputs, parts), parts))
    assert file_hashes(parts / FOLDER) == whole
    record("full disk: 8 commands refused and continued")


def test_a_folder_without_write_permission(inputs: Path, parts: Path, whole: dict[str, str], record: Record) -> None:
    """A run that continues, and a new one."""
    folders = [parts / FOLDER, *(path for path in (parts / FOLDER).rglob("*") if path.is_dir())]
    for path in folders:
        path.chmod(0o555)
    refused(run(train(inputs, parts), parts, unprivileged=True), parts / FOLDER, "Permission denied")
    for path in folders:
        path.chmod(0o755)
    succeed(run(train(inputs, parts), parts))
    assert file_hashes(parts / FOLDER) == whole
    new = parts / "new"
    new.mkdir(mode=0o555)
    refused(run(train(inputs, new), parts, unprivileged=True), new / FOLDER, "Permission denied")
    record("folder without write permission: 2 commands refused, continued after chmod")


def test_a_vanished_data_file(inputs: Path, parts: Path, whole: dict[str, str], record: Record) -> None:
    file = inputs / "train.jsonl"
    try:
        file.rename(inputs / "elsewhere.jsonl")
        refused(run(train(inputs, parts), parts), file)
    finally:
        (inputs / "elsewhere.jsonl").rename(file)
    succeed(run(train(inputs, parts), parts))
    assert file_hashes(parts / FOLDER) == whole
    record("vanished data file: refused, continued when it was back")


@pytest.mark.parametrize(
    "name",
    [
        "model.safetensors",
        "optimizer.pt",
        "scheduler.pt",
        "rng_state.pth",
        "trainer_state.json",
        "open_log.json",
        "manifest.json",
    ],
)
def test_a_damaged_checkpoint(name: str, inputs: Path, parts: Path, whole: dict[str, str], record: Record) -> None:
    (checkpoint,) = checkpoints(parts / FOLDER / "step2")
    right = (checkpoint / name).read_bytes()
    middle = len(right) // 2
    altered = right[:middle] + bytes([right[middle] ^ 1]) + right[middle + 1 :]
    for wrong in (right[:middle], altered, None):
        (checkpoint / name).unlink(missing_ok=True)
        if wrong is not None:
            (checkpoint / name).write_bytes(wrong)
        refused(run(train(inputs, parts), parts), checkpoint, "remove it to continue from the beginning of the stage")
    shutil.rmtree(checkpoint)
    succeed(run(train(inputs, parts), parts))
    assert file_hashes(parts / FOLDER) == whole
    record(f"damaged checkpoint ({name}): truncated, one bit flipped and missing, refused; continued without it")


def test_a_second_process_is_refused(inputs: Path, trained: Path, parts: Path, record: Record) -> None:
    for command in (
        train(inputs, parts),
        ["sweep", "hh-meet-lora", "--config", inputs / "shared.yaml", "--out", parts / FOLDER],
    ):
        with locked(parts / FOLDER):
            refused(run(command, parts), parts / FOLDER, "is in use by another process")
    out = parts / "completions.jsonl"
    with Journal(parts / "completions.jsonl.unfinished", {"of": "another call"}) as journal:
        journal.append({"number": 0})
        refused(
            run(["generate", trained, "--data.path", inputs / "prompts.jsonl", "--out", out], parts),
            "is in use by another process",
        )
    record("second process on a folder: 3 commands refused")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
@pytest.mark.parametrize("phase", ["step 1", "step 2", "between the steps", "diagnostics"])
def test_signals(
    phase: str, number: int, code: int, inputs: Path, tmp_path: Path, whole: dict[str, str], record: Record
) -> None:
    """In a step a checkpoint of the optimizer step under way is saved; elsewhere there is nothing more to save."""
    seconds = succeed(run(train(inputs, tmp_path / "a"), tmp_path / "a", phase=phase)).seconds
    parts = tmp_path / "parts"
    ending = run(train(inputs, parts), parts, phase=phase, kill_at=0.4 * seconds, send=number)
    assert ending.code == code and "Traceback" not in ending.messages, ending.messages
    assert "Run the same command again to continue" in ending.messages
    if phase.startswith("step"):
        step = checkpoints(parts / FOLDER / phase.replace(" ", ""))[-1].name
        assert f"saved {step}" in ending.messages, ending.messages
    succeed(run(train(inputs, parts), parts))
    assert file_hashes(parts / FOLDER) == whole
    record(f"{signal.Signals(number).name} in {phase}: saved, exit code {code}, continued exactly")


def test_verify_resume_as_users_call_it(inputs: Path, tmp_path: Path, record: Record) -> None:
    command = [sys.executable, "-m", "meetlm", "verify-resume", "--config", inputs / "config.yaml", "--out"]
    done = subprocess.run([*map(str, command), str(tmp_path / "out")], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "equal bit for bit after 2 kills" in done.stdout
    runs = [tmp_path / "out" / name / "run" for name in ("uninterrupted", "resumed")]
    assert not any(each.differing for each in compare(*runs))
    weights = runs[1] / "control.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x01")
    assert [each.differing for each in compare(*runs) if each.differing] == [("control.safetensors",)]
    record("meet verify-resume: equal after 2 kills")
