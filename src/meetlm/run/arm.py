"""One arm of a sweep: a run, its completions, and a record that stays when its weights are removed."""

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
        name: Name of its folder.
        config: Its configuration.
    """

    name: str
    config: RunConfig


@dataclass(frozen=True, slots=True)
class ArmResult:
    """The record of an arm; ``arm.json`` in its folder.

    Attributes:
        name: Name of its folder.
        recipe: Name of the recipe.
        seed: Seed of the run.
        steps: Optimizer steps of all stages.
        seconds: Training time of all stages, including shared ones.
        before: Preference accuracy on held-out pairs before training.
        after: Preference accuracy after the last stage.
        num_completions: Number of completions.
        mean_tokens: Mean length of a completion, in tokens.
        cut: Share of the completions that were cut off at the maximum number of tokens.
        completions: Sampling and number of prompts of the completions; ``None`` where there are none.
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
        """Return the record in an arm's folder, or ``None`` where the arm is not finished.

        Raises:
            RunError: Another version of meetlm has written the record.
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
    """What an arm does after training.

    Attributes:
        sampling: Sampling of the completions under the default level; ``None`` for no completions.
        prompts: Number of held-out prompts to complete, the first ones; all where ``None``.
        keep_weights: Whether model, controls and checkpoints are kept.
    """

    sampling: Sampling | None
    prompts: int | None
    keep_weights: bool

    def to_dict(self) -> dict[str, Any] | None:
        """Return the settings of the completions as JSON values."""
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
    """Train an arm, write its completions and its record; parts that are finished are skipped.

    Args:
        arm: The arm.
        folder: Folder of the arm.
        then: What follows training.
        share: Stages in common with other arms.
        data: Data of all arms.
        lm_sha256: Hash of the language model that other arms started from; ``None`` for the first arm.
        reporter: Shows what is being done.

    Raises:
        RunError: The folder holds an arm of another configuration, other data or other completions.
        MeetError: As of :func:`execute`.
    """
    check_arm(arm, folder, then, data)
    done = ArmResult.read(folder)
    if done:
        if not then.keep_weights:
            remove_weights(folder, [stage.name for stage in arm.config.stages])  # not done if interrupted
        return done
    if not (folder / MEET).exists():
        clear_device_cache(garbage_collection=True)  # memory of the arm before, whose layers refer to each other
        execute(arm.config, folder, share=share, prepared=data, lm_sha256=lm_sha256, reporter=reporter)
    num_tokens: list[int] = []
    finishes: list[str] = []
    if then.sampling is not None:
        reporter.message("writing completions of the held-out prompts")
        clear_device_cache(garbage_collection=True)
        path, _ = write_completions(
            folder, None, None, then.sampling, seed=arm.config.seed, limit=then.prompts, reporter=reporter
        )
        rows = [json.loads(line) for line in path.read_bytes().splitlines()]
        num_tokens, finishes = [row["num_tokens"] for row in rows], [row["finish"] for row in rows]
    stages = [json.loads((folder / stage.name / DONE).read_text()) for stage in arm.config.stages]
    accuracies = list(json.loads((folder / "preference.json").read_text()).values())
    result = ArmResult(
        name=arm.name,
        recipe=arm.config.recipe,
        seed=arm.config.seed,
        steps=sum(stage["steps"] for stage in stages),
        seconds=round(sum(stage["seconds"] for stage in stages), 1),
        before=PreferenceAccuracy.from_dict(accuracies[0]),
        after=PreferenceAccuracy.from_dict(accuracies[-1]),
        num_completions=len(num_tokens),
        mean_tokens=sum(num_tokens) / len(num_tokens) if num_tokens else None,
        cut=finishes.count("length") / len(finishes) if finishes else None,
        completions=then.to_dict(),
    )
    write_atomic(folder / RECORD, json.dumps(asdict(result), indent=2) + "\n")
    if not then.keep_weights:
        remove_weights(folder, [stage.name for stage in arm.config.stages])
        reporter.message(f"{arm.name}: measured, weights removed")
    return result


def check_arm(arm: Arm, folder: Path, then: AfterTraining, data: PreparedData) -> None:
    """Refuse a folder that holds another arm.

    Raises:
        RunError: Names the settings that differ.
    """
    if (folder / CONFIG).exists():
        write_config(folder, arm.config, data.fingerprint)  # compares, as one is there
    done = ArmResult.read(folder)
    if done and done.completions != then.to_dict():
        raise RunError(
            f"{folder} is finished with other completions ({done.completions or 'none'}, not "
            f"{then.to_dict() or 'none'}); choose another folder or remove it"
        )


def remove_weights(folder: Path, stages: list[str]) -> None:
    """Remove the model, the controls and the checkpoints of a finished run; measurements and completions stay.

    Raises:
        RunError: The run is not finished.
    """
    if not (folder / MEET).is_file():
        raise RunError(f"{folder} is not a finished run; its weights are kept")
    for part in (MODEL, LEVELS):
        shutil.rmtree(folder / part, ignore_errors=True)
    (folder / CONTROL).unlink(missing_ok=True)
    for stage in stages:
        remove_checkpoints(folder / stage)
