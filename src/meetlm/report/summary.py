"""A report in words: what was compared, the results, and what cannot be concluded from them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from meetlm.evaluation.record import Comparison, Evaluation
from meetlm.report.conclusions import JUDGE, RULE, Conclusion, conclude, excludes_zero, judge_doubt
from meetlm.report.conditions import Conditions, comparisons_of, evaluators_of, over_temperatures, systems_of
from meetlm.report.wording import clause, count, in_percent, listed, p_value, points

MAX_PROBLEMS = 8
"""Problems named in the summary; the table has all."""
PHRASES: dict[Conclusion, str] = {
    "better": "better than",
    "worse": "worse than",
    "not significant": "not significantly different from",
    "inconclusive": "cannot be distinguished reliably from",
}


@dataclass(frozen=True, slots=True)
class Finding:
    """The result for one system.

    Attributes:
        system: Its name, with the temperature where a report is about several temperatures.
        text: The rest of the sentence.
        conclusions: The conclusion by each evaluator.
    """

    system: str
    text: str
    conclusions: dict[str, Conclusion]


@dataclass(frozen=True, slots=True)
class Summary:
    """A report in words.

    Attributes:
        opening: Which systems were compared, on what, and how to read the figures.
        findings: The findings, in the order of the systems.
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
    num_replicates = max(len({replicate for _, replicate in evaluation.cells}) for evaluation in evaluations)
    if num_replicates > 1:
        num_pairs = max(len(evaluation.cells) for evaluation in evaluations)
        text += f" with {num_replicates} replicates ({count(num_pairs, 'pair')} of completions per system)"
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
    """Return the number of training runs of each system; nothing if the record does not state them."""
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
    yield from _judge_caveats(conditions)
    yield from _interval_caveats(conditions)
    yield from _contradictions(conditions)
    yield from _length_caveats(conditions)
    runs = {name: runs for condition in conditions for name, runs in runs_of(condition.evaluation).items()}
    if once := [name for name, num_runs in runs.items() if num_runs == 1]:
        yield f"Only one training run for {listed(once)}: no interval includes the variation between training seeds."
    yield from _sampling_caveats(conditions)
    yield from _problem_caveats(conditions)


def _judge_caveats(conditions: Conditions) -> Iterator[str]:
    for condition in conditions:
        evaluation, judge = condition.evaluation, condition.evaluation.judge
        if judge is None:
            continue
        general = judge_doubt(evaluation, JUDGE)
        by_system = {f" about {name}": judge_doubt(evaluation, JUDGE, name) for name in judge.by_system}
        for about, doubt in ({"": general} if general else by_system).items():
            if doubt:
                yield (
                    f"Nothing can be concluded from the judge ({judge.model}){about}{condition.suffix}: {doubt}. Its "
                    "figures are shown, but they are not findings."
                )


def _interval_caveats(conditions: Conditions) -> Iterator[str]:
    conclusions = [
        (excludes_zero(comparison), conclude(condition.evaluation, comparison))
        for condition, comparison in comparisons_of(conditions)
    ]
    total = count(len(conclusions), "comparison")
    if containing := sum(not excludes and conclusion != "inconclusive" for excludes, conclusion in conclusions):
        yield f"The interval of Δ contains 0 in {containing} of {total}: the system may be better, equal or worse."
    if weak := sum(excludes and conclusion == "not significant" for excludes, conclusion in conclusions):
        yield (
            f"The interval of Δ excludes 0 in {weak} of {total} whose sign test is not significant, so they are not "
            "reported as findings."
        )
    num_conclusive = sum(conclusion != "inconclusive" for _, conclusion in conclusions)
    if num_conclusive > 1:
        yield (
            f"There are {num_conclusive} comparisons, each with its own 95% interval, not corrected for their number: "
            "of twenty comparisons without any difference, one is expected to look significant."
        )


def _contradictions(conditions: Conditions) -> Iterator[str]:
    for finding in _findings(conditions):
        better, worse = (
            [name for name, conclusion in finding.conclusions.items() if conclusion == direction]
            for direction in ("better", "worse")
        )
        if better and worse:
            yield (
                f"The evaluators contradict each other on {finding.system}: better by {listed(better)}, worse by "
                f"{listed(worse)}."
            )


def _length_caveats(conditions: Conditions) -> Iterator[str]:
    for condition, comparison in comparisons_of(conditions):
        conclusion, controlled = conclude(condition.evaluation, comparison), comparison.controlled_win
        is_worse, is_better = conclusion == "worse", conclusion == "better"
        if controlled and (is_better and controlled.low <= 0.5 or is_worse and controlled.high >= 0.5):
            yield (
                f"At equal length {comparison.system}{condition.suffix} is expected to win {in_percent(controlled)} by "
                f"{comparison.evaluator}, not significantly different from 50%: the difference may come from the "
                "length of its replies."
            )


def _sampling_caveats(conditions: Conditions) -> Iterator[str]:
    for condition in conditions:
        is_sampled = any((system.sampling or {}).get("temperature") for system in condition.evaluation.systems)
        if is_sampled and len({replicate for _, replicate in condition.evaluation.cells}) == 1:
            temperature = "" if condition.temperature is None else f" at temperature {condition.temperature:g}"
            yield (
                f"One sampling seed only{temperature}: the intervals include the variation between prompts, not "
                "between samples of a prompt."
            )


def _problem_caveats(conditions: Conditions) -> Iterator[str]:
    if num_left_out := sum(comparison.num_left_out for _, comparison in comparisons_of(conditions)):
        yield f"{count(num_left_out, 'pair')} of all comparisons together had no outcome and are left out of the rates."
    counts: dict[str, int] = {}
    for problem in (problem for condition in conditions for problem in condition.evaluation.problems):
        text = clause(problem.description)
        counts[text] = counts.get(text, 0) + problem.count
    for text, num in list(counts.items())[:MAX_PROBLEMS]:
        yield f"{text} ({num:,})."
    if len(counts) > MAX_PROBLEMS:
        yield f"{count(len(counts) - MAX_PROBLEMS, 'more kind')} of problems, listed under Problems."
