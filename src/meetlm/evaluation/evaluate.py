"""Compares systems with a baseline: completions in, one record out (paper sections 4.3-4.6).

A preset holds the paper's protocol: temperature 0, at most 128 new tokens, level ``good``, the last checkpoint, one row
a distinct prompt; every prompt for the reward model and a fixed seeded 128 of them for the judge.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from itertools import combinations
from pathlib import Path
from typing import Any

from pydantic import Field

from meetlm.config.errors import ConfigError, nearest
from meetlm.config.reporter import SILENT, Reporter
from meetlm.config.settings import Settings
from meetlm.config.versions import git_hash, versions
from meetlm.data.example import Prompt
from meetlm.evaluation.callables import CallableScorer
from meetlm.evaluation.cells import Cells
from meetlm.evaluation.controlled import controlled_win
from meetlm.evaluation.judge import JudgeSettings, judge
from meetlm.evaluation.measures import LENGTHS, MEASURES, NO_CHOSEN, ROUGES, text_measures
from meetlm.evaluation.outcomes import PAPER_BAND, by_reward, by_value, margins
from meetlm.evaluation.protocol import sampled
from meetlm.evaluation.record import (
    Comparison,
    Evaluation,
    JudgeAccount,
    Measure,
    Outcome,
    Problem,
    System,
)
from meetlm.evaluation.reward import RewardModel
from meetlm.evaluation.score_cache import CachedRewardModel
from meetlm.evaluation.statistics import agreement, by_seed, difference, mean, rates

PACKAGES = ("meetlm", "torch", "transformers", "numpy", "scipy", "rouge-score")
ROUGE = "rouge-avg"
"""The one of ROUGE's measures that decides who wins a cell."""
Column = list[float | None]


class EvaluationSettings(Settings):
    """How outcomes and intervals are made."""

    band: tuple[float, float] = Field(PAPER_BAND, description="a tie where σ(r₁ - r₂) is inside (section 4.3)")
    judge_prompts: int = Field(128, ge=1, description="prompts that the judge sees, chosen by seed (section 4.3)")
    stemmer: bool = Field(False, description="stem words for ROUGE")
    resamples: int = Field(2000, ge=100, description="bootstrap resamples of prompts")
    judge_seed: int = Field(0, ge=0, description="of the judge's prompts: another one asks about other prompts")
    seed: int = Field(0, ge=0, description="of the resamples")


@dataclass(frozen=True)
class Evaluators:
    """Who decides; ROUGE does where the data have chosen replies.

    Attributes:
        reward: A reward model.
        judge: An LLM judge.
        scorers: Functions of the user's own.
        prompt_reason: Why the judge is asked with its prompt, in a clause for the report.
    """

    reward: RewardModel | None = None
    judge: JudgeSettings | None = None
    scorers: Sequence[CallableScorer] = ()
    prompt_reason: str = "given"


@dataclass
class _Found:
    measures: list[Measure] = field(default_factory=list)
    comparisons: list[Comparison] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    account: JudgeAccount | None = None
    reward: dict[str, Any] = field(default_factory=dict)


def evaluate(
    systems: Sequence[System],
    cells: Cells,
    baseline: str,
    settings: EvaluationSettings,
    evaluators: Evaluators,
    folder: Path,
    *,
    more: dict[str, Any] | None = None,
    on_judged: Callable[[int], object] | None = None,
    reporter: Reporter = SILENT,
) -> Evaluation:
    """Return the comparison of every system with the baseline; scores and answers are kept in ``folder`` as they come.

    Args:
        systems: In the order of the tables.
        cells: Their completions, lined up.
        baseline: Name of one of them.
        settings: How outcomes and intervals are made.
        evaluators: Who decides.
        folder: For what is kept.
        more: Settings to record besides.
        on_judged: Called with a number of judgements, of two a pair.
        reporter: Shows the progress.

    Raises:
        ConfigError: There is no such baseline, nothing to compare with it, nobody who decides, or ROUGE's stemmer is
            asked for and no prompt has a chosen reply.
    """
    names = [system.name for system in systems]
    if baseline not in names:
        raise ConfigError(f"--baseline {baseline!r} is none of the systems{nearest(baseline, names)}")
    if len(names) < 2:
        raise ConfigError(f"only {baseline!r} is given: name another system to compare it with")
    bare = next((f"{one.what} ({one.shown})" for one in cells.problems if one.what == NO_CHOSEN), "")
    if settings.stemmer and all(row.chosen is None for row in cells.prompts):
        raise ConfigError(f"--stemmer is of ROUGE, which nothing can be compared by: {bare or NO_CHOSEN}")
    work = _Work([name for name in names if name != baseline], baseline, cells, settings, folder)
    found = _Found(problems=list(cells.problems))
    work.texts(found)
    if not (found.comparisons or evaluators.reward or evaluators.judge or evaluators.scorers):
        raise ConfigError(
            f"nobody decides who wins: {bare or 'ROUGE is not defined for these replies'}; name a reward model, a "
            "judge or a function: --reward, --judge, --scorer"
        )
    if evaluators.reward is not None:
        work.reward(found, evaluators.reward, reporter)
    for scorer in evaluators.scorers:
        work.scorer(found, scorer)
    if evaluators.judge is not None:
        work.judge(found, evaluators.judge, on_judged)
        assert found.account is not None
        found.account = replace(found.account, prompt_reason=evaluators.prompt_reason)
    resolved = {
        **(more or {}),
        "evaluation": settings.model_dump(mode="json"),
        "reward": evaluators.reward and found.reward,
        "judge": evaluators.judge and evaluators.judge.model_dump(mode="json"),
        "scorers": [scorer.name for scorer in evaluators.scorers],
        "versions": versions(*PACKAGES, *(["openai"] if evaluators.judge else [])),
        "git": git_hash(),
        "date": datetime.now(UTC).date().isoformat(),
    }
    return Evaluation(
        settings=resolved,
        baseline=baseline,
        systems=list(systems),
        prompts=cells.prompts,
        cells=cells.cells,
        completions={name: [answer.completion for answer in cells.answers[name]] for name in names},
        measures=found.measures,
        comparisons=found.comparisons,
        agreements=work.agreements(found.comparisons),
        judge=found.account,
        problems=found.problems,
        replicates=cells.replicates,
    )


class _Work:
    """The columns that evaluators share.

    Args:
        others: Systems that are compared with the baseline.
        baseline: Its name.
        cells: The completions.
        settings: Of the evaluation.
        folder: For what is kept.
    """

    def __init__(
        self, others: list[str], baseline: str, cells: Cells, settings: EvaluationSettings, folder: Path
    ) -> None:
        self.others, self.baseline, self.cells, self.settings, self.folder = others, baseline, cells, settings, folder
        self.names = [baseline, *others]
        self.prompts = [Prompt.from_json(cells.prompts[place].prompt) for place, _ in cells.cells]
        self.chosen = [cells.prompts[place].chosen for place, _ in cells.cells]
        self.completions = {name: [answer.completion for answer in cells.answers[name]] for name in self.names}
        self.rows = {name: [str(answer.origin) for answer in cells.answers[name]] for name in self.names}
        self.characters: dict[str, Column] = {}
        self._drawn: dict[str, int] = {"seed": settings.seed, "resamples": settings.resamples}

    def texts(self, found: _Found) -> None:
        """Add the measures of text, and ROUGE's comparison."""
        columns = {
            name: text_measures(self.prompts, self.completions[name], self.chosen, stemmer=self.settings.stemmer)
            for name in self.names
        }
        self.characters = {name: columns[name]["characters"] for name in self.names}
        for measure, (description, higher) in MEASURES.items():
            values = {name: columns[name][measure] for name in self.names}
            self._measure(found, measure, description, higher, values)
            if measure == ROUGE and any(one is not None for one in values[self.baseline]):
                self._compare_values(found, measure, values, higher=True)
        rouge = zip(self.cells.clusters, self.chosen, columns[self.baseline][ROUGE], strict=True)
        undefined = [
            f"{self.cells.prompts[prompt].id}: {reply!r}"
            for prompt, reply, value in rouge
            if value is None and reply is not None
        ]
        if undefined:
            what = f"a chosen reply without Latin letters and digits: {', '.join(ROUGES)} are not defined"
            found.problems.append(Problem(what, len(undefined), undefined))

    def reward(self, found: _Found, model: RewardModel, reporter: Reporter) -> None:
        """Add rewards and their comparison."""
        cached = CachedRewardModel(model, self.folder / "scores")
        values: dict[str, Column] = {}
        for name in self.names:
            values[name], problems = cached.score(
                self.prompts, self.completions[name], self.rows[name], reporter=reporter
            )
            found.problems += [Problem(f"reward, {name}: {one.what}", one.count, one.examples) for one in problems]
        found.reward = {
            **model.settings.model_dump(mode="json"),
            "reads": model.form,
            "precision": model.precision,
            "weights_sha256": cached.weights_sha256,
        }
        described = f"reward of {model.settings.model} (input form {model.form}: {model.form_reason})"
        self._measure(found, "reward", described, True, values)
        for name in self.others:
            ours, theirs = values[name], values[self.baseline]
            outcomes = by_reward(ours, theirs, self.settings.band)
            self._compare(found, "reward", name, outcomes, margins(ours, theirs))

    def scorer(self, found: _Found, scorer: CallableScorer) -> None:
        """Add the values of a function and their comparison."""
        values = {}
        for name in self.names:
            values[name] = scorer.score(self.prompts, self.completions[name], self.chosen, names=self.rows[name])
            found.problems += [Problem(f"{name}: {one.what}", one.count, one.examples) for one in scorer.problems]
        self._measure(found, scorer.name, scorer.description, scorer.higher, values)
        self._compare_values(found, scorer.name, values, higher=scorer.higher)

    def judge(self, found: _Found, settings: JudgeSettings, on_done: Callable[[int], object] | None) -> None:
        """Add the judge's comparison over its own prompts, and its account over all systems."""
        places = self._judged()
        pairs = [
            (self.prompts[place], self.completions[name][place], self.completions[self.baseline][place])
            for name in self.others
            for place in places
        ]
        names = [f"{name}, {self.rows[name][place]}" for name in self.others for place in places]
        systems = [name for name in self.others for _ in places]
        judged = judge(pairs, settings, self.folder / "judge", on_done, names=names, systems=systems)
        found.account, found.problems = judged.account, found.problems + judged.problems
        for number, name in enumerate(self.others):
            outcomes: list[Outcome | None] = [None] * len(self.prompts)
            clear: Column = [None] * len(self.prompts)
            for at, place in enumerate(places, number * len(places)):
                outcomes[place], clear[place] = judged.outcomes[at], judged.margins[at]
            self._compare(found, "judge", name, outcomes, clear, asked=set(places))

    def agreements(self, comparisons: Sequence[Comparison]) -> list[Any]:
        """Return how far evaluators agree, two by two, system by system."""
        made = []
        for system in self.others:
            of_system = [one for one in comparisons if one.system == system]
            for one, other in combinations(of_system, 2):
                pair = (one.evaluator, other.evaluator)
                agreed = agreement(
                    one.outcomes, other.outcomes, self.cells.clusters, system=system, evaluators=pair, **self._drawn
                )
                made += [agreed] if agreed else []
        return made

    def _judged(self) -> list[int]:
        """Return the cells that the judge sees: all of so many prompts."""
        ids = [row.id for row in self.cells.prompts]
        seen = set(sampled(ids, self.settings.judge_prompts, self.settings.judge_seed))
        return [at for at, (place, _) in enumerate(self.cells.cells) if self.cells.prompts[place].id in seen]

    def _measure(
        self, found: _Found, name: str, description: str, higher: bool | None, values: dict[str, Column]
    ) -> None:
        """Add a measure, unless no completion has it."""
        clusters = self.cells.clusters
        means = {
            system: mean(column, clusters, runs=self.cells.runs(system), **self._drawn)
            for system, column in values.items()
        }
        told = {system: interval for system, interval in means.items() if interval is not None}
        apart = {
            system: difference(
                values[system],
                values[self.baseline],
                clusters,
                runs=self.cells.runs(system, self.baseline),
                ratio=name in LENGTHS,
                **self._drawn,
            )
            for system in self.others
        }
        if told:
            differences = {system: one for system, one in apart.items() if one is not None}
            found.measures.append(Measure(name, description, higher, values, told, differences))

    def _compare_values(self, found: _Found, evaluator: str, values: dict[str, Column], *, higher: bool) -> None:
        for name in self.others:
            ours, theirs = values[name], values[self.baseline]
            clear = [one if higher or one is None else -one for one in margins(ours, theirs)]
            self._compare(found, evaluator, name, by_value(ours, theirs, higher=higher), clear)

    def _compare(
        self,
        found: _Found,
        evaluator: str,
        name: str,
        outcomes: list[Outcome | None],
        clear: Column,
        *,
        asked: set[int] | None = None,
    ) -> None:
        """Add a comparison, if there is any outcome; cells that were not asked about are not left out."""
        places = range(len(outcomes)) if asked is None else sorted(asked)
        clusters = [self.cells.clusters[place] for place in places]
        counted = [outcomes[place] for place in places]
        runs = self.cells.runs(name, self.baseline)
        of_all = rates(counted, clusters, runs=[runs[place] for place in places], **self._drawn)
        if of_all is None:
            what = f"{evaluator}, {name}: no outcome in any cell, so there is no comparison"
            found.problems.append(Problem(what, len(counted), [], of_rows=False))
            return
        ours, theirs = ([self.characters[one][place] for place in places] for one in (name, self.baseline))
        controlled = controlled_win(counted, ours, theirs, clusters, **self._drawn)
        seeds = by_seed(counted, clusters, [self.cells.cells[place][1] for place in places], **self._drawn)
        sample = None if asked is None else [place in asked for place in range(len(outcomes))]
        found.comparisons.append(
            Comparison(name, self.baseline, evaluator, outcomes, clear, of_all, controlled.win, seeds, sample)
        )
        if controlled.reason:
            what = f"{evaluator}, {name}: no length-controlled win rate: {controlled.reason}"
            found.problems.append(Problem(what, 1, [], of_rows=False))
