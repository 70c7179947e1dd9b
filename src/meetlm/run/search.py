"""A search for rates with the same budget for every method, judged on training prompts that are held out from training.

The budget is a number of trained stages. A method's stages share it evenly and are settled in order: the rates of the
first are compared by what is measured after it, then, with the best of them, those of the second. A stage that is
settled is trained once.
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
"""Neighbouring rates differ by this factor."""

MEASURES: dict[str, Callable[[PreferenceAccuracy], float | None]] = {
    "preference": lambda found: None if found.by_sum is None else found.by_sum.value,
    "reward": lambda found: found.reward.value,
    "nll": lambda found: -found.nll,
}
"""What decides; more is better."""
DIVERGED = (-math.inf, 0.0)
"""The score of a rate at which training diverged: it is no trial, and never wins."""
RECORD_OF_DIVERGED = "diverged.json"
"""Stands in the folder of such a one, which is not trained again."""


@dataclass(frozen=True, slots=True)
class Trial:
    """One rate of one stage.

    Attributes:
        recipe: Name of the recipe.
        stage: At the rate that is tried.
        by: What decides.
        after: Measured after the stage.
        best: Whether it won.
        edge: Whether no larger or no smaller rate was tried.
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
    def words(self) -> str:
        """The overrides that give the stage this rate."""
        words = f"stages.{self.stage.name}.lr={self.stage.lr:.3g}"
        rate = self.stage.control_lr
        return words if rate is None else f"{words} stages.{self.stage.name}.control_lr={rate:.3g}"


class Search:
    """A search over recipes.

    Args:
        recipes: Names or patterns.
        file: A YAML file of settings over every recipe.
        overrides: Over that.
        trials: Stages trained a recipe.
        holdout: Prompts of the training split to judge by.
        by: A key of :data:`MEASURES`, or ``auto``: nll for a stage without levels, reward for one that compares, else
            preference.
        seed: Of all runs.

    Attributes:
        failed: Why a recipe has no rates, by its name, once it was run.

    Raises:
        ConfigError: A recipe cannot be run, or has more stages than two trials each would allow.
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
        self.failed: dict[str, str] = {}
        if any(override.key == "data.holdout" for override in parse_overrides(overrides)):
            raise ConfigError("--data.holdout has no effect on a search: pass --holdout")
        self.arms = arms_of(recipes, (seed,), file, [*overrides, Override("data.holdout", str(holdout))])
        for arm in self.arms:
            most = trials // 2
            if len(arm.config.stages) > most:
                raise ConfigError(
                    f"{arm.config.recipe} has {len(arm.config.stages)} stages; {trials} trials allow two rates for "
                    f"{most} of them (--trials)"
                )
            if by == "preference" and len(arm.config.control.levels) < 2:
                raise ConfigError(f"{arm.config.recipe} has one level, and so no preference accuracy to decide by")

    def run(self, folder: Path, *, reporter: Reporter = SILENT) -> list[Trial]:
        """Return every trial; a search that was stopped goes on. Writes ``search.json``.

        A rate at which training diverges is said and is no trial; a recipe none of whose rates is left stands in
        :attr:`failed`, and the others go on.

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
                staged = [_at(stage, rate) for rate in rates]
                configs = [_truncated(arm.config, (*settled, one)) for one in staged]
                keys = [stage_key(config, data.key, number) for config in configs]
                last = number == len(arm.config.stages) - 1
                share = StageShare(folder / SHARED, set() if last else set(keys))  # what another stage goes on from
                found = []
                for rate, config in zip(rates, configs, strict=True):
                    name = f"{arm.config.recipe}-{stage.name}-{rate:.3g}"
                    reporter.message(f"{name}: stage {number + 1} of {len(arm.config.stages)}")
                    found.append(self._trial(Arm(name, config), folder, share, data, reporter))
                by = _decides(stage) if self.by == "auto" else self.by
                scores = [_score(by, one) for one in found]
                best = scores.index(max(scores))
                if scores[best] == DIVERGED:
                    self.failed[arm.config.recipe] = f"stage {stage.name!r} diverged at every rate tried"
                    break
                trials += [
                    Trial(arm.config.recipe, stage, by, one.after, n == best, n in (0, len(rates) - 1))
                    for n, (stage, one) in enumerate(zip(staged, found, strict=True))
                    if one and scores[n] != DIVERGED
                ]
                settled = (*settled, staged[best])
                share.keep_only({keys[best]})
                write_atomic(folder / "search.json", json.dumps([one.to_dict() for one in trials], indent=2) + "\n")
            share.keep_only(set())
        return trials

    @staticmethod
    def _trial(arm: Arm, folder: Path, share: StageShare, data: PreparedData, reporter: Reporter) -> ArmResult | None:
        """Return what a trial came to; ``None`` where it diverged, now or in an earlier call."""
        then = AfterTraining(sampling=None, prompts=None, keep_weights=False)
        place = folder / arm.name
        record = place / RECORD_OF_DIVERGED
        check_arm(arm, place, then, data)
        if not record.is_file():
            lm_sha256 = read_lm(sorted(one for one in folder.iterdir() if one.is_dir()))
            try:
                return run_arm(arm, place, then, share, data, lm_sha256=lm_sha256, reporter=reporter)
            except DivergedError as error:
                write_atomic(record, json.dumps({"said": str(error)}) + "\n")
        for stage in arm.config.stages:
            remove_checkpoints(place / stage.name)
        reporter.message(f"{arm.name}: {json.loads(record.read_text())['said']}")
        return None


def lines(trials: Sequence[Trial], words: Sequence[str] = (), failed: Container[str] = ()) -> Iterator[str]:
    """Yield a table of the trials, and for each recipe not ``failed`` the command with ``words`` and the best rates."""
    if not trials:
        return
    yield f"On {trials[0].after.pairs} training pairs held out, after the stage:"
    head = ("recipe", "stage", "rate", "preference accuracy", "reward accuracy", "nats/token chosen", "")
    yield from aligned([head, *(_row(one) for one in trials)])
    yield ""
    for name in dict.fromkeys(one.recipe for one in trials if one.recipe not in failed):
        best = [one.words for one in trials if one.recipe == name and one.best]
        yield f"meet train {name} {' '.join([shlex.join(words), *best]).strip()}"


def _score(by: str, one: ArmResult | None) -> tuple[float, float]:
    """Return what tells trials apart, more being better, the loss where they are equal."""
    if one is None or not math.isfinite(one.after.nll):
        return DIVERGED
    return MEASURES[by](one.after) or 0.0, -one.after.nll


def _row(one: Trial) -> tuple[str, ...]:
    edge = ", at the edge of what was tried" if one.edge else ""
    return (
        one.recipe,
        one.stage.name,
        f"{one.stage.lr:.3g}",
        "-" if one.after.by_sum is None else str(one.after.by_sum),
        str(one.after.reward),
        f"{one.after.nll:.3f}",
        f"<- best by {one.by}{edge}" if one.best else "",
    )


def _rates(lr: float, trials: int, stages: int, number: int) -> list[float]:
    """Return the rates to try for a stage: its own times powers of :data:`STEP`, its share of the trials."""
    count = trials // stages + (number < trials % stages)
    return [lr * STEP ** (n - count // 2) for n in range(count)]


def _at(stage: StageSettings, rate: float) -> StageSettings:
    """Return a stage at another rate, the control's own rate, where it has one, moved along."""
    control = None if stage.control_lr is None else stage.control_lr * rate / stage.lr
    return stage.model_copy(update={"lr": rate, "control_lr": control})


def _truncated(config: RunConfig, stages: tuple[StageSettings, ...]) -> RunConfig:
    return config.model_copy(update={"stages": stages})


def _decides(stage: StageSettings) -> str:
    if OBJECTIVES[stage.objective.kind].is_pairwise:
        return "reward"
    return "nll" if len(FORMATS[stage.format].levels) == 1 else "preference"
