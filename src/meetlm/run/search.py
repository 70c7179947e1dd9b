"""A search of learning rates with the same budget for every method, compared on held-out training prompts.

The budget is a number of trained stages. The stages of a method share it evenly and are settled in order: the learning
rates of the first stage are compared by measurements after it, then, with the best of them, those of the second. A
settled stage is trained once.
"""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Callable, Container, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from meetlm.config.errors import ConfigError, DivergedError
from meetlm.config.files import write_atomic
from meetlm.config.overrides import Override, parse_overrides
from meetlm.config.reporter import SILENT, Reporter
from meetlm.data.formats import FORMATS
from meetlm.diagnostics.preference import PreferenceAccuracy
from meetlm.objectives.base import OBJECTIVES
from meetlm.recipes.config import RunConfig
from meetlm.run.arm import AfterTraining, Arm, ArmResult, check_arm, run_arm
from meetlm.run.folder import read_lm
from meetlm.run.prepared import PreparedData
from meetlm.run.share import StageShare, stage_key
from meetlm.run.sweep import SHARED, arms_of, data_of
from meetlm.run.table import aligned
from meetlm.training.loop import remove_checkpoints
from meetlm.training.stage import StageSettings

STEP = 3.0
"""Factor between neighbouring learning rates."""

MEASURES: dict[str, Callable[[PreferenceAccuracy], float | None]] = {
    "preference": lambda accuracy: None if accuracy.by_sum is None else accuracy.by_sum.value,
    "reward": lambda accuracy: accuracy.reward.value,
    "nll": lambda accuracy: -accuracy.nll,
}
"""The measures that can decide; more is better."""
DIVERGED = (-math.inf, 0.0)
"""Score of a learning rate at which training diverged: it never wins."""
RECORD_OF_DIVERGED = "diverged.json"
"""File in the folder of a trial that diverged, which is not trained again."""


@dataclass(frozen=True, slots=True)
class Trial:
    """One learning rate of one stage.

    Attributes:
        recipe: Name of the recipe.
        stage: The stage with this learning rate.
        by: The measure that decides.
        after: Preference accuracy after the stage.
        best: Whether it won.
        edge: Whether it is the largest or the smallest of the learning rates.
    """

    recipe: str
    stage: StageSettings
    by: str
    after: PreferenceAccuracy
    best: bool
    edge: bool

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        return {**asdict(self), "stage": self.stage.model_dump(mode="json")}

    @property
    def settings(self) -> str:
        """The arguments of `meet train` that set this learning rate."""
        settings = f"--stages.{self.stage.name}.lr {self.stage.lr:.3g}"
        rate = self.stage.control_lr
        return settings if rate is None else f"{settings} --stages.{self.stage.name}.control_lr {rate:.3g}"


class Search:
    """A search over recipes.

    Args:
        recipes: Names or patterns.
        file: YAML file of settings over every recipe.
        overrides: Settings over that.
        trials: Number of stages to train per recipe.
        holdout: Number of prompts of the training split to compare on.
        by: A key of :data:`MEASURES`, or ``auto``: nll for a stage without levels, reward for one with a pairwise
            objective, else preference.
        seed: Seed of all runs.

    Attributes:
        failures: Why the search of a recipe has failed, by its name.

    Raises:
        ConfigError: A recipe cannot be run, or has too many stages for the number of trials.
    """

    def __init__(
        self,
        recipes: Sequence[str],
        file: Path | None,
        overrides: Sequence[str | Override],
        *,
        trials: int,
        holdout: int,
        by: str = "auto",
        seed: int = 0,
    ) -> None:
        self.trials, self.by = trials, by
        self.failures: dict[str, str] = {}
        if any(override.key == "data.holdout" for override in parse_overrides(overrides)):
            raise ConfigError("--data.holdout has no effect on a search: pass --holdout")
        self.arms = arms_of(recipes, (seed,), file, [*overrides, Override("data.holdout", str(holdout))])
        for arm in self.arms:
            num_stages = len(arm.config.stages)
            if trials < 2 * num_stages:
                raise ConfigError(
                    f"{arm.config.recipe} has {num_stages} stages, and each needs two trials: pass --trials "
                    f"{2 * num_stages} or more"
                )
            if by == "preference" and len(arm.config.control.levels) < 2:
                raise ConfigError(f"{arm.config.recipe} has one level, so no preference accuracy: choose another --by")

    def run(self, folder: Path, *, reporter: Reporter = SILENT) -> list[Trial]:
        """Return all trials and write ``search.json``; an interrupted search continues.

        A learning rate at which training diverges is reported and is not a trial. A recipe that diverges at every rate
        is in :attr:`failures`; the search continues with the others.

        Raises:
            MeetError: As of :func:`~meetlm.run.arm.run_arm`.
        """
        data = data_of(self.arms[0].config, folder)
        for line in data.lines():
            reporter.message(line)
        trials: list[Trial] = []
        for arm in self.arms:
            settled: tuple[StageSettings, ...] = ()
            for number, stage in enumerate(arm.config.stages):
                rates = _rates(stage.lr, self.trials, len(arm.config.stages), number)
                candidates = [_at_rate(stage, rate) for rate in rates]
                configs = [_with_stages(arm.config, (*settled, candidate)) for candidate in candidates]
                keys = [stage_key(config, data.key, number) for config in configs]
                is_last = number == len(arm.config.stages) - 1
                share = StageShare(folder / SHARED, set() if is_last else set(keys))  # the next stage starts from these
                results = []
                for rate, config in zip(rates, configs, strict=True):
                    name = f"{arm.config.recipe}-{stage.name}-{rate:.3g}"
                    reporter.message(f"{name}: stage {number + 1} of {len(arm.config.stages)}")
                    results.append(self._trial(Arm(name, config), folder, share, data, reporter))
                by = _measure_of(stage) if self.by == "auto" else self.by
                scores = [_score(by, result) for result in results]
                best = scores.index(max(scores))
                if scores[best] == DIVERGED:
                    self.failures[arm.config.recipe] = f"stage {stage.name!r} diverged at every learning rate"
                    break
                trials += [
                    Trial(arm.config.recipe, candidate, by, result.after, n == best, n in (0, len(rates) - 1))
                    for n, (candidate, result) in enumerate(zip(candidates, results, strict=True))
                    if result and scores[n] != DIVERGED
                ]
                settled = (*settled, candidates[best])
                share.keep_only({keys[best]})
                write_atomic(folder / "search.json", json.dumps([trial.to_dict() for trial in trials], indent=2) + "\n")
            share.keep_only(set())
        return trials

    @staticmethod
    def _trial(arm: Arm, folder: Path, share: StageShare, data: PreparedData, reporter: Reporter) -> ArmResult | None:
        """Return the result of a trial; ``None`` where it diverged, now or in an earlier call."""
        then = AfterTraining(sampling=None, prompts=None, keep_weights=False)
        place = folder / arm.name
        record = place / RECORD_OF_DIVERGED
        check_arm(arm, place, then, data)
        if not record.is_file():
            lm_sha256 = read_lm(sorted(path for path in folder.iterdir() if path.is_dir()))
            try:
                return run_arm(arm, place, then, share, data, lm_sha256=lm_sha256, reporter=reporter)
            except DivergedError as error:
                write_atomic(record, json.dumps({"error": str(error)}) + "\n")
        for stage in arm.config.stages:
            remove_checkpoints(place / stage.name)
        diverged = json.loads(record.read_text())
        reporter.message(f"{arm.name}: {diverged.get('error') or diverged.get('said')}")  # "said" before this version
        return None


def lines(trials: Sequence[Trial], args: Sequence[str] = (), failures: Container[str] = ()) -> Iterator[str]:
    """Yield a table of the trials, and for each recipe without failure the command with the best learning rates.

    Args:
        trials: All trials.
        args: Further arguments of the commands.
        failures: Names of recipes without a result.
    """
    if not trials:
        return
    yield f"On {trials[0].after.pairs} held-out training pairs, after the stage:"
    head = ("recipe", "stage", "lr", "preference accuracy", "reward accuracy", "nats/token chosen", "")
    yield from aligned([head, *(_row(trial) for trial in trials)])
    yield ""
    for name in dict.fromkeys(trial.recipe for trial in trials if trial.recipe not in failures):
        best = [trial.settings for trial in trials if trial.recipe == name and trial.best]
        yield f"meet train {name} {' '.join([shlex.join(args), *best]).strip()}"


def _score(by: str, result: ArmResult | None) -> tuple[float, float]:
    """Return the score of a trial, higher being better: the measure, then the negative loss."""
    if result is None or not math.isfinite(result.after.nll):
        return DIVERGED
    return MEASURES[by](result.after) or 0.0, -result.after.nll


def _row(trial: Trial) -> tuple[str, ...]:
    edge = ", at the edge of the range" if trial.edge else ""
    return (
        trial.recipe,
        trial.stage.name,
        f"{trial.stage.lr:.3g}",
        "-" if trial.after.by_sum is None else str(trial.after.by_sum),
        str(trial.after.reward),
        f"{trial.after.nll:.3f}",
        f"<- best by {trial.by}{edge}" if trial.best else "",
    )


def _rates(lr: float, trials: int, stages: int, number: int) -> list[float]:
    """Return the learning rates to try for a stage: its own times powers of :data:`STEP`, its share of the trials."""
    count = trials // stages + (number < trials % stages)
    return [lr * STEP ** (n - count // 2) for n in range(count)]


def _at_rate(stage: StageSettings, rate: float) -> StageSettings:
    """Return a stage with another learning rate; a rate of the control changes by the same factor."""
    control = None if stage.control_lr is None else stage.control_lr * rate / stage.lr
    return stage.model_copy(update={"lr": rate, "control_lr": control})


def _with_stages(config: RunConfig, stages: tuple[StageSettings, ...]) -> RunConfig:
    return config.model_copy(update={"stages": stages})


def _measure_of(stage: StageSettings) -> str:
    if OBJECTIVES[stage.objective.kind].is_pairwise:
        return "reward"
    return "nll" if len(FORMATS[stage.format].levels) == 1 else "preference"
