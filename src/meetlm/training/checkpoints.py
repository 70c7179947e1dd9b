"""The checkpoints of a stage on disk: which there are, whether they are complete, and their trained parameters."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from safetensors.torch import load_file

from meetlm.config.errors import RunError
from meetlm.config.files import manifest_failure_reason
from meetlm.policy.policy import Policy

WEIGHTS = "model.safetensors"
PARTIAL_FOLDER = "partial"
"""Folder in which a checkpoint is written."""


def checkpoints(folder: Path) -> list[Path]:
    """Return the complete checkpoints of a stage, oldest first."""
    return sorted((path for path in folder.glob("checkpoint-*") if path.is_dir()), key=checkpoint_step)


def remove_leftovers(folder: Path) -> None:
    """Remove all checkpoints of a stage but the last, and one that was being written."""
    shutil.rmtree(folder / PARTIAL_FOLDER, ignore_errors=True)
    for old in checkpoints(folder)[:-1]:
        shutil.rmtree(old)


def remove_checkpoints(folder: Path) -> None:
    """Remove all checkpoints of a stage; its metrics and its record stay."""
    for checkpoint in checkpoints(folder):
        shutil.rmtree(checkpoint)


def check_checkpoint(checkpoint: Path, names: Sequence[str] = ()) -> None:
    """Refuse a checkpoint of which a file is missing, truncated or altered.

    Args:
        checkpoint: The checkpoint.
        names: The files to check; all of them by default.

    Raises:
        RunError: Names the file, and what training continues from without this checkpoint.
    """
    if reason := manifest_failure_reason(checkpoint, names):
        before = [path.name for path in checkpoints(checkpoint.parent) if path != checkpoint]
        raise RunError(
            f"{checkpoint}: {reason}; restore the checkpoint from a copy, or remove it to continue from "
            f"{before[-1] if before else 'the beginning of the stage'}"
        )


def load_trained(policy: Policy, checkpoint: Path, names: Sequence[str] = (WEIGHTS,)) -> None:
    """Load the trained parameters of a checkpoint into ``policy``, whose ``requires_grad`` selects them.

    Args:
        policy: The policy.
        checkpoint: The checkpoint.
        names: The files to check before, as in :func:`check_checkpoint`.

    Raises:
        RunError: The checkpoint holds other tensors, or one of the files is truncated or altered.
    """
    check_checkpoint(checkpoint, names)
    state = load_file(checkpoint / WEIGHTS)
    trained = {name for name, parameter in policy.named_parameters() if parameter.requires_grad}
    differing = sorted(trained.symmetric_difference(state))
    if differing:
        raise RunError(
            f"{checkpoint}: the checkpoint belongs to another stage: {len(differing)} tensors are missing or unknown, "
            f"such as {differing[0]}"
        )
    policy.load_state_dict(state, strict=False)


def checkpoint_step(checkpoint: Path) -> int:
    """Return the optimizer step at which a checkpoint was written."""
    return int(checkpoint.name.rsplit("-", 1)[1])
