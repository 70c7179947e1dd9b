"""Compares systems with a baseline: paired completions in, one record out (paper sections 4.3-4.6)."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from itertools import combinations
from pathlib import Path
from typing import Any, Protocol

from meetlm.config.errors import ConfigError, nearest
from meetlm.config.files import refuse_foreign_files
from meetlm.config.reporter import SILENT, Reporter
from meetlm.config.versions import git_hash, versions
from meetlm.data.example import Prompt
from meetlm.evaluation.alignment import PairedCompletions
from meetlm.evaluation.callables import load_scorer
from meetlm.evaluation.controlled import controlled_win
from meetlm.evaluation.judge import choose_prompts, judge
from meetlm.evaluation.judge_client import missing_key
from meetlm.evaluation.judge_prompts import load_prompt, prompt_for
from meetlm.evaluation.measures import LENGTHS, MEASURES, NO_CHOSEN, ROUGES, text_measures
from meetlm.evaluation.outcomes import Column, Outcome, decide, largest_tie, margins
from meetlm.evaluation.record import Agreement, Comparison, Evaluation, JudgeAccount, Measure, Problem
from meetlm.evaluation.reward import RewardModel
from meetlm.evaluation.reward_scorer import RewardScorer
from meetlm.evaluation.settings import EvaluationSettings, JudgeSettings, RewardSettings
from meetlm.evaluation.statistics import Clusters, agreement, delta_by_replicate, difference, mean, rates

PACKAGES = ("meetlm", "torch", "transformers", "numpy", "scipy", "rouge-score")
ROUGE = "rouge-avg"
"""The ROUGE measure that decides outcomes."""
JUDGE_FOLDER, SCORES_FOLDER = "judge", "scores"
OUTPUTS = ("**/evaluation.json", JUDGE_FOLDER, SCORES_FOLDER)
"""Files and folders that mark a folder as the folder of an evaluation."""


class Scorer(Protocol):
    """Scores each completion; the scores decide which of two completions wins."""

    name: str
    description: str
    higher_is_better: bool

    def score(
        self,
        prompts: Sequence[Prompt],
        completions: Sequence[str],
        chosen: Sequence[str | None],
        names: Sequence[str],
        *,
        reporter: Reporter = SILENT,
    ) -> tuple[Column, list[Problem]]:
        """Return the score of each completion, and rows that are unusual or have none."""


@dataclass(frozen=True)
class Evaluators:
    """The evaluators that decide outcomes, besides ROUGE where the data have chosen replies.

    Attributes:
        reward: A reward model.
        judge: An LLM judge, with its prompt.
        scorers: Python functions.
        folder: Folder of the evaluation, which stores rewards and the judge's responses.
        prompt_reason: Why the judge has its prompt, in a clause for the report.
    """

    reward: RewardScorer | None
    judge: JudgeSettings | None
    scorers: Sequence[Scorer]
    folder: Path
    prompt_reason: str

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
        """Return evaluators that are ready to use; a judge and scorers are checked before a reward model is loaded.

        Args:
            reward: Settings of a reward model.
            judge: Settings of an LLM judge.
            scorers: Functions as ``MODULE:FUNCTION``.
            source: Source of the data, which decides the judge's prompt where its settings do not.
            folder: Folder of the evaluation; where it holds responses of a judge, the judge's key may be missing.

        Raises:
            ConfigError: An evaluator cannot be used.
            RunError: ``folder`` holds files of something else.
        """
        if not any(any(folder.glob(name)) for name in OUTPUTS):
            refuse_foreign_files(folder)
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
        scorer = RewardScorer(RewardModel.load(reward), folder / SCORES_FOLDER) if reward else None
        return cls(scorer, judge, functions, folder, reason)


def evaluate_completions(
    paired: PairedCompletions,
    baseline: str,
    settings: EvaluationSettings,
    evaluators: Evaluators,
    *,
    recorded: Mapping[str, Any] | None = None,
    reporter: Reporter = SILENT,
) -> Evaluation:
    """Compare every system with the baseline, cell by cell (Stiennon et al., 2020; paper section 4.3).

    A cell is one prompt in one replicate. Rates, means and differences are shares in [0, 1] or in the measure's own
    unit, with 95% intervals over prompts and training runs (:mod:`meetlm.diagnostics.intervals`).

    Args:
        paired: Completions of all systems on the same cells.
        baseline: Name of the system that the others are compared with.
        settings: How outcomes and intervals are computed.
        evaluators: The evaluators that decide outcomes.
        recorded: Further settings for the record.
        reporter: Shows the progress.

    Returns:
        All values from which the report is made.

    Raises:
        ConfigError: There is no such baseline, no system to compare with it, no evaluator, a judge's endpoint or a
            scorer fails, or ``stemmer`` is set and no prompt has a chosen reply.
    """
    names = [system.name for system in paired.systems]
    refuse_unknown_baseline(baseline, names)
    if len(names) < 2:
        raise ConfigError(f"{baseline!r} is the only system: name another one to compare it with")
    no_chosen = next((f"{NO_CHOSEN} ({p.shown_examples})" for p in paired.problems if p.description == NO_CHOSEN), "")
    if settings.stemmer and all(row.chosen is None for row in paired.prompts):
        raise ConfigError(f"--stemmer requires ROUGE: {no_chosen or NO_CHOSEN}")
    comparer = _Comparer(paired, baseline, settings, reporter)
    comparer.add_text_measures()
    if not (comparer.comparisons or evaluators.reward or evaluators.judge or evaluators.scorers):
        reason = no_chosen or "ROUGE is not defined for these replies"
        raise ConfigError(f"no evaluator: pass --reward, --judge or --scorer ({reason})")
    if evaluators.reward:
        comparer.add_scores(evaluators.reward, largest_tie=largest_tie(settings.tie_band))
    for scorer in evaluators.scorers:
        comparer.add_scores(scorer)
    account = None
    if evaluators.judge is not None:
        account = comparer.add_judge(evaluators.judge, evaluators.folder / JUDGE_FOLDER)
        account = replace(account, prompt_reason=evaluators.prompt_reason)
    return Evaluation(
        settings={
            **(recorded or {}),
            "evaluation": settings.model_dump(mode="json"),
            "reward": evaluators.reward and evaluators.reward.record,
            "judge": evaluators.judge and evaluators.judge.model_dump(mode="json"),
            "scorers": [scorer.name for scorer in evaluators.scorers],
            "versions": versions(*PACKAGES, *(["openai"] if evaluators.judge else [])),
            "git": git_hash(),
            "date": datetime.now(UTC).date().isoformat(),
        },
        baseline=baseline,
        systems=paired.systems,
        prompts=paired.prompts,
        cells=paired.cells,
        completions={name: comparer.texts[name] for name in names},
        measures=comparer.measures,
        comparisons=comparer.comparisons,
        agreements=comparer.agreements(),
        judge=account,
        problems=comparer.problems,
        replicates=paired.replicates,
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
    """Collects measures, comparisons and problems.

    Attributes:
        paired: The completions.
        baseline: Name of the baseline.
        settings: Settings of the evaluation.
        reporter: Shows the progress.
        measures: Measures so far.
        comparisons: Comparisons so far.
        problems: Problems so far.
    """

    paired: PairedCompletions
    baseline: str
    settings: EvaluationSettings
    reporter: Reporter
    measures: list[Measure] = field(default_factory=list)
    comparisons: list[Comparison] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.clusters = self.paired.clusters
        rows = [self.paired.prompts[index] for index in self.clusters]
        self.prompts, self.chosen = [Prompt.from_json(row.prompt) for row in rows], [row.chosen for row in rows]
        self.compared = [system.name for system in self.paired.systems if system.name != self.baseline]
        by_name = self.paired.completions
        self.texts = {name: [cell.text for cell in by_name[name]] for name in (self.baseline, *self.compared)}
        self.origins = {name: [str(cell.origin) for cell in by_name[name]] for name in self.texts}
        self.problems += self.paired.problems

    def add_text_measures(self) -> None:
        """Add the measures of text, and the comparison by ROUGE."""
        columns = {
            name: text_measures(self.prompts, texts, self.chosen, stemmer=self.settings.stemmer)
            for name, texts in self.texts.items()
        }
        self.characters = {name: columns[name]["characters"] for name in self.texts}
        for measure, (description, higher) in MEASURES.items():
            values = {name: columns[name][measure] for name in self.texts}
            self._add_measure(measure, description, higher, values)
            if measure == ROUGE and any(value is not None for value in values[self.baseline]):
                self._compare_values(measure, values)
        rouge = columns[self.baseline][ROUGE]
        undefined = {
            f"{self.paired.prompts[prompt].id}: {chosen!r}": None
            for prompt, chosen, value in zip(self.clusters, self.chosen, rouge, strict=True)
            if value is None and chosen is not None
        }
        if undefined:
            text = f"chosen replies without a word: {', '.join(ROUGES)} are not defined"
            self.problems.append(Problem(text, list(undefined)))

    def add_scores(self, scorer: Scorer, *, largest_tie: float = 0.0) -> None:
        """Add the scores of all completions and the comparison by them."""
        values: dict[str, Column] = {}
        for name, texts in self.texts.items():
            values[name], problems = scorer.score(
                self.prompts, texts, self.chosen, self.origins[name], reporter=self.reporter
            )
            self.problems += [Problem(f"{scorer.name}, {name}: {p.description}", p.examples) for p in problems]
        self._add_measure(scorer.name, scorer.description, scorer.higher_is_better, values)
        self._compare_values(scorer.name, values, higher_is_better=scorer.higher_is_better, largest_tie=largest_tie)

    def add_judge(self, settings: JudgeSettings, folder: Path) -> JudgeAccount:
        """Add the judge's comparison over its prompts; return its account over all systems."""
        chosen = choose_prompts([row.id for row in self.paired.prompts], settings.num_prompts, settings.seed)
        asked = [cell for cell, index in enumerate(self.clusters) if self.paired.prompts[index].id in chosen]
        cells = [(name, cell) for name in self.compared for cell in asked]
        judged = judge(
            [(self.prompts[cell], self.texts[name][cell], self.texts[self.baseline][cell]) for name, cell in cells],
            settings,
            folder,
            names=[f"{name}, {self.origins[name][cell]}" for name, cell in cells],
            systems=[name for name, _ in cells],
            reporter=self.reporter,
        )
        self.problems += judged.problems
        by_cell = dict(zip(cells, zip(judged.outcomes, judged.margins, strict=True), strict=True))
        for name in self.compared:
            pairs = [by_cell.get((name, cell), (None, None)) for cell in range(len(self.prompts))]
            self._compare("judge", name, [pair[0] for pair in pairs], [pair[1] for pair in pairs], asked=asked)
        return judged.account

    def agreements(self) -> list[Agreement]:
        """Return how far each two evaluators agree on each system."""
        agreements = []
        for system in self.compared:
            for first, second in combinations([c for c in self.comparisons if c.system == system], 2):
                evaluators = first.evaluator, second.evaluator
                agreements.append(
                    agreement(first.outcomes, second.outcomes, self._clusters(), system=system, evaluators=evaluators)
                )
        return [pair for pair in agreements if pair is not None]

    def _clusters(self, *systems: str) -> Clusters:
        """Return the cells' prompts, and the training runs of some systems."""
        runs = self.paired.runs(*systems) if systems else None
        return Clusters(self.clusters, runs, self.settings.seed, self.settings.resamples)

    def _add_measure(self, name: str, description: str, higher: bool | None, values: dict[str, Column]) -> None:
        """Add a measure, unless no completion has a value."""
        means = {
            system: interval
            for system, column in values.items()
            if (interval := mean(column, self._clusters(system))) is not None
        }
        baseline, ratio = values[self.baseline], name in LENGTHS
        differences = {
            system: paired
            for system in self.compared
            if (paired := difference(values[system], baseline, self._clusters(system, self.baseline), ratio=ratio))
        }
        if means:
            self.measures.append(Measure(name, description, higher, values, means, differences))

    def _compare_values(
        self, evaluator: str, values: dict[str, Column], *, higher_is_better: bool = True, largest_tie: float = 0.0
    ) -> None:
        for name in self.compared:
            by_cell = margins(values[name], values[self.baseline], higher_is_better=higher_is_better)
            self._compare(evaluator, name, decide(by_cell, largest_tie=largest_tie), by_cell)

    def _compare(
        self,
        evaluator: str,
        system: str,
        outcomes: list[Outcome | None],
        cell_margins: Column,
        *,
        asked: Sequence[int] | None = None,
    ) -> None:
        """Add a comparison, if there is any outcome."""
        clusters = self._clusters(system, self.baseline)
        all_rates = rates(outcomes, clusters)
        if all_rates is None:
            prompts = [row.id for row in self.paired.prompts]
            self.problems.append(Problem(f"{evaluator}, {system}: no outcome, so there is no comparison", prompts))
            return
        lengths = self.characters[system], self.characters[self.baseline]
        controlled = controlled_win(outcomes, *lengths, clusters)
        if isinstance(controlled, str):
            self.problems.append(Problem(f"{evaluator}, {system}: no length-controlled win rate", [controlled]))
        self.comparisons.append(
            Comparison(
                system,
                self.baseline,
                evaluator,
                outcomes,
                cell_margins,
                all_rates,
                None if isinstance(controlled, str) else controlled,
                delta_by_replicate(outcomes, [replicate for _, replicate in self.paired.cells], clusters),
                None if asked is None else [cell in set(asked) for cell in range(len(outcomes))],
            )
        )
