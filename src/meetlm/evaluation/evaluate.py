"""Compares systems with a baseline: aligned completions in, one record out (paper sections 4.3-4.6)."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from itertools import combinations
from pathlib import Path
from typing import Any

from meetlm.config.errors import ConfigError, nearest
from meetlm.config.reporter import SILENT, Reporter
from meetlm.config.versions import git_hash, versions
from meetlm.data.example import Prompt
from meetlm.evaluation.alignment import PairedCompletions
from meetlm.evaluation.callables import CallableScorer, load_scorer
from meetlm.evaluation.controlled import controlled_win
from meetlm.evaluation.judge import judge
from meetlm.evaluation.judge_client import missing_key
from meetlm.evaluation.judge_prompts import load_prompt, prompt_for
from meetlm.evaluation.measures import LENGTHS, MEASURES, NO_CHOSEN, ROUGES, text_measures
from meetlm.evaluation.outcomes import Outcome, by_reward, by_value, margins
from meetlm.evaluation.protocol import choose_prompts
from meetlm.evaluation.record import Agreement, Comparison, Evaluation, JudgeAccount, Measure, Problem
from meetlm.evaluation.reward import RewardModel
from meetlm.evaluation.score_cache import CachedRewardModel
from meetlm.evaluation.settings import EvaluationSettings, JudgeSettings, RewardSettings
from meetlm.evaluation.statistics import agreement, by_seed, difference, mean, rates

PACKAGES = ("meetlm", "torch", "transformers", "numpy", "scipy", "rouge-score")
ROUGE = "rouge-avg"
"""The ROUGE measure that decides outcomes."""
JUDGE_FOLDER = "judge"
Column = list[float | None]
"""A value per cell; ``None`` where there is none."""


@dataclass(frozen=True)
class Evaluators:
    """What decides outcomes, besides ROUGE where the data have chosen replies.

    Attributes:
        reward: A reward model.
        judge: An LLM judge, with its prompt.
        scorers: Python functions.
        prompt_reason: Why the judge has its prompt, in a clause for the report.
    """

    reward: RewardModel | None = None
    judge: JudgeSettings | None = None
    scorers: Sequence[CallableScorer] = ()
    prompt_reason: str = "given"

    @classmethod
    def load(
        cls,
        *,
        reward: RewardSettings | None = None,
        judge: JudgeSettings | None = None,
        scorers: Sequence[str] = (),
        source: str,
        folder: Path,
    ) -> Evaluators:
        """Return evaluators that are ready; a judge and scorers are checked before a reward model is loaded.

        Args:
            reward: Settings of a reward model.
            judge: Settings of an LLM judge.
            scorers: Functions as ``MODULE:FUNCTION``.
            source: Source of the data, which decides the judge's prompt where its settings do not.
            folder: Folder of the evaluation; where it holds responses of a judge, the judge's key may be missing.

        Raises:
            ConfigError: An evaluator cannot be used.
        """
        reason = "set by --judge.prompt"
        if judge is not None:
            if judge.prompt is None:
                prompt, reason = prompt_for(source)
                judge = judge.model_copy(update={"prompt": prompt})
            load_prompt(str(judge.prompt))
            has_key = judge.key_env is None or os.environ.get(judge.key_env)
            if not has_key and not any((folder / JUDGE_FOLDER).glob("*")):
                raise ConfigError(missing_key(judge))
        functions = [load_scorer(name) for name in scorers]
        return cls(RewardModel.load(reward) if reward else None, judge, functions, reason)


def evaluate_completions(
    completions: PairedCompletions,
    baseline: str,
    settings: EvaluationSettings,
    evaluators: Evaluators,
    folder: Path,
    *,
    recorded: Mapping[str, Any] | None = None,
    reporter: Reporter = SILENT,
) -> Evaluation:
    """Compare every system with the baseline, cell by cell (Stiennon et al., 2020; paper section 4.3).

    A cell is one prompt under one seed. Rates, means and differences are shares in [0, 1] or in the measure's own unit,
    with 95% intervals over prompts and training runs (:mod:`meetlm.diagnostics.intervals`).

    Args:
        completions: Completions of all systems on the same cells.
        baseline: Name of the system that the others are compared with.
        settings: How outcomes and intervals are computed.
        evaluators: What decides outcomes.
        folder: Rewards and the judge's responses are stored here as they come, and are reused.
        recorded: Further settings for the record.
        reporter: Shows the progress.

    Returns:
        Every value behind every figure: the report needs nothing else.

    Raises:
        ConfigError: There is no such baseline, no system to compare with it, no evaluator, a judge's endpoint or a
            scorer fails, or ``stemmer`` is set and no prompt has a chosen reply.
    """
    names = [system.name for system in completions.systems]
    refuse_unknown_baseline(baseline, names)
    if len(names) < 2:
        raise ConfigError(f"{baseline!r} is the only system: name another one to compare it with")
    no_chosen = next((f"{p.what} ({p.shown})" for p in completions.problems if p.what == NO_CHOSEN), "")
    if settings.stemmer and all(row.chosen is None for row in completions.prompts):
        raise ConfigError(f"--stemmer requires ROUGE: {no_chosen or NO_CHOSEN}")
    work = _Comparer(completions, baseline, settings, folder, reporter)
    work.add_text_measures()
    if not (work.comparisons or evaluators.reward or evaluators.judge or evaluators.scorers):
        reason = no_chosen or "ROUGE is not defined for these replies"
        raise ConfigError(f"no evaluator: pass --reward, --judge or --scorer ({reason})")
    reward_record = work.add_reward(evaluators.reward) if evaluators.reward else None
    for scorer in evaluators.scorers:
        work.add_scorer(scorer)
    account = None
    if evaluators.judge is not None:
        account = replace(work.add_judge(evaluators.judge), prompt_reason=evaluators.prompt_reason)
    return Evaluation(
        settings={
            **(recorded or {}),
            "evaluation": settings.model_dump(mode="json"),
            "reward": reward_record,
            "judge": evaluators.judge and evaluators.judge.model_dump(mode="json"),
            "scorers": [scorer.name for scorer in evaluators.scorers],
            "versions": versions(*PACKAGES, *(["openai"] if evaluators.judge else [])),
            "git": git_hash(),
            "date": datetime.now(UTC).date().isoformat(),
        },
        baseline=baseline,
        systems=completions.systems,
        prompts=completions.prompts,
        cells=completions.cells,
        completions={name: work.texts[name] for name in names},
        measures=work.measures,
        comparisons=work.comparisons,
        agreements=work.agreements(),
        judge=account,
        problems=work.problems,
        replicates=completions.replicates,
    )


def refuse_unknown_baseline(baseline: str, names: Sequence[str]) -> None:
    """Refuse a baseline that is not a system.

    Raises:
        ConfigError: Names the nearest system.
    """
    if baseline not in names:
        raise ConfigError(f"--baseline {baseline}: no such system{nearest(baseline, names)}")


@dataclass
class _Comparer:
    """Collects measures and comparisons.

    Attributes:
        paired: The completions.
        baseline: Name of the baseline.
        settings: Settings of the evaluation.
        folder: Folder of what is stored.
        reporter: Shows the progress.
        measures: Measures so far.
        comparisons: Comparisons so far.
        problems: Problems so far.
    """

    paired: PairedCompletions
    baseline: str
    settings: EvaluationSettings
    folder: Path
    reporter: Reporter
    measures: list[Measure] = field(default_factory=list)
    comparisons: list[Comparison] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)

    def __post_init__(self) -> None:
        rows = [self.paired.prompts[place] for place, _ in self.paired.cells]
        self.prompts, self.chosen = [Prompt.from_json(row.prompt) for row in rows], [row.chosen for row in rows]
        self.others = [system.name for system in self.paired.systems if system.name != self.baseline]
        self.names = [self.baseline, *self.others]
        by_name = self.paired.completions
        self.texts = {name: [completion.text for completion in by_name[name]] for name in self.names}
        self.origins = {name: [str(completion.origin) for completion in by_name[name]] for name in self.names}
        self.problems += self.paired.problems
        self._bootstrap: dict[str, int] = {"seed": self.settings.seed, "resamples": self.settings.resamples}

    def add_text_measures(self) -> None:
        """Add the measures of text, and ROUGE's comparison."""
        columns = {
            name: text_measures(self.prompts, self.texts[name], self.chosen, stemmer=self.settings.stemmer)
            for name in self.names
        }
        self.characters = {name: columns[name]["characters"] for name in self.names}
        for measure, (description, higher) in MEASURES.items():
            values = {name: columns[name][measure] for name in self.names}
            self._add_measure(measure, description, higher, values)
            if measure == ROUGE and any(value is not None for value in values[self.baseline]):
                self._compare_values(measure, values, higher=True)
        rouge = columns[self.baseline][ROUGE]
        undefined = {
            f"{self.paired.prompts[prompt].id}: {chosen!r}": None
            for prompt, chosen, value in zip(self.paired.clusters, self.chosen, rouge, strict=True)
            if value is None and chosen is not None
        }
        if undefined:
            what = f"chosen replies without a word: {', '.join(ROUGES)} are not defined"
            self.problems.append(Problem(what, len(undefined), list(undefined)))

    def add_reward(self, model: RewardModel) -> dict[str, Any]:
        """Add rewards and their comparison; return what the record states about the model."""
        cached = CachedRewardModel(model, self.folder / "scores")
        values: dict[str, Column] = {}
        for name in self.names:
            values[name], problems = cached.score(
                self.prompts, self.texts[name], self.origins[name], reporter=self.reporter
            )
            self.problems += [replace(problem, what=f"reward, {name}: {problem.what}") for problem in problems]
        self._add_measure(
            "reward", f"reward of {model.settings.model} (input form {model.form}: {model.form_reason})", True, values
        )
        for name in self.others:
            ours, theirs = values[name], values[self.baseline]
            self._compare("reward", name, by_reward(ours, theirs, self.settings.tie_band), margins(ours, theirs))
        return {
            **model.settings.model_dump(mode="json"),
            "reads": model.form,
            "precision": model.precision,
            "weights_sha256": cached.weights_sha256,
        }

    def add_scorer(self, scorer: CallableScorer) -> None:
        """Add the values of a function and their comparison."""
        values = {}
        for name in self.names:
            values[name] = scorer.score(self.prompts, self.texts[name], self.chosen, names=self.origins[name])
            self.problems += [replace(problem, what=f"{name}: {problem.what}") for problem in scorer.problems]
        self._add_measure(scorer.name, scorer.description, scorer.higher, values)
        self._compare_values(scorer.name, values, higher=scorer.higher)

    def add_judge(self, settings: JudgeSettings) -> JudgeAccount:
        """Add the judge's comparison over its prompts; return its account over all systems."""
        chosen = choose_prompts([row.id for row in self.paired.prompts], settings.num_prompts, settings.seed)
        places = [at for at, (prompt, _) in enumerate(self.paired.cells) if self.paired.prompts[prompt].id in chosen]
        judged = judge(
            [
                (self.prompts[place], self.texts[name][place], self.texts[self.baseline][place])
                for name in self.others
                for place in places
            ],
            settings,
            self.folder / JUDGE_FOLDER,
            names=[f"{name}, {self.origins[name][place]}" for name in self.others for place in places],
            systems=[name for name in self.others for _ in places],
            reporter=self.reporter,
        )
        self.problems += judged.problems
        for number, name in enumerate(self.others):
            outcomes: list[Outcome | None] = [None] * len(self.prompts)
            judge_margins: Column = [None] * len(self.prompts)
            for at, place in enumerate(places, number * len(places)):
                outcomes[place], judge_margins[place] = judged.outcomes[at], judged.margins[at]
            self._compare("judge", name, outcomes, judge_margins, asked=places)
        return judged.account

    def agreements(self) -> list[Agreement]:
        """Return how far evaluators agree, two by two, system by system."""
        results = []
        for system in self.others:
            of_system = [comparison for comparison in self.comparisons if comparison.system == system]
            for first, second in combinations(of_system, 2):
                result = agreement(
                    first.outcomes,
                    second.outcomes,
                    self.paired.clusters,
                    system=system,
                    evaluators=(first.evaluator, second.evaluator),
                    **self._bootstrap,
                )
                results += [result] if result else []
        return results

    def _add_measure(self, name: str, description: str, higher: bool | None, values: dict[str, Column]) -> None:
        """Add a measure, unless no completion has a value."""
        paired, clusters = self.paired, self.paired.clusters
        means = {
            system: mean(column, clusters, runs=paired.runs(system), **self._bootstrap)
            for system, column in values.items()
        }
        differences = {
            system: difference(
                values[system],
                values[self.baseline],
                clusters,
                runs=paired.runs(system, self.baseline),
                ratio=name in LENGTHS,
                **self._bootstrap,
            )
            for system in self.others
        }
        defined = {system: interval for system, interval in means.items() if interval is not None}
        if defined:
            paired_differences = {system: value for system, value in differences.items() if value is not None}
            self.measures.append(Measure(name, description, higher, values, defined, paired_differences))

    def _compare_values(self, evaluator: str, values: dict[str, Column], *, higher: bool) -> None:
        for name in self.others:
            ours, theirs = values[name], values[self.baseline]
            signed = margins(ours, theirs) if higher else margins(theirs, ours)
            self._compare(evaluator, name, by_value(ours, theirs, higher=higher), signed)

    def _compare(
        self,
        evaluator: str,
        system: str,
        outcomes: list[Outcome | None],
        cell_margins: Column,
        *,
        asked: Sequence[int] | None = None,
    ) -> None:
        """Add a comparison, if there is any outcome; cells that were not asked about are not counted as left out."""
        places = range(len(outcomes)) if asked is None else asked
        clusters = [self.paired.clusters[place] for place in places]
        counted = [outcomes[place] for place in places]
        runs = self.paired.runs(system, self.baseline)
        all_rates = rates(counted, clusters, runs=[runs[place] for place in places], **self._bootstrap)
        if all_rates is None:
            what = f"{evaluator}, {system}: no outcome in any cell, so there is no comparison"
            self.problems.append(Problem(what, len(counted), [], of_rows=False))
            return
        ours, theirs = ([self.characters[name][place] for place in places] for name in (system, self.baseline))
        controlled = controlled_win(counted, ours, theirs, clusters, **self._bootstrap)
        seeds = [self.paired.cells[place][1] for place in places]
        self.comparisons.append(
            Comparison(
                system,
                self.baseline,
                evaluator,
                outcomes,
                cell_margins,
                all_rates,
                controlled.win,
                by_seed(counted, clusters, seeds, **self._bootstrap),
                None if asked is None else [place in set(asked) for place in range(len(outcomes))],
            )
        )
        if controlled.reason:
            what = f"{evaluator}, {system}: no length-controlled win rate: {controlled.reason}"
            self.problems.append(Problem(what, 1, [], of_rows=False))
