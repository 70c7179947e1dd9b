"""Search for the best learning rates: equal numbers of trained stages per method, compared on held-out prompts.

The stages of a method share the budget evenly. The learning rate of the first stage is chosen by the accuracy after it;
the first stage is then fixed, and the learning rate of the second stage is chosen in the same way.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Container, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from meetlm.config.errors import ConfigError, DivergedError
from meetlm.config.files import locked, write_atomic
from meetlm.config.overrides import Override, parse_overrides
from meetlm.config.reporter import SILENT, Reporter
from meetlm.data.formats import FORMATS
from meetlm.diagnostics.preference import PreferenceAccuracy
from meetlm.objectives.base import OBJECTIVES
from meetlm.recipes.config import RunConfig
from meetlm.run.arm import AfterTraining, refuse_other_arm, run_arm
from meetlm.run.folder import read_lm
from meetlm.run.prepared import PreparedData
from meetlm.run.stage_cache import StageCache, stage_key
from meetlm.run.sweep import SHARED, arm_configs, shared_data
from meetlm.training.checkpoints import remove_checkpoints
from meetlm.training.stage import StageSettings

FACTOR = 3.0
"""Ratio of neighbouring learning rates."""
METRICS: dict[str, Callable[[PreferenceAccuracy], float]] = {
    "preference": lambda accuracy: accuracy.by_sum.value if accuracy.by_sum else math.nan,
    "reward": lambda accuracy: accuracy.reward.value,
    "nll": lambda accuracy: -accuracy.nll,
}
"""Selection metrics; higher is better."""
COLUMNS = ("recipe", "stage", "lr", "preference accuracy", "reward accuracy", "NLL of chosen (nats/token)", "chosen")
DIVERGED = "diverged.json"
"""File that marks the folder of a diverged trial; such a trial is not repeated."""
AFTER_TRIAL = AfterTraining(sampling=None, prompts=None, keep_weights=False)


@dataclass(frozen=True, slots=True)
class Trial:
    """A learning rate of a stage.

    Attributes:
        recipe: Name of the recipe.
        stage: The stage with this learning rate.
        metric: The selection metric.
        after: Preference accuracy after the stage.
        is_best: Whether this learning rate was chosen.
        is_at_edge: Whether it is the highest or the lowest of the learning rates.
    """

    recipe: str
    stage: StageSettings
    metric: str
    after: PreferenceAccuracy
    is_best: bool
    is_at_edge: bool

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        return {**asdict(self), "stage": self.stage.model_dump(mode="json")}

    @property
    def settings(self) -> str:
        """The arguments of `meet train` that set this learning rate."""
        settings = f"--stages.{self.stage.name}.lr {self.stage.lr:.3g}"
        rate = self.stage.control_lr
        return settings if rate is None else f"{settings} --stages.{self.stage.name}.control_lr {rate:.3g}"

    @property
    def row(self) -> tuple[str, ...]:
        """The trial as a row of a table with :data:`COLUMNS`."""
        edge = ", at the edge of the range" if self.is_at_edge else ""
        return (
            self.recipe,
            self.stage.name,
            f"{self.stage.lr:.3g}",
            "-" if self.after.by_sum is None else str(self.after.by_sum),
            str(self.after.reward),
            f"{self.after.nll:.3f}",
            f"best by {self.metric}{edge}" if self.is_best else "",
        )


def search(
    recipes: Sequence[str],
    file: Path | None,
    overrides: Sequence[str | Override],
    folder: Path,
    *,
    trials: int,
    holdout: int,
    metric: str = "auto",
    seed: int = 0,
    reporter: Reporter = SILENT,
) -> tuple[list[Trial], dict[str, str]]:
    """Search the learning rates of recipes and write ``search.json``; an interrupted search continues.

    Args:
        recipes: Names or patterns.
        file: YAML file of settings that override those of every recipe.
        overrides: Settings that override both.
        folder: Folder of the search, with a folder for each trial.
        trials: Number of stages to train per recipe.
        holdout: Number of prompts of the training split to hold out for the comparison.
        metric: A key of :data:`METRICS`, or ``auto``: nll for a stage without levels, reward for a pairwise objective,
            else preference.
        seed: Seed of all runs.
        reporter: Shows messages and progress.

    Returns:
        The trials, and the reason of the failure of each recipe that diverged at every learning rate of a stage. A
        learning rate at which training diverges is reported and is not a trial.

    Raises:
        ConfigError: A recipe cannot be run, or has too many stages for the number of trials.
        RunError: ``folder`` holds other files, or another search.
        MeetError: The data cannot be used.
    """
    if any(override.key == "data.holdout" for override in parse_overrides(overrides)):
        raise ConfigError("--data.holdout has no effect on a search: pass --holdout")
    held_out = [Override("data.holdout", str(holdout)), Override("data.eval_file", "null")]
    configs = list(arm_configs(recipes, (seed,), file, [*overrides, *held_out]).values())
    for config in configs:
        _check_budget(config, trials, metric)
    with locked(folder):
        data = shared_data(configs[0], folder, reporter)
        cache = StageCache(folder / SHARED)
        results: list[Trial] = []
        failures: dict[str, str] = {}
        for config in configs:
            chosen: tuple[StageSettings, ...] = ()
            for index, stage in enumerate(config.stages):
                is_last = index == len(config.stages) - 1
                candidates = [_at_rate(stage, rate) for rate in _rates(stage.lr, trials, len(config.stages), index)]
                arms = [config.model_copy(update={"stages": (*chosen, candidate)}) for candidate in candidates]
                keys = [stage_key(arm, data.key, index) for arm in arms]
                cache.keys_to_store = set() if is_last else set(keys)  # the next stage starts from one of these
                accuracies = [_accuracy_after(arm, folder, cache, data, reporter) for arm in arms]
                stage_metric = _metric_for(stage) if metric == "auto" else metric
                scores = {n: (METRICS[stage_metric](after), -after.nll) for n, after in enumerate(accuracies) if after}
                if not scores:
                    failures[config.recipe] = f"stage {stage.name!r} diverged at every learning rate"
                    break
                best = max(scores, key=lambda n: scores[n])
                results += [
                    Trial(config.recipe, candidate, stage_metric, after, n == best, n in (0, len(candidates) - 1))
                    for n, (candidate, after) in enumerate(zip(candidates, accuracies, strict=True))
                    if after
                ]
                chosen = (*chosen, candidates[best])
                cache.keys_to_store &= {keys[best]}
                cache.remove_others()
                write_atomic(
                    folder / "search.json", json.dumps([trial.to_dict() for trial in results], indent=2) + "\n"
                )
            cache.keys_to_store = set()
            cache.remove_others()
        return results, failures


def _check_budget(config: RunConfig, trials: int, metric: str) -> None:
    """Check that the number of trials and the metric suit a recipe.

    Raises:
        ConfigError: The recipe has too many stages for the trials, or no levels for the metric.
    """
    num_stages = len(config.stages)
    if trials < 2 * num_stages:
        raise ConfigError(
            f"{config.recipe} has {num_stages} stages, and each needs at least two trials: "
            f"pass --trials {2 * num_stages} or more"
        )
    if metric == "preference" and not config.uses_levels:
        raise ConfigError(f"{config.recipe} has one level, so no preference accuracy: choose another --by")


def _accuracy_after(
    config: RunConfig, search_folder: Path, cache: StageCache, data: PreparedData, reporter: Reporter
) -> PreferenceAccuracy | None:
    """Return the accuracy after the last stage of a trial; ``None`` if it diverged, now or in an earlier call."""
    stage = config.stages[-1]
    folder = search_folder / f"{config.recipe}-{stage.name}-{stage.lr:.3g}"
    diverged_file = folder / DIVERGED
    reporter.message(f"{folder.name}: learning rate {stage.lr:.3g} of stage {stage.name}")
    refuse_other_arm(config, folder, AFTER_TRIAL, data)
    if not diverged_file.is_file():
        lm_sha256 = read_lm(sorted(path for path in search_folder.iterdir() if path.is_dir()))
        try:
            after = run_arm(config, folder, AFTER_TRIAL, cache, data, lm_sha256=lm_sha256, reporter=reporter).after
            if math.isfinite(after.nll):
                return after
            raise DivergedError(f"stage {stage.name!r} has diverged: the NLL of the chosen replies is {after.nll}")
        except DivergedError as error:
            write_atomic(diverged_file, json.dumps({"error": str(error)}) + "\n")
    for trained_stage in config.stages:
        remove_checkpoints(folder / trained_stage.name)
    record = json.loads(diverged_file.read_text())
    reason = record.get("error") or record.get("said")  # "said" in records of earlier versions
    reporter.message(f"{folder.name}: {reason}")
    return None


def best_rates(trials: Sequence[Trial], failures: Container[str]) -> dict[str, str]:
    """Return the arguments of `meet train` that set the chosen learning rates, by recipe.

    Args:
        trials: All trials.
        failures: Names of recipes without a result.
    """
    chosen: dict[str, list[str]] = {}
    for trial in trials:
        if trial.is_best and trial.recipe not in failures:
            chosen.setdefault(trial.recipe, []).append(trial.settings)
    return {recipe: " ".join(settings) for recipe, settings in chosen.items()}


def _rates(lr: float, trials: int, num_stages: int, index: int) -> list[float]:
    """Return the learning rates to try for a stage within the budget: ``lr`` times powers of :data:`FACTOR`."""
    count = trials // num_stages + (index < trials % num_stages)
    return [lr * FACTOR ** (n - count // 2) for n in range(count)]


def _at_rate(stage: StageSettings, rate: float) -> StageSettings:
    """Return a stage with another learning rate; the learning rate of the control is scaled by the same factor."""
    control = None if stage.control_lr is None else stage.control_lr * rate / stage.lr
    return stage.model_copy(update={"lr": rate, "control_lr": control})


def _metric_for(stage: StageSettings) -> str:
    if OBJECTIVES[stage.objective.kind].is_pairwise:
        return "reward"
    return "preference" if FORMATS[stage.format].uses_levels else "nll"
