"""One arm of a sweep: a run, its completions, and the small record that stays when its weights are dropped."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from accelerate.utils.memory import clear_device_cache

from meetlm.config.errors import RunError
from meetlm.config.files import write_atomic
from meetlm.config.reporter import SILENT, Reporter
from meetlm.diagnostics.preference import PreferenceAccuracy
from meetlm.generation.sampling import Sampling
from meetlm.recipes.config import RunConfig
from meetlm.run.completions import write_completions
from meetlm.run.execute import execute
from meetlm.run.folder import CONFIG, CONTROL, LEVELS, MEET, MODEL, write_config
from meetlm.run.prepared import PreparedData
from meetlm.run.share import StageShare
from meetlm.training.loop import remove_checkpoints
from meetlm.training.run_stage import DONE

RECORD = "arm.json"


@dataclass(frozen=True, slots=True)
class Arm:
    """A run of a sweep.

    Attributes:
        name: Of its folder.
        config: Resolved.
    """

    name: str
    config: RunConfig


@dataclass(frozen=True, slots=True)
class ArmResult:
    """What stays of an arm; ``arm.json`` in its folder.

    Attributes:
        name: Of its folder.
        recipe: Name of the recipe.
        seed: Of the run.
        steps: Optimizer steps of all stages.
        seconds: Training time of all stages, of shared ones too.
        before: Measured on held-out pairs before training.
        after: The same after the last stage.
        num_completions: How many were written.
        mean_tokens: Mean length of a completion, in tokens.
        cut: Share of the completions that ended at the most new tokens.
        completions: How they were sampled, and for how many prompts; ``None`` where there are none.
    """

    name: str
    recipe: str
    seed: int
    steps: int
    seconds: float
    before: PreferenceAccuracy
    after: PreferenceAccuracy
    num_completions: int
    mean_tokens: float | None
    cut: float | None
    completions: dict[str, Any] | None

    @classmethod
    def read(cls, folder: Path) -> ArmResult | None:
        """Return the record in an arm's folder, or ``None`` where the arm is not done.

        Raises:
            RunError: The record is of another version.
        """
        file = folder / RECORD
        if not file.is_file():
            return None
        fields: dict[str, Any] = json.loads(file.read_text())
        try:
            for when in ("before", "after"):
                fields[when] = PreferenceAccuracy.from_dict(fields[when])
            return cls(**fields)
        except (KeyError, TypeError) as error:
            raise RunError(f"{file} was written by another version of meetlm: {error}") from error


@dataclass(frozen=True, slots=True)
class AfterTraining:
    """What an arm does when it is trained.

    Attributes:
        sampling: How completions are sampled, under the arm's default level; ``None`` writes none.
        prompts: For the first so many held-out prompts; all where ``None``.
        keep_weights: Whether the arm's model, controls and checkpoints stay on disk.
    """

    sampling: Sampling | None
    prompts: int | None
    keep_weights: bool

    def to_dict(self) -> dict[str, Any] | None:
        """Return what decides the completions, as JSON values."""
        return None if self.sampling is None else {**self.sampling.model_dump(mode="json"), "prompts": self.prompts}


def run_arm(
    arm: Arm,
    folder: Path,
    then: AfterTraining,
    share: StageShare,
    data: PreparedData,
    *,
    lm_sha256: str | None = None,
    reporter: Reporter = SILENT,
) -> ArmResult:
    """Train an arm, write its completions and its record; each part only where it is not done yet.

    Args:
        arm: To run.
        folder: Its own.
        then: What follows training.
        share: Stages in common with other arms.
        data: Of all arms.
        lm_sha256: Hash of the language model that other arms began with, if any did.
        reporter: Shows what is being done.

    Raises:
        RunError: The folder holds an arm of another configuration, other data or other completions.
        MeetError: As of :func:`execute`.
    """
    check_arm(arm, folder, then, data)
    done = ArmResult.read(folder)
    if done:
        if not then.keep_weights:
            drop_weights(folder, [stage.name for stage in arm.config.stages])  # it may have been stopped on the way
        return done
    if not (folder / MEET).exists():
        clear_device_cache(garbage_collection=True)  # of the arm before: its layers hold each other
        execute(arm.config, folder, share=share, prepared=data, lm_sha256=lm_sha256, reporter=reporter)
    tokens: list[int] = []
    ends: list[str] = []
    if then.sampling is not None:
        reporter.message("writing completions of the held-out prompts")
        clear_device_cache(garbage_collection=True)
        path, _ = write_completions(
            folder, None, None, then.sampling, seed=arm.config.seed, limit=then.prompts, reporter=reporter
        )
        rows = [json.loads(line) for line in path.read_bytes().splitlines()]
        tokens, ends = [row["num_tokens"] for row in rows], [row["finish"] for row in rows]
    stages = [json.loads((folder / stage.name / DONE).read_text()) for stage in arm.config.stages]
    measured = list(json.loads((folder / "preference.json").read_text()).values())
    result = ArmResult(
        name=arm.name,
        recipe=arm.config.recipe,
        seed=arm.config.seed,
        steps=sum(stage["steps"] for stage in stages),
        seconds=round(sum(stage["seconds"] for stage in stages), 1),
        before=PreferenceAccuracy.from_dict(measured[0]),
        after=PreferenceAccuracy.from_dict(measured[-1]),
        num_completions=len(tokens),
        mean_tokens=sum(tokens) / len(tokens) if tokens else None,
        cut=ends.count("length") / len(ends) if ends else None,
        completions=then.to_dict(),
    )
    write_atomic(folder / RECORD, json.dumps(asdict(result), indent=2) + "\n")
    if not then.keep_weights:
        drop_weights(folder, [stage.name for stage in arm.config.stages])
        reporter.message(f"{arm.name}: measured, weights removed")
    return result


def check_arm(arm: Arm, folder: Path, then: AfterTraining, data: PreparedData) -> None:
    """Refuse a folder that holds another arm than this one.

    Raises:
        RunError: Names what differs.
    """
    if (folder / CONFIG).exists():
        write_config(folder, arm.config, data.fingerprint)  # compares, as one is there
    done = ArmResult.read(folder)
    if done and done.completions != then.to_dict():
        raise RunError(
            f"{folder} is done with other completions ({done.completions or 'none'}, not {then.to_dict() or 'none'}); "
            "choose another folder or remove it"
        )


def drop_weights(folder: Path, stages: list[str]) -> None:
    """Remove the model, the controls and the checkpoints of a finished run; what was measured and said stays.

    Raises:
        RunError: The run is not finished.
    """
    if not (folder / MEET).is_file():
        raise RunError(f"{folder} is not a finished run; its weights are not dropped")
    for part in (MODEL, LEVELS):
        shutil.rmtree(folder / part, ignore_errors=True)
    (folder / CONTROL).unlink(missing_ok=True)
    for stage in stages:
        remove_checkpoints(folder / stage)
