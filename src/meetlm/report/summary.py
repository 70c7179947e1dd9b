"""A report in words: what was compared, what came out, and what cannot be concluded from it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from meetlm.evaluation.alignment import SETTINGS
from meetlm.evaluation.record import Comparison, Evaluation
from meetlm.report.conclusions import (
    JUDGE,
    RULE,
    Conclusion,
    conclude,
    excludes_zero,
    inconclusive_reason,
    inconclusive_systems,
    is_inconclusive,
    is_significant,
)
from meetlm.report.conditions import (
    Condition,
    Conditions,
    comparisons_of,
    evaluators_of,
    measure_of,
    others_of,
    over_temperatures,
    systems_of,
)
from meetlm.report.wording import clause, count, in_percent, listed, number, p_value, points

MAX_PROBLEMS = 4
"""Problems named in the summary; the table has all."""
PHRASES: dict[Conclusion, str] = {
    "better": "better than",
    "worse": "worse than",
    "not significant": "not significantly different from",
    "inconclusive": "cannot be distinguished reliably from",
}


@dataclass(frozen=True, slots=True)
class Finding:
    """What came out for one system.

    Attributes:
        system: Its name, with the temperature where a report is about several.
        text: The rest of the sentence.
        conclusions: By evaluator.
    """

    system: str
    text: str
    conclusions: dict[str, Conclusion]


@dataclass(frozen=True, slots=True)
class Summary:
    """A report in words.

    Attributes:
        opening: Which systems were compared, on what, and how to read the figures.
        findings: By system.
        caveats: What cannot be concluded, and why.
    """

    opening: str
    findings: list[Finding]
    caveats: list[str]


def summarize(conditions: Conditions) -> Summary:
    """Return a report in words."""
    findings = list(_findings(conditions))
    return Summary(_opening(conditions), findings, list(dict.fromkeys(_caveats(conditions))))


def _opening(conditions: Conditions) -> str:
    evaluations = [condition.evaluation for condition in conditions]
    systems = systems_of(conditions)
    baselines = list(dict.fromkeys(evaluation.baseline for evaluation in evaluations))
    text = f"{listed(systems)} {'was' if len(systems) == 1 else 'were'} compared with {listed(baselines)}"
    num_prompts = max(len(evaluation.prompts) for evaluation in evaluations)
    text += f" on {count(num_prompts, 'held-out prompt')}"
    num_seeds = max(len({seed for _, seed in evaluation.cells}) for evaluation in evaluations)
    if num_seeds > 1:
        num_pairs = max(len(evaluation.cells) for evaluation in evaluations)
        text += f" with {num_seeds} seeds ({count(num_pairs, 'pair')} of completions per system)"
    if over_temperatures(conditions):
        temperatures = dict.fromkeys(condition.temperature for condition in conditions)
        text += f" at {count(len(temperatures), 'temperature')} ({', '.join(f'{t:g}' for t in temperatures)})"
    evaluators = []
    for name in evaluators_of(conditions):
        num_judged = max(comparison.rates.num_prompts for _, comparison in comparisons_of(conditions, name))
        evaluators.append(name if num_judged == num_prompts else f"{name} (on {num_judged:,} of them)")
    if not evaluators:
        return f"{text}. No evaluator gave an outcome for any pair, so there is no finding."
    runs = " and training runs" if any(max(runs_of(e).values(), default=1) > 1 for e in evaluations) else ""
    return (
        f"{text}, by {listed(evaluators)}. Δ is the share of prompts won minus the share lost, in percentage points; "
        f"brackets are 95% intervals over prompts{runs}. A system is called better or worse only where {RULE}."
    )


def runs_of(evaluation: Evaluation) -> dict[str, int]:
    """Return the number of training runs of each system; nothing where the record does not state them."""
    runs: dict[str, set[int]] = {}
    for replicate in evaluation.replicates:
        runs.setdefault(replicate.system, set()).add(replicate.run)
    return {name: len(numbers) for name, numbers in runs.items()}


def _findings(conditions: Conditions) -> Iterator[Finding]:
    for system in systems_of(conditions):
        for condition in conditions:
            evaluation = condition.evaluation
            compared = [comparison for _, comparison in comparisons_of([condition]) if comparison.system == system]
            conclusions = {comparison.evaluator: conclude(evaluation, comparison) for comparison in compared}
            parts = [
                f"{phrase} {evaluation.baseline} by {listed(figures)}"
                for conclusion, phrase in PHRASES.items()
                if (figures := [_figures(c) for c in compared if conclusions[c.evaluator] == conclusion])
            ]
            if parts:
                name = system if condition.temperature is None else f"{system} at temperature {condition.temperature:g}"
                yield Finding(name, "; ".join(parts) + ".", conclusions)


def _figures(comparison: Comparison) -> str:
    p = p_value(comparison.rates.sign_p)
    return f"{comparison.evaluator} (Δ {points(comparison.rates.delta)}, p {p if p[0] == '<' else '= ' + p})"


def _caveats(conditions: Conditions) -> Iterator[str]:
    for condition in conditions:
        yield from _judge_caveats(condition)
    yield from _lost_judgements(conditions)
    yield from _missing_comparisons(conditions)
    yield from _interval_caveats(conditions)
    for condition in conditions:
        yield from _contradictions(condition)
    for condition, comparison in comparisons_of(conditions):
        yield from _length_caveats(condition, comparison)
    yield from _training_caveats(conditions)
    yield from _sampling_caveats(conditions)
    yield from _row_caveats(conditions)


def _judge_caveats(condition: Condition) -> Iterator[str]:
    evaluation, judge = condition.evaluation, condition.evaluation.judge
    if judge is None:
        return
    inconclusive = {f" about {name}": part for name, part in inconclusive_systems(evaluation).items()}
    for about, part in ({"": judge.overall} if is_inconclusive(evaluation, JUDGE) else inconclusive).items():
        yield (
            f"Nothing can be concluded from the judge ({judge.model}){about}{condition.place}: "
            f"{inconclusive_reason(part)}. Its figures are shown, but they are not findings."
        )


def _lost_judgements(conditions: Conditions) -> Iterator[str]:
    judges = [condition.evaluation.judge.overall for condition in conditions if condition.evaluation.judge]
    num_calls, num_unparsable = sum(judge.num_calls for judge in judges), sum(judge.num_unparsable for judge in judges)
    num_failed = sum(judge.num_failed for judge in judges)
    if num_unparsable + num_failed:
        yield (
            f"Of {count(num_calls, 'judgement')}, {num_unparsable:,} had no readable verdict and {num_failed:,} "
            f"failed, {number(100 * (num_unparsable + num_failed) / num_calls, 1)}% in all."
        )


def _missing_comparisons(conditions: Conditions) -> Iterator[str]:
    evaluators = evaluators_of(conditions)
    if JUDGE not in evaluators and any(condition.evaluation.judge for condition in conditions):
        evaluators.append(JUDGE)
    for condition in conditions:
        for evaluator in evaluators:
            compared = [comparison.system for _, comparison in comparisons_of([condition], evaluator)]
            missing = [name for name in others_of(condition.evaluation) if name not in compared]
            if missing:
                place = f"{evaluator}{condition.place}"
                yield f"There is no figure for {listed(missing)} by {place}: no pair has an outcome."


def _interval_caveats(conditions: Conditions) -> Iterator[str]:
    conclusive = [
        (condition, comparison)
        for condition, comparison in comparisons_of(conditions)
        if conclude(condition.evaluation, comparison) != "inconclusive"
    ]
    even = [(pair, "") for pair in conclusive if not excludes_zero(pair[1])]
    if even:
        where = f" in {len(even)} of {len(conclusive)} comparisons" if over_temperatures(conditions) else ""
        names = "" if where else f": {_named(even)}"
        yield f"The interval of Δ contains 0{where}, so the system may be better, equal or worse{names}."
    weak = _named(
        ((condition, comparison), f" (p = {p_value(comparison.rates.sign_p)})")
        for condition, comparison in conclusive
        if excludes_zero(comparison) and not is_significant(condition.evaluation, comparison)
    )
    if weak:
        yield (
            "The interval of Δ excludes 0 but the sign test is not significant, so it is not reported as a finding: "
            f"{weak}."
        )
    if len(conclusive) > 1:
        yield (
            f"There are {len(conclusive)} comparisons, each with its own 95% interval, not corrected for their number: "
            "of twenty comparisons without any difference, one is expected to look significant."
        )


def _named(pairs: Iterable[tuple[tuple[Condition, Comparison], str]]) -> str:
    """Return comparisons as ``a by reward and judge; b by judge``, each with a remark after its evaluator."""
    evaluators: dict[str, list[str]] = {}
    for (condition, comparison), remark in pairs:
        evaluators.setdefault(f"{comparison.system}{condition.place}", []).append(comparison.evaluator + remark)
    return "; ".join(f"{system} by {listed(names)}" for system, names in evaluators.items())


def _contradictions(condition: Condition) -> Iterator[str]:
    for finding in _findings([condition]):
        better, worse = (
            [name for name, conclusion in finding.conclusions.items() if conclusion == direction]
            for direction in ("better", "worse")
        )
        if better and worse:
            yield (
                f"The evaluators contradict each other on {finding.system}: better by {listed(better)}, worse by "
                f"{listed(worse)}."
            )


def _length_caveats(condition: Condition, comparison: Comparison) -> Iterator[str]:
    conclusion, equal = conclude(condition.evaluation, comparison), comparison.controlled_win
    if equal and (conclusion == "better" and equal.low <= 0.5 or conclusion == "worse" and equal.high >= 0.5):
        yield (
            f"At equal length {comparison.system}{condition.place} is expected to win {in_percent(equal)} by "
            f"{comparison.evaluator}, not significantly different from 50%"
            f"{_length_reason(condition.evaluation, comparison.system, better=conclusion == 'better')}."
        )


def _length_reason(evaluation: Evaluation, system: str, *, better: bool) -> str:
    words = measure_of(evaluation, "words")
    if words is None or not {system, evaluation.baseline} <= words.means.keys():
        return ""
    ours, theirs = words.means[system].value, words.means[evaluation.baseline].value
    if theirs == 0 or ours == theirs or (ours > theirs) != better:
        return ""
    lengths = f"{number(ours, 1)} words against {number(theirs, 1)}"
    return f": the difference may come from its {'longer' if better else 'shorter'} replies ({lengths})"


def _training_caveats(conditions: Conditions) -> Iterator[str]:
    runs = {name: runs for condition in conditions for name, runs in runs_of(condition.evaluation).items()}
    once = [name for name, num_runs in runs.items() if num_runs == 1]
    if once:
        yield f"Only one training run for {listed(once)}: no interval includes the variation between training seeds."


def _sampling_caveats(conditions: Conditions) -> Iterator[str]:
    for condition in conditions:
        systems = condition.evaluation.systems
        for system in systems:
            missing = [name for name in SETTINGS if name not in (system.sampling or {})]
            if missing:
                yield f"{system.name} does not state {listed(missing)}: assumed to be the same as for the others."
        is_sampled = any((system.sampling or {}).get("temperature") for system in systems)
        if is_sampled and len({seed for _, seed in condition.evaluation.cells}) == 1:
            temperature = "" if condition.temperature is None else f" at temperature {condition.temperature:g}"
            yield (
                f"One sampling seed only{temperature}: the intervals include the variation between prompts, not "
                "between samples of a prompt."
            )


def _row_caveats(conditions: Conditions) -> Iterator[str]:
    num_left_out = sum(comparison.rates.num_left_out for _, comparison in comparisons_of(conditions))
    if num_left_out:
        yield f"{count(num_left_out, 'pair')} of all comparisons together had no outcome and are left out of the rates."
    problems = [problem for condition in conditions for problem in condition.evaluation.problems]
    counts: dict[str, int] = {}
    for problem in (problem for problem in problems if problem.of_rows):
        counts[clause(problem.what)] = counts.get(clause(problem.what), 0) + problem.count
    if counts:
        named = [f"{text} ({number_of:,})" for text, number_of in counts.items()]
        if len(named) > MAX_PROBLEMS:
            named[MAX_PROBLEMS:] = [f"and {count(len(named) - MAX_PROBLEMS, 'more kind')}, listed under Problems"]
        yield f"Rows with problems: {'; '.join(named)}."
    num_notes = sum(not problem.of_rows for problem in problems)
    if num_notes:
        yield f"See also {count(num_notes, 'note')} under Problems."
