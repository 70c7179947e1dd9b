"""An arm of a sweep: a run, its completions, and a record that stays when its weights are removed."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from accelerate.utils.memory import clear_device_cache

from meetlm.config.errors import RunError
from meetlm.config.files import write_atomic
from meetlm.config.reporter import SILENT, Reporter
from meetlm.diagnostics.preference import PreferenceAccuracy
from meetlm.generation.settings import Sampling
from meetlm.recipes.config import RunConfig
from meetlm.run.completions import write_completions
from meetlm.run.execute import execute
from meetlm.run.folder import CONFIG, CONTROL, LEVELS, MEET, MODEL, write_config
from meetlm.run.prepared import PreparedData
from meetlm.run.stage_cache import StageCache
from meetlm.training.checkpoints import remove_checkpoints
from meetlm.training.run_stage import DONE

RECORD = "arm.json"


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
        completions: Sampling and number of prompts of the completions; ``None`` if there are none.
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
        """Return the record in an arm's folder, or ``None`` if the arm is not finished.

        Raises:
            RunError: Another version of meetlm has written the record.
        """
        file = folder / RECORD
        if not file.is_file():
            return None
        fields: dict[str, Any] = json.loads(file.read_text())
        try:
            for moment in ("before", "after"):
                fields[moment] = PreferenceAccuracy.from_dict(fields[moment])
            return cls(**fields)
        except (KeyError, TypeError, ValueError) as error:
            raise RunError(f"{file} was written by another version of meetlm: {error}") from error


@dataclass(frozen=True, slots=True)
class AfterTraining:
    """Work of an arm after its training.

    Attributes:
        sampling: Sampling of the completions under the default level; ``None`` for no completions.
        prompts: Complete only the first ``prompts`` held-out prompts; ``None`` = all.
        keep_weights: Whether to keep model, controls and checkpoints.
    """

    sampling: Sampling | None
    prompts: int | None
    keep_weights: bool

    def to_dict(self) -> dict[str, Any] | None:
        """Return the settings of the completions as JSON values."""
        return None if self.sampling is None else {**self.sampling.model_dump(mode="json"), "prompts": self.prompts}


def run_arm(
    config: RunConfig,
    folder: Path,
    after: AfterTraining,
    cache: StageCache,
    data: PreparedData,
    *,
    lm_sha256: str | None = None,
    reporter: Reporter = SILENT,
) -> ArmResult:
    """Train an arm, write its completions and its record; parts that are finished are skipped.

    Args:
        config: Configuration of the arm.
        folder: Folder of the arm.
        after: Work after training.
        cache: Stages of the other arms.
        data: Data of all arms.
        lm_sha256: Hash of the language model that the other arms started from; ``None`` for the first arm.
        reporter: Shows messages and progress.

    Raises:
        RunError: The folder holds an arm of another configuration, other data or other completions.
        MeetError: As of :func:`execute`.
    """
    refuse_other_arm(config, folder, after, data)
    stages = [stage.name for stage in config.stages]
    result = ArmResult.read(folder)
    if result is None:
        clear_device_cache(garbage_collection=True)  # memory of the arm before, whose layers refer to each other
        execute(config, folder, cache=cache, prepared=data, lm_sha256=lm_sha256, reporter=reporter)
        rows: list[dict[str, Any]] = []
        if after.sampling is not None:
            reporter.message("writing completions of the held-out prompts")
            clear_device_cache(garbage_collection=True)
            path, _ = write_completions(
                folder, None, None, after.sampling, seed=config.seed, limit=after.prompts, reporter=reporter
            )
            rows = [json.loads(line) for line in path.read_bytes().splitlines()]
        records = [json.loads((folder / stage / DONE).read_text()) for stage in stages]
        accuracies = list(json.loads((folder / "preference.json").read_text()).values())
        result = ArmResult(
            name=folder.name,
            recipe=config.recipe,
            seed=config.seed,
            steps=sum(record["steps"] for record in records),
            seconds=round(sum(record["seconds"] for record in records), 1),
            before=PreferenceAccuracy.from_dict(accuracies[0]),
            after=PreferenceAccuracy.from_dict(accuracies[-1]),
            num_completions=len(rows),
            mean_tokens=fmean(row["num_tokens"] for row in rows) if rows else None,
            cut=fmean(row["finish"] == "length" for row in rows) if rows else None,
            completions=after.to_dict(),
        )
        write_atomic(folder / RECORD, json.dumps(asdict(result), indent=2) + "\n")
    if not after.keep_weights and (folder / MODEL).exists():
        remove_weights(folder, stages)
        reporter.message(f"{folder.name}: measured, weights removed")
    return result


def refuse_other_arm(config: RunConfig, folder: Path, after: AfterTraining, data: PreparedData) -> None:
    """Refuse a folder that holds another arm.

    Raises:
        RunError: Names the settings that differ.
    """
    if (folder / CONFIG).exists():
        write_config(folder, config, data.fingerprint)  # compares, as there is a configuration
    result = ArmResult.read(folder)
    if result and result.completions != after.to_dict():
        raise RunError(
            f"{folder} is finished with other completions ({result.completions or 'none'}, not "
            f"{after.to_dict() or 'none'}); choose another folder or remove it"
        )


def remove_weights(folder: Path, stages: list[str]) -> None:
    """Remove the model, the controls and the checkpoints of a finished run; measurements and completions stay.

    Raises:
        RunError: The run is not finished.
    """
    if not (folder / MEET).is_file():
        raise RunError(f"{folder} is not a finished run; its weights are kept")
    for stage in stages:
        remove_checkpoints(folder / stage)
    (folder / CONTROL).unlink(missing_ok=True)
    for part in (LEVELS, MODEL):  # the model last: where it is gone, everything is
        shutil.rmtree(folder / part, ignore_errors=True)
