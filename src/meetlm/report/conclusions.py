"""What a comparison shows: one rule for the words, the bold figures and the filled markers of a report."""

from __future__ import annotations

from typing import Literal

from meetlm.evaluation.record import Comparison, Consistency, Evaluation
from meetlm.report.wording import in_percent, listed, number

Conclusion = Literal["better", "worse", "not significant", "inconclusive"]
JUDGE = "judge"
"""Name of the evaluator that :class:`JudgeAccount` describes."""
ALPHA = 0.05
"""Significance level of the sign test."""
RULE = f"the interval of Δ excludes 0 and the sign test over prompts has p < {ALPHA}"
NEAR_CHANCE = "consistency near chance"


def conclude(evaluation: Evaluation, comparison: Comparison) -> Conclusion:
    """Return what a comparison shows: better or worse only where the interval of Δ and the sign test agree.

    The interval alone is not enough: a bootstrap over a handful of prompts draws the same few again and again.
    """
    if is_inconclusive(evaluation, comparison.evaluator, comparison.system):
        return "inconclusive"
    if excludes_zero(comparison) and comparison.rates.sign_p < ALPHA:
        return "better" if comparison.rates.delta.low > 0 else "worse"
    return "not significant"


def is_significant(evaluation: Evaluation, comparison: Comparison) -> bool:
    """Return whether a comparison shows a difference."""
    return conclude(evaluation, comparison) in ("better", "worse")


def excludes_zero(comparison: Comparison) -> bool:
    """Return whether the interval of Δ excludes 0."""
    return comparison.rates.delta.low > 0 or comparison.rates.delta.high < 0


def is_inconclusive(evaluation: Evaluation, evaluator: str, system: str | None = None) -> bool:
    """Return whether the evaluator is a judge from which nothing can be concluded: in general, or about one system."""
    judge = evaluation.judge
    if evaluator != JUDGE or judge is None:
        return False
    return cannot_conclude(judge.overall) or system in inconclusive_systems(evaluation)


def inconclusive_systems(evaluation: Evaluation) -> dict[str, Consistency]:
    """Return the systems about which nothing can be concluded from the judge, whatever its overall consistency."""
    judge = evaluation.judge
    return {name: part for name, part in judge.by_system.items() if cannot_conclude(part)} if judge else {}


def cannot_conclude(judge: Consistency) -> bool:
    """Return whether a judge was asked and nothing can be concluded from its answers."""
    return judge.num_calls > 0 and not judge.conclusive


def inconclusive_reason(judge: Consistency) -> str:
    """Return why nothing can be concluded from a judge, in one clause."""
    if judge.consistency is None:
        if judge.num_calls == judge.num_unparsable + judge.num_failed:
            return "no verdict could be read"
        return "no pair has a verdict in both orders"
    chance = f"; chance alone gives {number(100 * judge.chance, 1)}%" if judge.chance is not None else ""
    return f"it gave the same verdict in both orders for {in_percent(judge.consistency)} of the pairs{chance}"


def judge_note(evaluation: Evaluation, evaluator: str, place: str = "") -> str:
    """Return the note beside figures from which nothing can be concluded; empty where there is none.

    Args:
        evaluation: The evaluation.
        evaluator: Its name.
        place: Ends the clause where a report has several evaluations, such as `` at temperature 0.5``.
    """
    if is_inconclusive(evaluation, evaluator):
        about = ""
    elif evaluator == JUDGE and inconclusive_systems(evaluation):
        about = f" about {listed(list(inconclusive_systems(evaluation)))}"
    else:
        return ""
    return (
        f"No conclusion can be drawn from the judge{about}{place} (the summary says why), so none of these figures is "
        "bold or filled."
    )


def judge_mark(evaluation: Evaluation, evaluator: str, system: str) -> str:
    """Return the mark, in brackets, of a system about which nothing can be concluded; empty where something can."""
    part = evaluation.judge.by_system.get(system) if evaluator == JUDGE and evaluation.judge else None
    if part is None or not cannot_conclude(part):
        return ""
    return f"({NEAR_CHANCE if part.consistency else inconclusive_reason(part)})"
